# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Predicates about the layer: its weight type, groups, sizes, dtypes and scales."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jaxkernels.scalar_types import ScalarType
from selection.checks import Check, Facts
from selection.dtypes import dtype_name

HALF = ("float16", "bfloat16")


# -- mixed precision ------------------------------------------------------------------------------


def _names(types: Collection[Any]) -> str:
    return ", ".join(str(t) for t in types) or "none"


def weight_type_in(*types: ScalarType) -> Check:
    """The weights have one of these types."""
    listed = _names(types)
    return Check(
        f"weight_type_in({listed})",
        lambda f: f.config.weight_type in types,
        lambda f: f"weight type {f.config.weight_type} is not one of {listed}",
    )


def weight_type_by_zero_points(
    with_zp: tuple[ScalarType, ...], without: tuple[ScalarType, ...]
) -> Check:
    """One list of weight types for layers with zero points, another for those without."""

    listed_with, listed_without = _names(with_zp), _names(without)

    def reason(f: Facts) -> str:
        kind, listed = (
            ("with", listed_with) if f.config.zero_points else ("without", listed_without)
        )
        return f"weight type {f.config.weight_type} {kind} zero points is not one of {listed}"

    return Check(
        f"weight_type_by_zero_points({listed_with}; {listed_without})",
        lambda f: f.config.weight_type in (with_zp if f.config.zero_points else without),
        reason,
    )


def group_size_in(*sizes: int) -> Check:
    """The group size is one of these; -1 is the whole of K."""
    listed = _names(sizes)
    return Check(
        f"group_size_in({listed})",
        lambda f: f.config.group_size in sizes,
        lambda f: f"group size {f.config.group_size} is not one of {listed}",
    )


def group_size_whole_or_multiple_of(divisor: int) -> Check:
    """The group is the whole of K, or a multiple of this."""
    return Check(
        f"group_size_whole_or_multiple_of({divisor})",
        lambda f: f.config.group_size == -1 or f.config.group_size % divisor == 0,
        lambda f: f"group size {f.config.group_size} is neither -1 nor a multiple of {divisor}",
    )


group_positive = Check(
    "group_positive",
    lambda f: f.config.group_size > 0,
    lambda f: (
        f"group size {f.config.group_size} is not positive: one scale for all of K is not supported"
    ),
)

# -1 divides everything in Python, which is what upstream's tests rely on for whole-K scales.
group_divides_full_k = Check(
    "group_divides_full_k",
    lambda f: f.config.full_weight_shape[0] % f.config.group_size == 0,
    lambda f: (
        f"group size {f.config.group_size} does not divide the layer's in-features "
        f"({f.config.full_weight_shape[0]})"
    ),
)

no_g_idx = Check("no_g_idx", lambda f: not f.config.has_g_idx, "act-order (g_idx) is unsupported")
no_zero_points = Check(
    "no_zero_points", lambda f: not f.config.zero_points, "zero points are unsupported"
)
g_idx_unsharded = Check(
    "g_idx_unsharded",
    lambda f: (
        not f.config.has_g_idx
        or f.config.partition_weight_shape[0] == f.config.full_weight_shape[0]
    ),
    "act-order (g_idx) is unsupported when the in-features are sharded",
)


def k_multiple_of(divisor: int) -> Check:
    """This rank's in-features are a multiple of this."""
    return Check(
        f"k_multiple_of({divisor})",
        lambda f: f.config.partition_weight_shape[0] % divisor == 0,
        lambda f: (
            f"in-features {f.config.partition_weight_shape[0]} are not a multiple of {divisor}"
        ),
    )


def n_multiple_of(divisor: int) -> Check:
    """This rank's out-features are a multiple of this."""
    return Check(
        f"n_multiple_of({divisor})",
        lambda f: f.config.partition_weight_shape[1] % divisor == 0,
        lambda f: (
            f"out-features {f.config.partition_weight_shape[1]} are not a multiple of {divisor}"
        ),
    )


def kn_multiple_of(k_divisor: int, n_divisor: int) -> Check:
    """Both sizes at once, with one reason that shows the shape."""

    def holds(f: Facts) -> bool:
        k, n = f.config.partition_weight_shape
        return k % k_divisor == 0 and n % n_divisor == 0

    return Check(
        f"kn_multiple_of({k_divisor}, {n_divisor})",
        holds,
        lambda f: (
            f"weight shape {tuple(f.config.partition_weight_shape)} is not a multiple of "
            f"({k_divisor}, {n_divisor})"
        ),
    )


def act_type_in(*names: str) -> Check:
    """The activations have one of these dtypes."""
    listed = _names(names)
    return Check(
        f"act_type_in({listed})",
        lambda f: dtype_name(f.config.act_type) in names,
        lambda f: f"activation type {dtype_name(f.config.act_type)} is not one of {listed}",
    )


def out_type_is(name: str) -> Check:
    """The result has this dtype (a config without an out_type does not)."""

    def text(f: Facts) -> str:
        return "none" if f.config.out_type is None else dtype_name(f.config.out_type)

    return Check(
        f"out_type_is({name})",
        lambda f: text(f) == name,
        lambda f: f"output type must be {name}, got {text(f)}",
    )


# -- scaled mm ------------------------------------------------------------------------------------

symmetric_only = Check(
    "symmetric_only",
    lambda f: bool(f.config.input_symmetric),
    "supports symmetric activations only",
)
dynamic_only = Check(
    "dynamic_only",
    lambda f: not f.config.is_static_input_scheme,
    "supports dynamic activation scales only",
)
channelwise_only = Check(
    "channelwise_only",
    lambda f: bool(f.config.is_channelwise),
    "supports a weight scale per channel only",
)


def _shape(key: Any) -> Any:
    return key.scale.group_shape


both_per_tensor = Check(
    "both_per_tensor",
    lambda f: (
        _shape(f.config.activation_quant_key).is_per_tensor()
        and _shape(f.config.weight_quant_key).is_per_tensor()
    ),
    "requires per-tensor scales for activations and weights",
)
not_both_per_tensor = Check(
    "not_both_per_tensor",
    lambda f: not both_per_tensor.holds(f),
    "per-tensor scales for both activations and weights are another kernel's",
)
neither_per_tensor = Check(
    "neither_per_tensor",
    lambda f: (
        not (
            _shape(f.config.activation_quant_key).is_per_tensor()
            or _shape(f.config.weight_quant_key).is_per_tensor()
        )
    ),
    "requires scales per token and per channel, not per tensor",
)
token_by_channel = Check(
    "token_by_channel",
    lambda f: (
        _shape(f.config.activation_quant_key).is_per_token()
        and _shape(f.config.weight_quant_key).is_per_channel()
    ),
    "requires per-token activation and per-channel weight scales",
)
dynamic_activations = Check(
    "dynamic_activations",
    lambda f: not f.config.activation_quant_key.scale.static,
    "static activation scales are unsupported with block-scaled weights",
)
f32_weight_scales = Check(
    "f32_weight_scales",
    lambda f: f.config.weight_quant_key.scale.dtype == "float32",
    lambda f: f"weight scales of {f.config.weight_quant_key.scale.dtype} are unsupported",
)
shape_known = Check(
    "shape_known", lambda f: f.config.weight_shape is not None, "needs to know the weight's shape"
)


def activation_group(width: int) -> Check:
    """Activations have a scale for each 1 x width."""
    return Check(
        f"activation_group({width})",
        lambda f: tuple(_shape(f.config.activation_quant_key)) == (1, width),
        lambda f: (
            f"requires activation scales of 1x{width}, got "
            f"{'x'.join(str(v) for v in _shape(f.config.activation_quant_key))}"
        ),
    )


def out_dtype_in(*names: str) -> Check:
    """The result has one of these dtypes (none given: that of the input, where known)."""

    def text(f: Facts) -> str:
        given = f.config.out_dtype if f.config.out_dtype is not None else f.config.input_dtype
        return "none" if given is None else dtype_name(given)

    listed = _names(names)
    return Check(
        f"out_dtype_in({listed})",
        lambda f: text(f) in names,
        lambda f: f"output type {text(f)} is not one of {listed}",
    )


def out_dtype_not(name: str) -> Check:
    """The result does not have this dtype."""

    def holds(f: Facts) -> bool:
        return f.config.out_dtype is None or dtype_name(f.config.out_dtype) != name

    return Check(f"out_dtype_not({name})", holds, f"output type {name} is unsupported")


def input_dtype_in(*names: str) -> Check:
    """The activations before quantization have one of these dtypes."""

    def text(f: Facts) -> str:
        return "none" if f.config.input_dtype is None else dtype_name(f.config.input_dtype)

    listed = _names(names)
    return Check(
        f"input_dtype_in({listed})",
        lambda f: text(f) in names,
        lambda f: f"input type {text(f)} is not one of {listed}",
    )


def nk_multiple_of(n_divisor: int, k_divisor: int) -> Check:
    """weight_shape (N, K) is known and a multiple of these."""

    def holds(f: Facts) -> bool:
        shape = f.config.weight_shape
        return shape is not None and shape[0] % n_divisor == 0 and shape[1] % k_divisor == 0

    return Check(
        f"nk_multiple_of({n_divisor}, {k_divisor})",
        holds,
        lambda f: (
            f"weight shape {f.config.weight_shape} is not a multiple of ({n_divisor}, {k_divisor})"
        ),
    )


def weight_dtype_in(*names: str) -> Check:
    """The weight key's dtype is one of these."""
    listed = _names(names)
    return Check(
        f"weight_dtype_in({listed})",
        lambda f: f.config.weight_quant_key.dtype in names,
        lambda f: f"weight type {f.config.weight_quant_key.dtype} is not one of {listed}",
    )


def weight_key_in(*keys: Any) -> Check:
    """The weight key is one of these."""
    return Check(
        f"weight_key_in({_names(keys)})",
        lambda f: f.config.weight_quant_key in keys,
        lambda f: f"weight format {f.config.weight_quant_key} is unsupported",
    )


def activation_key_in(*keys: Any) -> Check:
    """The activation key is one of these."""
    return Check(
        f"activation_key_in({_names(keys)})",
        lambda f: f.config.activation_quant_key in keys,
        lambda f: f"activation format {f.config.activation_quant_key} is unsupported",
    )

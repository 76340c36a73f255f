# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The predicates that kernel declarations are made of, each with the reason it gives.

A check looks at the layer's config, at the platform, or at the environment, and either holds or
says in a few words why not. Those that several classes use are here, once; a class lists them in
the order in which upstream asks, since the first that fails is the reason shown.

Two kinds of capability check exist, as upstream: `capability_at_least` judges the number that the
caller passed and is skipped when there is none; `device_at_least` and `device_is` ask the platform
itself, and fail where it has no capability.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxkernels.scalar_types import ScalarType
from selection.dtypes import dtype_name
from selection.platforms import CpuArchEnum, PlatformEnum, get_platform

HALF = ("float16", "bfloat16")
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")


class Facts(NamedTuple):
    """What a check may look at: the layer, the capability passed in, the platform chosen for."""

    config: Any
    capability: int | None
    platform: Any


def facts(config: Any = None, capability: int | None = None) -> Facts:
    """The facts as of now: the platform is asked for at each call."""
    return Facts(config, capability, get_platform())


@dataclass(frozen=True)
class Check:
    """A named predicate and its reason.

    Attributes:
      name: what a listing shows.
      holds: facts -> bool.
      reason: why not, as text or made from the facts.
      platforms: those that can pass, for checks on the platform.
    """

    name: str
    holds: Callable[[Facts], bool]
    reason: str | Callable[[Facts], str]
    platforms: tuple[PlatformEnum, ...] | None = None

    def why_not(self, facts: Facts) -> str | None:
        """None if it holds, else the reason."""
        if self.holds(facts):
            return None
        return self.reason if isinstance(self.reason, str) else self.reason(facts)


def first_failure(checks: tuple[Check, ...], facts: Facts) -> str | None:
    """The reason of the first check that fails, or None."""
    for check in checks:
        reason = check.why_not(facts)
        if reason is not None:
            return reason
    return None


def env_flag(name: str, default: bool = False) -> bool:
    """An on/off environment variable, read at each call: 0, false, off, no and "" are off."""
    value = os.environ.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "false", "off", "no")


def never(reason: str) -> Check:
    """A check that always fails."""
    return Check("never", lambda f: False, reason)


# -- platform, capability, environment ------------------------------------------------------------

_CUDA, _ROCM, _XPU, _CPU = (
    PlatformEnum.CUDA,
    PlatformEnum.ROCM,
    PlatformEnum.XPU,
    PlatformEnum.CPU,
)


def on_platform(name: str, reason: str, platforms: tuple[PlatformEnum, ...]) -> Check:
    """The platform is one of these."""
    predicates = tuple(
        {_CUDA: "is_cuda", _ROCM: "is_rocm", _XPU: "is_xpu", _CPU: "is_cpu"}[p] for p in platforms
    )

    def holds(f: Facts) -> bool:
        for predicate in predicates:
            if getattr(f.platform, predicate)():
                return True
        return False

    return Check(name, holds, reason, platforms)


on_cuda = on_platform("on_cuda", "requires CUDA", (_CUDA,))
on_rocm = on_platform("on_rocm", "requires ROCm", (_ROCM,))
on_xpu = on_platform("on_xpu", "requires an Intel XPU", (_XPU,))
on_cpu = on_platform("on_cpu", "requires a CPU", (_CPU,))
on_cuda_alike = on_platform("on_cuda_alike", "requires ROCm or CUDA", (_CUDA, _ROCM))
on_cuda_alike_or_xpu = on_platform(
    "on_cuda_alike_or_xpu", "requires ROCm, CUDA or an Intel XPU", (_CUDA, _ROCM, _XPU)
)
on_cuda_alike_or_cpu = on_platform(
    "on_cuda_alike_or_cpu", "requires ROCm, CUDA or a CPU", (_CUDA, _ROCM, _CPU)
)


def capability_at_least(minimum: int) -> Check:
    """The capability passed in is at least this; holds when none was passed."""
    return Check(
        f"capability_at_least({minimum})",
        lambda f: f.capability is None or f.capability >= minimum,
        lambda f: f"requires compute capability {minimum}, got {f.capability}",
    )


def _capability_text(f: Facts) -> str:
    capability = f.platform.get_device_capability()
    return "none" if capability is None else str(capability.to_int())


def device_at_least(minimum: int) -> Check:
    """The platform's own capability is at least this."""
    return Check(
        f"device_at_least({minimum})",
        lambda f: f.platform.has_device_capability(minimum),
        lambda f: f"requires a device of capability {minimum}, this one has {_capability_text(f)}",
    )


def device_is(exactly: int) -> Check:
    """The platform's own capability is this one."""
    return Check(
        f"device_is({exactly})",
        lambda f: f.platform.is_device_capability(exactly),
        lambda f: (
            f"requires a device of capability exactly {exactly}, this one has {_capability_text(f)}"
        ),
    )


def device_family(family: int) -> Check:
    """The platform's own capability has this major version: 100 stands for 10.x."""
    return Check(
        f"device_family({family})",
        lambda f: f.platform.is_device_capability_family(family),
        lambda f: (
            f"requires a device of capability {family // 10}.x, this one has {_capability_text(f)}"
        ),
    )


def device_in(minimum: int, below: int) -> Check:
    """minimum <= the platform's own capability < below."""

    def holds(f: Facts) -> bool:
        capability = f.platform.get_device_capability()
        return capability is not None and minimum <= capability.to_int() < below

    return Check(
        f"device_in({minimum}, {below})",
        holds,
        lambda f: (
            f"unsupported capability: needs {minimum} up to below {below}, "
            f"this device has {_capability_text(f)}"
        ),
    )


def gfx_in(*prefixes: str, what: str) -> Check:
    """AMD's name of the architecture starts with one of these."""
    return Check(
        f"gfx_in({', '.join(prefixes)})",
        lambda f: f.platform.gfx.startswith(prefixes),
        lambda f: f"requires {what}, this device is {f.platform.gfx or 'not a known AMD GPU'}",
    )


mi300_series = gfx_in("gfx94", "gfx95", what="an MI300 series GPU")


def package(name: str) -> Check:
    """What an optional package provides is here (see `selection.platforms`)."""
    return Check(
        f"package({name})", lambda f: f.platform.has_package(name), f"needs the package {name}"
    )


def cpu_feature(name: str, what: str) -> Check:
    """The host processor has a trait."""
    return Check(f"cpu_feature({name})", lambda f: f.platform.has_feature(name), f"requires {what}")


def env_on(name: str, default: bool) -> Check:
    """An environment variable is on."""
    return Check(f"env_on({name})", lambda f: env_flag(name, default), f"{name} is off")


def env_off(name: str, default: bool = False) -> Check:
    """An environment variable is off."""
    return Check(f"env_off({name})", lambda f: not env_flag(name, default), f"{name} is on")


def on_arm(check: Check) -> Check:
    """A check that only an ARM host has to pass."""
    return Check(
        f"on_arm({check.name})",
        lambda f: f.platform.get_cpu_architecture() is not CpuArchEnum.ARM or check.holds(f),
        check.reason,
    )


# -- mixed precision ------------------------------------------------------------------------------


def _names(types: Collection[Any]) -> str:
    return ", ".join(str(t) for t in types) or "none"


def weight_type_in(*types: ScalarType) -> Check:
    """The weights have one of these types."""
    return Check(
        f"weight_type_in({_names(types)})",
        lambda f: f.config.weight_type in types,
        lambda f: f"weight type {f.config.weight_type} is not one of {_names(types)}",
    )


def weight_type_by_zero_points(
    with_zp: tuple[ScalarType, ...], without: tuple[ScalarType, ...]
) -> Check:
    """One list of weight types for layers with zero points, another for those without."""

    def reason(f: Facts) -> str:
        types, kind = (with_zp, "with") if f.config.zero_points else (without, "without")
        return (
            f"weight type {f.config.weight_type} {kind} zero points is not one of {_names(types)}"
        )

    return Check(
        f"weight_type_by_zero_points({_names(with_zp)}; {_names(without)})",
        lambda f: f.config.weight_type in (with_zp if f.config.zero_points else without),
        reason,
    )


def group_size_in(*sizes: int) -> Check:
    """The group size is one of these; -1 is the whole of K."""
    return Check(
        f"group_size_in({_names(sizes)})",
        lambda f: f.config.group_size in sizes,
        lambda f: f"group size {f.config.group_size} is not one of {_names(sizes)}",
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
    return Check(
        f"act_type_in({_names(names)})",
        lambda f: dtype_name(f.config.act_type) in names,
        lambda f: f"activation type {dtype_name(f.config.act_type)} is not one of {_names(names)}",
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

    return Check(
        f"out_dtype_in({_names(names)})",
        lambda f: text(f) in names,
        lambda f: f"output type {text(f)} is not one of {_names(names)}",
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

    return Check(
        f"input_dtype_in({_names(names)})",
        lambda f: text(f) in names,
        lambda f: f"input type {text(f)} is not one of {_names(names)}",
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
    return Check(
        f"weight_dtype_in({_names(names)})",
        lambda f: f.config.weight_quant_key.dtype in names,
        lambda f: f"weight type {f.config.weight_quant_key.dtype} is not one of {_names(names)}",
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

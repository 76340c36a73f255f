# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""From a layer's config to the problem that jaxkernels is asked to compute, and by what.

A legality rule is stated once, in an implementation's own `supports(problem, device)`. This file
asks it on behalf of a kernel class: which of the class's implementations would run, and why those
before it would not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from jaxkernels.mixed_mm import IMPLEMENTATIONS as MIXED_MM
from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT
from jaxkernels.mixed_mm.prepare_w4a8 import HOPPER_W4A8
from jaxkernels.mixed_mm.w4a8 import IMPLEMENTATIONS as W4A8_MM
from jaxkernels.problem import (
    Device,
    Implementation,
    MixedMMProblem,
    ScaledMMProblem,
    W4A8Problem,
)
from jaxkernels.quantized import PLAIN, WEIGHT_TYPES, GroupShape
from jaxkernels.scalar_types import scalar_types
from jaxkernels.scaled_mm import IMPLEMENTATIONS as SCALED_MM
from jaxkernels.tuning import mixed_mm as mixed_tuning
from jaxkernels.tuning import scaled_mm as scaled_tuning
from jaxkernels.tuning import w4a8 as w4a8_tuning
from selection.dtypes import dtype_name

Problem = ScaledMMProblem | MixedMMProblem | W4A8Problem

# Sizes of a layer whose config does not say them, and the rows asked about where nobody names M.
NOMINAL_SIZE = 4096
NOMINAL_M = 16

# Weights are brought into these layouts at load, whichever their implementation wants.
_LAYOUTS = {MixedMMProblem: (PLAIN, HOPPER_FRAGMENT), W4A8Problem: (PLAIN, HOPPER_W4A8)}

_WEIGHT_TYPES = {
    "float8_e4m3fn": scalar_types.float8_e4m3fn,
    "float8_e5m2": scalar_types.float8_e5m2,
}
_BLOCK = GroupShape(128, 128)


_TABLES: dict[str, dict[str, Implementation]] = {
    "scaled_mm": {implementation.name: implementation for implementation in SCALED_MM},
    "mixed_mm": {implementation.name: implementation for implementation in MIXED_MM},
    "w4a8_mm": {implementation.name: implementation for implementation in W4A8_MM},
}


@functools.cache
def implementations_of(backing: Any) -> tuple[tuple[str, Implementation], ...]:
    """(name, implementation) of those in a `Backing` that exist in this version, in its order."""
    if backing is None:
        return ()
    table = _TABLES[backing.op]
    return tuple((name, table[name]) for name in backing.implementations if name in table)


@dataclass(frozen=True)
class Resolved:
    """What runs a problem: an implementation's name, and why those before it would not.

    Attributes:
      name: of the implementation, or None where none takes the problem.
      problem: as given, in the layout that the implementation wants.
      rejected: (name, reason) in order; an implementation that does not exist yet says so.
      fallback: XLA runs it on CUDA, where the class has kernels of ours to try first.
    """

    name: str | None
    problem: Problem
    rejected: tuple[tuple[str, str], ...]
    fallback: bool

    @property
    def why_none(self) -> str:
        """Every implementation's reason, on one line."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.rejected)


@functools.lru_cache(maxsize=4096)
def resolve(backing: Any, problem: Problem, device: Device) -> Resolved:
    """Which implementation of a backing runs a problem on a device; asks no hardware."""
    table = _TABLES[backing.op]
    rejected = []
    laid_out = [problem]
    if type(problem) in _LAYOUTS:
        laid_out = [replace(problem, layout=layout) for layout in _LAYOUTS[type(problem)]]
    for name in backing.implementations:
        if name not in table:
            rejected.append((name, "no such kernel in this version"))
            continue
        reasons: tuple[str, ...] = ()
        for candidate in laid_out:
            support = table[name].supports(candidate, device)
            if support.ok:
                slow = name == "xla" and device.platform == "cuda" and bool(rejected)
                return Resolved(name, candidate, tuple(rejected), slow)
            # Of two refusals, the shorter is the one that is not about the layout.
            if not reasons or len(support.reasons) < len(reasons):
                reasons = support.reasons
        rejected.append((name, "; ".join(reasons)))
    return Resolved(None, problem, tuple(rejected), False)


def _scaled_hopper(problem: ScaledMMProblem, config: Any, device: Device) -> float:
    return scaled_tuning.cost(problem, config, device).total * 1e6


def _mixed_hopper(problem: MixedMMProblem, config: Any, device: Device) -> float:
    return mixed_tuning.estimate(problem, config, device).total


def _w4a8_hopper(problem: W4A8Problem, config: Any, device: Device) -> float:
    return w4a8_tuning.estimate(problem, config, device).total


_MODELS = {
    (ScaledMMProblem, "hopper"): _scaled_hopper,
    (MixedMMProblem, "hopper"): _mixed_hopper,
    (W4A8Problem, "hopper"): _w4a8_hopper,
}


def estimate_us(name: str, problem: Problem, config: Any, device: Device) -> float | None:
    """Microseconds that an implementation's own model expects; None where it has no model."""
    model = _MODELS.get((type(problem), name))
    return None if model is None or config is None else model(problem, config, device)


def _half(dtype: Any, default: str = "bfloat16") -> str:
    name = default if dtype is None else dtype_name(dtype)
    return name if name in ("float16", "bfloat16", "float32") else default


def _mixed(config: Any, m: int, n: int | None, k: int | None) -> MixedMMProblem:
    in_features, out_features = config.partition_weight_shape
    n, k = n or out_features, k or in_features
    group = config.group_size
    whole = group == -1 or group >= config.full_weight_shape[0]
    # Activations that upstream quantizes (act_type float8 or int8) stay as they come.
    act = _half(config.act_type, _half(config.out_type))
    out = act if config.out_type is None else _half(config.out_type)
    return MixedMMProblem(
        m=m,
        n=n,
        k=k,
        weight_type=config.weight_type,
        x_dtype=act,
        out_dtype=out,
        group_size=-1 if whole else group,
        granularity="channel" if whole else "group",
        zero_points=bool(config.zero_points),
        g_idx=bool(config.has_g_idx),
        scale_dtype=act,
    )


def _w4a8(config: Any, m: int, n: int | None, k: int | None) -> W4A8Problem:
    in_features, out_features = config.partition_weight_shape
    fp8 = dtype_name(config.act_type) == "float8_e4m3fn"
    out = _half(config.out_type)
    return W4A8Problem(
        m=m,
        n=n or out_features,
        k=k or in_features,
        weight_type=config.weight_type,
        x_dtype="float8_e4m3fn" if fp8 else "int8",
        out_dtype=out,
        group_size=config.group_size,
        scale_dtype="float8_e4m3fn" if fp8 else out,
        channel_scale=fp8,  # scales are split at load
    )


def _int8(config: Any, m: int, n: int, k: int) -> ScaledMMProblem:
    static = bool(config.is_static_input_scheme)
    azp = None if config.input_symmetric else ("static" if static else "token")
    return ScaledMMProblem(
        m=m,
        n=n,
        k=k,
        x_dtype="int8",
        w_dtype="int8",
        out_dtype="bfloat16",
        x_scale="tensor" if static else "token",
        w_scale="channel" if config.is_channelwise else "tensor",
        azp=azp,
    )


def _weight_scale(shape: Any) -> str:
    if shape.is_per_tensor():
        return "tensor"
    if shape.is_per_channel() or shape.is_per_token():
        return "channel"
    return "group" if shape.is_per_group() else "block"


def _activation_scale(shape: Any) -> str:
    if shape.is_per_tensor():
        return "tensor"
    return "group" if shape.is_per_group() else "token"


def _fp8(config: Any, m: int, n: int, k: int) -> ScaledMMProblem:
    weight, activation = config.weight_quant_key, config.activation_quant_key
    return ScaledMMProblem(
        m=m,
        n=n,
        k=k,
        x_dtype=activation.dtype,
        w_dtype=weight.dtype,
        out_dtype=_half(config.out_dtype, _half(config.input_dtype)),
        x_scale=_activation_scale(activation.scale.group_shape),
        w_scale=_weight_scale(weight.scale.group_shape),
    )


def _fp8_weight_only(config: Any, m: int, n: int, k: int) -> MixedMMProblem:
    weight = config.weight_quant_key
    granularity = _weight_scale(weight.scale.group_shape)
    out = _half(config.out_dtype, _half(config.input_dtype))
    return MixedMMProblem(
        m=m,
        n=n,
        k=k,
        weight_type=_WEIGHT_TYPES[weight.dtype],
        x_dtype=_half(config.input_dtype, out),
        out_dtype=out,
        group_size=weight.scale.group_shape.col if granularity in ("block", "group") else -1,
        granularity=granularity,
    )


_MICRO = {
    "mxfp8": (scalar_types.float8_e4m3fn, 32, "float8_e8m0fnu", False),
    "mxfp4": (scalar_types.float4_e2m1f, 32, "float8_e8m0fnu", False),
    "nvfp4": (scalar_types.float4_e2m1f, 16, "float8_e4m3fn", True),
}


def _micro(family: str, m: int, n: int, k: int) -> MixedMMProblem:
    weight_type, group, scale, second = _MICRO[family]
    return MixedMMProblem(
        m=m,
        n=n,
        k=k,
        weight_type=weight_type,
        x_dtype="bfloat16",
        out_dtype="bfloat16",
        group_size=group,
        granularity="group",
        scale_dtype=scale,
        global_scale=second,
    )


_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_WITH_ZERO_POINTS = (scalar_types.uint4, scalar_types.uint8)


def inexpressible(kernel: Any, config: Any) -> str | None:
    """Why jaxkernels has no operands for a layer, or None: the limits of what weights it holds.

    What an implementation does with operands that exist is its own `supports`.
    """
    if kernel.family == "mp":
        return _no_mixed_weight(config)
    if kernel.family == "int8" or kernel.family in _MICRO:
        return None
    weight = config.weight_quant_key
    shape = weight.scale.group_shape
    if not kernel.quantizes_activations:
        if _WEIGHT_TYPES.get(weight.dtype) not in WEIGHT_TYPES:
            return f"weights of {weight.dtype} are not held"
        return None
    activation = config.activation_quant_key
    if weight.dtype not in _FLOAT8 or activation.dtype not in _FLOAT8:
        return f"operands {activation.dtype} x {weight.dtype} are not both float8"
    if _weight_scale(shape) == "group" or (_weight_scale(shape) == "block" and shape != _BLOCK):
        return f"weight scales of {shape} are not 128x128 blocks"
    groups = activation.scale.group_shape
    if groups.is_per_group() and groups.col != _BLOCK.col:
        return f"activation scales of {groups} are not 1x128"
    return None


def _no_mixed_weight(config: Any) -> str | None:
    weight_type, group = config.weight_type, config.group_size
    k = config.partition_weight_shape[0]
    if weight_type not in WEIGHT_TYPES:
        return f"weights of {weight_type} are not held"
    if config.zero_points and weight_type not in _WITH_ZERO_POINTS:
        return f"{weight_type} weights have no zero points"
    if weight_type.size_bits == 4 and k % 2:
        return f"4-bit weights are held in pairs, and in-features are {k}"
    whole = group == -1 or group >= config.full_weight_shape[0]
    if not whole and (group < 1 or (k % group and not config.has_g_idx)):
        return f"group size {group} does not divide in-features {k}"
    return None


def problem_for(
    kernel: Any, config: Any, m: int = NOMINAL_M, n: int | None = None, k: int | None = None
) -> Problem | None:
    """The problem that a class computes for a layer, for m rows of activations.

    Args:
      kernel: a kernel class.
      config: the layer's config.
      m: rows of the activations.
      n, k: the layer's sizes where its config does not say them; 4096 if nobody does.

    Returns:
      A problem of `jaxkernels.problem`, or None where jaxkernels has no operands for it.
    """
    if inexpressible(kernel, config) is not None:
        return None
    if kernel.family == "mp":
        w4a8 = kernel.backing is not None and kernel.backing.op == "w4a8_mm"
        return (_w4a8 if w4a8 else _mixed)(config, m, n, k)
    shape = getattr(config, "weight_shape", None)
    if shape is not None:
        n, k = n or shape[0], k or shape[1]
    n, k = n or NOMINAL_SIZE, k or NOMINAL_SIZE
    if kernel.family == "int8":
        return _int8(config, m, n, k)
    if kernel.family in _MICRO:
        return _micro(kernel.family, m, n, k)
    return (_fp8 if kernel.quantizes_activations else _fp8_weight_only)(config, m, n, k)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Declarations of the mixed-precision kernels: 4- or 8-bit weights, 16-bit activations.

Names, capabilities and the order of checks are upstream's. Where the seed version and 0.26 differ,
the seed's rule holds, but for what was a defect (each has a test): Exllama takes no whole-K group,
and Conch serves whole-K groups and act-order correctly instead of silently wrongly.
"""

from __future__ import annotations

from typing import Any

from jaxkernels.scalar_types import ScalarType, scalar_types
from selection.checks import (
    Check,
    Facts,
    cpu_feature,
    device_in,
    device_is,
    gfx_in,
    on_arm,
    on_cpu,
    on_cuda,
    on_cuda_alike,
    on_rocm,
    on_xpu,
    package,
)
from selection.dtypes import dtype_name
from selection.kernels.base import Backing, MPLinearKernel
from selection.layer_checks import (
    HALF,
    act_type_in,
    g_idx_unsharded,
    group_divides_full_k,
    group_positive,
    group_size_in,
    group_size_whole_or_multiple_of,
    k_multiple_of,
    kn_multiple_of,
    n_multiple_of,
    no_g_idx,
    no_zero_points,
    out_type_is,
    weight_type_by_zero_points,
    weight_type_in,
)

GPU = Backing("mixed_mm", ("hopper", "ampere", "xla"))
XLA = Backing("mixed_mm", ("xla",))
W4A8 = Backing("w4a8_mm", ("hopper", "xla"))

_INT4, _UINT4, _UINT8 = scalar_types.int4, scalar_types.uint4, scalar_types.uint8
_U4B8, _U8B128 = scalar_types.uint4b8, scalar_types.uint8b128


def _in_features(f: Facts) -> int:
    return f.config.partition_weight_shape[0]


class CutlassW4A8LinearKernel(MPLinearKernel):
    """Hopper: int4 weights; activations are quantized to fp8 per token.

    At load the scales are split in two (fp8 a group, float32 a row), and every product of a code
    and a group's scale is rounded to fp8, as upstream's are.
    """

    min_capability = 90
    checks = (
        on_cuda,
        device_is(90),
        act_type_in("float8_e4m3fn"),
        no_g_idx,
        no_zero_points,
        weight_type_in(_INT4),
        group_size_in(128),
        kn_multiple_of(128, 128),
        out_type_is("bfloat16"),
    )
    backing = W4A8


_MACHETE_GROUPS = Check(
    "machete_groups",
    lambda f: f.config.group_size in _machete_groups(f.config.act_type),
    lambda f: (
        f"group size {f.config.group_size} is not one of "
        f"{', '.join(map(str, _machete_groups(f.config.act_type)))} "
        f"for {dtype_name(f.config.act_type)} activations"
    ),
)


def _machete_groups(act_type: Any) -> tuple[int, ...]:
    return (-1, 64, 128) if dtype_name(act_type) in HALF else (-1, 128)


class MacheteLinearKernel(MPLinearKernel):
    """Hopper's first choice for 16-bit activations."""

    min_capability = 90
    checks = (
        on_cuda,
        device_is(90),
        g_idx_unsharded,
        weight_type_by_zero_points((_UINT4, _UINT8), (_U4B8, _U8B128)),
        _MACHETE_GROUPS,
        k_multiple_of(64),
        n_multiple_of(128),
    )
    backing = GPU


class AllSparkLinearKernel(MPLinearKernel):
    """Ampere and Ada: 8-bit weights with one scale a channel."""

    min_capability = 80
    checks = (
        no_g_idx,
        no_zero_points,
        device_in(80, 90),
        group_size_in(-1),
        weight_type_in(_U8B128),
        kn_multiple_of(16, 16),
        act_type_in(*HALF),
    )
    backing = GPU


def _marlin_types(f: Facts) -> tuple[ScalarType, ...]:
    if not f.platform.has_device_capability(75):
        return ()
    if f.config.zero_points:
        return (_UINT4,)
    return (_U4B8, _U8B128, scalar_types.float8_e4m3fn, scalar_types.float4_e2m1f)


_MARLIN_TYPES = Check(
    "marlin_types",
    lambda f: f.config.weight_type in _marlin_types(f),
    lambda f: (
        f"weight type {f.config.weight_type} "
        f"{'with' if f.config.zero_points else 'without'} zero points is not one of "
        f"{', '.join(map(str, _marlin_types(f))) or 'none'}"
    ),
)
_MARLIN_ADVICE = "; consider a smaller tensor parallel size"
_MARLIN_N = Check(
    "marlin_n",
    n_multiple_of(64).holds,
    lambda f: f"{n_multiple_of(64).why_not(f)}{_MARLIN_ADVICE}",
)
_MARLIN_K = Check(
    "marlin_k",
    k_multiple_of(128).holds,
    lambda f: f"{k_multiple_of(128).why_not(f)}{_MARLIN_ADVICE}",
)
_GROUP_WITHIN_SHARD = Check(
    "group_within_shard",
    lambda f: (
        f.config.group_size >= f.config.full_weight_shape[0]
        or _in_features(f) % f.config.group_size == 0
    ),
    lambda f: (
        f"in-features {_in_features(f)} of this rank are not a multiple of the group size "
        f"{f.config.group_size}{_MARLIN_ADVICE}"
    ),
)


class MarlinLinearKernel(MPLinearKernel):
    """CUDA from Turing on: every common 4- and 8-bit format."""

    min_capability = 75
    checks = (
        on_cuda,
        _MARLIN_TYPES,
        group_size_in(-1, 32, 64, 128),
        _MARLIN_N,
        _MARLIN_K,
        _GROUP_WITHIN_SHARD,
    )
    backing = GPU


class ConchLinearKernel(MPLinearKernel):
    """Any GPU: the portable one."""

    min_capability = 80
    checks = (
        weight_type_in(_UINT4, _UINT8, _U4B8, _U8B128),
        group_size_in(-1, 128),
        package("conch"),
    )
    backing = GPU


_EXLLAMA_N = Check(
    "out_features_fill_words",
    lambda f: f.config.partition_weight_shape[1] % (32 // f.config.weight_type.size_bits) == 0,
    lambda f: (
        f"out-features {f.config.partition_weight_shape[1]} are not a multiple of "
        f"{32 // f.config.weight_type.size_bits}, the weights in a 32-bit word"
    ),
)


class ExllamaLinearKernel(MPLinearKernel):
    """CUDA and ROCm: symmetric weights, float16 activations, any group but the whole of K."""

    min_capability = 60
    checks = (
        on_cuda_alike,
        g_idx_unsharded,
        _EXLLAMA_N,
        act_type_in("float16"),
        weight_type_in(_U4B8, _U8B128),
        group_positive,
        group_divides_full_k,
    )
    backing = GPU


def _whole_or(f: Facts) -> int:
    """The group size, with -1 made the whole of K."""
    size = f.config.group_size
    return f.config.full_weight_shape[0] if size == -1 else size


class TritonW4A16LinearKernel(MPLinearKernel):
    """CUDA and ROCm (0.26)."""

    min_capability = 0
    checks = (
        on_cuda_alike,
        weight_type_in(_U4B8, _UINT4),
        act_type_in(*HALF),
        n_multiple_of(8),
        no_g_idx,
        Check(
            "triton_groups",
            lambda f: (
                f.config.group_size in (-1, 32, 64, 128, 256)
                or f.config.group_size == f.config.full_weight_shape[0]
            ),
            lambda f: (
                f"group size {f.config.group_size} is not one of -1, 32, 64, 128, 256, "
                "nor all in-features"
            ),
        ),
        Check(
            "group_divides_shard",
            lambda f: _in_features(f) % _whole_or(f) == 0,
            lambda f: (
                f"in-features {_in_features(f)} of this rank are not a multiple of the "
                f"group size {_whole_or(f)}"
            ),
        ),
    )
    backing = GPU


class HummingLinearKernel(MPLinearKernel):
    """CUDA from Turing on, any integer weights (0.26)."""

    min_capability = 75
    checks = (on_cuda, package("humming"), no_g_idx)
    backing = GPU


class RDNA3W4A16LinearKernel(MPLinearKernel):
    """AMD RDNA3 (0.26)."""

    min_capability = 60
    checks = (
        on_rocm,
        gfx_in("gfx1100", what="an RDNA3 GPU (gfx1100)"),
        package("rdna3_ops"),
        act_type_in(*HALF),
        weight_type_in(_U4B8),
        group_positive,
        group_divides_full_k,
        n_multiple_of(8),
        g_idx_unsharded,
    )
    backing = XLA


class RDNAHybridW4A16LinearKernel(MPLinearKernel):
    """AMD RDNA3 and RDNA4 (0.26)."""

    min_capability = 0
    checks = (
        on_rocm,
        gfx_in("gfx11", "gfx12", what="an RDNA3 or RDNA4 GPU"),
        weight_type_in(_U4B8, _UINT4),
        act_type_in(*HALF),
        no_g_idx,
        group_size_in(32, 64, 128),
        k_multiple_of(16),
        Check(
            "group_divides_k",
            lambda f: _in_features(f) % f.config.group_size == 0,
            lambda f: (
                f"in-features {_in_features(f)} are not a multiple of the group size "
                f"{f.config.group_size}"
            ),
        ),
    )
    backing = XLA


class XPUwNa16LinearKernel(MPLinearKernel):
    """Intel GPUs."""

    checks = (
        on_xpu,
        act_type_in(*HALF),
        weight_type_in(_UINT4, _U4B8),
        group_size_whole_or_multiple_of(32),
        k_multiple_of(32),
        n_multiple_of(32),
    )
    backing = XLA


class XPUW4A8IntLinearKernel(MPLinearKernel):
    """Intel GPUs, activations quantized to int8 upstream (0.26); here they stay 16-bit."""

    checks = (
        on_xpu,
        act_type_in(*HALF),
        weight_type_in(_INT4),
        no_zero_points,
        group_size_whole_or_multiple_of(32),
        kn_multiple_of(8, 8),
    )
    backing = XLA


class Dynamic4bitLinearKernel(MPLinearKernel):
    """Host processors, ARM's first of all: int4, activations quantized inside upstream."""

    min_capability = 1
    checks = (
        on_cpu,
        weight_type_in(_INT4),
        on_arm(act_type_in("float32", *HALF)),
        group_divides_full_k,
    )
    backing = XLA


class CPUWNA16LinearKernel(MPLinearKernel):
    """Host processors; zero points as in 0.26 (the seed accepts them, then fails to load)."""

    checks = (
        on_cpu,
        weight_type_in(_UINT4, _U4B8),
        group_size_whole_or_multiple_of(2),
        k_multiple_of(32),
        n_multiple_of(32),
    )
    backing = XLA


class ZentorchWNA16LinearKernel(CPUWNA16LinearKernel):
    """AMD Zen host processors (0.26)."""

    checks = (
        *CPUWNA16LinearKernel.checks,
        cpu_feature("zen", "an AMD Zen CPU"),
        package("zentorch"),
        no_g_idx,
    )


class XlaMPLinearKernel(MPLinearKernel):
    """Ours, last on every platform: whatever JAX runs on."""

    backing = XLA


__all__ = sorted(
    name for name in globals() if name.endswith("LinearKernel") and name != "MPLinearKernel"
)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Declarations of the block-scaled fp8 kernels (0.26): weights with a scale for each 128 x 128.

Activations have a scale for each 1 x 128. Power-of-two (E8M0) weight scales are taken as in later
versions (0.33): by all but Cutlass, CPU, and Triton on CUDA. The block lists also hold MarlinFP8
and HummingFP8, which are in `scaled_mm.py`.
"""

from __future__ import annotations

from selection.checks import (
    Check,
    Facts,
    cpu_feature,
    device_at_least,
    device_is,
    env_on,
    on_cpu,
    on_cuda,
    on_cuda_alike_or_xpu,
    on_rocm,
    on_xpu,
    package,
)
from selection.kernels.base import Fp8BlockScaledMMLinearKernel
from selection.kernels.scaled_mm import GPU, XLA, XLA_WEIGHT_ONLY
from selection.layer_checks import (
    activation_group,
    dynamic_activations,
    f32_weight_scales,
    input_dtype_in,
    nk_multiple_of,
    out_dtype_in,
    weight_dtype_in,
)


class CutlassFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """CUDA from Hopper on."""

    gate = (on_cuda, device_at_least(90))
    checks = (dynamic_activations, activation_group(128), f32_weight_scales)
    backing = GPU


class DeepGemmFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Hopper and Blackwell. Upstream also asks its engine's model config, which is not ours."""

    gate = (
        on_cuda,
        package("deep_gemm"),
        Check(
            "hopper_or_blackwell",
            lambda f: (
                f.platform.is_device_capability_family(90)
                or f.platform.is_device_capability_family(100)
            ),
            "requires a Hopper or Blackwell GPU",
        ),
        env_on("VLLM_USE_DEEP_GEMM", True),
    )
    checks = (
        dynamic_activations,
        out_dtype_in("bfloat16"),
        activation_group(128),
        nk_multiple_of(64, 128),
    )
    backing = GPU


class FlashInferFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Hopper; the small-M half of FlashInferFp8DeepGEMMDynamic, in no list itself."""

    gate = (
        on_cuda,
        package("flashinfer"),
        device_is(90),
        env_on("VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER", True),
    )
    checks = (
        dynamic_activations,
        activation_group(128),
        input_dtype_in("bfloat16"),
        out_dtype_in("bfloat16"),
        weight_dtype_in("float8_e4m3fn"),
        nk_multiple_of(64, 128),
    )
    backing = GPU


class FlashInferFp8DeepGEMMDynamicBlockScaledKernel(Fp8BlockScaledMMLinearKernel):
    """Both halves: FlashInfer below M = 32 and DeepGEMM above, where both are supported."""

    halves = (FlashInferFp8BlockScaledMMKernel, DeepGemmFp8BlockScaledMMKernel)
    backing = GPU

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Both halves are supported; the reason names both where one is not."""
        (base, base_why), (fallback, fallback_why) = (
            half.is_supported(compute_capability) for half in cls.halves
        )
        if base and fallback:
            return True, None
        return False, f"base: {base_why or 'supported'}; fallback: {fallback_why or 'supported'}"

    @classmethod
    def can_implement(cls, c) -> tuple[bool, str | None]:
        """Both halves take the layer; the reason is that of the first that does not."""
        for half in cls.halves:
            ok, reason = half.can_implement(c)
            if not ok:
                return False, reason
        return True, None


class TritonFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """CUDA, ROCm, XPU: the portable one."""

    gate = (on_cuda_alike_or_xpu,)
    checks = (
        dynamic_activations,
        Check(
            "f32_weight_scales_on_cuda",
            lambda f: not f.platform.is_cuda() or f32_weight_scales.holds(f),
            lambda f: f"{f32_weight_scales.why_not(f)} on CUDA",
        ),
    )
    backing = GPU


class AiterFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """ROCm, where AITER is switched on."""

    gate = (
        on_rocm,
        package("aiter"),
        env_on("VLLM_ROCM_USE_AITER", False),
        env_on("VLLM_ROCM_USE_AITER_LINEAR", True),
    )
    checks = (dynamic_activations, activation_group(128))
    backing = XLA


def _weight_block(f: Facts) -> tuple[int, int]:
    return tuple(f.config.weight_quant_key.scale.group_shape)


class CPUFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Host processors with AMX; activations stay 16-bit. Does not ask the base's check."""

    gate = (on_cpu, cpu_feature("amx", "a CPU with AMX"))
    checks = (
        Check(
            "weight_block_k(128)",
            lambda f: _weight_block(f)[1] == 128,
            lambda f: f"weight blocks of {_weight_block(f)[1]} in-features, needs 128",
        ),
        Check(
            "weight_block_n_multiple_of(32)",
            lambda f: _weight_block(f)[0] > 0 and _weight_block(f)[0] % 32 == 0,
            lambda f: (
                f"weight blocks of {_weight_block(f)[0]} out-features, needs a multiple of 32"
            ),
        ),
        out_dtype_in("bfloat16", "float32"),
        f32_weight_scales,
    )
    backing = XLA_WEIGHT_ONLY
    quantizes_activations = False


class XPUFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Intel GPUs."""

    gate = (on_xpu,)
    checks = (dynamic_activations,)
    backing = XLA


class XlaFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
    """Ours, last on every platform: whatever JAX runs on."""

    backing = XLA


__all__ = sorted(
    name for name in globals() if name.endswith(("BlockScaledMMKernel", "DynamicBlockScaledKernel"))
)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Declarations of the 8-bit kernels: int8 x int8, fp8 x fp8 and weight-only fp8.

Names, parents, gates and the order of checks are upstream's; `selection.kernels.base` says how a
declaration runs. On CUDA `scaled_mm` has one kernel an architecture, tried in order, whatever the
class is called; elsewhere XLA runs it.
"""

from __future__ import annotations

from selection.checks import (
    Check,
    Facts,
    capability_at_least,
    cpu_feature,
    device_at_least,
    env_flag,
    env_off,
    env_on,
    gfx_in,
    mi300_series,
    on_cpu,
    on_cuda,
    on_cuda_alike,
    on_cuda_alike_or_cpu,
    on_rocm,
    on_xpu,
    package,
)
from selection.configs import (
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
    kFp8StaticTokenSym,
)
from selection.kernels.base import (
    Backing,
    FP8ScaledMMLinearKernel,
    Int8ScaledMMLinearKernel,
)
from selection.layer_checks import (
    activation_key_in,
    both_per_tensor,
    channelwise_only,
    dynamic_only,
    neither_per_tensor,
    nk_multiple_of,
    not_both_per_tensor,
    out_dtype_in,
    out_dtype_not,
    shape_known,
    symmetric_only,
    token_by_channel,
    weight_dtype_in,
    weight_key_in,
)

GPU = Backing("scaled_mm", ("hopper", "ampere", "xla"))
XLA = Backing("scaled_mm", ("xla",))
GPU_WEIGHT_ONLY = Backing("mixed_mm", ("hopper", "ampere", "xla"))
XLA_WEIGHT_ONLY = Backing("mixed_mm", ("xla",))

_AITER = (
    on_rocm,
    package("aiter"),
    env_on("VLLM_ROCM_USE_AITER", False),
    env_on("VLLM_ROCM_USE_AITER_LINEAR", True),
)


# -- int8 -----------------------------------------------------------------------------------------


class CutlassInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """CUDA's first choice: static or dynamic, symmetric or not, per tensor or channel."""

    gate = (on_cuda,)
    backing = GPU


class TritonInt8ScaledMMLinearKernel(CutlassInt8ScaledMMLinearKernel):
    """The portable one. Asymmetric layers as in 0.26, but with an exact int32 azp product."""

    gate = (on_cuda_alike,)


class AiterInt8ScaledMMLinearKernel(CutlassInt8ScaledMMLinearKernel):
    """ROCm, where AITER is switched on; symmetric only.

    Upstream's reason ends with a dot of its own, so the final text has two.
    """

    gate = (
        Check("on_rocm", on_rocm.holds, "Requires ROCm.", on_rocm.platforms),
        capability_at_least(90),
        *_AITER[1:],
    )
    checks = (symmetric_only,)
    backing = XLA


class CPUInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """Host processors."""

    gate = (on_cpu,)
    backing = XLA


class ZentorchInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """AMD Zen host processors (0.26)."""

    gate = (on_cpu, cpu_feature("zen", "an AMD Zen CPU"), package("zentorch"))
    checks = (dynamic_only, symmetric_only, channelwise_only)
    backing = XLA
    weight_layout = "NK"


class HummingInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """CUDA from Turing on (0.26); behind Cutlass, so reached by a filter only."""

    gate = (on_cuda, device_at_least(75), package("humming"))
    backing = GPU
    weight_layout = "NK"


class XlaInt8ScaledMMLinearKernel(Int8ScaledMMLinearKernel):
    """Ours, last on every platform: whatever JAX runs on."""

    backing = XLA


# -- fp8 x fp8 ------------------------------------------------------------------------------------


class FlashInferFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Blackwell, per tensor."""

    gate = (on_cuda, package("flashinfer"), capability_at_least(100))
    checks = (both_per_tensor,)
    backing = GPU


class CutlassFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """CUDA, any scales, and like upstream without asking for a capability."""

    gate = (on_cuda,)
    backing = GPU


class TorchFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Base of the classes that call torch._scaled_mm upstream; in no list itself.

    Upstream pads activations to 17 rows and un-pads wrongly above rank 2; nothing is padded here.
    """

    gate = (on_cuda_alike_or_cpu, capability_at_least(89))


class PerTensorTorchFP8ScaledMMLinearKernel(TorchFP8ScaledMMLinearKernel):
    """One scale a side."""

    checks = (both_per_tensor,)
    backing = GPU


class ChannelWiseTorchFP8ScaledMMLinearKernel(TorchFP8ScaledMMLinearKernel):
    """Everything but one scale a side: upstream checks nothing more."""

    checks = (not_both_per_tensor,)
    backing = GPU


class RowWiseTorchFP8ScaledMMLinearKernel(TorchFP8ScaledMMLinearKernel):
    """MI300 series, a scale a row on both sides."""

    gate = (on_rocm, mi300_series, capability_at_least(94))
    checks = (out_dtype_not("float16"), neither_per_tensor)
    backing = XLA


class ROCmFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """MI300 series and RDNA4, per tensor."""

    gate = (
        on_rocm,
        gfx_in("gfx94", "gfx95", "gfx12", what="an MI300 series or RDNA4 GPU"),
        env_on("VLLM_ROCM_USE_SKINNY_GEMM", True),
    )
    checks = (both_per_tensor,)
    backing = XLA


class AiterPreshuffledPerTokenFp8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """ROCm with AITER: per token by per channel, weights shuffled beforehand (0.26)."""

    gate = _AITER
    checks = (shape_known, out_dtype_in("bfloat16"), token_by_channel, nk_multiple_of(16, 16))
    backing = XLA
    weight_layout = "NK"


class AiterPerTokenFp8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """ROCm with AITER: per token by per channel (0.26)."""

    gate = _AITER
    checks = (shape_known, token_by_channel)
    backing = XLA
    weight_layout = "NK"


class AiterHipbMMPerTokenFp8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """ROCm with AITER's hipBLASLt front (0.26)."""

    gate = (*_AITER, env_on("VLLM_ROCM_USE_AITER_LINEAR_HIPBMM", False))
    checks = (
        shape_known,
        out_dtype_in("bfloat16"),
        token_by_channel,
        Check(
            "n_at_least(16)",
            lambda f: f.config.weight_shape[0] >= 16,
            lambda f: f"out-features {f.config.weight_shape[0]} are fewer than 16",
        ),
        nk_multiple_of(16, 16),
    )
    backing = XLA
    weight_layout = "NK"


class XPUW8A8FP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Intel GPUs (0.26)."""

    gate = (on_xpu,)
    checks = (
        weight_key_in(kFp8StaticChannelSym, kFp8StaticTensorSym),
        activation_key_in(
            kFp8DynamicTensorSym, kFp8StaticTensorSym, kFp8DynamicTokenSym, kFp8StaticTokenSym
        ),
    )
    backing = XLA


class XlaFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Ours, last on every platform: whatever JAX runs on."""

    backing = XLA


# -- fp8 weights, activations left alone ----------------------------------------------------------


def _marlin_wanted(f: Facts) -> bool:
    capability = f.capability
    if capability is None:
        known = f.platform.get_device_capability()
        capability = None if known is None else known.to_int()
    return capability is None or capability < 89 or env_flag("VLLM_TEST_FORCE_FP8_MARLIN")


class MarlinFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """CUDA without fp8 tensor cores (0.26): weights fp8, activations 16-bit."""

    gate = (
        on_cuda,
        device_at_least(75),
        env_off("VLLM_BATCH_INVARIANT"),
        Check(
            "only_without_fp8_tensor_cores",
            lambda f: _marlin_wanted(f),
            "the device multiplies fp8 natively (set VLLM_TEST_FORCE_FP8_MARLIN=1 to force it)",
        ),
    )
    backing = GPU_WEIGHT_ONLY
    quantizes_activations = False


class HummingFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """CUDA from Turing on (0.26)."""

    gate = (on_cuda, device_at_least(75), package("humming"))
    backing = GPU_WEIGHT_ONLY
    quantizes_activations = False
    weight_layout = "NK"


class XPUFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Intel GPUs as in 0.17.1, any fp8 weights; 0.26 split it in two, so no list has it."""

    gate = (on_xpu,)
    checks = (weight_dtype_in("float8_e4m3fn", "float8_e5m2"),)
    backing = XLA_WEIGHT_ONLY
    quantizes_activations = False


class XPUW8A16FP8ScaledMMLinearKernel(XPUFP8ScaledMMLinearKernel):
    """Intel GPUs (0.26)."""

    checks = (
        *XPUFP8ScaledMMLinearKernel.checks,
        weight_key_in(kFp8StaticChannelSym, kFp8StaticTensorSym),
    )


class XlaW8A16FP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """Ours, last on every platform for weight-only fp8."""

    backing = XLA_WEIGHT_ONLY
    quantizes_activations = False


__all__ = sorted(name for name in globals() if name.endswith("ScaledMMLinearKernel"))

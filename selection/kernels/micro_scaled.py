# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Declarations of the MX and NV families (0.26): fp8 and fp4 weights in groups of 16 or 32.

Upstream's classes either quantize activations to the same format or leave them alone. Here all of
them leave activations 16-bit and run `mixed_mm`, which is the more exact of the two; a class whose
upstream namesake quantizes says so in `upstream_activations`, and so does the explanation.
"""

from __future__ import annotations

from typing import ClassVar

from selection.checks import (
    Check,
    device_at_least,
    device_family,
    gfx_in,
    on_cuda,
    on_rocm,
    on_xpu,
    package,
)
from selection.kernels.base import Backing, MMLinearKernel

GPU = Backing("mixed_mm", ("hopper", "ampere", "xla"))
XLA = Backing("mixed_mm", ("xla",))


class _MicroScaled(MMLinearKernel):
    quantizes_activations = False
    upstream_activations: ClassVar[str | None] = None


class Mxfp8LinearKernel(_MicroScaled):
    """Base: e4m3 weights, a power-of-two scale for each 32."""

    family = "mxfp8"


class MxFp4LinearKernel(_MicroScaled):
    """Base: e2m1 weights, a power-of-two scale for each 32."""

    family = "mxfp4"


class NvFp4LinearKernel(_MicroScaled):
    """Base: e2m1 weights, an e4m3 scale for each 16 and one global scale."""

    family = "nvfp4"


_HUMMING = (on_cuda, device_at_least(75), package("humming"))
_CUTLASS_FP4 = Check(
    "cutlass_fp4",
    lambda f: f.platform.is_cuda() and f.platform.has_device_capability(100),
    "the device does not multiply fp4 natively",
)


# -- MXFP8 ----------------------------------------------------------------------------------------


class FlashInferCutedslMxfp8LinearKernel(Mxfp8LinearKernel):
    """Blackwell."""

    gate = (on_cuda, device_family(100), package("cutedsl"))
    backing = GPU
    weight_layout = "KN"
    upstream_activations = "mxfp8"


class FlashInferCutlassMxfp8LinearKernel(Mxfp8LinearKernel):
    """Blackwell; upstream asks for the capability alone."""

    gate = (device_at_least(100),)
    backing = GPU
    upstream_activations = "mxfp8"


class MarlinMxfp8LinearKernel(Mxfp8LinearKernel):
    """From Turing on, activations 16-bit."""

    gate = (device_at_least(75),)
    backing = GPU


class EmulationMxfp8LinearKernel(Mxfp8LinearKernel):
    """Anywhere: dequantize and multiply."""

    backing = XLA


class HummingMxfp8LinearKernel(Mxfp8LinearKernel):
    """CUDA from Turing on; behind the emulation, so reached by a filter only."""

    gate = _HUMMING
    backing = GPU


class RocmDotScaledMxfp8LinearKernel(Mxfp8LinearKernel):
    """AMD CDNA4."""

    gate = (on_rocm, gfx_in("gfx95", what="an AMD CDNA4 GPU"))
    backing = XLA
    upstream_activations = "mxfp8"


class XPUMxFp8LinearKernel(Mxfp8LinearKernel):
    """Intel GPUs."""

    gate = (on_xpu,)
    backing = XLA
    weight_layout = "KN"
    upstream_activations = "mxfp8"


class XlaMxfp8LinearKernel(Mxfp8LinearKernel):
    """Ours, last on every platform: whatever JAX runs on."""

    backing = XLA


# -- MXFP4 ----------------------------------------------------------------------------------------


class FlashInferMxFp4LinearKernel(MxFp4LinearKernel):
    """Blackwell."""

    gate = (device_at_least(100), package("cutedsl"))
    backing = GPU
    upstream_activations = "mxfp4"


class MarlinMxFp4LinearKernel(MxFp4LinearKernel):
    """CUDA from Turing on, activations 16-bit."""

    gate = (on_cuda, device_at_least(75))
    backing = GPU


class HummingMxFp4LinearKernel(MxFp4LinearKernel):
    """CUDA from Turing on."""

    gate = _HUMMING
    backing = GPU


class XPUMxFp4LinearKernel(MxFp4LinearKernel):
    """Intel GPUs."""

    gate = (on_xpu,)
    backing = XLA
    upstream_activations = "mxfp4"


class XlaMxFp4LinearKernel(MxFp4LinearKernel):
    """Ours, last on every platform: whatever JAX runs on."""

    backing = XLA


# -- NVFP4 ----------------------------------------------------------------------------------------


class FlashInferCuteDslNvFp4LinearKernel(NvFp4LinearKernel):
    """Blackwell."""

    gate = (device_family(100), package("flashinfer"))
    backing = GPU
    upstream_activations = "nvfp4"


class FlashInferCutlassNvFp4LinearKernel(NvFp4LinearKernel):
    """Blackwell."""

    gate = (_CUTLASS_FP4, device_at_least(100), package("flashinfer"))
    backing = GPU
    upstream_activations = "nvfp4"


class CutlassNvFp4LinearKernel(NvFp4LinearKernel):
    """Blackwell."""

    gate = (_CUTLASS_FP4,)
    backing = GPU
    upstream_activations = "nvfp4"


class MarlinNvFp4LinearKernel(NvFp4LinearKernel):
    """CUDA from Turing on, activations 16-bit."""

    gate = (on_cuda, device_at_least(75))
    backing = GPU


class FlashInferTrtllmNvFp4LinearKernel(NvFp4LinearKernel):
    """Wherever flashinfer is; behind Marlin."""

    gate = (package("flashinfer"),)
    backing = GPU
    upstream_activations = "nvfp4"


class FlashInferCudnnNvFp4LinearKernel(NvFp4LinearKernel):
    """Wherever flashinfer is; behind Marlin."""

    gate = (package("flashinfer"),)
    backing = GPU
    upstream_activations = "nvfp4"


class FlashInferB12xNvFp4LinearKernel(NvFp4LinearKernel):
    """Consumer Blackwell; in no list of 0.26, so asking for it finds nothing."""

    gate = (device_at_least(120), package("b12x"))
    backing = GPU
    upstream_activations = "nvfp4"


class FbgemmNvFp4LinearKernel(NvFp4LinearKernel):
    """Wherever fbgemm is; behind Marlin."""

    gate = (package("fbgemm_gpu"),)
    backing = GPU
    upstream_activations = "nvfp4"


class EmulationNvFp4LinearKernel(NvFp4LinearKernel):
    """Anywhere: dequantize and multiply."""

    backing = XLA
    upstream_activations = "nvfp4"


class HummingNvFp4LinearKernel(NvFp4LinearKernel):
    """CUDA from Turing on; behind the emulation, so reached by a filter only."""

    gate = _HUMMING
    backing = GPU


class XlaNvFp4LinearKernel(NvFp4LinearKernel):
    """Ours, last on every platform: whatever JAX runs on."""

    backing = XLA


__all__ = sorted(name for name in globals() if name.endswith("LinearKernel") and name[:2] != "MM")

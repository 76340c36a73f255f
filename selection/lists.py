# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Priority lists per platform, in upstream's order, with our XLA classes last; backend filters.

The dictionaries keep upstream's private names, since code written for it imports them. A platform
that upstream has no list for has our class alone; UNSPECIFIED has none at all.
"""

from __future__ import annotations

import os

from selection.kernels.block import (
    AiterFp8BlockScaledMMKernel,
    CPUFp8BlockScaledMMKernel,
    CutlassFp8BlockScaledMMKernel,
    DeepGemmFp8BlockScaledMMKernel,
    FlashInferFp8DeepGEMMDynamicBlockScaledKernel,
    TritonFp8BlockScaledMMKernel,
    XlaFp8BlockScaledMMKernel,
    XPUFp8BlockScaledMMKernel,
)
from selection.kernels.micro_scaled import (
    CutlassNvFp4LinearKernel,
    EmulationMxfp8LinearKernel,
    EmulationNvFp4LinearKernel,
    FbgemmNvFp4LinearKernel,
    FlashInferB12xNvFp4LinearKernel,
    FlashInferCudnnNvFp4LinearKernel,
    FlashInferCutedslMxfp8LinearKernel,
    FlashInferCuteDslNvFp4LinearKernel,
    FlashInferCutlassMxfp8LinearKernel,
    FlashInferCutlassNvFp4LinearKernel,
    FlashInferMxFp4LinearKernel,
    FlashInferTrtllmNvFp4LinearKernel,
    HummingMxFp4LinearKernel,
    HummingMxfp8LinearKernel,
    HummingNvFp4LinearKernel,
    MarlinMxFp4LinearKernel,
    MarlinMxfp8LinearKernel,
    MarlinNvFp4LinearKernel,
    RocmDotScaledMxfp8LinearKernel,
    XlaMxFp4LinearKernel,
    XlaMxfp8LinearKernel,
    XlaNvFp4LinearKernel,
    XPUMxFp4LinearKernel,
    XPUMxFp8LinearKernel,
)
from selection.kernels.mixed_precision import (
    AllSparkLinearKernel,
    ConchLinearKernel,
    CPUWNA16LinearKernel,
    CutlassW4A8LinearKernel,
    Dynamic4bitLinearKernel,
    ExllamaLinearKernel,
    HummingLinearKernel,
    MacheteLinearKernel,
    MarlinLinearKernel,
    RDNA3W4A16LinearKernel,
    RDNAHybridW4A16LinearKernel,
    TritonW4A16LinearKernel,
    XlaMPLinearKernel,
    XPUW4A8IntLinearKernel,
    XPUwNa16LinearKernel,
    ZentorchWNA16LinearKernel,
)
from selection.kernels.scaled_mm import (
    AiterHipbMMPerTokenFp8ScaledMMLinearKernel,
    AiterInt8ScaledMMLinearKernel,
    AiterPerTokenFp8ScaledMMLinearKernel,
    AiterPreshuffledPerTokenFp8ScaledMMLinearKernel,
    ChannelWiseTorchFP8ScaledMMLinearKernel,
    CPUInt8ScaledMMLinearKernel,
    CutlassFP8ScaledMMLinearKernel,
    CutlassInt8ScaledMMLinearKernel,
    FlashInferFP8ScaledMMLinearKernel,
    HummingFP8ScaledMMLinearKernel,
    HummingInt8ScaledMMLinearKernel,
    MarlinFP8ScaledMMLinearKernel,
    PerTensorTorchFP8ScaledMMLinearKernel,
    ROCmFP8ScaledMMLinearKernel,
    RowWiseTorchFP8ScaledMMLinearKernel,
    TritonInt8ScaledMMLinearKernel,
    XlaFP8ScaledMMLinearKernel,
    XlaInt8ScaledMMLinearKernel,
    XlaW8A16FP8ScaledMMLinearKernel,
    XPUW8A8FP8ScaledMMLinearKernel,
    XPUW8A16FP8ScaledMMLinearKernel,
    ZentorchInt8ScaledMMLinearKernel,
)
from selection.platforms import PlatformEnum

Lists = dict[PlatformEnum, list[type]]

_CUDA, _ROCM, _TPU = PlatformEnum.CUDA, PlatformEnum.ROCM, PlatformEnum.TPU
_XPU, _CPU, _OOT = PlatformEnum.XPU, PlatformEnum.CPU, PlatformEnum.OOT

# Ours, at the end of each list. fp8 formats that no 8-bit product takes (blocks of 64x128,
# activation groups of 64) are still served with activations left 16-bit.
LAST: dict[str, tuple[type, ...]] = {
    "mp": (XlaMPLinearKernel,),
    "int8": (XlaInt8ScaledMMLinearKernel,),
    "fp8": (XlaFP8ScaledMMLinearKernel, XlaW8A16FP8ScaledMMLinearKernel),
    "fp8_block": (XlaFp8BlockScaledMMKernel, XlaW8A16FP8ScaledMMLinearKernel),
    "wfp8a16": (XlaW8A16FP8ScaledMMLinearKernel,),
    "mxfp8": (XlaMxfp8LinearKernel,),
    "mxfp4": (XlaMxFp4LinearKernel,),
    "nvfp4": (XlaNvFp4LinearKernel,),
}
OURS = frozenset(kernel for kernels in LAST.values() for kernel in kernels)


def _with_ours(kind: str, upstream: dict[PlatformEnum, list[type]]) -> Lists:
    platforms = (_CUDA, _ROCM, _TPU, _XPU, _CPU, _OOT)
    return {platform: [*upstream.get(platform, []), *LAST[kind]] for platform in platforms}


_POSSIBLE_INT8_KERNELS: Lists = _with_ours(
    "int8",
    {
        _CUDA: [
            CutlassInt8ScaledMMLinearKernel,
            TritonInt8ScaledMMLinearKernel,
            HummingInt8ScaledMMLinearKernel,
        ],
        _ROCM: [AiterInt8ScaledMMLinearKernel, TritonInt8ScaledMMLinearKernel],
        _CPU: [ZentorchInt8ScaledMMLinearKernel, CPUInt8ScaledMMLinearKernel],
    },
)

_POSSIBLE_FP8_KERNELS: Lists = _with_ours(
    "fp8",
    {
        _CUDA: [
            MarlinFP8ScaledMMLinearKernel,
            FlashInferFP8ScaledMMLinearKernel,
            CutlassFP8ScaledMMLinearKernel,
            PerTensorTorchFP8ScaledMMLinearKernel,
            ChannelWiseTorchFP8ScaledMMLinearKernel,
            HummingFP8ScaledMMLinearKernel,
        ],
        _ROCM: [
            AiterHipbMMPerTokenFp8ScaledMMLinearKernel,
            AiterPreshuffledPerTokenFp8ScaledMMLinearKernel,
            AiterPerTokenFp8ScaledMMLinearKernel,
            ROCmFP8ScaledMMLinearKernel,
            PerTensorTorchFP8ScaledMMLinearKernel,
            RowWiseTorchFP8ScaledMMLinearKernel,
            ChannelWiseTorchFP8ScaledMMLinearKernel,
        ],
        _CPU: [PerTensorTorchFP8ScaledMMLinearKernel, ChannelWiseTorchFP8ScaledMMLinearKernel],
        _XPU: [XPUW8A16FP8ScaledMMLinearKernel, XPUW8A8FP8ScaledMMLinearKernel],
    },
)

_POSSIBLE_FP8_BLOCK_KERNELS: Lists = _with_ours(
    "fp8_block",
    {
        _CUDA: [
            FlashInferFp8DeepGEMMDynamicBlockScaledKernel,
            DeepGemmFp8BlockScaledMMKernel,
            CutlassFp8BlockScaledMMKernel,
            MarlinFP8ScaledMMLinearKernel,
            TritonFp8BlockScaledMMKernel,
            HummingFP8ScaledMMLinearKernel,
        ],
        _ROCM: [AiterFp8BlockScaledMMKernel, TritonFp8BlockScaledMMKernel],
        _CPU: [CPUFp8BlockScaledMMKernel],
        _XPU: [XPUFp8BlockScaledMMKernel, TritonFp8BlockScaledMMKernel],
    },
)

_POSSIBLE_WFP8A16_KERNELS: Lists = _with_ours(
    "wfp8a16",
    {
        _CUDA: [HummingFP8ScaledMMLinearKernel, MarlinFP8ScaledMMLinearKernel],
        _XPU: [XPUW8A16FP8ScaledMMLinearKernel],
    },
)

_POSSIBLE_KERNELS: Lists = _with_ours(
    "mp",
    {
        _CUDA: [
            CutlassW4A8LinearKernel,
            MacheteLinearKernel,
            AllSparkLinearKernel,
            MarlinLinearKernel,
            ConchLinearKernel,
            ExllamaLinearKernel,
            TritonW4A16LinearKernel,
            HummingLinearKernel,
        ],
        _ROCM: [
            RDNA3W4A16LinearKernel,
            RDNAHybridW4A16LinearKernel,
            TritonW4A16LinearKernel,
            ConchLinearKernel,
            ExllamaLinearKernel,
        ],
        _XPU: [XPUW4A8IntLinearKernel, XPUwNa16LinearKernel],
        _CPU: [Dynamic4bitLinearKernel, ZentorchWNA16LinearKernel, CPUWNA16LinearKernel],
    },
)

_POSSIBLE_MXFP8_KERNELS: Lists = _with_ours(
    "mxfp8",
    {
        _CUDA: [
            FlashInferCutedslMxfp8LinearKernel,
            FlashInferCutlassMxfp8LinearKernel,
            MarlinMxfp8LinearKernel,
            EmulationMxfp8LinearKernel,
            HummingMxfp8LinearKernel,
        ],
        _ROCM: [RocmDotScaledMxfp8LinearKernel, EmulationMxfp8LinearKernel],
        _XPU: [XPUMxFp8LinearKernel, EmulationMxfp8LinearKernel],
    },
)

_POSSIBLE_MXFP4_KERNELS: Lists = _with_ours(
    "mxfp4",
    {
        _CUDA: [FlashInferMxFp4LinearKernel, MarlinMxFp4LinearKernel, HummingMxFp4LinearKernel],
        _XPU: [XPUMxFp4LinearKernel],
    },
)

_POSSIBLE_NVFP4_KERNELS: Lists = _with_ours(
    "nvfp4",
    {
        _CUDA: [
            FlashInferCuteDslNvFp4LinearKernel,
            FlashInferCutlassNvFp4LinearKernel,
            CutlassNvFp4LinearKernel,
            MarlinNvFp4LinearKernel,
            FlashInferTrtllmNvFp4LinearKernel,
            FlashInferCudnnNvFp4LinearKernel,
            FbgemmNvFp4LinearKernel,
            EmulationNvFp4LinearKernel,
            HummingNvFp4LinearKernel,
        ],
        _ROCM: [EmulationNvFp4LinearKernel],
    },
)

LISTS: dict[str, Lists] = {
    "mp": _POSSIBLE_KERNELS,
    "int8": _POSSIBLE_INT8_KERNELS,
    "fp8": _POSSIBLE_FP8_KERNELS,
    "fp8_block": _POSSIBLE_FP8_BLOCK_KERNELS,
    "wfp8a16": _POSSIBLE_WFP8A16_KERNELS,
    "mxfp8": _POSSIBLE_MXFP8_KERNELS,
    "mxfp4": _POSSIBLE_MXFP4_KERNELS,
    "nvfp4": _POSSIBLE_NVFP4_KERNELS,
}

# -- backend filter -------------------------------------------------------------------------------

BACKEND_VARIABLE = "JAXKERNELS_LINEAR_BACKEND"

BACKENDS: dict[str, frozenset[type]] = {
    name: frozenset(classes)
    for name, classes in {
        "cutlass": (
            CutlassInt8ScaledMMLinearKernel,
            CutlassFP8ScaledMMLinearKernel,
            CutlassFp8BlockScaledMMKernel,
            CutlassW4A8LinearKernel,
            CutlassNvFp4LinearKernel,
        ),
        "flashinfer_cutlass": (
            FlashInferFP8ScaledMMLinearKernel,
            FlashInferFp8DeepGEMMDynamicBlockScaledKernel,
            FlashInferCutlassMxfp8LinearKernel,
            FlashInferCutlassNvFp4LinearKernel,
            FlashInferMxFp4LinearKernel,
        ),
        "flashinfer_cutedsl": (
            FlashInferCuteDslNvFp4LinearKernel,
            FlashInferCutedslMxfp8LinearKernel,
        ),
        "flashinfer_trtllm": (FlashInferTrtllmNvFp4LinearKernel,),
        "flashinfer_cudnn": (FlashInferCudnnNvFp4LinearKernel,),
        "flashinfer_b12x": (FlashInferB12xNvFp4LinearKernel,),
        "humming": (
            HummingFP8ScaledMMLinearKernel,
            HummingInt8ScaledMMLinearKernel,
            HummingLinearKernel,
            HummingMxfp8LinearKernel,
            HummingMxFp4LinearKernel,
            HummingNvFp4LinearKernel,
        ),
        "marlin": (
            MarlinFP8ScaledMMLinearKernel,
            MarlinLinearKernel,
            MarlinMxfp8LinearKernel,
            MarlinNvFp4LinearKernel,
            MarlinMxFp4LinearKernel,
        ),
        "triton": (
            TritonInt8ScaledMMLinearKernel,
            TritonFp8BlockScaledMMKernel,
            TritonW4A16LinearKernel,
        ),
        "deep_gemm": (DeepGemmFp8BlockScaledMMKernel,),
        "torch": (
            PerTensorTorchFP8ScaledMMLinearKernel,
            ChannelWiseTorchFP8ScaledMMLinearKernel,
            RowWiseTorchFP8ScaledMMLinearKernel,
        ),
        "aiter": (
            AiterInt8ScaledMMLinearKernel,
            AiterFp8BlockScaledMMKernel,
            AiterPerTokenFp8ScaledMMLinearKernel,
            AiterPreshuffledPerTokenFp8ScaledMMLinearKernel,
        ),
        "machete": (MacheteLinearKernel,),
        "fbgemm": (FbgemmNvFp4LinearKernel,),
        "conch": (ConchLinearKernel,),
        "exllama": (ExllamaLinearKernel,),
        "emulation": (EmulationMxfp8LinearKernel, EmulationNvFp4LinearKernel),
        "xpu": (XPUW8A8FP8ScaledMMLinearKernel, XPUFp8BlockScaledMMKernel),
        "xpu_woq": (XPUW8A16FP8ScaledMMLinearKernel,),
        "xla": tuple(OURS),
    }.items()
}


def backend_name(backend: str | None) -> str:
    """The backend asked for, normalised: the argument, else the environment variable, else "auto".

    Raises:
      ValueError: no backend has this name.
    """
    source = "backend"
    if backend is None:
        backend, source = os.environ.get(BACKEND_VARIABLE) or "auto", BACKEND_VARIABLE
    name = backend.strip().lower().replace("-", "_")
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{source}: expected auto, {', '.join(BACKENDS)}; got {backend!r}")
    return name


def filtered(kernels: list[type], backend: str | None, layer: str) -> list[type]:
    """Those of a list that belong to the backend, in the list's order.

    Raises:
      ValueError: none does.
    """
    name = backend_name(backend)
    if name == "auto":
        return kernels
    kept = [kernel for kernel in kernels if kernel in BACKENDS[name]]
    if not kept:
        raise ValueError(
            f"--linear-backend={name}: this platform has no such kernel for {layer} layers"
        )
    return kept


def register(kernel_class: type, platform: PlatformEnum, kernel_type: str) -> None:
    """Appends to upstream's part of a platform's list: before our class, which stays last."""
    kernels = LISTS[kernel_type].setdefault(platform, [])
    ours = next((i for i, kernel in enumerate(kernels) if kernel in OURS), len(kernels))
    kernels.insert(ours, kernel_class)

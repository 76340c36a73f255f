# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What a user would otherwise run, called on the same operands.

torch and XLA are always there. vLLM's compiled ops, DeepGEMM and humming are used where the folder
named by $PEERS holds them (`_C_stable_libtorch.abi3.so`, `deep_gemm/`, `humming/`); nothing of
them is part of this project.

A peer is *eligible* when it gives what our kernel gives. The others are shown and never counted:
one scale per tensor where ours are per row and column, raw int32 sums, asymmetric activations, a
plain copy, and bf16 products of weights that were never quantized.
"""

import functools

from benchmarks.peers import mixed, quantize, scaled, xla
from benchmarks.peers.common import Built, Peer, Unavailable

__all__ = ["Built", "PEERS", "Peer", "Unavailable", "peers_of"]

vllm = functools.partial(Peer, source="vllm")

_PRODUCT_8BIT = [
    vllm("vllm cutlass_scaled_mm", scaled.cutlass_scaled_mm),
    Peer("xla", xla.xla, source="xla"),
    Peer("torch bf16 matmul", scaled.bf16_matmul, eligible=False),
]
_WEIGHT_ONLY = [
    vllm("marlin", mixed.marlin),
    vllm("machete", mixed.machete),
    Peer("xla", xla.xla, source="xla"),
    Peer("torch bf16 matmul", scaled.bf16_matmul, eligible=False),
]
_FP4 = [
    vllm("marlin", mixed.marlin_fp4),
    Peer("torch bf16 matmul", scaled.bf16_matmul, eligible=False),
]
PEERS: dict[str, list[Peer]] = {
    "fp8": [
        Peer("torch._scaled_mm rowwise", scaled.scaled_mm_rowwise),
        Peer("torch._scaled_mm tensorwise", scaled.scaled_mm_tensorwise, eligible=False),
        *_PRODUCT_8BIT,
    ],
    "fp8-block": [
        Peer("deep_gemm fp8_gemm_nt", scaled.block_deep_gemm, source="deep_gemm"),
        vllm("vllm cutlass_scaled_mm", scaled.block_cutlass),
        Peer("torch._scaled_mm blocks", scaled.block_scaled_mm),
    ],
    "int8": [Peer("torch._int_mm", scaled.int_mm, eligible=False), *_PRODUCT_8BIT],
    "int8-azp": [vllm("vllm cutlass_scaled_mm_azp", scaled.cutlass_scaled_mm_azp)],
    "w8a8-linear": [vllm("vllm quant + cutlass_scaled_mm", scaled.vllm_quantize_then_mm)],
    "w4a16": [Peer("humming", mixed.humming("uint4", None), source="humming"), *_WEIGHT_ONLY],
    "w4a16-zp": [p for p in _WEIGHT_ONLY if p.name != "xla"],
    "w8a16-int8": [Peer("humming", mixed.humming("uint8", None), source="humming"), *_WEIGHT_ONLY],
    "w8a16-fp8": [
        Peer("humming", mixed.humming("float8e4m3", None), source="humming"),
        *[p for p in _WEIGHT_ONLY if p.name != "machete"],
    ],
    "w4a8-fp8": [
        Peer("humming fp8", mixed.humming("uint4", "float8e4m3"), source="humming"),
        vllm("vllm cutlass_w4a8_mm", mixed.cutlass_w4a8),
    ],
    "w4a8-int8": [
        Peer("humming int8", mixed.humming("uint4", "int8"), source="humming"),
        vllm("marlin int8", mixed.marlin_w4a8),
    ],
    "quantize-int8-token": [vllm("vllm dynamic_scaled_int8_quant", quantize.vllm_int8)],
    "quantize-int8-token-azp": [vllm("vllm dynamic_scaled_int8_quant azp", quantize.vllm_int8_azp)],
    "quantize-int8-static": [vllm("vllm static_scaled_int8_quant", quantize.vllm_int8_static)],
    "quantize-int8-static-azp": [
        vllm("vllm static_scaled_int8_quant azp", quantize.vllm_int8_static_azp)
    ],
    "quantize-fp8-token": [
        vllm("vllm dynamic_per_token_scaled_fp8_quant", quantize.vllm_fp8_token)
    ],
    "quantize-fp8-static": [vllm("vllm static_scaled_fp8_quant", quantize.vllm_fp8_static)],
    "quantize-fp8-tensor": [vllm("vllm dynamic_scaled_fp8_quant", quantize.vllm_fp8_tensor)],
    "quantize-fp8-group": [vllm("vllm per_token_group_fp8_quant", quantize.vllm_fp8_group(False))],
    "quantize-fp8-group-col": [
        vllm("vllm per_token_group_fp8_quant", quantize.vllm_fp8_group(True))
    ],
    "w8a16-fp8-block": [
        vllm("marlin", mixed.marlin),
        Peer("torch bf16 matmul", scaled.bf16_matmul, eligible=False),
    ],
    "fp4-nv": _FP4,
    "fp4-mx": _FP4,
}


def peers_of(family: str) -> list[Peer]:
    """The peers that a family meets; a conversion also meets a plain copy."""
    copy = [Peer("torch copy_ (same bytes)", quantize.copy_same_bytes, eligible=False)]
    return PEERS.get(family, []) + copy * family.startswith("quantize-")

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""GEMMs of two 8-bit operands: torch, vLLM's CUTLASS kernels, DeepGEMM; and bf16 beside them."""

import functools

import torch

from benchmarks import timing
from benchmarks.operands import BF16, F8, Operands
from benchmarks.peers.common import Built, once, package, vllm_ops


def scaled_mm_rowwise(o: Operands) -> Built:
    scale = o.weights.scale.T.contiguous()
    return Built(
        [
            lambda w=w: torch._scaled_mm(
                o.x, w.T, scale_a=o.x_scale, scale_b=scale, out_dtype=BF16, use_fast_accum=True
            )
            for w in o.weights.data
        ]
    )


def scaled_mm_tensorwise(o: Operands) -> Built:
    one = torch.ones((), device=o.x.device)
    return Built(
        [
            lambda w=w: torch._scaled_mm(
                o.x, w.T, scale_a=one, scale_b=one, out_dtype=BF16, use_fast_accum=True
            )
            for w in o.weights.data
        ],
        finish=lambda out: out.float() * o.x_scale * o.weights.scale.T,
    )


def int_mm(o: Operands) -> Built:
    m = o.x.shape[0]
    x = o.x if m > 16 else torch.cat((o.x, o.x.new_zeros(32 - m, o.x.shape[1])))
    return Built(
        [lambda w=w: torch._int_mm(x, w.T) for w in o.weights.data],
        finish=lambda out: out[:m].float() * o.x_scale * o.weights.scale.T,
    )


def cutlass_scaled_mm(o: Operands) -> Built:
    ops, scale = vllm_ops(), o.weights.scale.T.contiguous()
    out = torch.empty(o.x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: ops.cutlass_scaled_mm(out, o.x, w.T, o.x_scale, scale, None)
            for w in o.weights.data
        ],
        finish=lambda _: out,
    )


def cutlass_scaled_mm_azp(o: Operands) -> Built:
    ops, scale = vllm_ops(), o.weights.scale.T.contiguous()
    adjust = o.weights.data[0].sum(1, dtype=torch.int32)[None]
    out = torch.empty(o.x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: ops.cutlass_scaled_mm_azp(
                out, o.x, w.T, o.x_scale, scale, adjust, o.azp, None
            )
            for w in o.weights.data
        ],
        finish=lambda _: out,
    )


def _padded_to_4(o: Operands) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and their M-major scales padded to 4 tokens, as these two kernels' TMA needs."""
    m = o.x.shape[0]
    rows = -(-m // 4) * 4
    if rows == m:
        return o.x, o.x_scale
    x = torch.cat((o.x, o.x[:1].expand(rows - m, -1)))
    scale = torch.cat((o.x_scale, o.x_scale[:1].expand(rows - m, -1)))
    return x, scale.T.contiguous().T


def block_scaled_mm(o: Operands) -> Built:
    (x, x_scale), scale, m = _padded_to_4(o), o.weights.scale.T, o.x.shape[0]
    return Built(
        [
            lambda w=w: torch._scaled_mm(
                x, w.T, scale_a=x_scale, scale_b=scale, out_dtype=BF16, use_fast_accum=False
            )
            for w in o.weights.data
        ],
        finish=lambda out: out[:m],
    )


def block_cutlass(o: Operands) -> Built:
    ops, (x, x_scale), scale = vllm_ops(), _padded_to_4(o), o.weights.scale.T
    m = o.x.shape[0]
    out = torch.empty(x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: ops.cutlass_scaled_mm(out, x, w.T, x_scale, scale, None)
            for w in o.weights.data
        ],
        finish=lambda _: out[:m],
    )


def block_deep_gemm(o: Operands) -> Built:
    deep_gemm = package("deep_gemm")
    scale = deep_gemm.get_mn_major_tma_aligned_tensor(o.x_scale.contiguous())
    out = torch.empty(o.x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: deep_gemm.fp8_gemm_nt(
                (o.x, scale), (w, o.weights.scale), out, disable_ue8m0_cast=True
            )
            for w in o.weights.data
        ],
        finish=lambda _: out,
    )


def bf16_matmul(o: Operands) -> Built:
    """The layer without quantization: twice or four times the weight bytes."""
    n, k, w = o.weights.n, o.weights.k, o.weights
    count = timing.copies(2 * n * k)
    data = once(
        w,
        "bf16",
        lambda: (
            [w.dequantized().to(BF16)]
            + [torch.randn(n, k, device=o.x.device, dtype=BF16) for _ in range(count - 1)]
        ),
    )
    x = o.x.to(BF16)
    return Built(
        [lambda b=b: x @ b.T for b in data],
        finish=lambda out: out.float() if o.x_scale is None else out.float() * o.x_scale,
    )


def vllm_quantize_then_mm(o: Operands) -> Built:
    ops, scale = vllm_ops(), o.weights.scale.T.contiguous()
    m, k = o.x.shape
    out = torch.empty(m, o.weights.n, device=o.x.device, dtype=BF16)
    q, s = torch.empty(m, k, device=o.x.device, dtype=F8), torch.empty(m, 1, device=o.x.device)

    def call(w):
        ops.dynamic_per_token_scaled_fp8_quant(q, o.x, s, None)
        ops.cutlass_scaled_mm(out, q, w.T, s, scale, None)

    return Built([functools.partial(call, w) for w in o.weights.data], finish=lambda _: out)

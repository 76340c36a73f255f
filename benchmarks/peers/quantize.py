# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Activation quantization: vLLM's kernels, and a plain copy of as many bytes."""

import functools
from collections.abc import Callable

import torch

from benchmarks.operands import F8, STATIC_AZP, STATIC_SCALE, Operands, dequantized
from benchmarks.peers.common import Built, vllm_ops


def _conversion(o: Operands, dtype: torch.dtype, call, *, scale=None, azp=None) -> Built:
    """`call(x, q, scale, azp)` over the rotating inputs, each with an output of its own."""
    outputs = [torch.empty(x.shape, device=x.device, dtype=dtype) for x in o.copies]
    if scale is None:
        scale = torch.empty(o.cell.m, 1, device=o.x.device)
    return Built(
        [functools.partial(call, x, q, scale, azp) for x, q in zip(o.copies, outputs, strict=True)],
        finish=lambda _: dequantized(outputs[0], scale, azp),
    )


def vllm_int8(o: Operands) -> Built:
    ops = vllm_ops()
    return _conversion(
        o, torch.int8, lambda x, q, s, z: ops.dynamic_scaled_int8_quant(q, x, s, None)
    )


def vllm_int8_azp(o: Operands) -> Built:
    ops = vllm_ops()
    azp = torch.empty(o.cell.m, 1, device=o.x.device, dtype=torch.int32)
    return _conversion(
        o, torch.int8, lambda x, q, s, z: ops.dynamic_scaled_int8_quant(q, x, s, z), azp=azp
    )


def vllm_int8_static(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.full((1,), STATIC_SCALE, device=o.x.device)
    return _conversion(
        o, torch.int8, lambda x, q, s, z: ops.static_scaled_int8_quant(q, x, s, None), scale=scale
    )


def vllm_int8_static_azp(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.full((1,), STATIC_SCALE, device=o.x.device)
    azp = torch.full((1,), STATIC_AZP, device=o.x.device, dtype=torch.int32)
    return _conversion(
        o,
        torch.int8,
        lambda x, q, s, z: ops.static_scaled_int8_quant(q, x, s, z),
        scale=scale,
        azp=azp,
    )


def vllm_fp8_token(o: Operands) -> Built:
    ops = vllm_ops()
    return _conversion(
        o, F8, lambda x, q, s, z: ops.dynamic_per_token_scaled_fp8_quant(q, x, s, None)
    )


def vllm_fp8_static(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.full((1,), STATIC_SCALE, device=o.x.device)
    return _conversion(
        o, F8, lambda x, q, s, z: ops.static_scaled_fp8_quant(q, x, s, None), scale=scale
    )


def vllm_fp8_tensor(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.zeros(1, device=o.x.device)
    return _conversion(o, F8, lambda x, q, s, z: ops.dynamic_scaled_fp8_quant(q, x, s), scale=scale)


def vllm_fp8_group(column_major: bool) -> Callable[[Operands], Built]:
    def build(o: Operands) -> Built:
        ops, m, groups = vllm_ops(), o.cell.m, o.cell.k // o.cell.group
        scale = torch.empty(m, groups, device=o.x.device)
        if column_major:
            scale = torch.empty(groups, m, device=o.x.device).T
        return _conversion(
            o,
            F8,
            lambda x, q, s, z: ops.per_token_group_fp8_quant(
                x, q, s, o.cell.group, 1e-10, -448.0, 448.0, False, column_major, False
            ),
            scale=scale,
        )

    return build


def copy_same_bytes(o: Operands) -> Built:
    """A plain copy that reads and writes as many bytes: what the memory system can do."""
    half = [
        (torch.empty(3 * x.numel() // 2, device=x.device, dtype=torch.uint8), torch.empty_like(x))
        for x in o.copies
    ]
    pairs = [(a, b.view(torch.uint8).view(-1)[: a.numel()]) for a, b in half]
    return Built([lambda a=a, b=b: a.copy_(b) for a, b in pairs], finish=lambda _: o.x.float())

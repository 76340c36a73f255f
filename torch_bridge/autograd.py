# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Gradients of quantized linear layers: those of `x @ dequantize(w).T + bias`."""

import functools

import jax
import torch

from jaxkernels.quantized import PLAIN, QuantizedTensor, dequantize
from torch_bridge.dlpack import to_jax, to_torch
from torch_bridge.layouts import to_layout
from torch_bridge.streams import working_on


@functools.partial(jax.jit, static_argnames="dtype")
def _dequantize(w, *, dtype):
    return dequantize(w, dtype)


def dequantized(w: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight `[N, K]` as a torch tensor; w has torch leaves and any layout."""
    w = to_layout(w, PLAIN)
    with working_on(w.data.device):
        arrays = jax.tree.map(lambda t: to_jax(t.detach()), w)
        return to_torch(_dequantize(arrays, dtype=str(dtype).removeprefix("torch.")))


def linear(runner, x, leaves, bias, w: QuantizedTensor) -> torch.Tensor:
    """`runner(x, leaves, bias)` with gradients for x and the bias."""
    return _Linear.apply(x, bias, runner, leaves, w)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, runner, leaves, w):
        ctx.w = w
        return runner(x.detach(), leaves, None if bias is None else bias.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        dx = dy @ dequantized(ctx.w, dy.dtype) if ctx.needs_input_grad[0] else None
        db = dy.sum(0) if ctx.needs_input_grad[1] else None
        return dx, db, None, None, None

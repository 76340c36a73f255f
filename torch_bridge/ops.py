# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The layers as `torch.library` ops, for `torch.compile`: `torch.ops.jaxkernels.linear` and others.

Functional, with true fakes (dtype, shape, strides) and gradients, so a compiled graph does not
break at a quantized layer. Eager code need not come through here: `QuantLinear` and the kernel
classes call their `Runner` themselves and take the op only while something is compiling.
"""

import torch

from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from torch_bridge import autograd
from torch_bridge.runner import Operands, Scheme, runner_for

_WEIGHT = (
    "Tensor data, Tensor scale, Tensor? zero_point, Tensor? g_idx, Tensor? global_scale, "
    "str weight_type, int[] shape, int[] group_shape, str layout"
)
_library = torch.library.Library("jaxkernels", "DEF")
_library.define(
    f"linear(Tensor x, {_WEIGHT}, Tensor? x_scale, Tensor? azp, Tensor? azp_adj, "
    "Tensor? scale_ub, Tensor? bias, str? activation, str[]? implementations, "
    "ScalarType? out_dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    f"dequantize({_WEIGHT}, ScalarType dtype) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)

_NUM_WEIGHT = 9  # arguments of `_WEIGHT`


def weight_arguments(w: QuantizedTensor) -> tuple:
    """A weight (torch leaves) as the ops take it."""
    arrays = (w.data, w.scale, w.zero_point, w.g_idx, w.global_scale)
    return (*arrays, str(w.scalar_type), list(w.shape), list(w.group_shape), w.layout)


def _weight(data, scale, zero_point, g_idx, global_scale, weight_type, shape, group_shape, layout):
    return QuantizedTensor(
        data=data,
        scale=scale,
        zero_point=zero_point,
        g_idx=g_idx,
        global_scale=global_scale,
        shape=tuple(shape),
        scalar_type=getattr(scalar_types, weight_type),
        group_shape=GroupShape(*group_shape),
        layout=layout,
    )


def _linear(x, *arguments):
    weight, (x_scale, azp, azp_adj, scale_ub) = arguments[:_NUM_WEIGHT], arguments[9:13]
    bias, activation, implementations, out_dtype = arguments[13:]
    operands = Operands(_weight(*weight), x_scale, azp, azp_adj, scale_ub)
    scheme = Scheme(
        activation,
        None if implementations is None else tuple(implementations),
        None if out_dtype is None else str(out_dtype).removeprefix("torch."),
    )
    leaves = [t for t in (*weight[:5], x_scale, azp, azp_adj, scale_ub) if t is not None]
    (n, k), dtype = weight[6], out_dtype or x.dtype
    if x.numel() == 0:
        return x.new_empty((*x.shape[:-1], n), dtype=dtype)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    y = runner_for(scheme, operands)(x.reshape(-1, k).contiguous(), leaves, bias)
    return y.reshape(*x.shape[:-1], n)


def _linear_fake(x, *arguments):
    n, out_dtype = arguments[6][0], arguments[-1]
    torch._check(x.shape[-1] == arguments[6][1], lambda: f"x: [..., K] of {arguments[6]}")
    return x.new_empty((*x.shape[:-1], n), dtype=out_dtype or x.dtype)


def _dequantize(*arguments):
    *weight, dtype = arguments
    return autograd.dequantized(_weight(*weight), dtype)


def _dequantize_fake(data, *arguments):
    return data.new_empty(tuple(arguments[5]), dtype=arguments[-1])


def _save(ctx, inputs, output):
    x, *arguments = inputs
    ctx.weight = arguments[:_NUM_WEIGHT]
    ctx.has_bias, ctx.count = arguments[13] is not None, len(inputs)
    ctx.bias_dtype = arguments[13].dtype if ctx.has_bias else None
    ctx.x_dtype = x.dtype


def _backward(ctx, dy):
    gradients: list[torch.Tensor | None] = [None] * ctx.count
    if ctx.needs_input_grad[0]:
        w = torch.ops.jaxkernels.dequantize(*ctx.weight, dy.dtype)
        gradients[0] = (dy @ w).to(ctx.x_dtype)
    if ctx.has_bias and ctx.needs_input_grad[14]:
        gradients[14] = dy.reshape(-1, dy.shape[-1]).sum(0).to(ctx.bias_dtype)
    return tuple(gradients)


for _name, _run, _fake in (
    ("linear", _linear, _linear_fake),
    ("dequantize", _dequantize, _dequantize_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"jaxkernels::{_name}", _fake, lib=_library)
torch.library.register_autograd("jaxkernels::linear", _backward, setup_context=_save, lib=_library)


def dequantize(w: QuantizedTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight `[N, K]` (torch leaves, any layout) as a torch tensor."""
    return torch.ops.jaxkernels.dequantize(*weight_arguments(w), dtype)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The parameters of a layer, as GPTQ, AWQ, compressed-tensors and fp8 checkpoints load them.

Each function reads a layer and returns `Operands` with torch leaves; none of them changes the
layer. Here it is found out which axis of a parameter is K and which one is packed, from vLLM's
attributes (`input_dim`, `output_dim`, `packed_dim`) where they are and from the shape where not;
`jaxkernels.formats` then reads the arrays.
"""

import dataclasses
from typing import Any

import jax
import torch

from jaxkernels.formats.awq import from_awq
from jaxkernels.formats.compressed_tensors import (
    from_mxfp4,
    from_w4a8_int,
    from_w8a8_int8,
    from_wna16,
    merge_static_input,
)
from jaxkernels.formats.fp8 import from_fp8, requantize_with_max_scale
from jaxkernels.mixed_mm.prepare_w4a8 import split_scales
from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from torch_bridge.dlpack import to_jax, to_torch
from torch_bridge.runner import Operands
from torch_bridge.streams import working_on

_E4M3 = torch.float8_e4m3fn


def _refuse(name: str, expected: str, got: Any):
    if isinstance(got, torch.Tensor):
        got = f"{got.dtype} {tuple(got.shape)} on {got.device}"
    raise ValueError(f"{name}: expected {expected}, got {got}")


def _array(tensor: torch.Tensor | None) -> jax.Array | None:
    return None if tensor is None else to_jax(tensor.detach())


def _tensors(operands: Operands) -> Operands:
    """JAX results as tensors in memory of torch's own."""
    return jax.tree.map(lambda a: to_torch(a, copy=True), operands)


def read(reader, kernel, layer) -> Operands:
    """`reader(kernel, layer)` where the layer's weight is."""
    held = vars(layer).get("_parameters", vars(layer))
    given = {name: p for name, p in held.items() if isinstance(p, torch.Tensor)}
    devices = {p.device for p in given.values()}
    for name, parameter in given.items():
        if parameter.requires_grad and name != "bias":
            raise ValueError(
                f"{name}: it requires a gradient, and a quantized weight gets none; call "
                f"layer.{name}.requires_grad_(False)"
            )
    if len(devices) != 1:
        names = ", ".join(sorted(map(str, devices))) or "none"
        raise ValueError(f"layer: expected its parameters on one device, got {names}")
    [device] = devices
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"layer: expected its parameters on a CPU or CUDA device, got {device}")
    with working_on(device):
        return _tensors(reader(kernel, layer))


# -- mixed precision ------------------------------------------------------------------------------


def mixed(kernel, layer) -> Operands:
    """4- and 8-bit weights: the weight, scales, zero points and g_idx named by the kernel.

    Where `w4a8_mm` backs the class, its scales are split in two (fp8 a group, float32 a row).
    """
    c = kernel.config
    k, n = c.partition_weight_shape
    bits = c.weight_type.size_bits
    w_q, w_s, w_zp, w_gidx = kernel._get_weight_params(layer)
    order = _orientation(kernel.w_q_name, w_q, n, k, bits)
    scale = _scales(kernel.w_s_name, w_s, n, rows_first=order in ("NK", "values"))
    groups = scale.shape[1]
    whole = c.group_size == -1 or groups == 1
    group = k if whole else c.group_size
    wanted = 1 if whole else k // group
    of_all_ranks = 1 if whole else c.full_weight_shape[0] // group
    if groups != wanted and not (c.has_g_idx and groups == of_all_ranks):
        _refuse(kernel.w_s_name, f"scales of {n} rows and {wanted} groups", w_s)
    zeros = g_idx = None
    if c.zero_points:
        zeros = _zero_points(kernel.w_zp_name, w_zp, n, groups, 32 // bits)
    if c.has_g_idx and w_gidx is not None and w_gidx.numel():
        if w_gidx.shape != (k,):
            _refuse(kernel.w_gidx_name, f"the group of each of {k} columns", w_gidx)
        g_idx = w_gidx.detach().to(torch.int32)
    if order == "AWQ":
        if zeros is None:
            _refuse(kernel.w_zp_name, "AWQ's zero points", w_zp)
        packs = zeros if zeros.shape == (groups, n * bits // 32) else zeros.t()
        w = from_awq(_array(w_q), _array(packs), _array(scale.t()), bits=bits)
    elif order == "values":
        w = from_w4a8_int(_array(w_q), _array(scale))
    else:
        words = w_q.detach() if order == "NK" else w_q.detach().t()
        if zeros is not None and zeros.shape != (n * bits // 32, groups):
            zeros = zeros.t()
        w = from_wna16(_array(words), _array(scale), _array(zeros), _array(g_idx), bits=bits)
    w = dataclasses.replace(
        w,
        g_idx=None if whole else w.g_idx,
        group_shape=GroupShape(1, -1) if whole else GroupShape(1, group),
    ).validate()
    return Operands(split_scales(w) if kernel.backing.op == "w4a8_mm" else w)


def _orientation(name, w_q, n, k, bits) -> str:
    """ "NK" or "KN": packed along K; "AWQ": [K, N] packed along N; "values": unpacked int8."""
    shape, factor = tuple(w_q.shape), 32 // bits
    if w_q.dtype == torch.int8 and shape == (n, k) and bits == 4:
        return "values"
    wanted = {"NK": (n, k // factor), "KN": (k // factor, n), "AWQ": (k, n // factor)}
    dims = {"NK": (1, 1), "KN": (0, 0), "AWQ": (0, 1)}  # of the input, of the packing
    given = (getattr(w_q, "input_dim", None), getattr(w_q, "packed_dim", None))
    possible = [
        order
        for order, expected in wanted.items()
        if shape == expected
        and all(g in (None, d) for g, d in zip(given, dims[order], strict=True))
    ]
    if w_q.dtype != torch.int32 or not possible:
        shapes = ", ".join(str(list(expected)) for expected in wanted.values())
        _refuse(name, f"packed int32 of shape {shapes} for {n} x {k}", w_q)
    if len(possible) > 1:  # a square of packs: only the checkpoint's name for it tells
        possible.sort(key=lambda order: order != ("KN" if name == "qweight" else "NK"))
    return possible[0]


def _scales(name, w_s, n, rows_first) -> torch.Tensor:
    """Scales as [N, groups]."""
    scale = w_s.detach()
    if scale.dim() != 2 or n not in scale.shape:
        _refuse(name, f"scales [{n}, groups] or [groups, {n}]", w_s)
    outputs = getattr(w_s, "output_dim", None)
    if outputs is not None:
        rows_first = outputs == 0
    elif scale.shape[0] != scale.shape[1]:
        rows_first = scale.shape[0] == n
    return scale if rows_first else scale.t()


def _zero_points(name, w_zp, n, groups, factor) -> torch.Tensor:
    if w_zp is None:
        _refuse(name, "zero points, as the config says", None)
    wanted = [(n // factor, groups), (groups, n // factor)]
    if w_zp.dtype != torch.int32 or tuple(w_zp.shape) not in wanted:
        _refuse(name, f"packed int32 of shape {' or '.join(str(list(s)) for s in wanted)}", w_zp)
    zeros = w_zp.detach()
    # A square one is [groups, N/pack] only if its attributes say so; from_* wants it by format.
    if wanted[0] == wanted[1] and getattr(w_zp, "output_dim", 0) == 1:
        return zeros.t()
    return zeros


# -- int8 -----------------------------------------------------------------------------------------


def int8(kernel, layer) -> Operands:
    """W8A8 int8, with shards' scales merged and zero points folded into `azp_adj`."""
    c = kernel.config
    p = kernel._get_layer_params(layer)
    name_w, name_s, name_x, name_z, _ = kernel.layer_param_names
    data = nk(name_w, p.weight, torch.int8)
    w = from_w8a8_int8(_array(data), _array(_shard_scales(p.weight_scale, data)), _widths(layer))
    x_scale = azp = None
    if c.is_static_input_scheme:
        if p.input_scale is None:
            _refuse(name_x, "the static scale of the activations", None)
        zeros = None
        if not c.input_symmetric:
            if p.input_zero_point is None:
                _refuse(name_z, "the static zero point of the activations", None)
            zeros = _array(p.input_zero_point.reshape(-1))
        # Upstream's CPU class rounds the merged zero point, its CUDA classes truncate it.
        rounded = type(kernel).__name__.startswith("CPU")
        scales = _array(p.input_scale.to(torch.float32).reshape(-1))
        x_scale, azp = merge_static_input(scales, zeros, rounded=rounded)
        x_scale = x_scale.reshape(1, 1)
        azp = None if azp is None else azp.reshape(1, 1)
    azp_adj = None
    if not c.input_symmetric:
        azp_adj = w.data.sum(1, dtype="int32").reshape(1, -1)
        azp_adj = azp_adj if azp is None else azp_adj * azp
    return Operands(w, x_scale, azp, azp_adj)


def nk(name, weight, dtype) -> torch.Tensor:
    """The weight as [N, K] with K contiguous, from that or from the [K, N] view of it."""
    w = weight.detach()
    if w.dtype != dtype or w.dim() != 2:
        _refuse(name, f"{dtype} [N, K]", weight)
    if not w.is_contiguous() and w.t().is_contiguous():
        w = w.t()
    return w.contiguous()


def _shard_scales(scale, data) -> torch.Tensor:
    """float32 scales: [N, 1] if there is one a row, else as they are."""
    scale = scale.detach().to(torch.float32)
    return scale.reshape(-1, 1) if scale.numel() == data.shape[0] > 1 else scale


def _widths(layer):
    return getattr(layer, "logical_widths", None)


# -- fp8 ------------------------------------------------------------------------------------------


def fp8(kernel, layer) -> Operands:
    """W8A8 fp8 per tensor or channel; shards' scales are merged by requantization.

    Blocks too, of the weight-only classes that are in the block-scaled list.
    """
    block = kernel.config.weight_quant_key.scale.group_shape
    if block.row > 1:
        scale = getattr(layer, "weight_scale_inv", None)
        scale = layer.weight_scale if scale is None else scale
        return Operands(_in_blocks(layer, scale, block))
    p = kernel._get_layer_params(layer)
    name_w, name_s, name_x, _ = kernel.layer_param_names
    data = nk(name_w, p.weight, _E4M3)
    if kernel.config.weight_quant_key.scale.group_shape.is_per_tensor():
        scale = p.weight_scale.detach().to(torch.float32)
        largest, codes = _array(scale.max()), _array(data)
        if scale.numel() > 1:
            if not _widths(layer):
                _refuse(name_s, "one scale, since the layer has no logical_widths", scale)
            largest, codes = requantize_with_max_scale(codes, _array(scale), _widths(layer))
        w = from_fp8(codes, largest)
    else:
        w = from_fp8(
            _array(data), _array(_shard_scales(p.weight_scale, data)), logical_widths=_widths(layer)
        )
    if not kernel.quantizes_activations:
        return Operands(w)
    x_scale = scale_ub = None
    if kernel.config.activation_quant_key.scale.static:
        if p.input_scale is None:
            _refuse(name_x, "the static scale of the activations", None)
        x_scale = _array(p.input_scale.to(torch.float32).max().reshape(1, 1))
    elif p.input_scale_ub is not None:
        scale_ub = _array(p.input_scale_ub.to(torch.float32).reshape(1, 1))
    return Operands(w, x_scale=x_scale, scale_ub=scale_ub)


def fp8_block(kernel, layer) -> Operands:
    """fp8 in blocks: `weight_scale_inv` (or `weight_scale`) holds a scale a block."""
    given = kernel._get_layer_params(layer).weight_scale
    return Operands(_in_blocks(layer, given, kernel.config.weight_quant_key.scale.group_shape))


def _in_blocks(layer, given, block) -> QuantizedTensor:
    data = nk("weight", layer.weight, _E4M3)
    wanted = tuple(-(-size // b) for size, b in zip(data.shape, block, strict=True))
    scale = given.detach()
    if scale.dtype == torch.uint8:  # power-of-two scales as bytes
        scale = scale.view(torch.float8_e8m0fnu)
    if scale.shape != wanted:
        _refuse("weight_scale_inv", f"one scale a block, {list(wanted)}", given)
    scale = _array(scale.to(torch.float32).contiguous())
    return from_fp8(_array(data), scale, weight_block_size=tuple(block))


# -- micro-scaled ---------------------------------------------------------------------------------


def micro_scaled(kernel, layer) -> Operands:
    """MXFP8, MXFP4 and NVFP4 weights, with their scales in groups along K."""
    weight = getattr(layer, "weight", None)
    weight = layer.weight_packed if weight is None else weight
    data = nk("weight", weight, _E4M3 if kernel.family == "mxfp8" else torch.uint8)
    n, k = data.shape[0], data.shape[1] * (1 if kernel.family == "mxfp8" else 2)
    group = 16 if kernel.family == "nvfp4" else 32
    scale = layer.weight_scale.detach()
    if k % group or scale.dim() != 2 or scale.shape[0] < n or scale.shape[1] < k // group:
        _refuse("weight_scale", f"[{n}, {k // group}], one a group of {group}", scale)
    scale = scale[:n, : k // group].contiguous()  # loaders may have padded it
    expected = _E4M3 if kernel.family == "nvfp4" else torch.uint8
    if scale.dtype not in (expected, torch.float8_e8m0fnu if group == 32 else expected):
        _refuse("weight_scale", str(expected), layer.weight_scale)
    if kernel.family == "mxfp4":
        return Operands(from_mxfp4(_array(data), _array(scale.view(torch.uint8))))
    fields = {"scalar_type": scalar_types.float8_e4m3fn}
    if kernel.family == "nvfp4":
        # At this point upstream has turned the checkpoint's divisor into a factor.
        factor = layer.weight_global_scale.to(torch.float32).max().reshape(1, 1)
        fields = {"scalar_type": scalar_types.float4_e2m1f, "global_scale": _array(factor)}
    else:
        scale = scale.view(torch.float8_e8m0fnu)
    w = QuantizedTensor(
        data=_array(data),
        scale=_array(scale),
        shape=(n, k),
        group_shape=GroupShape(1, group),
        **fields,
    )
    return Operands(w.validate())

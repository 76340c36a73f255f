# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The parameters of a layer, as GPTQ, AWQ, compressed-tensors and fp8 checkpoints load them.

Each function reads a layer and returns `Operands` with torch leaves; none of them changes the
layer. What axis of a parameter is K and which one is packed is read from vLLM's attributes
(`input_dim`, `output_dim`, `packed_dim`) where they are, and from the shape where not.
"""

from typing import Any

import torch

from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from torch_bridge.runner import Operands

_E4M3 = torch.float8_e4m3fn
_FP8_MAX = 448.0
# Slot s of an AWQ pack holds logical column _AWQ_ORDER[s]; column j is in slot _AWQ_SLOT[j].
_AWQ_SLOT = {4: (0, 4, 1, 5, 2, 6, 3, 7), 8: (0, 2, 1, 3)}


def _refuse(name: str, expected: str, got: Any):
    if isinstance(got, torch.Tensor):
        got = f"{got.dtype} {tuple(got.shape)} on {got.device}"
    raise ValueError(f"{name}: expected {expected}, got {got}")


def _dim(parameter, name: str) -> int | None:
    return getattr(parameter, name, None)


# -- mixed precision ------------------------------------------------------------------------------


def mixed(kernel, layer) -> Operands:
    """W4A16 and W8A16: the weight, scales, zero points and g_idx named by the kernel."""
    c = kernel.config
    k, n = c.partition_weight_shape
    bits = c.weight_type.size_bits
    w_q, w_s, w_zp, w_gidx = kernel._get_weight_params(layer)
    data, awq = _codes(kernel.w_q_name, w_q, n, k, bits, c.weight_type)
    rows_first = _scale_rows_first(kernel.w_s_name, w_s, n, data_rows_first=w_q.shape[0] == n)
    scale = (w_s.detach() if rows_first else w_s.detach().t()).contiguous()
    groups = scale.shape[1]
    whole = c.group_size == -1 or groups == 1
    group = k if whole else c.group_size
    full_groups = 1 if whole else c.full_weight_shape[0] // group
    if scale.shape != (n, groups) or groups not in (1, -(-k // group), full_groups):
        _refuse(kernel.w_s_name, f"scales of {n} rows and {-(-k // group)} groups", w_s)
    if not whole and groups != k // group and not c.has_g_idx:
        # Scales of all ranks are here, replicated, and this rank's K starts nobody knows where.
        _refuse(kernel.w_s_name, f"{k // group} groups for {k} in-features of {group}", w_s)
    zero_point = g_idx = None
    if c.zero_points:
        if w_zp is None:
            _refuse(kernel.w_zp_name, "zero points, as the config says", None)
        zero_point = _zero_points(kernel.w_zp_name, w_zp, n, groups, bits, awq)
    if c.has_g_idx and w_gidx is not None and w_gidx.numel():
        if w_gidx.shape != (k,):
            _refuse(kernel.w_gidx_name, f"one group a column, [{k}]", w_gidx)
        g_idx = w_gidx.detach().to(torch.int32).contiguous()
    shape = GroupShape(1, -1) if whole else GroupShape(1, group)
    return Operands(
        QuantizedTensor(
            data=data,
            scale=scale,
            zero_point=zero_point,
            g_idx=None if whole else g_idx,
            shape=(n, k),
            scalar_type=c.weight_type,
            group_shape=shape,
        )
    )


def _codes(name, w_q, n, k, bits, weight_type):
    """Codes at rest ([N, K/2] or [N, K] bytes), and whether they were AWQ's interleaved packs."""
    w = w_q.detach()
    if w.dtype == torch.int8 and w.shape == (n, k):  # unpacked values, W4A8-int
        codes = w.contiguous()
        if weight_type == scalar_types.int8:
            return codes, False
        stored = (codes.to(torch.int16) + weight_type.bias).to(torch.uint8)
        return (pack_pairs(stored & 15) if bits == 4 else stored), False
    if w.dtype == torch.uint8 and w.shape == (n, k * bits // 8):
        return w.contiguous(), False
    if w.dtype != torch.int32 or w.dim() != 2:
        _refuse(name, "packed int32 [N, K/pack], [K/pack, N] or [K, N/pack]", w_q)
    factor = 32 // bits
    packed, inputs = _dim(w_q, "packed_dim"), _dim(w_q, "input_dim")
    fits = {
        "NK": w.shape == (n, k // factor) and inputs in (1, None) and packed in (1, None),
        "KN": w.shape == (k // factor, n) and inputs in (0, None) and packed in (0, None),
        "AWQ": w.shape == (k, n // factor) and inputs in (0, None) and packed in (1, None),
    }
    possible = [how for how, fit in fits.items() if fit]
    if len(possible) > 1:  # a square of packs: only the checkpoint's name for it tells
        preferred = "KN" if name == "qweight" else "NK"
        possible = [preferred] if preferred in possible else possible[:1]
    if not possible:
        wanted = f"[{n}, {k // factor}], [{k // factor}, {n}] or [{k}, {n // factor}]"
        _refuse(name, f"int32 {wanted} for {n} x {k}", w_q)
    if possible == ["AWQ"]:
        codes = unpack_awq(w, bits).t().contiguous()
        codes = pack_pairs(codes) if bits == 4 else codes
    else:
        # Value j of a pack is at bits [b*j, b*(j+1)), little endian: as bytes, that is our order.
        codes = (w if possible == ["NK"] else w.t()).contiguous().view(torch.uint8)
    if weight_type == scalar_types.int8:
        codes = codes.view(torch.int8)
    elif weight_type == scalar_types.float8_e4m3fn:
        codes = codes.view(_E4M3)
    return codes, possible == ["AWQ"]


def _scale_rows_first(name, w_s, n, data_rows_first) -> bool:
    if w_s.dim() != 2 or n not in w_s.shape:
        _refuse(name, f"scales [{n}, groups] or [groups, {n}]", w_s)
    outputs = _dim(w_s, "output_dim")
    if outputs is not None:
        return outputs == 0
    if w_s.shape[0] == w_s.shape[1]:
        return data_rows_first
    return w_s.shape[0] == n


def _zero_points(name, w_zp, n, groups, bits, awq):
    """uint8 codes [N, groups] from packs along N, transposed or not, interleaved or not."""
    zp, factor = w_zp.detach(), 32 // bits
    if zp.dtype == torch.uint8 and zp.shape == (n, groups):
        return zp.contiguous()
    if zp.dtype != torch.int32 or zp.dim() != 2:
        _refuse(name, "packed int32 zero points", w_zp)
    transposed = zp.shape == (groups, n // factor)
    if transposed and zp.shape == (n // factor, groups) and _dim(w_zp, "output_dim") is not None:
        transposed = _dim(w_zp, "output_dim") == 1
    elif not transposed and zp.shape != (n // factor, groups):
        _refuse(name, f"int32 [{n // factor}, {groups}] or [{groups}, {n // factor}]", w_zp)
    if awq and transposed:
        return unpack_awq(zp, bits).t().contiguous()
    rows = (zp.t() if transposed else zp).contiguous()  # [N / factor, groups]
    return unpack_rows(rows, bits)


def unpack_rows(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [R, C] packed along rows to uint8 codes [R * 32 / bits, C]."""
    shifts = torch.arange(0, 32, bits, device=packed.device, dtype=torch.int32)
    codes = (packed[:, None, :] >> shifts[None, :, None]) & (2**bits - 1)
    return codes.to(torch.uint8).reshape(-1, packed.shape[1])


def unpack_awq(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """AWQ's int32 [R, C] to uint8 codes [R, C * 32 / bits] in logical order."""
    slots = torch.tensor(_AWQ_SLOT[bits], device=packed.device, dtype=torch.int32)
    codes = (packed[:, :, None] >> (slots * bits)[None, None, :]) & (2**bits - 1)
    return codes.to(torch.uint8).reshape(packed.shape[0], -1)


def pack_pairs(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes [N, K] of 4 bits to bytes [N, K/2], element 2i in the low nibble."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


# -- int8 -----------------------------------------------------------------------------------------


def int8(kernel, layer) -> Operands:
    """W8A8 int8, with shards' scales merged and zero points folded into `azp_adj`."""
    c = kernel.config
    p = kernel._get_layer_params(layer)
    name_w, name_s, name_x, name_z, _ = kernel.layer_param_names
    data = nk(name_w, p.weight, torch.int8)
    n = data.shape[0]
    scale = p.weight_scale.detach().to(torch.float32)
    if scale.numel() == n and (c.is_channelwise or n > 1):
        scale = scale.reshape(n, 1)
    elif scale.numel() == 1:
        scale = scale.reshape(1, 1)
    else:
        scale = channelwise(name_s, scale.reshape(-1), layer, n)
    x_scale = azp = None
    if c.is_static_input_scheme:
        if p.input_scale is None:
            _refuse(name_x, "the static scale of the activations", None)
        scales = p.input_scale.detach().to(torch.float32).reshape(-1)
        if c.input_symmetric:
            x_scale = scales.max().reshape(1, 1)
        else:
            if p.input_zero_point is None:
                _refuse(name_z, "the static zero point of the activations", None)
            zeros = p.input_zero_point.detach().reshape(-1).to(torch.float32)
            rounds = "CPU" in type(kernel).__name__
            x_scale, azp = merge_ranges(scales, zeros, rounds)
    azp_adj = None
    if not c.input_symmetric:
        azp_adj = data.sum(1, dtype=torch.int32).reshape(1, n)
        azp_adj = azp_adj if azp is None else azp_adj * azp
    shape = GroupShape(1, -1) if scale.numel() > 1 else GroupShape(-1, -1)
    w = QuantizedTensor(
        data=data,
        scale=scale.contiguous(),
        shape=tuple(data.shape),
        scalar_type=scalar_types.int8,
        group_shape=shape,
    )
    return Operands(w, x_scale, azp, azp_adj)


def merge_ranges(scales, zeros, rounds: bool):
    """One (scale, azp) that covers the ranges of all shards; CUDA's classes truncate the azp."""
    high = (scales * (127 - zeros)).max()
    low = (scales * (-128 - zeros)).min()
    scale = (high - low) / 255
    azp = -128 - low / scale
    azp = torch.round(azp) if rounds else torch.trunc(azp)
    return scale.reshape(1, 1), azp.to(torch.int32).reshape(1, 1)


def nk(name, weight, dtype) -> torch.Tensor:
    """The weight as contiguous [N, K], from [N, K] or from the [K, N] view of one."""
    w = weight.detach()
    if w.dtype != dtype or w.dim() != 2:
        _refuse(name, f"{dtype} [N, K]", weight)
    if not w.is_contiguous() and w.t().is_contiguous():
        w = w.t()
    return w.contiguous()


def channelwise(name, scales, layer, n) -> torch.Tensor:
    """A scale a row `[N, 1]` out of one a logical shard."""
    widths = getattr(layer, "logical_widths", None)
    if widths is None or len(widths) != scales.numel() or sum(widths) != n:
        _refuse(name, f"1, {n} or one scale for each of logical_widths {widths}", scales)
    repeats = torch.tensor(widths, device=scales.device)
    return scales.repeat_interleave(repeats).reshape(n, 1)


# -- fp8 ------------------------------------------------------------------------------------------


def fp8(kernel, layer) -> Operands:
    """W8A8 fp8 per tensor or channel; shards' scales are merged by requantization."""
    p = kernel._get_layer_params(layer)
    name_w, name_s, name_x, name_ub = kernel.layer_param_names
    data = nk(name_w, p.weight, _E4M3)
    n = data.shape[0]
    scale = p.weight_scale.detach().to(torch.float32)
    per_tensor = kernel.config.weight_quant_key.scale.group_shape.is_per_tensor()
    if per_tensor and scale.numel() > 1:
        data, scale = merge_fp8_shards(name_s, data, scale.reshape(-1), layer)
    if scale.numel() not in (1, n):
        _refuse(name_s, f"1 or {n} scales", p.weight_scale)
    channel = scale.numel() == n and not per_tensor
    w = QuantizedTensor(
        data=data,
        scale=scale.reshape(-1, 1).contiguous(),
        shape=tuple(data.shape),
        scalar_type=scalar_types.float8_e4m3fn,
        group_shape=GroupShape(1, -1) if channel and n > 1 else GroupShape(-1, -1),
    )
    if not kernel.quantizes_activations:
        return Operands(w)
    x_scale = scale_ub = None
    if kernel.config.activation_quant_key.scale.static:
        if p.input_scale is None:
            _refuse(name_x, "the static scale of the activations", None)
        x_scale = p.input_scale.detach().to(torch.float32).max().reshape(1, 1)
    elif p.input_scale_ub is not None:
        scale_ub = p.input_scale_ub.detach().to(torch.float32).reshape(1, 1)
    return Operands(w, x_scale=x_scale, scale_ub=scale_ub)


def merge_fp8_shards(name, data, scales, layer):
    """(codes, one scale) of a fused weight whose shards had a scale each.

    As upstream's `requantize_with_max_scale`: the largest scale wins and the other shards are
    rounded again, through float16. If the last slot still holds the loader's sentinel, the
    checkpoint was fused already, and the bytes stay.
    """
    largest = scales.max()
    if not scales[-1] > torch.finfo(_E4M3).min:
        return data, largest
    widths = getattr(layer, "logical_widths", None)
    if widths is None or len(widths) != scales.numel() or sum(widths) != data.shape[0]:
        _refuse(name, f"one scale for each of logical_widths {widths}", scales)
    merged, start = torch.empty_like(data), 0
    for width, scale in zip(widths, scales, strict=True):
        part = data[start : start + width]
        values = (part.to(torch.float16) * scale).to(torch.float32)
        limited = (values * (1.0 / largest)).clamp(-_FP8_MAX, _FP8_MAX)
        merged[start : start + width] = limited.to(_E4M3)
        start += width
    return merged, largest


def fp8_block(kernel, layer) -> Operands:
    """fp8 in blocks: `weight_scale_inv` (or `weight_scale`) holds a scale a block."""
    p = kernel._get_layer_params(layer)
    data = nk("weight", p.weight, _E4M3)
    rows, columns = kernel.config.weight_quant_key.scale.group_shape
    n, k = data.shape
    scale = p.weight_scale.detach()
    if scale.dtype == torch.float8_e8m0fnu or scale.dtype == torch.uint8:
        scale = scale.view(torch.float8_e8m0fnu)
    if scale.shape != (-(-n // rows), -(-k // columns)):
        _refuse("weight_scale_inv", f"[{-(-n // rows)}, {-(-k // columns)}] for blocks", scale)
    w = QuantizedTensor(
        data=data,
        scale=scale.to(torch.float32).contiguous(),
        shape=(n, k),
        scalar_type=scalar_types.float8_e4m3fn,
        group_shape=GroupShape(rows, columns),
    )
    return Operands(w)


# -- micro-scaled --------------------------------------------------------------------------------

_MICRO = {
    "mxfp8": (scalar_types.float8_e4m3fn, 32, torch.float8_e8m0fnu),
    "mxfp4": (scalar_types.float4_e2m1f, 32, torch.float8_e8m0fnu),
    "nvfp4": (scalar_types.float4_e2m1f, 16, _E4M3),
}


def micro_scaled(kernel, layer) -> Operands:
    """MXFP8, MXFP4 and NVFP4 weights, with their scales in groups along K."""
    weight_type, group, scale_dtype = _MICRO[kernel.family]
    weight = getattr(layer, "weight", None)
    if weight is None:
        weight = layer.weight_packed
    data = weight.detach().contiguous()
    packed = weight_type.size_bits == 4
    wanted = torch.uint8 if packed else _E4M3
    if data.dtype != wanted or data.dim() != 2:
        _refuse("weight", f"{wanted} [N, {'K/2' if packed else 'K'}]", weight)
    n, k = data.shape[0], data.shape[1] * (2 if packed else 1)
    scale = layer.weight_scale.detach()
    if scale.dtype != scale_dtype:
        if scale.dtype != torch.uint8:
            _refuse("weight_scale", f"{scale_dtype}, or its bytes", scale)
        scale = scale.view(scale_dtype)
    if k % group or scale.dim() != 2 or scale.shape[0] < n or scale.shape[1] < k // group:
        _refuse("weight_scale", f"[{n}, {k // group}] of groups of {group}", scale)
    global_scale = None
    if kernel.family == "nvfp4":
        global_scale = layer.weight_global_scale.detach().to(torch.float32).max().reshape(1, 1)
    return Operands(
        QuantizedTensor(
            data=data,
            scale=scale[:n, : k // group].contiguous(),  # loaders may have padded it
            global_scale=global_scale,
            shape=(n, k),
            scalar_type=weight_type,
            group_shape=GroupShape(1, group),
        )
    )

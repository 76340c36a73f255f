# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Layers as checkpoints load them, built here by plain numpy, and what they mean in float64."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

AWQ_ORDER = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}


def pack(codes, bits, axis, order=None):
    """uint codes to int32 packs along an axis, little endian."""
    factor = 32 // bits
    codes = np.moveaxis(np.asarray(codes, np.uint32), axis, -1)
    codes = codes.reshape(*codes.shape[:-1], -1, factor)
    if order is not None:
        codes = codes[..., order]
    packed = np.zeros(codes.shape[:-1], np.uint32)
    for j in range(factor):
        packed |= codes[..., j] << np.uint32(bits * j)
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis)).view(np.int32)


class Layer(nn.Module):
    """A bare module with the given parameters; `dims` are set as vLLM's attributes."""

    def __init__(self, dims=None, **parameters):
        super().__init__()
        for name, value in parameters.items():
            if value is None:
                self.register_parameter(name, None)
                continue
            tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
            parameter = nn.Parameter(tensor, requires_grad=False)
            for attribute, axis in (dims or {}).get(name, {}).items():
                setattr(parameter, attribute, axis)
            self.register_parameter(name, parameter)


def mixed(rng, layout, n, k, group, bits=4, zero_points=False, act_order=False, plain=False):
    """(layer, names, weight [n, k] in float64) of a W4A16 or W8A16 layer.

    layout: "ct", "gptq" or "awq"; plain: without vLLM's attributes on the parameters.
    """
    size = k if group == -1 else group
    groups = k // size
    codes = rng.integers(0, 2**bits, (n, k))
    zeros = rng.integers(1, 2**bits - 1, (n, groups)) if zero_points else None
    scale = torch.from_numpy(rng.uniform(0.01, 0.03, (n, groups))).to(torch.bfloat16)
    g_idx = np.arange(k) // size
    if act_order:
        g_idx = rng.permutation(g_idx)
    zero_of = 2 ** (bits - 1) if zeros is None else zeros[:, g_idx]
    weight = (codes - zero_of) * scale.double().numpy()[:, g_idx]
    if layout == "ct":
        names = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
        q, s = pack(codes, bits, 1), scale
        z = None if zeros is None else pack(zeros, bits, 0)
        dims = [(1, 0, 1), (1, 0, None), (1, 0, 0)]
    elif layout == "gptq":
        names = ("qweight", "scales", "qzeros", "g_idx")
        q, s = pack(codes.T, bits, 0), scale.t().contiguous()
        # v1 stores zero - 1, and a symmetric layer's are loaded but mean nothing to the kernel.
        z = pack(np.full((groups, n), 2 ** (bits - 1) - 1), bits, 1)
        dims = [(0, 1, 0), (0, 1, None), (0, 1, 1)]
    else:
        names = ("qweight", "scales", "qzeros", "g_idx")
        order = AWQ_ORDER[bits]
        q, s = pack(codes.T, bits, 1, order), scale.t().contiguous()
        z = pack(zeros.T, bits, 1, order)
        dims = [(0, 1, 1), (0, 1, None), (0, 1, 1)]
    keys = ("input_dim", "output_dim", "packed_dim")
    dims = {
        name: {k_: v for k_, v in zip(keys, d, strict=True) if v is not None}
        for name, d in zip(names, dims, strict=False)
    }
    g = torch.from_numpy(g_idx.astype(np.int32)) if act_order else None
    values = dict(zip(names, (q, s, z, g), strict=True))
    return Layer(None if plain else dims, **values), names, weight


def output(x, weight, bias=None):
    """`x @ weight.T + bias` in float64."""
    y = x.double().numpy() @ np.asarray(weight).T
    return y if bias is None else y + bias.double().numpy()


def check_close(y, x, weight, bias=None, slack=2.0):
    """At most twice the error of plain arithmetic at x's precision, plus the last rounding."""
    want = output(x, weight, bias)
    plain = (x.float() @ torch.from_numpy(np.asarray(weight)).to(x.dtype).float().T).double()
    if bias is not None:
        plain = plain + bias.double()
    allowed = np.abs(plain.to(x.dtype).double().numpy() - want).max() * slack
    allowed += np.abs(want).max() * torch.finfo(y.dtype).eps
    error = np.abs(y.double().numpy() - want).max()
    assert error <= allowed, f"error {error:.3e}, plain arithmetic's bound {allowed:.3e}"


def namespace(**fields):
    return SimpleNamespace(**fields)

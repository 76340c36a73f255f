# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Random operands of a cell as torch tensors, and the float32 result they must give.

Weights are made once for every (N, K, group) and shared by all token counts, all peers and our own
kernels: `[N, K]` with K contiguous, 4-bit types packed two to a byte, element 2i in the low nibble.
Scales stay inside [0.001, 0.01], so that no product overflows and none vanishes.
"""

import functools
from dataclasses import dataclass, field

import torch

from benchmarks import timing
from benchmarks.suites import FAMILIES, Cell

DEVICE = "cuda"
F8 = torch.float8_e4m3fn
BF16 = torch.bfloat16
STATIC_SCALE, STATIC_AZP = 0.04, -3  # of activations drawn from a standard normal
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def random_fp8(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).mul_(100).clamp_(-448, 448).to(F8)


def random_int8(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, device=DEVICE, dtype=torch.int8)


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, device=DEVICE, dtype=torch.uint8)


def random_scale(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(*shape, device=DEVICE) * 0.9 + 0.1).mul_(0.01).to(dtype)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K/2] -> uint8 [N, K], low nibble first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def rel_err(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Frobenius norm of the error over that of the reference; NaN anywhere gives NaN."""
    return ((out.float() - reference).norm() / reference.norm()).item()


@dataclass
class Weights:
    """The weights of one (family, N, K, group): `data` rotates, scales and zero points do not."""

    family: str
    n: int
    k: int
    group: int | None
    data: list[torch.Tensor]
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    global_scale: torch.Tensor | None = None
    g_idx: torch.Tensor | None = None  # int32 [K]: each input's group, in the order of act-order
    packed: dict = field(default_factory=dict)  # other layouts, made once by whoever needs them

    @property
    def per_channel(self) -> bool:
        return self.scale.shape[1] == 1

    def codes(self) -> torch.Tensor:
        """The first copy's values before scaling, float32 [N, K] (bias or zero point taken off)."""
        q = self.data[0]
        if self.family.startswith("fp4"):
            code = nibbles(q)
            table = torch.tensor([*E2M1, *(-v for v in E2M1)], device=q.device)
            return table[code.long()]
        if q.dtype != torch.uint8:
            return q.float()
        if FAMILIES[self.family].w_bits == 4:
            value, bias = nibbles(q).float(), 8.0
        else:
            value, bias = q.float(), 128.0
        if self.zero_point is None:
            return value - bias
        return value - self.zero_point.float().repeat_interleave(self.group, 1)

    def dequantized(self) -> torch.Tensor:
        """float32 [N, K] of the first copy."""
        w, s = self.codes(), self.scale.float()
        if self.family.endswith("fp8-block"):
            s = s.repeat_interleave(128, 0)[: self.n].repeat_interleave(128, 1)[:, : self.k]
        elif self.g_idx is not None:
            s = s[:, self.g_idx.long()]
        elif s.shape[1] > 1:
            s = s.repeat_interleave(self.group, 1)
        w = w.mul_(s) if w.shape == s.shape else w * s
        if self.family == "w4a8-fp8":  # the kernels multiply with fp8 products
            w = w.clamp_(-448, 448).to(F8).float()
        return w if self.global_scale is None else w * self.global_scale


def make_weights(cell: Cell) -> Weights:
    """Fresh random weights for every cell of this (family, N, K, group)."""
    f, n, k, g = FAMILIES[cell.family], cell.n, cell.k, cell.group
    count = timing.copies(n * k * f.w_bits / 8)
    groups = 1 if g in (None, -1) else k // g
    zero = global_scale = None
    name = f.name
    if name in ("fp8", "fp8-block", "w8a8-linear", "w8a16-fp8", "w8a16-fp8-block"):
        data = [random_fp8(n, k) for _ in range(count)]
    elif name in ("int8", "int8-azp"):
        data = [random_int8(n, k) for _ in range(count)]
    elif name == "w8a16-int8":
        data = [random_bytes(n, k) for _ in range(count)]
    else:
        data = [random_bytes(n, k // 2) for _ in range(count)]
    if name.endswith("fp8-block"):
        scale = random_scale(-(-n // 128), -(-k // 128))
    elif f.op == "mixed_mm" and name.startswith("fp4-nv"):
        scale = (torch.rand(n, groups, device=DEVICE) * 400 + 40).to(F8)
        global_scale = torch.full((1, 1), 1e-4, device=DEVICE)
    elif name == "w4a8-fp8":
        scale = random_scale(n, groups).mul_(5600).to(F8)  # an eighth of e4m3's range
        global_scale = random_scale(n, 1)
    elif name.startswith("fp4-mx"):
        scale = torch.randint(117, 123, (n, groups), device=DEVICE, dtype=torch.uint8)
        scale = scale.view(torch.float8_e8m0fnu)
    else:
        weight_only = f.rate == "bf16" and f.x_bits == 16 and name not in ("fp8", "int8")
        scale = random_scale(n, groups, dtype=BF16 if weight_only else torch.float32)
        if name == "w4a8-int8":
            scale = scale.to(BF16)
    if f.zero_points:
        zero = torch.randint(0, 16, (n, groups), device=DEVICE, dtype=torch.uint8)
    g_idx = None
    if f.act_order:
        g_idx = (torch.randperm(k, device=DEVICE) // g).int()
    return Weights(cell.family, n, k, g, data, scale, zero, global_scale, g_idx)


def dequantized(q: torch.Tensor, scale: torch.Tensor, azp: torch.Tensor | None = None):
    """(q - azp) * scale in float32; scale is one number, one a row, or one a group."""
    value = q.float() if azp is None else q.float() - azp
    if scale.ndim == 2 and scale.shape[1] > 1:
        scale = scale.repeat_interleave(q.shape[1] // scale.shape[1], 1)
    return value * scale


@dataclass
class Operands:
    """One cell's operands. `x_scale` is [M, 1] or [M, K/128]; `azp` int32 [M, 1] or None;
    `copies` are the x of a conversion, which rotate as weights do."""

    cell: Cell
    weights: Weights | None
    x: torch.Tensor
    x_scale: torch.Tensor | None = None
    azp: torch.Tensor | None = None
    copies: list[torch.Tensor] = field(default_factory=list)

    @functools.cached_property
    def rows(self) -> torch.Tensor:
        """The rows that are checked: all of few, 512 of many, the first and the last among them."""
        m = self.x.shape[0]
        return torch.linspace(0, m - 1, min(m, 512), device=self.x.device).round().long()

    @functools.cached_property
    def reference(self) -> torch.Tensor:
        """What every kernel must return in these rows, float32."""
        x = self.x[self.rows].float()
        if self.weights is None:
            return x
        if self.azp is not None:
            x = x - self.azp[self.rows]
        if self.x_scale is not None:
            scale = self.x_scale[self.rows]
            x = x * scale.repeat_interleave(x.shape[1] // scale.shape[1], 1)
        return x @ self.weights.dequantized().T


def make_operands(cell: Cell, weights: Weights | None) -> Operands:
    """Fresh random activations for a cell."""
    f, m, k = FAMILIES[cell.family], cell.m, cell.k
    if f.x_bits == 16:
        x = torch.randn(m, k, device=DEVICE, dtype=BF16)
        copies = []
        if f.suite == "quantize":
            fresh = timing.copies(2 * m * k) - 1
            copies = [x, *(torch.randn(m, k, device=DEVICE, dtype=BF16) for _ in range(fresh))]
        return Operands(cell, weights, x, copies=copies)
    int8 = f.rate == "int8"
    x = random_int8(m, k) if int8 else random_fp8(m, k)
    if f.name == "fp8-block":
        return Operands(cell, weights, x, random_scale(k // 128, m).T)
    azp = None
    if f.name == "int8-azp":
        azp = torch.randint(-20, 20, (m, 1), device=DEVICE, dtype=torch.int32)
    return Operands(cell, weights, x, random_scale(m, 1), azp)

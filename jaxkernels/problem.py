# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The vocabulary of choosing a kernel: what is asked, on which device, by which implementation.

Plain data without arrays: hashable, printable, usable on a machine without the device. A kernel
states its legality once, as `supports(problem, device) -> Support`, and everything else (ops,
selection, tuning, tests) asks that one predicate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkernels.devices import DEVICES, Device, find_device
from jaxkernels.scalar_types import ScalarType

__all__ = [
    "DEVICES",
    "Device",
    "Implementation",
    "MixedMMOperands",
    "MixedMMProblem",
    "QuantizeOperands",
    "QuantizeProblem",
    "ScaledMMOperands",
    "ScaledMMProblem",
    "Support",
    "W4A8Operands",
    "W4A8Problem",
    "dtype_name",
    "find_device",
]


@dataclasses.dataclass(frozen=True)
class Support:
    """Whether a kernel takes a problem, and if not, every reason why.

    Example:
      >>> Support.all((True, "never shown"), (4 % 16 == 0, "k must be a multiple of 16, got 4"))
      Support(ok=False, reasons=('k must be a multiple of 16, got 4',))
    """

    ok: bool
    reasons: tuple[str, ...] = ()

    @staticmethod
    def all(*clauses: tuple[bool, str]) -> Support:
        """Supported if every condition holds; the reasons are those of the ones that do not."""
        reasons = tuple(reason for condition, reason in clauses if not condition)
        return Support(not reasons, reasons)

    def __bool__(self) -> bool:
        return self.ok


def dtype_name(dtype: Any) -> str:
    """The name problems use for a dtype: "bfloat16", "int8", "float8_e4m3fn".

    Example:
      >>> dtype_name(jnp.bfloat16), dtype_name("int8")
      ('bfloat16', 'int8')
    """
    return jnp.dtype(dtype).name


def _bytes(name: str) -> int:
    return jnp.dtype(name).itemsize


class _Product:
    """What every GEMM's problem knows of its sizes m, n, k."""

    @property
    def flops(self) -> int:
        """Multiplications and additions of the product."""
        return 2 * self.m * self.n * self.k


class _GroupedProduct(_Product):
    """A GEMM whose weights have a scale for `group_size` elements of K."""

    @property
    def group(self) -> int:
        """Elements of K that share a scale, as a number: K itself where `group_size` is -1."""
        return self.k if self.group_size == -1 else min(self.group_size, self.k)


@dataclasses.dataclass(frozen=True)
class ScaledMMProblem(_Product):
    """One scaled GEMM: `out[m, n] = sum_k x[m, k] w[n, k]` of two 8-bit operands, with scales.

    Attributes:
      m, n, k: sizes.
      x_dtype, w_dtype, out_dtype: dtype names.
      x_scale: "tensor", "token" (one a row of x) or "group" (one per 128 of K).
      w_scale: "tensor", "channel" (one a row of w) or "block" (128 x 128).
      bias: whether a bias [n] is added.
      azp: None, "static" (azp_adj holds azp * rowsum(w)) or "token" (azp [m, 1], azp_adj [n]).
    """

    m: int
    n: int
    k: int
    x_dtype: str
    w_dtype: str
    out_dtype: str
    x_scale: str = "tensor"
    w_scale: str = "tensor"
    bias: bool = False
    azp: str | None = None

    @property
    def min_bytes(self) -> int:
        """Bytes that must move: each operand read once, the result written once."""
        rows, columns = self.m, self.n
        groups, blocks = -(-self.k // 128), -(-self.n // 128)
        scales = {"tensor": 1, "token": rows, "group": rows * groups}[self.x_scale]
        scales += {"tensor": 1, "channel": columns, "block": blocks * groups}[self.w_scale]
        vectors = columns * _bytes(self.out_dtype) * self.bias
        vectors += {None: 0, "static": 4 * columns, "token": 4 * (columns + rows)}[self.azp]
        return (
            rows * self.k * _bytes(self.x_dtype)
            + columns * self.k * _bytes(self.w_dtype)
            + rows * columns * _bytes(self.out_dtype)
            + 4 * scales
            + vectors
        )


@dataclasses.dataclass(frozen=True)
class MixedMMProblem(_GroupedProduct):
    """One mixed-precision GEMM: quantized weights, 16-bit (or float32) activations.

    Attributes:
      m, n, k: sizes.
      weight_type: the weights' `ScalarType`.
      x_dtype, out_dtype: dtype names.
      group_size: elements of K per scale; -1 is the whole of K.
      granularity: "tensor", "channel", "group" or "block".
      zero_points, g_idx, bias: whether there are any.
      layout: "plain", or the name of a prepared layout.
      scale_dtype: dtype name of the scales.
      global_scale: whether there is a second-level scale.
    """

    m: int
    n: int
    k: int
    weight_type: ScalarType
    x_dtype: str
    out_dtype: str
    group_size: int = -1
    granularity: str = "channel"
    zero_points: bool = False
    g_idx: bool = False
    bias: bool = False
    layout: str = "plain"
    scale_dtype: str = "float32"
    global_scale: bool = False

    @property
    def min_bytes(self) -> int:
        """Bytes that must move: each operand read once, the result written once."""
        bits = self.weight_type.size_bits
        groups = -(-self.k // self.group)
        scales = {"tensor": 1, "channel": self.n, "group": self.n * groups}.get(
            self.granularity, -(-self.n // 128) * groups
        )
        return (
            self.m * self.k * _bytes(self.x_dtype)
            + self.n * self.k * bits // 8
            + self.m * self.n * _bytes(self.out_dtype)
            + scales * (_bytes(self.scale_dtype) + self.zero_points)
            + self.g_idx * 4 * self.k
            + self.bias * self.n * _bytes(self.out_dtype)
        )


class ScaledMMOperands(NamedTuple):
    """The arrays of a `ScaledMMProblem`, in the one shape that implementations see.

    x [m, k]; w [n, k]; x_scale f32 [1, 1], [m, 1] or [m, ceil(k / 128)]; w_scale f32 [1, 1],
    [n, 1] or [ceil(n / 128), ceil(k / 128)]; bias [n] or None; azp int32 [m, 1] or None;
    azp_adj int32 [n] or None.
    """

    x: jax.Array
    w: jax.Array
    x_scale: jax.Array
    w_scale: jax.Array
    bias: jax.Array | None = None
    azp: jax.Array | None = None
    azp_adj: jax.Array | None = None


class MixedMMOperands(NamedTuple):
    """The arrays of a `MixedMMProblem`: x [m, k], w a `QuantizedTensor`, bias [n] or None."""

    x: jax.Array
    w: Any
    bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class W4A8Problem(_GroupedProduct):
    """One GEMM of 4-bit weights and 8-bit activations.

    Attributes:
      m, n, k: sizes.
      weight_type: the weights' `ScalarType`.
      x_dtype: "float8_e4m3fn" or "int8"; x has one scale a row.
      out_dtype: dtype name.
      group_size: elements of K per weight scale; -1 is the whole of K.
      scale_dtype: dtype name of the weight scales.
      channel_scale: whether there is a second scale, one a row of w.
      bias: whether a bias [n] is added.
      layout: "plain", or the name of a prepared layout.
    """

    m: int
    n: int
    k: int
    weight_type: ScalarType
    x_dtype: str
    out_dtype: str
    group_size: int = -1
    scale_dtype: str = "float32"
    channel_scale: bool = False
    bias: bool = False
    layout: str = "plain"

    @property
    def min_bytes(self) -> int:
        """Bytes that must move: each operand read once, the result written once."""
        groups = -(-self.k // self.group)
        return (
            self.m * (self.k + 4)
            + self.n * self.k * self.weight_type.size_bits // 8
            + self.n * groups * _bytes(self.scale_dtype)
            + self.n * (4 * self.channel_scale + _bytes(self.out_dtype) * self.bias)
            + self.m * self.n * _bytes(self.out_dtype)
        )


class W4A8Operands(NamedTuple):
    """The arrays of a `W4A8Problem`.

    x [m, k]; w a `QuantizedTensor` (a second scale a row is its global_scale, [n, 1]); x_scale
    float32 [m, 1]; bias [n] or None.
    """

    x: jax.Array
    w: Any
    x_scale: jax.Array
    bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute a problem.

    Attributes:
      name: what `implementation=` calls it: "hopper", "xla", "reference".
      supports: (problem, device) -> Support; the only statement of what it takes.
      run: (problem, operands, config) -> array [m, n]; traced, config None means the default.
      default_config: (problem, device) -> config, from tables and model, or None.
      configs: (problem, device) -> tuple of legal configs, for tuning and tests.
    """

    name: str
    supports: Callable[[Any, Device], Support]
    run: Callable[[Any, Any, Any], jax.Array]
    default_config: Callable[[Any, Device], Any] = lambda problem, device: None
    configs: Callable[[Any, Device], tuple] = lambda problem, device: ()


@dataclasses.dataclass(frozen=True)
class QuantizeProblem:
    """One activation quantization: x [m, k] to 8 bits, with a given or a found scale.

    Attributes:
      m, k: rows (all leading dimensions of x) and row length.
      x_dtype, out_dtype: dtype names; out is "int8" or "float8_e4m3fn".
      scale: "static" (given, one number), "tensor", "token" or "group" (found).
      symmetric: False where there is a zero point (int8 only).
      scale_ub: whether an upper bound on the row's absmax is given (fp8, "token").
      group_size: elements of k per scale ("group").
      ue8m0: scales are rounded up to powers of two ("group").
      column_major: scales come as [groups, m] instead of [m, groups].
      tma_aligned: with column_major, m is padded to a multiple of 4 there.
    """

    m: int
    k: int
    x_dtype: str
    out_dtype: str
    scale: str
    symmetric: bool = True
    scale_ub: bool = False
    group_size: int = -1
    ue8m0: bool = False
    column_major: bool = False
    tma_aligned: bool = False

    @property
    def x_bytes(self) -> int:
        """Bytes of an element of x."""
        return _bytes(self.x_dtype)

    @property
    def padded_rows(self) -> int:
        """Rows of column-major scales: TMA wants each of their columns to begin at 16 bytes."""
        return -(-self.m // 4) * 4 if self.tma_aligned else self.m

    @property
    def min_bytes(self) -> int:
        """Bytes that must move: x read once, the result and the scales written once."""
        groups = -(-self.k // self.group_size) if self.scale == "group" else 1
        scales = {"static": 1, "tensor": 1}.get(self.scale, self.m * groups)
        zero_points = 0 if self.symmetric or self.scale == "static" else self.m
        return self.m * self.k * (self.x_bytes + 1) + 4 * (scales + zero_points)


class QuantizeOperands(NamedTuple):
    """The arrays of a `QuantizeProblem`.

    x [m, k]; scale f32 [1, 1] and zero_point int32 [1, 1] of a static scheme, else None;
    scale_ub f32 [1, 1] or None. An implementation's `run` gives (q [m, k], scale, azp or None):
    scale f32 [1, 1], [m, 1], [m, groups] or [groups, m or padded m]; azp int32 [m, 1].
    """

    x: jax.Array
    scale: jax.Array | None = None
    zero_point: jax.Array | None = None
    scale_ub: jax.Array | None = None

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Quantized weights: one pytree for every scheme, and the plain maths in and out of it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkernels import checks
from jaxkernels.scalar_types import ScalarType, scalar_types

PLAIN = "plain"

# At-rest dtype of each weight type. The 4-bit ones hold two elements a byte.
_DATA_DTYPES: dict[ScalarType, Any] = {
    scalar_types.int4: jnp.uint8,
    scalar_types.uint4: jnp.uint8,
    scalar_types.uint4b8: jnp.uint8,
    scalar_types.float4_e2m1f: jnp.uint8,
    scalar_types.int8: jnp.int8,
    scalar_types.uint8: jnp.uint8,
    scalar_types.uint8b128: jnp.uint8,
    scalar_types.float8_e4m3fn: jnp.float8_e4m3fn,
}
WEIGHT_TYPES = tuple(_DATA_DTYPES)
_ZERO_POINT_TYPES = (scalar_types.uint4, scalar_types.uint8)

_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP8_MAX = 448.0
_E2M1_MAX = 6.0


class GroupShape(NamedTuple):
    """The rows and columns that share one scale; -1 is the full extent.

    Example:
      >>> GroupShape(1, 128).is_per_group(), GroupShape(128, 128).is_per_group()
      (True, False)
    """

    row: int
    col: int

    def is_per_tensor(self) -> bool:
        """One scale for everything: (-1, -1)."""
        return self == GroupShape.PER_TENSOR

    def is_per_token(self) -> bool:
        """One scale a row: (1, -1)."""
        return self == GroupShape.PER_TOKEN

    def is_per_channel(self) -> bool:
        """One scale a column: (-1, 1)."""
        return self == GroupShape.PER_CHANNEL

    def is_per_group(self) -> bool:
        """Groups inside a row: row is 1 and col at least 1."""
        return self.row == 1 and self.col >= 1


GroupShape.PER_TENSOR = GroupShape(-1, -1)
GroupShape.PER_TOKEN = GroupShape(1, -1)
GroupShape.PER_CHANNEL = GroupShape(-1, 1)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "scale", "zero_point", "g_idx", "global_scale"],
    meta_fields=["shape", "scalar_type", "group_shape", "layout"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A quantized weight `[N, K]`, K contiguous, for `y[m, n] = sum_k x[m, k] * w[n, k]`.

    The value of an element with stored code q is `(q - zero_point) * scale`, or without a zero
    point `(q - bias) * scale` with the type's bias; times `global_scale` where there is one.
    A pytree: the arrays are leaves, the rest is static, so it passes through jit, scan (stacked:
    leading axes on every array) and tree_map. Unflattening checks nothing; `validate` does.

    Attributes:
      data: 8-bit types [N, K] (int8, uint8 or float8_e4m3fn, by type); 4-bit types uint8
        [N, K/2], element 2i in the low nibble of byte i.
      scale: float [1, 1] per tensor, [N, 1] per channel, [N, K/G] in groups, or
        [ceil(N/bn), ceil(K/bk)] in blocks.
      zero_point: uint8 codes of the scale's shape (checkpoint values, no "+1"), or None.
      g_idx: int32 [K], the group of each column (GPTQ's act-order), or None: k // G.
      global_scale: float32 [1, 1], the second-level scale of NVFP4, or None.
      shape: (N, K), logical.
      scalar_type: a type out of `WEIGHT_TYPES`.
      group_shape: (-1, -1), (1, -1), (1, G) or (bn, bk), as the scale's shape.
      layout: "plain" as above, or the name of a prepared layout of one implementation.

    Example:
      >>> w = quantize(jnp.linspace(-1, 1, 2 * 64).reshape(2, 64), scalar_types.uint4b8, 32)
      >>> w
      QuantizedTensor(uint4b8[2, 64], group 32, scale float32[2, 2], 80 bytes)
      >>> w.data.shape, w.granularity, w.group_size
      ((2, 32), 'group', 32)
    """

    data: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None = None
    g_idx: jax.Array | None = None
    global_scale: jax.Array | None = None
    shape: tuple[int, int] = (0, 0)
    scalar_type: ScalarType = scalar_types.int8
    group_shape: GroupShape = GroupShape.PER_TENSOR
    layout: str = PLAIN

    @property
    def granularity(self) -> str:
        """ "tensor", "channel", "group" or "block": what one scale covers, from its shape."""
        if self.layout != PLAIN:  # a prepared layout may hold the scales in another shape
            row, col = self.group_shape
            if row == -1:
                return "tensor"
            if row > 1:
                return "block"
            return "channel" if col in (-1, self.shape[1]) else "group"
        rows, columns = self.scale.shape[-2:]
        if (rows, columns) == (1, 1):
            return "tensor"
        if rows != self.shape[0]:
            return "block"
        if columns == 1:
            return "channel"
        return "block" if self.group_shape.row > 1 else "group"

    @property
    def group_size(self) -> int:
        """Elements of K that share a scale; -1 for the whole of K."""
        return self.group_shape.col

    @property
    def nbytes(self) -> int:
        """Bytes at rest: packed data, scales and the rest."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def __repr__(self) -> str:
        n, k = self.shape
        parts = [f"{self.scalar_type}[{n}, {k}]"]
        try:
            what = self.granularity
            size = self.group_shape.col
            parts.append(
                {
                    "tensor": "per tensor",
                    "channel": "per channel",
                    "group": f"group {size}",
                    "block": f"block {self.group_shape.row}x{size}",
                }[what]
            )
            parts.append(f"scale {checks.describe(self.scale)}")
            parts += ["zero points"] if self.zero_point is not None else []
            parts += ["act-order"] if self.g_idx is not None else []
            parts += ["global scale"] if self.global_scale is not None else []
            parts += [f"layout {self.layout!r}"] if self.layout != PLAIN else []
            parts.append(f"{self.nbytes} bytes")
        except (AttributeError, TypeError, ValueError):  # leaves that are not arrays
            parts.append(f"leaves {jax.tree.leaves(self)}")
        return f"QuantizedTensor({', '.join(parts)})"

    def validate(self) -> QuantizedTensor:
        """Returns self; ValueError or TypeError, naming the field, if the fields do not fit.

        Checks dtypes and shapes, never values, so it works on tracers. Every function that
        builds a `QuantizedTensor` here calls it; call it after building one by hand.
        """
        n, k = self.shape
        if self.scalar_type not in _DATA_DTYPES:
            known = ", ".join(map(str, WEIGHT_TYPES))
            checks.bad_value("scalar_type", f"one of {known}", self.scalar_type)
        if self.layout == PLAIN:
            checks.check_array("data", self.data, [_DATA_DTYPES[self.scalar_type]])
            if self.packed and k % 2:
                checks.bad_value("shape", "an even K for a 4-bit type (two a byte)", self.shape)
            checks.check_shape("data", self.data, (n, k // 2 if self.packed else k))
        checks.check_array("scale", self.scale, _SCALE_DTYPES)
        if self.layout != PLAIN:  # the rest is laid out as its implementation wants it
            return self
        if self.g_idx is None:
            wanted = _scale_shape(self.shape, self.group_shape)
        else:  # a shard of an act-order layer keeps the scales of all groups
            wanted = (n, self.scale.shape[-1])
        checks.check_shape(
            "scale", self.scale, wanted, meaning=f"group_shape {tuple(self.group_shape)}"
        )
        if self.zero_point is not None:
            if self.scalar_type not in _ZERO_POINT_TYPES:
                checks.bad_value("zero_point", f"None for {self.scalar_type}", self.zero_point)
            checks.check_array("zero_point", self.zero_point, [jnp.uint8])
            checks.check_shape("zero_point", self.zero_point, wanted, meaning="as scale")
        if self.g_idx is not None:
            checks.check_array("g_idx", self.g_idx, [jnp.int32])
            checks.check_shape("g_idx", self.g_idx, (k,))
            if self.granularity == "block":
                checks.bad_value("g_idx", "None with block scales", self.g_idx)
        if self.global_scale is not None:
            checks.check_array("global_scale", self.global_scale, [jnp.float32])
            checks.check_shape("global_scale", self.global_scale, (1, 1))
        return self

    @property
    def packed(self) -> bool:
        """Whether two elements share a byte."""
        return self.scalar_type.size_bits == 4


_SCALE_DTYPES = (
    jnp.float32,
    jnp.bfloat16,
    jnp.float16,
    jnp.float8_e4m3fn,
    jnp.float8_e8m0fnu,
)


def _scale_shape(shape: tuple[int, int], group_shape: GroupShape) -> tuple[int, int]:
    """The scale's shape, checking that groups divide K (blocks may be ragged)."""
    (n, k), (row, col) = shape, group_shape
    if row == -1 and col == -1:
        return (1, 1)
    if row < 1 or (col < 1 and col != -1) or (row > 1 and col == -1):
        checks.bad_value("group_shape", "(-1, -1), (1, -1), (1, G) or (bn, bk)", group_shape)
    if col == -1:
        return (n, 1)
    if row == 1 and k % col:
        checks.bad_value("group_size", f"a divisor of K = {k}", col)
    return (-(-n // row), -(-k // col))


# -- nibbles ------------------------------------------------------------------------------------


def pack_nibbles(codes: jax.Array) -> jax.Array:
    """Codes 0..15 [..., K] to bytes [..., K/2], element 2i in the low nibble.

    Example:
      >>> pack_nibbles(jnp.array([[1, 2, 15, 0]]))
      Array([[33, 15]], dtype=uint8)
    """
    codes = codes.astype(jnp.uint8)
    return (codes[..., 0::2] & 0xF) | (codes[..., 1::2] << 4)


def unpack_nibbles(data: jax.Array) -> jax.Array:
    """The inverse of `pack_nibbles`: bytes [..., K/2] to uint8 codes [..., K].

    Example:
      >>> unpack_nibbles(jnp.array([[33, 15]], jnp.uint8))
      Array([[ 1,  2, 15,  0]], dtype=uint8)
    """
    pairs = jnp.stack([data & 0xF, data >> 4], axis=-1)
    return pairs.reshape(*data.shape[:-1], 2 * data.shape[-1])


# -- out ----------------------------------------------------------------------------------------


def stored_codes(w: QuantizedTensor) -> jax.Array:
    """The stored codes [N, K] of a plain tensor, one an element: uint8, int8 or float8."""
    if w.layout != PLAIN:
        raise ValueError(
            f"w: expected layout 'plain', got {w.layout!r}; "
            "jaxkernels.mixed_mm.prepare.unprepare brings it back"
        )
    return unpack_nibbles(w.data) if w.packed else w.data


def unscaled(w: QuantizedTensor, dtype: Any = jnp.float32) -> jax.Array:
    """`q - zero_point` (or `q - bias`) [N, K]: exact in float32, bfloat16 and float16."""
    codes = stored_codes(w)
    if w.scalar_type == scalar_types.float4_e2m1f:
        # Selections instead of a table: a gather would be the slowest step of a CPU matmul.
        magnitude = (codes & 7).astype(dtype)
        value = jnp.where(magnitude < 4, magnitude * 0.5, magnitude - 2)
        value = jnp.where(magnitude == 7, 6, value).astype(dtype)
        return jnp.where(codes >= 8, -value, value)
    if w.scalar_type == scalar_types.int4:
        return ((codes ^ 8).astype(jnp.int8) - 8).astype(dtype)
    if w.zero_point is not None:
        return codes.astype(dtype) - expand_to_elements(w, w.zero_point).astype(dtype)
    return codes.astype(dtype) - jnp.asarray(w.scalar_type.bias, dtype)


def expand_to_elements(w: QuantizedTensor, per_group: jax.Array) -> jax.Array:
    """A scale or zero point as an array that broadcasts against [N, K]."""
    n, k = w.shape
    if w.granularity in ("tensor", "channel"):
        return per_group
    if w.g_idx is not None:
        return jnp.take(per_group, w.g_idx, axis=-1)
    row, col = w.group_shape
    expanded = jnp.repeat(per_group, col, axis=-1)[..., :k]
    return expanded if row == 1 else jnp.repeat(expanded, row, axis=-2)[..., :n, :]


def dequantize(w: QuantizedTensor, dtype: Any = jnp.float32) -> jax.Array:
    """`(q - zero_point) * scale` for every element, as an array [N, K].

    Precision: computed in float32 (where the difference is exact and the product with a 16-bit
    scale is too), then rounded once to `dtype`.

    Args:
      w: a `QuantizedTensor` of plain layout.
      dtype: the result's dtype.

    Returns:
      dtype [N, K].

    Raises:
      ValueError: w has a prepared layout.

    Source: spec of vLLM's `quantize_weights`, `gptq_gemm`, `awq_dequantize`: `(q - zp) * s`.

    Example:
      >>> w = quantize(jnp.array([[-8.0, 7.0, 1.0, 0.0]]), scalar_types.int4)
      >>> dequantize(w)
      Array([[-8.,  7.,  1.,  0.]], dtype=float32)
    """
    value = unscaled(w) * expand_to_elements(w, w.scale.astype(jnp.float32))
    if w.global_scale is not None:
        value = value * w.global_scale
    return value.astype(dtype)


# -- in -----------------------------------------------------------------------------------------


def quantize(
    w: jax.Array,
    scalar_type: ScalarType,
    group_size: int = -1,
    *,
    zero_points: bool = False,
    granularity: str | None = None,
    scale_dtype: Any = None,
) -> QuantizedTensor:
    """Quantizes a weight `[N, K]` by rounding to nearest.

    Integers without zero points: `s = max(|max / qmax|, |min / qmin|)`, `q = clamp(rne(w / s))`.
    With zero points: `s = max(max - min, 1e-5) / qmax`, `zp = clamp(rne(|min / s|))`,
    `q = clamp(rne(w / s) + zp)`, with 0 counted into the range. float8: `s = amax / 448`,
    `q = fp8(clamp(w / s))`. float4 in groups of 16 is NVFP4: `global = amax / (448 * 6)`,
    `s = fp8(group_amax / (6 * global))`; in groups of 32 it is MXFP4: `s = 2^floor(log2 amax) / 4`.

    Args:
      w: float [N, K].
      scalar_type: int4, uint4b8, int8, uint8b128, float8_e4m3fn, float4_e2m1f; uint4 and uint8
        with zero points.
      group_size: elements of K per scale; -1 is the whole of K. Must divide K, but for blocks.
      zero_points: asymmetric, one zero point a scale (uint4 and uint8 only).
      granularity: "tensor", "channel", "group" or "block" (group_size x group_size); by default
        "channel" for group_size -1 and "group" otherwise.
      scale_dtype: dtype of the scales; by default w's own for groups of a 16-bit w, fixed for
        float4, and float32 otherwise. Codes are chosen with the rounded scale.

    Returns:
      A `QuantizedTensor` of plain layout. A group of zeros gets scale 0 and codes of value 0.

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `quantize_weights` (test utility); OCP MX v1.0 for MXFP4.

    Example:
      >>> w = quantize(jnp.array([[0.0, 1.0, 2.0, 3.0]]), scalar_types.uint4, zero_points=True)
      >>> dequantize(w)
      Array([[0., 1., 2., 3.]], dtype=float32)
    """
    w = checks.as_array("w", w, [jnp.float32, jnp.bfloat16, jnp.float16])
    if w.ndim != 2:
        checks.bad_value("w", "2 dimensions [N, K]", w)
    if scalar_type not in _DATA_DTYPES:
        known = ", ".join(map(str, WEIGHT_TYPES))
        checks.bad_value("scalar_type", f"one of {known}", scalar_type)
    if zero_points and scalar_type not in _ZERO_POINT_TYPES:
        checks.bad_value("zero_points", f"False for {scalar_type}", zero_points)
    if not zero_points and scalar_type in _ZERO_POINT_TYPES:
        checks.bad_value(
            "zero_points", f"True for {scalar_type} (its biased twin does without)", zero_points
        )
    group_shape = _group_shape(group_size, granularity)
    scale_shape = _scale_shape(w.shape, group_shape)
    if scalar_type.size_bits == 4 and w.shape[1] % 2:
        checks.bad_value("w", "an even K for a 4-bit type (two a byte)", w)
    if scalar_type == scalar_types.float4_e2m1f and tuple(group_shape) not in ((1, 16), (1, 32)):
        checks.bad_value("group_size", "16 (NVFP4) or 32 (MXFP4) for float4_e2m1f", group_size)
    if scale_dtype is None:
        wide = group_shape.is_per_group() and w.dtype != jnp.float32
        scale_dtype = w.dtype if wide else jnp.float32

    values = w.astype(jnp.float32)
    low, high = _group_limits(values, group_shape, scale_shape)
    zero_point = global_scale = None
    if scalar_type == scalar_types.float4_e2m1f:
        scale, global_scale = _fp4_scales(jnp.maximum(-low, high), group_size)
    elif scalar_type.is_floating_point():
        scale = (jnp.maximum(-low, high) / _FP8_MAX).astype(scale_dtype)
    elif zero_points:
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        scale = (jnp.maximum(high - low, 1e-5) / scalar_type.max()).astype(scale_dtype)
        zero_point = jnp.clip(
            jnp.round(jnp.abs(low / scale.astype(jnp.float32))), 0, scalar_type.max()
        ).astype(jnp.uint8)
    else:
        limits = (high / scalar_type.max(), low / scalar_type.min())
        scale = jnp.maximum(*map(jnp.abs, limits)).astype(scale_dtype)

    result = QuantizedTensor(
        data=w,  # replaced below; the shape helpers need the rest only
        scale=scale,
        zero_point=zero_point,
        global_scale=global_scale,
        shape=w.shape,
        scalar_type=scalar_type,
        group_shape=group_shape,
    )
    steps = expand_to_elements(result, scale.astype(jnp.float32))
    if global_scale is not None:
        steps = steps * global_scale
    codes = _codes(values / jnp.where(steps == 0, 1, steps), result)
    data = pack_nibbles(codes) if result.packed else codes
    return dataclasses.replace(result, data=data).validate()


def _group_shape(group_size: int, granularity: str | None) -> GroupShape:
    if not isinstance(group_size, int) or (group_size < 1 and group_size != -1):
        checks.bad_value("group_size", "a positive int, or -1 for the whole of K", group_size)
    granularity = granularity or ("channel" if group_size == -1 else "group")
    shapes = {
        "tensor": GroupShape(-1, -1),
        "channel": GroupShape(1, -1),
        "group": GroupShape(1, group_size),
        "block": GroupShape(group_size, group_size),
    }
    if granularity not in shapes:
        checks.bad_value("granularity", f"one of {', '.join(shapes)}", granularity)
    if (granularity in ("tensor", "channel")) != (group_size == -1):
        checks.bad_value("group_size", f"what granularity {granularity!r} takes", group_size)
    return shapes[granularity]


def _group_limits(values: jax.Array, group_shape: GroupShape, scale_shape: tuple[int, int]):
    """Minimum and maximum of each group, in the scale's shape."""
    (n, k), (rows, columns) = values.shape, scale_shape
    height = n if group_shape.row == -1 else group_shape.row
    width = k if group_shape.col == -1 else group_shape.col
    pad = ((0, rows * height - n), (0, columns * width - k))
    limits = []
    for reduce in (jnp.min, jnp.max):
        # Edge padding repeats members of the last block, so it moves no limit.
        tiles = jnp.pad(values, pad, mode="edge").reshape(rows, height, columns, width)
        limits.append(reduce(tiles, axis=(1, 3)))
    return limits


def _fp4_scales(amax: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array | None]:
    if group_size == 32:  # MXFP4: the largest power of two that keeps the exponent of 6
        _, exponent = jnp.frexp(amax)
        exponent = jnp.clip(exponent - 1 - 2, -127, 127)
        codes = jnp.where(amax == 0, 0, exponent + 127).astype(jnp.uint8)
        return jax.lax.bitcast_convert_type(codes, jnp.float8_e8m0fnu), None
    largest = jnp.max(amax)
    global_scale = jnp.where(largest == 0, 1, largest / (_FP8_MAX * _E2M1_MAX)).reshape(1, 1)
    scale = jnp.clip(amax / (_E2M1_MAX * global_scale), 0, _FP8_MAX)
    return scale.astype(jnp.float8_e4m3fn), global_scale


def _codes(scaled: jax.Array, w: QuantizedTensor) -> jax.Array:
    """Stored codes, one an element, of values already divided by their scale."""
    kind = w.scalar_type
    if kind == scalar_types.float8_e4m3fn:
        return jnp.clip(scaled, -_FP8_MAX, _FP8_MAX).astype(jnp.float8_e4m3fn)
    if kind == scalar_types.float4_e2m1f:
        magnitude = jnp.abs(scaled)
        # Halfway cases go to the even code: alternately down and up.
        code = jnp.zeros(scaled.shape, jnp.uint8)
        steps = zip(_E2M1_MAGNITUDES, _E2M1_MAGNITUDES[1:], strict=False)
        for index, (below, above) in enumerate(steps):
            middle = (below + above) / 2
            passed = magnitude > middle if index % 2 == 0 else magnitude >= middle
            code = code + passed.astype(jnp.uint8)
        return jnp.where(jnp.signbit(scaled), code | 8, code)
    rounded = jnp.round(scaled)
    if w.zero_point is not None:
        rounded = rounded + expand_to_elements(w, w.zero_point.astype(jnp.float32))
    rounded = jnp.clip(rounded, kind.min(), kind.max()).astype(jnp.int32) + kind.bias
    if kind == scalar_types.int8:
        return rounded.astype(jnp.int8)
    return (rounded & (0xF if w.packed else 0xFF)).astype(jnp.uint8)

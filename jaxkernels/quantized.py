# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Quantized weights: one pytree for every scheme, and the plain maths out of it.

The way in is `jaxkernels.quantizer`, or a checkpoint through `jaxkernels.formats`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import jax
import jax.export
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
ZERO_POINT_TYPES = (scalar_types.uint4, scalar_types.uint8)


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
      global_scale: float32 [1, 1], the second-level scale of NVFP4, or [N, 1], that of fp8 group
        scales (`mixed_mm.prepare_w4a8.split_scales`), or None.
      shape: (N, K), logical.
      scalar_type: a type out of `WEIGHT_TYPES`.
      group_shape: (-1, -1), (1, -1), (1, G) or (bn, bk), as the scale's shape.
      layout: "plain" as above, or the name of a prepared layout of one implementation.

    Example:
      >>> from jaxkernels import quantize
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
            wanted = scale_shape(self.shape, self.group_shape)
        else:  # a shard of an act-order layer keeps the scales of all groups
            wanted = (n, self.scale.shape[-1])
        checks.check_shape(
            "scale", self.scale, wanted, meaning=f"group_shape {tuple(self.group_shape)}"
        )
        if self.zero_point is not None:
            if self.scalar_type not in ZERO_POINT_TYPES:
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
            checks.check_shape("global_scale", self.global_scale, (1, 1), (n, 1))
        return self

    @property
    def packed(self) -> bool:
        """Whether two elements share a byte."""
        return self.scalar_type.size_bits == 4


def _static_to_bytes(static: tuple) -> bytes:
    shape, scalar_type, group_shape, layout = static
    return json.dumps([shape, scalar_type.id, group_shape, layout]).encode()


def _static_from_bytes(data: bytes) -> tuple:
    shape, scalar_type, group_shape, layout = json.loads(data)
    return tuple(shape), ScalarType.from_id(scalar_type), GroupShape(*group_shape), layout


# So that functions of quantized weights can be exported and their exports saved (jax.export).
jax.export.register_pytree_node_serialization(
    QuantizedTensor,
    serialized_name="jaxkernels.QuantizedTensor",
    serialize_auxdata=_static_to_bytes,
    deserialize_auxdata=_static_from_bytes,
    from_children=lambda static, children: QuantizedTensor(*children, *static),
)

_SCALE_DTYPES = (
    jnp.float32,
    jnp.bfloat16,
    jnp.float16,
    jnp.float8_e4m3fn,
    jnp.float8_e8m0fnu,
)


def scale_shape(shape: tuple[int, int], group_shape: GroupShape) -> tuple[int, int]:
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
      >>> from jaxkernels import quantize
      >>> w = quantize(jnp.array([[-8.0, 7.0, 1.0, 0.0]]), scalar_types.int4)
      >>> dequantize(w)
      Array([[-8.,  7.,  1.,  0.]], dtype=float32)
    """
    return _dequantize(w, jnp.dtype(dtype).name)


@functools.partial(jax.jit, static_argnums=1)
def _dequantize(w: QuantizedTensor, dtype: str) -> jax.Array:
    value = unscaled(w) * expand_to_elements(w, w.scale.astype(jnp.float32))
    if w.global_scale is not None:
        value = value * w.global_scale
    return value.astype(dtype)

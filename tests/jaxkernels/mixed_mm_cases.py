# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Every weight that mixed_mm's Hopper kernels take, as random tensors, and what they must give.

`CASES` is made from the registry of formats: a type added there is met by every test that goes
over the cases.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxkernels.mosaic.weight_formats import FORMATS
from jaxkernels.quantized import GroupShape, QuantizedTensor, pack_nibbles, unscaled
from jaxkernels.scalar_types import ScalarType, scalar_types

ZERO_POINTS = (scalar_types.uint4, scalar_types.uint8)
GROUPS = (16, 32, 64, 128, -1)
AT_REST = {scalar_types.int8: jnp.int8, scalar_types.float8_e4m3fn: jnp.float8_e4m3fn}


@dataclasses.dataclass(frozen=True)
class Case:
    """A weight type with its scales: `scale` is a dtype's name, or "activation" for x's."""

    scalar_type: ScalarType
    group_shape: GroupShape
    scale: str = "activation"
    second: bool = False

    @property
    def group(self) -> int:
        return self.group_shape.col

    def __str__(self):
        row, col = self.group_shape
        size = f"{row}x{col}" if row > 1 else "tensor" if row == -1 else f"g{col}"
        scale = "" if self.scale == "activation" else f"-{self.scale}"
        return f"{self.scalar_type}-{size}{scale}"


def _cases():
    for kind, fmt in FORMATS.items():
        for group in GROUPS:
            yield Case(kind, GroupShape(1, group))
        if fmt.is_float:
            yield Case(kind, GroupShape(1, 32), "float8_e8m0fnu")
            yield Case(kind, GroupShape(1, 16), "float8_e4m3fn", True)
    fp8 = scalar_types.float8_e4m3fn
    yield Case(fp8, GroupShape(128, 128), "float32")
    yield Case(fp8, GroupShape(-1, -1), "float32")
    yield Case(scalar_types.uint4b8, GroupShape(1, 64), "float32")
    yield Case(scalar_types.int8, GroupShape(1, -1), "float32", True)


CASES = tuple(_cases())


def case_of(scalar_type: ScalarType, group: int) -> Case:
    """The first case of a type in groups of this size: with scales of x's dtype."""
    return next(c for c in CASES if c.scalar_type == scalar_type and c.group == group)


def random_scales(rng, shape, dtype, largest: int = 0x7E) -> jax.Array:
    """Scales of either sign and any mantissa; e4m3 ones with zeros and subnormals, up to the
    code `largest`; all small enough for float16 products with fp8 weights."""
    if dtype == "float8_e8m0fnu":
        codes = jnp.asarray(rng.integers(112, 134, shape, dtype=np.uint8))
        return jax.lax.bitcast_convert_type(codes, jnp.float8_e8m0fnu)
    if dtype == "float8_e4m3fn":
        codes = rng.integers(0, 256, shape, dtype=np.uint8)
        codes[(codes & 0x7F) > largest] = 0
        return jax.lax.bitcast_convert_type(jnp.asarray(codes), jnp.float8_e4m3fn)
    return jnp.asarray(rng.normal(size=shape), dtype)


def random_weight(
    rng, case: Case, n: int, k: int, dtype="bfloat16", *, act_order: bool = False
) -> QuantizedTensor:
    """Any codes (but NaN), any scale bits: not only what a quantizer makes."""
    kind, (row, col) = case.scalar_type, case.group_shape
    codes = rng.integers(0, 2**kind.size_bits, (n, k), dtype=np.uint8)
    if kind == scalar_types.float8_e4m3fn:
        codes[(codes & 0x7F) == 0x7F] = 0
    codes = jnp.asarray(codes)
    if kind.size_bits == 4:
        data = pack_nibbles(codes)
    else:
        data = jax.lax.bitcast_convert_type(codes, AT_REST.get(kind, jnp.uint8))
    groups = 1 if col == -1 else -(-k // col)
    shape = (1 if row == -1 else -(-n // row), groups)
    scale = str(np.dtype(dtype)) if case.scale == "activation" else case.scale
    zero = g_idx = second = None
    if kind in ZERO_POINTS:
        zero = jnp.asarray(rng.integers(0, 2**kind.size_bits, shape, dtype=np.uint8))
    if act_order:
        g_idx = jnp.asarray(rng.permutation(np.arange(k) // col).astype(np.int32))
    if case.second:
        second = jnp.full((1, 1), 0.0123, jnp.float32)
    return QuantizedTensor(
        data=data,
        scale=random_scales(rng, shape, scale, 0x6F if kind.size_bits == 8 else 0x7E),
        zero_point=zero,
        g_idx=g_idx,
        global_scale=second,
        shape=(n, k),
        scalar_type=kind,
        group_shape=case.group_shape,
    ).validate()


SHARDED = tuple(
    Case(kind, GroupShape(1, 32))
    for kind in FORMATS
    if kind != scalar_types.float4_e2m1f  # has no act-order anywhere
)


def random_shard(rng, case: Case, n: int, k: int, dtype="bfloat16") -> QuantizedTensor:
    """k of the 2 * k columns of an act-order layer: parts of groups, and of one group nothing."""
    w = random_weight(rng, case, n, 2 * k, dtype, act_order=True)
    g_idx = jnp.where(w.g_idx == 3, 1, w.g_idx)[:k]
    data = w.data[:, : k // 2] if w.packed else w.data[:, :k]
    return dataclasses.replace(w, data=data, g_idx=g_idx, shape=(n, k)).validate()


def recovered(w: QuantizedTensor, dtype, scale_on: str) -> np.ndarray:
    """What one-hot rows of x must give, by the kernels' stated roundings: float32 [N, K].

    With scale_on "weight", a scale of more than one along K is rounded to dtype, and so is its
    product with the code. Then factors in float32, and one rounding.
    """
    value, scale = unscaled(w), w.scale.astype(jnp.float32)
    n, k = w.shape
    if w.g_idx is not None:
        per_element = jnp.take(scale, w.g_idx, axis=1)
    elif w.granularity in ("tensor", "channel"):
        per_element = jnp.broadcast_to(scale, (n, k))
    else:
        row, col = w.group_shape
        per_element = jnp.repeat(jnp.repeat(scale, col, 1), row, 0)[:n, :k]
    grouped = w.g_idx is not None or (w.group_size != -1 and w.group_size < k)
    if grouped and scale_on == "weight":
        value = (value.astype(dtype) * per_element.astype(dtype)).astype(jnp.float32)
    else:
        value = value * per_element
    if w.global_scale is not None:
        value = value * w.global_scale
    return np.asarray(value.astype(dtype), np.float32)

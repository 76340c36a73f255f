# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""How each weight type is stored in tiles: packing, unpacking, and what a stored code means.

A tile is 64 rows (n) by 64 columns (k) of codes. It is stored as `bits` rows of 128 words of 32
bits, ordered so that the words a thread of a warpgroup loads (16 bytes at a time, no bank
conflicts) hold exactly the elements of its wgmma A fragment: no shuffles, only shifts and masks.
With thread t = 32 * warp + 4 * row + quad, the fragment register (r, k8, half) is the pair

    n = 16 * warp + 8 * half + row,    k = 16 * r + 8 * k8 + 2 * quad + {0, 1}

and the two elements of a pair lie 16 bits apart in a word, so that one 32-bit operation serves
both. With j = 2 * k8 + half:

    int4   word r of the thread,          element bits at 4 * j + 16 * {0, 1}
    int8   word 2 * r + k8 of the thread, element bits at 8 * half + 16 * {0, 1}
    e2m1   as int4, but bit b of the element at PLACES["e2m1"][j][b] + 16 * {0, 1}
    e4m3   as int8, but bit b of the element at PLACES["e4m3"][half][b] + 16 * {0, 1}

Codes are stored so that conversion is cheapest: integers in offset binary (value + 8, value + 128;
`WeightFormat.flip` is the XOR that brings a type's codes there), and the bits of floats as far
apart as bfloat16 wants sign and magnitude, so that one shift brings most of them to their places.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxkernels.scalar_types import ScalarType, scalar_types

TILE = 64  # rows and columns of a tile
LANES = 128  # words in a stored row of a tile

# Where the bits of the floats' codes (mantissa, exponent, sign) lie in 16 bits that hold four e2m1
# or two e4m3. bfloat16 wants them at 6 to 8 and 15, or 4 to 10 and 15: combs that do not tile 16.
PLACES = {
    "e2m1": ((0, 1, 2, 9), (3, 4, 5, 12), (6, 7, 8, 15), (10, 11, 13, 14)),
    "e4m3": ((0, 1, 2, 3, 4, 5, 6, 11), (12, 13, 14, 7, 8, 9, 10, 15)),
}


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """How a weight type is stored in tiles and what its codes mean.

    Attributes:
      kind: "int4" or "int8" (offset binary), "e4m3" or "e2m1".
      flip: XOR from the checkpoint's code to the stored one.
      zero: the type's own zero in checkpoint codes, where there are no zero points.
    """

    kind: str
    flip: int
    zero: int

    @property
    def bits(self) -> int:
        return 4 if self.kind in ("int4", "e2m1") else 8

    @property
    def is_float(self) -> bool:
        return self.kind in ("e4m3", "e2m1")


FORMATS: dict[ScalarType, WeightFormat] = {
    scalar_types.int4: WeightFormat("int4", 8, 0),
    scalar_types.uint4b8: WeightFormat("int4", 0, 8),
    scalar_types.uint4: WeightFormat("int4", 0, 0),
    scalar_types.int8: WeightFormat("int8", 0x80, 0),
    scalar_types.uint8b128: WeightFormat("int8", 0, 128),
    scalar_types.uint8: WeightFormat("int8", 0, 0),
    scalar_types.float8_e4m3fn: WeightFormat("e4m3", 0, 0),
    scalar_types.float4_e2m1f: WeightFormat("e2m1", 0, 0),
}


def pack_tiles(codes: jax.Array, fmt: WeightFormat) -> jax.Array:
    """Codes uint8 [N, K], multiples of 64, to words int32 [N/64, K/64 * bits, 128]."""
    n, k = codes.shape
    bits = fmt.bits
    # n = tile, warp, half, row;  k = tile, r, k8, quad, element of the pair
    v = (codes ^ fmt.flip).astype(jnp.uint32)
    v = v.reshape(n // TILE, 4, 2, 8, k // TILE, 4, 2, 4, 2)
    if bits == 4:  # one register of four words: [tile, ktile, warp, row, quad, r | k8, half, e]
        v = v.transpose(0, 4, 1, 3, 7, 5, 6, 2, 8)
        words = _spread(v, fmt, 8, 4, 16).sum((-1, -2, -3), dtype=jnp.uint32)
    else:  # two registers of four words: [tile, ktile, r/2, warp, row, quad, r%2, k8 | half, e]
        v = v.reshape(n // TILE, 4, 2, 8, k // TILE, 2, 2, 2, 4, 2)
        v = v.transpose(0, 4, 5, 1, 3, 8, 6, 7, 2, 9)
        words = _spread(v, fmt, 8, 16).sum((-1, -2), dtype=jnp.uint32)
    words = jax.lax.bitcast_convert_type(words, jnp.int32)
    return words.reshape(n // TILE, k // TILE * bits, LANES)


def unpack_tiles(words: jax.Array, fmt: WeightFormat) -> jax.Array:
    """The inverse of `pack_tiles`: codes uint8 [N, K]."""
    tiles, rows, _ = words.shape
    ktiles = rows // fmt.bits
    w = jax.lax.bitcast_convert_type(words, jnp.uint32)
    if fmt.bits == 4:
        w = w.reshape(tiles, ktiles, 4, 8, 4, 4, 1, 1, 1)
        v = _gathered(w, fmt, 8, 4, 16)
        v = v.transpose(0, 2, 7, 3, 1, 5, 6, 4, 8)
    else:
        w = w.reshape(tiles, ktiles, 2, 4, 8, 4, 2, 2, 1, 1)
        v = _gathered(w, fmt, 8, 16)
        v = v.transpose(0, 3, 8, 4, 1, 2, 6, 7, 5, 9)
    codes = v.reshape(tiles * TILE, ktiles * TILE).astype(jnp.uint8)
    return codes ^ jnp.uint8(fmt.flip)


def _shifts(*steps: int) -> jax.Array:
    """Bit positions uint32 [2, ..., 2]: the sum of those steps whose index is 1."""
    shape = (2,) * len(steps)
    iota = [jax.lax.broadcasted_iota(jnp.uint32, shape, d) for d in range(len(steps))]
    return sum(i * s for i, s in zip(iota, steps, strict=True))


def _spread(codes: jax.Array, fmt: WeightFormat, *steps: int) -> jax.Array:
    """Codes with their bits at their places in a word; last axes as `_shifts(*steps)`."""
    if not fmt.is_float:
        return codes << _shifts(*steps)
    return sum(((codes >> b) & 1) << _places(fmt, b) for b in range(fmt.bits))


def _gathered(words: jax.Array, fmt: WeightFormat, *steps: int) -> jax.Array:
    """The inverse of `_spread` and the sum after it."""
    if not fmt.is_float:
        return (words >> _shifts(*steps)) & (2**fmt.bits - 1)
    return sum(((words >> _places(fmt, b)) & 1) << b for b in range(fmt.bits))


def _places(fmt: WeightFormat, bit: int) -> jax.Array:
    """Positions uint32 of one bit of a code, by k8, half and element of the pair (e4m3: no k8).

    Made of scalars: the twin runs inside kernels, which capture no arrays.
    """
    steps = (2, 1, 0) if fmt.bits == 4 else (1, 0)
    j = _shifts(*steps)
    places = enumerate(PLACES[fmt.kind])
    place = sum(jnp.where(j == i, jnp.uint32(bits[bit]), 0) for i, bits in places)
    return place + _shifts(*[0] * (len(steps) - 1), 16)


# -- scales of 8 bits ---------------------------------------------------------------------------

SCALE_KINDS = {"float8_e4m3fn": "e4m3", "float8_e8m0fnu": "e8m0"}


def scale_kind(dtype) -> str:
    """What `convert.fragment` calls a scale: "e4m3", "e8m0", or "float" for more than 8 bits."""
    return SCALE_KINDS.get(jnp.dtype(dtype).name, "float")


def decode_scales(rows: jax.Array, kind: str) -> tuple[jax.Array, ...]:
    """The scales in words of 2 or 4 codes, as float32 arrays of the words' shape.

    An e8m0 code of 0 comes out as 0 instead of 2^-127: no activation dtype tells them apart.
    """
    wide = jax.lax.bitcast_convert_type(rows, f"uint{8 * rows.dtype.itemsize}").astype(jnp.uint32)
    out = []
    for i in range(rows.dtype.itemsize):
        code = (wide >> jnp.uint32(8 * i)) & 0xFF
        if kind == "e8m0":
            out.append(jax.lax.bitcast_convert_type(code << 23, jnp.float32))
        else:
            bits = jax.lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e4m3fn)
            out.append(bits.astype(jnp.float32))
    return tuple(out)


def exponent_bias(fmt: WeightFormat, dtype) -> int:
    """What conversion makes of a code, before any power of two, is its value times 2^-this."""
    half = np.dtype(dtype) == np.float16
    if not fmt.is_float:
        return 0 if half else {"int4": 2, "int8": 6}[fmt.kind]
    return (15 if half else 127) - {"e4m3": 7, "e2m1": 1}[fmt.kind]

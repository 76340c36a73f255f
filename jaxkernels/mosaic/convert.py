# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Packed weights to tensor-core fragments: in registers, and as a twin in jax.numpy.

What a tile's words hold is said in `mosaic.weight_formats`; the PTX is in `mosaic.convert_ptx`.

How a pair of codes becomes two floats (bf16 has 7 explicit mantissa bits, fp16 has 10):

    4 bits, fp16   0x6400 | q = 1024 + q in bits 0-3; 0x5400 | q << 4 = 64 + q in bits 4-7
    int8,   fp16   0x6400 | byte = 1024 + q; minus (1024 + zero) is exact
    ints,   bf16   an integer v < 256 in the low bits is the (subnormal) number v * 2^-133, so
                   v * 2^127 - zero * 2^-6 in one fma is (q - zero) * 2^-6; 16 q in bits 4-7 gives
                   (q - zero) / 4, and so does (0x4300 | q = 128 + q) / 4 - (128 + zero) / 4
    floats         sign and the rest moved to the float's places; times a power of two is exact

Scales are one value a row, for 16, 32 or 64 columns of a tile. In bfloat16 a scaled weight costs
one operation: the power of two is in the scale already, all but 2^-64 of it, which keeps every
factor in range (scales from 2^-62 to 2^58), and an integer type's own zero is in the same fma:
v * (2^69 * scale) - 2^-64 * zero * scale, rounded once. The powers of two that values lack
(`exponent_left_out`) go on the float32 sum. Scales of 8 bits come as
words, one code for each 16 or 32 columns; they are exact in both dtypes wherever their values are
(e8m0: from 2^-60 to 2^64 in bfloat16, from 2^-24 to 2^15 in float16; infinite above).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import vector
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.convert_ptx import FOLD, Emitter
from jaxkernels.mosaic.interpret import is_interpreting
from jaxkernels.mosaic.weight_formats import (
    FORMATS,
    LANES,
    TILE,
    WeightFormat,
    decode_scales,
    exponent_bias,
    pack_tiles,
    scale_kind,
    unpack_tiles,
)
from jaxkernels.scalar_types import scalar_types

__all__ = [
    "FORMATS",
    "LANES",
    "TILE",
    "WeightFormat",
    "exponent_left_out",
    "fragment",
    "fragment_twin",
    "load_rows",
    "load_words",
    "load_zeros",
    "multiply",
    "pack_tiles",
    "scale_kind",
    "scratch_type",
    "unpack_tiles",
]

_ROW = plgpu.Layout.WGMMA.reduce(1)  # one value a row of a fragment


def load_words(ref, fmt: WeightFormat) -> jax.Array:
    """The words of one tile, int32 [bits, 128] in shared memory, each thread its own."""
    return plgpu.load(ref, layout=plgpu.Layout.WG_STRIDED((fmt.bits, LANES), vec_size=4))


def load_rows(ref) -> jax.Array:
    """One value a row of a tile ([64] in shared memory), where the fragment's thread needs it."""
    return plgpu.load(ref, layout=_ROW, optimized=False)


def load_zeros(ref) -> jax.Array:
    """Zero points of a tile's rows (uint8 [64]) as `fragment` takes them: int32 [64]."""
    return load_rows(ref).astype(jnp.int32)


def same_in_rows(value: jax.Array) -> jax.Array:
    """A number as `load_rows` would give it, had every row the same."""
    return plgpu.layout_cast(jax.lax.broadcast_in_dim(value, (TILE,), ()), _ROW)


def exponent_left_out(fmt: WeightFormat, dtype, scaled: bool) -> int:
    """e, where `fragment` gives its values times 2^-e: the sum must be multiplied by 2^e."""
    if jnp.dtype(dtype) != jnp.bfloat16:
        return 0
    if scaled:
        return FOLD
    return 0 if fmt.is_float else exponent_bias(fmt, dtype)


def fragment(
    words, fmt: WeightFormat, dtype, *, zeros=(), scales=(), scales_are: str = "float"
) -> jax.Array:
    """A tile's values `code - zero`, times `scale`, as the A operand of a wgmma.

    Args:
      words: what `load_words` gave.
      fmt: the format.
      dtype: bfloat16 or float16, of the result.
      zeros: () for the type's own zero, or int32 [64] zero points (`load_zeros`): one array, or
        one for each half or quarter of the tile's 64 columns (groups of 32 or 16).
      scales: () or dtype [64] arrays (`load_rows`), likewise; each product is rounded once.
      scales_are: "float" as above; or "e4m3" or "e8m0": scales is one array [64] of words, int16
        with a code for each half of the columns or int32 with one for each quarter.

    Returns:
      dtype [64, 64], without the factor 2^`exponent_left_out`; on a GPU in wgmma's register layout.
    """
    if is_interpreting():
        return fragment_twin(words, fmt, dtype, zeros=zeros, scales=scales, scales_are=scales_are)
    extra = (*zeros, *scales)
    layout = plgpu.Layout.WGMMA

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WG_STRIDED((fmt.bits, LANES), vec_size=4), *[_ROW] * len(extra)),
        return_type=plgpu.ShapeDtypeStruct((TILE, TILE), dtype, layout),
    )
    def convert(_, words, *rows):
        emit = Emitter(fmt, dtype, scaled=bool(scales), zeros=bool(zeros))
        zero_pairs = [emit.zero_pairs(v) for v in rows[: len(zeros)]] or [emit.zero_pairs(None)]
        scale_pairs = emit.scale_pairs(rows[len(zeros) :], scales_are)
        per_thread = [
            vector.extract(register, [], ir.DenseI64ArrayAttr.get([i]))
            for register in words.registers.flat
            for i in range(4)
        ]
        pair = ir.VectorType.get((2,), ir.F16Type.get() if emit.half else ir.BF16Type.get())
        flat = []
        for r in range(4):
            for j in range(4):
                scale = scale_pairs[r * len(scale_pairs) // 4][j % 2] if scales else None
                if emit.fused:
                    value = emit.scaled_values(per_thread, r, j, scale)
                else:
                    value = emit.values(per_thread, r, j, zero_pairs[r * len(zero_pairs) // 4])
                    if scales:
                        value = emit.ptx(f"mul.rn.{emit.float2}", value, scale)
                one = vector.broadcast(ir.VectorType.get((1,), emit.i32), value)
                flat.append(vector.bitcast(pair, one))
        registers = np.array(flat, dtype=object).reshape(layout.to_mgpu().registers_shape((64, 64)))
        array = mgpu.FragmentedArray(
            _registers=registers, _layout=layout.to_mgpu(), _is_signed=None
        )
        return fragmented_array.optimization_barrier(array)

    return convert(words, *extra)


def multiply(acc, a, b, scratch) -> None:
    """acc += a @ b: wgmma with a's registers; interpreted, through `scratch` (see `scratch_type`).

    GPU interpret mode knows wgmma only with both operands in shared memory.
    """
    if is_interpreting():
        scratch[...] = a
        plgpu.commit_smem()
        plgpu.wgmma(acc, scratch, b)
    else:
        plgpu.wgmma(acc, a, b)


def scratch_type(warpgroups: int, dtype) -> plgpu.SMEM:
    """Shared memory for `multiply`, one tile a warpgroup; next to nothing on a GPU."""
    if not is_interpreting():
        return plgpu.SMEM((warpgroups, 8), dtype)
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((warpgroups, TILE, TILE), dtype, transforms=transforms)


def fragment_twin(
    words, fmt: WeightFormat, dtype, *, zeros=(), scales=(), scales_are: str = "float"
) -> jax.Array:
    """`fragment` in plain jax.numpy, bit for bit; every value before `scales` is exact."""

    def columns(rows):  # arrays [64] of each part of the tile to [64, 64]
        return jnp.repeat(jnp.stack(rows, axis=1), TILE // len(rows), axis=1)

    value = _value(unpack_tiles(words[None], fmt), fmt, columns(zeros) if zeros else fmt.zero)
    left_out = exponent_left_out(fmt, dtype, bool(scales))
    if not scales:
        return (value * 2.0**-left_out).astype(dtype)
    if scales_are != "float":
        (rows,) = scales
        scales = tuple(scale.astype(dtype) for scale in decode_scales(rows, scales_are))
    scale = columns(scales).astype(dtype)
    if scales_are == "e8m0" and left_out:  # exact, and the product may be outside float32's range
        return (value * (scale.astype(jnp.float32) * 2.0**-left_out)).astype(dtype)
    product = value.astype(dtype) * scale
    return (product.astype(jnp.float32) * 2.0**-left_out).astype(dtype) if left_out else product


def _value(codes, fmt: WeightFormat, zero) -> jax.Array:
    """float32 values of codes uint8, before any scale."""
    if fmt.kind == "e4m3":
        return jax.lax.bitcast_convert_type(codes, jnp.float8_e4m3fn).astype(jnp.float32)
    signed = codes.astype(jnp.int32)
    if fmt.kind == "e2m1":
        magnitude = (signed & 7).astype(jnp.float32)
        value = jnp.where(magnitude < 4, magnitude * 0.5, magnitude - 2)
        value = jnp.where(magnitude == 7, 6, value)
        return jnp.where(signed >= 8, -value, value)
    if fmt == FORMATS[scalar_types.int4]:
        signed = (signed ^ 8) - 8
    elif fmt == FORMATS[scalar_types.int8]:
        signed = (signed ^ 128) - 128
    return (signed - zero).astype(jnp.float32)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Packed weights to tensor-core fragments: one format per storage, in registers and as a twin.

A tile is 64 rows (n) by 64 columns (k) of codes. It is stored as `bits` rows of 128 words of 32
bits, ordered so that the words a thread of a warpgroup loads (`load_words`: 16 bytes at a time,
no bank conflicts) hold exactly the elements of its wgmma A fragment: no shuffles, only shifts and
masks. With thread t = 32 * warp + 4 * row + quad, the fragment register (r, k8, half) is the pair

    n = 16 * warp + 8 * half + row,    k = 16 * r + 8 * k8 + 2 * quad + {0, 1}

and the two elements of a pair lie 16 bits apart in a word, so that one 32-bit operation serves
both. With j = 2 * k8 + half:

    4 bits:  word r of the thread,         element bits at 4 * j + 16 * {0, 1}
    8 bits:  word 2 * r + k8 of the thread, element bits at 8 * half + 16 * {0, 1}

Codes are stored so that conversion is cheapest: 4-bit ones in offset binary (value + 8), 8-bit
integers in two's complement. `WeightFormat.flip` is the XOR that brings a type's codes there.

How a pair becomes two floats (bf16 has 7 explicit mantissa bits, fp16 has 10):

    4 bits, bf16   (w & 0x000F000F) | 0x4300 = 128 + q; minus (128 + zero) is exact
    4 bits, fp16   0x6400 | q = 1024 + q in bits 0-3; 0x5400 | q << 4 = 64 + q in bits 4-7
    int8,   bf16   (128 + low 7 bits) - (128, or 256 where the sign bit is set): exact
    int8,   fp16   0x6480 ^ byte = 1024 + 128 + value; minus 1152 is exact
    e4m3           sign and 7 bits moved to the float's places; times a power of two is exact
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, vector
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting
from jaxkernels.scalar_types import ScalarType, scalar_types

TILE = 64  # rows and columns of a tile
LANES = 128  # words in a stored row of a tile
_ROW = plgpu.Layout.WGMMA.reduce(1)  # one value a row of a fragment


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """How a weight type is stored in tiles and what its codes mean.

    Attributes:
      kind: "int4" (offset binary), "int8" (two's complement) or "e4m3".
      flip: XOR from the checkpoint's code to the stored one.
      zero: the type's own zero in checkpoint codes, where there are no zero points.
    """

    kind: str
    flip: int
    zero: int

    @property
    def bits(self) -> int:
        return 4 if self.kind == "int4" else 8


FORMATS: dict[ScalarType, WeightFormat] = {
    scalar_types.int4: WeightFormat("int4", 8, 0),
    scalar_types.uint4b8: WeightFormat("int4", 0, 8),
    scalar_types.uint4: WeightFormat("int4", 0, 0),
    scalar_types.int8: WeightFormat("int8", 0, 0),
    scalar_types.uint8b128: WeightFormat("int8", 0x80, 128),
    scalar_types.uint8: WeightFormat("int8", 0x80, 0),
    scalar_types.float8_e4m3fn: WeightFormat("e4m3", 0, 0),
}


# -- the order of a tile ------------------------------------------------------------------------


def pack_tiles(codes: jax.Array, fmt: WeightFormat) -> jax.Array:
    """Codes uint8 [N, K], multiples of 64, to words int32 [N/64, K/64 * bits, 128]."""
    n, k = codes.shape
    bits = fmt.bits
    # n = tile, warp, half, row;  k = tile, r, k8, quad, element of the pair
    v = (codes ^ fmt.flip).astype(jnp.uint32)
    v = v.reshape(n // TILE, 4, 2, 8, k // TILE, 4, 2, 4, 2)
    if bits == 4:  # one register of four words: [tile, ktile, warp, row, quad, r | k8, half, e]
        v = v.transpose(0, 4, 1, 3, 7, 5, 6, 2, 8)
        words = (v << _shifts(8, 4, 16)).sum((-1, -2, -3), dtype=jnp.uint32)
    else:  # two registers of four words: [tile, ktile, r/2, warp, row, quad, r%2, k8 | half, e]
        v = v.reshape(n // TILE, 4, 2, 8, k // TILE, 2, 2, 2, 4, 2)
        v = v.transpose(0, 4, 5, 1, 3, 8, 6, 7, 2, 9)
        words = (v << _shifts(8, 16)).sum((-1, -2), dtype=jnp.uint32)
    words = jax.lax.bitcast_convert_type(words, jnp.int32)
    return words.reshape(n // TILE, k // TILE * bits, LANES)


def unpack_tiles(words: jax.Array, fmt: WeightFormat) -> jax.Array:
    """The inverse of `pack_tiles`: codes uint8 [N, K]."""
    tiles, rows, _ = words.shape
    ktiles = rows // fmt.bits
    w = jax.lax.bitcast_convert_type(words, jnp.uint32)
    if fmt.bits == 4:
        w = w.reshape(tiles, ktiles, 4, 8, 4, 4, 1, 1, 1)
        v = (w >> _shifts(8, 4, 16)) & 0xF
        v = v.transpose(0, 2, 7, 3, 1, 5, 6, 4, 8)
    else:
        w = w.reshape(tiles, ktiles, 2, 4, 8, 4, 2, 2, 1, 1)
        v = (w >> _shifts(8, 16)) & 0xFF
        v = v.transpose(0, 3, 8, 4, 1, 2, 6, 7, 5, 9)
    codes = v.reshape(tiles * TILE, ktiles * TILE).astype(jnp.uint8)
    return codes ^ jnp.uint8(fmt.flip)


def _shifts(*steps: int) -> jax.Array:
    """Bit positions uint32 [2, ..., 2]: the sum of those steps whose index is 1."""
    shape = (2,) * len(steps)
    iota = [jax.lax.broadcasted_iota(jnp.uint32, shape, d) for d in range(len(steps))]
    return sum(i * s for i, s in zip(iota, steps, strict=True))


# -- in a kernel --------------------------------------------------------------------------------


def load_words(ref, fmt: WeightFormat) -> jax.Array:
    """The words of one tile, int32 [bits, 128] in shared memory, each thread its own."""
    return plgpu.load(ref, layout=plgpu.Layout.WG_STRIDED((fmt.bits, LANES), vec_size=4))


def load_rows(ref) -> jax.Array:
    """One value a row of a tile ([64] in shared memory), where the fragment's thread needs it."""
    return plgpu.load(ref, layout=_ROW, optimized=False)


def load_zeros(ref) -> jax.Array:
    """Zero points of a tile's rows (uint8 [64]) as `fragment` takes them: int32 [64]."""
    return load_rows(ref).astype(jnp.int32)


def fragment(words, fmt: WeightFormat, dtype, *, zeros=(), scales=()) -> jax.Array:
    """A tile's values `code - zero`, times `scale`, as the A operand of a wgmma.

    Args:
      words: what `load_words` gave.
      fmt: the format.
      dtype: bfloat16 or float16, of the result.
      zeros: () for the type's own zero, or int32 [64] zero points (`load_zeros`): one array, or
        one for each half of the tile's 64 columns (groups of 32).
      scales: () or dtype [64] arrays (`load_rows`), likewise; each product is rounded once.

    Returns:
      dtype [64, 64]; on a GPU in wgmma's register layout.
    """
    if is_interpreting():
        return fragment_twin(words, fmt, dtype, zeros=zeros, scales=scales)
    extra = (*zeros, *scales)
    layout = plgpu.Layout.WGMMA

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WG_STRIDED((fmt.bits, LANES), vec_size=4), *[_ROW] * len(extra)),
        return_type=plgpu.ShapeDtypeStruct((TILE, TILE), dtype, layout),
    )
    def convert(_, words, *rows):
        emit = _Emitter(fmt, dtype)
        zero_pairs = [emit.zero_pairs(v) for v in rows[: len(zeros)]] or [emit.zero_pairs(None)]
        scale_pairs = [emit.row_pairs(v) for v in rows[len(zeros) :]]
        per_thread = [
            vector.extract(register, [], ir.DenseI64ArrayAttr.get([i]))
            for register in words.registers.flat
            for i in range(4)
        ]
        pair = ir.VectorType.get((2,), ir.F16Type.get() if emit.half else ir.BF16Type.get())
        flat = []
        for r in range(4):
            for j in range(4):
                value = emit.values(per_thread, r, j, zero_pairs[r * len(zero_pairs) // 4])
                if scales:
                    scale = scale_pairs[r * len(scale_pairs) // 4][j % 2]
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


def release(slot, predicate=None) -> None:
    """Arrives at the barrier that gives a slot, read by threads, back to TMA.

    On a GPU the arrival orders the reads before the copy that follows (CUTLASS's pipelines rest on
    that too). The interpreter's model of the memory proxies wants a fence as well.
    """
    if is_interpreting():
        plgpu.commit_smem()
    plgpu.barrier_arrive(slot, predicate=predicate)


def scratch_type(warpgroups: int, dtype) -> plgpu.SMEM:
    """Shared memory for `multiply`, one tile a warpgroup; next to nothing on a GPU."""
    if not is_interpreting():
        return plgpu.SMEM((warpgroups, 8), dtype)
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((warpgroups, TILE, TILE), dtype, transforms=transforms)


def fragment_twin(words, fmt: WeightFormat, dtype, *, zeros=(), scales=()) -> jax.Array:
    """`fragment` in plain jax.numpy, bit for bit; every value before `scales` is exact."""

    def columns(rows):  # arrays [64] of each half (or of the whole) to [64, 64]
        return jnp.repeat(jnp.stack(rows, axis=1), TILE // len(rows), axis=1)

    codes = unpack_tiles(words[None], fmt)
    if fmt.kind == "e4m3":
        value = jax.lax.bitcast_convert_type(codes, jnp.float8_e4m3fn).astype(dtype)
    else:
        centre = columns(zeros) if zeros else fmt.zero
        signed = codes.astype(jnp.int32)
        if fmt == FORMATS[scalar_types.int4]:
            signed = (signed ^ 8) - 8
        elif fmt == FORMATS[scalar_types.int8]:
            signed = (signed ^ 128) - 128
        value = (signed - centre).astype(dtype)
    return value * columns(scales).astype(dtype) if scales else value


class _Emitter:
    """PTX for pairs of elements; a pair is an i32 that holds two 16-bit floats."""

    def __init__(self, fmt: WeightFormat, dtype):
        self.fmt = fmt
        self.half = jnp.dtype(dtype) == jnp.float16
        self.float2 = "f16x2" if self.half else "bf16x2"
        self.i32 = ir.IntegerType.get_signless(32)

    def const(self, value: int):
        value &= 0xFFFFFFFF
        signed = value - (1 << 32) if value >> 31 else value
        return arith.constant(self.i32, ir.IntegerAttr.get(self.i32, signed))

    def ptx(self, instruction: str, *args):
        """One PTX instruction on i32 registers; ints become 32-bit constants in registers."""
        args = [self.const(a) if isinstance(a, int) else a for a in args]
        operands = ", ".join(f"${i}" for i in range(len(args) + 1))
        constraints = ",".join(["=r"] + ["r"] * len(args))
        return llvm.inline_asm(self.i32, args, f"{instruction} {operands};", constraints)

    def lop3(self, word, mask: int, other, lut: int):
        """A three-input bit operation with an immediate mask in the middle."""
        if isinstance(other, int):
            other = self.const(other)
        text = f"lop3.b32 $0, $1, 0x{mask:08X}, $2, 0x{lut:02X};"
        return llvm.inline_asm(self.i32, [word, other], text, "=r,r,r")

    def shift(self, word, right: int):
        if right == 0:
            return word
        if right > 0:
            return arith.shrui(word, self.const(right))
        return arith.shli(word, self.const(-right))

    def row_pairs(self, rows):
        """The two rows' values of this thread, each in both 16-bit halves of an i32."""
        out = []
        for register in rows.registers.flat:
            width = ir.VectorType(register.type).element_type.width
            integer = ir.IntegerType.get_signless(width)
            bits = vector.bitcast(ir.VectorType.get((1,), integer), register)
            bits = vector.extract(bits, [], ir.DenseI64ArrayAttr.get([0]))
            if width < 32:
                bits = arith.extui(self.i32, bits)
            out.append(arith.muli(bits, self.const(0x00010001)))
        return out

    def zero_pairs(self, rows):
        """What to subtract from a pair, for half 0 and half 1 of the fragment's rows."""
        kind, half = self.fmt.kind, self.half
        if kind == "e4m3":
            return None
        if rows is None:
            zero = self.fmt.zero ^ self.fmt.flip  # of 4-bit types; 8-bit ones have it in `flip`
            if kind == "int4" and half:
                return [
                    self.const(0x64006400 | zero * 0x10001),
                    self.const(0x54005400 | zero * 0x100010),
                ]
            if kind == "int4":
                return [self.const(0x43004300 | zero * 0x10001)] * 2
            return [self.const(0x64806480)] * 2 if half else None
        low, high = self.row_pairs(rows)
        if kind == "int4" and half:
            return [
                arith.ori(low, self.const(0x64006400)),
                arith.ori(self.shift(high, -4), self.const(0x54005400)),
            ]
        if kind == "int4":
            return [arith.ori(v, self.const(0x43004300)) for v in (low, high)]
        if half:
            return [arith.ori(v, self.const(0x64006400)) for v in (low, high)]
        # zero - 128, from the zero's low bits and its top bit, as for the codes (_int8)
        return [self._int8(arith.xori(v, self.const(0x00800080))) for v in (low, high)]

    def _int8(self, v):
        """Two's complement bytes at bits 0 and 16 to bf16: (128 + low bits) - (128 or 256)."""
        low = self.lop3(v, 0x007F007F, 0x43004300, 0xEA)
        sign = self.lop3(v, 0x00800080, 0x43004300, 0xEA)
        return self.ptx("sub.rn.bf16x2", low, sign)

    def values(self, words, r: int, j: int, zeros):
        """Register j of the fragment's k16 step r, without scale."""
        half = j % 2
        if self.fmt.kind == "int4":
            word = words[r]
            if self.half:  # half 0 in bits 0-3, half 1 in bits 4-7 of each 16
                word = self.shift(word, 8 * (j // 2))
                mask, magic = ((0x000F000F, 0x64006400), (0x00F000F0, 0x54005400))[half]
                value = self.lop3(word, mask, magic, 0xEA)
            else:
                value = self.lop3(self.shift(word, 4 * j), 0x000F000F, 0x43004300, 0xEA)
            return self.ptx(f"sub.rn.{self.float2}", value, zeros[half])
        word = words[2 * r + j // 2]
        if self.fmt.kind == "e4m3":
            return self._e4m3(word, half)
        word = self.shift(word, 8 * half)
        if self.half:
            value = self.lop3(word, 0x00FF00FF, 0x64806480, 0x6A)  # (a & b) ^ c
            return self.ptx("sub.rn.f16x2", value, zeros[half])
        value = self._int8(word)
        return value if zeros is None else self.ptx("sub.rn.bf16x2", value, zeros[half])

    def _e4m3(self, word, half: int):
        """e4m3 bytes at bits 8 * half + {0, 16}; exact, but for NaN codes, which become 480."""
        exponent, mask, power = (
            (7, 0x3F803F80, 0x5C005C00) if self.half else (4, 0x07F007F0, 0x7B807B80)
        )  # 2^8 and 2^120: the difference of the exponents' biases
        sign = arith.andi(self.shift(word, 8 * half - 8), self.const(0x80008000))
        value = self.lop3(self.shift(word, 8 * half - exponent), mask, sign, 0xEA)
        return self.ptx(f"mul.rn.{self.float2}", value, power)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Packed int4 weights to fragments of the 8-bit tensor-core instructions (e4m3 and int8).

A tile is 64 rows (n) by 128 columns (k) of 4-bit codes, stored as 8 rows of 128 words of 32 bits,
so that the 8 words a thread of a warpgroup loads (16 bytes at a time) hold exactly the elements of
its wgmma A fragments. With thread t = 32 * warp + 4 * row + quad, its word 2 * s + half holds

    n = 16 * warp + 8 * half + row,   k = 32 * s + 16 * upper + 4 * quad + byte

which become two fragment registers, upper 0 and 1, of four bytes each.

int8: two's complement at bits 8 * byte + 4 * upper. A register is the high nibbles of the word, or
of the word shifted by 4, so it holds 16 times the values: 3 instructions for 8 codes, and the
factor goes with the scales.

e4m3: at bits 16 * upper + 4 * byte, each 16 bits being the selector of a byte permutation (PRMT).
It picks a byte of an 8-byte table by three bits of a nibble; where the fourth, h, is set, it gives
eight copies of that byte's sign bit instead. Two tables are looked up, A with the code and B with
its complement, so one of the two gives a table's byte and the other 0x00 or 0xFF, and their XOR is
the value if B's negative entries are stored inverted. All values at one s have the same sign,
which is what makes this work:

    code = (h, s, lo)     h = 0 (A, entry 4s + lo)    h = 1 (B, entry 7 - 4s - lo)
    s = 0                 1  2  3  4                  0  7  6  5
    s = 1                -5 -6 -7 -8                 -4 -3 -2 -1

So 8 codes take 9 instructions for any 16 values: 4 PRMT, 2 XOR, a shift, and 2 complements, which
are multiply-adds (w * -1 - 1) for the sake of the pipe they run on: the logic pipe, at half the
issue rate, is what limits a conversion. (16 x 28672 x 4096: 18.9 us; with the complements and the
tables made on the logic pipe 20.8; by fp16 products and the hardware's conversion to e4m3, without
tables, 20.3; int8 16.4. 2026-11-22, one H200.)

The tables hold each code times the row's group scale, rounded once to e4m3 (as upstream's lookup
tables do). The products 1..8 of a row are made by two threads, four each, with the hardware's
conversion, and the tables are shared with the row's other threads by shuffles. A negative scale's
sign is XORed in last, for nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, gpu, llvm, vector
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting
from jaxkernels.mosaic.weight_formats import LANES

TILE_N = 64  # rows of a tile
TILE_K = 128  # columns of a tile: 128 bytes of 8-bit activations, and a group of scales
WORD_ROWS = 8  # rows of 128 words that a tile is stored as
E4M3_MAX = 448.0

_ROW = plgpu.Layout.WGMMA.reduce(1)  # one value a row of a fragment
_WORDS = plgpu.Layout.WG_STRIDED((WORD_ROWS, LANES), vec_size=4)
_FRAGMENT = plgpu.Layout.WGMMA_8BIT
INT8_FACTOR = 16  # what int8 fragments hold, over the values


# -- the order of a tile ------------------------------------------------------------------------


def pack_tiles8(values: jax.Array, kind: str) -> jax.Array:
    """int8 values -8..7 [N, K], of whole tiles, to words int32 [N/64, K/128 * 8, 128].

    kind: "e4m3" or "int8", which of the two orders.
    """
    n, k = values.shape
    values = values.astype(jnp.int32)
    codes = values & 0xF if kind == "int8" else _selector(values)
    # n = tile, warp, half, row;  k = tile, register, s, upper, quad, byte
    v = codes.astype(jnp.uint32).reshape(n // TILE_N, 4, 2, 8, k // TILE_K, 2, 2, 2, 4, 4)
    v = v.transpose(0, 4, 5, 1, 3, 8, 6, 2, 7, 9)
    words = (v << _bit_positions(kind)).sum((-1, -2), dtype=jnp.uint32)
    words = jax.lax.bitcast_convert_type(words, jnp.int32)
    return words.reshape(n // TILE_N, k // TILE_K * WORD_ROWS, LANES)


def unpack_tiles8(words: jax.Array, kind: str) -> jax.Array:
    """The inverse of `pack_tiles8`: int8 values [N, K]."""
    tiles, rows, _ = words.shape
    ktiles = rows // WORD_ROWS
    w = jax.lax.bitcast_convert_type(words, jnp.uint32)
    w = w.reshape(tiles, ktiles, 2, 4, 8, 4, 2, 2, 1, 1)
    codes = ((w >> _bit_positions(kind)) & 0xF).astype(jnp.int32)
    codes = codes.transpose(0, 3, 7, 4, 1, 2, 6, 8, 5, 9).reshape(tiles * TILE_N, ktiles * TILE_K)
    values = (codes ^ 8) - 8 if kind == "int8" else _selected(codes)
    return values.astype(jnp.int8)


def _selector(values: jax.Array) -> jax.Array:
    """The code (h, s, lo) of a value -8..7."""
    negative = values < 0
    size = jnp.abs(values)
    in_a = jnp.where(negative, size > 4, (size > 0) & (size < 5))
    code_a = negative * 4 + ((size - 1) & 3)
    code_b = 8 + jnp.where(negative, 8 - size, (8 - size) & 7)
    return jnp.where(in_a, code_a, code_b)


def _selected(codes: jax.Array) -> jax.Array:
    """The value of a code (h, s, lo)."""
    negative, lo = (codes & 4) != 0, codes & 3
    a = jnp.where(negative, -5 - lo, 1 + lo)
    b = jnp.where(negative, lo - 4, (8 - lo) & 7)
    return jnp.where(codes < 8, a, b)


def _bit_positions(kind: str) -> jax.Array:
    """uint32 [upper 2, byte 4]."""
    of_upper, of_byte = (4, 8) if kind == "int8" else (16, 4)
    upper = jax.lax.broadcasted_iota(jnp.uint32, (2, 4), 0)
    return of_upper * upper + of_byte * jax.lax.broadcasted_iota(jnp.uint32, (2, 4), 1)


# -- in a kernel --------------------------------------------------------------------------------


def load_words8(ref) -> jax.Array:
    """The words of one tile, int32 [8, 128] in shared memory, each thread its own."""
    return plgpu.load(ref, layout=_WORDS)


def fragment8(words, dtype, scales=None) -> jax.Array:
    """A tile's values as the A operand of an 8-bit wgmma.

    Args:
      words: what `load_words8` gave.
      dtype: int8: 16 times the values. float8_e4m3fn: the products with `scales`, each rounded
        once, to nearest even, and kept inside e4m3's +-448.
      scales: float8_e4m3fn [64], one a row (`convert.load_rows`); None for int8.

    Returns:
      dtype [64, 128]; on a GPU in wgmma's register layout.
    """
    if is_interpreting():
        return fragment8_twin(words, dtype, scales)
    rows = () if scales is None else (scales,)

    @plgpu.inline_mgpu(
        arg_types=(_WORDS, *[_ROW] * len(rows)),
        return_type=plgpu.ShapeDtypeStruct((TILE_N, TILE_K), dtype, _FRAGMENT),
    )
    def convert(_, words, *rows):
        emit = _Emitter()
        tables = emit.scaled_tables(rows[0]) if rows else (None, None)
        per_thread = [
            vector.extract(register, [], ir.DenseI64ArrayAttr.get([i]))
            for register in words.registers.flat
            for i in range(4)
        ]
        element = emit.i8 if jnp.dtype(dtype) == jnp.int8 else ir.Float8E4M3FNType.get()
        quad = ir.VectorType.get((4,), element)
        flat = []
        for s in range(4):
            pairs = [emit.values(per_thread[2 * s + half], tables[half]) for half in range(2)]
            for upper in range(2):
                for half in range(2):
                    one = vector.broadcast(ir.VectorType.get((1,), emit.i32), pairs[half][upper])
                    flat.append(vector.bitcast(quad, one))
        layout = _FRAGMENT.to_mgpu()
        registers = np.array(flat, dtype=object)
        array = mgpu.FragmentedArray(
            _registers=registers.reshape(layout.registers_shape((TILE_N, TILE_K))),
            _layout=layout,
            _is_signed=True if element == emit.i8 else None,
        )
        return fragmented_array.optimization_barrier(array)

    return convert(words, *rows)


def fragment8_twin(words, dtype, scales=None) -> jax.Array:
    """`fragment8` in plain jax.numpy, bit for bit but for the sign of zeros."""
    if scales is None:
        return unpack_tiles8(words[None], "int8") * INT8_FACTOR
    return rounded_products(unpack_tiles8(words[None], "e4m3"), scales[:, None])


def rounded_products(values: jax.Array, scales: jax.Array) -> jax.Array:
    """values * scales, rounded once to float8_e4m3fn and kept inside +-448.

    Args:
      values: int8, -8 to 7.
      scales: float8_e4m3fn, broadcasting against values.
    """
    exact = values.astype(jnp.float32) * scales.astype(jnp.float32)
    # Rounded by arithmetic: XLA may leave out a conversion to fp8 and back (on a GPU it did).
    bits = jax.lax.bitcast_convert_type(exact, jnp.int32)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF  # 3 bits after the leading one
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
    rounded = jnp.where(jnp.abs(exact) < 2.0**-6, jnp.round(exact * 512) / 512, rounded)
    return jnp.clip(rounded, -E4M3_MAX, E4M3_MAX).astype(jnp.float8_e4m3fn)


def scratch8_type(warpgroups: int, dtype) -> plgpu.SMEM:
    """Shared memory for `convert.multiply`, one tile a warpgroup; next to nothing on a GPU."""
    if not is_interpreting():
        return plgpu.SMEM((warpgroups, 16), dtype)
    transforms = (plgpu.TilingTransform((8, TILE_K)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((warpgroups, TILE_N, TILE_K), dtype, transforms=transforms)


class _Emitter:
    """PTX on i32 registers of four bytes."""

    def __init__(self):
        self.i8 = ir.IntegerType.get_signless(8)
        self.i32 = ir.IntegerType.get_signless(32)

    def const(self, value: int):
        value &= 0xFFFFFFFF
        signed = value - (1 << 32) if value >> 31 else value
        return arith.constant(self.i32, ir.IntegerAttr.get(self.i32, signed))

    def asm(self, text: str, *args):
        """Inline PTX with one i32 result, $0; ints are constants in registers."""
        args = [self.const(a) if isinstance(a, int) else a for a in args]
        return llvm.inline_asm(self.i32, args, text, ",".join(["=r"] + ["r"] * len(args)))

    def prmt(self, low, high, selector):
        return self.asm("prmt.b32 $0, $1, $2, $3;", low, high, selector)

    def masked(self, word, mask: int, lut: int):
        """A bit operation of a word and an immediate."""
        return self.asm(f"lop3.b32 $0, $1, 0x{mask:08X}, 0, 0x{lut:02X};", word)

    def minus_one(self):
        """-1 in a register, of which ptxas does not know it: a multiply-add by it stays one."""
        return self.asm("{ .reg .b32 t; mov.u32 t, %nsmid; shr.s32 t, t, 31; not.b32 $0, t; }")

    def scaled_tables(self, scales):
        """(A0, A1, B0, B1, sign) of the two rows of this thread."""
        rows = []
        for register in scales.registers.flat:
            bits = vector.bitcast(ir.VectorType.get((1,), self.i8), register)
            bits = vector.extract(bits, [], ir.DenseI64ArrayAttr.get([0]))
            rows.append(arith.extui(self.i32, bits))
        # Thread q of a quad makes the products 1-4 (q even) or 5-8 (q odd) of row q / 2, and of
        # them two words of the row's tables: A0 and B0, or A1 and B1.
        thread = arith.index_cast(self.i32, gpu.thread_id(gpu.Dimension.x))
        odd, second = (
            arith.cmpi(arith.CmpIPredicate.ne, arith.andi(thread, self.const(bit)), self.const(0))
            for bit in (1, 2)
        )

        def pick(condition, yes: int, no: int):
            return arith.select(condition, self.const(yes), self.const(no))

        scale = self.prmt(*rows, pick(second, 0x4444, 0))
        scale = self.asm(
            "{ .reg .b16 l, h; mov.b32 {l, h}, $1; cvt.rn.f16x2.e4m3x2 $0, l; }", scale
        )
        pairs = [  # of fp16 numbers: 1, 2 and 3, 4, or 5, 6 and 7, 8
            pick(odd, high, low)
            for low, high in ((0x40003C00, 0x46004500), (0x44004200, 0x48004700))
        ]
        products = self.asm(
            "{ .reg .b16 a, b; cvt.rn.satfinite.e4m3x2.f16x2 a, $1; "
            "cvt.rn.satfinite.e4m3x2.f16x2 b, $2; mov.b32 $0, {a, b}; }",
            *[self.asm("mul.rn.f16x2 $0, $1, $2;", scale, pair) for pair in pairs],
        )
        # A0: 1 2 3 4, or A1: -5 -6 -7 -8.  B0: -1 -2 -3 -4 inverted, or B1: 5 6 7 0.
        of_a = self.asm(
            "lop3.b32 $0, $1, 0x7F7F7F7F, $2, 0xEA;", products, pick(odd, 0x80808080, 0)
        )
        of_b = self.asm(
            "lop3.b32 $0, $1, $2, $3, 0x28;",
            products,
            pick(odd, 0, 0xFFFFFFFF),
            pick(odd, 0x007F7F7F, 0x7F7F7F7F),
        )

        def share(word, q: int):  # of lane q of each four
            return self.asm(f"shfl.sync.idx.b32 $0, $1, {q}, 0x1C1F, 0xFFFFFFFF;", word)

        tables = []
        for row, bits in enumerate(rows):
            words = [share(word, 2 * row + q) for word in (of_a, of_b) for q in range(2)]
            copies = arith.muli(bits, self.const(0x01010101))
            tables.append((*words, self.masked(copies, 0x80808080, 0xC0)))
        return tables

    def values(self, word, table):
        """The two fragment registers of a word; without a table, of int8."""
        if table is None:
            shifted = arith.shli(word, self.const(4))
            return [self.masked(w, 0xF0F0F0F0, 0xC0) for w in (shifted, word)]
        a0, a1, b0, b1, sign = table
        out = []
        for selector in (word, arith.shrui(word, self.const(16))):
            inverse = self.asm("mad.lo.u32 $0, $1, $2, $2;", selector, self.minus_one())
            a = self.prmt(a0, a1, selector)
            b = self.prmt(b0, b1, inverse)
            out.append(self.asm("lop3.b32 $0, $1, $2, $3, 0x96;", a, b, sign))
        return out

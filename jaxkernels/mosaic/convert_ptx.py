# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The PTX behind `mosaic.convert`: codes in a word to pairs of 16-bit floats in a register.

`Emitter` writes it, one register of a wgmma fragment at a time. What the words hold, and what the
values must be, is said in `mosaic.convert`; its twin says the same in jax.numpy.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, vector

from jaxkernels.mosaic.weight_formats import PLACES, exponent_bias

FOLD = 64  # log2 of what is left out of scaled weights in bfloat16
_BOTH = 0x10001  # a 16-bit constant times this is in both halves of a word
_2_127, _MINUS_2_127 = 0x7F007F00, 0xFF00FF00  # bfloat16


def power_of_two(exponent: int, half: bool) -> int:
    """2^exponent as float16 (or bfloat16) in both halves of a word."""
    return ((exponent + 15) << 10 if half else (exponent + 127) << 7) * _BOTH


class Emitter:
    """PTX for pairs of elements; a pair is an i32 that holds two 16-bit floats.

    Args:
      fmt: the `WeightFormat`.
      dtype: bfloat16 or float16.
      scaled: whether values are multiplied by what `scale_pairs` gives.
      zeros: whether there are zero points.
    """

    def __init__(self, fmt, dtype, scaled: bool, zeros: bool = False):
        self.fmt = fmt
        self.half = jnp.dtype(dtype) == jnp.float16
        self.float2 = "f16x2" if self.half else "bf16x2"
        self.i32 = ir.IntegerType.get_signless(32)
        # The power of two that moved bits lack is in the scale, all but 2^-FOLD of it.
        self.folded = scaled and not self.half
        # (code - zero) * scale in one operation: exact before it is rounded, as zero * scale is
        # exact where zero is a power of two.
        self.fused = self.folded and not fmt.is_float and not zeros

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

    def both(self, word, half: str):
        """The low ("l") or high ("h") half of a word in both.

        Moves, which a product that follows takes in (`.H0_H0`), where a multiplication or a
        permutation would be one instruction more.
        """
        text = f"{{ .reg .b16 l, h; mov.b32 {{l, h}}, $1; mov.b32 $0, {{{half}, {half}}}; }}"
        return llvm.inline_asm(self.i32, [word], text, "=r,r")

    def row_words(self, rows):
        """The two rows' values of this thread, as i32 without sign extension."""
        out = []
        for register in rows.registers.flat:
            width = ir.VectorType(register.type).element_type.width
            integer = ir.IntegerType.get_signless(width)
            bits = vector.bitcast(ir.VectorType.get((1,), integer), register)
            bits = vector.extract(bits, [], ir.DenseI64ArrayAttr.get([0]))
            out.append(arith.extui(self.i32, bits) if width < 32 else bits)
        return out

    def row_pairs(self, rows):
        """The two rows' values of this thread, each in both 16-bit halves of an i32."""
        return [self.both(v, "l") for v in self.row_words(rows)]

    def scale_pairs(self, scales, kind: str):
        """What to multiply a pair by, for half 0 and half 1 of the fragment's rows: a list of as
        many parts of the tile's columns as have scales of their own."""
        if kind == "float":
            parts = [self.row_pairs(rows) for rows in scales]
            if self.fused:
                return [[self._factors(v, half) for half, v in enumerate(p)] for p in parts]
            if self.folded:
                power = self._fold()
                parts = [[self.ptx("mul.rn.bf16x2", v, power) for v in pair] for pair in parts]
            return parts
        (rows,) = scales
        codes = ir.VectorType(rows.registers.flat[0].type).element_type.width // 8
        decode = self._e4m3_scales if kind == "e4m3" else self._e8m0_scales
        low, high = (decode(word, codes) for word in self.row_words(rows))
        return list(zip(low, high, strict=True))

    def _factors(self, scale, half: int):
        """What to multiply a bare code by and then to add, for half 0 or 1 of the rows."""
        place = 4 * half if self.fmt.kind == "int4" else 0  # of the code in its 16 bits
        factor = self.ptx("mul.rn.bf16x2", scale, power_of_two(133 - place - FOLD, False))
        zero = self.fmt.zero ^ self.fmt.flip
        if not zero:
            return factor, self.const(0)
        power = power_of_two(zero.bit_length() - 1 - FOLD, False) | 0x80008000
        return factor, self.ptx("mul.rn.bf16x2", scale, power)

    def _fold(self) -> int:
        return power_of_two(exponent_bias(self.fmt, jnp.bfloat16) - FOLD, False)

    def _e4m3_scales(self, word, codes: int):
        """e4m3 codes to pairs of equal floats, two codes at a time."""
        out = []
        for i in range(0, codes, 2):
            # Codes i and i + 1 in the halves of a word, with their signs from bit 7 up.
            signed = self.ptx("prmt.b32", word, 0, 0x8080 | i * 0x11 | (i + 1) * 0x1100)
            if self.half:
                pair = arith.andi(self.shift(signed, -7), self.const(0xBF80BF80))
                pair = self.ptx("mul.rn.f16x2", pair, power_of_two(8, True))
            else:  # 2^120 for the bias, and what the weights lack: two factors, each in range
                pair = arith.andi(self.shift(signed, -4), self.const(0x87F087F0))
                exponent = 120 + exponent_bias(self.fmt, jnp.bfloat16) - FOLD
                for factor in (exponent // 2, exponent - exponent // 2):
                    pair = self.ptx("mul.rn.bf16x2", pair, power_of_two(factor, False))
            out += [self.both(pair, "l"), self.both(pair, "h")]
        return out[:codes]

    def _e8m0_scales(self, word, codes: int):
        """Exponents to pairs of equal floats; too large ones become infinite."""
        out = []
        if self.half:
            for i in range(codes):
                top = self.ptx("prmt.b32", word, 0, 0x0444 | i << 12)
                number = self.shift(top, 1)  # a float32
                out.append(self.ptx("cvt.rn.f16x2.f32", number, number))
            return out
        added = (exponent_bias(self.fmt, jnp.bfloat16) - FOLD) * _BOTH
        for i in range(0, codes, 2):
            low = self.ptx("prmt.b32", word, 0, 0x4040 | i | (i + 1) << 8)
            exponents = self.ptx("min.u16x2", arith.addi(low, self.const(added)), 0xFF * _BOTH)
            pair = self.shift(exponents, -7)
            out += [self.both(pair, "l"), self.both(pair, "h")]
        return out[:codes]

    def zero_pairs(self, rows):
        """The zero as `values` takes it, for half 0 and half 1 of the fragment's rows."""
        if self.fmt.is_float or self.fused:
            return None
        if rows is None:
            zero = self.const((self.fmt.zero ^ self.fmt.flip) * _BOTH)
            low = high = zero
        else:
            low, high = self.row_pairs(rows)
        four = self.fmt.kind == "int4"
        if self.half:
            magic, places = (0x64006400, 0x54005400) if four else (0x64006400,) * 2, (0, 4 * four)
            moved = (self.shift(low, -places[0]), self.shift(high, -places[1]))
            return [arith.ori(v, self.const(m)) for v, m in zip(moved, magic, strict=True)]
        if four:  # -(32 + zero / 4) and -zero / 4
            low = arith.ori(low, self.const(0xC200C200))
            return [low, self.ptx("mul.rn.bf16x2", self.shift(high, -4), _MINUS_2_127)]
        return [self.ptx("mul.rn.bf16x2", v, _MINUS_2_127) for v in (low, high)]

    def _code(self, word, half: int):
        """The codes of a pair at bits 0 (or 4, for half 1 of int4) of 16, and nothing else."""
        if self.fmt.kind == "int4":
            return arith.andi(word, self.const((0x000F000F, 0x00F000F0)[half]))
        if half:
            return self.ptx("prmt.b32", word, 0, 0x4341)
        return arith.andi(word, self.const(0x00FF00FF))

    def scaled_values(self, words, r: int, j: int, factors):
        """Register j of the fragment's k16 step r, with the scale, where that is `fused`."""
        half = j % 2
        if self.fmt.kind == "int4":
            code = self._code(self.shift(words[r], 8 * (j // 2)), half)
        else:
            code = self._code(words[2 * r + j // 2], half)
        return self.ptx("fma.rn.bf16x2", code, *factors)

    def values(self, words, r: int, j: int, zeros):
        """Register j of the fragment's k16 step r, without scale."""
        half = j % 2
        if self.fmt.is_float:
            four = self.fmt.kind == "e2m1"
            bits = self._float(words[r], j) if four else self._float(words[2 * r + j // 2], half)
            if self.folded:
                return bits
            bias = exponent_bias(self.fmt, jnp.float16 if self.half else jnp.bfloat16)
            return self.ptx(f"mul.rn.{self.float2}", bits, power_of_two(bias, self.half))
        if self.fmt.kind == "int4":  # half 0 in bits 0-3, half 1 in bits 4-7 of each 16
            word = self.shift(words[r], 8 * (j // 2))
            if self.half:
                mask, magic = ((0x000F000F, 0x64006400), (0x00F000F0, 0x54005400))[half]
                return self.ptx("sub.rn.f16x2", self.lop3(word, mask, magic, 0xEA), zeros[half])
            if half:
                return self.ptx("fma.rn.bf16x2", self._code(word, 1), _2_127, zeros[1])
            value = self.lop3(word, 0x000F000F, 0x43004300, 0xEA)
            return self.ptx("fma.rn.bf16x2", value, power_of_two(-2, False), zeros[0])
        word = words[2 * r + j // 2]
        if self.half:
            value = self.lop3(self.shift(word, 8 * half), 0x00FF00FF, 0x64006400, 0xEA)
            return self.ptx("sub.rn.f16x2", value, zeros[half])
        return self.ptx("fma.rn.bf16x2", self._code(word, half), _2_127, zeros[half])

    def _float(self, word, index: int):
        """Codes in a float's places; bits that move alike move at once. e4m3's NaN becomes 480."""
        places = PLACES[self.fmt.kind][index]
        first = (10 if self.half else 7) - {"e2m1": 1, "e4m3": 3}[self.fmt.kind]
        targets = (*range(first, first + len(places) - 1), 15)
        masks: dict[int, int] = {}
        for source, target in zip(places, targets, strict=True):
            masks[source - target] = masks.get(source - target, 0) | _BOTH << target
        value = None
        for shift, mask in masks.items():
            moved = self.shift(word, shift)
            if value is None:
                value = arith.andi(moved, self.const(mask))
            else:
                value = self.lop3(moved, mask, value, 0xEA)
        return value

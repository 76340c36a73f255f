# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""8-bit products that start from nothing, in tiles whose places are numbers.

Pallas's accumulators begin with zeros in registers. Where two of them are in flight, ptxas clears
the registers of the second with a move each and waits for the first (0.11.2: C7517; with 64
registers in each also C7512, every wgmma in turn). `start_product` has wgmma ignore what its
registers held, so that nothing is cleared: two products of 64 x 128 fit beside their sum.

It also takes operands as places: numbers that can be known before the product's turn has come. (A
reference to a slot becomes a descriptor in twenty instructions, one after the other.)

    rows, cols = Tiles(smem["rows"]), Tiles(smem["cols"])
    a, b = rows.place(slot), cols.place(slot)
    first = start_product(rows, a, cols, b, (64, n))
    second = start_product(rows, rows.below(a, 64), cols, b, (64, n))
    sum_ = finish_product(first, in_flight=1)         # second still runs
    sum_ += finish_product(second, in_flight=0)
"""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm

from jaxkernels.mosaic.interpret import is_interpreting
from jaxkernels.mosaic.smem import address

_FP8 = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}
_LINE = 128  # bytes of K in a product: one line of the 128-byte swizzle, four instructions
_IN_FLIGHT = plgpu.Layout._WGMMA_ACC_32BIT  # one register an element, as wgmma takes them
_DESCRIPTOR_UNIT = 16  # bytes
# Of a tile with a swizzle of 128 bytes: groups of 8 rows lie 1024 bytes apart.
_DESCRIPTOR_HIGH = 1 << 30 | 1024 // _DESCRIPTOR_UNIT


class Tiles:
    """The tiles of a ring of stages (`smem.swizzled`, one line of 128 bytes wide), for wgmma.

    A place in it is an int32: on a GPU the low half of a descriptor; interpreted, where the rows
    begin, counted in rows of the ring.
    """

    def __init__(self, ref):
        self.ref, self.dtype = ref, jnp.dtype(ref.dtype)
        self.rows = ref.shape[1] if is_interpreting() else ref.shape[1] * 8
        self.unit = 1 if is_interpreting() else _LINE // _DESCRIPTOR_UNIT
        self.base = jnp.int32(0) if is_interpreting() else _descriptor(ref.at[0])

    def place(self, slot, row=0) -> jax.Array:
        """Where the tile in this slot begins, or its rows from `row`, a multiple of 8, on."""
        return self.base + (slot * self.rows + row) * self.unit

    def anew(self) -> Tiles:
        """The same tiles, found anew: no compiler knows that it is where they were before.

        Places in slots that are the same in each pass of a loop would all be found before it, and
        the registers that hold them are those of products (172 bytes of spills, 2026-11-28).
        """
        again = copy.copy(self)
        again.base = self.base if is_interpreting() else _unknown(self.base)
        return again

    def below(self, place, rows: int) -> jax.Array:
        """Where the rows `rows` below a place begin."""
        return place + rows * self.unit

    def interpreted(self, place, rows: int):
        """The reference that a place stands for, interpreted."""
        slot, row = jax.lax.div(place, jnp.int32(self.rows)), jax.lax.rem(place, self.rows)
        return self.ref.at[slot].at[pl.ds(row, rows)]


def _descriptor(tile) -> jax.Array:
    """The low half of a tile's descriptor, int32: its address in units of 16 bytes."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType((plgpu.SwizzleTransform(_LINE),)),),
        return_type=plgpu.ShapeDtypeStruct((), jnp.int32, plgpu.Layout.WG_SPLAT(())),
    )
    def low_half(_, tile):
        i32 = ir.IntegerType.get_signless(32)
        value = arith.shrui(address(tile), arith.constant(i32, _DESCRIPTOR_UNIT.bit_length() - 1))
        return mgpu.FragmentedArray.splat(value, (), is_signed=True)

    return low_half(tile)


def _unknown(number) -> jax.Array:
    """An int32 of which the compiler knows nothing."""
    splat = plgpu.Layout.WG_SPLAT(())

    @plgpu.inline_mgpu(arg_types=(splat,), return_type=plgpu.ShapeDtypeStruct((), jnp.int32, splat))
    def move(_, number):
        i32, text = ir.IntegerType.get_signless(32), "mov.b32 $0, $1;"
        value = [number.registers.item()]
        value = llvm.inline_asm(i32, value, text, "=r,r", has_side_effects=True)
        return mgpu.FragmentedArray.splat(value, (), is_signed=True)

    return move(number)


def start_product(
    rows: Tiles,
    a,
    cols: Tiles,
    b,
    shape: tuple[int, int],
    over: tuple[jax.Array, jax.Array] | None = None,
):
    """float32 [64, n] = a @ b.T of 128 float8 elements of K, still running when this returns.

    Args:
      rows, a: where 64 rows are: a place in `rows`.
      cols, b: where n rows are, likewise.
      shape: (64, n).
      over: (product, never): an earlier product, finished and used, whose registers this one
        takes, and an int32 that is 0 whenever the kernel runs, though no compiler can know.
        Without it ptxas gives each of several products a range of registers of its own.
    """
    if is_interpreting():

        def product(acc):
            left, right = rows.interpreted(a, shape[0]), cols.interpreted(b, shape[1])
            plgpu.wgmma(acc, left, right.T)
            return acc[...]

        return pl.run_scoped(product, plgpu.ACC(shape, jnp.float32))

    kinds = f"{_FP8[rows.dtype.name]}.{_FP8[cols.dtype.name]}"
    number = plgpu.Layout.WG_SPLAT(())
    extra = () if over is None else over

    @plgpu.inline_mgpu(
        arg_types=(number, number, *(_IN_FLIGHT, number)[: len(extra)]),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, _IN_FLIGHT),
    )
    def start(_, a, b, *over):
        layout = _IN_FLIGHT.to_mgpu()
        registers = list(over[0].registers.flat) if over else []
        never = over[1].registers.item() if over else None
        places = [v.registers.item() for v in (a, b)]
        registers = _emit(kinds, shape[1], places, registers, never)
        registers = np.array(registers, dtype=object).reshape(layout.registers_shape(shape))
        return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)

    return start(a, b, *extra)


def finish_product(product: jax.Array, in_flight: int) -> jax.Array:
    """The product's values, once at most `in_flight` of those started later still run."""
    if is_interpreting():
        return product
    plgpu.wgmma_wait(in_flight)
    return plgpu.layout_cast(product, plgpu.Layout.WGMMA)


def computed_here(value: jax.Array) -> jax.Array:
    """`value`, float32 [64, n] in wgmma's layout, not moved behind the next branch.

    LLVM would move what is used only there; a product that is to take an earlier one's registers
    then gets others, and all of them no longer fit.
    """
    if is_interpreting():
        return value

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA,),
        return_type=plgpu.ShapeDtypeStruct(value.shape, value.dtype, plgpu.Layout.WGMMA),
    )
    def hold(_, value):
        return fragmented_array.optimization_barrier(value)

    return hold(value)


def _emit(kinds, cols, places, registers, never):
    """Four wgmmas over 32 bytes of K each; the first adds to `registers` if `never`, or nothing."""
    i32, i64 = (ir.IntegerType.get_signless(bits) for bits in (32, 64))
    count = cols // 2
    register = ir.VectorType.get((1,), ir.F32Type.get())
    result = llvm.StructType.get_literal([register] * count)
    nvvm.wgmma_fence_aligned()
    for step in range(4):
        descriptors = []
        for place in places:  # 32 bytes on with each step; the high half is the same for all
            low = arith.addi(place, arith.constant(i32, step * 32 // _DESCRIPTOR_UNIT))
            wide = arith.extui(i64, low)
            descriptors.append(arith.ori(wide, arith.constant(i64, _DESCRIPTOR_HIGH << 32)))
        inputs = [*registers, *descriptors]
        constraints = ["=f"] * count + [str(i) for i in range(len(registers))] + ["l", "l"]
        a_at = count + len(registers)
        add = str(int(step > 0))
        if step == 0 and never is not None:
            inputs.append(never)
            constraints.append("r")
            add = f"${a_at + 2}"
        text = (
            f"{{ .reg .pred p; setp.ne.b32 p, {add}, 0; "
            f"wgmma.mma_async.sync.aligned.m64n{cols}k32.f32.{kinds} "
            f"{{{','.join(f'${i}' for i in range(count))}}}, ${a_at}, ${a_at + 1}, p, 1, 1; }}"
        )
        struct = llvm.inline_asm(
            result, inputs, text, ",".join(constraints), asm_dialect=0, has_side_effects=True
        )
        registers = [llvm.extractvalue(register, struct, [i]) for i in range(count)]
    void = ir.Type.parse("!llvm.void")
    llvm.inline_asm(void, [], "wgmma.commit_group.sync.aligned;", "", has_side_effects=True)
    return registers

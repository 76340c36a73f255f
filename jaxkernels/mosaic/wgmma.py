# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""8-bit products that start from nothing, and turns at the tensor core.

Pallas's accumulators begin with zeros in registers. Where two of them are in flight, ptxas clears
the registers of the second with a move each and waits for the first (0.11.2: C7517; with 64
registers in each also C7512, every wgmma in turn). `start_product` has wgmma ignore what its
registers held, so that nothing is cleared: two products of 64 x 128 fit beside their sum.

It also takes operands as places: numbers that can be known before the product's turn has come. (A
reference to a slot becomes a descriptor in twenty instructions, one after the other.)

    rows, cols = Tiles(smem["rows"]), Tiles(smem["cols"])
    a, b = rows.place(slot, 0, 64), cols.place(slot, 0, n)
    first = start_product(rows, a, cols, b, (64, n))
    ...
    sum_ = finish_product(first, in_flight=0)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.mosaic.gpu import utils as _utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm, vector

from jaxkernels.mosaic.interpret import is_interpreting

_FP8 = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}
_LINE = 128  # bytes of K in a product: one line of the 128-byte swizzle, four instructions
_FRAGMENT = plgpu.Layout.WG_STRIDED((16, 128), vec_size=1)  # 16 registers a thread
_IN_FLIGHT = plgpu.Layout._WGMMA_ACC_32BIT  # one register an element, as wgmma takes them
_DESCRIPTOR_UNIT = 16  # bytes
# Of a tile with a swizzle of 128 bytes: groups of 8 rows lie 1024 bytes apart.
_DESCRIPTOR_HIGH = 1 << 30 | 1024 // _DESCRIPTOR_UNIT
_FIRST_TURN = 8  # named barrier; Mosaic's own are 0 and one for each warpgroup


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
    def address(_, tile):
        i32 = ir.IntegerType.get_signless(32)
        number = llvm.ptrtoint(i32, _utils.memref_ptr(tile))
        value = arith.shrui(number, arith.constant(i32, _DESCRIPTOR_UNIT.bit_length() - 1))
        return mgpu.FragmentedArray.splat(value, (), is_signed=True)

    return address(tile)


def load_rows_once(tiles: Tiles, place) -> jax.Array:
    """64 rows of 128 float8 elements as wgmma takes them from registers: int32 [16, 128].

    Products with several tiles then read them from shared memory once, not once each. Interpreted,
    the place itself: there wgmma knows both operands in shared memory only.
    """
    if is_interpreting():
        return place

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WG_SPLAT(()),),
        return_type=plgpu.ShapeDtypeStruct((16, 128), jnp.int32, _FRAGMENT),
    )
    def load(_, place):
        i32 = ir.IntegerType.get_signless(32)

        def constant(value):
            return arith.constant(i32, value)

        # Lane l reads row l % 16 of its warp's 16, the first or (l >= 16) second 16 bytes of 32;
        # the swizzle exchanges the 16-byte pieces of a line by the row's number in its eight.
        lane = arith.remui(_utils.thread_idx(), constant(32))
        warp = arith.remui(arith.divui(_utils.thread_idx(), constant(32)), constant(4))
        row = arith.addi(arith.muli(warp, constant(16)), arith.remui(lane, constant(16)))
        piece = arith.xori(arith.divui(lane, constant(16)), arith.remui(lane, constant(8)))
        offset = arith.addi(arith.muli(row, constant(_LINE)), arith.muli(piece, constant(16)))
        base = arith.muli(place.registers.item(), constant(_DESCRIPTOR_UNIT))
        address = arith.addi(base, offset)
        result = llvm.StructType.get_literal([i32] * 4)
        one = ir.VectorType.get((1,), i32)
        registers = []
        for step in range(4):
            at = arith.xori(address, constant(32 * step))
            text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
            four = llvm.inline_asm(result, [at], text, "=r,=r,=r,=r,r", has_side_effects=True)
            registers += [vector.broadcast(one, llvm.extractvalue(i32, four, [i])) for i in range(4)]
        return mgpu.FragmentedArray(
            _registers=np.array(registers, dtype=object),
            _layout=mgpu.WGStridedFragLayout((16, 128), vec_size=1),
            _is_signed=True,
        )

    return load(place)


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
      rows, a: 64 rows: where they are, a place in `rows`, or what `load_rows_once` gave.
      cols, b: n rows, likewise.
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
    in_registers, number = a.ndim > 0, plgpu.Layout.WG_SPLAT(())
    extra = () if over is None else over

    @plgpu.inline_mgpu(
        arg_types=(
            _FRAGMENT if in_registers else number,
            number,
            *(_IN_FLIGHT, number)[: len(extra)],
        ),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, _IN_FLIGHT),
    )
    def start(_, a, b, *over):
        layout = _IN_FLIGHT.to_mgpu()
        registers = list(over[0].registers.flat) if over else []
        never = over[1].registers.item() if over else None
        held = list(a.registers.flat) if in_registers else None
        places = [v.registers.item() for v in ((b,) if in_registers else (a, b))]
        registers = _emit(kinds, shape[1], held, places, registers, never)
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


def _emit(kinds, cols, held, places, registers, never):
    """Four wgmmas over 32 bytes of K each; the first adds to `registers` if `never`, or nothing.

    `places` are both operands', or b's alone where a's rows are `held`, four registers a wgmma.
    """
    i32, i64 = (ir.IntegerType.get_signless(bits) for bits in (32, 64))
    count = cols // 2
    register = ir.VectorType.get((1,), ir.F32Type.get())
    result = llvm.StructType.get_literal([register] * count)
    nvvm.wgmma_fence_aligned()
    for step in range(4):
        quad = [] if held is None else held[4 * step : 4 * step + 4]
        quad = [vector.extract(r, [], ir.DenseI64ArrayAttr.get([0])) for r in quad]
        descriptors = []
        for place in places:  # 32 bytes on with each step; the high half is the same for all
            low = arith.addi(place, arith.constant(i32, step * 32 // _DESCRIPTOR_UNIT))
            wide = arith.extui(i64, low)
            descriptors.append(arith.ori(wide, arith.constant(i64, _DESCRIPTOR_HIGH << 32)))
        inputs = [*registers, *quad, *descriptors]
        constraints = ["=f"] * count + [str(i) for i in range(len(registers))]
        constraints += ["r"] * len(quad) + ["l"] * len(descriptors)
        at = [f"${i}" for i in range(count + len(registers), count + len(inputs))]
        a = f"{{{','.join(at[:4])}}}" if quad else at[0]
        b = at[-1]
        add = str(int(step > 0))
        if step == 0 and never is not None:
            inputs.append(never)
            constraints.append("r")
            add = f"${count + len(inputs) - 1}"
        text = (
            f"{{ .reg .pred p; setp.ne.b32 p, {add}, 0; "
            f"wgmma.mma_async.sync.aligned.m64n{cols}k32.f32.{kinds} "
            f"{{{','.join(f'${i}' for i in range(count))}}}, {a}, {b}, p, 1, 1; }}"
        )
        struct = llvm.inline_asm(
            result, inputs, text, ",".join(constraints), asm_dialect=0, has_side_effects=True
        )
        registers = [llvm.extractvalue(register, struct, [i]) for i in range(count)]
    _void("wgmma.commit_group.sync.aligned;")
    return registers


# -- turns of two warpgroups --------------------------------------------------------------------
#
# Left alone, the warpgroups of a block start their products together, share the tensor core, and
# then both leave it idle while they work in registers. In turns, one's products run under the
# other's work. Only speed depends on the order: interpreted, there is none.


def wait_for_turn(warpgroup) -> None:
    """Waits until the other of warpgroups 0 and 1 has passed the turn on."""
    _turn("sync", warpgroup)


def pass_turn(warpgroup) -> None:
    """Gives the other of warpgroups 0 and 1 its turn. Warpgroup 1 does so once to begin with."""
    _turn("arrive", 1 - warpgroup)


def _turn(operation: str, warpgroup) -> None:
    if is_interpreting():
        return

    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WG_SPLAT(()),))
    def emit(_, barrier):
        _void(f"bar.{operation} $0, 256;", [barrier.registers.item()], "r")

    emit(warpgroup + _FIRST_TURN)


def _void(text: str, inputs=(), constraints: str = "") -> None:
    void = ir.Type.parse("!llvm.void")
    llvm.inline_asm(void, list(inputs), text, constraints, has_side_effects=True)

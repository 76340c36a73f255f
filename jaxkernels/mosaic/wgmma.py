# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""8-bit products that start from nothing, and turns at the tensor core.

Pallas's accumulators begin with zeros in registers. Where two of them are in flight, ptxas clears
the registers of the second with a move each and waits for the first (0.11.2: C7517; with 64
registers in each also C7512, every wgmma in turn). `start_product` has wgmma ignore what its
registers held, so that nothing is cleared: two products of 64 x 128 fit beside their sum.

    first = start_product(a.at[0], b.at[0], (64, n))
    second = start_product(a.at[1], b.at[1], (64, n))
    sum_ = finish_product(first, in_flight=1)         # second still runs
    sum_ += finish_product(second, in_flight=0)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import mma_utils
from jax.experimental.mosaic.gpu import utils as _utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, nvvm, vector

from jaxkernels.mosaic.interpret import is_interpreting

_FP8 = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}
_LINE = 128  # bytes of K in a product: one line of the 128-byte swizzle, four instructions
_FRAGMENT = plgpu.Layout.WG_STRIDED((16, 128), vec_size=1)  # 16 registers a thread
_IN_FLIGHT = plgpu.Layout._WGMMA_ACC_32BIT  # one register an element, as wgmma takes them
_FIRST_TURN = 8  # named barrier; Mosaic's own are 0 and one for each warpgroup


def load_rows_once(a) -> jax.Array:
    """64 rows of 128 float8 elements as wgmma takes them from registers: int32 [16, 128].

    Products with several tiles then read them from shared memory once, not once each. Interpreted,
    the tile itself: there wgmma knows both operands in shared memory only.

    Args:
      a: a swizzled tile of 64 rows, indexed to its slot.
    """
    if is_interpreting():
        return a

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType((plgpu.SwizzleTransform(_LINE),)),),
        return_type=plgpu.ShapeDtypeStruct((16, 128), jnp.int32, _FRAGMENT),
    )
    def load(_, a):
        i32 = ir.IntegerType.get_signless(32)

        def constant(value):
            return arith.constant(i32, value)

        # Lane l reads row l % 16 of its warp's 16, the first or (l >= 16) second 16 bytes of 32;
        # the swizzle exchanges the 16-byte pieces of a line by the row's number in its eight.
        lane = arith.remui(_utils.thread_idx(), constant(32))
        warp = arith.remui(arith.divui(_utils.thread_idx(), constant(32)), constant(4))
        row = arith.addi(arith.muli(warp, constant(16)), arith.remui(lane, constant(16)))
        piece = arith.xori(arith.divui(lane, constant(16)), arith.remui(lane, constant(8)))
        place = arith.addi(arith.muli(row, constant(_LINE)), arith.muli(piece, constant(16)))
        base = llvm.ptrtoint(i32, _utils.memref_ptr(a))
        address = arith.addi(base, place)
        result = llvm.StructType.get_literal([i32] * 4)
        registers = []
        for step in range(4):
            at = arith.xori(address, constant(32 * step))
            text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
            four = llvm.inline_asm(result, [at], text, "=r,=r,=r,=r,r", has_side_effects=True)
            registers += [llvm.extractvalue(i32, four, [i]) for i in range(4)]
        one = ir.VectorType.get((1,), i32)
        registers = [vector.broadcast(one, r) for r in registers]
        return mgpu.FragmentedArray(
            _registers=np.array(registers, dtype=object),
            _layout=mgpu.WGStridedFragLayout((16, 128), vec_size=1),
            _is_signed=True,
        )

    return load(a)


def start_product(a, b, shape: tuple[int, int], over: tuple[jax.Array, jax.Array] | None = None):
    """float32 [64, n] = a @ b.T of 128 float8 elements of K, still running when this returns.

    Args:
      a, b: swizzled tiles (see `smem`) of 64 and n rows, indexed to their slot; or a from
        `load_rows_once`, of b's dtype.
      shape: (64, n).
      over: (product, never): an earlier product, finished and used, whose registers this one
        takes, and an int32 that is 0 whenever the kernel runs, though no compiler can know.
        Without it ptxas gives each of several products a range of registers of its own.
    """
    if is_interpreting():

        def product(acc):
            plgpu.wgmma(acc, a, b.T)
            return acc[...]

        return pl.run_scoped(product, plgpu.ACC(shape, jnp.float32))

    in_registers = a.dtype == jnp.int32
    kind = _FP8[jnp.dtype(b.dtype).name]
    kinds = f"{kind if in_registers else _FP8[jnp.dtype(a.dtype).name]}.{kind}"
    tile = plgpu.RefType((plgpu.SwizzleTransform(_LINE),))
    extra = () if over is None else over
    first = _FRAGMENT if in_registers else tile

    @plgpu.inline_mgpu(
        arg_types=(first, tile, *(_IN_FLIGHT, plgpu.Layout.WG_SPLAT(()))[: len(extra)]),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, _IN_FLIGHT),
    )
    def start(_, a, b, *over):
        layout = _IN_FLIGHT.to_mgpu()
        registers = list(over[0].registers.flat) if over else []
        never = over[1].registers.item() if over else None
        rows = list(a.registers.flat) if in_registers else None
        operands = _descriptors(None if in_registers else a, b, shape)
        registers = _emit(kinds, shape[1], rows, operands, registers, never)
        registers = np.array(registers, dtype=object).reshape(layout.registers_shape(shape))
        return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)

    return start(a, b, *extra)


def finish_product(product: jax.Array, in_flight: int) -> jax.Array:
    """The product's values, once at most `in_flight` of those started later still run."""
    if is_interpreting():
        return product
    plgpu.wgmma_wait(in_flight)
    return plgpu.layout_cast(product, plgpu.Layout.WGMMA)


def _descriptors(a, b, shape):
    """The shared-memory descriptors of both operands' first 32 bytes of K."""
    rows, cols = shape
    first = None
    if a is not None:
        (first, _), _, _ = mma_utils.create_descriptor(
            a, swizzle=_LINE, large_tile=(rows, _LINE), group_size=(rows, _LINE),
            logical_k_major=False,
        )  # fmt: skip
    (second, _), _, _ = mma_utils.create_descriptor(
        mgpu.memref_transpose(b, (1, 0, 3, 2)),
        swizzle=_LINE,
        large_tile=(_LINE, _LINE),
        group_size=(_LINE, cols),
        logical_k_major=True,
    )
    return [d for d in (first, second) if d is not None]


def _emit(kinds, cols, rows, descriptors, registers, never):
    """Four wgmmas over 32 bytes of K each; the first adds to `registers` if `never`, or nothing.

    `descriptors` are both operands', or b's where a's `rows` are registers, four a wgmma.
    """
    i64 = ir.IntegerType.get_signless(64)
    count = cols // 2
    register = ir.VectorType.get((1,), ir.F32Type.get())
    result = llvm.StructType.get_literal([register] * count)
    nvvm.wgmma_fence_aligned()
    for step in range(4):
        quad = [] if rows is None else rows[4 * step : 4 * step + 4]
        quad = [vector.extract(r, [], ir.DenseI64ArrayAttr.get([0])) for r in quad]
        inputs = [*registers, *quad, *descriptors]
        constraints = ["=f"] * count + [str(i) for i in range(len(registers))]
        constraints += ["r"] * len(quad) + ["l"] * len(descriptors)
        at = [f"${i}" for i in range(count + len(registers), count + len(inputs))]
        a = f"{{{','.join(at[:4])}}}" if quad else at[0]
        b = at[len(quad) + len(descriptors) - 1]
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
        # 32 bytes on, in the descriptor's units of 16.
        two, flags = arith.constant(i64, 2), llvm.IntegerOverflowFlags.none
        descriptors = [llvm.add(d, two, overflow_flags=flags) for d in descriptors]
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

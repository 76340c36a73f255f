# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Swizzled shared-memory tiles that TMA fills and wgmma reads, at any global shape.

A tile is `rows` lines of 128 bytes (of 64 or 32 for outputs), swizzled over a line: what wgmma
wants of a K-major operand and what TMA writes in one box. Pallas's own `TilingTransform` would
tile the *global* array too, which then must be a whole number of tiles. Here only the shared side
is tiled (`matrix`), and TMA sees a plain two-dimensional box (`window`), so it zero-fills and
clips at ragged edges by itself.

    scratch = swizzled(slots, rows, dtype)
    copy_in(gmem.at[pl.ds(r, rows), pl.ds(k, width)], window(scratch.at[slot]), barrier)
    wgmma(acc, matrix(a.at[slot]), matrix(b.at[slot]).T)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, nvvm
from jax._src.pallas.mosaic_gpu import core as _core
from jax._src.state import types as _state
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils as _utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.arrivals import arrive_when_copied
from jaxkernels.mosaic.interpret import is_interpreting

LINE_BYTES = 128
_SWIZZLE_ROWS = 8


def swizzled(slots: tuple[int, ...], rows: int, dtype, line_bytes: int = LINE_BYTES):
    """Scratch of `slots` tiles, each `rows` (a multiple of 8) lines of 32, 64 or 128 bytes."""
    if rows % _SWIZZLE_ROWS:
        raise ValueError(f"rows: expected a multiple of {_SWIZZLE_ROWS}, got {rows}")
    width = line_bytes // jnp.dtype(dtype).itemsize
    if is_interpreting():  # the interpreter keeps no physical order
        return plgpu.SMEM((*slots, rows, width), dtype)
    shape = (*slots, rows // _SWIZZLE_ROWS, 1, _SWIZZLE_ROWS, width)
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.SwizzleTransform(line_bytes),))


def window(tile):
    """One tile (a scratch indexed to its slot) as TMA sees it: [rows, width]."""
    if is_interpreting():
        return tile
    groups, _, rows, width = tile.shape
    return tile.reshape(groups * rows, width)


def matrix(tile):
    """One tile (a scratch indexed to its slot) as wgmma and registers see it: [rows, width]."""
    if is_interpreting():
        return tile
    untile = _core.UntilingTransform((_SWIZZLE_ROWS, tile.shape[-1]))
    return _state.TransformedRef(tile.ref, (*tile.transforms, untile))


def strided_vector(ref, shape: tuple[int, int], axis: int):
    """A vector whose elements are not adjacent in memory, along `axis` of a wgmma-shaped array."""
    if axis == 0:
        layout = plgpu.Layout.WGMMA
        return lax.broadcast_in_dim(
            plgpu.load(ref, layout=layout.reduce(1), optimized=False), shape, (0,)
        )
    # A wgmma fragment holds column pairs, and a pair would be loaded as one: take them singly.
    layout = plgpu.Layout._WGMMA_ACC_32BIT
    vector = plgpu.load(ref, layout=layout.reduce(0), optimized=False)
    singly = plgpu.layout_cast(lax.broadcast_in_dim(vector, shape, (1,)), layout)
    return plgpu.layout_cast(singly, plgpu.Layout.WGMMA)


def address(ref) -> ir.Value:
    """In a kernel's code: where a reference's shared memory begins, in bytes, int32."""
    return llvm.ptrtoint(ir.IntegerType.get_signless(32), _utils.memref_ptr(ref))


def row_quads(ref) -> list[jax.Array]:
    """The four columns of a float32 [64, 4], each in the layout of wgmma's rows: a load a row."""
    layout = plgpu.Layout.WGMMA.reduce(1)
    if is_interpreting():
        return [plgpu.load(ref.at[:, c], layout=layout, optimized=False) for c in range(4)]
    column = plgpu.ShapeDtypeStruct((64,), jnp.float32, layout)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=[column] * 4)
    def load(_, ref):
        i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()
        rows = layout.to_mgpu()
        shape = rows.registers_shape((64,))
        columns = [np.empty(shape, dtype=object) for _ in range(4)]
        base = address(ref)
        four, one = llvm.StructType.get_literal([f32] * 4), ir.VectorType.get((1,), f32)
        for at, (row,) in zip(np.ndindex(shape), rows.thread_idxs((64,)), strict=True):
            row = arith.index_cast(i32, row)
            place = arith.addi(base, arith.muli(row, arith.constant(i32, 16)))
            text, kinds = "ld.shared.v4.f32 {$0,$1,$2,$3}, [$4];", "=f,=f,=f,=f,r"
            quad = llvm.inline_asm(four, [place], text, kinds, has_side_effects=True)
            for c, column in enumerate(columns):
                column[at] = llvm.bitcast(one, llvm.extractvalue(f32, quad, [c]))
        return [mgpu.FragmentedArray(_registers=c, _layout=rows, _is_signed=None) for c in columns]

    return load(ref)


def read_before_tma_writes() -> None:
    """Says that what this warpgroup has read from shared memory may now be overwritten by TMA.

    On a GPU the barrier that gives the slot back is enough: reads are done when their values are
    used, before the arrival. (A proxy fence and the warpgroup's barrier here cost 0.9% of a GEMM
    that gave scales back every fourth step. H200, 2026-11-22.) The race detector wants a fence.
    """
    if is_interpreting():
        plgpu.commit_smem()


def copy_without_tma(source, row, col, target, barrier) -> None:
    """Starts a copy of a box of float32 [R, C] into plain shared memory, whose end `barrier` hears.

    For rows that are no multiple of 16 bytes, which TMA does not take; in `by_first_warp`. Each
    lane copies an element of every so many rows by cp.async, and waits for none of them. Past the
    source's edges the last row and column repeat.
    """
    if is_interpreting():  # its TMA takes any row, and fills with zeros
        height, width = target.shape
        box = source.at[pl.ds(row, height), pl.ds(col, width)]
        plgpu.copy_gmem_to_smem(box, target, barrier)
        return

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.RefType(), *[plgpu.Layout.WG_SPLAT(())] * 2)
    )
    def copy(_, source, target, row, col):
        i32, i64, f32 = *map(ir.IntegerType.get_signless, (32, 64)), ir.F32Type.get()
        (m, k), (height, width) = (ir.MemRefType(ref.type).shape for ref in (source, target))
        rows = _utils.WARP_SIZE // width  # at a time: an element a lane, adjacent in the target
        if rows * width != _utils.WARP_SIZE or height % rows:
            raise ValueError(f"target: expected [{rows} i, {width}], got {(height, width)}")
        source = llvm.addrspacecast(llvm.PointerType.get(1), _utils.memref_ptr(source))  # global

        def number(value):
            return arith.constant(i32, value)

        def place(first, offset, length):
            value = arith.addi(first, offset)
            return arith.extui(i64, arith.minui(value, number(length - 1)))

        row, col = (value.registers.item() for value in (row, col))
        lane = arith.remui(_utils.thread_idx(), number(_utils.WARP_SIZE))
        column = place(col, arith.remui(lane, number(width)), k)
        row = arith.addi(row, arith.divui(lane, number(width)))
        target = _utils.getelementptr(_utils.memref_ptr(target), [lane], f32)
        for first in range(0, height, rows):
            start = arith.muli(place(row, number(first), m), arith.constant(i64, k))
            nvvm.cp_async_shared_global(
                _utils.getelementptr(target, [first * width], f32),
                _utils.getelementptr(source, [arith.addi(start, column)], f32),
                f32.width // 8,
                nvvm.LoadCacheModifierKind.CA,
            )

    copy(source, target, row, col)
    arrive_when_copied(barrier)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Columns of a few rows in any order: TMA brings the rows, threads pick 16-bit elements.

Picked from global memory, every element costs the L1 cache a sector of 32 bytes; from shared
memory 32 of them cost 3 or 4 clocks. Rows come as boxes of 256 columns, as wide as TMA takes:

    staged = staged_rows(rows, k, dtype)            # scratch [boxes, rows, 256]
    full = plgpu.Barrier(num_arrivals=boxes(k))
    stage_rows(x, first, staged, full)              # one warp is enough
    plgpu.barrier_wait(full)
    for row in gather(staged, columns, layout): ...
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, vector
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as _utils
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.arrivals import copy_in
from jaxkernels.mosaic.interpret import is_interpreting
from jaxkernels.mosaic.smem import LINE_BYTES, address
from jaxkernels.mosaic.weight_formats import TILE

BOX = 256  # columns
_TILE_ROWS = 8
_CHUNK = 16  # bytes that a swizzle moves together
_ELEMENT = 2  # bytes
_SHARED = 3  # LLVM's address space


def boxes(k: int) -> int:
    """How many copies bring a row of k columns.

    Example:
      >>> boxes(4096), boxes(136)
      (16, 1)
    """
    return -(-k // BOX)


def staged_rows(rows: int, k: int, dtype) -> plgpu.SMEM:
    """Shared memory for `rows` rows of k elements of 16 bits."""
    return plgpu.SMEM((boxes(k), rows, BOX), dtype)


def stage_rows(source, first, staged, barrier) -> None:
    """Starts the copies of `source[first : first + rows]`; beyond its edges come zeros."""
    count, rows, _ = staged.shape

    def copy(box, _):
        part = source.at[pl.ds(first, rows), pl.ds(box * BOX, BOX)]
        copy_in(part, staged.at[box], barrier)

    lax.fori_loop(0, count, copy, None)


def gather(staged, columns: jax.Array, layout) -> list[jax.Array]:
    """The elements at `columns` of each staged row, as a warpgroup's arrays.

    Args:
      staged: rows that have come (`staged_rows`).
      columns: int32 [n] in `layout`, a strided layout; indices must lie in the row.
    """
    rows = staged.shape[1]
    if is_interpreting():
        return [staged[:, row, :].reshape(-1)[columns] for row in range(rows)]
    result = plgpu.ShapeDtypeStruct(columns.shape, staged.dtype, layout)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), layout), return_type=(result,) * rows)
    def load(_, ref, columns):
        registers = [np.empty_like(columns.registers) for _ in range(rows)]
        for at, indices in np.ndenumerate(columns.registers):
            for row, values in enumerate(_elements(ref, rows, indices)):
                registers[row][at] = values
        return tuple(
            FragmentedArray(_registers=r, _layout=columns.layout, _is_signed=None)
            for r in registers
        )

    return list(load(staged, columns))


def gather_into(tiles, staged, columns: jax.Array) -> None:
    """Puts the elements at `columns` of the staged rows into a row each of tiles for wgmma.

    Args:
      tiles: [t] tiles of 8 rows and 64 columns (`smem.swizzled`, indexed to its slot); the rows
        that are not staged stay as they are.
      staged: up to 8 rows that have come (`staged_rows`).
      columns: int32 [64 t], a multiple of 128, `columns_layout`.
    """
    rows = staged.shape[1]
    if is_interpreting():
        for row, values in enumerate(gather(staged, columns, None)):
            for tile in range(tiles.shape[0]):
                tiles[tile, row] = values[tile * TILE : (tile + 1) * TILE]
        return

    swizzle = plgpu.RefType((plgpu.SwizzleTransform(LINE_BYTES),))

    @plgpu.inline_mgpu(arg_types=(swizzle, plgpu.RefType(), columns_layout(columns.size)))
    def move(_, tiles, ref, columns):
        (indices,) = columns.registers.flat
        (width,) = ir.VectorType(indices.type).shape
        first = arith.muli(_thread(), _number(width))  # of a thread's columns
        tile = arith.shrui(first, _number(TILE.bit_length() - 1))
        byte = arith.muli(arith.andi(first, _number(TILE - 1)), _number(_ELEMENT))
        base = arith.addi(address(tiles), arith.muli(tile, _number(_TILE_ROWS * LINE_BYTES)))
        for row, values in enumerate(_elements(ref, rows, indices)):
            swizzled = arith.xori(byte, _number(row * _CHUNK))
            place = arith.addi(base, arith.addi(swizzled, _number(row * LINE_BYTES)))
            llvm.store(values, llvm.inttoptr(llvm.PointerType.get(_SHARED), place))

    move(tiles, staged, columns)


def columns_layout(count: int):
    """The layout of `count` adjacent indices for `gather_into`: a thread's lie side by side."""
    return plgpu.Layout.WG_STRIDED((count,), vec_size=count // _utils.WARPGROUP_SIZE)


def clear(tiles) -> None:
    """Fills a ring of tiles (`smem.swizzled`) with zeros; the warpgroup's threads share it."""
    if is_interpreting():
        tiles[...] = jnp.zeros(tiles.shape, tiles.dtype)
        return

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType((plgpu.SwizzleTransform(LINE_BYTES),)),))
    def fill(_, tiles):
        size = math.prod(ir.MemRefType(tiles.type).shape) * _ELEMENT
        threads, byte = _utils.WARPGROUP_SIZE, ir.IntegerType.get_signless(8)
        own = arith.muli(_thread(), _number(_CHUNK))
        pointer = _utils.getelementptr(_utils.memref_ptr(tiles), [own], byte)
        zeros = vector.broadcast(ir.VectorType.get((_CHUNK // 4,), _i32()), _number(0))
        for start in range(0, size, threads * _CHUNK):
            llvm.store(zeros, _utils.getelementptr(pointer, [start], byte))

    fill(tiles)


def _elements(ref, rows: int, indices) -> list[ir.Value]:
    """For each row the vector of its elements at a thread's vector of column numbers."""
    element = ir.MemRefType(ref.type).element_type
    (width,) = ir.VectorType(indices.type).shape
    base, places = address(ref), []
    for i in range(width):
        column = vector.extract(indices, [], ir.DenseI64ArrayAttr.get([i]))
        if rows > 1:  # a box further on lie all rows of it
            box = arith.shrui(column, _number(BOX.bit_length() - 1))
            column = arith.addi(column, arith.muli(box, _number((rows - 1) * BOX)))
        place = arith.addi(base, arith.muli(column, _number(_ELEMENT)))
        places.append(llvm.inttoptr(llvm.PointerType.get(_SHARED), place))
    kind = ir.VectorType.get((width,), element)
    return [
        vector.from_elements(
            kind,
            [llvm.load(element, _utils.getelementptr(p, [row * BOX], element)) for p in places],
        )
        for row in range(rows)
    ]


def _thread() -> ir.Value:
    """This thread's number in its warpgroup."""
    return arith.remui(_utils.thread_idx(), _number(_utils.WARPGROUP_SIZE))


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _number(value: int) -> ir.Value:
    return arith.constant(_i32(), value)

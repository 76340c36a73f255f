# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Swizzled shared-memory tiles that TMA fills and wgmma reads, at any global shape.

A tile is `rows` lines of 128 bytes (of 64 or 32 for outputs), swizzled over a line: what wgmma
wants of a K-major operand and what TMA writes in one box. Pallas's own `TilingTransform` would
tile the *global* array too, which then must be a whole number of tiles. Here only the shared side
is tiled (`matrix`), and TMA sees a plain two-dimensional box (`window`), so it zero-fills and
clips at ragged edges by itself.

    scratch = swizzled(slots, rows, dtype)
    copy_gmem_to_smem(gmem.at[pl.ds(r, rows), pl.ds(k, width)], window(scratch.at[slot]), barrier)
    wgmma(acc, matrix(a.at[slot]), matrix(b.at[slot]).T)
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax._src.pallas.mosaic_gpu import core as _core
from jax._src.state import types as _state
from jax.experimental.pallas import mosaic_gpu as plgpu

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

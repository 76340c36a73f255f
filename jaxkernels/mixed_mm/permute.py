# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Act-order's other half: the columns of x in the order of a prepared weight's, as a kernel.

    out[m, p] = x[m, order[p]]

A prepared act-order weight has its columns sorted by group, so a product with it needs the columns
of x in the same order. This is a kernel of its own, ahead of the product: the product's blocks
start meanwhile, load weights, and wait for x (`mosaic.launch`).

Few rows: a block takes a row's piece of 128 * 8 columns and reads the elements where they lie; a
row is in the cache as soon as one block has touched it. Many rows: scattered reads through the
cache would cost more than the product allows, so a block first copies whole rows to shared memory,
and the indices it has loaded serve all of them.

    block (one warpgroup)   wait for x -> rows to smem -> for each piece: indices, gather, store
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.gather import gather_row
from jaxkernels.mosaic.launch import wait_for_previous_kernel
from jaxkernels.mosaic.rowreduce import THREADS, row_pieces

MIN_COLUMNS = THREADS
# From so many rows on, rows go through shared memory; a block's share of it, for several blocks on
# an SM; and how many rows it takes to give every SM several blocks of one more row each.
STAGED_ROWS = 128
STAGED_BYTES = 56 << 10
SHARED_ROWS = 1024


def rows_a_block(m: int, k: int) -> int:
    """How many rows share a block's indices: 0 where rows are read where they lie.

    Example:
      >>> rows_a_block(16, 4096), rows_a_block(256, 4096), rows_a_block(4096, 4096)
      (0, 1, 4)
    """
    if m < STAGED_ROWS or 2 * k > STAGED_BYTES + 1024:
        return 0
    return min(4, STAGED_BYTES // (2 * k) or 1, m // SHARED_ROWS or 1)


def permute_columns(x: jax.Array, order: jax.Array) -> jax.Array:
    """x[:, order].

    Args:
      x: bfloat16 or float16 [M, K], K at least 128 and a multiple of 8.
      order: int32 [P], columns, P as K is; or [2, P], whose first row is meant.
    """
    (m, k), places = x.shape, order.shape[-1]
    pieces, x_pieces = row_pieces(places, 2), row_pieces(k, 2)
    rows = rows_a_block(m, k)
    layout = pieces.layout
    whole = places // pieces.size

    def indices(order_gmem, start):
        columns = order_gmem if order.ndim == 1 else order_gmem.at[0]
        return plgpu.load(columns.at[pl.ds(start, pieces.size)], layout=layout, optimized=False)

    def in_place(x_gmem, order_gmem, out_gmem):
        row, piece = lax.axis_index("row"), lax.axis_index("piece")

        def gather(start, first=True):
            columns = indices(order_gmem, start)
            if first:
                wait_for_previous_kernel()
            out_gmem[row, pl.ds(start, pieces.size)] = gather_row(x_gmem, row, columns, layout)

        gather(piece * pieces.size)
        if len(pieces.starts) > whole:  # what is left overlaps the last whole piece: its block's
            pl.when(piece == whole - 1)(lambda: gather(pieces.starts[-1], first=False))

    def staged(x_gmem, order_gmem, out_gmem, x_smem):
        wait_for_previous_kernel()
        first = lax.axis_index("row") * rows
        for r in range(rows):
            x_pieces.store(x_smem, r, x_pieces.load(x_gmem, jnp.minimum(first + r, m - 1)))
        plgpu.commit_smem()
        for start in pieces.starts:
            columns = indices(order_gmem, start)
            for r in range(rows):

                @pl.when(first + r < m)
                def _(r=r, start=start, columns=columns):
                    values = gather_row(x_smem, jnp.int32(r), columns, layout)
                    out_gmem[first + r, pl.ds(start, pieces.size)] = values

    kernel = plgpu.kernel(
        staged if rows else in_place,
        out_type=jax.ShapeDtypeStruct((m, places), x.dtype),
        grid=(-(-m // rows),) if rows else (m, whole),
        grid_names=("row",) if rows else ("row", "piece"),
        scratch_types=[plgpu.SMEM((rows, k), x.dtype)] if rows else [],
        kernel_name="permute_columns",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
    )
    return kernel(x, order)

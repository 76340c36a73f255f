# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Sums over the blocks of a cluster, through distributed shared memory, in a fixed order.

Each block holds a partial tile in registers. Column slice p of every block's partial is pushed
into block p's shared memory, which adds them in the order of the blocks' ranks: deterministic,
nothing through global memory, no atomics.

The interpreter has no remote stores. Its twin passes the partials through a global array and a
cluster barrier: the same slices, the same order of additions.
"""

from __future__ import annotations

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting


def exchange_scratch(axis: str, size: int, warpgroups: int, rows: int, cols: int, dtype):
    """Scratch for `sum_over_cluster`: `size` blocks each push [rows, cols] a warpgroup.

    Args:
      axis, size: the cluster axis and its size.
      warpgroups: warpgroups of a block that take part, each with a tile of its own.
      rows, cols: a slice; cols is the tile's columns over the number of slices.
      dtype: int32 or float32.
    """
    if is_interpreting():
        barrier = plgpu.ClusterBarrier(collective_axes=(axis,), num_arrivals=warpgroups)
        return {"received": barrier}
    swizzle = plgpu.find_swizzle(cols * 32)
    tiles = plgpu.TilingTransform((8, swizzle // 4)), plgpu.SwizzleTransform(swizzle)
    # One barrier for all warpgroups: JAX 0.11.2 signals the wrong one of an array of barriers in
    # another block (`BarrierRef.remap_to_cluster` adds the index twice).
    return {
        "received": plgpu.Barrier(num_arrivals=size * warpgroups),
        "inbox": plgpu.SMEM((size, warpgroups, rows, cols), dtype, transforms=tiles),
    }


def exchange_outputs(clusters: int, size: int, warpgroups: int, rows: int, cols: int, dtype):
    """Extra outputs of the kernel that `sum_over_cluster` needs: none but when interpreted."""
    if not is_interpreting():
        return ()
    return (jax.ShapeDtypeStruct((clusters, size, warpgroups, rows, cols), dtype),)


def sum_over_cluster(partial, finish, *, axis, size, parts, cluster, warpgroup, scratch, outputs):
    """Calls `finish(total, part)` in the blocks that finish a slice of the tile.

    Args:
      partial: this block's [rows, cols] accumulator of this warpgroup.
      finish: takes the summed slice [rows, cols / parts] and its index.
      axis, size: the cluster axis that is summed over.
      parts: column slices; block p < parts of the axis finishes slice p.
      cluster: index of the cluster.
      warpgroup: index of the warpgroup.
      scratch, outputs: as made by the functions above.
    """
    rank = lax.axis_index(axis)
    rows, cols = partial.shape
    width = cols // parts
    received = scratch["received"]

    if is_interpreting():
        (board,) = outputs
        board[cluster, rank, warpgroup] = partial
        plgpu.barrier_arrive(received)
        plgpu.barrier_wait(received)

        def slice_of(sender):
            return board[cluster, sender, warpgroup, :, pl.ds(rank * width, width)]
    else:
        inbox = scratch["inbox"]
        for part in range(parts):
            plgpu.async_store_smem(
                partial[:, part * width : (part + 1) * width],
                inbox.at[rank, warpgroup],
                received,
                cluster_idx=part,
                cluster_dim=axis,
            )

        def slice_of(sender):
            return plgpu.load(inbox.at[sender, warpgroup], layout=plgpu.Layout.WGMMA)

    @pl.when(rank < parts)
    def _():
        if not is_interpreting():
            plgpu.barrier_wait(received)
        total = slice_of(0)
        for sender in range(1, size):
            total += slice_of(sender)
        finish(total, rank)

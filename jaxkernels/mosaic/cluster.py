# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Sums over the blocks of a cluster, through distributed shared memory, in a fixed order.

Each block holds a partial tile in registers. Column slice p of every block's partial is stored
into block p's shared memory, which adds them in the order of the blocks' ranks: deterministic,
nothing through global memory, no atomics. (Asynchronous remote stores, `async_store_smem`, signal
a barrier with every 8 bytes: a tile of 64 KiB took 5 us. 2026-11-22, H200.)

The interpreter has no remote stores. Its twin passes the partials through a global array and a
cluster barrier: the same slices, the same order of additions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from jaxkernels.mosaic.interpret import is_interpreting


def exchange_scratch(axis: str, size: int, warpgroups: int, rows: int, cols: int, dtype):
    """Scratch for `sum_over_cluster`: `size` blocks each push [rows, cols] a warpgroup.

    Args:
      axis, size: the cluster axis and its size.
      warpgroups: warpgroups of a block that take part, each with a tile of its own.
      rows, cols: a slice; cols is the tile's columns over the number of slices.
      dtype: int32 or float32.
    """
    barrier = plgpu.ClusterBarrier(collective_axes=(axis,), num_arrivals=warpgroups)
    if is_interpreting():
        return {"received": barrier}
    swizzle = plgpu.find_swizzle(cols * 32)
    tiles = plgpu.TilingTransform((8, swizzle // 4)), plgpu.SwizzleTransform(swizzle)
    inbox = plgpu.SMEM((size, warpgroups, rows, cols), dtype, transforms=tiles)
    return {"received": barrier, "inbox": inbox}


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

    if is_interpreting():
        (board,) = outputs
        board[cluster, rank, warpgroup] = partial

        def slice_of(sender):
            return board[cluster, sender, warpgroup, :, pl.ds(rank * width, width)]
    else:
        inbox = scratch["inbox"]
        for part in range(parts):
            theirs = plgpu.cluster_ref(inbox.at[rank, warpgroup], {axis: jnp.int32(part)})
            theirs[...] = partial[:, part * width : (part + 1) * width]

        def slice_of(sender):
            return plgpu.load(inbox.at[sender, warpgroup], layout=plgpu.Layout.WGMMA)

    # Every block waits, a finisher or not: none may leave while others still signal it. One thread
    # signals for a warpgroup: its fence comes when all the warpgroup's stores are before it.
    plgpu.commit_smem()
    fence_cluster()
    plgpu.barrier_arrive(scratch["received"])
    plgpu.barrier_wait(scratch["received"])
    fence_cluster()

    @pl.when(rank < parts)
    def _():
        total = slice_of(0)
        for sender in range(1, size):
            total += slice_of(sender)
        finish(total, rank)


def fence_cluster() -> None:
    """Orders this thread's accesses before it with those after it, for the whole cluster.

    Mosaic's barriers are signalled and awaited at the scope of a block.
    """
    if is_interpreting():
        return

    @plgpu.inline_mgpu()
    def fence(_):
        void = ir.Type.parse("!llvm.void")
        llvm.inline_asm(void, [], "fence.acq_rel.cluster;", "", has_side_effects=True)

    fence()

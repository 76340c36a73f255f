# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The body of the W4A8 kernel: what one block's warpgroups do. See `hopper_w4a8` for the plan."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mixed_mm.scales import add_scaled_sum
from jaxkernels.mosaic import convert, convert8
from jaxkernels.mosaic.arrivals import by_first_warp, copy_in, release
from jaxkernels.mosaic.cluster import sum_over_cluster
from jaxkernels.mosaic.convert8 import TILE_K, TILE_N, WORD_ROWS
from jaxkernels.mosaic.launch import wait_for_previous_kernel
from jaxkernels.mosaic.smem import matrix, window

PIECE = 64  # rows of x of a staged piece of the output, at most
MEMORY_REGISTERS = 40  # a thread of the memory warpgroup, where compute threads get more

_WGMMA = plgpu.Layout.WGMMA


class Block:
    """One block at work: what its memory warpgroup and its compute warpgroups do."""

    def __init__(self, problem, config, counts, gmem, smem, vectors):
        self.p, self.c = problem, config
        self.m_tiles, self.n_tiles, self.clusters = counts
        self.gmem, self.smem, self.vectors = gmem, smem, vectors
        c = config
        self.tiles = c.tile_k // TILE_K  # of a stage ...
        self.own = self.tiles // c.wg_k  # ... and of one warpgroup
        # wgmma reads its A registers while the next tile is converted, so one pass of the loop
        # over K has to hold two tiles or more, in registers of their own.
        self.unroll = 2 if self.own == 1 else 1
        steps = -(-problem.k // (c.tile_k * c.split_k))
        self.passes = -(-steps // self.unroll)  # may reach past K: TMA reads zeros there
        self.cluster = lax.axis_index("clusters")
        self.rank_k = lax.axis_index("k") if c.split_k > 1 else jnp.int32(0)
        self.rank_n = lax.axis_index("rank") if c.cluster_n > 1 else jnp.int32(0)
        total = self.m_tiles * self.n_tiles
        self.num_tiles = lax.div(jnp.int32(total - 1) - self.cluster, jnp.int32(self.clusters)) + 1
        if total == self.clusters:
            self.num_tiles = 1

    @property
    def steps(self) -> int:
        return self.passes * self.unroll

    def place(self, i):
        """First row of x and first 64-row tile of w of this block's i-th output tile."""
        index = self.cluster + i * self.clusters
        mi, ni = plgpu.planar_snake(index, (self.m_tiles, self.n_tiles), 0, self.c.panel)
        return mi * self.c.tile_m, (ni * self.c.cluster_n + self.rank_n) * self.c.wg_n

    def next_slot(self, slot):
        return lax.select(slot == self.c.stages - 1, jnp.int32(0), slot + 1)

    def previous_slot(self, slot):
        return lax.select(slot == 0, jnp.int32(self.c.stages - 1), slot - 1)

    # ---- the memory warpgroup

    def load(self):
        if self.c.compute_registers:
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
        by_first_warp(self.load_all)

    def load_all(self):
        c, smem, gmem = self.c, self.smem, self.gmem

        def load_weights(row_tile, j, slot):
            plgpu.barrier_wait(smem["free"].at[slot])
            full, rows = smem["full"].at[slot], pl.ds(row_tile, c.wg_n)
            tile = (self.rank_k * self.steps + j) * self.tiles
            words = pl.ds(tile * WORD_ROWS, self.tiles * WORD_ROWS)
            copy_in(gmem["w"].at[rows, words], smem["w"].at[slot], full)
            groups = gmem["scale"].at[rows, pl.ds(tile, self.tiles)]
            copy_in(groups, smem["scale"].at[slot], full)

        def load_x(m0, j, slot):
            tile = (self.rank_k * self.steps + j) * self.tiles
            for t in range(self.tiles):
                copy_in(
                    gmem["x"].at[pl.ds(m0, c.tile_m), pl.ds((tile + t) * TILE_K, TILE_K)],
                    window(smem["x"].at[slot, t]),
                    smem["full"].at[slot],
                    collective_axes="rank" if c.cluster_n > 1 else None,
                )

        # Weights are made long before: only x and its scales can come from the kernel ahead, and
        # only this warpgroup waits for it, since nothing is stored before x has been read.
        ahead = min(c.stages, self.steps) if c.overlap else 0
        if c.overlap:
            m0, row_tile = self.place(0)
            lax.fori_loop(0, ahead, lambda j, _: load_weights(row_tile, j, j), None)
            wait_for_previous_kernel()
            lax.fori_loop(0, ahead, lambda j, _: load_x(m0, j, j), None)

        def one_tile(i, slot):
            m0, row_tile = self.place(i)

            def step(j, slot):
                load_weights(row_tile, j, slot)
                load_x(m0, j, slot)
                return self.next_slot(slot)

            first = lax.select(i == 0, ahead, 0) if ahead else 0
            slot = lax.fori_loop(first, self.steps, step, slot)
            plgpu.barrier_wait(smem["vectors_free"])
            for name in self.vectors:
                start = m0 if name == "x_scale" else row_tile * TILE_N
                source = gmem[name].at[pl.ds(start, smem[name].shape[0])]
                copy_in(source, smem[name], smem["vectors_full"])
            return slot

        lax.fori_loop(0, self.num_tiles, one_tile, jnp.int32(ahead % c.stages))
        # Blocks of a cluster signal each other's barriers: none leaves before the last signal.
        lax.fori_loop(0, c.stages, lambda s, _: plgpu.barrier_wait(smem["free"].at[s]), None)
        plgpu.barrier_wait(smem["vectors_free"])

    # ---- the compute warpgroups

    def compute(self):
        c, smem = self.c, self.smem
        if c.compute_registers:
            plgpu.set_max_registers(c.compute_registers, action="increase")
        # Every slot begins free; signalled once, the loader needs no special first round.
        lax.fori_loop(0, c.stages, lambda s, _: plgpu.barrier_arrive(smem["free"].at[s]), None)
        plgpu.barrier_arrive(smem["vectors_free"])
        self.warpgroup = lax.axis_index("wg")
        self.wn, self.wk = self.warpgroup, jnp.int32(0)
        if c.wg_k > 1:
            self.wn = lax.div(self.warpgroup, jnp.int32(c.wg_k))
            self.wk = lax.rem(self.warpgroup, jnp.int32(c.wg_k))
        product = self.sum_of_groups if self.p.x_dtype == "int8" else self.one_sum

        def one_tile(i, slot):
            m0, row_tile = self.place(i)
            total, slot = product(slot)
            self.reduce(total, m0, row_tile + self.wn)
            return slot

        lax.fori_loop(0, self.num_tiles, one_tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def words(self, slot, t):
        rows = pl.ds((self.wk * self.own + t) * WORD_ROWS, WORD_ROWS)
        return convert8.load_words8(self.smem["w"].at[slot, self.wn, rows])

    def scales(self, slot, t):
        return convert.load_rows(self.smem["scale"].at[slot, self.wn, self.wk * self.own + t])

    def multiply(self, acc, slot, t, words, scales):
        x = self.smem["x"]
        a = convert8.fragment8(words, x.dtype, scales)
        b = matrix(x.at[slot, self.wk * self.own + t]).T
        convert.multiply(acc, a, b, self.smem["fragment"].at[self.warpgroup])

    def one_sum(self, slot):
        """Sums over K in one accumulator; a slot is freed one tile later than it is read."""

        def body(acc):
            def step(j, slot, first):
                plgpu.barrier_wait(self.smem["full"].at[slot])
                words = self.words(slot, 0)
                for t in range(self.own):
                    current = words
                    words = self.words(slot, t + 1) if t + 1 < self.own else None
                    self.multiply(acc, slot, t, current, self.scales(slot, t))
                    plgpu.wgmma_wait(1)
                    if t == 0:  # everything before this tile is done, all of the last slot too
                        before = self.smem["free"].at[self.previous_slot(slot)]
                        release(before, predicate=j > 0 if first else None)
                return self.next_slot(slot)

            def one_pass(j, slot):
                for u in range(self.unroll):
                    slot = step(j, slot, u == 0)
                return slot

            end = lax.fori_loop(0, self.passes, one_pass, slot)
            total = acc[...]
            release(self.smem["free"].at[self.previous_slot(end)])
            return total, end

        return pl.run_scoped(body, plgpu.ACC((TILE_N, self.c.tile_m), jnp.float32))

    def sum_of_groups(self, slot):
        """Exact int32 sums of a group each, scaled in float32 as they are added."""
        shape = (TILE_N, self.c.tile_m)

        def one_pass(_, carry):
            total, slot = carry

            def body(*accs):
                result, at = total, slot
                pending = None  # the tile whose products run, as `add_scaled_sum` takes it
                for u in range(self.unroll):
                    plgpu.barrier_wait(self.smem["full"].at[at])
                    words = self.words(at, 0)
                    for t in range(self.own):
                        current = words
                        words = self.words(at, t + 1) if t + 1 < self.own else None
                        acc = accs[u * self.own + t]
                        self.multiply(acc, at, t, current, None)
                        scales = self.scales(at, t)
                        if pending is not None:
                            result = add_scaled_sum(result, *pending, in_flight=1)
                        done = self.smem["free"].at[at] if t == self.own - 1 else None
                        pending = acc, scales, done
                    at = self.next_slot(at)
                return add_scaled_sum(result, *pending, in_flight=0), at

            return pl.run_scoped(body, *[plgpu.ACC(shape, jnp.int32)] * (self.own * self.unroll))

        zero = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), _WGMMA)
        return lax.fori_loop(0, self.passes, one_pass, (zero, slot))

    # ---- the end of a tile

    def reduce(self, total, m0, row_tile):
        """Adds what other warpgroups and other blocks have; then `finish`."""
        c, smem = self.c, self.smem
        if c.wg_k > 1:

            @pl.when(self.wk > 0)
            def _give():
                smem["parts"].at[self.wk - 1, self.wn][...] = total
                plgpu.barrier_arrive(smem["parts_full"])
                plgpu.barrier_wait(smem["vectors_full"])
                plgpu.barrier_arrive(smem["vectors_free"])

        @pl.when(self.wk == 0)
        def _take():
            acc = total
            if c.wg_k > 1:
                plgpu.barrier_wait(smem["parts_full"])
                for other in range(c.wg_k - 1):
                    part = smem["parts"].at[other, self.wn]
                    acc = acc + plgpu.load(part, layout=_WGMMA, optimized=False)
            plgpu.barrier_wait(smem["vectors_full"])
            if c.split_k == 1:
                self.finish(acc, 0, m0, row_tile)
            else:
                sum_over_cluster(
                    acc,
                    lambda part, index: self.finish(part, index, m0, row_tile),
                    axis="k",
                    size=c.split_k,
                    parts=c.slices,
                    cluster=self.cluster,
                    warpgroup=self.wn,
                    scratch=smem["exchange"],
                    outputs=(self.gmem["board"],) if "board" in self.gmem else (),
                )
            plgpu.commit_smem()  # read by threads, next written by TMA: order the two
            plgpu.barrier_arrive(smem["vectors_free"])

    def finish(self, total, index, m0, row_tile):
        """Scales, rounds and sends slice `index` of this warpgroup's part of the tile."""
        smem, cols = self.smem, total.shape[1]
        piece = min(cols, PIECE)
        pieces, slots = cols // piece, self.c.out_slots

        def rows(name):
            part = convert.load_rows(smem[name].at[pl.ds(self.wn * TILE_N, TILE_N)])
            return lax.broadcast_in_dim(part.astype(jnp.float32), (TILE_N, piece), (0,))

        channel = rows("channel") if "channel" in self.vectors else None
        bias = rows("bias") if "bias" in self.vectors else None
        for i in range(pieces):
            first = index * cols + i * piece
            token = smem["x_scale"].at[pl.ds(first, piece)]
            token = plgpu.load(token, layout=_WGMMA.reduce(0), optimized=False)
            if self.p.x_dtype == "int8":
                token = token * (1 / convert8.INT8_FACTOR)
            value = total[:, i * piece : (i + 1) * piece]
            value = value * lax.broadcast_in_dim(token, (TILE_N, piece), (1,))
            value = value if channel is None else value * channel
            value = value if bias is None else value + bias
            staged = smem["out"].at[self.wn, i % slots]
            # The store before may still be read, if it is not this slot's.
            same = i == 0 and pieces % slots == 1 % slots
            plgpu.wait_smem_to_gmem(0 if same else slots - 1, wait_read_only=True)
            value = plgpu.layout_cast(
                value.astype(self.gmem["out"].dtype), plgpu.Layout.WGMMA_TRANSPOSED
            )
            matrix(staged).T[...] = value
            plgpu.commit_smem()
            target = self.gmem["out"].at[pl.ds(m0 + first, piece), pl.ds(row_tile * TILE_N, TILE_N)]
            plgpu.copy_smem_to_gmem(window(staged), target)

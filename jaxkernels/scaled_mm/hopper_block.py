# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The body of the Hopper scaled GEMM: what one block's warpgroups do. See `hopper` for the plan."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.arrivals import by_first_warp, copy_in, release
from jaxkernels.mosaic.cluster import sum_over_cluster
from jaxkernels.mosaic.launch import wait_for_previous_kernel
from jaxkernels.mosaic.smem import copy_without_tma, matrix, window
from jaxkernels.scaled_mm.hopper_config import BLOCK, SCALE_STEPS, TILE_K
from jaxkernels.scaled_mm.hopper_scaled import ScaledProduct

_WGMMA = plgpu.Layout.WGMMA


class Block:
    """One block at work: what its loading and its multiplying warpgroups do."""

    def __init__(self, plan, accumulator, clusters, gmem, out, board, smem, vectors, out_slots):
        self.plan, self.accumulator, self.clusters = plan, accumulator, clusters
        self.gmem, self.out, self.board, self.smem = gmem, out, board, smem
        self.vectors, self.out_slots = vectors, out_slots
        c = plan.config
        self.cluster = lax.axis_index("clusters")
        self.warpgroup = lax.axis_index("warpgroup")
        self.rank_m, self.rank_n, self.rank_k = (
            lax.axis_index(axis) if size > 1 else jnp.int32(0)
            for axis, size in (("m", c.cluster_m), ("n", c.cluster_n), ("k", c.split_k))
        )
        total = plan.m_groups * plan.n_groups
        self.num_tiles = lax.div(jnp.int32(total - 1) - self.cluster, jnp.int32(clusters)) + 1
        if total == clusters:
            self.num_tiles = 1
        least, more, unit = plan.split  # the first `more` blocks take a unit of steps more
        self.k_start = unit * (self.rank_k * least + lax.min(self.rank_k, jnp.int32(more)))
        self.k_steps = unit * least
        if more:
            self.k_steps += unit * (self.rank_k < more).astype(jnp.int32)

    def tile(self, i):
        """First row of x and first row of w of this block's i-th tile."""
        plan, c = self.plan, self.plan.config
        index = self.cluster + i * self.clusters
        m, n = plgpu.planar_snake(index, (plan.m_groups, plan.n_groups), 0, c.panel)
        m, n = m * c.cluster_m + self.rank_m, n * c.cluster_n + self.rank_n
        return m * c.tile_m, n * c.tile_n

    def next_slot(self, slot):
        return lax.select(slot == self.plan.config.stages - 1, jnp.int32(0), slot + 1)

    def previous_slot(self, slot):
        return lax.select(slot == 0, jnp.int32(self.plan.config.stages - 1), slot - 1)

    # ---- the loading warpgroup

    def load(self):
        plan = self.plan
        if plan.needs_more_registers:
            plgpu.set_max_registers(plan.register_split()[0], action="decrease")
        by_first_warp(self.load_all)

    def load_all(self):
        plan, c, smem = self.plan, self.plan.config, self.smem

        def load_weight(j, n, slot):
            plgpu.barrier_wait(smem["free"].at[slot])
            copy_in(
                self.gmem["w"].at[pl.ds(n, c.tile_n), self.stage_of_k(j)],
                window(smem["rows" if c.swap else "cols"].at[slot]),
                smem["full"].at[slot],
                collective_axes="m" if c.cluster_m > 1 else None,
            )

        def load_x(j, m, n, slot, scale_slot):
            copy_in(
                self.gmem["x"].at[pl.ds(m, c.tile_m), self.stage_of_k(j)],
                window(smem["cols" if c.swap else "rows"].at[slot]),
                smem["full"].at[slot],
                collective_axes="n" if c.cluster_n > 1 else None,
            )
            return self.load_scales(j, m, n, scale_slot) if plan.block_scaled else scale_slot

        def one_tile(i, carry, first=0):
            m, n = self.tile(i)

            def step(j, carry):
                slot, scale_slot = carry
                load_weight(j, n, slot)
                scale_slot = load_x(j, m, n, slot, scale_slot)
                return self.next_slot(slot), scale_slot

            slot, scale_slot = lax.fori_loop(first, self.k_steps, step, carry)
            if self.vectors:
                self.load_vectors(m, n)
            return (slot if plan.first_slot is None else start[0]), scale_slot

        begin = plan.first_slot or 0
        start = jnp.int32(begin), jnp.int32(0)

        def slot_of(j):
            """Of the first tile's first steps."""
            return lax.rem(j + begin, jnp.int32(c.stages)) if begin else j

        if c.weights_first:
            # As many stages as there are begin with their weights, before x is there.
            m, n = self.tile(0)
            first = lax.min(jnp.int32(self.k_steps), jnp.int32(c.stages))
            lax.fori_loop(0, first, lambda j, _: load_weight(j, n, slot_of(j)), None)
            wait_for_previous_kernel()
            scale_slot = lax.fori_loop(
                0, first, lambda j, scale_slot: load_x(j, m, n, slot_of(j), scale_slot), start[1]
            )
            slot = lax.select(first == c.stages, start[0], slot_of(first))
            carry = one_tile(0, (slot, scale_slot), first)
            lax.fori_loop(1, self.num_tiles, one_tile, carry)
        else:
            lax.fori_loop(0, self.num_tiles, one_tile, start)
        # Blocks of a cluster signal each other's barriers: none may leave before the last signal.
        lax.fori_loop(0, c.stages, lambda s, _: plgpu.barrier_wait(smem["free"].at[s]), None)
        if self.vectors:
            plgpu.barrier_wait(smem["vectors_free"])

    def stage_of_k(self, j):
        """The elements of K of this block's j-th step."""
        return pl.ds((self.k_start + j) * TILE_K, TILE_K)

    def load_vectors(self, m, n):
        """Scales, zero points and bias of a tile, once the tile before has been finished."""
        smem = self.smem
        plgpu.barrier_wait(smem["vectors_free"])
        for name in self.vectors:
            start = m if name in ("x_scale", "azp") else n
            length = smem[name].shape[0]
            copy_in(self.gmem[name].at[pl.ds(start, length)], smem[name], smem["vectors_full"])

    def load_scales(self, j, m, n, scale_slot):
        """Every fourth step the scales of the next four, of x's rows and of w's blocks.

        Where steps are no multiple of four, the first load is for the few that the sum begins with.
        """
        head = self.plan.head_steps
        fresh = lax.rem(j + -head % SCALE_STEPS if head else j, jnp.int32(SCALE_STEPS)) == 0
        if head:
            fresh |= j == 0

        @pl.when(fresh)
        def _():
            full = self.smem["scales_full"].at[scale_slot]
            for name, row in (("x_scale", m), ("w_scale", lax.div(n, jnp.int32(BLOCK)))):
                source, target = self.gmem[name], self.smem[f"{name}s"].at[scale_slot]
                k, height = self.k_start + j, target.shape[0]
                if source.shape[1] % SCALE_STEPS:
                    copy_without_tma(source, row, k, target, full)
                else:
                    box = pl.ds(row, height), pl.ds(k, SCALE_STEPS)
                    copy_in(source.at[box], target, full)

        return lax.select(fresh, self.next_scale_slot(scale_slot), scale_slot)

    def next_scale_slot(self, slot):
        return lax.select(slot == self.plan.scale_slots - 1, jnp.int32(0), slot + 1)

    # ---- the multiplying warpgroups

    def multiply(self):
        plan, c, smem = self.plan, self.plan.config, self.smem
        if plan.needs_more_registers:
            plgpu.set_max_registers(plan.register_split()[1], action="increase")
        # Every slot begins free; signalled once, the loader needs no special first round.
        lax.fori_loop(0, c.stages, lambda s, _: plgpu.barrier_arrive(smem["free"].at[s]), None)
        if self.vectors:
            plgpu.barrier_arrive(smem["vectors_free"])
        if c.weights_first:
            wait_for_previous_kernel()

        def one_tile(i, carry):
            m, n = self.tile(i)
            product = ScaledProduct(self, n) if plan.block_scaled else self.product
            total, carry = product(carry)
            if self.vectors:
                plgpu.barrier_wait(smem["vectors_full"])
            if c.split_k > 1:
                sum_over_cluster(
                    total,
                    lambda part, index: self.finish(part, 0, m, n, index * plan.part_cols),
                    axis="k",
                    size=c.split_k,
                    parts=plan.parts,
                    cluster=self.cluster,
                    warpgroup=self.warpgroup,
                    scratch=smem,
                    outputs=self.board,
                )
            else:
                self.finish(total, i, m, n, 0)
            if self.vectors:
                plgpu.barrier_arrive(smem["vectors_free"])
            return carry

        lax.fori_loop(0, self.num_tiles, one_tile, (jnp.int32(0), jnp.int32(0)))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def operands(self, slot):
        """This warpgroup's rows and all columns of a stage."""
        rows = pl.ds(self.warpgroup * self.plan.wg_rows, self.plan.wg_rows)
        return (
            matrix(self.smem["rows"].at[slot]).at[rows],
            matrix(self.smem["cols"].at[slot]).T,
        )

    def product(self, carry):
        """Sum over this block's K, with one wgmma group always in flight."""
        plan, smem = self.plan, self.smem

        def body(acc):
            def step(j, slot):
                plgpu.barrier_wait(smem["full"].at[slot])
                plgpu.wgmma(acc, *self.operands(slot))
                plgpu.wgmma_wait(1)  # the step before is done with its slot
                release(smem["free"].at[self.previous_slot(slot)], predicate=j > 0)
                return self.next_slot(slot)

            slot = lax.fori_loop(0, self.k_steps, step, carry[0])
            total = acc[...]
            release(smem["free"].at[self.previous_slot(slot)])
            return total, (slot, carry[1])

        return pl.run_scoped(body, plgpu.ACC((plan.wg_rows, plan.cols), self.accumulator))

    # ---- the epilogue

    def finish(self, total, i, m, n, first_col):
        """Scales, rounds and sends a [wg_rows, columns] part of the block's i-th tile.

        The part's columns begin at `first_col` of the tile.
        """
        plan, c = self.plan, self.plan.config
        rows, cols = total.shape
        value = self.scale(total, plan.first_row(self.warpgroup), first_col)
        value = value.astype(plan.problem.out_dtype)
        width = cols if c.swap else plan.out_line_bytes // plan.out_itemsize
        places = list(itertools.product(range(0, rows, 64), range(0, cols, width)))
        for store, (row, col) in enumerate(places):
            part = value[row : row + 64, col : col + width]
            # Staging slots go round from tile to tile, or a tile's first store could overwrite
            # what the last one of the tile before is still sending.
            store += i * len(places)
            first_row = plan.first_row(self.warpgroup, row)
            if c.swap:
                part = plgpu.layout_cast(part, plgpu.Layout.WGMMA_TRANSPOSED)
                self.send(part, m + first_col, n + first_row, store)
            else:
                self.send(part, m + first_row, n + first_col + col, store)

    def send(self, part, m, n, store):
        """Stages one tile in shared memory and has TMA write it; clipped at the edges."""
        slot = lax.rem(jnp.int32(store), jnp.int32(self.out_slots))
        staged = self.smem["out"].at[self.warpgroup, slot]
        plgpu.wait_smem_to_gmem(self.out_slots - 1, wait_read_only=True)
        plain = self.plan.out_transposed_plain
        tile = staged if plain else matrix(staged)
        box = staged if plain else window(staged)
        if self.plan.config.swap:
            tile = tile.T
        tile[...] = part
        plgpu.commit_smem()
        height, width = box.shape
        plgpu.copy_smem_to_gmem(box, self.out.at[pl.ds(m, height), pl.ds(n, width)])

    def scale(self, total, first_row, first_col):
        """Zero points in int32, then float32: w's scale, x's scale, bias. No rounding between."""
        plan, p, smem = self.plan, self.plan.problem, self.smem
        shape = total.shape

        def along(name):
            """A vector, broadcast over the tile along the side that it belongs to."""
            of_x = name in ("x_scale", "azp")
            axis = 0 if of_x != plan.config.swap else 1
            start = first_row if axis == 0 else first_col
            part = smem[name].at[pl.ds(start, shape[axis])]
            vector = plgpu.load(part, layout=_WGMMA.reduce(1 - axis), optimized=False)
            if name == "bias":
                vector = vector.astype(jnp.float32)
            return lax.broadcast_in_dim(vector, shape, (axis,))

        if p.azp == "token":
            total -= along("azp") * along("azp_adj")
        elif p.azp == "static":
            total -= along("azp_adj")
        value = total.astype(jnp.float32)
        if not plan.block_scaled:
            for name, how in (("w_scale", p.w_scale), ("x_scale", p.x_scale)):
                value *= self.gmem[name][0] if how == "tensor" else along(name)
        return value + along("bias") if p.bias else value

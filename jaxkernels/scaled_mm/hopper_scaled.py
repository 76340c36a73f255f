# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The block-scaled product of the Hopper GEMM: one warpgroup's sum over K, promoted every 128.

    total[m, n] += (x_scale[m, k] * w_scale[n / 128, k]) * product of 128 elements of K

The tensor core adds float8 products with about 14 bits, so each step of K starts a product of its
own, and float32 registers add what it gives, scaled. While a warpgroup scales, the tensor core
must have other work. Two ways, by what the registers hold:

    overlapped     two products of a warpgroup in flight: of a step, and of the one before
                   tensor core   | step 0 | step 1 | step 2 | ...
                   registers              |  + 0   |  + 1   | ...
    one at a time  one product a warpgroup, of larger tiles; the other's runs under its scaling
                   tensor core   | wg 0, step 0 | wg 1, step 0 | wg 0, step 1 | ...
                   wg 0          |   find step 1   |  + 0      |              | + 1

What is between two products of a warpgroup counts, and every instruction does: power leaves 1.52 to
1.61 GHz. With waits and addresses after a product the tensor core was busy for 79% of the clocks
(256 x 128 tiles, 4096 x 8192 x 8192, ncu), with both found while it runs for 84%. A pass of the
loop that is one load of scales (four steps), a row's scales by one load, and slots that are numbers
took a step from 226 instructions to 186 and 4096 x 8192 x 8192 from 396 us to 382, which is
DeepGEMM's time (195 instructions). Turns at a barrier of their own cost 4%, waiting for a stage
after scaling 3%. Rows held in registers for two products beside each other (128 x 256) were 5%
slower. In tiles of 128 x 128, one product at a time was 2 to 3% faster than two from 256 rows on,
two with fewer. (H200, 2026-11-28)

A tile of w has one scale a step, or two where it reaches into the next 128 rows: its columns come
in chunks that no edge of 128 divides.

Steps that are no multiple of four begin with a pass of the loop's body that is shorter. (Behind the
loop, where the sum is there already, ptxas spilled up to 148 bytes. Filled up with steps of zeros,
and scales by plain loads, 4096 x 4096 x 11008 took 327 us instead of 255. H200, 2026-11-29)
"""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.arrivals import release
from jaxkernels.mosaic.smem import read_before_tma_writes, row_quads, strided_vector
from jaxkernels.mosaic.wgmma import Tiles, computed_here, finish_product, start_product
from jaxkernels.scaled_mm.hopper_config import BLOCK, SCALE_STEPS

_ROWS = 64  # of a product


class ScaledProduct:
    """A warpgroup's sum over its block's K, for the tile of w that begins at row `n`."""

    def __init__(self, block, n):
        self.block, self.plan, self.smem = block, block.plan, block.smem
        self.warpgroup = block.warpgroup
        self.shape = _ROWS, self.plan.cols
        self.subtiles = self.plan.wg_rows // _ROWS
        self.rows, self.cols = Tiles(self.smem["rows"]), Tiles(self.smem["cols"])
        self.head = self.plan.head_steps
        self.rounds = block.k_steps // SCALE_STEPS  # after the head: whole loads of scales
        self.w_inside = lax.rem(n, jnp.int32(BLOCK))  # rows of w's block before the tile

    def __call__(self, carry):
        """(total, carry): the sum, and the slots where the next tile goes on."""
        zero = plgpu.layout_cast(jnp.zeros(self.shape, jnp.float32), plgpu.Layout.WGMMA)
        totals = (zero,) * self.subtiles
        run = self.overlapped if self.plan.overlaps_scaling else self.one_at_a_time
        totals, *carry = run(totals, *carry)
        total = totals[0] if self.subtiles == 1 else jnp.concatenate(totals, axis=0)
        return total, tuple(carry)

    def overlapped(self, totals, slot, scale_slot):
        """A step's product runs while the one before it is scaled and added."""

        def one_round(_, state, steps=SCALE_STEPS):
            total, slot, scale_slot = state
            plgpu.barrier_wait(self.smem["scales_full"].at[scale_slot])
            scales = self.scales_of_round(scale_slot)
            running = None
            for step in range(steps):
                plgpu.barrier_wait(self.smem["full"].at[slot])
                started = self.start(self.places(slot))
                if running is not None:
                    total = self.add(total, *running, scales(step - 1), in_flight=1)
                running = started, slot
                slot = self.block.next_slot(slot)
            total = self.add(total, *running, scales(steps - 1), in_flight=0)
            read_before_tma_writes()
            return total, slot, self.block.next_scale_slot(scale_slot)

        state = *totals, slot, scale_slot
        state = one_round(None, state, self.head) if self.head else state
        total, *carry = lax.fori_loop(0, self.rounds, one_round, state)
        return (total,), *carry

    def one_at_a_time(self, totals, slot, scale_slot):
        """Products of 64 rows in turn, all in the same registers.

        Nothing but scaling is between two of them: what a product waits for, and where it is, is
        found while the one before runs.
        """
        block, smem, stages = self.block, self.smem, self.plan.config.stages
        numbered = self.plan.numbered_slots
        slot = jnp.int32(self.plan.first_slot or 0) if numbered else slot
        plgpu.barrier_wait(smem["full"].at[slot])

        def one_round(r, state, steps=SCALE_STEPS):
            totals, slot, scale_slot, places = state
            tiles = self.rows, self.cols
            if numbered:
                slot, tiles = -steps % stages, [t.anew() for t in tiles]
                places = self.places(slot, *tiles)
            product = scales = None
            for step in range(steps):
                following = (slot + 1) % stages if numbered else block.next_slot(slot)
                sums = []
                for subtile, total in enumerate(totals):
                    product = self.start(places, subtile, product)
                    if scales is None:
                        plgpu.barrier_wait(smem["scales_full"].at[scale_slot])
                        scales = self.scales_of_round(scale_slot)
                    last = subtile == self.subtiles - 1
                    if last:
                        wait = functools.partial(plgpu.barrier_wait, smem["full"].at[following])
                        if step < steps - 1:
                            wait()
                        else:
                            pl.when(r < self.rounds - 1)(wait)
                        places = self.places(following, *tiles)
                    scale = scales(step, subtile)
                    total = self.add(total, product, slot if last else None, scale, in_flight=0)
                    sums.append(computed_here(total))
                totals, slot = tuple(sums), following
            read_before_tma_writes()
            if numbered:
                _, slot, _, places = state
            return totals, slot, block.next_scale_slot(scale_slot), places

        state = totals, slot, scale_slot, self.places(slot)
        state = one_round(-1, state, self.head) if self.head else state
        totals, slot, scale_slot, _ = lax.fori_loop(0, self.rounds, one_round, state)
        return totals, slot, scale_slot

    def places(self, slot, rows=None, cols=None):
        """Where this warpgroup's rows and all columns of a stage are."""
        rows, cols = rows or self.rows, cols or self.cols
        return rows.place(slot, self.plan.first_row(self.warpgroup)), cols.place(slot)

    def start(self, places, subtile=0, over=None):
        """Starts the product of a stage that has come, with 64 of this warpgroup's rows."""
        if over is not None:  # no grid is that large
            over = over, lax.shift_right_logical(self.block.cluster, jnp.int32(28))
        a, b = places
        a = self.rows.below(a, self.plan.first_row(0, subtile * _ROWS))
        return start_product(self.rows, a, self.cols, b, self.shape, over)

    def add(self, total, product, slot, scales, in_flight):
        """`total` and a product, scaled; `slot`, if not None, goes back to the loader."""
        part = finish_product(product, in_flight)
        if slot is not None:
            release(self.smem["free"].at[slot])
        return total + part * scales

    # ---- scales

    def scales_of_round(self, slot):
        """scales(step, subtile): x's scales times w's, over 64 rows and all columns of a product.

        Those of a row lie side by side and come with one load: of four steps.
        """
        cols, x_scales, w_scales = self.plan.cols, self.smem["x_scales"], self.smem["w_scales"]
        if self.plan.config.swap:

            def times(w_scale, step, subtile, cols):
                return strided_vector(x_scales.at[slot, :, step], (_ROWS, cols), 1) * w_scale
        else:
            firsts = [self.plan.first_row(self.warpgroup, i * _ROWS) for i in range(self.subtiles)]
            rows = [row_quads(x_scales.at[slot, pl.ds(first, _ROWS)]) for first in firsts]

            def times(w_scale, step, subtile, cols):
                return lax.broadcast_in_dim(rows[subtile][step] * w_scale, (_ROWS, cols), (0,))

        count = 1 if self.plan.config.swap or BLOCK % cols == 0 else 2
        of_w = [[w_scales[slot, i, step] for i in range(count)] for step in range(SCALE_STEPS)]

        def scales(step, subtile=0):
            first, *second = of_w[step]
            if not second:
                return times(first, step, subtile, cols)
            chunks, width = [], math.gcd(cols, BLOCK)
            for col in range(0, cols, width):
                w_scale = first if col == 0 else second[0]
                if 0 < col < BLOCK:
                    w_scale = lax.select(self.w_inside + col < BLOCK, first, second[0])
                chunks.append(times(w_scale, step, subtile, width))
            return jnp.concatenate(chunks, axis=1)

        return scales

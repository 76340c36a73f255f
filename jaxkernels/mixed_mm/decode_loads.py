# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The loading warpgroup of the decode kernel: a stage of weights at a time, and x to go with it.

    one warp          | w of the first slots | wait for the kernel ahead | their x |
                      | wait empty[s] | TMA: w, x, scales, zeros -> slot s, full[s] | ...
    with `gather`     | w of the first slots | wait for the kernel ahead | TMA: whole rows of x |
    all its warps     | wait empty[s] | TMA: w, scales, zeros | columns of x -> s, full[s] | ...

In act-order a stage multiplies columns from all over x. Where few rows of it fit beside the ring,
every block has them whole and picks columns for a stage when its slot is free, by the order's part
that it has read a ring ahead (`mosaic.gather`).
"""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.arrivals import by_first_warp, copy_in
from jaxkernels.mosaic.convert import TILE
from jaxkernels.mosaic.gather import (
    boxes,
    clear,
    columns_layout,
    gather_into,
    stage_rows,
    staged_rows,
)
from jaxkernels.mosaic.launch import wait_for_previous_kernel
from jaxkernels.mosaic.smem import window

if typing.TYPE_CHECKING:
    from jaxkernels.mixed_mm.hopper_decode import DecodeConfig


def gather_scratch(m: int, k: int, dtype) -> dict:
    """What a kernel with `gather` has to allocate for it."""
    return {
        "rows": staged_rows(m, k, dtype),
        "rows_full": plgpu.Barrier(num_arrivals=boxes(k)),
    }


def copies_of_x(config: DecodeConfig) -> int:
    """How often a stage's x arrives at its barrier."""
    return 1 if config.gather else config.tile_k // TILE


@dataclasses.dataclass(frozen=True)
class Loads:
    """What a block loads.

    Attributes:
      config: the kernel's.
      gmem, smem: references by name, as in `hopper_decode`.
      words: rows of packed words a stage.
      spans: what else comes with w: name -> (how much of K an entry covers, entries a stage).
      steps: stages of this block.
      rank: of the block in its cluster, each with a part of K.
      row_tile, m0: the block's first 64 rows of w, and first row of x.
    """

    config: DecodeConfig
    gmem: dict
    smem: dict
    words: int
    spans: dict[str, tuple[int, int]]
    steps: int
    rank: jax.Array
    row_tile: jax.Array
    m0: jax.Array

    def run(self) -> None:
        """All of it, from the first stage until every slot has been given back."""
        self._run() if self.config.gather else by_first_warp(self._run)

    def _run(self):
        # Packed weights never come from the kernel ahead (mosaic/launch.py); x and bias may.
        # Only this warpgroup has to wait: nothing is stored before x has been read.
        c, steps = self.config, self.steps
        ahead = min(c.stages, steps) if c.overlap or c.gather else 0
        lax.fori_loop(0, ahead, self._weights, None)
        if c.gather:
            self._picked_x()
        else:
            if c.overlap:
                wait_for_previous_kernel()
            lax.fori_loop(0, ahead, self._x, None)
            self._bias()
            lax.fori_loop(ahead, steps, self._stage, None)
        for i in range(max(0, steps - c.stages), steps):  # every phase is seen by all
            plgpu.barrier_wait(self.smem["empty"].at[self._slot(i)])

    def _slot(self, i):
        return i & (self.config.stages - 1)

    def _step(self, i):
        """Where the i-th stage is along the whole K."""
        return self.rank * self.steps + i

    def _weights(self, i, _=None):
        c, slot, k_step = self.config, self._slot(i), self._step(i)
        full = self.smem["full"].at[slot]
        rows = pl.ds(self.row_tile, c.wg_n)
        words = pl.ds(k_step * self.words, self.words)
        copy_in(self.gmem["w"].at[rows, words], self.smem["w"].at[slot], full)
        for name, (span, count) in self.spans.items():
            entries = pl.ds(lax.div(k_step * c.tile_k, span), count)
            copy_in(self.gmem[name].at[rows, entries], self.smem[name].at[slot], full)

    def _x(self, i, _=None):
        c, slot = self.config, self._slot(i)
        for t in range(c.tile_k // TILE):
            columns = pl.ds(self._step(i) * c.tile_k + t * TILE, TILE)
            source = self.gmem["x"].at[pl.ds(self.m0, c.tile_m), columns]
            copy_in(source, window(self.smem["x"].at[slot, t]), self.smem["full"].at[slot])

    def _stage(self, i, _):
        @pl.when(i >= self.config.stages)
        def _reuse():
            plgpu.barrier_wait(self.smem["empty"].at[self._slot(i)])

        self._weights(i)
        self._x(i)

    def _bias(self):
        if "bias" in self.smem:
            rows = self.smem["bias"].shape[0]
            source = self.gmem["bias"].at[pl.ds(self.row_tile * TILE, rows)]
            copy_in(source, self.smem["bias"], self.smem["bias_full"])

    # ---- act-order

    def _picked_x(self):
        """x of every stage, and the weights of all but the first."""
        c, smem = self.config, self.smem
        orders = tuple(self._order(i) for i in range(c.stages))
        clear(smem["x"])
        plgpu.commit_smem()  # other threads put columns where these put zeros
        if c.overlap:
            wait_for_previous_kernel()
        by_first_warp(lambda: stage_rows(self.gmem["x"], 0, smem["rows"], smem["rows_full"]))
        self._bias()
        plgpu.barrier_wait(smem["rows_full"])

        def one_pass(j, orders):
            following = []
            for slot, order in enumerate(orders):
                i = j * c.stages + slot

                @pl.when(i < self.steps)
                def _(i=i, slot=slot, order=order):
                    @pl.when(j > 0)
                    def _reuse():
                        plgpu.barrier_wait(smem["empty"].at[slot])
                        self._weights(i)

                    gather_into(smem["x"].at[slot], smem["rows"], order)
                    plgpu.commit_smem()
                    plgpu.barrier_arrive(smem["full"].at[slot])

                following.append(self._order(i + c.stages))
            return tuple(following)

        lax.fori_loop(0, pl.cdiv(self.steps, c.stages), one_pass, orders)

    def _order(self, i):
        """Which columns of x the i-th stage multiplies; past the end some that there are."""
        c = self.config
        start = self._step(jnp.minimum(i, self.steps - 1)) * c.tile_k
        columns = self.gmem["order"].at[pl.ds(start, c.tile_k)]
        return plgpu.load(columns, layout=columns_layout(c.tile_k), optimized=False)

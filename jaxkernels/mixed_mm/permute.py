# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Act-order's other half: the columns of x in the order of a prepared weight's, as a kernel.

    out[m, p] = x[m, order[p]]

A prepared act-order weight has its columns sorted by group, so a product with it needs the columns
of x in the same order. With few rows the decode kernel picks them itself; here is a kernel ahead of
the product, whose blocks start meanwhile, load weights, and wait for x (`mosaic.launch`).

A block takes a few whole rows, and its warpgroups a part of the places each:

    warpgroups   | indices -> registers                    | pick from shared memory, store |
    the first    |          | wait for x | TMA: rows        |

With x in the L2 cache few rows take 1 to 2 us, nearly all of it the launch, and many rows go at
3.4 TB/s. Letting the product start at once took 16 x 6144 x 4096 from 8.5 to 7.4 us: its weights
come while the kernel ahead of this one still runs. (H200, 2026-11-28)
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.arrivals import by_first_warp
from jaxkernels.mosaic.gather import boxes, gather, stage_rows, staged_rows
from jaxkernels.mosaic.launch import let_next_kernel_start, wait_for_previous_kernel
from jaxkernels.mosaic.rowreduce import THREADS, row_pieces

MIN_COLUMNS = THREADS
MAX_COLUMNS = 440 * 256  # a row of which has to fit in shared memory
_STAGED_BYTES = 112 << 10  # of rows in a block: two blocks on an SM
_INDICES_AHEAD = 3  # pieces whose indices a warpgroup holds
_MANY_ROWS = 256  # from which on every SM has several blocks
_BLOCKS = 128  # below which blocks that share rows give idle SMs work
_FEW_ELEMENTS, _MANY_ELEMENTS = 3 << 20, 12 << 20  # of x: then a block takes 2 rows, and 4


@dataclasses.dataclass(frozen=True)
class Cut:
    """How many rows a block takes, how many blocks share them, and how many warpgroups each has.

    Example:
      >>> Cut.of(16, 4096, 4096), Cut.of(4096, 28672, 28672)
      (Cut(rows=1, parts=1, warpgroups=4), Cut(rows=2, parts=1, warpgroups=4))
    """

    rows: int
    parts: int
    warpgroups: int

    @staticmethod
    def of(m: int, k: int, places: int) -> Cut:
        whole = places // row_pieces(places, 2).size
        rounds = pl.cdiv(whole, 4 if m >= _MANY_ROWS else 8)  # of the block's warpgroups
        parts = max(1, min(rounds, _BLOCKS // m))
        rows = 1 if m * k < _FEW_ELEMENTS else 2 if m * k < _MANY_ELEMENTS else 4
        rows = max(1, min(rows, _STAGED_BYTES // (2 * k)))
        return Cut(rows, parts, pl.cdiv(whole, rounds))


def permute_columns(x: jax.Array, order: jax.Array, cut: Cut | None = None) -> jax.Array:
    """x[:, order].

    Args:
      x: bfloat16 or float16 [M, K], K from 128 to 112640 and a multiple of 8.
      order: int32 [P], columns, P as K is; or [2, P], whose first row is meant.
      cut: None takes the default for the shape.
    """
    (m, k), places = x.shape, order.shape[-1]
    cut = cut or Cut.of(m, k, places)
    pieces = row_pieces(places, 2)
    whole = places // pieces.size
    lanes = cut.parts * cut.warpgroups  # warpgroups that share a row, a piece each in turn

    def body(x_gmem, order_gmem, out_gmem, staged, full):
        first = lax.axis_index("row") * cut.rows
        warpgroup = lax.axis_index("warpgroup")
        lane = lax.axis_index("part") * cut.warpgroups + warpgroup

        def indices(start):
            columns = order_gmem if order.ndim == 1 else order_gmem.at[0]
            place = columns.at[pl.ds(start, pieces.size)]
            return plgpu.load(place, layout=pieces.layout, optimized=False)

        def pick(start, columns):
            for r, values in enumerate(gather(staged, columns, pieces.layout)):

                @pl.when(first + r < m)
                def _(r=r, values=values):
                    out_gmem[first + r, pl.ds(start, pieces.size)] = values

        def bring():
            let_next_kernel_start()  # the product: it loads weights while this one waits
            wait_for_previous_kernel(next_may_start=False)
            stage_rows(x_gmem, first, staged, full)

        # The order is part of a weight: older than the kernel ahead (mosaic/launch.py).
        numbers = [lane + i * lanes for i in range(pl.cdiv(whole, lanes))]
        starts = [jnp.minimum(number, whole - 1) * pieces.size for number in numbers]
        ready = [indices(start) for start in starts[:_INDICES_AHEAD]]
        pl.when(warpgroup == 0)(lambda: by_first_warp(bring))
        plgpu.barrier_wait(full)
        for i, (number, start) in enumerate(zip(numbers, starts, strict=True)):
            pl.when(number < whole)(functools.partial(pick, start, ready.pop(0)))
            if i + _INDICES_AHEAD < len(starts):
                ready.append(indices(starts[i + _INDICES_AHEAD]))
        if len(pieces.starts) > whole:  # what is left overlaps the last whole piece: its owner's
            last = pieces.starts[-1]
            pl.when(lane == (whole - 1) % lanes)(lambda: pick(last, indices(last)))

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((m, places), x.dtype),
        grid=(pl.cdiv(m, cut.rows), cut.parts),
        grid_names=("row", "part"),
        num_threads=cut.warpgroups,
        thread_name="warpgroup",
        scratch_types=[
            staged_rows(cut.rows, k, x.dtype),
            plgpu.Barrier(num_arrivals=boxes(k)),
        ],
        kernel_name="permute_columns",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
    )
    return kernel(x, order)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""A scale for each group along a row, on Hopper.

    s = max(max|x|, 1e-10) / 448, or the power of two above;  q = fp8(x / s)

A group of 128 lies in 16 lanes of 8 elements, so that a tile of 8 groups is one load of a warpgroup
and a maximum is four shuffles. A warpgroup takes a few tiles; where they do not come out even, the
last one begins earlier and writes some values twice. Too few groups for a tile go one a warpgroup.
Column-major scales are written where they belong: 4 bytes here and there, of 3 for each element.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic import rowreduce as rr
from jaxkernels.problem import QuantizeOperands, QuantizeProblem
from jaxkernels.quantize import xla

F32 = jnp.float32


def run(problem: QuantizeProblem, operands: QuantizeOperands, elements: int):
    """(q, scale, None), by runs of about so many elements."""
    p = problem
    tile = rr.group_tile(p.group_size, p.x_bytes)
    if not fills_a_tile(p, tile):
        return _one_by_one(p, operands)
    groups, layout = p.k // p.group_size, rr.group_layout(p.group_size, p.x_bytes)
    rows, total = (p.m, groups) if p.column_major else (1, p.m * groups)
    length = _tiles_a_run(total, tile, elements // (p.group_size * tile)) * tile
    runs_a_row, padded = total // length, p.padded_rows
    left = total % length  # groups for the last run of a row to do too
    last = [*range(total - left, total - tile + 1, tile), *([total - tile] if left % tile else [])]

    def body(x_gmem, q_gmem, scale_gmem):
        run = jax.lax.axis_index("run")
        row, start = run // runs_a_row, run % runs_a_row * length

        def convert(starts):
            spans = [pl.ds(first, tile) for first in starts]
            x_tiles = [x_gmem.at[row, span] for span in spans]
            loaded = [plgpu.load(x, layout=layout, optimized=False) for x in x_tiles]
            for span, x in zip(spans, loaded, strict=True):
                absmax = jnp.max(jnp.abs(x), axis=1).astype(F32)
                scale = _scale(p, absmax, layout.reduce(1))
                q_gmem[row, span] = _codes(p, x, scale, layout)
                if not p.column_major:
                    scale_gmem[span] = scale
                    continue
                scale_gmem[span, row] = scale
                for extra in range(p.m, padded):

                    @pl.when(row == p.m - 1)
                    def _(span=span, extra=extra):
                        zeros = plgpu.layout_cast(jnp.zeros((tile,), F32), layout.reduce(1))
                        scale_gmem[span, extra] = zeros

        convert([start + first for first in range(0, length, tile)])
        if left:
            pl.when(start == (runs_a_row - 1) * length)(lambda: convert(last))

    shape = (rows, total, p.group_size)
    outputs = [(shape, p.out_dtype), ((groups, padded) if p.column_major else (total,), F32)]
    kernel = rr.row_kernel(body, outputs, rows * runs_a_row, "quantize_group")
    q, scale = kernel(operands.x.reshape(shape))
    return q.reshape(p.m, p.k), scale if p.column_major else scale.reshape(p.m, groups), None


def _tiles_a_run(groups: int, tile: int, most: int) -> int:
    """At most `most`, and fewer where half as many or more cut the groups evenly."""
    most = max(min(most, groups // tile), 1)
    wanted = range(most, max(most // 2, 1) - 1, -1)
    return next((tiles for tiles in wanted if groups % (tiles * tile) == 0), most)


def fills_a_tile(problem: QuantizeProblem, tile: int) -> bool:
    """Whether there are enough groups for a warpgroup, in a row where its scales need that."""
    groups = problem.k // problem.group_size
    return tile > 0 and (groups if problem.column_major else groups * problem.m) >= tile


def _one_by_one(problem: QuantizeProblem, operands: QuantizeOperands):
    """A warpgroup a group, for the few groups of a small x."""
    p, groups, padded = problem, problem.k // problem.group_size, problem.padded_rows
    pieces = rr.row_pieces(p.group_size, p.x_bytes)

    def body(x_gmem, q_gmem, scale_gmem):
        run = jax.lax.axis_index("run")
        row, group = run // groups, run % groups
        x = pieces.load(x_gmem, run)
        scale = _scale(p, rr.row_absmax(x))
        inverse = rr.divide(1.0, scale)
        codes = (
            rr.divide_by_few(
                v.astype(F32), scale, inverse, pieces.layout, rr.correction_steps(p.x_bytes)
            )
            for v in x
        )
        pieces.store(q_gmem, run, map(rr.to_fp8, codes))
        if not p.column_major:
            scale_gmem[row, group] = scale
            return
        scale_gmem[group, row] = scale
        for extra in range(p.m, padded):

            @pl.when(row == p.m - 1)
            def _(extra=extra):
                scale_gmem[group, extra] = jnp.float32(0.0)

    shape = (p.m * groups, p.group_size)
    outputs = [(shape, p.out_dtype), ((groups, padded) if p.column_major else (p.m, groups), F32)]
    kernel = rr.row_kernel(body, outputs, p.m * groups, "quantize_one_by_one")
    q, scale = kernel(operands.x.reshape(shape))
    return q.reshape(p.m, p.k), scale, None


def _scale(problem: QuantizeProblem, absmax, layout=None):
    """The scales of groups from their max|x|: a vector of a tile's, or one."""
    absmax = jnp.maximum(absmax, xla.GROUP_EPS)
    if layout is None:
        scale = rr.divide(absmax, xla.FP8_MAX)
    else:
        by, inverse = jnp.float32(xla.FP8_MAX), jnp.float32(1 / xla.FP8_MAX)
        scale = rr.divide_by_few(absmax, by, inverse, layout)
        scale = jnp.where(absmax < jnp.inf, scale, absmax)  # the correction would make Inf a NaN
    if problem.ue8m0:
        power = rr.scalar_power_of_two_at_least if layout is None else xla.power_of_two_at_least
        scale = power(jnp.maximum(scale, xla.GROUP_EPS))
    return scale


def _codes(problem: QuantizeProblem, x, scale, layout):
    inverse = rr.divide(1.0, scale, layout.reduce(1))
    by, inverse = (jax.lax.broadcast_in_dim(v, x.shape, (0,)) for v in (scale, inverse))
    if problem.ue8m0:  # the reciprocal of a power of two is exact
        return rr.to_fp8(x.astype(F32) * inverse)
    return rr.to_fp8(
        rr.divide_by_few(x.astype(F32), by, inverse, layout, rr.correction_steps(problem.x_bytes))
    )

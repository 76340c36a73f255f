# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm for many rows of x on Hopper: keeps the tensor cores fed while weights are converted.

    out[m, n] = sum_k x[m, k] * (q[n, k] - zero[n, g]) * scale[n, g] * global + bias[n]

computed transposed: weights are wgmma's A operand, from registers, x^T is its B, from shared
memory. Weights lie in fragment order (mixed_mm/prepare.py), the same as for few rows. Blocks stay
and walk over output tiles of wg_n * 64 rows of w by tile_m rows of x.

    memory warpgroup   | w, scales, zeros of the first slots | wait for the kernel ahead | their x |
                       | wait free[s] | TMA: w, x, scales, zeros -> slot s, full[s] | next tile ...
    compute warpgroups | full[s]: words, convert | wgmma ------------------------> |
                       |            full[s + 1]: words, convert | free[s] | wgmma ---------> |
                       | after K: scale, bias, round, transpose through shared memory, TMA |

A warpgroup converts a tile of 64 x 64 weights while its wgmma of the tile before runs, and the
warpgroups of a block drift apart, so that one's epilogue runs under the other's products. Group
scales multiply the converted weights, each product rounded once to x's dtype (as Marlin and
Machete do); one scale for the whole K goes on the float32 sum.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mixed_mm.scales import Scales
from jaxkernels.mosaic import convert
from jaxkernels.mosaic.arrivals import by_first_warp, copy_in, release
from jaxkernels.mosaic.convert import TILE
from jaxkernels.mosaic.device import trace_device
from jaxkernels.mosaic.launch import wait_for_previous_kernel
from jaxkernels.mosaic.smem import matrix, swizzled, window
from jaxkernels.problem import MixedMMOperands, MixedMMProblem

_OUT_SLOTS = 2  # staged pieces [64, 64] of the output, a warpgroup
_MEMORY_REGISTERS = 40


@dataclasses.dataclass(frozen=True)
class PrefillConfig:
    """How the prefill kernel cuts a problem.

    Attributes:
      tile_m: rows of x of an output tile (wgmma's N): 64 to 256, a multiple of 64.
      wg_n: compute warpgroups, 64 rows of w each; they share x.
      tile_k: K of one stage, a multiple of 64.
      stages: slots of the pipeline.
      cluster_n: blocks of a cluster with adjacent rows of w; each reads a part of x for all.
      panel: tiles along m that the blocks walk before they move along n.
      overlap: start while the kernel ahead on the stream still runs: the first stages of weights
        come meanwhile, and its results are waited for before x is read.
    """

    tile_m: int = 256
    wg_n: int = 2
    tile_k: int = 64
    stages: int = 4
    cluster_n: int = 1
    panel: int = 8
    overlap: bool = True

    @property
    def compute_registers(self) -> int | None:
        """Registers a compute thread is given, or None where an even share is enough."""
        share = 512 // (self.wg_n + 1) // 8 * 8  # what the launch gives every thread
        if self.tile_m // 2 + 72 <= share:
            return None
        # More than the launch has would be waited for forever.
        return min((share * (self.wg_n + 1) - _MEMORY_REGISTERS) // self.wg_n // 8 * 8, 240)


def zero_row_tiles(c: PrefillConfig, group: int) -> int:
    """Tiles of 64 rows whose zero points a stage brings: TMA moves 128 bytes at a time.

    Example:
      >>> zero_row_tiles(PrefillConfig(wg_n=3), 128), zero_row_tiles(PrefillConfig(wg_n=2), 128)
      (4, 2)
    """
    return c.wg_n + (c.wg_n % 2 and c.tile_k <= group)


def prefill(problem: MixedMMProblem, operands: MixedMMOperands, config: PrefillConfig) -> jax.Array:
    """Runs the kernel; x is already in the order of w's columns (see `prepare`)."""
    x, w, bias = operands
    c = config
    fmt = convert.FORMATS[problem.weight_type]
    dtype = x.dtype
    out_dtype = jnp.dtype(problem.out_dtype)
    m, n, k = problem.m, problem.n, problem.k
    group = problem.group
    scales = Scales(problem, w, dtype, on_weight=True)
    grouped = scales.grouped
    zeros = problem.zero_points

    tile_n = c.wg_n * TILE
    tiles = c.tile_k // TILE  # 64 x 64 tiles of a stage, along K
    # wgmma reads its A registers while the next tile is converted, so one pass of the loop over K
    # has to hold two tiles or more, in registers of their own.
    unroll = 2 if tiles == 1 else 1
    passes = -(-k // (c.tile_k * unroll))  # the last may reach past K: TMA reads zeros there
    steps = passes * unroll
    m_tiles, n_tiles = -(-m // c.tile_m), -(-n // (tile_n * c.cluster_n))
    clusters = min(m_tiles * n_tiles, max(1, trace_device().num_sms // c.cluster_n))
    ahead = min(c.stages, steps) if c.overlap else 0
    # What comes with each stage besides w and x, and how much of K an entry covers.
    spans = {"scale": scales.span} | ({"zero": group} if zeros else {}) if grouped else {}
    multicast = "rank" if c.cluster_n > 1 else None

    def kernel(*refs, **smem):
        names = ["x", "w", "scale"] + ["zero"] * zeros + ["global"] * problem.global_scale
        names += ["bias"] * problem.bias + ["out"]
        gmem = dict(zip(names, refs, strict=True))
        warpgroup = lax.axis_index("wg")
        cluster = lax.axis_index("clusters")
        num_tiles = lax.div(jnp.int32(m_tiles * n_tiles - 1) - cluster, jnp.int32(clusters)) + 1

        def place(i):
            """First row of x and first 64-row tile of w of this block's i-th output tile."""
            index = cluster + i * clusters
            mi, ni = plgpu.planar_snake(index, (m_tiles, n_tiles), 0, c.panel)
            if c.cluster_n > 1:
                ni = ni * c.cluster_n + lax.axis_index("rank")
            return mi * c.tile_m, ni * c.wg_n

        def next_slot(slot):
            return lax.select(slot == c.stages - 1, jnp.int32(0), slot + 1)

        def previous_slot(slot):
            return lax.select(slot == 0, jnp.int32(c.stages - 1), slot - 1)

        # ---- the memory warpgroup

        def load_weights(row_tile, j, slot):
            plgpu.barrier_wait(smem["free"].at[slot])
            full = smem["full"].at[slot]
            rows = pl.ds(row_tile, c.wg_n)
            words = pl.ds(j * (tiles * fmt.bits), tiles * fmt.bits)
            copy_in(gmem["w"].at[rows, words], smem["w"].at[slot], full)
            for name, span in spans.items():
                target = smem[name].at[slot]
                rows = pl.ds(row_tile, target.shape[0])
                entries = pl.ds(lax.div(j * c.tile_k, span), max(1, c.tile_k // span))
                copy_in(gmem[name].at[rows, entries], target, full)

        def load_x(m0, j, slot):
            for t in range(tiles):
                columns = pl.ds(j * c.tile_k + t * TILE, TILE)
                copy_in(
                    gmem["x"].at[pl.ds(m0, c.tile_m), columns],
                    window(smem["x"].at[slot, t]),
                    smem["full"].at[slot],
                    collective_axes=multicast,
                )

        def load_ahead():
            """Loads what fits of the first tile: weights while the kernel ahead may still run."""
            m0, row_tile = place(0)
            lax.fori_loop(0, ahead, lambda j, _: load_weights(row_tile, j, j), None)
            wait_for_previous_kernel()
            lax.fori_loop(0, ahead, lambda j, _: load_x(m0, j, j), None)

        def load_tile(i, slot):
            m0, row_tile = place(i)
            if problem.bias:
                plgpu.barrier_wait(smem["bias_free"])
                source = gmem["bias"].at[pl.ds(row_tile * TILE, tile_n)]
                copy_in(source, smem["bias"], smem["bias_full"])

            def step(j, slot):
                load_weights(row_tile, j, slot)
                load_x(m0, j, slot)
                return next_slot(slot)

            return lax.fori_loop(jnp.where(i == 0, ahead, 0), steps, step, slot)

        @pl.when(warpgroup == c.wg_n)
        def _memory():
            if c.compute_registers:
                plgpu.set_max_registers(_MEMORY_REGISTERS, action="decrease")

            @by_first_warp
            def _load():
                if c.overlap:
                    load_ahead()
                lax.fori_loop(0, num_tiles, load_tile, jnp.int32(ahead % c.stages))
                # Blocks of a cluster signal each other's barriers: none leaves before the last one.
                for s in range(c.stages):
                    plgpu.barrier_wait(smem["free"].at[s])
                if problem.bias:
                    plgpu.barrier_wait(smem["bias_free"])

        # ---- the compute warpgroups

        def zeros_of(slot, t):
            """Zero points for the columns of tile t of a slot: one row a group."""
            starts = range(t * TILE, (t + 1) * TILE, min(group, TILE))
            rows = smem["zero"].at[slot, warpgroup]
            return tuple(convert.load_zeros(rows.at[k0 // group]) for k0 in starts)

        def multiply_tile(i, slot):
            m0, row_tile = place(i)
            # A whole tile may lie past N (its words are zeros): its scales are another tile's.
            own_row_tile = jnp.minimum(row_tile + warpgroup, w.data.shape[0] - 1)
            whole_zeros = ()
            if zeros and not grouped:
                whole_zeros = (convert.load_zeros(gmem["zero"].at[own_row_tile, 0]),)

            def product(acc):
                def step(j, slot, first):
                    plgpu.barrier_wait(smem["full"].at[slot])
                    for t in range(tiles):
                        words = smem["w"].at[slot, warpgroup, pl.ds(t * fmt.bits, fmt.bits)]
                        scaled = {}
                        if grouped:
                            entries = smem["scale"].at[slot, warpgroup]
                            scaled = scales.for_weights(entries, t * TILE)
                        a = convert.fragment(
                            convert.load_words(words, fmt),
                            fmt,
                            dtype,
                            zeros=zeros_of(slot, t) if zeros and grouped else whole_zeros,
                            **scaled,
                        )
                        b = matrix(smem["x"].at[slot, t]).T
                        convert.multiply(acc, a, b, smem["fragment"].at[warpgroup])
                        plgpu.wgmma_wait(1)
                        if t == 0:  # all products of the slot before are done
                            before = smem["free"].at[previous_slot(slot)]
                            release(before, predicate=j > 0 if first else None)
                    return next_slot(slot)

                def one_pass(j, slot):
                    for u in range(unroll):
                        slot = step(j, slot, u == 0)
                    return slot

                end = lax.fori_loop(0, passes, one_pass, slot)
                total = acc[...]
                release(smem["free"].at[previous_slot(end)])
                return total, end

            total, slot = pl.run_scoped(product, plgpu.ACC((TILE, c.tile_m), jnp.float32))
            finish(total, m0, row_tile + warpgroup, own_row_tile)
            return slot

        def finish(total, m0, row_tile, own_row_tile):
            row_bias = None
            factors = scales.finish(gmem, own_row_tile)
            if problem.bias:
                plgpu.barrier_wait(smem["bias_full"])
                row_bias = convert.load_rows(smem["bias"].at[pl.ds(warpgroup * TILE, TILE)])
                row_bias = row_bias.astype(jnp.float32)
                plgpu.commit_smem()  # read by threads, next written by TMA: order the two
                plgpu.barrier_arrive(smem["bias_free"])
            for piece in range(c.tile_m // TILE):
                acc = total[:, piece * TILE : (piece + 1) * TILE]
                for factor in factors:
                    across = lax.broadcast_in_dim(factor, (TILE, TILE), (0,)[: factor.ndim])
                    acc = acc * across
                if row_bias is not None:
                    acc = acc + lax.broadcast_in_dim(row_bias, (TILE, TILE), (0,))
                staged = smem["out"].at[warpgroup, piece % _OUT_SLOTS]
                # The store before may still be read, if it is not this slot's.
                same = piece == 0 and (c.tile_m // TILE) % _OUT_SLOTS == 1
                plgpu.wait_smem_to_gmem(0 if same else _OUT_SLOTS - 1, wait_read_only=True)
                out = plgpu.layout_cast(acc.astype(out_dtype), plgpu.Layout.WGMMA_TRANSPOSED)
                matrix(staged).T[...] = out
                plgpu.commit_smem()
                target = gmem["out"].at[
                    pl.ds(m0 + piece * TILE, TILE), pl.ds(row_tile * TILE, TILE)
                ]
                plgpu.copy_smem_to_gmem(window(staged), target)

        @pl.when(warpgroup < c.wg_n)
        def _compute():
            if c.compute_registers:
                plgpu.set_max_registers(c.compute_registers, action="increase")
            # Every slot begins free; signalled once, the loader needs no special first round.
            lax.fori_loop(0, c.stages, lambda s, _: plgpu.barrier_arrive(smem["free"].at[s]), None)
            if problem.bias:
                plgpu.barrier_arrive(smem["bias_free"])
            lax.fori_loop(0, num_tiles, multiply_tile, jnp.int32(0))
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    free = {"num_arrivals": c.wg_n, "num_barriers": c.stages}
    scratch = {
        "w": plgpu.SMEM((c.stages, c.wg_n, tiles * fmt.bits, convert.LANES), jnp.int32),
        "x": swizzled((c.stages, tiles), c.tile_m, dtype),
        "out": swizzled((c.wg_n, _OUT_SLOTS), TILE, out_dtype),
        "full": plgpu.Barrier(num_arrivals=1 + tiles + len(spans), num_barriers=c.stages),
        "free": plgpu.ClusterBarrier(collective_axes=("rank",), **free)
        if multicast
        else plgpu.Barrier(**free),
        "fragment": convert.scratch_type(c.wg_n, dtype),
    }
    if grouped:
        scratch["scale"] = scales.scratch(c.stages, c.wg_n, c.tile_k)
    if grouped and zeros:
        rows = (c.stages, zero_row_tiles(c, group), max(1, c.tile_k // group), TILE)
        scratch["zero"] = plgpu.SMEM(rows, jnp.uint8)
    if problem.bias:
        scratch["bias"] = plgpu.SMEM((tile_n,), bias.dtype)
        scratch["bias_full"] = plgpu.Barrier()
        scratch["bias_free"] = plgpu.Barrier(num_arrivals=c.wg_n)

    call = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((m, n), out_dtype),
        scratch_types=scratch,
        grid=(clusters,),
        grid_names=("clusters",),
        cluster=(c.cluster_n,) if multicast else (),
        cluster_names=("rank",) if multicast else (),
        num_threads=c.wg_n + 1,
        thread_name="wg",
        kernel_name="mixed_mm_prefill",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
    )
    optional = (w.zero_point if zeros else None, w.global_scale, bias)
    return call(x, w.data, scales.array, *(v for v in optional if v is not None))

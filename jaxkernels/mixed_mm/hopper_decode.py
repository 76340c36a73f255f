# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm for few rows of x on Hopper: reads the packed weights once, as fast as memory gives.

    out[m, n] = sum_k x[m, k] * (q[n, k] - zero[n, g]) * scale[n, g] * global + bias[n]

computed transposed: weights are wgmma's A operand, from registers, x^T is its B, from shared
memory. Weights lie in fragment order (mixed_mm/prepare.py), so a thread's 16-byte loads already
are its fragment. A block covers wg_n * 64 rows of w and tile_m rows of x; wg_k warpgroups share
each stage's K, and split_k blocks of a cluster share the whole K. Every sum has a fixed order.

    memory warpgroup   | w, x, scales, zeros of a stage -> slot s, full[s] | ...    (`decode_loads`)
    compute warpgroups | wait full[s] | words -> registers -> fragment | wgmma | ... | empty[s]
                         (the fragment of tile t + 1 is converted while tile t multiplies)
    then               | partial sums: other warpgroups (shared memory), other blocks (cluster) |
                       | scale, bias, round, transpose through shared memory, TMA store |

scale_on says where a group's scale goes. "accumulator": on the float32 partial sum of each group,
weights stay exact. "weight": on the converted weights, each product rounded once to x's dtype (as
Marlin and Machete do); needed for groups of 16 and 32, and it keeps one accumulator, so wgmma never
drains. It costs nothing in bfloat16, but a product each with zero points (`convert`). With one
scale for the whole K it always goes on the final sum (see `scales`).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mixed_mm.decode_loads import Loads, copies_of_x, gather_scratch
from jaxkernels.mixed_mm.scales import Scales, add_scaled_sum
from jaxkernels.mosaic import convert
from jaxkernels.mosaic.arrivals import release
from jaxkernels.mosaic.cluster import exchange_outputs, exchange_scratch, sum_over_cluster
from jaxkernels.mosaic.convert import TILE
from jaxkernels.mosaic.smem import matrix, swizzled, window
from jaxkernels.problem import MixedMMOperands, MixedMMProblem

_WGMMA = plgpu.Layout.WGMMA


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How the decode kernel cuts a problem.

    Attributes:
      tile_m: rows of x a block takes (wgmma's N): 8 to 128, a multiple of 8.
      wg_n: compute warpgroups along n, 64 rows of w each.
      wg_k: compute warpgroups that share the same rows and cut each stage's K.
      tile_k: K of one stage, a multiple of 64 * wg_k.
      stages: slots of the pipeline, a power of two.
      split_k: blocks of a cluster that share K: 1, 2, 4 or 8.
      scale_on: "accumulator" or "weight", see the module's docstring.
      gather: the columns of x, up to 8 rows, are picked here for act-order, from whole rows of it
        in shared memory; without it x comes in the order of w's columns.
      overlap: start while the kernel ahead on the stream still runs: the first stages of weights
        come meanwhile, and its results are waited for before x is read.
    """

    tile_m: int = 16
    wg_n: int = 4
    wg_k: int = 1
    tile_k: int = 256
    stages: int = 4
    split_k: int = 1
    scale_on: str = "accumulator"
    overlap: bool = True
    gather: bool = False


def zero_groups_a_stage(c: DecodeConfig, group: int) -> int:
    """Groups whose zero points a stage brings: two where one would do and TMA moves no 64 bytes.

    Example:
      >>> zero_groups_a_stage(DecodeConfig(wg_n=1, tile_k=128), 128)
      2
      >>> zero_groups_a_stage(DecodeConfig(wg_n=2, tile_k=128), 128)
      1
    """
    return max(1, c.tile_k // group) + (c.wg_n == 1 and c.tile_k <= group)


def stages_a_pass(c: DecodeConfig, chains: int, steps: int) -> int:
    """How many of a block's `steps` stages one pass of the loop holds, where each of a stage's
    `chains` groups has an accumulator of its own: as many as registers have room for.

    Example:
      >>> stages_a_pass(DecodeConfig(16, wg_n=2), 1, 16), stages_a_pass(DecodeConfig(64), 1, 16)
      (4, 1)
    """
    most = min(64 // (c.tile_m * chains), 2 if c.wg_n * c.wg_k >= 4 else 4)
    return next(count for count in (4, 2, 1) if steps % count == 0 and count <= max(most, 1))


def decode(problem: MixedMMProblem, operands: MixedMMOperands, config: DecodeConfig) -> jax.Array:
    """Runs the kernel; without `config.gather` x is in the order of w's columns (see `prepare`)."""
    x, w, bias = operands
    c = config
    fmt = convert.FORMATS[problem.weight_type]
    dtype = x.dtype
    out_dtype = jnp.dtype(problem.out_dtype)
    m, n, k = problem.m, problem.n, problem.k
    group = problem.group
    scales = Scales(problem, w, dtype, c.scale_on == "weight")
    grouped, on_weight = scales.grouped, scales.on_weight
    zeros = problem.zero_points
    zero_groups = zero_groups_a_stage(c, group)

    warpgroups = c.wg_n * c.wg_k
    tile_n = c.wg_n * TILE
    tiles = c.tile_k // TILE  # 64 x 64 tiles of a stage, along K
    own = tiles // c.wg_k  # of one warpgroup
    # Tiles that share an accumulator; with scales off the accumulator, all of them do.
    chain = min(group // TILE, own) if grouped and not on_weight else own
    steps = -(-k // (c.tile_k * c.split_k))  # the last may reach past K: TMA reads zeros there
    blocks = (-(-n // tile_n), -(-m // c.tile_m))
    slices = min(c.split_k, c.tile_m // 8)  # of the tile; as many blocks of a cluster finish one
    width = c.tile_m // slices

    def kernel(*refs):
        names = ["x", "w", "scale"] + ["zero"] * zeros + ["global"] * problem.global_scale
        names += ["bias"] * problem.bias + ["order"] * c.gather + ["out"]
        names += ["board"] * (len(refs) - len(names))
        gmem = dict(zip(names, refs, strict=True))
        pl.run_scoped(lambda **smem: body(gmem, smem), collective_axes="wg", **scratch())

    def scratch():
        copies = 1 + copies_of_x(c) + grouped + (grouped and zeros)
        smem = dict(
            w=plgpu.SMEM((c.stages, c.wg_n, tiles * fmt.bits, convert.LANES), jnp.int32),
            x=swizzled((c.stages, tiles), c.tile_m, dtype),
            out=swizzled((c.wg_n,), width, out_dtype),
            full=plgpu.Barrier(num_arrivals=copies, num_barriers=c.stages),
            empty=plgpu.Barrier(num_arrivals=warpgroups, num_barriers=c.stages),
            fragment=convert.scratch_type(warpgroups, dtype),
        )
        if grouped:
            smem["scale"] = scales.scratch(c.stages, c.wg_n, c.tile_k)
        if grouped and zeros:
            rows = (c.stages, c.wg_n, zero_groups, TILE)
            smem["zero"] = plgpu.SMEM(rows, jnp.uint8)
        if problem.bias:
            smem["bias"] = plgpu.SMEM((tile_n,), bias.dtype)
            smem["bias_full"] = plgpu.Barrier()
        if c.gather:
            smem |= gather_scratch(m, k, dtype)
        if c.wg_k > 1:
            smem["halves"] = plgpu.SMEM((c.wg_k - 1, c.wg_n, TILE, c.tile_m), jnp.float32)
            smem["halves_full"] = plgpu.Barrier(num_arrivals=c.wg_n * (c.wg_k - 1))
        if c.split_k > 1:
            smem["exchange"] = exchange_scratch("k", c.split_k, c.wg_n, TILE, width, jnp.float32)
        return smem

    def body(gmem, smem):
        warpgroup = lax.axis_index("wg")
        rank = lax.axis_index("k")
        row_tile = lax.axis_index("n") * c.wg_n
        m0 = lax.axis_index("m") * c.tile_m

        def _finish(total, wn, wk, own_row_tile):
            if c.wg_k > 1:

                @pl.when(wk > 0)
                def _give():
                    smem["halves"].at[wk - 1, wn][...] = total
                    plgpu.barrier_arrive(smem["halves_full"])

            @pl.when(wk == 0)
            def _take():
                acc = total
                if c.wg_k > 1:
                    plgpu.barrier_wait(smem["halves_full"])
                    for other in range(c.wg_k - 1):
                        acc = acc + _load_sum(smem["halves"].at[other, wn])
                if c.split_k == 1:
                    _store(acc, 0, wn, own_row_tile)
                    return
                sum_over_cluster(
                    acc,
                    lambda total, part: _store(total, part, wn, own_row_tile),
                    axis="k",
                    size=c.split_k,
                    parts=slices,
                    cluster=lax.axis_index("n") * blocks[1] + lax.axis_index("m"),
                    warpgroup=wn,
                    scratch=smem["exchange"],
                    outputs=(gmem["board"],) if "board" in gmem else (),
                )

        def _store(acc, part, wn, own_row_tile):
            for factor in scales.finish(gmem, own_row_tile):
                acc = acc * (_across(factor, width) if factor.ndim else factor)
            if problem.bias:
                plgpu.barrier_wait(smem["bias_full"])
                rows = convert.load_rows(smem["bias"].at[pl.ds(wn * TILE, TILE)])
                acc = acc + _across(rows.astype(jnp.float32), width)
            out = plgpu.layout_cast(acc.astype(out_dtype), plgpu.Layout.WGMMA_TRANSPOSED)
            matrix(smem["out"].at[wn]).T[...] = out
            plgpu.commit_smem()
            place = (pl.ds(m0 + part * width, width), pl.ds((row_tile + wn) * TILE, TILE))
            plgpu.copy_smem_to_gmem(window(smem["out"].at[wn]), gmem["out"].at[place])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        @pl.when(warpgroup == warpgroups)
        def _memory():
            spans = {}
            if grouped:
                spans["scale"] = scales.span, max(1, c.tile_k // scales.span)
            if grouped and zeros:
                spans["zero"] = group, zero_groups
            Loads(c, gmem, smem, tiles * fmt.bits, spans, steps, rank, row_tile, m0).run()

        @pl.when(warpgroup < warpgroups)
        def _compute():
            wn, wk = (
                (lax.div(warpgroup, c.wg_k), lax.rem(warpgroup, c.wg_k))
                if c.wg_k > 1
                else (warpgroup, 0)
            )
            # A whole tile may lie past N (its words are zeros): its scales are another tile's.
            own_row_tile = jnp.minimum(row_tile + wn, w.data.shape[0] - 1)
            whole_zeros = ()
            if zeros and not grouped:
                whole_zeros = (convert.load_zeros(gmem["zero"].at[own_row_tile, 0]),)
            scratch_tile = smem["fragment"].at[warpgroup]

            def zeros_of(slot, t):
                """Zero points for the columns of this warpgroup's tile t: one row a group."""
                starts = range(t * TILE, (t + 1) * TILE, min(group, TILE))
                groups = [lax.div(wk * (own * TILE) + k0, group) for k0 in starts]
                return tuple(convert.load_zeros(smem["zero"].at[slot, wn, g]) for g in groups)

            def scales_of(how, slot, t):
                """Scales for those columns, as how, `for_weights` or `for_sum`, gives them."""
                return how(smem["scale"].at[slot, wn], wk * (own * TILE) + t * TILE)

            def words_of(slot, t):
                rows = pl.ds((wk * own + t) * fmt.bits, fmt.bits)
                return convert.load_words(smem["w"].at[slot, wn, rows], fmt)

            def multiply(acc, slot, t, words, seen):
                """acc += tile t; what tiles of a group have in common stays in `seen`."""
                part = t * TILE // max(TILE, min(group, scales.span))
                if part not in seen:
                    seen[part] = (
                        zeros_of(slot, t) if zeros and grouped else whole_zeros,
                        scales_of(scales.for_weights, slot, t) if on_weight else {},
                    )
                zero_rows, scaled = seen[part]
                a = convert.fragment(words, fmt, dtype, zeros=zero_rows, **scaled)
                convert.multiply(acc, a, matrix(smem["x"].at[slot, wk * own + t]).T, scratch_tile)

            if grouped and not on_weight:
                sum_scale = functools.partial(scales_of, scales.for_sum)
                total = _sum_of_groups(c, own, chain, steps, smem, sum_scale, words_of, multiply)
            else:
                total = _one_sum(c, own, steps, smem, words_of, multiply)
            _finish(total, wn, wk, own_row_tile)

    outs = [jax.ShapeDtypeStruct((m, n), out_dtype)]
    if c.split_k > 1:
        clusters = blocks[0] * blocks[1]
        outs += exchange_outputs(clusters, c.split_k, c.wg_n, TILE, c.tile_m, jnp.float32)
    call = plgpu.kernel(
        kernel,
        out_type=outs,
        grid=blocks,
        grid_names=("n", "m"),
        cluster=(c.split_k,),
        cluster_names=("k",),
        num_threads=warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
        kernel_name="mixed_mm_decode",
    )
    optional = [w.zero_point if zeros else None, w.global_scale, bias]
    optional.append(w.g_idx if c.gather else None)
    return call(x, w.data, scales.array, *(v for v in optional if v is not None))[0]


def _sum_of_groups(c, own, chain, steps, smem, sum_scale, words_of, multiply):
    """Sums over K with a fresh accumulator for each group, scaled in float32 as it is added.

    A group is added when the first product of the next one runs. At the end of a pass of the loop
    there is none, so a pass holds several stages.
    """
    chains = own // chain
    unroll = stages_a_pass(c, chains, steps)

    def one_pass(j, total):
        def accumulate(*accs):
            result, pending = total, None  # the group that runs, as `add_scaled_sum` takes it
            for u in range(unroll):
                slot = (j * unroll + u) & (c.stages - 1)
                plgpu.barrier_wait(smem["full"].at[slot])
                words, seen = words_of(slot, 0), {}
                for t in range(own):
                    current, words = words, words_of(slot, t + 1) if t + 1 < own else None
                    acc = accs[u * chains + t // chain]
                    multiply(acc, slot, t, current, seen)
                    # Tile t - 1 is done: its registers are free for the conversion of tile t + 1.
                    if pending is None:
                        plgpu.wgmma_wait(1)
                    else:
                        result, pending = add_scaled_sum(result, *pending, in_flight=1), None
                    if t % chain == chain - 1:
                        done = smem["empty"].at[slot] if t == own - 1 else None
                        pending = acc, sum_scale(slot, t - t % chain), done
            return add_scaled_sum(result, *pending, in_flight=0)

        accs = [plgpu.ACC((TILE, c.tile_m), jnp.float32)] * (chains * unroll)
        return pl.run_scoped(accumulate, *accs)

    zero = plgpu.layout_cast(jnp.zeros((TILE, c.tile_m), jnp.float32), _WGMMA)
    return lax.fori_loop(0, steps // unroll, one_pass, zero)


def _one_sum(c, own, steps, smem, words_of, multiply):
    """Sums over K in one accumulator; a slot is freed one tile later than it is read."""
    # wgmma reads its A registers while the next tile is converted, so one pass of the loop has to
    # hold two tiles or more, in registers of their own.
    unroll = 2 if own == 1 and steps % 2 == 0 else 1

    def accumulate(acc):
        def step(i, first):
            slot = i & (c.stages - 1)
            plgpu.barrier_wait(smem["full"].at[slot])
            words, seen = words_of(slot, 0), {}
            for t in range(own):
                current, words = words, words_of(slot, t + 1) if t + 1 < own else None
                multiply(acc, slot, t, current, seen)
                plgpu.wgmma_wait(1)
                if t == 0:  # everything before this tile is done, all of the last slot with it
                    before = smem["empty"].at[(i - 1) & (c.stages - 1)]
                    release(before, predicate=i > 0 if first else None)
            if own == 1 and unroll == 1:
                plgpu.wgmma_wait(0)

        def one_pass(j, _):
            for u in range(unroll):
                step(j * unroll + u, u == 0)

        lax.fori_loop(0, steps // unroll, one_pass, None)
        total = acc[...]
        release(smem["empty"].at[(steps - 1) & (c.stages - 1)])
        return total

    return pl.run_scoped(accumulate, plgpu.ACC((TILE, c.tile_m), jnp.float32))


def _across(rows, width: int):
    """[64] values, one a row, as [64, width]."""
    return lax.broadcast_in_dim(rows, (TILE, width), (0,))


def _load_sum(ref):
    return plgpu.load(ref, layout=_WGMMA, optimized=False)

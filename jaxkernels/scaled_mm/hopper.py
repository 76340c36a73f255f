# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Scaled GEMM on Hopper: one skeleton for int8 and fp8, every scaling, from decode to prefill.

    out[m, n] = x_scale[m] * w_scale[n] * (sum_k x[m, k] w[n, k] - azp[m] azp_adj[n]) + bias[n]

Both operands are K-major, as 8-bit wgmma wants them, and come through a ring of TMA tiles that
runs on from one output tile to the next. One warpgroup loads, the others multiply:

    loading      | A0 B0 | A1 B1 | A2 B2 | ... last | scales, bias | A0 B0 of the next tile ...
    multiplying  |  wait |  0    |  1    |  2   ...          last | scale, round, send |  0 ...
                             `-- wgmma of stage i runs while stage i + 1 is waited for; its slot
                                 goes back to the loader when wgmma i + 1 has been issued

Small M swaps the operands: w fills wgmma's 64 rows and x is the narrow side, and the tile is
transposed on its way out. With `split_k` the blocks of a cluster share a tile, each with a part
of K, and sum it through distributed shared memory in a fixed order. With `cluster_m`/`cluster_n`
neighbours share loads by multicast. Block-scaled problems start a new accumulator every 128 of K
and add it, scaled, into float32 registers: Hopper's own fp8 accumulator keeps about 14 bits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.cluster import exchange_outputs, exchange_scratch, sum_over_cluster
from jaxkernels.mosaic.device import trace_device
from jaxkernels.mosaic.smem import matrix, strided_vector, swizzled, window
from jaxkernels.problem import (
    Device,
    Implementation,
    ScaledMMOperands,
    ScaledMMProblem,
    Support,
)
from jaxkernels.scaled_mm.hopper_config import BLOCK, TILE_K, Config, Plan

_WGMMA = plgpu.Layout.WGMMA
_FP8 = ("float8_e4m3fn", "float8_e5m2")
_OUT = ("bfloat16", "float16", "float32")


def supports(problem: ScaledMMProblem, device: Device) -> Support:
    """What this kernel takes."""
    p = problem
    operands = (p.x_dtype == p.w_dtype == "int8") or (p.x_dtype in _FP8 and p.w_dtype in _FP8)
    group, block = p.x_scale == "group", p.w_scale == "block"
    out_bytes = 4 if p.out_dtype == "float32" else 2
    return Support.all(
        (device.is_hopper, f"needs an NVIDIA GPU of capability 9.x, got {device.name}"),
        (operands, f"x and w both int8 or both float8, got {p.x_dtype} and {p.w_dtype}"),
        (p.out_dtype in _OUT, f"out_dtype one of {', '.join(_OUT)}, got {p.out_dtype}"),
        (
            group == block,
            f"x scales per 128 of K go with 128x128 w scales, got {p.x_scale} and {p.w_scale}",
        ),
        (not group or p.x_dtype in _FP8, f"block scales need float8 operands, got {p.x_dtype}"),
        (p.azp is None or p.x_dtype == "int8", f"azp needs int8 operands, got {p.x_dtype}"),
        (p.k % 16 == 0, f"TMA needs rows of a multiple of 16 bytes: k % 16 == 0, got k={p.k}"),
        (
            p.n * out_bytes % 16 == 0,
            f"TMA needs output rows of a multiple of 16 bytes: n % {16 // out_bytes} == 0, "
            f"got n={p.n}",
        ),
        (
            not group or -(-p.k // BLOCK) % 4 == 0,
            "TMA needs rows of x scales of a multiple of 16 bytes: ceil(k / 128) % 4 == 0, "
            f"got k={p.k}",
        ),
        (max(p.m, p.n, p.k) < 2**31, "each size < 2**31"),
    )


def run(problem: ScaledMMProblem, operands: ScaledMMOperands, config: Config | None = None):
    """Computes the problem with one kernel launch. config None takes the tuned default."""
    device = trace_device()
    config = config or default_config(problem, device)
    plan = Plan(problem, config)
    legal = plan.legal(device)
    if not legal:
        raise ValueError(f"config: illegal for {problem}: {'; '.join(legal.reasons)}; got {config}")
    return _launch(plan, operands, device)


def default_config(problem: ScaledMMProblem, device: Device) -> Config:
    """The config that tables and the cost model choose for this problem on this device."""
    from jaxkernels.tuning import scaled_mm as tuning

    return tuning.choose(problem, device)


def configs(problem: ScaledMMProblem, device: Device) -> tuple[Config, ...]:
    """Every config that tuning considers for this problem, all of them legal."""
    from jaxkernels.tuning import scaled_mm as tuning

    return tuning.candidates(problem, device)


KERNEL = Implementation("hopper", supports, run, default_config, configs)


def _vectors(plan: Plan, ops: ScaledMMOperands) -> dict[str, tuple[str, jax.Array]]:
    """Per-row operands of the epilogue: name -> (the side whose rows it follows, 1-D array)."""
    p = plan.problem
    vectors = {}
    if p.x_scale == "token":
        vectors["x_scale"] = "m", ops.x_scale.reshape(p.m)
    if p.w_scale == "channel":
        vectors["w_scale"] = "n", ops.w_scale.reshape(p.n)
    if p.bias:
        vectors["bias"] = "n", ops.bias.reshape(p.n)
    if p.azp is not None:
        vectors["azp_adj"] = "n", ops.azp_adj.reshape(p.n)
    if p.azp == "token":
        vectors["azp"] = "m", ops.azp.reshape(p.m)
    return vectors


def _launch(plan: Plan, ops: ScaledMMOperands, device: Device):
    p, c = plan.problem, plan.config
    clusters, slots = plan.num_clusters(device.num_sms), plan.out_slots(device.smem_bytes)
    vectors = _vectors(plan, ops)
    arrays = {"x": ops.x, "w": ops.w} | {name: array for name, (_, array) in vectors.items()}
    if p.x_scale in ("tensor", "group"):
        arrays["x_scale"] = ops.x_scale if plan.block_scaled else ops.x_scale.reshape(1)
    if p.w_scale in ("tensor", "block"):
        arrays["w_scale"] = ops.w_scale if plan.block_scaled else ops.w_scale.reshape(1)

    accumulator = jnp.int32 if p.x_dtype == "int8" else jnp.float32
    multicast = tuple(axis for axis, size in (("m", c.cluster_m), ("n", c.cluster_n)) if size > 1)
    axes = {"k": c.split_k, "n": c.cluster_n, "m": c.cluster_m}
    axes = {axis: size for axis, size in axes.items() if size > 1}
    free = {"num_arrivals": c.warpgroups, "num_barriers": c.stages}
    scratch = {
        "rows": swizzled((c.stages,), plan.rows, p.w_dtype if c.swap else p.x_dtype),
        "cols": swizzled((c.stages,), plan.cols, p.x_dtype if c.swap else p.w_dtype),
        "full": plgpu.Barrier(num_arrivals=2, num_barriers=c.stages),
        "free": plgpu.ClusterBarrier(collective_axes=multicast, **free)
        if multicast
        else plgpu.Barrier(**free),
        "out": plgpu.SMEM((c.warpgroups, slots, plan.out_rows, 64), p.out_dtype)
        if plan.out_transposed_plain
        else swizzled((c.warpgroups, slots), plan.out_rows, p.out_dtype),
    }
    for name, (side, array) in vectors.items():
        length = plan.vector_length(side, array.dtype.itemsize)
        scratch[name] = plgpu.SMEM((length,), array.dtype)
    if vectors:
        scratch["vectors_full"] = plgpu.Barrier(num_arrivals=len(vectors))
        scratch["vectors_free"] = plgpu.Barrier(num_arrivals=c.warpgroups)
    if plan.block_scaled:
        scratch["x_scales"] = plgpu.SMEM((plan.scale_slots, c.tile_m, 4), jnp.float32)
        scratch["x_scales_full"] = plgpu.Barrier(num_barriers=plan.scale_slots)
    exchange = c.warpgroups, plan.wg_rows
    extra_out = ()
    if c.split_k > 1:
        scratch |= exchange_scratch("k", c.split_k, *exchange, plan.part_cols, accumulator)
        extra_out = exchange_outputs(clusters, c.split_k, *exchange, plan.cols, accumulator)

    def kernel(*refs, **smem):
        gmem = dict(zip(arrays, refs, strict=False))
        out, *board = refs[len(arrays) :]
        block = _Block(plan, accumulator, clusters, gmem, out, board, smem, tuple(vectors), slots)
        warpgroup = lax.axis_index("warpgroup")
        pl.when(warpgroup == c.warpgroups)(block.load)
        pl.when(warpgroup < c.warpgroups)(block.multiply)

    result = plgpu.kernel(
        kernel,
        out_type=(jax.ShapeDtypeStruct((p.m, p.n), p.out_dtype), *extra_out),
        scratch_types=scratch,
        grid=(clusters,),
        grid_names=("clusters",),
        cluster=tuple(axes.values()),
        cluster_names=tuple(axes),
        num_threads=c.warpgroups + 1,
        thread_name="warpgroup",
        kernel_name="scaled_mm",
        # No operand is read and written by the same thread: the automatic barriers are not needed.
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
    )(*arrays.values())
    return result[0]


class _Block:
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
        least, more = divmod(plan.k_steps, c.split_k)  # the first `more` blocks take one step more
        self.k_start = self.rank_k * least + lax.min(self.rank_k, jnp.int32(more))
        self.k_steps = least
        if more:
            self.k_steps = least + (self.rank_k < more).astype(jnp.int32)

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
        plan, c, smem = self.plan, self.plan.config, self.smem
        if plan.needs_more_registers:
            plgpu.set_max_registers(plan.register_split()[0], action="decrease")

        def one_tile(i, carry):
            slot, scale_slot = carry
            m, n = self.tile(i)

            def step(j, carry):
                slot, scale_slot = carry
                plgpu.barrier_wait(smem["free"].at[slot])
                k = pl.ds((self.k_start + j) * TILE_K, TILE_K)
                x, w = ("cols", "rows") if c.swap else ("rows", "cols")
                plgpu.copy_gmem_to_smem(
                    self.gmem["w"].at[pl.ds(n, c.tile_n), k],
                    window(smem[w].at[slot]),
                    smem["full"].at[slot],
                    collective_axes="m" if c.cluster_m > 1 else None,
                )
                plgpu.copy_gmem_to_smem(
                    self.gmem["x"].at[pl.ds(m, c.tile_m), k],
                    window(smem[x].at[slot]),
                    smem["full"].at[slot],
                    collective_axes="n" if c.cluster_n > 1 else None,
                )
                if plan.block_scaled:
                    scale_slot = self.load_scales(j, m, scale_slot)
                return self.next_slot(slot), scale_slot

            carry = lax.fori_loop(0, self.k_steps, step, carry)
            if self.vectors:
                self.load_vectors(m, n)
            return carry

        lax.fori_loop(0, self.num_tiles, one_tile, (jnp.int32(0), jnp.int32(0)))
        # Blocks of a cluster signal each other's barriers: none may leave before the last signal.
        lax.fori_loop(0, c.stages, lambda s, _: plgpu.barrier_wait(smem["free"].at[s]), None)
        if self.vectors:
            plgpu.barrier_wait(smem["vectors_free"])

    def load_vectors(self, m, n):
        """Scales, zero points and bias of a tile, once the tile before has been finished."""
        smem = self.smem
        plgpu.barrier_wait(smem["vectors_free"])
        for name in self.vectors:
            start = m if name in ("x_scale", "azp") else n
            length = smem[name].shape[0]
            plgpu.copy_gmem_to_smem(
                self.gmem[name].at[pl.ds(start, length)], smem[name], smem["vectors_full"]
            )

    def load_scales(self, j, m, scale_slot):
        """Every fourth step, x's scales of the next four: [tile_m, 4], 16 bytes a row."""
        smem, tile_m = self.smem, self.plan.config.tile_m
        k = self.k_start + j
        fresh = (j == 0) | (lax.rem(k, jnp.int32(4)) == 0)

        @pl.when(fresh)
        def _():
            plgpu.copy_gmem_to_smem(
                self.gmem["x_scale"].at[pl.ds(m, tile_m), pl.ds(lax.div(k, jnp.int32(4)) * 4, 4)],
                smem["x_scales"].at[scale_slot],
                smem["x_scales_full"].at[scale_slot],
            )

        return self.next_scale_slot(scale_slot, fresh)

    def next_scale_slot(self, slot, fresh):
        wrapped = lax.select(slot == self.plan.scale_slots - 1, jnp.int32(0), slot + 1)
        return lax.select(fresh, wrapped, slot)

    # ---- the multiplying warpgroups

    def multiply(self):
        plan, c, smem = self.plan, self.plan.config, self.smem
        if plan.needs_more_registers:
            plgpu.set_max_registers(plan.register_split()[1], action="increase")
        # Every slot begins free; signalled once, the loader needs no special first round.
        lax.fori_loop(0, c.stages, lambda s, _: plgpu.barrier_arrive(smem["free"].at[s]), None)
        if self.vectors:
            plgpu.barrier_arrive(smem["vectors_free"])

        def one_tile(i, carry):
            m, n = self.tile(i)
            product = self.scaled_product if plan.block_scaled else self.product
            total, carry = product(n, carry)
            if self.vectors:
                plgpu.barrier_wait(smem["vectors_full"])
            if c.split_k > 1:
                sum_over_cluster(
                    total,
                    lambda part, index: self.finish(part, m, n, index * plan.part_cols),
                    axis="k",
                    size=c.split_k,
                    parts=plan.parts,
                    cluster=self.cluster,
                    warpgroup=self.warpgroup,
                    scratch=smem,
                    outputs=self.board,
                )
            else:
                self.finish(total, m, n, 0)
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

    def product(self, n, carry):
        """Sum over this block's K, with one wgmma group always in flight."""
        plan, smem = self.plan, self.smem

        def body(acc):
            def step(j, slot):
                plgpu.barrier_wait(smem["full"].at[slot])
                plgpu.wgmma(acc, *self.operands(slot))
                plgpu.wgmma_wait(1)  # the step before is done with its slot
                plgpu.barrier_arrive(smem["free"].at[self.previous_slot(slot)], predicate=j > 0)
                return self.next_slot(slot)

            slot = lax.fori_loop(0, self.k_steps, step, carry[0])
            total = acc[...]
            plgpu.barrier_arrive(smem["free"].at[self.previous_slot(slot)])
            return total, (slot, carry[1])

        return pl.run_scoped(body, plgpu.ACC((plan.wg_rows, plan.cols), self.accumulator))

    def scaled_product(self, n, carry):
        """Sum over K of products of 128 each, scaled before they are added in float32."""
        plan, c, smem = self.plan, self.plan.config, self.smem
        shape = plan.wg_rows, plan.cols
        row = n + self.warpgroup * plan.wg_rows if c.swap else n
        last = self.gmem["w_scale"].shape[0] - 1
        block = lax.min(lax.div(row, jnp.int32(BLOCK)), jnp.int32(last))
        last_k = jnp.int32(plan.k_steps - 1)

        def step(j, carry):
            total, w_scale, slot, scale_slot = carry
            k = self.k_start + j
            fresh = (j == 0) | (lax.rem(k, jnp.int32(4)) == 0)
            next_scale_slot = self.next_scale_slot(scale_slot, fresh)

            @pl.when(fresh)
            def _():
                plgpu.barrier_wait(smem["x_scales_full"].at[scale_slot])

            held = lax.select(fresh, scale_slot, self.previous_scale_slot(scale_slot))
            plgpu.barrier_wait(smem["full"].at[slot])

            def body(acc):
                plgpu.wgmma(acc, *self.operands(slot))
                next_w_scale = self.gmem["w_scale"][block, lax.min(k + 1, last_k)]
                scale = self.x_scales(held, lax.rem(k, jnp.int32(4))) * w_scale
                return acc[...], next_w_scale, scale

            part, next_w_scale, scale = pl.run_scoped(body, plgpu.ACC(shape, jnp.float32))
            # The slot of scales was read by threads and will be written by TMA: order the two.
            pl.when(lax.rem(k, jnp.int32(4)) == 3)(plgpu.commit_smem)
            plgpu.barrier_arrive(smem["free"].at[slot])
            total += part * scale
            return total, next_w_scale, self.next_slot(slot), next_scale_slot

        zero = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), _WGMMA)
        first = self.gmem["w_scale"][block, self.k_start]
        total, _, *carry = lax.fori_loop(0, self.k_steps, step, (zero, first, *carry))
        return total, tuple(carry)

    def previous_scale_slot(self, slot):
        return lax.select(slot == 0, jnp.int32(self.plan.scale_slots - 1), slot - 1)

    def x_scales(self, slot, k):
        """Column k of a slot of activation scales, one a row of x, over a warpgroup's tile."""
        scales, shape = self.smem["x_scales"], (self.plan.wg_rows, self.plan.cols)
        if self.plan.config.swap:
            return strided_vector(scales.at[slot, :, k], shape, 1)
        rows = pl.ds(self.warpgroup * self.plan.wg_rows, self.plan.wg_rows)
        return strided_vector(scales.at[slot, rows, k], shape, 0)

    # ---- the epilogue

    def finish(self, total, m, n, first_col):
        """Scales, rounds and sends a [wg_rows, columns] part whose columns begin at first_col."""
        plan, c = self.plan, self.plan.config
        rows, cols = total.shape
        first_row = self.warpgroup * plan.wg_rows
        value = self.scale(total, first_row, first_col).astype(plan.problem.out_dtype)
        store = 0
        for row in range(0, rows, 64):
            if c.swap:
                part = plgpu.layout_cast(value[row : row + 64], plgpu.Layout.WGMMA_TRANSPOSED)
                self.send(part, m + first_col, n + first_row + row, store)
                store += 1
                continue
            for col in range(0, cols, plan.out_line):
                part = value[row : row + 64, col : col + plan.out_line]
                self.send(part, m + first_row + row, n + first_col + col, store)
                store += 1

    def send(self, part, m, n, store):
        """Stages one tile in shared memory and has TMA write it; clipped at the edges."""
        slot = store % self.out_slots
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

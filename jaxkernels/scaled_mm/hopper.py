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
neighbours share loads by multicast. A launch that overlaps the kernel ahead may load w before that
one has ended (`mosaic.launch` says why it may). Block-scaled problems start a product every 128 of
K and add it, scaled, into float32 registers: `hopper_scaled`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.cluster import exchange_outputs, exchange_scratch
from jaxkernels.mosaic.device import trace_device
from jaxkernels.mosaic.launch import is_after_quantization, wait_for_previous_kernel
from jaxkernels.mosaic.smem import swizzled
from jaxkernels.problem import (
    Device,
    Implementation,
    ScaledMMOperands,
    ScaledMMProblem,
    Support,
)
from jaxkernels.scaled_mm.hopper_block import Block
from jaxkernels.scaled_mm.hopper_config import SCALE_STEPS, Config, Plan

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

    config = tuning.choose(problem, device)
    return tuning.after_quantization(problem, config) if is_after_quantization() else config


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
        else swizzled((c.warpgroups, slots), plan.out_rows, p.out_dtype, plan.out_line_bytes),
    }
    for name, (side, array) in vectors.items():
        length = plan.vector_length(side, array.dtype.itemsize)
        scratch[name] = plgpu.SMEM((length,), array.dtype)
    if vectors:
        scratch["vectors_full"] = plgpu.Barrier(num_arrivals=len(vectors))
        scratch["vectors_free"] = plgpu.Barrier(num_arrivals=c.warpgroups)
    if plan.block_scaled:
        scratch["x_scales"] = plgpu.SMEM((plan.scale_slots, c.tile_m, SCALE_STEPS), jnp.float32)
        # Two blocks of w at most, but each slot 128 bytes, where TMA may write.
        scratch["w_scales"] = plgpu.SMEM((plan.scale_slots, 8, SCALE_STEPS), jnp.float32)
        scratch["scales_full"] = plgpu.Barrier(num_arrivals=2, num_barriers=plan.scale_slots)
    exchange = c.warpgroups, plan.wg_rows
    extra_out = ()
    if c.split_k > 1:
        scratch |= exchange_scratch("k", c.split_k, *exchange, plan.part_cols, accumulator)
        extra_out = exchange_outputs(clusters, c.split_k, *exchange, plan.cols, accumulator)

    def kernel(*refs, **smem):
        gmem = dict(zip(arrays, refs, strict=False))
        out, *board = refs[len(arrays) :]
        block = Block(plan, accumulator, clusters, gmem, out, board, smem, tuple(vectors), slots)
        warpgroup = lax.axis_index("warpgroup")
        if c.overlap and not c.weights_first:
            wait_for_previous_kernel()
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

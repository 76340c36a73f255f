# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""w4a8_mm on Hopper: int4 weights by fp8 or int8 activations, from one row of x to thousands.

    fp8    out[m, n] = x_scale[m] * channel[n] * sum_k x[m, k] * e4m3(q[n, k] * scale[n, g]) + bias
    int8   out[m, n] = x_scale[m] * sum_g scale[n, g] * sum_{k in g} x[m, k] * q[n, k] + bias[n]

computed transposed: weights are wgmma's A operand, from registers, x^T is its B, from shared
memory. Weights lie in fragment order (`mosaic.convert8`); for fp8 the group scale is part of the
conversion, which rounds each product once, so one accumulator takes the whole of K; for int8 the
exact int32 sum of each group of 128 is scaled and added in float32.

A block covers wg_n * 64 rows of w and tile_m rows of x. wg_k warpgroups share each stage's K, and
split_k blocks of a cluster the whole K (few rows of x); or cluster_n blocks with adjacent rows of w
each read a part of x for all (many rows, where blocks stay and walk over the output tiles).

    memory warpgroup   | wait free[s] | TMA: w, x, scales -> slot s, full[s] |  ...  | vectors
    compute warpgroups | full[s]: words -> fragment | wgmma --------------------> |
                       |              (the next tile's words -> fragment) | free[s - 1] | wgmma
    then               | partial sums: other warpgroups (shared memory), other blocks (cluster) |
                       | scales, bias, round, transpose through shared memory, TMA store |
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mixed_mm.hopper_w4a8_block import MEMORY_REGISTERS, PIECE, Block
from jaxkernels.mixed_mm.prepare_w4a8 import HOPPER_W4A8, WEIGHTS
from jaxkernels.mosaic import convert8
from jaxkernels.mosaic.cluster import exchange_outputs, exchange_scratch
from jaxkernels.mosaic.convert8 import TILE_K, TILE_N, WORD_ROWS
from jaxkernels.mosaic.device import trace_device
from jaxkernels.mosaic.smem import swizzled
from jaxkernels.mosaic.weight_formats import LANES
from jaxkernels.problem import Device, Implementation, Support, W4A8Operands, W4A8Problem

_HALF = ("bfloat16", "float16")
_SCALES = {"float8_e4m3fn": ("float8_e4m3fn",), "int8": ("bfloat16", "float16", "float32")}
_VECTOR = 32  # elements of the shortest float32 vector that TMA copies


@dataclasses.dataclass(frozen=True)
class W4A8Config:
    """How the kernel cuts a problem.

    Attributes:
      tile_m: rows of x of an output tile (wgmma's N): 8 to 256, a multiple of 8, of 64 above 64.
      wg_n: compute warpgroups along n, 64 rows of w each; they share x.
      wg_k: compute warpgroups that share the same rows and cut each stage's K.
      tile_k: K of one stage, a multiple of 128 * wg_k.
      stages: slots of the pipeline.
      split_k: blocks of a cluster that share K: 1, 2, 4 or 8.
      cluster_n: blocks of a cluster with adjacent rows of w; each reads a part of x for all.
      panel: tiles along m that the blocks walk before they move along n.
      overlap: start while the kernel ahead on the stream still runs: the first stages of weights
        come meanwhile, and its results are waited for before x is read.
    """

    tile_m: int = 16
    wg_n: int = 4
    wg_k: int = 1
    tile_k: int = 256
    stages: int = 4
    split_k: int = 1
    cluster_n: int = 1
    panel: int = 8
    overlap: bool = False

    @property
    def warpgroups(self) -> int:
        """Compute warpgroups of a block."""
        return self.wg_n * self.wg_k

    @property
    def walks(self) -> bool:
        """Whether a block takes one output tile after another; not where sums are shared, nor for
        few rows, where several blocks of an SM overlap better."""
        return self.split_k == 1 and self.wg_k == 1 and self.tile_m > PIECE

    @property
    def out_slots(self) -> int:
        """Staged pieces of the output that a warpgroup has."""
        return 2 if self.tile_m // self.slices > PIECE else 1

    @property
    def slices(self) -> int:
        """Column slices of a tile; as many blocks of a K-splitting cluster finish one."""
        return min(self.split_k, self.tile_m // 8)

    @property
    def compute_registers(self) -> int | None:
        """Registers a compute thread is given, or None where an even share is enough."""
        threads = self.warpgroups + 1
        share = 512 // threads // 8 * 8  # what the launch gives every thread
        if self.tile_m // 2 + 72 <= share:
            return None
        # More than the launch has would be waited for forever.
        return min((share * threads - MEMORY_REGISTERS) // self.warpgroups // 8 * 8, 240)


def supports(problem: W4A8Problem, device: Device) -> Support:
    """Whether the kernel takes this problem on this device; every reason why not."""
    p = problem
    return Support.all(
        (device.is_hopper, f"needs an NVIDIA GPU of capability 9.x, got {device.name}"),
        (
            p.layout == HOPPER_W4A8,
            "weights must be prepared once (jaxkernels.mixed_mm.prepare_w4a8), got layout "
            f"{p.layout!r}",
        ),
        (p.weight_type in WEIGHTS, f"no register conversion for {p.weight_type}"),
        (p.x_dtype in _SCALES, f"x must be float8_e4m3fn or int8, got {p.x_dtype}"),
        (
            p.scale_dtype in _SCALES.get(p.x_dtype, (p.scale_dtype,)),
            f"{p.x_dtype} x takes weight scales of {_SCALES.get(p.x_dtype)}, got {p.scale_dtype}",
        ),
        (p.out_dtype in _HALF, f"out_dtype must be bfloat16 or float16, got {p.out_dtype}"),
        (p.group == TILE_K, f"group_size must be {TILE_K}, got {p.group_size}"),
        (p.n % 8 == 0, f"TMA needs output rows of a multiple of 16 bytes: n % 8 == 0, got n={p.n}"),
        (max(p.m, p.n, p.k) < 2**31, "each size < 2**31"),
    )


def run(
    problem: W4A8Problem, operands: W4A8Operands, config: W4A8Config | None = None
) -> jax.Array:
    """Computes the problem with one kernel launch. config None takes the tuned default.

    Raises:
      ValueError: the config is illegal for the problem; the message has the reasons.
    """
    from jaxkernels.tuning import w4a8 as tuning

    device = trace_device()
    config = config or tuning.choose(problem, device)
    legal = tuning.legal(problem, config, device)
    if not legal:
        raise ValueError(f"config: illegal for {problem}: {'; '.join(legal.reasons)}; got {config}")
    return launch(problem, operands, config)


def default_config(problem: W4A8Problem, device: Device) -> W4A8Config:
    """The config that tables and the cost model choose for this problem on this device."""
    from jaxkernels.tuning import w4a8 as tuning

    return tuning.choose(problem, device)


def configs(problem: W4A8Problem, device: Device) -> tuple[W4A8Config, ...]:
    """Every config that tuning considers for this problem, all of them legal."""
    from jaxkernels.tuning import w4a8 as tuning

    return tuning.candidates(problem, device)


KERNEL = Implementation("hopper", supports, run, default_config, configs)


def launch(problem: W4A8Problem, operands: W4A8Operands, config: W4A8Config) -> jax.Array:
    """Runs the kernel with a config that is legal."""
    p, c = problem, config
    x, w, x_scale, bias = operands
    dtype, out_dtype = x.dtype, jnp.dtype(p.out_dtype)
    tiles = c.tile_k // TILE_K
    m_tiles, n_tiles = -(-p.m // c.tile_m), -(-p.n // (c.wg_n * TILE_N * c.cluster_n))
    clusters = m_tiles * n_tiles
    if c.walks:
        clusters = min(clusters, max(1, trace_device().num_sms // c.cluster_n))
    axes = {"k": c.split_k, "rank": c.cluster_n}
    axes = {name: size for name, size in axes.items() if size > 1}
    arrays = {"x": x, "w": w.data, "scale": w.scale, "x_scale": x_scale.reshape(p.m)}
    if p.channel_scale:
        arrays["channel"] = w.global_scale.reshape(-1)
    if p.bias:
        arrays["bias"] = bias
    vectors = tuple(name for name in arrays if name in ("x_scale", "channel", "bias"))

    width = c.tile_m // c.slices
    piece = min(width, PIECE)
    free = {"num_arrivals": c.warpgroups, "num_barriers": c.stages}
    scratch = {
        "w": plgpu.SMEM((c.stages, c.wg_n, tiles * WORD_ROWS, LANES), jnp.int32),
        "x": swizzled((c.stages, tiles), c.tile_m, dtype),
        "scale": plgpu.SMEM((c.stages, c.wg_n, tiles, TILE_N), w.scale.dtype),
        "out": swizzled((c.wg_n, c.out_slots), piece, out_dtype),
        "full": plgpu.Barrier(num_arrivals=2 + tiles, num_barriers=c.stages),
        "free": plgpu.ClusterBarrier(collective_axes=("rank",), **free)
        if c.cluster_n > 1
        else plgpu.Barrier(**free),
        "fragment": convert8.scratch8_type(c.warpgroups, dtype),
        "vectors_full": plgpu.Barrier(num_arrivals=len(vectors)),
        "vectors_free": plgpu.Barrier(num_arrivals=c.warpgroups),
    }
    for name in vectors:
        length = max(c.tile_m, _VECTOR) if name == "x_scale" else c.wg_n * TILE_N
        scratch[name] = plgpu.SMEM((length,), arrays[name].dtype)
    if c.wg_k > 1:
        scratch["parts"] = plgpu.SMEM((c.wg_k - 1, c.wg_n, TILE_N, c.tile_m), jnp.float32)
        scratch["parts_full"] = plgpu.Barrier(num_arrivals=c.wg_n * (c.wg_k - 1))
    outs = [jax.ShapeDtypeStruct((p.m, p.n), out_dtype)]
    if c.split_k > 1:
        exchange = c.split_k, c.wg_n, TILE_N
        scratch["exchange"] = exchange_scratch("k", *exchange, width, jnp.float32)
        outs += exchange_outputs(clusters, *exchange, c.tile_m, jnp.float32)

    def kernel(*refs, **smem):
        names = [*arrays, "out"] + ["board"] * (len(refs) - len(arrays) - 1)
        gmem = dict(zip(names, refs, strict=True))
        block = Block(p, c, (m_tiles, n_tiles, clusters), gmem, smem, vectors)
        warpgroup = lax.axis_index("wg")
        pl.when(warpgroup == c.warpgroups)(block.load)
        pl.when(warpgroup < c.warpgroups)(block.compute)

    return plgpu.kernel(
        kernel,
        out_type=outs,
        scratch_types=scratch,
        grid=(clusters,),
        grid_names=("clusters",),
        cluster=tuple(axes.values()),
        cluster_names=tuple(axes),
        num_threads=c.warpgroups + 1,
        thread_name="wg",
        kernel_name="w4a8_mm",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
        ),
    )(*arrays.values())[0]

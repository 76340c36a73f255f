# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which config runs w4a8_mm's Hopper kernel: legality, a cost model, and measured tables.

`choose` is deterministic, never measures, and is cheap enough for every trace. It takes the
measured table's entry if there is one for the shape (tables/w4a8_<device>.json), and the cheapest
legal candidate of the cost model otherwise. `explain` says which, and what the model thinks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax.numpy as jnp

from jaxkernels.mixed_mm.hopper_w4a8 import W4A8Config
from jaxkernels.mosaic.convert8 import TILE_K, TILE_N
from jaxkernels.problem import Device, Support, W4A8Problem
from jaxkernels.tuning.model import Estimate, ceil_div, cheapest, measured, row_bucket

_ALIGN = 1024  # Pallas aligns each shared allocation to this
_FRAGMENTS = 32  # registers of two converted tiles, one multiplying and one being made
_OTHER_FP8 = 40  # tables, words, addresses, counters
_OTHER_INT8 = 16
_REGISTERS = 65536  # an SM's


def shared_bytes(problem: W4A8Problem, config: W4A8Config) -> int:
    """Shared memory of one block, in bytes, as Pallas will lay it out."""
    p, c = problem, config
    width = c.tile_m // c.slices
    rows = c.wg_n * TILE_N
    sizes = [
        c.stages * rows * c.tile_k // 2,
        c.stages * c.tile_m * c.tile_k,
        c.stages * rows * (c.tile_k // TILE_K) * jnp.dtype(p.scale_dtype).itemsize,
        c.wg_n * c.out_slots * min(width, 64) * TILE_N * 2,
        1024,  # the interpreter's scratch, a stub on a GPU
        max(c.tile_m, 32) * 4,
        p.channel_scale * rows * 4,
        p.bias * rows * 4,
        (c.wg_k - 1) * rows * c.tile_m * 4,
        (c.split_k > 1) * c.split_k * rows * width * 4,
    ]
    barriers = 8 * (2 * c.stages + 16)
    return sum(ceil_div(size, _ALIGN) * _ALIGN for size in sizes if size) + barriers + _ALIGN


def registers(problem: W4A8Problem, config: W4A8Config) -> tuple[int, int]:
    """(what a compute thread needs, as ptxas has it; what it can be given)."""
    c = config
    given = c.compute_registers or min(512 // (c.warpgroups + 1) // 8 * 8, 255)
    if problem.x_dtype == "int8":  # the sum and two groups in flight
        return 3 * c.tile_m // 2 + _FRAGMENTS + _OTHER_INT8, given
    return c.tile_m // 2 + _FRAGMENTS + _OTHER_FP8, given


def legal(problem: W4A8Problem, config: W4A8Config, device: Device) -> Support:
    """Whether the kernel can run the problem with this config; every reason why not.

    A wrong register budget does not fail on the GPU, it hangs or spills: it is refused here.
    """
    p, c = problem, config
    shared = shared_bytes(p, c)
    need, given = registers(p, c)
    scale_bytes = jnp.dtype(p.scale_dtype).itemsize
    width = c.tile_m // c.slices
    return Support.all(
        (c.tile_k % (TILE_K * c.wg_k) == 0, "tile_k in whole tiles a warpgroup"),
        (c.tile_m % (8 if c.tile_m <= 64 else 64) == 0, "tile_m % 8 == 0, above 64 % 64 == 0"),
        (8 <= c.tile_m <= 256, "wgmma's N is 8 to 256"),
        (
            p.x_dtype != "int8" or c.tile_m % 16 == 0 or c.tile_m in (8, 24),
            "integer wgmma has no width of 40 or 56",
        ),
        (c.split_k in (1, 2, 4, 8), "split_k in 1, 2, 4, 8"),
        (c.cluster_n in (1, 2, 4, 8), "cluster_n in 1, 2, 4, 8"),
        (c.split_k == 1 or c.cluster_n == 1, "a cluster shares K or x, not both"),
        ((c.tile_m // 8) % c.cluster_n == 0, "each block of a cluster loads a part of x"),
        (c.cluster_n == 1 or c.wg_k == 1, "wg_k shares K, cluster_n shares x"),
        (c.tile_m % c.slices == 0 and width % 8 == 0, "slices of whole 8 columns"),
        (
            c.wg_n * (c.tile_k // TILE_K) * TILE_N * scale_bytes % 128 == 0,
            "TMA copies of scales in multiples of 128 bytes",
        ),
        (c.stages >= 2, "two stages or more"),
        (shared <= device.smem_bytes, f"needs {shared} bytes of shared memory"),
        (need <= given, f"needs about {need} registers a thread and can have {given}"),
    )


# -- candidates and their cost ------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def candidates(problem: W4A8Problem, device: Device) -> tuple[W4A8Config, ...]:
    """The legal configs that are worth considering for this problem, as many stages as fit."""
    p = problem
    wanted: list[W4A8Config] = []
    cover = next((t for t in (8, 16, 32, 64) if p.m <= t), 128)  # the tile that takes all rows
    for tile_m in [cover] if p.m <= 64 else [64, 128]:
        for (wg_n, wg_k), tile_k, split_k in itertools.product(
            ((4, 1), (2, 2), (1, 4), (2, 1), (1, 2)), (128, 256, 512), (1, 2, 4)
        ):
            if tile_k * split_k < 2 * p.k and tile_k % (TILE_K * wg_k) == 0:
                wanted.append(W4A8Config(tile_m, wg_n, wg_k, tile_k, 2, split_k))
    if p.m > 64:
        for tile_m, tile_k, cluster_n in itertools.product((64, 128, 192, 256), (128, 256), (1, 2)):
            wanted.append(W4A8Config(tile_m, 2, 1, tile_k, 2, 1, cluster_n))
    deepest = (_deepest(p, config, device) for config in wanted)
    return tuple(dict.fromkeys(c for c in deepest if legal(p, c, device)))


def _deepest(problem: W4A8Problem, config: W4A8Config, device: Device) -> W4A8Config:
    # Few rows: what a block leaves of shared memory lets the next launch's blocks begin.
    for stages in (4, 3, 2) if config.tile_m <= 32 and config.tile_k > TILE_K else (6, 5, 4, 3, 2):
        deep = dataclasses.replace(config, stages=stages)
        if shared_bytes(problem, deep) <= device.smem_bytes:
            return deep
    return config


# Fitted to about 220 timings on one H200 (132 SMs), 2026-11-22: M from 1 to 4096, the benchmark's
# six shapes and four more.
_CLOCK = 1.79e3  # cycles a microsecond
_START = 1.9  # microseconds: what of launch, first bytes and last store is not overlapped
_AGAIN = 2.3  # microseconds to fill the pipeline of a further block on an SM
_L2_BYTES = 8.4e6  # bytes a microsecond, all SMs together
_TILE = {"float8_e4m3fn": 207.0, "int8": 84.0}  # cycles of an SM for 64 x 128 weights ...
_COLUMN = 1.3  # ... and for each column of x
_ADD = 1.28  # cycles more a column to scale and add int32 sums
_TENSOR = 2.0  # cycles a column that the tensor cores take
_SHORT = 1.06  # times slower where a warpgroup has one tile of a stage
_SHALLOW = {2: 1.43, 3: 1.05}  # times slower with so few stages
_FEW_WARPS = 1.09  # times slower with fewer than 4 compute warpgroups on an SM
_ALONE = 1.015  # times slower where blocks walk far and each reads x for itself
_EPILOGUE = 0.0117  # microseconds a column of a tile
_SPLIT = 1.25  # microseconds of a sum over a cluster
_HALVES = 0.0063  # microseconds a column of a sum over warpgroups, for each further one


def estimate(problem: W4A8Problem, config: W4A8Config, device: Device) -> Estimate:
    """The cost model."""
    p, c = problem, config
    n_tiles, m_tiles = ceil_div(p.n, c.wg_n * TILE_N), ceil_div(p.m, c.tile_m)
    blocks = n_tiles * m_tiles * c.split_k
    k_tiles = ceil_div(p.k, c.tile_k * c.split_k) * (c.tile_k // TILE_K)
    adding = _ADD * c.tile_m if p.x_dtype == "int8" else 0.0
    cycles = max(_TILE[p.x_dtype] + _COLUMN * c.tile_m, _TENSOR * c.tile_m) + adding
    cycles *= _SHORT if c.tile_k == c.wg_k * TILE_K else 1.0
    cycles *= _SHALLOW.get(c.stages, 1.0)
    again = 0.0
    if c.walks:
        rounds = blocks / device.num_sms
        cycles *= _ALONE if rounds > 8 and c.cluster_n == 1 else 1.0
        rounds = ceil_div(blocks, device.num_sms) if rounds < 8 else rounds + 0.5
    else:
        sms = int({1: 1.0, 2: 1.0, 4: 0.85, 8: 0.7}[c.split_k] * device.num_sms)
        rounds, resident = ceil_div(blocks, sms), _resident(p, c, device)
        again = _AGAIN * max(ceil_div(rounds, resident) - 1, 0.6 * (rounds - 1))
        cycles *= _FEW_WARPS if c.warpgroups * min(resident, rounds) < 4 else 1.0
    compute = rounds * (c.wg_n * k_tiles * cycles / _CLOCK + c.tile_m * _EPILOGUE)
    weights = p.n * p.k * p.weight_type.size_bits / 8
    x_reads = n_tiles * m_tiles * c.tile_m * p.k / c.cluster_n
    memory = p.min_bytes / (device.read_gbps * 1e3)
    l2 = (weights * m_tiles + x_reads) / (_L2_BYTES * (1 if m_tiles <= 4 else 1.25))
    total = _START + max(memory, l2, compute) + again
    total += _SPLIT * (c.split_k > 1) + _HALVES * (c.wg_k - 1) * c.tile_m
    return Estimate(memory, l2, compute, total)


def _resident(p: W4A8Problem, c: W4A8Config, device: Device) -> int:
    """Blocks that an SM holds at a time."""
    need, given = registers(p, c)
    threads = _REGISTERS // ceil_div(min(need, given), 8) // 8
    return max(
        1, min(device.smem_bytes // shared_bytes(p, c), threads // (c.warpgroups + 1) // 128)
    )


# -- the choice ---------------------------------------------------------------------------------


def table_key(problem: W4A8Problem) -> str:
    """The table's key of a problem: activations, rows of x (rounded up), N and K."""
    p = problem
    return f"{'int8' if p.x_dtype == 'int8' else 'fp8'} m{row_bucket(p.m)} n{p.n} k{p.k}"


def _from_table(problem: W4A8Problem, device: Device) -> W4A8Config | None:
    entry = measured("w4a8", device).get(table_key(problem))
    if entry is None:
        return None
    config = W4A8Config(**entry["config"])
    return config if legal(problem, config, device) else None


@functools.lru_cache(maxsize=4096)
def choose(problem: W4A8Problem, device: Device) -> W4A8Config:
    """The config for this problem: the measured table's, else the cost model's best.

    Raises:
      ValueError: no config is legal.
    """
    found = _from_table(problem, device)
    if found is not None:
        return found
    options = candidates(problem, device)
    if not options:
        raise ValueError(f"no legal config for {problem} on {device.name}")
    best = min(options, key=lambda config: estimate(problem, config, device).total)
    return dataclasses.replace(best, overlap=True)


def explain(problem: W4A8Problem, device: Device, count: int = 5) -> str:
    """Why `choose` chooses what it does, with the model's best few: for people.

    Example:
      >>> from jaxkernels import scalar_types
      >>> from jaxkernels.problem import DEVICES
      >>> p = W4A8Problem(16, 4096, 4096, scalar_types.int4, "float8_e4m3fn", "bfloat16", 128,
      ...                 "float8_e4m3fn", True, layout="hopper_w4a8")
      >>> print(explain(p, DEVICES["h200"], count=1))
      fp8 m16 n4096 k4096 on NVIDIA H200: ...
    """
    chosen = choose(problem, device)
    source = "cost model" if _from_table(problem, device) is None else "measured table"
    lines = [f"{table_key(problem)} on {device.name}: {chosen} ({source})"]
    costs = [(estimate(problem, c, device), c) for c in candidates(problem, device)]
    return "\n".join(lines + cheapest(costs, count))

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which config runs mixed_mm's Hopper kernels: legality, a cost model, and measured tables.

`choose` is deterministic, never measures, and is cheap enough for every trace. It takes the
measured table's entry if there is one for the shape (tables/<device>.json), and the cheapest
legal candidate of the cost model otherwise. `explain` says which, and what the model thinks.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import jax.numpy as jnp

from jaxkernels.mixed_mm.hopper_decode import DecodeConfig
from jaxkernels.mixed_mm.hopper_prefill import PrefillConfig
from jaxkernels.mosaic.convert import FORMATS, TILE
from jaxkernels.problem import Device, MixedMMProblem, Support

Config = DecodeConfig | PrefillConfig

_ALIGN = 1024  # Pallas aligns each shared allocation to this
_THREADS = 128  # of a warpgroup
_REGISTERS = 65536  # an SM's
_FRAGMENTS = 32  # registers of two converted tiles, one multiplying and one being made
_OTHER = 40  # words, addresses, scales, counters
_MAX_CLUSTER = 8  # the portable limit


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up."""
    return -(-a // b)


def _group(p: MixedMMProblem) -> int:
    return p.k if p.group_size == -1 else min(p.group_size, p.k)


def _scale_bytes(p: MixedMMProblem) -> int:
    return jnp.dtype(p.scale_dtype).itemsize


def _x_bytes(p: MixedMMProblem) -> int:
    return jnp.dtype(p.x_dtype).itemsize


def _bits(p: MixedMMProblem) -> int:
    return FORMATS[p.weight_type].bits


def shared_bytes(problem: MixedMMProblem, config: Config) -> int:
    """Shared memory of one block, in bytes, as Pallas will lay it out."""
    p, c = problem, config
    grouped = _group(p) < p.k
    rows = c.stages * c.wg_n * max(1, c.tile_k // _group(p)) * TILE
    sizes = [
        c.stages * c.wg_n * (c.tile_k // TILE) * _bits(p) * 512,
        c.stages * c.tile_m * c.tile_k * _x_bytes(p),
        1024,  # the interpreter's scratch, a stub on a GPU
        grouped * rows * _scale_bytes(p),
        (grouped and p.zero_points) * rows,
        p.bias * c.wg_n * TILE * 4,
    ]
    if isinstance(c, DecodeConfig):
        width = c.tile_m // min(c.split_k, c.tile_m // 8)
        sizes += [
            c.wg_n * width * TILE * 2,
            (c.wg_k - 1) * c.wg_n * TILE * c.tile_m * 4,
            (c.split_k > 1) * c.split_k * c.wg_n * TILE * width * 4,
        ]
    else:
        sizes.append(c.wg_n * 2 * TILE * TILE * 2)
    barriers = 8 * (2 * c.stages + 16)
    return sum(ceil_div(size, _ALIGN) * _ALIGN for size in sizes if size) + barriers + _ALIGN


def registers(problem: MixedMMProblem, config: Config) -> tuple[int, int]:
    """(what a compute thread needs, by a rough count; what it can be given)."""
    c = config
    accumulator = c.tile_m // 2
    if isinstance(c, PrefillConfig):
        given = c.compute_registers or _even_share(c.wg_n + 1)
        return accumulator + _FRAGMENTS + _OTHER, given
    group = _group(problem)
    if group < problem.k and c.scale_on == "accumulator":
        accumulator *= 1 + max(1, c.tile_k // c.wg_k // group)
    return accumulator + _FRAGMENTS + _OTHER - 16, _even_share(c.wg_n * c.wg_k + 1)


def _even_share(warpgroups: int) -> int:
    return min(_REGISTERS // (warpgroups * _THREADS) // 8 * 8, 255)


def legal(problem: MixedMMProblem, config: Config, device: Device) -> Support:
    """Whether the kernel of this config can run the problem; every reason why not.

    A wrong register budget does not fail on the GPU, it hangs or spills: it is refused here.
    """
    p, c = problem, config
    group = _group(p)
    decode = isinstance(c, DecodeConfig)
    own = c.tile_k // (c.wg_k if decode else 1)  # K of a stage that one warpgroup multiplies
    shared = shared_bytes(p, c)
    need, given = registers(p, c)
    stage_groups = max(1, c.tile_k // group)
    clauses = [
        (c.tile_k % (TILE * (c.wg_k if decode else 1)) == 0, "tile_k in whole tiles a warpgroup"),
        (group == p.k or group % c.tile_k == 0 or c.tile_k % group == 0, "stages in whole groups"),
        (shared <= device.smem_bytes, f"needs {shared} bytes of shared memory"),
        (need <= given, f"needs about {need} registers a thread and can have {given}"),
        (
            not (p.zero_points and group < p.k) or c.wg_n * stage_groups % 2 == 0,
            "TMA copies of zero points in multiples of 128 bytes",
        ),
        (c.tile_m <= 256, "wgmma's N is at most 256"),
    ]
    if decode:
        clauses += [
            (c.tile_m % 8 == 0, "tile_m % 8 == 0"),
            (c.stages & (c.stages - 1) == 0, "stages a power of two"),
            (c.split_k in (1, 2, 4, 8), "split_k in 1, 2, 4, 8"),
            (
                not c.row_sums
                or (
                    _bits(p) == 4
                    and p.x_dtype == "bfloat16"
                    and TILE <= group < p.k
                    and c.scale_on == "accumulator"
                    and c.tile_m in (8, 16, 32, 64)
                ),
                "row_sums with 4-bit weights, bfloat16, groups, scales on the accumulator",
            ),
            (
                c.tile_m % min(c.split_k, c.tile_m // 8) == 0
                and c.tile_m // min(c.split_k, c.tile_m // 8) % 8 == 0,
                "slices of whole 8 columns",
            ),
            (
                group == p.k or c.scale_on == "weight" or group % TILE == 0,
                "groups under 64 need their scales on the weights",
            ),
            (
                group == p.k or own % group == 0 or group % own == 0,
                "a warpgroup's part of a stage in whole groups",
            ),
        ]
    else:
        clauses += [
            (c.tile_m % TILE == 0, "tile_m % 64 == 0"),
            (c.cluster_n <= _MAX_CLUSTER, "cluster of at most 8"),
            ((c.tile_m // 8) % c.cluster_n == 0, "each block of a cluster loads a part of x"),
        ]
    return Support.all(*clauses)


# -- candidates and their cost ------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def candidates(problem: MixedMMProblem, device: Device) -> tuple[Config, ...]:
    """Every legal config that is worth considering for this problem."""
    p = problem
    group = _group(p)
    wanted: list[Config] = []
    tile_ms = [t for t in (8, 16, 32, 64, 128) if t < 2 * max(p.m, 8)]
    scale_ons = ["weight"] if group < TILE else ["accumulator", "weight"]
    if group == p.k:
        scale_ons = ["accumulator"]
    k_steps = sorted(
        {64, 128, 256, 512} | ({group} if group < 1024 and group % TILE == 0 else set())
    )
    for tile_m in tile_ms:
        for wg_n, wg_k in ((4, 1), (2, 2), (1, 4), (2, 1), (1, 2)):
            for tile_k in k_steps:
                for stages in (8, 4, 2):
                    for split_k in (1, 2, 4, 8):
                        for scale_on in scale_ons:
                            wanted.append(
                                DecodeConfig(tile_m, wg_n, wg_k, tile_k, stages, split_k, scale_on)
                            )
    if p.m > 64:
        for tile_m in (64, 128, 192, 256):
            for wg_n in (2, 3):
                for cluster_n in (1, 2):
                    for stages in (8, 6, 5, 4, 3):
                        wanted.append(PrefillConfig(tile_m, wg_n, 64, stages, cluster_n))
    kept: dict[Config, Config] = {}
    for config in wanted:
        # Of configs that differ only in depth, the deepest legal one.
        shallow = dataclasses.replace(config, stages=1)
        if shallow not in kept and legal(p, config, device):
            kept[shallow] = config
    return tuple(kept.values())


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the cost model thinks of a config, in microseconds.

    memory: all blocks' reads at the rate that the blocks in flight can draw.
    compute: conversion and multiplication of the busiest SM.
    total: launch, the larger of the two, and what cannot overlap.
    """

    memory: float
    compute: float
    total: float


# Measured on one H200, 2026-11-22 (see the notes of mixed_mm in WORKSPACE.md).
_CLOCK = 1.75e3  # cycles a microsecond under load
_LAUNCH = 3.0  # start, first bytes, last store
_TILE_ISSUE = 105.0  # cycles of an SM to convert a 64 x 64 tile of 4-bit weights and issue
_TILE_ISSUE_8 = 130.0  # of 8-bit ones
_ON_WEIGHT = 25.0  # more, to multiply scales into it
_EXCHANGE = 0.9  # microseconds of a sum over a cluster
_BYTES_IN_FLIGHT = 40e3  # an SM needs this many to draw its share of memory


def estimate(problem: MixedMMProblem, config: Config, device: Device) -> Estimate:
    """The cost model."""
    p, c = problem, config
    decode = isinstance(c, DecodeConfig)
    split = c.split_k if decode else 1
    n_tiles, m_tiles = ceil_div(p.n, c.wg_n * TILE), ceil_div(p.m, c.tile_m)
    blocks = n_tiles * m_tiles * split
    shared = shared_bytes(p, c)
    warpgroups = c.wg_n * (c.wg_k if decode else 1) + 1
    resident = 1
    if decode:
        resident = max(1, min(device.smem_bytes // (shared + 1024), 16 // warpgroups))
    per_sm = ceil_div(blocks, device.num_sms)  # blocks the busiest SM works through
    # Waves: with several resident, they share the SM; the last one may leave it idle.
    k_tiles = ceil_div(p.k, TILE * split)
    tensor = 4 * max(c.tile_m / 8 * 4, 18)  # cycles of the tensor cores for one 64 x 64 tile
    issue = _TILE_ISSUE if _bits(p) == 4 else _TILE_ISSUE_8
    if _group(p) < p.k and (not decode or c.scale_on == "weight"):
        issue += _ON_WEIGHT
    elif _group(p) < p.k:
        issue += 0.5 * c.tile_m * TILE / min(_group(p), c.tile_k)
    if decode and warpgroups < 5 and resident * (warpgroups - 1) < 4:
        issue *= 1.35  # too few warps to hide each other's waits
    busy = per_sm * c.wg_n * k_tiles
    compute = busy * (max(issue, tensor) + 0.25 * min(issue, tensor)) / _CLOCK
    if not decode:
        compute = busy * (1.04 * tensor + 0.02 * issue) / _CLOCK + per_sm * c.tile_m * 0.012
    weights = p.n * p.k * _bits(p) / 8
    x_reads = blocks / split * c.tile_m * p.k * _x_bytes(p) / max(1, getattr(c, "cluster_n", 1))
    busy_sms = min(device.num_sms, blocks)
    in_flight = (
        busy_sms * min(resident, per_sm) * c.stages * c.tile_k * c.wg_n * TILE * _bits(p) / 8
    )
    rate = device.read_gbps * 1e3 * min(1.0, in_flight / (_BYTES_IN_FLIGHT * device.num_sms))
    memory = (weights + p.m * (p.k + p.n) * 2) / rate + x_reads / 5.5e6
    total = _LAUNCH + max(memory, compute) + 0.15 * min(memory, compute)
    total += (
        _EXCHANGE * (split > 1) + 0.1 * split * (split > 2) + (0.4 if decode and c.wg_k > 1 else 0)
    )
    return Estimate(memory, compute, total)


# -- the choice ---------------------------------------------------------------------------------


def _bucket(m: int) -> int:
    """Ms that share a table entry: up to 8, 16, 32, ... 4096 and more."""
    bucket = 8
    while bucket < min(m, 4096):
        bucket *= 2
    return bucket


def table_key(problem: MixedMMProblem) -> str:
    """The table's key of a problem: bits, group kind, rows of x, N and K."""
    p = problem
    group = "k" if _group(p) == p.k else str(_group(p))
    return f"w{_bits(p)} g{group} m{_bucket(p.m)} n{p.n} k{p.k}"


@functools.lru_cache(maxsize=8)
def _table(device_name: str) -> dict[str, dict]:
    name = device_name.lower().removeprefix("nvidia ").split()[0]
    path = pathlib.Path(__file__).parent / "tables" / f"mixed_mm_{name}.json"
    return json.loads(path.read_text())["entries"] if path.exists() else {}


def _from_table(problem: MixedMMProblem, device: Device) -> Config | None:
    entry = _table(device.name).get(table_key(problem))
    if entry is None:
        return None
    fields = dict(entry["config"])
    kind = {"decode": DecodeConfig, "prefill": PrefillConfig}[fields.pop("kernel")]
    config = kind(**fields)
    return config if legal(problem, config, device) else None


@functools.lru_cache(maxsize=4096)
def choose(problem: MixedMMProblem, device: Device) -> Config:
    """The config for this problem: the measured table's, else the cost model's best.

    Raises:
      ValueError: no config is legal.
    """
    measured = _from_table(problem, device)
    if measured is not None:
        return measured
    options = candidates(problem, device)
    if not options:
        raise ValueError(f"no legal config for {problem} on {device.name}")
    return min(options, key=lambda config: estimate(problem, config, device).total)


def explain(problem: MixedMMProblem, device: Device, count: int = 5) -> str:
    """Why `choose` chooses what it does, with the model's best few: for people.

    Example:
      >>> from jaxkernels import scalar_types
      >>> from jaxkernels.problem import DEVICES
      >>> p = MixedMMProblem(16, 4096, 4096, scalar_types.uint4b8, "bfloat16", "bfloat16", 128,
      ...                    "group", layout="hopper_fragment", scale_dtype="bfloat16")
      >>> print(explain(p, DEVICES["h200"], count=1))
      w4 g128 m16 n4096 k4096 on NVIDIA H200: ...
    """
    chosen = choose(problem, device)
    source = "cost model" if _from_table(problem, device) is None else "measured table"
    lines = [f"{table_key(problem)} on {device.name}: {chosen} ({source})"]
    ranked = [(estimate(problem, c, device), c) for c in candidates(problem, device)]
    ranked.sort(key=lambda pair: pair[0].total)
    for cost, config in ranked[:count]:
        parts = f"memory {cost.memory:.1f}, compute {cost.compute:.1f}"
        lines.append(f"  {cost.total:8.1f} us ({parts}) {config}")
    return "\n".join(lines)

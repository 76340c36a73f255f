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
import itertools

import jax.numpy as jnp

from jaxkernels.mixed_mm.hopper_decode import DecodeConfig, stages_a_pass, zero_groups_a_stage
from jaxkernels.mixed_mm.hopper_prefill import PrefillConfig, zero_row_tiles
from jaxkernels.mosaic.convert import FORMATS, TILE
from jaxkernels.mosaic.gather import BOX, boxes
from jaxkernels.problem import Device, MixedMMProblem, Support
from jaxkernels.tuning.model import Estimate, ceil_div, cheapest, measured, row_bucket

Config = DecodeConfig | PrefillConfig

_ALIGN = 1024  # Pallas aligns each shared allocation to this
_THREADS = 128  # of a warpgroup
_REGISTERS = 65536  # an SM's
_FRAGMENTS = 32  # registers of two converted tiles, one multiplying and one being made
_OTHER = 40  # words, addresses, scales, counters of the prefill kernel
_DECODE_OTHER = 16  # of the decode kernel
_MAX_CLUSTER = 8  # the portable limit
_FEW_ROWS = 512  # of x, for which the decode kernel is a candidate
# Of x, in act-order: 4 x 8192 x 8192 took 12.3 us with columns picked by the product's blocks and
# 12.5 after a gather; 8 x 4096 x 4096 6.3 and 5.9 (H200, 2026-11-28).
_PICKED_ROWS, _PICKED_BYTES = 4, 64 << 10


def _scale_bytes(p: MixedMMProblem) -> int:
    return jnp.dtype(p.scale_dtype).itemsize


def _x_bytes(p: MixedMMProblem) -> int:
    return jnp.dtype(p.x_dtype).itemsize


def _bits(p: MixedMMProblem) -> int:
    return FORMATS[p.weight_type].bits


def shared_bytes(problem: MixedMMProblem, config: Config) -> int:
    """Shared memory of one block, in bytes, as Pallas will lay it out."""
    p, c = problem, config
    grouped = p.group < p.k
    groups = max(1, c.tile_k // p.group)
    rows = c.stages * c.wg_n * groups * TILE
    sizes = [
        c.stages * c.wg_n * (c.tile_k // TILE) * _bits(p) * 512,
        c.stages * c.tile_m * c.tile_k * _x_bytes(p),
        1024,  # the interpreter's scratch, a stub on a GPU
        grouped * (rows // TILE * 128 if p.granularity == "block" else rows * _scale_bytes(p)),
        (grouped and p.zero_points) * c.stages * _zero_points(p, c),
        p.bias * c.wg_n * TILE * 4,
    ]
    if isinstance(c, DecodeConfig):
        width = c.tile_m // min(c.split_k, c.tile_m // 8)
        sizes += [
            c.wg_n * width * TILE * 2,
            (c.wg_k - 1) * c.wg_n * TILE * c.tile_m * 4,
            (c.split_k > 1) * c.split_k * c.wg_n * TILE * width * 4,
            c.gather * boxes(p.k) * BOX * p.m * _x_bytes(p),
        ]
    else:
        sizes.append(c.wg_n * 2 * TILE * TILE * 2)
    barriers = 8 * (2 * c.stages + 16)
    return sum(ceil_div(size, _ALIGN) * _ALIGN for size in sizes if size) + barriers + _ALIGN


def _zero_points(problem: MixedMMProblem, config: Config) -> int:
    """How many zero points a stage brings."""
    c, group = config, problem.group
    if isinstance(c, DecodeConfig):
        return c.wg_n * zero_groups_a_stage(c, group) * TILE
    return zero_row_tiles(c, group) * max(1, c.tile_k // group) * TILE


def registers(problem: MixedMMProblem, config: Config) -> tuple[int, int]:
    """(what a compute thread needs, by a rough count; what it can be given)."""
    c = config
    accumulator = c.tile_m // 2
    if isinstance(c, PrefillConfig):
        given = c.compute_registers or _even_share(c.wg_n + 1)
        return accumulator + _FRAGMENTS + _OTHER, given
    group = problem.group
    if group < problem.k and c.scale_on == "accumulator":
        chains = max(1, c.tile_k // c.wg_k // group)
        steps = ceil_div(problem.k, c.tile_k * c.split_k)
        accumulator *= 1 + chains * stages_a_pass(c, chains, steps)
    return accumulator + _FRAGMENTS + _DECODE_OTHER, _even_share(c.wg_n * c.wg_k + 1)


def _even_share(warpgroups: int) -> int:
    return min(_REGISTERS // (warpgroups * _THREADS) // 8 * 8, 255)


def legal(problem: MixedMMProblem, config: Config, device: Device) -> Support:
    """Whether the kernel of this config can run the problem; every reason why not.

    A wrong register budget does not fail on the GPU, it hangs or spills: it is refused here.
    """
    p, c = problem, config
    group = p.group
    decode = isinstance(c, DecodeConfig)
    own = c.tile_k // (c.wg_k if decode else 1)  # K of a stage that one warpgroup multiplies
    shared = shared_bytes(p, c)
    need, given = registers(p, c)
    clauses = [
        (c.tile_k % (TILE * (c.wg_k if decode else 1)) == 0, "tile_k in whole tiles a warpgroup"),
        (group == p.k or group % c.tile_k == 0 or c.tile_k % group == 0, "stages in whole groups"),
        (shared <= device.smem_bytes, f"needs {shared} bytes of shared memory"),
        (need <= given, f"needs about {need} registers a thread and can have {given}"),
        (
            not (p.zero_points and group < p.k) or _zero_points(p, c) % 128 == 0,
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
            (not c.gather or p.g_idx, "columns are picked for act-order alone"),
            (not c.gather or p.m <= c.tile_m == 8, "picks columns of at most 8 rows"),
            (
                not c.gather or (c.tile_k % _THREADS == 0 and p.k % (c.tile_k * c.split_k) == 0),
                "picks columns for whole stages, some for every thread",
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
    """The legal configs that are worth considering for this problem."""
    p = problem
    group = p.group
    cover = next((t for t in (8, 16, 32, 64) if p.m <= t), 128)  # the tile that takes all rows
    tile_ms = [64, 128] if 64 < p.m <= 128 else [cover]
    scale_ons = ["accumulator", "weight"] if TILE <= group < p.k else ["weight"]
    scale_ons = ["accumulator"] if group == p.k else scale_ons
    if p.m > 64 and group < p.k:
        scale_ons = ["weight"]
    wanted: list[Config] = []
    for tile_m, (wg_n, wg_k), scale_on in itertools.product(
        tile_ms, ((4, 1), (2, 2), (1, 4), (2, 1), (1, 2)), scale_ons
    ):
        depths = {wg_k * own for own in (64, 128, 256)}
        if group < p.k and group % TILE == 0:
            depths.add(group * (wg_k if group < 256 else 1))
        for tile_k, split_k in itertools.product(sorted(depths), (1, 2, 4)):
            if tile_k * split_k < 2 * p.k + TILE * wg_k:
                wanted.append(DecodeConfig(tile_m, wg_n, wg_k, tile_k, 4, split_k, scale_on))
    if p.m > 64:
        for tile_m, wg_n, cluster_n in itertools.product((64, 128, 192, 256), (2, 3), (1, 2)):
            wanted.append(PrefillConfig(tile_m, wg_n, 64, 3, cluster_n))
        wanted += [PrefillConfig(128, 2, 128, 3, cluster_n) for cluster_n in (1, 2)]
    deep = (variant for config in wanted for variant in _depths(p, config, device))
    found = tuple(dict.fromkeys(config for config in deep if legal(p, config, device)))
    if p.m > _FEW_ROWS:  # a block for every tile of x pays no longer
        found = tuple(c for c in found if isinstance(c, PrefillConfig)) or found
    return found


def _depths(problem: MixedMMProblem, config: Config, device: Device) -> list[Config]:
    """The config with as many stages as fit, up to 8, and where that is 8, with 4 too.

    Fewer stages may leave room for a block of the next launch, which then loads its weights early.
    Two are too few for a single sum, which frees a stage only when the next has begun.
    """
    decode = isinstance(config, DecodeConfig)  # which wants a power of two
    depths = (6, 5, 4, 3, 2)
    if decode:
        depths = (8, 4) if _one_sum(problem, config) else (8, 4, 2)
    deep = [dataclasses.replace(config, stages=stages) for stages in depths]
    fitting = [c for c in deep if shared_bytes(problem, c) <= device.smem_bytes]
    return fitting[: 2 if decode and fitting and fitting[0].stages == 8 else 1]


def _one_sum(problem: MixedMMProblem, config: DecodeConfig) -> bool:
    """Whether the decode kernel adds all of K up in one accumulator."""
    return problem.group == problem.k or config.scale_on == "weight"


# Fitted to 488 measurements of 129 problems on one H200 (132 SMs), 2026-11-22: the model's pick was
# 1.1% over the best config tried on average, 10% at most. W4A16 bf16 groups of 128: 16 x 28672 x
# 4096 18.8 us, M=64 26.7, M=128 44.4; 16 x 4096 x 4096 5.2; 4096 x 28672 x 4096 1146.
_CLOCK = 1.79e3  # cycles a microsecond
_START = 2.86  # microseconds: launch, first bytes, last store
_OVERLAP = 0.762  # of them under the launch ahead ...
_EARLY = 0.3  # ... and more where two blocks fit on an SM
_AGAIN = 2.58  # microseconds to fill the pipeline of a further block on an SM
_L2_BYTES = 1.19e7  # bytes a microsecond, all SMs together
_DECODE_TILE = 109.0  # cycles of an SM for a tile of 64 x 64 weights by no columns of x ...
_DECODE_COLUMN = 1.01  # ... and for each column
_EIGHT_BITS = 1.17  # times as much for 8-bit weights
_ON_WEIGHT = 0.714  # cycles more for each group of a tile with scales on the weights ...
_ZEROS_ON_WEIGHT = 19.1  # ... and where zero points keep scale and conversion apart
_DRAIN = 10.9  # cycles more at the end of a stage with scales on accumulators ...
_ON_ACCUMULATOR = 0.597  # cycles more for each column over 32: registers run short
_SHORT = {1: 1.27, 2: 0.993}  # times slower with so few tiles of a stage a warpgroup
_SHALLOW = 1.14  # times slower with two stages ...
_SHALLOWEST = 1.62  # ... where one sum frees a stage only in the next
_FEW_WARPS = 1.08  # times slower with fewer than 4 compute warpgroups on an SM
_PREFILL_COLUMN = 1.73  # cycles of an SM for a column of a tile of 64 x 64 weights ...
_PREFILL_TILE = 188.0  # ... and for the tile, shared by the block's warpgroups
_ALONE = 1.02  # times slower where each block of a long launch reads all of its x ...
_PAIRED = 1.03  # ... and where blocks that wait for each other have one or two tiles each
_EPILOGUE = 0.0089  # microseconds a column of a prefill tile
_SPLIT = 0.945  # microseconds of a sum over a cluster of 2, and of each doubling
_SPLIT_TILE = 0.0883  # ... and for each 64 columns of each warpgroup's tile
_HALVES = 0.323  # microseconds of a sum over warpgroups
_CLUSTERED = {1: 1.0, 2: 1.0, 4: 0.85, 8: 0.7}  # of the SMs run clusters of so many blocks


def estimate(problem: MixedMMProblem, config: Config, device: Device) -> Estimate:
    """The cost model."""
    p, c = problem, config
    decode = isinstance(c, DecodeConfig)
    split = c.split_k if decode else 1
    n_tiles, m_tiles = ceil_div(p.n, c.wg_n * TILE), ceil_div(p.m, c.tile_m)
    blocks = n_tiles * m_tiles * split
    k_tiles = ceil_div(p.k, c.tile_k * split) * (c.tile_k // TILE)
    if decode:
        rounds, again = _decode_rounds(p, c, device, blocks)
        together = min(rounds, _resident(p, c, device))
        compute = rounds * c.wg_n * k_tiles * _decode_cycles(p, c, together) / _CLOCK
    else:
        rounds, again = blocks / device.num_sms, 0.0
        rounds = ceil_div(blocks, device.num_sms) if rounds < 8 else rounds + 0.5
        cycles = _PREFILL_COLUMN * c.tile_m + _PREFILL_TILE / c.wg_n
        cycles *= _ALONE if c.cluster_n == 1 and rounds > 4 else 1.0
        cycles *= _PAIRED if c.cluster_n > 1 and rounds <= 2 else 1.0
        compute = rounds * (c.wg_n * k_tiles * cycles / _CLOCK + c.tile_m * _EPILOGUE)
    weights = p.n * p.k * _bits(p) / 8
    x_reads = n_tiles * m_tiles * c.tile_m * p.k * _x_bytes(p) / getattr(c, "cluster_n", 1)
    memory = p.min_bytes / (device.read_gbps * 1e3)
    # Blocks with the same weights run side by side, as do those with the same x: not all of it
    # comes from far away when there are many.
    l2 = (weights * m_tiles + x_reads) / (_L2_BYTES * (1 if m_tiles <= 4 else 1.25))
    total = _START - _OVERLAP * c.overlap + max(memory, l2, compute) + again
    if decode:
        total -= _EARLY * (c.overlap and _resident(p, c, device) > 1 and again == 0.0)
        sums = _SPLIT + _SPLIT_TILE * c.wg_n * c.tile_m / TILE
        total += sums * (split.bit_length() - 1) + _HALVES * (c.wg_k > 1)
    return Estimate(memory, l2, compute, total)


def _decode_cycles(p: MixedMMProblem, c: DecodeConfig, together: int) -> float:
    """Cycles that an SM spends on one tile of 64 x 64 weights, with so many blocks on it."""
    warpgroups = c.wg_n * c.wg_k
    cycles = _DECODE_TILE + _DECODE_COLUMN * c.tile_m
    cycles *= 1.0 if _bits(p) == 4 else _EIGHT_BITS
    own = c.tile_k // c.wg_k // TILE
    cycles = max(cycles, 2.05 * c.tile_m)
    if p.group < p.k and c.scale_on == "weight":
        cycles += _ON_WEIGHT * max(1.0, TILE / p.group) + _ZEROS_ON_WEIGHT * p.zero_points
    elif p.group < p.k:
        cycles += _ON_ACCUMULATOR * max(0, c.tile_m - 32) + _DRAIN / own
    if c.tile_m <= 32 or own == 1:
        cycles *= _SHORT.get(own, 1.0)
    if c.stages == 2:
        cycles *= _SHALLOWEST if _one_sum(p, c) else _SHALLOW
    return cycles * (_FEW_WARPS if warpgroups * together < 4 else 1.0)


def _resident(p: MixedMMProblem, c: DecodeConfig, device: Device) -> int:
    """Blocks that an SM holds at a time."""
    threads = (c.wg_n * c.wg_k + 1) * _THREADS
    used = ceil_div(registers(p, c)[0] + 12, 8) * 8
    fit = device.smem_bytes // shared_bytes(p, c), _REGISTERS // (threads * used), 2048 // threads
    return max(1, min(fit))


def _decode_rounds(p, c, device, blocks) -> tuple[int, float]:
    """How many blocks the busiest SM works through, and what their beginnings cost."""
    # A cluster of 4 or 8 has to fit in a GPC of 16 or 18 SMs: not every SM gets one.
    sms = _CLUSTERED[c.split_k] * device.num_sms
    rounds = ceil_div(blocks, int(sms))
    alone = ceil_div(rounds, _resident(p, c, device)) - 1
    return rounds, _AGAIN * max(alone, 0.6 * (rounds - 1))


# -- the choice ---------------------------------------------------------------------------------


def table_key(problem: MixedMMProblem) -> str:
    """The table's key: bits (z: zero points, a: act-order), group, rows of x (rounded up), N, K."""
    return _table_keys(problem)[0]


def _table_keys(problem: MixedMMProblem) -> list[str]:
    """The problem's own key, then those of problems that much the same configs are good for."""
    p = problem
    z, a = "z" * p.zero_points, "a" * p.g_idx
    kinds = dict.fromkeys((z + a, z, ""))
    groups = dict.fromkeys(("k" if p.group == p.k else str(p.group), "128", "k"))
    shape = f"m{row_bucket(p.m)} n{p.n} k{p.k}"
    return [f"w{_bits(p)}{kind} g{g} {shape}" for kind, g in itertools.product(kinds, groups)]


def _from_table(problem: MixedMMProblem, device: Device) -> Config | None:
    """The measured config, or a like problem's where this one was not measured and allows it."""
    p = problem
    for key in _table_keys(p):
        entry = measured("mixed_mm", device).get(key)
        if entry is None:
            continue
        kind = DecodeConfig if "split_k" in entry["config"] else PrefillConfig
        config = kind(**entry["config"])
        same = key in (table_key(p), table_key(dataclasses.replace(p, g_idx=False)))
        if kind is DecodeConfig and not same and p.group < p.k:
            # Zero points cost least where scales stay off the weights, if registers allow that.
            apart = p.zero_points and p.m <= 32 and p.group >= TILE
            config = dataclasses.replace(config, scale_on="accumulator" if apart else "weight")
        if legal(p, config, device):
            return config
    return None


def _picking(problem: MixedMMProblem, config: Config, device: Device) -> Config:
    """For act-order of few rows the config, or one like it, that picks x's columns itself.

    Rows in shared memory must not cost an SM a block that hides another's waiting: two blocks
    become one of twice the columns, or stages become shorter, if each warpgroup keeps two tiles.
    (1 x 8192 x 28672 33.8 us by shorter ones, 35.2 after a gather; 4 x 28672 x 4096 18.1 by wider
    ones, 20.7. H200, 2026-11-28)
    """
    p, c = problem, config
    few = p.m <= _PICKED_ROWS and p.m * p.k * _x_bytes(p) <= _PICKED_BYTES
    if not (p.g_idx and isinstance(c, DecodeConfig) and few):
        return c
    variants = [c, dataclasses.replace(c, wg_n=2 * c.wg_n)]
    if c.tile_k // c.wg_k >= 4 * TILE:
        variants.append(dataclasses.replace(c, tile_k=c.tile_k // 2))
    warpgroups = c.wg_n * c.wg_k * _resident(p, c, device)
    for variant in variants:
        v = dataclasses.replace(variant, gather=True)
        if legal(p, v, device) and v.wg_n * v.wg_k * _resident(p, v, device) >= warpgroups:
            return v
    return c


@functools.lru_cache(maxsize=4096)
def choose(problem: MixedMMProblem, device: Device) -> Config:
    """The config for this problem: the measured table's, else the cost model's best.

    Raises:
      ValueError: no config is legal.
    """
    config = _from_table(problem, device)
    if config is None:
        options = candidates(problem, device)
        if not options:
            raise ValueError(f"no legal config for {problem} on {device.name}")
        config = min(options, key=lambda config: estimate(problem, config, device).total)
    return _picking(problem, config, device)


def explain(problem: MixedMMProblem, device: Device, count: int = 5) -> str:
    """Why `choose` chooses what it does, with the model's best few: for people."""
    chosen = choose(problem, device)
    source = "cost model" if _from_table(problem, device) is None else "measured table"
    lines = [f"{table_key(problem)} on {device.name}: {chosen} ({source})"]
    costs = [(estimate(problem, c, device), c) for c in candidates(problem, device)]
    return "\n".join(lines + cheapest(costs, count))

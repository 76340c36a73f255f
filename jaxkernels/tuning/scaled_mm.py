# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Configs of the Hopper scaled GEMM: candidates, and what each is expected to cost.

`choose` takes the cheapest legal candidate, or what a table says was measured best for the shape.
`explain` prints why. The model adds up what one launch consists of: a fixed part (launch, first
bytes, last tile's epilogue), and rounds of tiles over the SMs, each as long as the slowest of
its tensor cores, its L2 traffic and its share of the memory's bandwidth.

Its constants were fitted on an H200 on 2026-11-22 to 190 timings of int8 and fp8, M = 1..4096, and
300 of block-scaled fp8, of which it is 6% to 8% off (one standard deviation). A block-scaled step
costs by what it moves through shared memory: not because that bounds it, but because it ranks
tiles as the GPU does (42 problems, 498 timings, 2026-11-28: its choice 0.9% over the best on
average, 5% at most; absolute times 5% high).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

from jaxkernels.problem import Device, ScaledMMProblem
from jaxkernels.scaled_mm.hopper_config import TILE_K, Config, Plan, ceil_div, wgmma_columns
from jaxkernels.tuning.model import measured, measured_on

_MACS_PER_CLOCK = 4096  # of an SM, 8-bit operands
_CLOCK = 1.6e9  # what an H200 sustains with every tensor core at work
_COOL_CLOCK = 1.9e9  # and with half of them
_STEP_CLOCKS = 50  # of a stage, that are neither products nor hidden
_SMEM_BYTES = 128  # that an SM's shared memory moves in a clock
_SCALED_CLOCK = 1.7e9  # block-scaled products: what the two below were fitted at
_OVERLAPPED = 0.98, 35  # a stage: times what shared memory moves, and clocks more,
_ONE_AT_A_TIME = 0.9, 130  # where a warpgroup's products wait for its scaling,
_COLUMN_SCALE = 0.6  # for each column, where x's scales lie along them
_COUPLED = 1.03  # where a pair of blocks shares w, and each waits for both;
_APART, _APART_LOW = 1.08, 1.25  # not, w comes twice: in tiles of 128 rows, of 64
_ROUND = 0.3e-6  # a further tile of a block: its epilogue, in part hidden,
_ROUND_OF_OUTPUTS = 0.9e-6 / 2**15  # and more for each element of it
_SCALED_OUTPUTS = 2e-6 / 2**15  # each element of each block-scaled tile
_LAUNCH = 2.7e-6
_OVERLAPPED_LAUNCH = 1.95e-6
_EARLY_LAUNCH = 1.3e-6  # with the first stages of weights
_OVERLAP_LIMIT = 70e-6  # of a kernel, below which it starts under the one ahead,
_OVERLAP_LIMIT_OF_MANY_ROWS = 22e-6  # and with more than 128 rows, where longer ones lost by it
_EARLY_WEIGHTS = 20e6  # bytes: fewer gained only with little else to load
_EARLY_AFTER_QUANTIZATION = 100e6  # the same where x is quantized meanwhile, at most so many rows:
_EARLY_ROWS = 128
_LATENCY = 1.55e-6  # of memory under load: a block's bytes in flight over this is its rate
_BLOCK_BANDWIDTH = 130e9  # the most one block reads, however much it has in flight
_MEMORY_EFFICIENCY = 0.985
_L2_BANDWIDTH = 17e12
_CLUSTER = 0.4e-6  # blocks of a cluster start and end together
# Of a split, for each other block of the cluster; 144 timings of M = 16 and 64, H200, 2026-11-29.
_EXCHANGE = 0.3e-6
_EXCHANGE_BANDWIDTH = 16e9  # partial sums that a block sends and adds


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a config is expected to take, in seconds, and of what it consists.

    Attributes:
      total: all of it.
      memory, l2, tensor: the rounds of tiles, if only that had to be waited for.
      fixed: launch, epilogues, exchanges.
      blocks, rounds: blocks at work at a time, and tiles each of them computes.
    """

    total: float
    memory: float
    l2: float
    tensor: float
    fixed: float
    blocks: int
    rounds: int

    def __str__(self) -> str:
        names = ("memory", "l2", "tensor", "fixed")
        parts = ", ".join(f"{name} {getattr(self, name) * 1e6:.1f}" for name in names)
        return f"{self.total * 1e6:.1f} us ({parts}; {self.blocks} blocks x {self.rounds})"


def choose(problem: ScaledMMProblem, device: Device) -> Config:
    """The config to run with: a measured one for this shape, or the model's."""
    return _from_table(problem, device) or ranked(problem, device)[0][1]


def after_quantization(problem: ScaledMMProblem, config: Config) -> Config:
    """The config for a product that comes right after the quantization of its x.

    Weights that come early get in the way of the quantization, which is all that the product waits
    for: 16 x 4096 x 4096 with its quantization took 7.8 us with them and 7.1 without, 256 x 4096 x
    14336 33.7 and 30.4; only large weights under few rows gained, 1 x 28672 x 4096 29.8 and 31.7
    (H200, 2026-11-22, fp8).
    """
    early = problem.n * problem.k >= _EARLY_AFTER_QUANTIZATION and problem.m <= _EARLY_ROWS
    return config if early else dataclasses.replace(config, weights_first=False)


def explain(problem: ScaledMMProblem, device: Device, count: int = 5) -> str:
    """What runs and why: the table's entry if any, then the model's best, a line each."""
    lines = [f"{cost}  {config}" for cost, config in ranked(problem, device)[:count]]
    entry = _from_table(problem, device)
    if entry is not None:
        lines.insert(0, f"measured on {measured_on('scaled_mm', device).name}: {entry}")
    return "\n".join(lines)


@functools.lru_cache(maxsize=4096)
def ranked(problem: ScaledMMProblem, device: Device) -> tuple[tuple[Cost, Config], ...]:
    """Legal candidates with their costs, cheapest first."""
    found = [(cost(problem, config, device), config) for config in candidates(problem, device)]
    if not found:
        raise ValueError(f"no legal config for {problem} on {device.name}")
    return tuple(sorted(found, key=lambda pair: (pair[0].total, str(pair[1]))))


@functools.lru_cache(maxsize=4096)
def candidates(problem: ScaledMMProblem, device: Device) -> tuple[Config, ...]:
    """Every config worth considering, all legal."""
    found = []
    for shape, split, cluster_m in itertools.product(_shapes(problem), (1, 2, 4), (1, 2)):
        tile_m, tile_n, swap, wgs = shape
        if cluster_m > 1 and (split > 1 or problem.m <= tile_m or tile_m < 128):
            continue  # nothing to share, or little
        # Of block-scaled tiles a wave covers about as many rows of x as of w.
        panel = 2048 // (tile_m * cluster_m) if problem.x_scale == "group" and not swap else 16
        base = Config(tile_m, tile_n, 2, swap, split, cluster_m, warpgroups=wgs, panel=panel)
        deep = _deepest(problem, base, device)
        if deep is None:
            continue
        if _shares_rows(problem, deep, device):
            fits = 16 * tile_m * problem.k <= device.l2_bytes / 3
            deep = dataclasses.replace(deep, cluster_n=2, panel=16 if fits else 8)
        few = problem.m <= 128 or problem.x_scale == "group"
        limit = _OVERLAP_LIMIT if few else _OVERLAP_LIMIT_OF_MANY_ROWS
        overlap = cost(problem, deep, device).total < limit
        early = overlap and _worth_early_weights(problem, deep, device)
        found.append(dataclasses.replace(deep, overlap=overlap, weights_first=early))
    return tuple(found)


def _shares_rows(problem: ScaledMMProblem, config: Config, device: Device) -> bool:
    """Whether pairs of blocks share x's tile, as tall block-scaled tiles do in long kernels.

    4096 x 8192 x 28672 took 1325 us by pairs and 1341 without (H200, 2026-11-28).
    """
    plan = Plan(problem, config)
    tall = problem.x_scale == "group" and config.tile_m == 256 and config.tile_n == 128
    long = plan.m_groups * plan.n_groups >= 3 * device.num_sms
    return tall and long and config.cluster == 1


def _worth_early_weights(problem: ScaledMMProblem, config: Config, device: Device) -> bool:
    """Few blocks leave SMs idle, where the next kernel's loads would compete with this one's."""
    plan = Plan(problem, config)
    blocks = plan.m_groups * plan.n_groups * config.cluster
    many = problem.n * problem.k > _EARLY_WEIGHTS and blocks > 0.6 * device.num_sms
    return many or problem.m <= 16


def _shapes(problem: ScaledMMProblem) -> list[tuple[int, int, bool, int]]:
    """(tile_m, tile_n, swap, warpgroups) of the tiles worth considering."""
    block = problem.x_scale == "group"
    narrow = next(width for width in wgmma_columns(problem.x_dtype) if width >= min(problem.m, 64))
    if problem.m <= 64:
        shapes = [(narrow, 64, True, 1), (narrow, 128, True, 2)]
        shapes += [] if block else [(narrow, 256, True, 2)]
        upright = [(64, n, False, 1) for n in (32, 64, 128)]
        return shapes + (upright if block and problem.m > 32 else [])
    shapes = [(128, n, False, 2) for n in range(32, 193 if block else 257, 32)]
    if block and problem.m > 128:
        shapes += [(256, 64, False, 2), (256, 128, False, 2)]
    if block and problem.m <= 256:
        shapes += [(64, n, False, 1) for n in (64, 96, 128)]
    return shapes


def _deepest(problem: ScaledMMProblem, config: Config, device: Device) -> Config | None:
    """The config with as many stages as fit; None if fewer than 3 do, or it is illegal."""
    plan = Plan(problem, config)
    stage = (plan.rows + plan.cols) * TILE_K
    spare = device.smem_bytes - plan.smem_without_staging - plan.out_slot_bytes
    for stages in range(min(2 + max(spare, 0) // stage, 16), 2, -1):
        deep = dataclasses.replace(config, stages=stages)
        if Plan(problem, deep).legal(device):
            return deep
    return None


def cost(problem: ScaledMMProblem, config: Config, device: Device) -> Cost:
    """The model's expectation for one config."""
    plan, p, c = Plan(problem, config), problem, config
    tiles = plan.m_groups * plan.n_groups * c.cluster
    slots = device.num_sms
    if c.cluster > 2:  # clusters of 4 do not fill every GPC: 32 of them took two rounds
        slots = slots * 7 // 8
    if c.split_k > 1:  # not persistent: as many blocks at a time as shared memory lets
        slots *= max(1, device.smem_bytes // plan.smem_without_staging)
    blocks, rounds = min(tiles, slots), ceil_div(tiles, slots)
    last = tiles - (rounds - 1) * slots  # blocks of the last round

    if plan.block_scaled:
        # TMA writes a stage once; each product of 64 rows reads those and all columns.
        moved = (plan.rows + plan.cols + plan.rows + plan.rows // 64 * plan.cols) * TILE_K
        factor, more = _OVERLAPPED if plan.overlaps_scaling else _ONE_AT_A_TIME
        clocks, clock = factor * moved / _SMEM_BYTES + more, _SCALED_CLOCK
        if c.swap:
            clocks += _COLUMN_SCALE * plan.cols
        elif c.cluster_m > 1:
            clocks *= _COUPLED
        elif plan.m_groups == 2 and c.tile_m == 64:
            clocks *= _APART_LOW
        elif plan.m_groups == 2 and c.tile_m == 128 and rounds == 1:
            clocks *= _APART
    else:
        clocks = c.tile_m * c.tile_n * TILE_K / _MACS_PER_CLOCK + _STEP_CLOCKS
        clock = _CLOCK if 3 * blocks > 2 * device.num_sms else _COOL_CLOCK
    # Power is what limits a long kernel, and blocks that idle in its last round save some.
    loaded = rounds if rounds <= 2 else (rounds + tiles / slots) / 2
    tensor = loaded * plan.split_steps * clocks / clock

    stage = (plan.rows + plan.cols) * TILE_K
    shared = (c.tile_m / c.cluster_n + c.tile_n / c.cluster_m) * TILE_K
    l2 = tiles * shared * plan.split_steps / _L2_BANDWIDTH

    # A round's blocks read no faster than the memory, nor than their stages in flight allow.
    one = min(c.stages * stage / _LATENCY, _BLOCK_BANDWIDTH)
    bandwidth = device.read_gbps * 1e9 * _MEMORY_EFFICIENCY
    part = p.min_bytes / tiles
    memory = (tiles - last) * part / _lesser(slots * one, bandwidth)
    memory += last * part / _lesser(last * one, bandwidth)

    # Early weights pay where they are many, or with few rows most of what a block loads.
    pays = blocks > 0.6 * device.num_sms or (p.m <= 16 and 2 * c.stages >= plan.split_steps)
    early = c.weights_first and pays and (c.warpgroups == 1 or not c.swap)
    launch = _EARLY_LAUNCH if early else _OVERLAPPED_LAUNCH if c.overlap else _LAUNCH
    outputs = c.tile_m * c.tile_n
    if plan.block_scaled:
        fixed = launch + rounds * _SCALED_OUTPUTS * outputs
    elif c.swap:
        fixed = launch
    else:
        fixed = launch + (rounds - 1) * (_ROUND + _ROUND_OF_OUTPUTS * outputs)
    if c.split_k > 1:
        partial = c.tile_m * c.tile_n * 4
        fixed += rounds * (_EXCHANGE * (c.split_k - 1) + partial / _EXCHANGE_BANDWIDTH)
    elif c.cluster > 1:
        fixed += _CLUSTER
    slowest, second = sorted((tensor, l2, memory), reverse=True)[:2]
    total = slowest + 0.1 * second + fixed  # the two do not overlap perfectly
    return Cost(total, memory, l2, tensor, fixed, blocks, rounds)


def _lesser(a: float, b: float) -> float:
    """The lesser of two rates, and a little less where they are close."""
    return a * b / (a**4 + b**4) ** 0.25


def _from_table(problem: ScaledMMProblem, device: Device) -> Config | None:
    p = problem
    family = "block" if p.x_scale == "group" else "rows"
    wide = p.out_dtype == "float32" or p.azp is not None  # need more shared memory: not measured
    entry = None if wide else _table(device).get((family, p.m, p.n, p.k))
    if entry is not None and Plan(problem, entry).legal(device):
        return entry
    return None


@functools.lru_cache(maxsize=8)
def _table(device: Device) -> dict[tuple, Config]:
    """(family, m, n, k) -> config, of the device's table."""
    entries = measured("scaled_mm", device)
    return {(e["family"], e["m"], e["n"], e["k"]): Config(**e["config"]) for e in entries}

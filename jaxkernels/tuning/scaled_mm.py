# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Configs of the Hopper scaled GEMM: candidates, and what each is expected to cost.

`choose` takes the cheapest legal candidate. `explain` prints why. The model, per block of the
grid and in seconds: the time its operands take from memory or L2, the time its products take on
the tensor cores, whichever is longer, times the waves of blocks, plus fixed costs of a launch, of
a tile's epilogue and of a split's exchange.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

from jaxkernels.problem import Device, ScaledMMProblem
from jaxkernels.scaled_mm.hopper_config import TILE_K, Config, Plan, ceil_div

# An H200's: sustained clock under load, L2 to SM bandwidth of the whole chip, and fixed costs.
_CLOCK = 1.75e9
_L2_BYTES = 6150 * _CLOCK
_MACS_PER_CLOCK = 4096  # 8-bit, an SM
_LAUNCH = 2.2e-6
_EPILOGUE_BYTES = 40 * _CLOCK  # output bytes an SM finishes a second
_EXCHANGE = 0.6e-6
_EXCHANGE_BYTES = 32 * _CLOCK  # partial bytes an SM pushes and sums a second
_STEP = 60 / _CLOCK  # barriers and issue of one stage that nothing hides


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a config is expected to take, in seconds, and of what it consists."""

    total: float
    memory: float
    l2: float
    tensor: float
    fixed: float
    waves: float
    blocks: int

    def __str__(self) -> str:
        us = {f.name: getattr(self, f.name) * 1e6 for f in dataclasses.fields(self)[:5]}
        parts = ", ".join(f"{name} {value:.1f}" for name, value in us.items() if name != "total")
        return f"{us['total']:.1f} us ({parts}; {self.blocks} blocks, {self.waves:.2f} waves)"


def choose(problem: ScaledMMProblem, device: Device) -> Config:
    """The config to run with."""
    return ranked(problem, device)[0][1]


@functools.lru_cache(maxsize=4096)
def ranked(problem: ScaledMMProblem, device: Device) -> tuple[tuple[Cost, Config], ...]:
    """Legal candidates with their costs, cheapest first."""
    found = [(cost(problem, config, device), config) for config in candidates(problem, device)]
    if not found:
        raise ValueError(f"no legal config for {problem} on {device.name}")
    return tuple(sorted(found, key=lambda pair: (pair[0].total, str(pair[1]))))


def explain(problem: ScaledMMProblem, device: Device, count: int = 5) -> str:
    """The best candidates and what each is expected to cost, a line each."""
    return "\n".join(f"{cost}  {config}" for cost, config in ranked(problem, device)[:count])


@functools.lru_cache(maxsize=4096)
def candidates(problem: ScaledMMProblem, device: Device) -> tuple[Config, ...]:
    """Every config worth considering, all legal."""
    shapes = []
    narrow = min(ceil_div(problem.m, 8) * 8, 256)
    widths = {narrow} if narrow <= 64 else {w for w in (64, 128, 192, 256) if w < narrow + 64}
    for width, (rows, wgs) in itertools.product(
        sorted(widths), ((64, 1), (128, 1), (128, 2), (256, 2))
    ):
        shapes.append((width, rows, True, wgs))
    if problem.m > 64:
        shapes += [(128, 64, False, 2), (128, 128, False, 2), (128, 256, False, 2)]
        shapes += [(256, 64, False, 2), (256, 128, False, 2), (64, 128, False, 1)]
    found = []
    for (tile_m, tile_n, swap, wgs), split, (cm, cn) in itertools.product(
        shapes, (1, 2, 4, 8), ((1, 1), (2, 1), (1, 2))
    ):
        base = Config(tile_m, tile_n, 2, swap, split, cm, cn, wgs)
        deep = _deepest(problem, base, device)
        if deep is not None and deep.stages >= (3 if tile_m * tile_n >= 128 * 256 else 4):
            found.append(deep)
    return tuple(found)


def _deepest(problem, config: Config, device: Device) -> Config | None:
    """The config with as many stages as fit, or as there are steps of K; None if illegal."""
    plan = Plan(problem, config)
    stage = (plan.rows + plan.cols) * TILE_K
    spare = device.smem_bytes - plan.smem_without_staging - plan.out_slot_bytes
    for stages in range(min(2 + max(spare, 0) // stage, 12), 1, -1):
        deep = dataclasses.replace(config, stages=stages)
        if Plan(problem, deep).legal(device):
            return deep
    return None


def cost(problem: ScaledMMProblem, config: Config, device: Device) -> Cost:
    """The model's expectation for one config."""
    plan, p, c = Plan(problem, config), problem, config
    groups = plan.m_groups * plan.n_groups
    blocks = groups * c.cluster
    waves = ceil_div(blocks, device.num_sms)
    steps = plan.split_steps
    macs = c.tile_m * c.tile_n * TILE_K * steps
    efficiency = 0.95 if plan.cols >= 128 else 0.8
    tensor = waves * macs / (_MACS_PER_CLOCK * efficiency * _CLOCK)
    if plan.block_scaled:
        tensor *= 1.1
    loaded = (c.tile_m / c.cluster_n + c.tile_n / c.cluster_m) * TILE_K * steps
    l2 = waves * min(blocks, device.num_sms) * loaded / _L2_BYTES
    memory = p.min_bytes / (device.read_gbps * 1e9)
    partial = c.tile_m * c.tile_n
    out_bytes = partial // plan.parts * 4
    fixed = _LAUNCH + out_bytes / _EPILOGUE_BYTES + waves * steps * _STEP
    if c.split_k > 1:
        fixed += waves * (_EXCHANGE + 2 * partial * 4 / _EXCHANGE_BYTES)
    if c.cluster > 1:
        fixed += 0.2e-6
    total = max(memory, l2, tensor) + fixed
    return Cost(total, memory, l2, tensor, fixed, blocks / device.num_sms, blocks)

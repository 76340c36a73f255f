# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm on Hopper: what it takes, and which of its two kernels runs.

Both kernels read the same prepared weight (`mixed_mm.prepare`): `hopper_decode` for few rows of x,
where reading the weights is the time, and `hopper_prefill` for many, where the tensor cores are.
`jaxkernels.tuning.mixed_mm` picks the kernel and its config; the type of the config says which.

A call is one kernel launch. In act-order the decode kernel picks x's columns by itself where the
rows fit beside its weights; otherwise a launch of its own does (`permute`).
"""

from __future__ import annotations

from dataclasses import replace

import jax

from jaxkernels.mixed_mm.hopper_decode import DecodeConfig, decode
from jaxkernels.mixed_mm.hopper_prefill import PrefillConfig, prefill
from jaxkernels.mixed_mm.permute import MAX_COLUMNS, MIN_COLUMNS, permute_columns
from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT
from jaxkernels.mixed_mm.prepare_shard import as_groups, is_shard
from jaxkernels.mosaic.device import trace_device
from jaxkernels.mosaic.weight_formats import FORMATS, SCALE_KINDS
from jaxkernels.problem import (
    Device,
    Implementation,
    MixedMMOperands,
    MixedMMProblem,
    Support,
)

_HALF = ("bfloat16", "float16")
_SCALES = ("bfloat16", "float16", "float32")
_SMALL_SCALES = tuple(SCALE_KINDS)


def supports(problem: MixedMMProblem, device: Device) -> Support:
    """Whether the kernels take this problem on this device; every reason why not."""
    p = problem
    return Support.all(
        (device.is_hopper, f"needs an NVIDIA GPU of capability 9.x, got {device.name}"),
        (
            p.layout == HOPPER_FRAGMENT,
            f"weights must be prepared once (jaxkernels.mixed_mm.prepare), got layout {p.layout!r}",
        ),
        (p.weight_type in FORMATS, f"no register conversion for {p.weight_type}"),
        (p.x_dtype in _HALF, f"x must be bfloat16 or float16, got {p.x_dtype}"),
        (p.out_dtype in _HALF, f"out_dtype must be bfloat16 or float16, got {p.out_dtype}"),
        (
            p.scale_dtype in _SCALES or p.scale_dtype in _SMALL_SCALES,
            f"scales must be one of {_SCALES + _SMALL_SCALES}, got {p.scale_dtype}",
        ),
        (
            p.scale_dtype not in _SMALL_SCALES
            or (p.weight_type.is_floating_point() and p.group in (16, 32) and p.group < p.k),
            "scales of 8 bits go with float weights in groups of 16 or 32, more than one, got "
            f"{p.weight_type} in groups of {p.group} of {p.k}",
        ),
        (
            p.group == p.k or p.group in (16, 32) or p.group % 64 == 0,
            f"group_size must be 16, 32, a multiple of 64, or -1, got {p.group_size}",
        ),
        (
            p.granularity != "block" or p.group_size % 64 == 0,
            f"blocks must have a multiple of 64 columns, got {p.group_size}",
        ),
        (p.k % 8 == 0, f"TMA needs rows of x of a multiple of 16 bytes: k % 8 == 0, got k={p.k}"),
        (p.n % 8 == 0, f"TMA needs output rows of a multiple of 16 bytes: n % 8 == 0, got n={p.n}"),
        (
            not p.g_idx or MIN_COLUMNS <= p.k <= MAX_COLUMNS,
            f"act-order takes {MIN_COLUMNS} to {MAX_COLUMNS} columns, got k={p.k}",
        ),
        (max(p.m, p.n, p.k) < 2**31, "each size < 2**31"),
    )


def run(
    problem: MixedMMProblem,
    operands: MixedMMOperands,
    config: DecodeConfig | PrefillConfig | None = None,
) -> jax.Array:
    """Computes the problem. config None takes the tuned default.

    Raises:
      ValueError: the config is illegal for the problem; the message has the reasons.
    """
    from jaxkernels.tuning import mixed_mm as tuning

    x, w, bias = operands
    order = w.g_idx  # of a prepared weight's columns
    if is_shard(w):
        w = as_groups(w)
        k, group = w.shape[1], w.group_size
        problem = replace(problem, k=k, group_size=group, granularity="group", g_idx=False)
    device = trace_device()
    config = config or tuning.choose(problem, device)
    legal = tuning.legal(problem, config, device)
    if not legal:
        raise ValueError(f"config: illegal for {problem}: {'; '.join(legal.reasons)}; got {config}")
    few = isinstance(config, DecodeConfig)
    if order is not None and not (few and config.gather):
        x = permute_columns(x, order)
    kernel = decode if few else prefill
    return kernel(problem, MixedMMOperands(x, w, bias), config)


def default_config(problem: MixedMMProblem, device: Device) -> DecodeConfig | PrefillConfig:
    """The config that tables and the cost model choose for this problem on this device."""
    from jaxkernels.tuning import mixed_mm as tuning

    return tuning.choose(problem, device)


def configs(problem: MixedMMProblem, device: Device) -> tuple[DecodeConfig | PrefillConfig, ...]:
    """Every config that tuning considers for this problem, all of them legal."""
    from jaxkernels.tuning import mixed_mm as tuning

    return tuning.candidates(problem, device)


KERNEL = Implementation("hopper", supports, run, default_config, configs)

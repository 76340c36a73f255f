# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What the cost models and tables of kernels with narrow weights share."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

from jaxkernels.problem import DEVICES, Device


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the cost model thinks of a config, in microseconds.

    Attributes:
      memory: weights, scales, x and the result at the device's read rate.
      l2: everything that the blocks read, x over and over, at the L2 cache's rate.
      compute: conversion and multiplication of the busiest SM.
      total: start and end, the largest of the three, and what a split adds.
    """

    memory: float
    l2: float
    compute: float
    total: float


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up."""
    return -(-a // b)


def row_bucket(m: int) -> int:
    """Numbers of rows that share a table entry: up to 8, 16, 32, ... 4096 and more."""
    bucket = 8
    while bucket < min(m, 4096):
        bucket *= 2
    return bucket


@functools.lru_cache(maxsize=16)
def measured_on(kernel: str, device: Device) -> Device | None:
    """The device that a kernel's table for this one was measured on, None where there is no table.

    A part without a table of its own takes that of one with the same processor: an H100 that of
    the H200, whose memory is faster and whose SMs are the same.

    Example:
      >>> from jaxkernels.problem import DEVICES
      >>> measured_on("mixed_mm", DEVICES["h100"]).name
      'NVIDIA H200'
      >>> measured_on("mixed_mm", DEVICES["h20"]) is None  # fewer SMs
      True
    """
    like = (d for d in DEVICES.values() if _processor(d) == _processor(device))
    return next((d for d in (device, *like) if _table_path(kernel, d).exists()), None)


@functools.lru_cache(maxsize=16)
def measured(kernel: str, device: Device) -> dict | list:
    """The entries of a kernel's table for a device (see `measured_on`), empty without one."""
    source = measured_on(kernel, device)
    return {} if source is None else json.loads(_table_path(kernel, source).read_text())["entries"]


def _table_path(kernel: str, device: Device) -> pathlib.Path:
    name = "_".join(device.name.lower().split())
    return pathlib.Path(__file__).parent / "tables" / f"{kernel}_{name}.json"


def _processor(device: Device) -> tuple:
    return device.platform, device.capability, device.num_sms, device.smem_bytes


def cheapest(costs: list[tuple[Estimate, Any]], count: int) -> list[str]:
    """Lines that show the best few of (estimate, config): for people."""
    lines = []
    for cost, config in sorted(costs, key=lambda pair: pair[0].total)[:count]:
        parts = f"memory {cost.memory:.1f}, L2 {cost.l2:.1f}, compute {cost.compute:.1f}"
        lines.append(f"  {cost.total:8.1f} us ({parts}) {config}")
    return lines

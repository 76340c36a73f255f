# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The support matrix: every scheme on every device, as data and as the table in README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selection.choice import short_name
from selection.choose import choose_kernel
from selection.platforms import platform_for
from selection.problems import NOMINAL_M, NOMINAL_SIZE
from selection.schemes import SCHEMES

DEVICES_SHOWN = ("h200", "b200", "a100", "l4", "t4", "mi300x", "xpu", "tpu-v5e", "cpu")
_TITLES = {
    "h200": "H200",
    "b200": "B200",
    "a100": "A100",
    "l4": "L4",
    "t4": "T4",
    "mi300x": "MI300X",
    "xpu": "Intel GPU",
    "tpu-v5e": "TPU",
    "cpu": "CPU",
}


@dataclass(frozen=True)
class Cell:
    """What serves one scheme on one device: a class, and the implementation that it runs."""

    scheme: str
    device: str
    kernel: type | None
    implementation: str | None
    slow: bool

    def __str__(self) -> str:
        if self.kernel is None or self.implementation is None:
            return "no"
        return f"{short_name(self.kernel)}: {self.implementation}"


def cell(scheme: str, device: str, m: int = NOMINAL_M, size: int = NOMINAL_SIZE) -> Cell:
    """One cell, for a layer of size x size and m rows of activations.

    Example:
      >>> print(cell("w8a8-int8", "cpu"))
      CPUInt8: xla
    """
    layer = SCHEMES[scheme]
    choice = choose_kernel(
        layer.config(size, size), kind=layer.kind, device=platform_for(device), quiet=True
    )
    found = choice.resolved(m)
    implementation = None if found is None else found.name
    return Cell(scheme, device, choice.kernel, implementation, choice.fallback is not None)


def matrix(
    schemes: Sequence[str] = (), devices: Sequence[str] = DEVICES_SHOWN
) -> list[tuple[str, list[Cell]]]:
    """Rows of (scheme, its cells in the order of the devices); no schemes means all."""
    return [(name, [cell(name, device) for device in devices]) for name in schemes or SCHEMES]


def markdown(schemes: Sequence[str] = (), devices: Sequence[str] = DEVICES_SHOWN) -> str:
    """The matrix as a Markdown table, kernels written for the device in bold.

    Example:
      >>> print(markdown(["w8a8-int8"], ["cpu"]))
      | scheme | CPU |
      |---|---|
      | `w8a8-int8` int8, per token x per channel | CPUInt8: xla |
    """
    titles = [_TITLES.get(device, device) for device in devices]
    lines = [f"| scheme | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, cells in matrix(schemes, devices):
        texts = [_bold(cell) for cell in cells]
        lines.append(f"| `{name}` {SCHEMES[name].what} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _bold(cell: Cell) -> str:
    if cell.implementation in (None, "xla", "reference"):
        return str(cell)
    return f"{short_name(cell.kernel)}: **{cell.implementation}**"


def differences(first: str, second: str, schemes: Sequence[str] = ()) -> list[tuple[Cell, Cell]]:
    """The schemes that two devices serve differently."""
    pairs = [(cell(name, first), cell(name, second)) for name in (schemes or SCHEMES)]
    return [
        (a, b) for a, b in pairs if (a.kernel, a.implementation) != (b.kernel, b.implementation)
    ]

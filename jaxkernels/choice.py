# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which implementation an op runs: the first, in order, that supports the problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import logging

from jaxkernels import checks
from jaxkernels.problem import Device, Implementation


@dataclasses.dataclass(frozen=True)
class Choice:
    """The implementation that was chosen, and why the ones before it were not.

    `str()` of it is a short paragraph. `rejected` holds (name, reasons) in order.
    """

    name: str
    device: Device
    problem: Any
    rejected: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name} on {self.device.name}"]
        lines += [f"  rejected {name}: {'; '.join(reasons)}" for name, reasons in self.rejected]
        return "\n".join(lines)


def choose(
    implementations: Sequence[Implementation],
    problem: Any,
    device: Device,
    requested: str | Sequence[str] | None = None,
) -> tuple[Implementation, Choice]:
    """The first implementation that supports the problem, with the reasons of the others.

    Args:
      implementations: in order of preference.
      problem: a problem of `jaxkernels.problem`.
      device: where it will run.
      requested: None for all of them; a name, or names in order, for those alone.

    Raises:
      ValueError: an unknown name.
      NotImplementedError: none of those requested supports it; the message has every reason.
    """
    candidates = _requested(implementations, requested)
    rejected = []
    for implementation in candidates:
        support = implementation.supports(problem, device)
        if support.ok:
            return implementation, Choice(implementation.name, device, problem, tuple(rejected))
        rejected.append((implementation.name, support.reasons))
    lines = [f"{name}: {'; '.join(reasons)}" for name, reasons in rejected]
    raise NotImplementedError(
        f"no requested implementation supports {problem} on {device.name}:\n  " + "\n  ".join(lines)
    )


def _requested(
    implementations: Sequence[Implementation], requested: str | Sequence[str] | None
) -> list[Implementation]:
    if requested is None:
        return list(implementations)
    names = [requested] if isinstance(requested, str) else list(requested)
    by_name = {implementation.name: implementation for implementation in implementations}
    if not names or any(name not in by_name for name in names):
        checks.bad_value("implementation", f"a name or names of {', '.join(by_name)}", requested)
    return [by_name[name] for name in names]


_warned: set[tuple] = set()


def warn_if_slow(choice: Choice) -> None:
    """Logs, once a layer (whatever its m), that a Hopper GPU will not run the Hopper kernel."""
    reasons = dict(choice.rejected).get("hopper")
    if choice.name == "hopper" or reasons is None or not choice.device.is_hopper:
        return
    layer = (choice.name, dataclasses.replace(choice.problem, m=0))
    if layer not in _warned:
        _warned.add(layer)
        logging.warning(
            "jaxkernels: %s runs on the slower %r path; the Hopper kernel refuses it: %s",
            choice.problem,
            choice.name,
            "; ".join(reasons),
        )

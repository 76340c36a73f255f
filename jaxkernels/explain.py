# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What an op would run for a problem on a device, and why: no arrays, no device needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxkernels import checks
from jaxkernels.choice import Choice, choose
from jaxkernels.mixed_mm import op as mixed_mm_op
from jaxkernels.mixed_mm import w4a8
from jaxkernels.problem import (
    DEVICES,
    Device,
    Implementation,
    MixedMMProblem,
    QuantizeProblem,
    ScaledMMProblem,
    W4A8Problem,
)
from jaxkernels.quantize import op as quantize_op
from jaxkernels.scaled_mm import op as scaled_mm_op


def implementations_of(problem: Any) -> tuple[Implementation, ...]:
    """The implementations, in order, of the op that a problem belongs to."""
    owners = {
        ScaledMMProblem: scaled_mm_op,
        MixedMMProblem: mixed_mm_op,
        QuantizeProblem: quantize_op,
        W4A8Problem: w4a8,
    }
    if type(problem) not in owners:
        checks.bad_type("problem", " or ".join(kind.__name__ for kind in owners), problem)
    return owners[type(problem)].IMPLEMENTATIONS


def explain_choice(
    problem: Any, device: Device | str, implementation: str | Sequence[str] | None = None
) -> Choice:
    """The implementation that an op takes for this problem on this device, with rejections.

    Args:
      problem: a `ScaledMMProblem`, `MixedMMProblem`, `W4A8Problem` or `QuantizeProblem`.
      device: a `Device`, or a key of `jaxkernels.problem.DEVICES` such as "h200".
      implementation: as the op's argument of this name.

    Returns:
      A `Choice`: name, device, problem, rejected ((name, reasons), ...); prints as a paragraph.

    Raises:
      ValueError, TypeError: an unknown device, implementation or kind of problem.
      NotImplementedError: nothing requested supports it; the message has every reason.

    Example:
      >>> problem = ScaledMMProblem(16, 4096, 4096, "int8", "int8", "bfloat16", "token", "channel")
      >>> explain_choice(problem, "cpu").name
      'xla'
    """
    if isinstance(device, str):
        if device not in DEVICES:
            checks.bad_value("device", f"a Device or one of {', '.join(DEVICES)}", device)
        device = DEVICES[device]
    return choose(implementations_of(problem), problem, device, implementation)[1]

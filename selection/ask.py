# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""How one class is asked whether it serves a layer, and how the answer is worded.

The families ask in three ways, in upstream's order and wording, spaces included: scaled-mm and
block classes (`scaled_reason`), mixed precision (`mp_reason`), MX and NV (`micro_reason`). Each
returns a function from a class to the reason against it, or None. After upstream's checks comes
one of ours: something here must be able to run the layer (`cannot_run`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from selection.kernels.base import LinearKernel, ScaledMMLinearKernel
from selection.platforms import Platform, get_platform
from selection.problems import inexpressible, problem_for, resolve


def _disabled() -> list[str]:
    # Exact names, unstripped, read at each question: "A, B" does not disable B.
    return os.environ.get("VLLM_DISABLED_KERNELS", "").split(",")


def platform_capability() -> int | None:
    capability = get_platform().get_device_capability()
    return None if capability is None else capability.to_int()


def is_supported_and_can_implement_kernel(
    kernel: type[ScaledMMLinearKernel],
    config: Any,
    compute_capability: int | None,
    *,
    disabled: list[str] | None = None,
) -> tuple[bool, str]:
    """Whether a scaled-mm class serves a layer, asked in upstream's order.

    Args:
      kernel: the class.
      config: the layer's config.
      compute_capability: major*10 + minor; None asks the platform.
      disabled: names of disabled classes; None reads them from the environment.

    Returns:
      (True, "") or (False, reason). The order is: disabled by VLLM_DISABLED_KERNELS (a disabled
      class is asked nothing), `is_supported`, `can_implement`.
    """
    if kernel.__name__ in (_disabled() if disabled is None else disabled):
        return False, f" {kernel.__name__} is disabled by environment variable"
    if compute_capability is None:
        compute_capability = platform_capability()
    supported, reason = kernel.is_supported(compute_capability)
    if not supported:
        return False, f"{kernel.__name__} {reason}."
    able, reason = kernel.can_implement(config)
    if not able:
        return False, f"{kernel.__name__} {reason}."
    return True, ""


def scaled_reason(config: Any, capability: int | None) -> Callable[[type], str | None]:
    if capability is None:
        capability = platform_capability()
    disabled = _disabled()

    def ask(kernel: type) -> str | None:
        ok, reason = is_supported_and_can_implement_kernel(
            kernel, config, capability, disabled=disabled
        )
        if not ok:
            return reason
        cannot = cannot_run(kernel, config)
        return None if cannot is None else f"{kernel.__name__} {cannot}."

    return ask


def mp_reason(config: Any, capability: int | None) -> Callable[[type], str | None]:
    disabled = _disabled()

    def ask(kernel: type) -> str | None:
        name = kernel.__name__
        if name in disabled:
            return f" {name} disabled by environment variable"
        if capability is not None and kernel.get_min_capability() > capability:
            return (
                f"{name} requires capability {kernel.get_min_capability()}, "
                f"current compute capability is {capability}"
            )
        able, reason = kernel.can_implement(config)
        if not able:
            return f" {name} cannot implement due to: {reason}"
        cannot = cannot_run(kernel, config)
        return None if cannot is None else f" {name} {cannot}"

    return ask


def micro_reason(config: Any) -> Callable[[type], str | None]:
    disabled = _disabled()

    def ask(kernel: type) -> str | None:
        name = kernel.__name__
        if name in disabled:
            return f" {name} disabled by environment variable"
        able, reason = kernel.is_supported()
        if able:
            able, reason = kernel.can_implement(config)
        if able:
            reason = cannot_run(kernel, config)
            able = reason is None
        return None if able else f"{name}: {reason}"

    return ask


def cannot_run(kernel: type, config: Any) -> str | None:
    """Why nothing here runs a layer under this class, or None. A class that brings its own
    `apply_weights` runs itself."""
    backing = getattr(kernel, "backing", None)
    if backing is None:
        if getattr(kernel, "apply_weights", None) is LinearKernel.apply_weights:
            return "cannot run here: no implementation backs it yet"
        return None
    platform = get_platform()
    if not isinstance(platform, Platform):
        return None
    problem = problem_for(kernel, config)
    if problem is None:
        return f"cannot run here: {inexpressible(kernel, config)}"
    found = resolve(backing, problem, platform.device)
    return None if found.name else f"cannot run here: {found.why_none}"

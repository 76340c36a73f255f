# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The predicates that kernel declarations are made of, and those about where a layer runs.

A check looks at the layer's config, at the platform, or at the environment, and either holds or
says in a few words why not. Those that several classes use are stated once: about platform,
capability and environment here, about the layer in `layer_checks.py`. A class lists them in the
order in which upstream asks, since the first that fails is the reason shown.

Two kinds of capability check exist, as upstream: `capability_at_least` judges the number that the
caller passed and is skipped when there is none; `device_at_least` and `device_is` ask the platform
itself, and fail where it has no capability.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from selection.platforms import CpuArchEnum, PlatformEnum, get_platform


class Facts(NamedTuple):
    """What a check may look at: the layer, the capability passed in, the platform chosen for."""

    config: Any
    capability: int | None
    platform: Any


def facts(config: Any = None, capability: int | None = None) -> Facts:
    """The facts as of now: the platform is asked for at each call."""
    return Facts(config, capability, get_platform())


@dataclass(frozen=True)
class Check:
    """A named predicate and its reason.

    Attributes:
      name: what a listing shows.
      holds: facts -> bool.
      reason: why not, as text or made from the facts.
      platforms: those that can pass, for checks on the platform.
    """

    name: str
    holds: Callable[[Facts], bool]
    reason: str | Callable[[Facts], str]
    platforms: tuple[PlatformEnum, ...] | None = None

    def why(self, facts: Facts) -> str:
        """The reason, of a check that does not hold."""
        return self.reason if isinstance(self.reason, str) else self.reason(facts)

    def why_not(self, facts: Facts) -> str | None:
        """None if it holds, else the reason."""
        return None if self.holds(facts) else self.why(facts)


def first_failure(checks: tuple[Check, ...], facts: Facts) -> str | None:
    """The reason of the first check that fails, or None."""
    for check in checks:
        if not check.holds(facts):
            return check.why(facts)
    return None


def env_flag(name: str, default: bool = False) -> bool:
    """An on/off environment variable, read at each call: 0, false, off, no and "" are off."""
    value = os.environ.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "false", "off", "no")


def never(reason: str) -> Check:
    """A check that always fails."""
    return Check("never", lambda f: False, reason)


_CUDA, _ROCM, _XPU, _CPU = (
    PlatformEnum.CUDA,
    PlatformEnum.ROCM,
    PlatformEnum.XPU,
    PlatformEnum.CPU,
)


def on_platform(name: str, reason: str, platforms: tuple[PlatformEnum, ...]) -> Check:
    """The platform is one of these."""
    predicates = tuple(
        {_CUDA: "is_cuda", _ROCM: "is_rocm", _XPU: "is_xpu", _CPU: "is_cpu"}[p] for p in platforms
    )

    def holds(f: Facts) -> bool:
        for predicate in predicates:
            if getattr(f.platform, predicate)():
                return True
        return False

    return Check(name, holds, reason, platforms)


on_cuda = on_platform("on_cuda", "requires CUDA", (_CUDA,))
on_rocm = on_platform("on_rocm", "requires ROCm", (_ROCM,))
on_xpu = on_platform("on_xpu", "requires an Intel XPU", (_XPU,))
on_cpu = on_platform("on_cpu", "requires a CPU", (_CPU,))
on_cuda_alike = on_platform("on_cuda_alike", "requires ROCm or CUDA", (_CUDA, _ROCM))
on_cuda_alike_or_xpu = on_platform(
    "on_cuda_alike_or_xpu", "requires ROCm, CUDA or an Intel XPU", (_CUDA, _ROCM, _XPU)
)
on_cuda_alike_or_cpu = on_platform(
    "on_cuda_alike_or_cpu", "requires ROCm, CUDA or a CPU", (_CUDA, _ROCM, _CPU)
)


def capability_at_least(minimum: int) -> Check:
    """The capability passed in is at least this; holds when none was passed."""
    return Check(
        f"capability_at_least({minimum})",
        lambda f: f.capability is None or f.capability >= minimum,
        lambda f: f"requires compute capability {minimum}, got {f.capability}",
    )


def _capability_text(f: Facts) -> str:
    capability = f.platform.get_device_capability()
    return "none" if capability is None else str(capability.to_int())


def device_at_least(minimum: int) -> Check:
    """The platform's own capability is at least this."""
    return Check(
        f"device_at_least({minimum})",
        lambda f: f.platform.has_device_capability(minimum),
        lambda f: f"requires a device of capability {minimum}, this one has {_capability_text(f)}",
    )


def device_is(exactly: int) -> Check:
    """The platform's own capability is this one."""
    return Check(
        f"device_is({exactly})",
        lambda f: f.platform.is_device_capability(exactly),
        lambda f: (
            f"requires a device of capability exactly {exactly}, this one has {_capability_text(f)}"
        ),
    )


def device_family(family: int) -> Check:
    """The platform's own capability has this major version: 100 stands for 10.x."""
    return Check(
        f"device_family({family})",
        lambda f: f.platform.is_device_capability_family(family),
        lambda f: (
            f"requires a device of capability {family // 10}.x, this one has {_capability_text(f)}"
        ),
    )


def device_in(minimum: int, below: int) -> Check:
    """minimum <= the platform's own capability < below."""

    def holds(f: Facts) -> bool:
        capability = f.platform.get_device_capability()
        return capability is not None and minimum <= capability.to_int() < below

    return Check(
        f"device_in({minimum}, {below})",
        holds,
        lambda f: (
            f"unsupported capability: needs {minimum} up to below {below}, "
            f"this device has {_capability_text(f)}"
        ),
    )


def gfx_in(*prefixes: str, what: str) -> Check:
    """AMD's name of the architecture starts with one of these."""
    return Check(
        f"gfx_in({', '.join(prefixes)})",
        lambda f: f.platform.gfx.startswith(prefixes),
        lambda f: f"requires {what}, this device is {f.platform.gfx or 'not a known AMD GPU'}",
    )


mi300_series = gfx_in("gfx94", "gfx95", what="an MI300 series GPU")


def package(name: str) -> Check:
    """What an optional package provides is here (see `selection.platforms`)."""
    return Check(
        f"package({name})", lambda f: f.platform.has_package(name), f"needs the package {name}"
    )


def cpu_feature(name: str, what: str) -> Check:
    """The host processor has a trait."""
    return Check(f"cpu_feature({name})", lambda f: f.platform.has_feature(name), f"requires {what}")


def env_on(name: str, default: bool) -> Check:
    """An environment variable is on."""
    return Check(f"env_on({name})", lambda f: env_flag(name, default), f"{name} is off")


def env_off(name: str, default: bool = False) -> Check:
    """An environment variable is off."""
    return Check(f"env_off({name})", lambda f: not env_flag(name, default), f"{name} is on")


def on_arm(check: Check) -> Check:
    """A check that only an ARM host has to pass."""
    return Check(
        f"on_arm({check.name})",
        lambda f: f.platform.get_cpu_architecture() is not CpuArchEnum.ARM or check.holds(f),
        check.reason,
    )

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What hardware a layer runs on. The only place in this package that asks JAX for a device.

`selection.current_platform` is the live platform: a module global of the package, read at every
call, so that a test can replace it. It looks at the hardware the first time somebody asks it
something, once. `platform_for("h200")` is the platform of a known device that need not be here,
and `using("h200")` makes a block of code choose for it.

Upstream asks whether optional packages (conch, aiter, flashinfer, ...) can be imported. A kernel of
ours takes the place of each, so a platform has all of them unless it is told which it has:
`platform_for("h200", packages=())` answers as upstream does where none is installed.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import functools
import platform as host
import sys
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import DEVICES, Device, find_device


class PlatformEnum(enum.Enum):
    """The platforms that priority lists are kept for."""

    CUDA = enum.auto()
    ROCM = enum.auto()
    TPU = enum.auto()
    XPU = enum.auto()
    CPU = enum.auto()
    OOT = enum.auto()
    UNSPECIFIED = enum.auto()


class CpuArchEnum(enum.Enum):
    """Families of host processors."""

    X86 = enum.auto()
    ARM = enum.auto()
    POWERPC = enum.auto()
    S390X = enum.auto()
    RISCV = enum.auto()
    OTHER = enum.auto()
    UNKNOWN = enum.auto()


class DeviceCapability(NamedTuple):
    """Compute capability of a GPU.

    Example:
      >>> DeviceCapability(9, 0).to_int(), DeviceCapability(8, 9).as_version_str()
      (90, '8.9')
    """

    major: int
    minor: int

    def as_version_str(self) -> str:
        """ "9.0"."""
        return f"{self.major}.{self.minor}"

    def to_int(self) -> int:
        """major * 10 + minor."""
        return self.major * 10 + self.minor


_ENUM_OF = {
    "cuda": PlatformEnum.CUDA,
    "rocm": PlatformEnum.ROCM,
    "tpu": PlatformEnum.TPU,
    "xpu": PlatformEnum.XPU,
    "cpu": PlatformEnum.CPU,
}

_ARCHITECTURES = (
    (("x86_64", "amd64", "i386", "i686"), CpuArchEnum.X86),
    (("arm64", "aarch64", "armv7l"), CpuArchEnum.ARM),
    (("ppc64le", "ppc64"), CpuArchEnum.POWERPC),
    (("s390x",), CpuArchEnum.S390X),
    (("riscv64",), CpuArchEnum.RISCV),
)

# The compiler's name of AMD parts: upstream's gates ask for it, Device does not carry it.
_GFX = {"mi300x": "gfx942", "mi250": "gfx90a"}

# Largest value used of an fp8 type; fnuz could hold 240, upstream stops at 224 on purpose.
_FP8_MAX = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 224.0}


class Platform:
    """One platform: what upstream's `current_platform` answers, and the device's numbers.

    Args:
      device: a device; None means the one that JAX has, looked up at the first question.
      kind: overrides the platform that the device implies (PlatformEnum.OOT).
      gfx: AMD's name of the architecture, "gfx942".
      features: host CPU traits, of "amx", "arm", "zen".
      packages: names of optional packages that are here; None: all (see the module docstring).
    """

    def __init__(
        self,
        device: Device | None = None,
        *,
        kind: PlatformEnum | None = None,
        gfx: str = "",
        features: Collection[str] = (),
        packages: Collection[str] | None = None,
    ) -> None:
        self._device = device
        self._kind = kind
        self._gfx = gfx
        self._features = frozenset(features)
        self.packages = None if packages is None else frozenset(packages)

    def _look(self) -> Device:
        if self._device is None:
            self._device, self._gfx, self._features = _detect()
        return self._device

    def __repr__(self) -> str:
        known = "not looked at yet" if self._device is None else self._device.name
        return f"Platform({known})"

    @functools.cached_property
    def _enum(self) -> PlatformEnum:
        return self._kind or _ENUM_OF.get(self._look().platform, PlatformEnum.OOT)

    @functools.cached_property
    def _capability(self) -> DeviceCapability | None:
        capability = self._look().capability
        return None if capability is None else DeviceCapability(*capability)

    @property
    def device(self) -> Device:
        """The device's facts: SMs, bandwidth, peaks."""
        return self._look()

    @property
    def gfx(self) -> str:
        """AMD's name of the architecture ("gfx942"), or ""."""
        self._look()
        return self._gfx

    def is_cuda(self) -> bool:
        """NVIDIA GPU."""
        return self._enum is PlatformEnum.CUDA

    def is_rocm(self) -> bool:
        """AMD GPU."""
        return self._enum is PlatformEnum.ROCM

    def is_tpu(self) -> bool:
        """TPU."""
        return self._enum is PlatformEnum.TPU

    def is_xpu(self) -> bool:
        """Intel GPU."""
        return self._enum is PlatformEnum.XPU

    def is_cpu(self) -> bool:
        """Host processor."""
        return self._enum is PlatformEnum.CPU

    def is_out_of_tree(self) -> bool:
        """A platform that a plug-in brings."""
        return self._enum is PlatformEnum.OOT

    def is_cuda_alike(self) -> bool:
        """NVIDIA or AMD GPU."""
        return self._enum in (PlatformEnum.CUDA, PlatformEnum.ROCM)

    def is_zen_cpu(self) -> bool:
        """AMD Zen host processor, with kernels made for it."""
        return self.is_cpu() and self.has_feature("zen")

    def get_device_capability(self, device_id: int = 0) -> DeviceCapability | None:
        """(major, minor), or None where there is no such thing (CPU, XPU, TPU)."""
        return self._capability

    def has_device_capability(self, capability: int | tuple[int, int], device_id: int = 0) -> bool:
        """Whether the capability is at least this; False where it is unknown."""
        mine = self.get_device_capability(device_id)
        if mine is None:
            return False
        return mine >= capability if isinstance(capability, tuple) else mine.to_int() >= capability

    def is_device_capability(self, capability: int | tuple[int, int], device_id: int = 0) -> bool:
        """Whether the capability is exactly this."""
        mine = self.get_device_capability(device_id)
        if mine is None:
            return False
        return mine == capability if isinstance(capability, tuple) else mine.to_int() == capability

    def is_device_capability_family(self, capability: int, device_id: int = 0) -> bool:
        """Whether the major version is that of `capability`: 100 stands for any 10.x."""
        mine = self.get_device_capability(device_id)
        return mine is not None and mine.major == capability // 10

    def get_cpu_architecture(self) -> CpuArchEnum:
        """The host processor's family; a named CPU is x86 unless it has the feature "arm"."""
        if self.is_cpu():
            return CpuArchEnum.ARM if self.has_feature("arm") else CpuArchEnum.X86
        return _host_architecture()

    def fp8_dtype(self) -> str:
        """The float8 type of this platform: e4m3fn, on gfx94x e4m3fnuz."""
        fnuz = self.is_rocm() and self.gfx.startswith("gfx94")
        return "float8_e4m3fnuz" if fnuz else "float8_e4m3fn"

    def fp8_max(self) -> float:
        """The largest magnitude that quantization uses: 448, or 224 for fnuz."""
        return _FP8_MAX[self.fp8_dtype()]

    def has_feature(self, name: str) -> bool:
        """Whether the host processor has a trait: "amx", "arm", "zen"."""
        self._look()
        return name in self._features

    def has_package(self, name: str) -> bool:
        """Whether what an optional package provides is here."""
        return self.packages is None or name in self.packages


def _host_architecture() -> CpuArchEnum:
    machine = host.machine().lower()
    if not machine:
        return CpuArchEnum.UNKNOWN
    for names, architecture in _ARCHITECTURES:
        if machine in names:
            return architecture
    return CpuArchEnum.OTHER


def _host_features() -> frozenset[str]:
    features = set()
    if _host_architecture() is CpuArchEnum.ARM:
        features.add("arm")
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        if "amx_tile" in info.read():
            features.add("amx")
    return frozenset(features)


def _detect() -> tuple[Device, str, frozenset[str]]:
    """The device that JAX would run on, by name from the table or with careful guesses."""
    import jax

    live = jax.devices()[0]
    version = str(getattr(live.client, "platform_version", "")).lower()
    kind, gfx, capability = live.platform, "", None
    text = str(getattr(live, "compute_capability", "") or "")
    if kind == "gpu":
        kind = "rocm" if "rocm" in version or text.startswith("gfx") else "cuda"
    if text.startswith("gfx"):
        gfx = text.split(":")[0]
        capability = (int(gfx[3:-2]), int(gfx[-2], 16))
    elif text:
        major, _, minor = text.partition(".")
        capability = (int(major), int(minor or 0))
    known = find_device(live.device_kind)
    if known is not None and known.platform == kind and known.capability == capability:
        device = known
    elif kind == "cuda":
        device = trace_device()  # a part that the table lacks: the least of its capability
    else:
        base = known or DEVICES["cpu"]
        device = dataclasses.replace(
            base, name=live.device_kind, platform=kind, capability=capability
        )
    return device, gfx, _host_features() if kind == "cpu" else frozenset()


def platform_for(name: str | Device | Platform, **traits: Any) -> Platform:
    """The platform of a known device, present or not.

    Args:
      name: a key of `jaxkernels.problem.DEVICES` ("h200", "mi300x", "tpu-v5e", "cpu", ...), "oot"
        or "unspecified", or a `Device`, or a `Platform` (returned as it is).
      **traits: `gfx`, `features`, `packages`, `kind` of `Platform`.

    Raises:
      ValueError: the name is not known.

    Example:
      >>> platform_for("h200").get_device_capability().to_int()
      90
      >>> platform_for("mi300x").fp8_dtype()
      'float8_e4m3fnuz'
    """
    if isinstance(name, Platform):
        return name
    if isinstance(name, Device):
        return Platform(name, **traits)
    if name in ("oot", "unspecified"):
        traits.setdefault("kind", PlatformEnum[name.upper()])
        return Platform(DEVICES["cpu"], **traits)
    if name not in DEVICES:
        names = ", ".join([*sorted(DEVICES), "oot", "unspecified"])
        raise ValueError(f"device: expected one of {names}; got {name!r}")
    traits.setdefault("gfx", _GFX.get(name, ""))
    return Platform(DEVICES[name], **traits)


current_platform = Platform()

_CHOSEN: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("platform", default=None)


def get_platform() -> Any:
    """The platform that a question is asked for: that of `using`, else the package's global."""
    chosen = _CHOSEN.get()
    return chosen if chosen is not None else sys.modules["selection"].current_platform


@contextlib.contextmanager
def using(device: str | Device | Platform | None) -> Iterator[Any]:
    """Chooses for another device within the block; None changes nothing.

    Example:
      >>> with using("a100"):
      ...     get_platform().get_device_capability()
      DeviceCapability(major=8, minor=0)
    """
    if device is None:
        yield get_platform()
        return
    token = _CHOSEN.set(platform_for(device))
    try:
        yield _CHOSEN.get()
    finally:
        _CHOSEN.reset(token)

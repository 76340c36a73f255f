# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The answer to "which kernel serves this layer?", and its explanation as a paragraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxkernels.problem import Device
from selection.dtypes import dtype_name
from selection.lists import OURS
from selection.problems import (
    NOMINAL_M,
    Problem,
    Resolved,
    estimate_us,
    implementations_of,
    problem_for,
    resolve,
)

_LAYERS = {
    "mp": "mixed-precision",
    "int8": "int8",
    "fp8": "fp8",
    "fp8_block": "block-scaled fp8",
    "wfp8a16": "weight-only fp8",
    "mxfp8": "MXFP8",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
}


def layer_name(kind: str) -> str:
    """What a list's layers are called in a message: "mixed-precision", "int8", "MXFP8", ..."""
    return _LAYERS.get(kind, kind)


@dataclass(frozen=True)
class Rejection:
    """A class that came earlier in the list, and the full text of why it does not serve."""

    kernel: type
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a class runs for one problem.

    Attributes:
      implementation: name, or None where nothing here runs the problem.
      problem: with the sizes filled in.
      config: of the implementation for this problem (tiles, stages), or None where it has none.
      estimate_us: by the implementation's own model, or None where it has none.
      floor_us: no kernel is faster: bytes at the device's bandwidth, or operations at its peak.
      bound: "memory" or "tensor cores": which of the two the floor is.
      rejected: (implementation, reason) of those tried before.
      slow: XLA runs it although the class has a kernel made for this kind of device.
    """

    implementation: str | None
    problem: Problem | None
    config: Any
    estimate_us: float | None
    floor_us: float | None
    bound: str | None
    rejected: tuple[tuple[str, str], ...]
    slow: bool

    def __str__(self) -> str:
        if self.implementation is None:
            return "nothing here runs it"
        if self.config is None:
            config = ""
        else:
            config = f", {self.config}"
        return f"{self.implementation}{config}, {self.time}"

    @property
    def time(self) -> str:
        """The estimate and what bounds it, or the floor where there is no estimate."""
        if self.floor_us is None:
            return "no estimate: the device's peak is not known"
        floor = f"at least {_us(self.floor_us)} ({self.bound} bound)"
        if self.estimate_us is None:
            return f"no estimate; {floor}"
        return f"about {_us(self.estimate_us)}; {floor}"


def _us(value: float) -> str:
    return f"{value:.0f} us" if value >= 100 else f"{value:.3g} us"


def _floor(problem: Problem, device: Device) -> tuple[float | None, str | None]:
    peak = device.peak_tflops.get(problem.x_dtype)
    memory = problem.min_bytes / (device.read_gbps * 1e3)
    if not peak:
        return (None, None) if device.platform == "cpu" else (memory, "memory")
    compute = problem.flops / (peak * 1e6)
    return (memory, "memory") if memory >= compute else (compute, "tensor-core")


@dataclass(frozen=True)
class Choice:
    """Which class serves a layer on a device, and why those before it do not.

    Attributes:
      kind: which priority list: "mp", "int8", "fp8", "fp8_block", "wfp8a16", "mxfp8", ...
      config: the layer's config.
      platform: what was chosen for.
      kernel: the class, or None where nothing serves the layer.
      rejected: those before it, in order.
      notes: what else bore on the choice (a forced kernel that was refused, a filter).
    """

    kind: str
    config: Any
    platform: Any
    kernel: type | None
    rejected: tuple[Rejection, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> Device | None:
        """The device's facts; None for a platform that has none (a mock in a test)."""
        device = getattr(self.platform, "device", None)
        return device if isinstance(device, Device) else None

    def __str__(self) -> str:
        return self.explain()

    def resolved(
        self, m: int = NOMINAL_M, n: int | None = None, k: int | None = None
    ) -> Resolved | None:
        """Which implementation runs m rows; None where jaxkernels has no word for the layer."""
        if self.kernel is None or self.device is None:
            return None
        if getattr(self.kernel, "backing", None) is None:
            return None
        problem = problem_for(self.kernel, self.config, m, n, k)
        return None if problem is None else resolve(self.kernel.backing, problem, self.device)

    @property
    def fallback(self) -> str | None:
        """Why this is the slow path, in one sentence, or None if it is not."""
        device = self.device
        if self.kernel is None or device is None or device.platform != "cuda":
            return None
        if self.kernel in OURS and self.rejected:
            return "every kernel made for this platform refused it, so XLA runs it"
        found = self.resolved()
        if found is not None and found.fallback:
            return f"XLA runs it, because {found.why_none}"
        return None

    def plan(self, m: int, n: int | None = None, k: int | None = None) -> Plan:
        """What the class runs for m rows of activations.

        Args:
          m: rows.
          n, k: the layer's sizes, where its config does not say them; 4096 if nobody does.

        Returns:
          The implementation, its config, an estimated time and what bounds it. Asks no hardware.
        """
        found = self.resolved(m, n, k)
        if found is None or found.name is None:
            rejected = () if found is None else found.rejected
            return Plan(None, None, None, None, None, None, rejected, False)
        implementation = dict(implementations_of(self.kernel.backing))[found.name]
        config = implementation.default_config(found.problem, self.device)
        estimate = estimate_us(found.name, found.problem, config, self.device)
        floor, bound = _floor(found.problem, self.device)
        return Plan(
            found.name,
            found.problem,
            config,
            estimate,
            floor,
            bound,
            found.rejected,
            found.fallback,
        )

    def _activation_notes(self) -> list[str]:
        """What happens to activations, where it is not what the config or upstream's class says."""
        if self.kernel is None:
            return []
        if self.kind == "mp":
            act = dtype_name(self.config.act_type)
            if act in ("int8", "float8_e4m3fn"):
                as_such = getattr(self.kernel.backing, "op", None) == "w4a8_mm"
                how = "and multiplied as such" if as_such else "then multiplied in 16 bits"
                return [f"  activations are rounded to {act}, {how}"]
        quantizes = getattr(self.kernel, "quantizes_activations", True)
        if self.kind in ("fp8", "fp8_block") and not quantizes:
            return ["  weight-only: activations stay 16-bit"]
        upstream = getattr(self.kernel, "upstream_activations", None)
        if upstream:
            return [
                f"  upstream's class quantizes activations to {upstream}; here they stay 16-bit"
            ]
        return []

    def explain(self, m: int | None = None, n: int | None = None, k: int | None = None) -> str:
        """The choice as a paragraph: the class, why not those before it, and what it would run.

        Args:
          m: rows to plan for; None shows one decode and one prefill size.
          n, k: as in `plan`.

        Example:
          >>> import selection
          >>> config = selection.scheme("w4a16-g128").config(4096, 4096)
          >>> print(selection.explain(config, device="cpu", m=8))
          CPUWNA16LinearKernel serves w4a16 uint4b8, group 128, bfloat16 on cpu.
            not Dynamic4bitLinearKernel: ...
            not ZentorchWNA16LinearKernel: ...
            m=8 n=4096 k=4096: xla, no estimate: the device's peak is not known
        """
        where = getattr(getattr(self.platform, "device", None), "name", "this platform")
        head = "Nothing" if self.kernel is None else self.kernel.__name__
        lines = [f"{head} serves {describe(self.kind, self.config)} on {where}."]
        lines += [f"  note: {note}" for note in self.notes]
        for rejection in self.rejected:
            name = rejection.kernel.__name__
            lines.append(f"  not {name}: {bare_reason(rejection)}")
        fallback = self.fallback
        if fallback is not None:
            lines.append(f"  SLOW PATH: {fallback}")
        lines += self._activation_notes()
        if self.kernel is not None and self.device is not None:
            for rows in (NOMINAL_M, 4096) if m is None else (m,):
                plan = self.plan(rows, n, k)
                shape = plan.problem
                sizes = f"m={rows}" if shape is None else f"m={rows} n={shape.n} k={shape.k}"
                lines.append(f"  {sizes}: {plan}")
                if plan.slow and fallback is None:
                    lines.append(
                        "    SLOW PATH at this size: "
                        + "; ".join(f"{name}: {reason}" for name, reason in plan.rejected)
                    )
        return "\n".join(lines)


def as_json(choice: Choice, m: Sequence[int] = (), n: int | None = None, k: int | None = None):
    """A choice as plain data: what `python -m selection explain --json` prints."""
    device = choice.device
    plans = []
    for rows in m:
        plan = choice.plan(rows, n, k)
        plans.append(
            {
                "m": rows,
                "n": None if plan.problem is None else plan.problem.n,
                "k": None if plan.problem is None else plan.problem.k,
                "implementation": plan.implementation,
                "config": None if plan.config is None else str(plan.config),
                "estimate_us": plan.estimate_us,
                "floor_us": plan.floor_us,
                "bound": plan.bound,
                "rejected": [list(pair) for pair in plan.rejected],
                "slow": plan.slow,
            }
        )
    return {
        "layer": describe(choice.kind, choice.config),
        "list": choice.kind,
        "device": None if device is None else device.name,
        "kernel": None if choice.kernel is None else choice.kernel.__name__,
        "rejected": [[r.kernel.__name__, bare_reason(r)] for r in choice.rejected],
        "notes": list(choice.notes),
        "slow_path": choice.fallback,
        "plans": plans,
    }


def short_name(kernel: type | None) -> str:
    """A class's name without what all of its family share: "Machete", "CutlassInt8".

    Example:
      >>> from selection import MacheteLinearKernel
      >>> short_name(MacheteLinearKernel)
      'Machete'
    """
    name = "none" if kernel is None else kernel.__name__
    for suffix in ("LinearKernel", "BlockScaledKernel", "Kernel"):
        if name.endswith(suffix):
            name = name.removesuffix(suffix)
            break
    return name.removesuffix("ScaledMM")


def bare_reason(rejection: Rejection) -> str:
    """A rejection's reason without the class's name and what joins the two."""
    text = rejection.reason.strip().removeprefix(rejection.kernel.__name__).lstrip(": ")
    return text.removeprefix("cannot implement due to: ")


def describe(kind: str, config: Any) -> str:
    """A layer in a few words: "w4a16 uint4b8, group 128, bfloat16"."""
    if kind == "mp":
        act = dtype_name(config.act_type)
        bits = {"float8_e4m3fn": 8, "int8": 8}.get(act, 32 if act == "float32" else 16)
        extras = [
            f"w{config.weight_type.size_bits}a{bits} {config.weight_type}",
            "whole-K scales" if config.group_size == -1 else f"group {config.group_size}",
            act,
        ]
        extras += ["zero points"] * bool(config.zero_points) + ["g_idx"] * bool(config.has_g_idx)
        return ", ".join(extras)
    if kind == "int8":
        words = ["static" if config.is_static_input_scheme else "dynamic"]
        words.append("symmetric" if config.input_symmetric else "asymmetric")
        words.append("per channel" if config.is_channelwise else "per tensor")
        return "w8a8 int8, " + ", ".join(words)
    if kind not in ("fp8", "fp8_block", "wfp8a16"):
        return _LAYERS.get(kind, kind)
    weight = config.weight_quant_key.scale
    activation = config.activation_quant_key
    left = "" if activation is None else f", activations {activation.scale}"
    return f"{layer_name(kind)}, weights {weight}{left}"

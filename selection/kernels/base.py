# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Kernel classes are declarations; this file says what a declaration holds and how it comes to run.

A declaration is a class whose body is data::

    class MacheteLinearKernel(MPLinearKernel):
        min_capability = 90
        checks = (on_cuda, device_is(90), act_order_unsharded, weight_type_in(...), ...)
        backing = Backing("mixed_mm", ("hopper", "xla"))

What each attribute means:

``family``      "mp", "int8", "fp8", "fp8_block", "mxfp8", "mxfp4" or "nvfp4", from the base class.
``gate``        ordered checks on platform, capability and environment -> ``is_supported``
                (scaled-mm, block and MX/NV families).
``min_capability``  major*10 + minor -> ``get_min_capability`` (mixed-precision family).
``checks``      ordered checks on the layer's config -> ``can_implement``; the first that fails
                gives the reason.
``backing``     which op of jaxkernels runs it, and which of that op's implementations are tried,
                best first. None: declared, and nothing here runs it yet.
``quantizes_activations``  False for weight-only classes: x stays 16-bit and the op is ``mixed_mm``.
``weight_layout``  what the weight parameter looks like after loading, as upstream leaves it:
                "KN" (a transposed view of an [N, K] buffer) or "NK".

How a declaration runs torch layers
-----------------------------------
The class that ``choose_*`` returns is the class that runs: there is no second class of the same
name. A kernel instance hands ``process_weights_after_loading`` and ``apply_weights`` to the
*runtime* of its family, an object installed by whoever can run torch layers::

    class MixedRuntime:                               # in torch_bridge
        def process_weights_after_loading(self, kernel, layer): ...
        def apply_weights(self, kernel, layer, x, bias=None): ...

    selection.kernels.base.set_runtime("mp", MixedRuntime())

``kernel`` is the instance, so the runtime reads

* ``kernel.config`` (dtypes in it are whatever the caller gave: use ``selection.dtype_name``),
* ``kernel.backing.op`` ("scaled_mm", "mixed_mm" or "w4a8_mm") and
  ``kernel.backing.implementations`` (pass to the op as ``implementation=``, after
  ``kernel.available_implementations()`` dropped the names that do not exist in this version),
* ``kernel.family``, ``kernel.quantizes_activations``, ``kernel.weight_layout``,
* the parameter names: ``kernel.layer_param_names`` (int8, fp8), ``kernel.w_q_name``,
  ``w_s_name``, ``w_zp_name``, ``w_gidx_name`` (mp), or ``kernel._get_layer_params(layer)`` /
  ``kernel._get_weight_params(layer)`` for the values.

MarlinFP8 and HummingFP8 belong to "fp8", but the block-scaled list has them too: such an instance
holds a config whose weight key is in blocks.

It may keep per-layer state as attributes of the kernel instance or of the layer. A class that
overrides ``apply_weights`` itself (an out-of-tree kernel) needs no runtime and no backing. Without
a runtime an instance still answers every question about itself, and running raises a RuntimeError
that says what to import. ``import torch_bridge`` installs all of the runtimes.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from selection.checks import Check, facts, first_failure

FAMILIES = ("mp", "int8", "fp8", "fp8_block", "mxfp8", "mxfp4", "nvfp4")


@dataclass(frozen=True)
class Backing:
    """The jaxkernels op that runs a class, and its implementations to try, best first.

    ``implementations`` may name one that this version does not have yet ("ampere"): it documents
    where the class belongs, and what runs instead is reported as a fallback.
    """

    op: str
    implementations: tuple[str, ...]


class Runtime(Protocol):
    """What runs the torch layers of one family; see this module's docstring."""

    def process_weights_after_loading(self, kernel: LinearKernel, layer: Any) -> None: ...

    def apply_weights(self, kernel: LinearKernel, layer: Any, x: Any, bias: Any = None) -> Any: ...


_RUNTIMES: dict[str, Runtime] = {}


def set_runtime(family: str, runtime: Runtime | None) -> Runtime | None:
    """Installs (or with None removes) what runs the kernels of a family; returns the one before."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {family!r}")
    before = _RUNTIMES.pop(family, None)
    if runtime is not None:
        _RUNTIMES[family] = runtime
    return before


def get_runtime(family: str) -> Runtime | None:
    """What runs the kernels of a family here, or None."""
    return _RUNTIMES.get(family)


class LinearKernel(ABC):
    """What every family shares: a declaration, and the hand-over to the family's runtime."""

    family: ClassVar[str] = ""
    checks: ClassVar[tuple[Check, ...]] = ()
    backing: ClassVar[Backing | None] = None
    quantizes_activations: ClassVar[bool] = True
    weight_layout: ClassVar[str] = "NK"

    config: Any

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        """Whether this class serves a layer with config ``c``; if not, the first reason why."""
        reason = first_failure(cls.checks, facts(c))
        return reason is None, reason

    @classmethod
    def available_implementations(cls) -> tuple[str, ...]:
        """Those of ``backing.implementations`` that this version of jaxkernels has, in order."""
        from selection.problems import implementations_of

        return tuple(name for name, _ in implementations_of(cls.backing))

    def _refuse_unless(self, ok: bool, reason: str | None) -> None:
        if not ok:
            raise ValueError(f"{type(self).__name__} refuses this layer: {reason} ({self.config})")

    def _refuse_base_class(self) -> None:
        own = type(self).apply_weights is not LinearKernel.apply_weights
        if type(self).family == "" or (type(self).backing is None and not own):
            raise TypeError(
                f"{type(self).__name__} cannot be built: it names no backing implementation, and "
                "has no apply_weights of its own"
            )

    def _runtime(self) -> Runtime:
        runtime = _RUNTIMES.get(self.family)
        if runtime is None:
            raise RuntimeError(
                f"{type(self).__name__} has nothing to run torch layers with: import torch_bridge "
                "first (JAX code calls jaxkernels.scaled_mm or jaxkernels.mixed_mm directly)"
            )
        return runtime

    def process_weights_after_loading(self, layer: Any) -> None:
        """Turns the layer's checkpoint parameters into what the kernel reads; call it once."""
        self._runtime().process_weights_after_loading(self, layer)

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
        """The layer's output: x of any rank with last dim K -> x.shape[:-1] + (N,)."""
        return self._runtime().apply_weights(self, layer, x, bias)


class MPLinearKernel(LinearKernel):
    """Weights of 4 or 8 bits, 16-bit activations (mixed precision)."""

    family = "mp"
    quantizes_activations = False
    min_capability: ClassVar[int] = -1

    def __init__(
        self,
        c: Any,
        w_q_param_name: str,
        w_s_param_name: str,
        w_zp_param_name: str | None = None,
        w_gidx_param_name: str | None = None,
    ) -> None:
        self.config = c
        self._refuse_base_class()
        self._refuse_unless(*self.can_implement(c))
        if c.zero_points and w_zp_param_name is None:
            raise ValueError("w_zp_param_name: the config has zero points, so name the parameter")
        if c.has_g_idx and w_gidx_param_name is None:
            raise ValueError("w_gidx_param_name: the config has a g_idx, so name the parameter")
        self.w_q_name = w_q_param_name
        self.w_s_name = w_s_param_name
        self.w_zp_name = w_zp_param_name
        self.w_gidx_name = w_gidx_param_name

    @classmethod
    def get_min_capability(cls) -> int:
        """The least compute capability (major*10 + minor); -1 where capability means nothing."""
        return cls.min_capability

    def _get_weight_params(self, layer: Any) -> tuple[Any, Any, Any, Any]:
        """(w_q, w_s, w_zp or None, w_gidx or None) of a layer."""
        return (
            getattr(layer, self.w_q_name),
            getattr(layer, self.w_s_name),
            getattr(layer, self.w_zp_name or "", None),
            getattr(layer, self.w_gidx_name or "", None),
        )


class Int8Params(NamedTuple):
    """The five parameters of an int8 layer, in the order of their names."""

    weight: Any
    weight_scale: Any
    input_scale: Any
    input_zero_point: Any
    azp_adj: Any


class FP8Params(NamedTuple):
    """The four parameters of an fp8 layer, in the order of their names."""

    weight: Any
    weight_scale: Any
    input_scale: Any
    input_scale_ub: Any


class _Gated(LinearKernel):
    gate: ClassVar[tuple[Check, ...]] = ()

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Whether this class works on the current platform; None skips the numeric checks."""
        reason = first_failure(cls.gate, facts(capability=compute_capability))
        return reason is None, reason


class ScaledMMLinearKernel[ConfigT](_Gated):
    """8-bit weights and activations, both with scales."""

    weight_layout = "KN"
    params_type: ClassVar[type] = FP8Params

    def __init__(self, c: ConfigT, layer_param_names: Sequence[str]) -> None:
        self.config = c
        self._refuse_base_class()
        self._refuse_unless(*self.can_implement(c))
        self._refuse_unless(*self.is_supported())
        self.layer_param_names = list(layer_param_names)

    def _get_layer_params(self, layer: Any) -> Any:
        """The layer's parameters in the order of their names: weight and scale must exist."""
        weight, scale, *rest = self.layer_param_names
        optional = (getattr(layer, name, None) for name in rest)
        return self.params_type(getattr(layer, weight), getattr(layer, scale), *optional)


class Int8ScaledMMLinearKernel(ScaledMMLinearKernel):
    """int8 weights and int8 activations."""

    family = "int8"
    params_type = Int8Params


class FP8ScaledMMLinearKernel(ScaledMMLinearKernel):
    """float8 weights, per tensor or per channel; activations float8 or left as they are."""

    family = "fp8"

    @classmethod
    def get_output_padding(cls) -> int | None:
        """Rows that activations are padded to: None, since no kernel here needs padded rows."""
        return None


class MMLinearKernel(_Gated):
    """Block-scaled and micro-scaled families: built from the config alone."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._refuse_base_class()
        self._refuse_unless(*self.is_supported())
        self._refuse_unless(*self.can_implement(config))

    @classmethod
    def get_output_padding(cls) -> int | None:
        """Rows that activations are padded to: None, since no kernel here needs padded rows."""
        return None


class Fp8BlockScaledMMLinearKernel(MMLinearKernel):
    """float8 weights with a scale per block of 128x128, activations with one per 1x128."""

    family = "fp8_block"

    def _get_layer_params(self, layer: Any) -> FP8Params:
        """weight_scale_inv wins over weight_scale: loaders use the one or the other."""
        scale = getattr(layer, "weight_scale_inv", None)
        if scale is None:
            scale = layer.weight_scale
        return FP8Params(
            layer.weight,
            scale,
            getattr(layer, "input_scale", None),
            getattr(layer, "input_scale_ub", None),
        )

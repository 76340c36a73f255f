# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which kernel class serves a layer: upstream's choosers, with every rejection kept.

One loop serves all families: walk the platform's list, take the first class without a reason
against it. What differs is how a family asks (`_scaled_reason`, `_mp_reason`, `_micro_reason`) and
how it words a reason, which is upstream's wording, spaces included. After upstream's checks comes
one of ours: something here must be able to run the layer.

Every chooser takes, beyond upstream's parameters and by keyword only,

    backend   a `--linear-backend` value; None reads JAXKERNELS_LINEAR_BACKEND; "auto" is no filter
    strict    raise ValueError instead of falling back to a slow path or ignoring force_kernel
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from selection.checks import env_flag
from selection.choice import Choice, Rejection, describe, layer_name
from selection.configs import (
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
    QuantKey,
)
from selection.kernels.base import (
    FP8ScaledMMLinearKernel,
    LinearKernel,
    MMLinearKernel,
    MPLinearKernel,
    ScaledMMLinearKernel,
)
from selection.kernels.micro_scaled import (
    CutlassNvFp4LinearKernel,
    EmulationNvFp4LinearKernel,
    MarlinNvFp4LinearKernel,
)
from selection.lists import LISTS, backend_name, filtered, register
from selection.log import first_time, info_once, warn_once
from selection.platforms import Platform, PlatformEnum, get_platform, using
from selection.problems import inexpressible, problem_for, resolve

INT8_PARAMETERS = ("weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj")
FP8_PARAMETERS = ("weight", "weight_scale", "input_scale", "input_scale_ub")


# -- how one class is asked -----------------------------------------------------------------------


def _disabled(kernel: type) -> bool:
    # Exact names, unstripped, read at each call: "A, B" does not disable B.
    return kernel.__name__ in os.environ.get("VLLM_DISABLED_KERNELS", "").split(",")


def _platform_capability() -> int | None:
    capability = get_platform().get_device_capability()
    return None if capability is None else capability.to_int()


def is_supported_and_can_implement_kernel(
    kernel: type[ScaledMMLinearKernel], config: Any, compute_capability: int | None
) -> tuple[bool, str]:
    """Whether a scaled-mm class serves a layer, asked in upstream's order.

    Args:
      kernel: the class.
      config: the layer's config.
      compute_capability: major*10 + minor; None asks the platform.

    Returns:
      (True, "") or (False, reason). The order is: disabled by VLLM_DISABLED_KERNELS (a disabled
      class is asked nothing), `is_supported`, `can_implement`.
    """
    if _disabled(kernel):
        return False, f" {kernel.__name__} is disabled by environment variable"
    if compute_capability is None:
        compute_capability = _platform_capability()
    supported, reason = kernel.is_supported(compute_capability)
    if not supported:
        return False, f"{kernel.__name__} {reason}."
    able, reason = kernel.can_implement(config)
    if not able:
        return False, f"{kernel.__name__} {reason}."
    return True, ""


def _scaled_reason(config: Any, capability: int | None) -> Callable[[type], str | None]:
    if capability is None:
        capability = _platform_capability()

    def ask(kernel: type) -> str | None:
        ok, reason = is_supported_and_can_implement_kernel(kernel, config, capability)
        if not ok:
            return reason
        cannot = cannot_run(kernel, config)
        return None if cannot is None else f"{kernel.__name__} {cannot}."

    return ask


def _mp_reason(config: Any, capability: int | None) -> Callable[[type], str | None]:
    def ask(kernel: type) -> str | None:
        name = kernel.__name__
        if _disabled(kernel):
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


def _micro_reason(config: Any) -> Callable[[type], str | None]:
    def ask(kernel: type) -> str | None:
        name = kernel.__name__
        if _disabled(kernel):
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
    unheld = inexpressible(kernel, config)
    if unheld is not None:
        return f"cannot run here: {unheld}"
    found = resolve(backing, problem_for(kernel, config), platform.device)
    return None if found.name else f"cannot run here: {found.why_none}"


# -- the loop -------------------------------------------------------------------------------------


def _walk(
    kind: str,
    config: Any,
    kernels: Sequence[type],
    ask: Callable[[type], str | None],
    force_kernel: type | None = None,
    strict: bool = False,
    notes: tuple[str, ...] = (),
) -> Choice:
    """The first class of a list without a reason against it; a forced one before all."""
    platform = get_platform()
    rejected: list[Rejection] = []
    if force_kernel is not None:
        reason = ask(force_kernel)
        if reason is None:
            forced = (f"{force_kernel.__name__} was forced",)
            return Choice(kind, config, platform, force_kernel, (), (*notes, *forced))
        refused = f"{force_kernel.__name__} was forced but cannot serve: {reason.strip()}"
        if strict:
            raise ValueError(f"force_kernel: {refused}")
        info_once("%s", refused)
        notes = (*notes, refused)
    for kernel in kernels:
        reason = ask(kernel)
        if reason is None:
            return Choice(kind, config, platform, kernel, tuple(rejected), notes)
        rejected.append(Rejection(kernel, reason))
    return Choice(kind, config, platform, None, tuple(rejected), notes)


_LAYER_IN_ERROR = {"mp": "WNA16", "mxfp8": "MXFP8", "mxfp4": "MXFP4", "nvfp4": "NVFP4"}


def _concluded(choice: Choice, strict: bool) -> Choice:
    """Raises where nothing serves; logs once per kind of layer; warns where it is slow."""
    if choice.kernel is None:
        layer = _LAYER_IN_ERROR.get(choice.kind, "ScaledMM")
        reasons = [*choice.notes, *(rejection.reason for rejection in choice.rejected)]
        raise ValueError(
            f"Failed to find a kernel that can implement the {layer} linear layer. Reasons: \n"
            + "\n".join(reasons)
        )
    if strict and choice.fallback is not None:
        raise ValueError(f"strict: {choice.kernel.__name__} would be slow: {choice.fallback}")
    device = choice.device
    layer = describe(choice.kind, choice.config)
    if first_time(choice.kernel, layer, None if device is None else device.name):
        _log(choice, layer)
    return choice


def _log(choice: Choice, layer: str) -> None:
    name, slow = choice.kernel.__name__, choice.fallback
    before = f" (before it: {choice.rejected[-1].reason.strip()})" if choice.rejected else ""
    info_once("%s serves %s%s", name, layer, before)
    if slow is not None:
        warn_once("%s is the slow path for %s: %s", name, layer, slow)


def _listed(kind: str, backend: str | None) -> list[type]:
    kernels = LISTS[kind].get(get_platform()._enum, [])
    return filtered(kernels, backend, layer_name(kind)) if kernels else kernels


# -- choosers -------------------------------------------------------------------------------------


def choose_scaled_mm_linear_kernel(
    config: Any,
    possible_kernels: dict[PlatformEnum, list[type]],
    compute_capability: int | None = None,
    force_kernel: type | None = None,
    *,
    backend: str | None = None,
    strict: bool = False,
) -> type:
    """The first class of the platform's list that serves a scaled-mm layer.

    Args:
      config: the layer's config.
      possible_kernels: platform -> classes, best first.
      compute_capability: of the target device; None asks the platform.
      force_kernel: taken if it serves, listed or not, filter or not. Otherwise ignored with one
        line in the log, as upstream, unless `strict`.
      backend, strict: see the module's docstring.

    Returns:
      The class.

    Raises:
      ValueError: no class serves it (every reason is in the message), or the filter keeps none.
    """
    kind = _kind_of_lists(possible_kernels, config)
    ask = _scaled_reason(config, compute_capability)
    kernels = possible_kernels.get(get_platform()._enum, [])
    if force_kernel is not None and ask(force_kernel) is None:
        kernels = []
    elif kernels:
        kernels = filtered(kernels, backend, layer_name(kind))
    return _concluded(_walk(kind, config, kernels, ask, force_kernel, strict), strict).kernel


def _kind_of_lists(lists: dict, config: Any) -> str:
    for kind, known in LISTS.items():
        if known is lists:
            return kind
    return kind_of(config)


def choose_mp_linear_kernel(
    config: MPLinearLayerConfig,
    compute_capability: int | None = None,
    *,
    backend: str | None = None,
    strict: bool = False,
) -> type[MPLinearKernel]:
    """The first class of the platform's list that serves a mixed-precision layer.

    Args:
      config: the layer's config.
      compute_capability: of the target device, for the minimum capabilities only; None asks the
        platform (and skips them where it has none).
      backend, strict: see the module's docstring.

    Returns:
      The class.

    Raises:
      ValueError: no class serves it (every reason is in the message), or the filter keeps none.

    Example:
      >>> import selection
      >>> layer = selection.scheme("w4a16-g128").config(4096, 4096)
      >>> with selection.using("h200"):
      ...     choose_mp_linear_kernel(layer).__name__
      'MacheteLinearKernel'
    """
    return choose_kernel(
        config, compute_capability=compute_capability, backend=backend, strict=strict
    ).kernel


def kind_of(config: Any) -> str:
    """Which priority list serves a config: fp8 with grouped activations is "fp8_block"."""
    if isinstance(config, MPLinearLayerConfig):
        return "mp"
    if isinstance(config, Int8ScaledMMLinearLayerConfig):
        return "int8"
    if isinstance(config, FP8ScaledMMLinearLayerConfig):
        grouped = config.activation_quant_key.scale.group_shape.is_per_group()
        return "fp8_block" if grouped else "fp8"
    for kind, config_type in (
        ("mxfp8", Mxfp8LinearLayerConfig),
        ("mxfp4", MxFp4LinearLayerConfig),
        ("nvfp4", NvFp4LinearLayerConfig),
    ):
        if isinstance(config, config_type):
            return kind
    raise TypeError(f"config: expected a layer config of selection.configs, got {config!r}")


def choose_kernel(
    config: Any,
    *,
    kind: str | None = None,
    device: Any = None,
    compute_capability: int | None = None,
    force_kernel: type | None = None,
    backend: str | None = None,
    strict: bool = False,
    quiet: bool = False,
) -> Choice:
    """Like upstream's choosers for any layer, but returns the whole `Choice`.

    Args:
      config: a layer config of `selection`.
      kind: the priority list, by default the config's own; "wfp8a16" must be asked for.
      device: a name ("h200"), `Device` or `Platform` to choose for; None: the current one.
      compute_capability, force_kernel, backend, strict: as in the other choosers.
      quiet: return a choice of None and log nothing, instead of raising and logging.

    Raises:
      ValueError: no class serves the layer.

    Example:
      >>> import selection
      >>> layer = selection.Int8ScaledMMLinearLayerConfig(False, True, True)
      >>> choose_kernel(layer, device="a100").kernel.__name__
      'CutlassInt8ScaledMMLinearKernel'
    """
    kind = kind or kind_of(config)
    if kind not in LISTS:
        raise ValueError(f"kind: expected one of {', '.join(LISTS)}; got {kind!r}")
    with using(device):
        choice = _choose(kind, config, compute_capability, force_kernel, backend, strict, quiet)
        return choice if quiet else _concluded(choice, strict)


def _choose(kind, config, capability, force_kernel, backend, strict, quiet) -> Choice:
    if kind == "mp":
        if capability is None:
            if get_platform() is None:
                raise ValueError("compute_capability: give it, since there is no current platform")
            capability = _platform_capability()
        ask = _mp_reason(config, capability)
    elif kind in ("mxfp8", "mxfp4", "nvfp4"):
        ask = _micro_reason(config)
    else:
        ask = _scaled_reason(config, capability)
    forced = force_kernel is not None and ask(force_kernel) is None
    try:
        kernels = [] if forced else _listed(kind, backend)
    except ValueError as error:
        if not quiet:
            raise
        return Choice(kind, config, get_platform(), None, (), (str(error),))
    return _walk(kind, config, kernels, ask, force_kernel, strict)


# -- choosers that return an instance -------------------------------------------------------------


def init_int8_linear_kernel(
    is_channelwise: bool,
    is_static_input_scheme: bool,
    input_symmetric: bool,
    module_name: str,
    *,
    backend: str | None = None,
    strict: bool = False,
) -> ScaledMMLinearKernel:
    """The kernel of an int8 layer.

    Args:
      is_channelwise: a weight scale per output channel.
      is_static_input_scheme: activation scales known beforehand.
      input_symmetric: activations have no zero point.
      module_name: for the log.
      backend, strict: see the module's docstring.

    Returns:
      An instance; `torch_bridge` makes it runnable (see `selection.kernels.base`).

    Raises:
      ValueError: no class serves the layer.
    """
    config = Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=is_static_input_scheme,
        is_channelwise=is_channelwise,
        input_symmetric=input_symmetric,
    )
    kernel = choose_scaled_mm_linear_kernel(config, LISTS["int8"], backend=backend, strict=strict)
    info_once("Selected %s for %s", kernel.__name__, module_name)
    return kernel(config, layer_param_names=list(INT8_PARAMETERS))


def init_fp8_linear_kernel(
    activation_quant_key: QuantKey,
    weight_quant_key: QuantKey,
    out_dtype: Any,
    force_kernel: type | None = None,
    module_name: str | None = None,
    *,
    input_dtype: Any = None,
    weight_shape: tuple[int, int] | None = None,
    backend: str | None = None,
    strict: bool = False,
) -> LinearKernel:
    """The kernel of an fp8 layer; activations in groups of 1 x 128 go to the block-scaled list.

    Args:
      activation_quant_key, weight_quant_key: the formats.
      out_dtype: of the result; None for that of the activations.
      force_kernel: see `choose_scaled_mm_linear_kernel`.
      module_name: for the log, which is silent without it.
      input_dtype: of the activations before quantization (0.26).
      weight_shape: (N, K) (0.26); block-scaled classes want to know it.
      backend, strict: see the module's docstring.

    Returns:
      An instance; `torch_bridge` makes it runnable (see `selection.kernels.base`).

    Raises:
      ValueError: no class serves the layer.
    """
    config = FP8ScaledMMLinearLayerConfig(
        weight_quant_key=weight_quant_key,
        activation_quant_key=activation_quant_key,
        out_dtype=out_dtype,
        weight_shape=weight_shape,
        input_dtype=input_dtype,
    )
    return _fp8_instance(kind_of(config), config, force_kernel, module_name, backend, strict)


def init_wfp8_a16_linear_kernel(
    weight_quant_key: QuantKey,
    activation_quant_key: QuantKey | None,
    weight_shape: tuple[int, int],
    input_dtype: Any,
    out_dtype: Any,
    force_kernel: type | None = None,
    module_name: str | None = None,
    *,
    backend: str | None = None,
    strict: bool = False,
) -> LinearKernel:
    """The kernel of a layer with fp8 weights and 16-bit activations; the weight's key comes first.

    Args:
      weight_quant_key: format of the weights.
      activation_quant_key: kept in the config; nothing asks it.
      weight_shape: (N, K).
      input_dtype, out_dtype, force_kernel, module_name: as in `init_fp8_linear_kernel`.
      backend, strict: see the module's docstring.

    Raises:
      ValueError: no class serves the layer.
    """
    config = FP8ScaledMMLinearLayerConfig(
        weight_quant_key=weight_quant_key,
        activation_quant_key=activation_quant_key,
        out_dtype=out_dtype,
        weight_shape=weight_shape,
        input_dtype=input_dtype,
    )
    return _fp8_instance("wfp8a16", config, force_kernel, module_name, backend, strict)


def _fp8_instance(kind, config, force_kernel, module_name, backend, strict) -> LinearKernel:
    kernel = choose_scaled_mm_linear_kernel(
        config, LISTS[kind], force_kernel=force_kernel, backend=backend, strict=strict
    )
    if module_name:
        info_once("Selected %s for %s", kernel.__name__, module_name)
    if issubclass(kernel, FP8ScaledMMLinearKernel):
        return kernel(config, layer_param_names=list(FP8_PARAMETERS))
    return kernel(config)


def init_mxfp8_linear_kernel(*, backend: str | None = None, strict: bool = False) -> MMLinearKernel:
    """The kernel of an MXFP8 layer; ValueError where no class serves it."""
    return _micro_instance("mxfp8", Mxfp8LinearLayerConfig(), backend, strict)


def init_mxfp4_linear_kernel(*, backend: str | None = None, strict: bool = False) -> MMLinearKernel:
    """The kernel of an MXFP4 layer; ValueError where no class serves it."""
    return _micro_instance("mxfp4", MxFp4LinearLayerConfig(), backend, strict)


def init_nvfp4_linear_kernel(
    use_a16: bool = False, *, backend: str | None = None, strict: bool = False
) -> MMLinearKernel:
    """The kernel of an NVFP4 layer.

    Args:
      use_a16: leave activations 16-bit: Marlin is required unless a backend is named.
      backend, strict: see the module's docstring.

    Raises:
      ValueError: no class serves the layer, or the one required by `use_a16` does not.

    VLLM_BATCH_INVARIANT requires Cutlass where it is supported, and the emulation where not,
    whatever backend is named.
    """
    config = NvFp4LinearLayerConfig()
    name = backend_name(backend)
    required = None
    if env_flag("VLLM_BATCH_INVARIANT"):
        cutlass = CutlassNvFp4LinearKernel.is_supported()[0]
        required = CutlassNvFp4LinearKernel if cutlass else EmulationNvFp4LinearKernel
        if name != "auto":
            warn_once("VLLM_BATCH_INVARIANT overrides the backend %s", name)
    elif name == "auto" and use_a16:
        required = MarlinNvFp4LinearKernel
    if required is None:
        return _micro_instance("nvfp4", config, backend, strict)
    reason = _micro_reason(config)(required)
    if reason is not None:
        raise ValueError(f"{required.__name__} is required here, but is unsupported: {reason}")
    choice = Choice("nvfp4", config, get_platform(), required)
    return _concluded(choice, strict).kernel(config)


def _micro_instance(kind: str, config: Any, backend: str | None, strict: bool) -> MMLinearKernel:
    choice = choose_kernel(config, kind=kind, backend=backend, strict=strict)
    if choice.kernel is EmulationNvFp4LinearKernel and choice.rejected:
        failures = "; ".join(rejection.reason for rejection in choice.rejected)
        warn_once("NVFP4 is emulated, since no kernel serves it: %s", failures)
    return choice.kernel(config)


# -- registration ---------------------------------------------------------------------------------

_REGISTRABLE = ("mp", "int8", "fp8", "mxfp8", "nvfp4", "mxfp4")


def register_linear_kernel(
    kernel_class: type, platform: PlatformEnum, kernel_type: str = "mp"
) -> None:
    """Appends a class to a platform's list: behind upstream's classes, before our XLA one.

    Args:
      kernel_class: a subclass of one of the bases in `selection.kernels.base`.
      platform: whose list; PlatformEnum.OOT for a platform that a plug-in brings.
      kernel_type: mp, int8, fp8, mxfp8, nvfp4 or mxfp4.

    Raises:
      ValueError: another kernel_type.
    """
    if kernel_type not in _REGISTRABLE:
        raise ValueError(
            f"kernel_type: expected one of {', '.join(_REGISTRABLE)}; got {kernel_type!r}"
        )
    register(kernel_class, platform, kernel_type)


def explain(
    config: Any,
    *,
    device: Any = None,
    m: int | None = None,
    n: int | None = None,
    k: int | None = None,
    **controls: Any,
) -> str:
    """What would serve a layer and why, as a paragraph; never raises for want of a kernel.

    Args:
      config: a layer config.
      device: a name, `Device` or `Platform`; None: the current one.
      m, n, k: sizes to plan for, see `Choice.explain`.
      **controls: as for `choose_kernel`.
    """
    return choose_kernel(config, device=device, quiet=True, **controls).explain(m, n, k)

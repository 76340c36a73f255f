# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which kernel class serves a layer: upstream's choosers, with every rejection kept.

One loop serves all families: walk the platform's list, take the first class that has no reason
against it (`selection.ask`). `choose_kernel` returns the whole `Choice`; the functions with
upstream's names return its class, and `selection.init` builds instances.

Every chooser takes, beyond upstream's parameters and by keyword only,

    backend   a `--linear-backend` value; None reads JAXKERNELS_LINEAR_BACKEND; "auto" is no filter
    strict    raise ValueError instead of falling back to a slow path or ignoring force_kernel
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selection.ask import micro_reason, mp_reason, platform_capability, scaled_reason
from selection.choice import Choice, Rejection, describe, layer_name
from selection.configs import (
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from selection.kernels.base import MPLinearKernel
from selection.lists import LISTS, Lists, backend_name, filtered, register
from selection.log import first_time, info_once, warn_once
from selection.platforms import PlatformEnum, get_platform, using


def _walk(
    kind: str,
    config: Any,
    ask: Callable[[type], str | None],
    lists: Lists,
    backend: str | None,
    force_kernel: type | None,
    strict: bool,
) -> Choice:
    """The forced class if it serves; else the first of the filtered list that does."""
    platform = get_platform()
    notes: tuple[str, ...] = ()
    if force_kernel is not None:
        reason = ask(force_kernel)
        if reason is None:
            forced = f"{force_kernel.__name__} was forced"
            return Choice(kind, config, platform, force_kernel, (), (forced,))
        notes = (f"{force_kernel.__name__} was forced but cannot serve: {reason.strip()}",)
        if strict:
            raise ValueError(f"force_kernel: {notes[0]}")
        info_once("%s", notes[0])
    kernels = lists.get(platform._enum, [])
    if kernels:
        kernels = filtered(kernels, backend, layer_name(kind))
    rejected: list[Rejection] = []
    for kernel in kernels:
        reason = ask(kernel)
        if reason is None:
            return Choice(kind, config, platform, kernel, tuple(rejected), notes)
        rejected.append(Rejection(kernel, reason))
    return Choice(kind, config, platform, None, tuple(rejected), notes)


_LAYER_IN_ERROR = {"mp": "WNA16", "mxfp8": "MXFP8", "mxfp4": "MXFP4", "nvfp4": "NVFP4"}


def concluded(choice: Choice, strict: bool) -> Choice:
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
    ask = scaled_reason(config, compute_capability)
    choice = _walk(kind, config, ask, possible_kernels, backend, force_kernel, strict)
    return concluded(choice, strict).kernel


def _kind_of_lists(lists: dict, config: Any) -> str:
    for kind, known in LISTS.items():
        if known is lists:
            return kind
    try:
        return kind_of(config)
    except TypeError:  # a plug-in's own config, with its own lists
        return type(config).__name__


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
    backend = backend_name(backend)  # a name that does not exist is a mistake, quiet or not
    with using(device):
        choice = _choose(kind, config, compute_capability, force_kernel, backend, strict, quiet)
        return choice if quiet else concluded(choice, strict)


def _choose(kind, config, capability, force_kernel, backend, strict, quiet) -> Choice:
    if kind == "mp":
        if capability is None:
            if get_platform() is None:
                raise ValueError("compute_capability: give it, since there is no current platform")
            capability = platform_capability()
        ask = mp_reason(config, capability)
    elif kind in ("mxfp8", "mxfp4", "nvfp4"):
        ask = micro_reason(config)
    else:
        ask = scaled_reason(config, capability)
    try:
        return _walk(kind, config, ask, LISTS[kind], backend, force_kernel, strict)
    except ValueError as error:
        if not quiet:
            raise
        return Choice(kind, config, get_platform(), None, (), (str(error),))


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

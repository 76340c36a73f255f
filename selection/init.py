# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The choosers that return an instance: upstream's `init_*_linear_kernel` functions.

An instance knows its config and its parameters' names; importing `torch_bridge` makes it run torch
layers (see `selection.kernels.base`). `backend` and `strict` are as in `selection.choose`.
"""

from __future__ import annotations

from typing import Any

from selection.ask import micro_reason
from selection.checks import env_flag
from selection.choice import Choice
from selection.choose import choose_kernel, choose_scaled_mm_linear_kernel, concluded, kind_of
from selection.configs import (
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
    QuantKey,
)
from selection.kernels.base import (
    FP8ScaledMMLinearKernel,
    LinearKernel,
    MMLinearKernel,
    ScaledMMLinearKernel,
)
from selection.kernels.micro_scaled import (
    CutlassNvFp4LinearKernel,
    EmulationNvFp4LinearKernel,
    MarlinNvFp4LinearKernel,
)
from selection.lists import LISTS, backend_name
from selection.log import info_once, warn_once
from selection.platforms import get_platform

INT8_PARAMETERS = ("weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj")
FP8_PARAMETERS = ("weight", "weight_scale", "input_scale", "input_scale_ub")


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
    reason = micro_reason(config)(required)
    if reason is not None:
        raise ValueError(f"{required.__name__} is required here, but is unsupported: {reason}")
    choice = Choice("nvfp4", config, get_platform(), required)
    return concluded(choice, strict).kernel(config)


def _micro_instance(kind: str, config: Any, backend: str | None, strict: bool) -> MMLinearKernel:
    choice = choose_kernel(config, kind=kind, backend=backend, strict=strict)
    if choice.kernel is EmulationNvFp4LinearKernel and choice.rejected:
        failures = "; ".join(rejection.reason for rejection in choice.rejected)
        warn_once("NVFP4 is emulated, since no kernel serves it: %s", failures)
    return choice.kernel(config)

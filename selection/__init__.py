# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which kernel serves a quantized linear layer on a platform, and why not the others.

The names, the order of preference and the reasons are those of vLLM's
`vllm.model_executor.kernels.linear`; what runs is `jaxkernels`. Everything is importable from here,
whichever file it is in, and stays so. `python -m selection` answers at the command line.

Example:
  >>> import selection
  >>> layer = selection.Int8ScaledMMLinearLayerConfig(
  ...     is_static_input_scheme=False, is_channelwise=True, input_symmetric=True)
  >>> selection.choose_kernel(layer, device="h200").kernel.__name__
  'CutlassInt8ScaledMMLinearKernel'
"""

# The order of the first line matters: everything below asks for `selection.current_platform`.
from selection.platforms import current_platform  # noqa: I001
from selection import configs as _configs
from selection.ask import is_supported_and_can_implement_kernel
from selection.choice import Choice, Plan, Rejection
from selection.choose import (
    choose_kernel,
    choose_mp_linear_kernel,
    choose_scaled_mm_linear_kernel,
    explain,
    register_linear_kernel,
)
from selection.configs import *  # noqa: F403
from selection.dtypes import dtype_name
from selection.init import (
    init_fp8_linear_kernel,
    init_int8_linear_kernel,
    init_mxfp4_linear_kernel,
    init_mxfp8_linear_kernel,
    init_nvfp4_linear_kernel,
    init_wfp8_a16_linear_kernel,
)
from selection.kernels import block as _block
from selection.kernels import micro_scaled as _micro_scaled
from selection.kernels import mixed_precision as _mixed_precision
from selection.kernels import scaled_mm as _scaled_mm
from selection.kernels.base import (
    Backing,
    Fp8BlockScaledMMLinearKernel,
    FP8ScaledMMLinearKernel,
    Int8ScaledMMLinearKernel,
    LinearKernel,
    MMLinearKernel,
    MPLinearKernel,
    ScaledMMLinearKernel,
    get_runtime,
    set_runtime,
)
from selection.kernels.block import *  # noqa: F403
from selection.kernels.micro_scaled import *  # noqa: F403
from selection.kernels.mixed_precision import *  # noqa: F403
from selection.kernels.scaled_mm import *  # noqa: F403

# Upstream's private names, which other code imports from here.
from selection.lists import (  # noqa: F401
    _POSSIBLE_FP8_BLOCK_KERNELS,
    _POSSIBLE_FP8_KERNELS,
    _POSSIBLE_INT8_KERNELS,
    _POSSIBLE_KERNELS,
    _POSSIBLE_MXFP4_KERNELS,
    _POSSIBLE_MXFP8_KERNELS,
    _POSSIBLE_NVFP4_KERNELS,
    _POSSIBLE_WFP8A16_KERNELS,
)
from selection.platforms import (
    CpuArchEnum,
    DeviceCapability,
    Platform,
    PlatformEnum,
    get_platform,
    platform_for,
    using,
)
from selection.schemes import SCHEMES, Scheme, scheme

__all__ = [
    *_configs.__all__,
    *_block.__all__,
    *_micro_scaled.__all__,
    *_mixed_precision.__all__,
    *_scaled_mm.__all__,
    "SCHEMES",
    "Backing",
    "Choice",
    "CpuArchEnum",
    "DeviceCapability",
    "FP8ScaledMMLinearKernel",
    "Fp8BlockScaledMMLinearKernel",
    "Int8ScaledMMLinearKernel",
    "LinearKernel",
    "MMLinearKernel",
    "MPLinearKernel",
    "Plan",
    "Platform",
    "PlatformEnum",
    "Rejection",
    "ScaledMMLinearKernel",
    "Scheme",
    "choose_kernel",
    "choose_mp_linear_kernel",
    "choose_scaled_mm_linear_kernel",
    "current_platform",
    "dtype_name",
    "explain",
    "get_platform",
    "get_runtime",
    "init_fp8_linear_kernel",
    "init_int8_linear_kernel",
    "init_mxfp4_linear_kernel",
    "init_mxfp8_linear_kernel",
    "init_nvfp4_linear_kernel",
    "init_wfp8_a16_linear_kernel",
    "is_supported_and_can_implement_kernel",
    "platform_for",
    "register_linear_kernel",
    "scheme",
    "set_runtime",
    "using",
]

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The Pallas kernels of `jaxkernels` as torch sees them.

  quantize_(model, recipe)      nn.Linear -> QuantLinear, in place
  to_jax, to_torch, wrap(fn)    tensors and arrays as views of one memory; any JAX function
  warmup(layer, max_m)          compile what a layer will need, before it is needed
  compile_kernel(fn, *args)     Mosaic kernels as a function of torch tensors, without JAX in a call

Importing it lets the kernel classes of `selection` run torch layers
(`process_weights_after_loading`, `apply_weights`).
"""

from torch_bridge import linear as _linear
from torch_bridge.dlpack import to_jax, to_torch, wrap
from torch_bridge.launch import NotDirect, compile_kernel, direct_route
from torch_bridge.linear import warmup
from torch_bridge.modules import QuantLinear
from torch_bridge.replace import Report, quantize_

__all__ = [
    "NotDirect",
    "QuantLinear",
    "Report",
    "compile_kernel",
    "direct_route",
    "quantize_",
    "to_jax",
    "to_torch",
    "warmup",
    "wrap",
]

_linear.install()

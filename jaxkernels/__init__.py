# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Quantized linear layers for JAX: pure, jit-able functions on a quantized-tensor pytree.

`jaxkernels.scaled_mm`, `.mixed_mm` and `.quantize` are the functions; the packages of the same
names that hold them are reached as `from jaxkernels.scaled_mm import ...`.
"""

from jaxkernels.explain import explain_choice
from jaxkernels.mixed_mm import mixed_mm
from jaxkernels.mixed_mm.prepare import prepare, unprepare
from jaxkernels.mixed_mm.w4a8 import w4a8_linear, w4a8_mm
from jaxkernels.quantize import quantize_fp8, quantize_fp8_group, quantize_int8
from jaxkernels.quantized import GroupShape, QuantizedTensor, dequantize
from jaxkernels.quantizer import quantize
from jaxkernels.scalar_types import ScalarType, scalar_types
from jaxkernels.scaled_mm import scaled_mm, w8a8_linear

__all__ = [
    "GroupShape",
    "QuantizedTensor",
    "ScalarType",
    "dequantize",
    "explain_choice",
    "mixed_mm",
    "prepare",
    "quantize",
    "quantize_fp8",
    "quantize_fp8_group",
    "quantize_int8",
    "scalar_types",
    "scaled_mm",
    "unprepare",
    "w4a8_linear",
    "w4a8_mm",
    "w8a8_linear",
]

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Activation quantization: int8 and fp8, static or dynamic, per tensor, token or group."""

from jaxkernels.quantize.op import quantize_fp8, quantize_fp8_group, quantize_int8

__all__ = ["quantize_fp8", "quantize_fp8_group", "quantize_int8"]

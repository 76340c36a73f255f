# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""GEMM of quantized weights and wider activations: `mixed_mm`, and `w4a8_mm` for 8-bit ones."""

from jaxkernels.mixed_mm.op import IMPLEMENTATIONS, mixed_mm
from jaxkernels.mixed_mm.prepare_w4a8 import prepare_w4a8, split_scales

__all__ = ["IMPLEMENTATIONS", "mixed_mm", "prepare_w4a8", "split_scales"]

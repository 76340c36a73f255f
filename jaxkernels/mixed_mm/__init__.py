# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""GEMM of quantized weights and wider activations: `mixed_mm`."""

from jaxkernels.mixed_mm.op import IMPLEMENTATIONS, mixed_mm

__all__ = ["IMPLEMENTATIONS", "mixed_mm"]

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""GEMM of two 8-bit operands with scales: `scaled_mm`, and `w8a8_linear` around it."""

from jaxkernels.scaled_mm.linear import w8a8_linear
from jaxkernels.scaled_mm.op import IMPLEMENTATIONS, scaled_mm

__all__ = ["IMPLEMENTATIONS", "scaled_mm", "w8a8_linear"]

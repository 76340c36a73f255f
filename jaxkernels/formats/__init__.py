# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Checkpoint tensors to `QuantizedTensor` and back: gptq, awq, compressed_tensors, fp8."""

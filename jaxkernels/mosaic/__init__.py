# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Building blocks of the Mosaic GPU kernels, and the only folder that touches unstable JAX.

`device` says which GPU a kernel is traced for, `interpret` runs kernels on a CPU with race
detection, `gemm` holds the pieces that GEMM kernels share. A JAX upgrade is this folder's work.
"""

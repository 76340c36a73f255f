# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The Pallas kernels of `jaxkernels` as torch sees them."""

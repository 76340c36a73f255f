# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Benchmarks: our kernels beside every peer, in one process. `python -m benchmarks --help`."""

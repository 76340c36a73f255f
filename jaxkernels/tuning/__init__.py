# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which config a kernel runs with: legal candidates, a cost model, and measured tables.

Pure Python on (problem, device): deterministic, nothing is measured on the call path. One module
a kernel; `tables/` holds what was measured, a JSON file a device.
"""

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""One declaration per upstream kernel class; import them from `selection`."""

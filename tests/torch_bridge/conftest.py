# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""This folder's helper module is importable by its tests, and their kernels stay in the tree."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# One folder for all workers of a run, and never the user's.
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "kernels"
os.environ.setdefault("JAXKERNELS_CACHE_DIR", str(CACHE))

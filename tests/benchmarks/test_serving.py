# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The arithmetic of `benchmarks.serving`; its measurements need a GPU."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks import serving


def test_gaps_between_kernels():
    """In whatever order they come; one that starts under the one ahead is a gap below zero."""
    found = serving.between([(10.0, 20.0), (0.0, 8.0), (19.5, 30.0), (30.25, 31.0), (31.5, 32.0)])
    assert found == {
        "kernels": 5,
        "gap_median_us": 0.375,
        "gap_largest_us": 2.0,
        "gaps_over_1_us": 1,
    }


def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "FLAGS", SimpleNamespace(lock=None))
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="--cold=64,128,w8a16"):
        serving.one_process("w8a16", 64, 128, str(tmp_path))

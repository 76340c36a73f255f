# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Grids and floors of the benchmarks: pure arithmetic, checked against hand-counted cells."""

import pytest

from benchmarks import suites
from benchmarks.suites import CEILINGS, FAMILIES, Cell

H200 = CEILINGS["NVIDIA H200"]


def test_scaled_grid_is_the_whole_product():
    cells = suites.cells("scaled_mm", ["fp8", "int8"])
    assert len(cells) == len(set(cells)) == 2 * 6 * 12
    assert Cell("int8", 8192, 8192, 28672) in cells


def test_weights_are_grouped_so_that_they_are_built_once():
    cells = suites.cells("mixed_mm", ["w4a16"], groups=[128, -1])
    keys = [(c.n, c.k, c.group) for c in cells]
    changes = sum(a != b for a, b in zip(keys, keys[1:], strict=False))
    assert changes == len(set(keys)) - 1 == 6 * 2 - 1


def test_every_family_of_the_records_exists():
    expected = {
        "fp8", "fp8-block", "int8", "int8-azp", "w8a8-linear", "w4a16", "w4a16-zp",
        "w4a16-actorder", "w8a16-int8", "w8a16-fp8", "w8a16-fp8-block", "w4a8-fp8", "w4a8-int8",
        "fp4-nv", "fp4-mx",
    }  # fmt: skip
    named = {f for f in FAMILIES if not f.startswith(("quantize-", "bridge-"))}
    assert named == expected
    assert {f.suite for f in FAMILIES.values()} == set(suites.SUITES) - {"smoke"}


@pytest.mark.parametrize("suite", [s for s in suites.SUITES if s != "smoke"])
def test_narrowing_keeps_only_what_was_asked(suite):
    full = suites.cells(suite)
    m = full[0].m
    narrowed = suites.cells(suite, ms=[m])
    assert narrowed and {c.m for c in narrowed} == {m}
    assert set(narrowed) <= set(full)


def test_smoke_is_small_and_has_the_two_kernels():
    cells = suites.cells("smoke")
    assert {c.family for c in cells} == {"fp8", "int8", "w4a16"}
    assert len(cells) == 3 * 2 * 4


@pytest.mark.parametrize(
    "suite, families, word",
    [("gemm", None, "suite"), ("quantize", ["fp8"], "families"), ("smoke", ["w4a8"], "families")],
)
def test_unknown_names_are_refused_with_the_known_ones(suite, families, word):
    with pytest.raises(ValueError, match=word) as error:
        suites.cells(suite, families)
    assert "," in str(error.value)


def test_bytes_of_a_cell_counted_by_hand():
    m, n, k = 16, 4096, 8192
    fp8 = suites.moved_bytes(Cell("fp8", m, n, k))
    assert fp8 == m * k + n * k + 4 * n + 2 * m * n
    w4 = suites.moved_bytes(Cell("w4a16", m, n, k, 128))
    assert w4 == 2 * m * k + n * k // 2 + 2 * n * k // 128 + 2 * m * n
    zp = suites.moved_bytes(Cell("w4a16-zp", m, n, k, 128))
    assert zp - w4 == n * (k // 128) / 2
    whole = suites.moved_bytes(Cell("w4a16", m, n, k, -1))
    assert whole == 2 * m * k + n * k // 2 + 2 * n + 2 * m * n
    token = suites.moved_bytes(Cell("quantize-fp8-token", m, None, k))
    assert token == 3 * m * k + 4 * m
    azp = suites.moved_bytes(Cell("quantize-int8-token-azp", m, None, k))
    assert azp == 3 * m * k + 8 * m
    assert suites.moved_bytes(Cell("quantize-int8-static-azp", m, None, k)) == 3 * m * k
    group = suites.moved_bytes(Cell("quantize-fp8-group-col", m, None, k, 128))
    assert group == 3 * m * k + 4 * m * k // 128


def test_floor_is_memory_at_decode_and_arithmetic_at_prefill():
    decode = Cell("fp8", 1, 28672, 4096)
    assert suites.floor_us(decode, H200) == suites.moved_bytes(decode) / 4372.0 / 1e3
    assert 26.5 < suites.floor_us(decode, H200) < 27.5  # baseline: 26.9
    prefill = Cell("fp8", 4096, 28672, 4096)
    assert suites.floor_us(prefill, H200) == pytest.approx(610.1, rel=1e-3)  # baseline: 610.1
    w4 = Cell("w4a16", 4096, 4096, 4096, 128)
    assert suites.floor_us(w4, H200) == pytest.approx(166.1, rel=1e-3)


def test_no_floor_on_an_unmeasured_card():
    assert suites.floor_us(Cell("fp8", 1, 4096, 4096), None) is None


def test_scores_of_conversions_use_the_copy_rate():
    cell = Cell("quantize-fp8-static", 16384, None, 8192)
    assert suites.floor_us(cell, H200) == pytest.approx(3 * 16384 * 8192 / 4281e3)
    assert suites.flops(cell) == 0

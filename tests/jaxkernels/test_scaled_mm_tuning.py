# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Config choice for the Hopper scaled GEMM: legal, deterministic, explained, never measured."""

import dataclasses
import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels.problem import DEVICES
from jaxkernels.scaled_mm import hopper
from jaxkernels.scaled_mm.hopper_config import Config, Plan
from jaxkernels.tuning import scaled_mm as tuning

from .scaled_mm_cases import E4M3, INT8, problem

H200 = DEVICES["h200"]
BLOCK = ("group", "block")


@st.composite
def problems(draw):
    """Any problem that the kernel supports, small and large, ragged and round."""
    m = draw(st.one_of(st.integers(1, 300), st.sampled_from([512, 1024, 4096, 2**20])))
    n = 8 * draw(st.integers(1, 4000))
    out = draw(st.sampled_from(["bfloat16", "float16", "float32"]))
    if draw(st.booleans()):
        k = 16 * draw(st.integers(1, 1000))
        return problem(m, n, k, E4M3, out, scales=BLOCK, bias=draw(st.booleans()))
    scales = draw(st.sampled_from([("tensor", "tensor"), ("token", "channel")]))
    k, dtype = 16 * draw(st.integers(1, 2000)), draw(st.sampled_from([INT8, E4M3]))
    azp = draw(st.sampled_from([None, "static", "token"])) if dtype == INT8 else None
    return problem(m, n, k, dtype, out, scales=scales, azp=azp, bias=draw(st.booleans()))


@given(p=problems())
@settings(max_examples=150, deadline=None)
def test_every_supported_problem_gets_a_legal_config(p):
    assert hopper.supports(p, H200)
    config = tuning.choose(p, H200)
    assert Plan(p, config).legal(H200), Plan(p, config).legal(H200).reasons
    for candidate in tuning.candidates(p, H200):
        assert Plan(p, candidate).legal(H200)
        cost = tuning.cost(p, candidate, H200)
        floor = p.min_bytes / (H200.read_gbps * 1e9)
        assert cost.total > floor, "nothing is faster than the memory"


def test_the_same_problem_gets_the_same_config_again():
    p = problem(256, 6144, 4096, E4M3)
    first = tuning.choose(p, H200)
    for cached in (tuning.candidates, tuning.ranked, tuning._table):
        cached.cache_clear()
    assert tuning.choose(p, H200) == first == hopper.default_config(p, H200)


@pytest.mark.parametrize(
    "m, expected",
    [
        (1, {"swap": True, "tile_m": 8}),
        (16, {"swap": True, "tile_m": 16}),
        (60, {"swap": True, "tile_m": 64}),
        (256, {"swap": False, "tile_m": 128}),
        (4096, {"swap": False, "tile_m": 128, "tile_n": 256, "cluster_m": 2}),
    ],
)
def test_operand_order_and_tiles_follow_m(m, expected):
    config = tuning.choose(problem(m, 8192, 8192, E4M3), H200)
    assert expected.items() <= dataclasses.asdict(config).items()


def test_int8_tiles_have_the_widths_that_integer_wgmma_has():
    """wgmma m64nNk32 of s8 knows no N of 40 or 56; fp8 does. (ptxas refuses, on the GPU alone.)"""
    for m in range(1, 65):
        width = tuning.choose(problem(m, 6144, 4096, INT8), H200).tile_m
        assert width >= m and (width <= 32 or width % 16 == 0)
    assert tuning.choose(problem(33, 6144, 4096, E4M3), H200).tile_m == 40
    assert not Plan(problem(33, 6144, 4096), Config(40, 64, 4, True, warpgroups=1)).legal(H200)


def test_tiles_fill_the_waves():
    """28672 / 224 = 128 tiles of 132 SMs' worth; 256 wide would leave a wave at 70%."""
    assert tuning.choose(problem(256, 28672, 4096, E4M3), H200).tile_n == 224
    assert tuning.choose(problem(256, 6144, 4096, E4M3), H200).tile_n == 96


def test_short_kernels_overlap_their_launch_and_long_ones_do_not():
    assert tuning.choose(problem(16, 4096, 4096), H200).overlap
    assert not tuning.choose(problem(4096, 8192, 4096), H200).overlap


EARLY = dict(overlap=True, weights_first=True)


def block(m, n, k):
    return problem(m, n, k, E4M3, scales=BLOCK)


# (problem, config, measured us): NVIDIA H200, 2026-11-22 and -28, graph replay, cold weights.
MEASURED = [
    (problem(16, 4096, 4096, E4M3), Config(16, 64, 16, True, warpgroups=1, overlap=True), 5.75),
    (problem(16, 4096, 4096, E4M3), Config(16, 256, 6, True), 10.8),
    (problem(16, 28672, 4096, E4M3), Config(16, 256, 6, True), 30.8),
    (problem(64, 8192, 8192), Config(64, 64, 12, True, warpgroups=1, overlap=True), 18.1),
    (problem(256, 4096, 4096, E4M3), Config(128, 64, 8, overlap=True), 8.24),
    (problem(256, 8192, 8192, E4M3), Config(128, 128, 6), 26.5),
    (problem(256, 28672, 4096, E4M3), Config(128, 224, 4), 45.9),
    (problem(256, 28672, 4096, E4M3), Config(128, 256, 4), 48.2),
    (problem(1024, 6144, 4096, E4M3), Config(128, 192, 4), 36.5),
    (problem(1024, 6144, 4096, E4M3), Config(128, 256, 4), 45.1),
    (problem(4096, 8192, 4096, E4M3), Config(128, 256, 4, cluster_m=2), 173.2),
    (block(64, 8192, 8192), Config(64, 64, 13, warpgroups=1, **EARLY), 18.4),
    (block(128, 8192, 8192), Config(128, 64, 8, **EARLY), 21.5),
    (block(256, 28672, 4096), Config(128, 160, 5), 58.1),
    (block(512, 4096, 14336), Config(128, 128, 6), 48.1),
    (block(1024, 4096, 14336), Config(256, 128, 4), 82.0),
    (block(4096, 8192, 8192), Config(256, 128, 4, cluster_n=2, panel=16), 385.8),
]


@pytest.mark.parametrize("p, config, us", MEASURED)
def test_the_model_is_near_what_was_measured(p, config, us):
    assert tuning.cost(p, config, H200).total * 1e6 == pytest.approx(us, rel=0.15)


def test_explanation_names_the_parts_of_the_cost():
    text = tuning.explain(problem(256, 8192, 8192, E4M3), H200)
    for word in ("us", "memory", "l2", "tensor", "fixed", "Config(tile_m="):
        assert word in text
    measured = tuning.explain(problem(1024, 6144, 4096, E4M3), H200)
    assert measured.startswith("measured on NVIDIA H200")


def test_table_entries_are_legal_and_used():
    tables = pathlib.Path(tuning.__file__).parent / "tables"
    found = json.loads((tables / "scaled_mm_nvidia_h200.json").read_text())["entries"]
    assert found
    for entry in found:
        scales = BLOCK if entry["family"] == "block" else ("token", "channel")
        p = problem(entry["m"], entry["n"], entry["k"], E4M3, scales=scales)
        assert tuning.choose(p, H200) == Config(**entry["config"])


def test_smaller_parts_get_smaller_configs():
    """A device with less shared memory and fewer SMs gets configs that fit it."""
    small = dataclasses.replace(H200, smem_bytes=100 * 1024, num_sms=20)
    for m in (16, 256, 4096):
        p = problem(m, 4096, 4096, E4M3)
        assert Plan(p, tuning.choose(p, small)).legal(small)

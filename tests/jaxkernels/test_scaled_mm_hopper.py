# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The Hopper scaled GEMM, interpreted with race detection, and lowered for sm90."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxkernels.mosaic.device import abstract_mesh, trace_device
from jaxkernels.mosaic.interpret import interpreted
from jaxkernels.problem import DEVICES, ScaledMMOperands
from jaxkernels.scaled_mm import hopper, scaled_mm
from jaxkernels.scaled_mm.hopper_config import Config, Plan
from jaxkernels.tuning import scaled_mm as tuning

from .lowered import kernel_texts
from .scaled_mm_cases import E4M3, E5M2, INT8, assert_equal, exact, operands, problem

H200 = DEVICES["h200"]

# One or two tiles each: ragged in every direction, and every family of config.
INTERPRETED = {
    "int8-bias": (problem(205, 136, 400, bias=True), Config(128, 128, 3)),
    "int8-wide-tile": (problem(130, 264, 272, out="float16"), Config(128, 256, 3)),
    "int8-azp-token": (problem(70, 136, 272, azp="token", bias=True), Config(128, 64, 3)),
    "int8-azp-static-f32": (
        problem(130, 140, 272, out="float32", scales=("tensor", "channel"), azp="static"),
        Config(128, 64, 3),
    ),
    "int8-tensor-scales": (
        problem(5, 208, 400, scales=("tensor", "tensor")),
        Config(8, 128, 4, swap=True),
    ),
    "int8-swap-azp": (
        problem(1, 200, 1024, azp="token", bias=True),
        Config(8, 64, 4, swap=True, warpgroups=1),
    ),
    "int8-swap-f32": (
        problem(20, 200, 272, out="float32", bias=True),
        Config(24, 128, 3, swap=True),
    ),
    "e4m3-one-warpgroup": (problem(70, 136, 384, E4M3), Config(64, 128, 3, warpgroups=1)),
    "e4m3-two-rows-of-tiles": (problem(200, 72, 256, E4M3), Config(256, 64, 3)),
    "e4m3-swap-split": (
        problem(16, 200, 592, E4M3, bias=True),
        Config(16, 128, 4, swap=True, split_k=2),
    ),
    "e4m3-split-uneven": (
        problem(9, 72, 640, E4M3, scales=("token", "tensor")),
        Config(16, 64, 3, swap=True, split_k=4, warpgroups=1),
    ),
    "int8-split": (problem(130, 136, 512, azp="token"), Config(128, 128, 3, split_k=2)),
    "e4m3-share-w": (problem(300, 136, 256, E4M3, bias=True), Config(128, 128, 3, cluster_m=2)),
    "e4m3-share-x": (problem(100, 304, 256, E4M3), Config(128, 128, 3, cluster_n=2)),
    "weights-first": (
        problem(9, 72, 400, bias=True),
        Config(16, 64, 6, swap=True, warpgroups=1, overlap=True, weights_first=True),
    ),
    "weights-first-many-tiles": (
        problem(300, 136, 640, E4M3),
        Config(128, 64, 3, cluster_m=2, overlap=True, weights_first=True),
    ),
    "block-weights-first": (
        problem(9, 136, 640, E4M3, scales=("group", "block")),
        Config(16, 64, 5, swap=True, split_k=2, warpgroups=1, overlap=True, weights_first=True),
    ),
    "e5m2-x": (problem(64, 136, 256, E5M2, w_dtype=E4M3), Config(64, 128, 3, swap=True)),
    "e5m2-w": (problem(70, 136, 256, E4M3, w_dtype=E5M2), Config(128, 64, 3)),
    "block": (
        problem(100, 208, 1024, E4M3, scales=("group", "block"), bias=True),
        Config(128, 128, 2),
    ),
    "block-one-product-at-a-time": (
        problem(200, 200, 1024, E4M3, scales=("group", "block"), bias=True),
        Config(128, 128, 3, in_flight=1),
    ),
    "block-two-rows-of-w": (
        problem(70, 200, 512, E4M3, scales=("group", "block")),
        Config(128, 192, 3),
    ),
    "block-tall": (
        problem(200, 136, 1024, E4M3, "float32", scales=("group", "block")),
        Config(256, 128, 2),
    ),
    "block-tall-many-tiles": (  # slots are numbers: a load of scales fills the ring once
        problem(300, 264, 1400 // 16 * 16, E4M3, scales=("group", "block")),
        Config(256, 128, 4),
    ),
    "block-tall-other-ring": (
        problem(300, 264, 1024, E4M3, scales=("group", "block")),
        Config(256, 128, 3),
    ),
    "block-head-other-ring": (  # K is no whole number of loads of scales
        problem(300, 264, 1168, E4M3, scales=("group", "block")),
        Config(256, 128, 3),
    ),
    "block-head-overlapped": (
        problem(300, 264, 1040, E4M3, scales=("group", "block")),
        Config(128, 96, 5),
    ),
    "block-head-only": (
        problem(300, 264, 272, E4M3, scales=("group", "block")),
        Config(256, 128, 4, overlap=True, weights_first=True),
    ),
    "block-one-step": (
        problem(300, 264, 96, E4M3, scales=("group", "block")),
        Config(128, 128, 4, cluster_m=2),
    ),
    "block-shared-x": (
        problem(130, 250 // 8 * 8, 640, E4M3, scales=("group", "block")),
        Config(128, 128, 3, cluster_n=2),
    ),
    "block-odd-k": (
        problem(40, 136, 592, E5M2, w_dtype=E4M3, scales=("group", "block"), bias=True),
        Config(64, 96, 3, warpgroups=1),
    ),
    "block-swap-uneven": (
        problem(9, 72, 1300 // 16 * 16, E4M3, scales=("group", "block")),
        Config(16, 64, 3, swap=True, split_k=2, warpgroups=1),
    ),
    "block-swap": (
        problem(24, 136, 2000, E4M3, scales=("group", "block")),
        Config(24, 128, 4, swap=True),
    ),
    "block-swap-split": (
        problem(24, 200, 1024, E4M3, "float32", scales=("group", "block")),
        Config(24, 64, 4, swap=True, split_k=2, warpgroups=1),
    ),
}


@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted_is_exact_and_free_of_races(name, rng):
    p, config = INTERPRETED[name]
    ops = operands(p, rng)
    with interpreted(num_sms=2):
        out = hopper.run(p, ops, config)
        assert_equal(out, exact(p, ops))


def test_a_block_with_several_tiles_keeps_the_ring_going(rng):
    p = problem(150, 200, 384, E4M3, bias=True)
    ops = operands(p, rng)
    with interpreted(num_sms=1):  # one block computes all eight tiles
        assert_equal(hopper.run(p, ops, Config(128, 64, 2, panel=1)), exact(p, ops))


def structs(p) -> ScaledMMOperands:
    """Shapes and dtypes of a problem's operands."""
    groups, blocks = -(-p.k // 128), -(-p.n // 128)
    f32, i32 = jnp.float32, jnp.int32
    s = jax.ShapeDtypeStruct
    x_scale = {"tensor": (1, 1), "token": (p.m, 1), "group": (p.m, groups)}[p.x_scale]
    w_scale = {"tensor": (1, 1), "channel": (p.n, 1), "block": (blocks, groups)}[p.w_scale]
    return ScaledMMOperands(
        s((p.m, p.k), p.x_dtype),
        s((p.n, p.k), p.w_dtype),
        s(x_scale, f32),
        s(w_scale, f32),
        s((p.n,), p.out_dtype) if p.bias else None,
        s((p.m, 1), i32) if p.azp == "token" else None,
        s((p.n,), i32) if p.azp else None,
    )


def lower(p, config=None):
    """Lowers for sm90 without a GPU; returns the program's text."""
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        assert trace_device().num_sms == 132
        traced = jax.jit(lambda ops: hopper.run(p, ops, config)).trace(structs(p))
        return traced.lower(lowering_platforms=("cuda",)).as_text()


SHAPES = [(1, 4096, 4096), (16, 28672, 4096), (64, 4096, 14336), (256, 8192, 8192)]
SHAPES += [(1024, 6144, 4096), (4096, 8192, 28672), (3, 200, 80), (777, 1000, 1040)]


@pytest.mark.parametrize("m, n, k", SHAPES)
@pytest.mark.parametrize("dtype", [INT8, E4M3])
def test_chosen_configs_lower_for_sm90(m, n, k, dtype):
    text = lower(problem(m, n, k, dtype, bias=True))
    assert text.count("mosaic_gpu") >= 1


@pytest.mark.parametrize("name", INTERPRETED)
def test_families_lower_for_sm90(name):
    assert "mosaic_gpu" in lower(*INTERPRETED[name])


@pytest.mark.parametrize("name", ["int8-wide-tile", "int8-swap-f32", "int8-split", "block"])
def test_shared_memory_is_what_the_plan_says(name):
    """The legality rule's arithmetic against the bytes that the lowered launch asks for."""
    p, config = INTERPRETED[name]
    text = kernel_texts(lambda ops: hopper.run(p, ops, config), structs(p))[0]
    names = re.search(r'gpu\.launch"?\(([^)]*)\)', text).group(1).split(",")
    constant = r'{} = "[a-z_.]*arith.constant"\(\) {{value = (\d+) : i32}}'
    found = [re.search(constant.format(re.escape(name.strip())), text) for name in names]
    asked = max(int(match.group(1)) for match in found if match)
    plan = Plan(p, config)
    slots = plan.out_slots(H200.smem_bytes)
    planned = plan.smem_without_staging + -(-slots * plan.out_slot_bytes // 1024) * 1024
    assert planned - 1024 <= asked <= planned


def test_one_launch_and_nothing_else_runs():
    p = problem(16, 4096, 4096, azp="token", bias=True)
    text = lower(p)
    assert text.count("mosaic_gpu") and "stablehlo.multiply" not in text
    assert "stablehlo.add" not in text and "stablehlo.pad" not in text


def test_every_candidate_of_some_shapes_lowers():
    """Every config that tuning can choose goes through Mosaic's lowering, not the chosen alone."""
    seen = set()
    rows, block = {}, {"scales": ("group", "block")}
    for m, scales in ((16, rows), (200, rows), (48, block), (600, block)):
        p = problem(m, 2048, 2048, E4M3, **scales)
        for config in tuning.candidates(p, H200):
            family = dataclasses.replace(config, stages=2, panel=1), p.x_scale
            if family in seen or config.cluster > 2 or config.cluster_n > 1:
                continue
            seen.add(family)
            assert "mosaic_gpu" in lower(p, config)
    assert len(seen) > 20


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"k": 4104}, "k % 16"),
        ({"n": 4100}, "n % 8"),
        ({"w_dtype": E4M3}, "both int8 or both float8"),
        ({"x_scale": "group"}, "128x128"),
        ({"x_dtype": E4M3, "w_dtype": E4M3, "azp": "static"}, "azp needs int8"),
    ],
)
def test_refusals_name_their_reason(change, reason):
    p = dataclasses.replace(problem(16, 4096, 4096), **change)
    support = hopper.supports(p, H200)
    assert not support and any(reason in r for r in support.reasons)


def test_refuses_other_devices():
    p = problem(16, 4096, 4096)
    assert hopper.supports(p, H200)
    for name in ("a100", "b200", "mi300x", "cpu"):
        assert "capability 9.x" in hopper.supports(p, DEVICES[name]).reasons[0]


def test_an_illegal_config_is_refused_before_anything_runs(rng):
    p = problem(256, 256, 512, E4M3)
    ops = operands(p, rng)
    cases = {
        "shared memory": Config(128, 256, 8),
        "accumulator registers": Config(256, 256, 2),
        "64 rows": Config(64, 128, 4),
        "without work": Config(128, 128, 2, split_k=8),
        "1, 2, 4 or 8": Config(128, 128, 2, split_k=4, cluster_m=4),
        "launch overlaps": Config(128, 128, 2, weights_first=True),
    }
    for words, config in cases.items():
        with interpreted(), pytest.raises(ValueError, match="config: illegal") as error:
            hopper.run(p, ops, config)
        assert words in str(error.value)


def test_register_budgets_fit_the_launched_pool():
    """More registers after `setmaxnreg` than were launched would hang the GPU."""
    p = problem(4096, 4096, 4096, E4M3)
    for warpgroups in (1, 2, 3, 4):
        config = Config(64 * warpgroups, 256, 2, warpgroups=warpgroups)
        loading, multiplying = Plan(p, config).register_split()
        launched = 65536 // (128 * (warpgroups + 1)) // 8 * 8 * (warpgroups + 1)
        assert loading + warpgroups * multiplying <= launched
        assert loading % 8 == 0 and multiplying % 8 == 0 and 24 <= multiplying <= 255


def test_through_the_public_op(rng):
    p = problem(6, 200, 256, E4M3, bias=True)
    ops = operands(p, rng)
    with interpreted():
        out = scaled_mm(
            ops.x.reshape(2, 3, p.k),
            ops.w,
            ops.x_scale,
            ops.w_scale,
            bias=ops.bias,
            implementation="hopper",
        )
        assert_equal(out.reshape(6, 200), exact(p, ops))

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm's Hopper kernels interpreted on a CPU, with race detection; one or two tiles each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels.mixed_mm import mixed_mm
from jaxkernels.mixed_mm.hopper_decode import DecodeConfig
from jaxkernels.mixed_mm.hopper_prefill import PrefillConfig
from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic.interpret import interpreted
from jaxkernels.quantized import dequantize
from jaxkernels.quantizer import quantize
from jaxkernels.scalar_types import scalar_types

from .mixed_mm_cases import (
    CASES,
    SHARDED,
    ZERO_POINTS,
    case_of,
    random_shard,
    random_weight,
    recovered,
)


def weight(rng, scalar_type, n, k, group, dtype=jnp.bfloat16):
    values = jnp.asarray(rng.normal(size=(n, k)), dtype)
    return quantize(values, scalar_type, group, zero_points=scalar_type in ZERO_POINTS)


def run(x, w, config, bias=None):
    with interpreted():
        out = mixed_mm(x, prepare(w), bias=bias, implementation="hopper", config=config)
        return np.asarray(out)


# Of the types with scales of x's dtype, each meets a group; the GPU's tests cover them all.
ONE_HOT = [
    (case, ("bfloat16", "float16")[i // 2 % 2], ("decode", "prefill")[i % 2])
    for i, case in enumerate(
        case for i, case in enumerate(CASES) if case.scale != "activation" or i % 4 == 0
    )
]


@pytest.mark.parametrize("case, dtype, kernel", ONE_HOT, ids=str)
def test_one_hot_rows_recover_each_weight_bit_for_bit(rng, case, dtype, kernel):
    n, k = 56, max(64, 2 * case.group)
    w = random_weight(rng, case, n, k, dtype)
    if kernel == "decode":
        wg_n = 1 if w.zero_point is None else 2  # TMA moves 128 bytes of zero points at a time
        scale_on = "weight" if case.group in (16, 32) else "accumulator"
        config = DecodeConfig(tile_m=64, wg_n=wg_n, tile_k=64, stages=2, scale_on=scale_on)
    else:
        scale_on, config = "weight", PrefillConfig(tile_m=64, wg_n=1, stages=2)
    got = run(jnp.eye(k, dtype=dtype), w, config)
    # By value: a sum starts at +0, so a weight of -0 (fp8 has one) comes out as +0.
    np.testing.assert_array_equal(np.asarray(got, np.float32), recovered(w, dtype, scale_on).T)


BOUNDED = {
    "decode, groups of 128, N and M ragged": (
        (13, 72, 256, 128, False),
        DecodeConfig(tile_m=16, wg_n=1, tile_k=128, stages=2),
    ),
    "decode, K split over warpgroups and blocks, with bias": (
        (9, 72, 512, 64, True),
        DecodeConfig(16, wg_n=1, wg_k=2, tile_k=128, stages=2, split_k=2),
    ),
    "decode, K not in whole stages": (
        (8, 64, 160, 32, False),
        DecodeConfig(tile_m=8, wg_n=1, tile_k=128, stages=4, scale_on="weight"),
    ),
    "decode, two tiles of x": (
        (20, 64, 128, -1, True),
        DecodeConfig(tile_m=16, wg_n=1, tile_k=64, stages=2),
    ),
    "prefill, more tiles than blocks, with bias": (
        (70, 200, 128, 64, True),
        PrefillConfig(tile_m=64, wg_n=1, stages=3),
    ),
    "prefill, x shared by a cluster": (
        (70, 400, 128, 128, True),
        PrefillConfig(tile_m=64, wg_n=2, stages=3, cluster_n=2),
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_close_to_float32(rng, name):
    (m, n, k, group, with_bias), config = BOUNDED[name]
    w = weight(rng, scalar_types.uint4b8, n, k, group)
    x = jnp.asarray(rng.normal(size=(m, k)), jnp.bfloat16)
    bias = jnp.asarray(rng.normal(size=n), jnp.bfloat16) if with_bias else None
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64).T
    exact = exact + (0 if bias is None else np.asarray(bias, np.float64))
    weights = dequantize(w, jnp.bfloat16)
    plain = jnp.dot(x, weights.T, preferred_element_type=jnp.float32).astype(jnp.float32)
    plain = (plain + (0 if bias is None else bias.astype(jnp.float32))).astype(jnp.bfloat16)
    allowed = 2 * np.abs(np.asarray(plain, np.float64) - exact).max() + 1e-5
    assert np.abs(run(x, w, config, bias).astype(np.float64) - exact).max() <= allowed


@pytest.mark.parametrize(
    "k, config",
    [
        (640, DecodeConfig(16, wg_n=1, tile_k=128, stages=2)),  # five stages, one a pass
        (1024, DecodeConfig(16, wg_n=1, wg_k=2, tile_k=256, stages=2)),  # four, all in one
        (1024, DecodeConfig(16, wg_n=1, tile_k=64, stages=4)),  # a group in two stages
        (768, DecodeConfig(32, wg_n=2, tile_k=128, stages=2)),  # six, two a pass
    ],
    ids=str,
)
@pytest.mark.parametrize("scalar_type", [scalar_types.uint4b8, scalar_types.uint4], ids=str)
def test_groups_on_accumulators_over_several_stages(rng, scalar_type, k, config):
    """Small integers and scales of powers of two: every sum is exact, in any order."""
    case = case_of(scalar_type, 128)
    w = random_weight(rng, case, 136, k)
    w = dataclasses.replace(w, scale=jnp.exp2(jnp.asarray(rng.integers(-2, 3, w.scale.shape))))
    w = dataclasses.replace(w, scale=w.scale.astype(jnp.bfloat16))
    x = jnp.asarray(rng.integers(-3, 4, (config.tile_m - 3, k)), jnp.bfloat16)
    expected = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64).T
    got = run(x, w, config).astype(np.float64)
    np.testing.assert_array_equal(got, np.asarray(jnp.asarray(expected, jnp.bfloat16), np.float64))


def test_act_order_is_a_gather_of_x(rng):
    n, k, group = 64, 256, 64
    w = weight(rng, scalar_types.int4, n, k, group)
    order = rng.permutation(k)
    g_idx = jnp.asarray((order // group).astype(np.int32))
    shuffled = jax.tree.map(lambda v: v, w)
    shuffled = type(w)(
        data=w.data, scale=w.scale, g_idx=g_idx, shape=w.shape, scalar_type=w.scalar_type,
        group_shape=w.group_shape,
    ).validate()  # fmt: skip
    x = jnp.asarray(rng.integers(-4, 5, (8, k)), jnp.bfloat16)
    config = DecodeConfig(tile_m=8, wg_n=1, tile_k=64, stages=2)
    expected = np.asarray(x, np.float64) @ np.asarray(dequantize(shuffled), np.float64).T
    got = run(x, shuffled, config).astype(np.float64)
    np.testing.assert_allclose(got, expected, rtol=2**-7, atol=2**-7 * np.abs(expected).max())


@pytest.mark.parametrize(
    "m, k, config",
    [
        (1, 512, DecodeConfig(8, wg_n=1, tile_k=128, stages=2)),
        (3, 512, DecodeConfig(8, wg_n=2, wg_k=2, tile_k=256, stages=4, scale_on="weight")),
        (8, 768, DecodeConfig(8, wg_n=1, wg_k=2, tile_k=128, stages=4)),
        (5, 1024, DecodeConfig(8, wg_n=1, tile_k=256, stages=2, split_k=2, overlap=False)),
    ],
    ids=str,
)
def test_columns_that_the_decode_kernel_picks_itself(rng, m, k, config):
    """One-hot rows come back as weights, bit for bit, whatever column each place asks for."""
    case = case_of(scalar_types.uint4b8, 128)
    w = random_weight(rng, case, 136, k, act_order=True)
    columns = rng.choice(k, m, replace=False)
    x = jnp.asarray(np.eye(k)[columns], jnp.bfloat16)
    got = run(x, w, dataclasses.replace(config, gather=True))
    expected = recovered(w, "bfloat16", config.scale_on)[:, columns].T
    np.testing.assert_array_equal(np.asarray(got, np.float32), expected)


@pytest.mark.parametrize(
    "m, act_order, config, reason",
    [
        (3, False, DecodeConfig(8, 1, 1, 128, 2, gather=True), "act-order alone"),
        (9, True, DecodeConfig(16, 1, 1, 128, 2, gather=True), "at most 8 rows"),
        (3, True, DecodeConfig(8, 1, 1, 64, 2, gather=True), "some for every thread"),
        (3, True, DecodeConfig(8, 1, 1, 512, 2, split_k=2, gather=True), "whole stages"),
    ],
)
def test_what_cannot_be_picked_is_refused(rng, m, act_order, config, reason):
    case = case_of(scalar_types.uint4b8, 128)
    w = random_weight(rng, case, 64, 512, act_order=act_order)
    with pytest.raises(ValueError, match=reason):
        run(jnp.ones((m, 512), jnp.bfloat16), w, config)


def test_groups_that_do_not_fill_a_tile(rng):
    """K of three and a half tiles: what is beyond has a scale in the weight's words, and no x."""
    case = next(c for c in CASES if c.scale == "float8_e8m0fnu")
    w = random_weight(rng, case, 56, 224)
    config = DecodeConfig(tile_m=64, wg_n=1, wg_k=2, tile_k=128, stages=2, scale_on="weight")
    got = run(jnp.eye(224, dtype=jnp.bfloat16), w, config)
    np.testing.assert_array_equal(np.asarray(got, np.float32), recovered(w, "bfloat16", "weight").T)


@pytest.mark.parametrize(
    "case, config",
    [
        (SHARDED[1], DecodeConfig(tile_m=64, wg_n=2, tile_k=64, stages=2, scale_on="weight")),
        (SHARDED[2], PrefillConfig(tile_m=64, wg_n=2, stages=2)),  # with zero points
    ],
    ids=str,
)
def test_a_shard_of_act_order(rng, case, config):
    n, k = 56, 128
    w = random_shard(rng, case, n, k)
    got = run(jnp.eye(k, dtype=jnp.bfloat16), w, config)
    np.testing.assert_array_equal(np.asarray(got, np.float32), recovered(w, "bfloat16", "weight").T)


def test_illegal_configs_are_refused_before_a_launch(rng):
    w = weight(rng, scalar_types.uint4b8, 64, 256, 32)
    x = jnp.zeros((4, 256), jnp.bfloat16)
    with pytest.raises(ValueError, match="groups under 64 need their scales on the weights"):
        run(x, w, DecodeConfig(tile_k=128, stages=2))
    with pytest.raises(ValueError, match="bytes of shared memory"):
        run(x, w, DecodeConfig(tile_k=512, stages=16, scale_on="weight"))


def test_unprepared_weights_are_refused_with_the_remedy(rng):
    w = weight(rng, scalar_types.uint4b8, 64, 128, 64)
    with interpreted(), pytest.raises(NotImplementedError, match="mixed_mm.prepare"):
        mixed_mm(jnp.ones((4, 128), jnp.bfloat16), w, implementation="hopper")

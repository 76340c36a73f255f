# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""w4a8_mm's Hopper kernel on a GPU: every product bit for bit, full shapes, repeatability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import w4a8_linear, w4a8_mm
from jaxkernels.mixed_mm import prepare_w4a8
from jaxkernels.mixed_mm.hopper_w4a8 import W4A8Config

from . import w4a8_cases as cases

pytestmark = pytest.mark.gpu

# One a path: one or two tiles a stage, K shared by warpgroups and blocks, x shared, walking blocks.
CONFIGS = [
    W4A8Config(16, 2, 1, 128, 4, overlap=True),
    W4A8Config(32, 1, 2, 256, 2, split_k=2, overlap=True),
    W4A8Config(64, 2, 1, 256, 2),
    W4A8Config(256, 2, 1, 128, 4, cluster_n=2, overlap=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_one_hot_rows_recover_every_product(rng, config):
    """All 16 codes times all finite e4m3 scales, negative and subnormal ones among them."""
    w = cases.every_product(rng)
    x = jnp.eye(256, dtype=jnp.float8_e4m3fn)
    how = dict(implementation="hopper", config=config)
    got = w4a8_mm(x, prepare_w4a8(w), jnp.float32(1), **how)
    np.testing.assert_array_equal(np.asarray(got, np.float64), cases.exact_values(w).T)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.tile_m <= 64], ids=str)
def test_int8_is_exact_where_float32_is(rng, config):
    """Scales that are powers of two: every sum is a float32 number, so the order cannot matter."""
    n, k = 200, 512
    w = cases.random_weight(rng, "int8", n, k)
    powers = jnp.asarray(2.0 ** rng.integers(-8, -4, w.scale.shape), jnp.bfloat16)
    w = type(w)(w.data, powers, shape=w.shape, scalar_type=w.scalar_type, group_shape=w.group_shape)
    x, _ = cases.random_x(rng, "int8", 130, k)
    how = dict(implementation="hopper", config=config)
    got = w4a8_mm(x, prepare_w4a8(w), jnp.float32(1), **how)
    expected = jnp.asarray(cases.exact(x, w, 1.0), jnp.float32).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


FULL = [("fp8", 1), ("fp8", 64), ("fp8", 257), ("int8", 13), ("int8", 300)]


@pytest.mark.parametrize("kind, m", FULL)
def test_full_shapes_with_the_tuned_config(rng, kind, m):
    n, k = 4232, 4224  # a ragged last tile
    w = cases.random_weight(rng, kind, n, k)
    x, x_scale = cases.random_x(rng, kind, m, k)
    bias = jnp.asarray(rng.normal(size=n), jnp.bfloat16)
    prepared = prepare_w4a8(w)
    got = w4a8_mm(x, prepared, x_scale, bias=bias, implementation="hopper")
    again = w4a8_mm(x, prepared, x_scale, bias=bias, implementation="hopper")
    np.testing.assert_array_equal(np.asarray(got), np.asarray(again))
    exact = w4a8_mm(x, w, x_scale, bias=bias, implementation="reference", out_dtype=jnp.float32)
    error = jnp.linalg.norm(got.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
    # bfloat16's rounding gives 0.0017; the fp8 accumulator's 14 bits add to it with K.
    assert error < (0.002 if kind == "int8" else 0.004)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_layer_on_16_bit_activations(rng, kind):
    w = cases.random_weight(rng, kind, 256, 512)
    x = jnp.asarray(rng.normal(size=(2, 5, 512)), jnp.bfloat16)
    got = jax.jit(lambda x, w: w4a8_linear(x, w, implementation="hopper"))(x, prepare_w4a8(w))
    plain = w4a8_linear(x, w, implementation="xla", out_dtype=jnp.float32)
    error = jnp.linalg.norm(got.astype(jnp.float32) - plain) / jnp.linalg.norm(plain)
    assert got.shape == (2, 5, 256) and error < 0.004

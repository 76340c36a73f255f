# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The Hopper scaled GEMM on a GPU: exact, deterministic, at full shapes and at every edge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels.mosaic.device import trace_device
from jaxkernels.scaled_mm import hopper, scaled_mm
from jaxkernels.scaled_mm.hopper_config import Config
from jaxkernels.tuning import scaled_mm as tuning

from .scaled_mm_cases import E4M3, E5M2, INT8, assert_equal, exact, operands, problem
from .test_scaled_mm_hopper import INTERPRETED

# A kernel that hangs must cost seconds of a GPU, not minutes.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]


def run(p, ops, config=None):
    return jax.jit(lambda ops: hopper.run(p, ops, config))(ops)


@pytest.mark.parametrize("name", INTERPRETED)
def test_every_family_is_exact(name, rng):
    p, config = INTERPRETED[name]
    ops = operands(p, rng)
    assert_equal(run(p, ops, config), exact(p, ops))


BLOCK = {"scales": ("group", "block")}
FULL = {
    "decode": problem(1, 4096, 4096, INT8, azp="token", bias=True),
    "decode-long": problem(7, 2048, 14336, E4M3, bias=True),
    "decode-wide": problem(16, 28672, 1024, E4M3),
    "narrow": problem(33, 6144, 2048, INT8, azp="static"),
    "middle": problem(129, 3000, 2064, INT8, bias=True),
    "middle-f32": problem(250, 3004, 2064, E4M3, "float32", bias=True),
    "middle-f16": problem(512, 1024, 4096, E4M3, "float16"),
    "mixed-fp8": problem(300, 1024, 2048, E5M2, w_dtype=E4M3),
    "large": problem(1025, 4104, 1040, E4M3, bias=True),
    "large-int8": problem(2048, 2048, 1024, INT8, azp="token"),
    "block-decode": problem(16, 2048, 7168, E4M3, **BLOCK),
    "block-middle": problem(200, 2112, 2048, E4M3, bias=True, **BLOCK),
    "block-large": problem(1500, 1544, 1024, E4M3, "float32", **BLOCK),
    "block-larger": problem(4100, 2000, 1536, E4M3, bias=True, **BLOCK),
    "block-odd-k": problem(130, 1544, 1168, E5M2, w_dtype=E4M3, **BLOCK),
    "block-large-odd-k": problem(4100, 1544, 8960, E4M3, **BLOCK),  # several tiles a block
    "block-short-odd-k": problem(4100, 4104, 768, E4M3, bias=True, **BLOCK),
    "block-decode-odd-k": problem(3, 1032, 8960, E4M3, **BLOCK),
}


@pytest.mark.parametrize("name", FULL)
def test_the_chosen_config_is_exact_and_deterministic(name, rng):
    p = FULL[name]
    ops = operands(p, rng, limit=4)
    first = run(p, ops)
    assert_equal(first, exact(p, ops))
    again = run(p, ops)
    assert bool((first == again).all())


OTHERS = [
    "decode-long",
    "middle-f32",
    "large-int8",
    "block-middle",
    "block-larger",
    "block-large-odd-k",
    "block-short-odd-k",
]


@pytest.mark.parametrize("name", OTHERS)
def test_other_candidates_agree_to_the_bit(name, rng):
    """Exact sums leave one right answer, whatever the tiles, splits and clusters."""
    p = FULL[name]
    ops = operands(p, rng, limit=4)
    expected = exact(p, ops)
    ranked = tuning.ranked(p, trace_device())
    for _, config in ranked[:: max(1, len(ranked) // 4)][:4]:
        assert_equal(run(p, ops, config), expected)


@pytest.mark.parametrize("k", [1040, 1168, 1408, 272])  # the sums begin with 1, 2 or 3 steps
@pytest.mark.parametrize(
    "config",
    [
        Config(256, 128, 4, cluster_n=2),
        Config(256, 128, 4, overlap=True, weights_first=True),
        Config(256, 128, 3),
        Config(128, 128, 6, cluster_m=2),
    ],
    ids=["pairs", "weights-first", "other-ring", "overlapped"],
)
def test_block_scales_of_odd_k_over_several_tiles(config, k, rng):
    p = problem(2100, 4104, k, E4M3, **BLOCK)
    ops = operands(p, rng, limit=4)
    first = run(p, ops, config)
    assert_equal(first, exact(p, ops))
    assert bool((first == run(p, ops, config)).all())


def test_random_fp8_is_as_close_as_plain_arithmetic(rng):
    """At most twice the error of a float32 product of the same operands, rounded the same way."""
    m, n, k = 256, 1024, 4096
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.float32).astype(E4M3)
    w = jnp.asarray(rng.standard_normal((n, k)), jnp.float32).astype(E4M3)
    truth = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T

    def error(out):
        return np.abs(np.asarray(out.astype(jnp.float32), np.float64) - truth).max()

    ours = error(scaled_mm(x, w, implementation="hopper"))
    plain = error(scaled_mm(x, w, implementation="reference"))
    assert ours <= 2 * plain + 1e-5


def test_dependent_launches_wait_for_each_other(rng):
    """Kernels that start early on a stream still see the results of the ones before them."""
    p = problem(16, 1024, 1024, INT8, "float32", scales=("tensor", "tensor"))
    config = Config(16, 64, 8, swap=True, warpgroups=1, overlap=True)
    ops = operands(p, rng)
    ops = ops._replace(x_scale=jnp.full((1, 1), 2.0**-9), w_scale=jnp.full((1, 1), 2.0**-3))

    def chain(multiply):
        out = ops.x
        for _ in range(12):
            product = multiply(ops._replace(x=out))
            out = jnp.clip(jnp.round(product), -128, 127).astype(jnp.int8)
        return product

    def plain(ops):
        total = jnp.dot(ops.x, ops.w.T, preferred_element_type=jnp.int32)
        return total.astype(jnp.float32) * 2.0**-12

    ours = jax.jit(lambda: chain(lambda ops: hopper.run(p, ops, config)))
    expected = jax.jit(lambda: chain(plain))()
    for _ in range(5):
        assert bool((ours() == expected).all())


def test_more_elements_than_an_int32_counts():
    m, n, k = 2**20, 64, 2064  # x has 2.16e9 elements

    @functools.partial(jax.jit, static_argnums=0)  # one fusion: the iotas are never stored
    def rows_of(count, a, b, modulus):
        i = jax.lax.broadcasted_iota(jnp.int32, (count, k), 0)
        j = jax.lax.broadcasted_iota(jnp.int32, (count, k), 1)
        return ((i * a + j * b) % modulus - modulus // 2).astype(jnp.int8)

    x, w = rows_of(m, 7, 3, 17), rows_of(n, 0, 1, 5)
    out = scaled_mm(x, w, implementation="hopper", out_dtype=jnp.float32)
    for rows in (slice(0, 64), slice(m - 64, m)):
        expected = np.asarray(x[rows], np.float64) @ np.asarray(w, np.float64).T
        assert_equal(out[rows], expected)

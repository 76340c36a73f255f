# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""w4a8_mm and w4a8_linear in plain JAX, split scales, and the prepared layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels import (
    dequantize,
    mixed_mm,
    quantize,
    quantize_fp8,
    quantize_int8,
    unprepare,
    w4a8_linear,
    w4a8_mm,
)
from jaxkernels.mixed_mm import prepare_w4a8, split_scales
from jaxkernels.mixed_mm.w4a8 import fp8_weights
from jaxkernels.mosaic import convert8
from jaxkernels.quantized import GroupShape, QuantizedTensor, pack_nibbles
from jaxkernels.scalar_types import scalar_types
from jaxkernels.sharding import local, partition_specs

from . import w4a8_cases as cases


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("kind, group", [("fp8", 128), ("fp8", 32), ("int8", 128), ("int8", -1)])
def test_the_formula(rng, kind, group, implementation):
    w = cases.random_weight(rng, kind, 40, 256, group, scalar_types.uint4b8)
    x, x_scale = cases.random_x(rng, kind, 3, 2, 256)
    bias = jnp.asarray(rng.normal(size=40), jnp.bfloat16)
    how = dict(bias=bias, out_dtype=jnp.float32, implementation=implementation)
    got = np.asarray(w4a8_mm(x, w, x_scale, **how), np.float64)
    expected = cases.exact(x, w, x_scale, bias)
    assert got.shape == (3, 2, 40)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_products_are_rounded_once_to_e4m3(rng):
    """Every code times every finite scale, against rounding by its definition."""
    w = cases.every_product(rng)
    got = np.asarray(fp8_weights(w), np.float64)
    np.testing.assert_array_equal(got, cases.exact_values(w))
    # The association matters: not the code in e4m3 times the scale afterwards.
    unrounded = cases.codes_of(w) * np.asarray(w.scale, np.float64).repeat(128, 1)
    assert (got != unrounded).mean() > 0.1


def test_split_scales_as_upstream(rng):
    """c = max |s| / 448, f = fp8(s / c), then f / 8 in fp8 and 8 c; no product leaves e4m3."""
    scale = jnp.asarray(rng.normal(size=(24, 4)), jnp.bfloat16)
    scale = scale.at[3].set(0).at[5, 1:].set(1e-9)
    data = jnp.asarray(rng.integers(0, 256, (24, 256), dtype=np.uint8))
    w = QuantizedTensor(
        data, scale, shape=(24, 512), scalar_type=scalar_types.int4, group_shape=GroupShape(1, 128)
    ).validate()
    split = split_scales(w).validate()
    s = np.asarray(scale, np.float32)
    c = np.maximum(np.abs(s).max(1, keepdims=True) / np.float32(448), np.float32(1 / (448 * 512)))
    first = cases.round_to_e4m3((s / c).astype(np.float64))
    f = cases.round_to_e4m3(first / 8)
    np.testing.assert_array_equal(np.asarray(split.global_scale), c * 8)
    np.testing.assert_array_equal(np.asarray(split.scale, np.float64), f)
    assert np.abs(np.asarray(split.scale, np.float32)).max() * 8 <= 448
    assert split.group_size == 128 and split.data is w.data or (split.data == w.data).all()


@pytest.mark.parametrize("kind", cases.DTYPES)
def test_a_layer_is_quantization_and_product(rng, kind):
    w = cases.random_weight(rng, kind, 48, 256)
    x = jnp.asarray(rng.normal(size=(5, 256)), jnp.bfloat16)
    q, x_scale = quantize_fp8(x) if kind == "fp8" else quantize_int8(x)[:2]
    expected = w4a8_mm(q, w, x_scale, out_dtype=jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(w4a8_linear(x, w)), np.asarray(expected))
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64).T
    error = np.linalg.norm(np.asarray(expected, np.float64) - exact) / np.linalg.norm(exact)
    assert error < (0.05 if kind == "fp8" else 0.02)


def test_the_gradient_is_straight_through(rng):
    w = cases.random_weight(rng, "int8", 24, 256)
    x = jnp.asarray(rng.normal(size=(3, 256)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=24), jnp.float32)
    ours = jax.grad(lambda x, b: (w4a8_linear(x, w, bias=b) * 2).sum(), (0, 1))(x, bias)
    plain = jax.grad(lambda x, b: (mixed_mm(x, w, bias=b) * 2).sum(), (0, 1))(x, bias)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-4)


def test_vmap_is_a_loop(rng):
    w = cases.random_weight(rng, "fp8", 16, 128)
    x, x_scale = cases.random_x(rng, "fp8", 3, 2, 128)
    batched = jax.vmap(lambda x, s: w4a8_mm(x, w, s))(x, x_scale)
    for i in range(3):
        one = w4a8_mm(x[i], w, x_scale[i])
        np.testing.assert_array_equal(np.asarray(batched[i]), np.asarray(one))


def test_rows_of_a_weight_over_devices(rng):
    """Cut along N, a weight's second scales go with its rows; groups of 128 are cut along K."""
    mesh = jax.sharding.AbstractMesh((2,), ("model",))
    w = cases.random_weight(rng, "fp8", 128, 512)
    spec = jax.sharding.PartitionSpec
    for weight in (w, prepare_w4a8(w)):
        rows = partition_specs(weight, mesh, n="model")
        assert rows.global_scale == spec("model", None)
        assert partition_specs(weight, mesh, k="model").global_scale == spec()
        half = jax.tree.map(lambda a, s: a[: a.shape[0] // 2] if s[0] else a, weight, rows)
        x, x_scale = cases.random_x(rng, "fp8", 3, 512)
        whole = w4a8_mm(x, weight, x_scale)
        np.testing.assert_array_equal(
            np.asarray(w4a8_mm(x, local(half), x_scale)), np.asarray(whole[:, :64])
        )


def test_no_rows(rng):
    w = cases.random_weight(rng, "int8", 16, 128)
    assert w4a8_mm(jnp.zeros((0, 128), jnp.int8), w, jnp.float32(1)).shape == (0, 16)


def test_mistakes_are_named(rng):
    w, w8 = cases.random_weight(rng, "int8", 16, 256), cases.random_weight(rng, "fp8", 16, 256)
    x, x_scale = cases.random_x(rng, "int8", 4, 256)
    with pytest.raises(TypeError, match="x: expected dtype float8_e4m3fn or int8"):
        w4a8_mm(x.astype(jnp.bfloat16), w, x_scale)
    with pytest.raises(ValueError, match="w: expected e4m3 scales .*split_scales"):
        w4a8_mm(x.astype(jnp.float8_e4m3fn), w, x_scale)
    with pytest.raises(ValueError, match="w: expected 16- or 32-bit scales for int8"):
        w4a8_mm(x, w8, x_scale)
    with pytest.raises(ValueError, match="x_scale: expected one number, or"):
        w4a8_mm(x, w, x_scale[:2])
    with pytest.raises(ValueError, match="w: scales cannot be split: .*second-level"):
        split_scales(w8)
    zp = quantize(jnp.ones((8, 128)), scalar_types.uint4, 128, zero_points=True)
    with pytest.raises(ValueError, match="w: expected int4 or uint4b8 without zero points"):
        w4a8_mm(x[:, :128], zp, x_scale)
    with pytest.raises(ValueError, match="zero points have no place"):
        prepare_w4a8(zp)
    with pytest.raises(ValueError, match="groups of 128, got group of 64"):
        prepare_w4a8(cases.random_weight(rng, "int8", 16, 256, 64))


# -- the prepared layout ------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(1, 140),
    groups=st.integers(1, 4),
    kind=st.sampled_from(["fp8", "int8"]),
    scalar_type=st.sampled_from([scalar_types.int4, scalar_types.uint4b8]),
    seed=st.integers(0, 2**31),
)
def test_unprepare_gives_back_every_bit(n, groups, kind, scalar_type, seed):
    rng = np.random.default_rng(seed)
    scale = jnp.asarray(rng.normal(size=(n, groups)), jnp.bfloat16)
    w = QuantizedTensor(
        pack_nibbles(jnp.asarray(rng.integers(0, 16, (n, 128 * groups), dtype=np.uint8))),
        scale.astype(jnp.float8_e4m3fn) if kind == "fp8" else scale,
        global_scale=jnp.asarray(rng.normal(size=(n, 1)), jnp.float32) if kind == "fp8" else None,
        shape=(n, 128 * groups),
        scalar_type=scalar_type,
        group_shape=GroupShape(1, 128),
    ).validate()
    back = unprepare(prepare_w4a8(w).validate())
    assert jax.tree.structure(back) == jax.tree.structure(w)
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(w), strict=True):
        left, right = (np.asarray(v).view(np.uint8) for v in (left, right))
        np.testing.assert_array_equal(left, right)


def test_prepared_bytes_are_the_packed_bytes(rng):
    w = cases.random_weight(rng, "fp8", 256, 512)
    assert prepare_w4a8(w).nbytes == w.nbytes


# By h, s and lo: what the docstring's table says a code of the e4m3 order means.
TABLE = [1, 2, 3, 4, -5, -6, -7, -8, 0, 7, 6, 5, -4, -3, -2, -1]


@pytest.mark.parametrize("kind", ["e4m3", "int8"])
def test_words_lie_where_the_docstring_says(rng, kind):
    """Element by element, by the formulas, against the vectorized packing."""
    values = rng.integers(-8, 8, (64, 128)).astype(np.int8)
    words = np.asarray(convert8.pack_tiles8(jnp.asarray(values), kind)).view(np.uint32)
    thread_words = words.reshape(2, 128, 4)  # register, thread, word of 16 bytes
    for n in range(64):
        for k in range(128):
            warp, half, row = n // 16, n // 8 % 2, n % 8
            s, upper, quad, byte = k // 32, k // 16 % 2, k // 4 % 4, k % 4
            word = 2 * s + half
            shift = 16 * upper + 4 * byte if kind == "e4m3" else 8 * byte + 4 * upper
            stored = thread_words[word // 4, 32 * warp + 4 * row + quad, word % 4] >> shift & 15
            value = TABLE[stored] if kind == "e4m3" else (int(stored) ^ 8) - 8
            assert value == values[n, k], (n, k)


def test_two_byte_permutations_make_each_value():
    """The docstring's claim, with PRMT as PTX defines it, for integers in place of products."""

    def prmt(table, selector):
        byte = table[selector & 7]
        return (0xFF if byte & 0x80 else 0) if selector & 8 else byte

    a = [value & 0xFF for value in TABLE[:8]]
    b = [value & 0xFF if value >= 0 else ~value & 0xFF for value in TABLE[:7:-1]]
    made = [prmt(a, code) ^ prmt(b, ~code & 15) for code in range(16)]
    assert [v - 256 if v > 127 else v for v in made] == TABLE

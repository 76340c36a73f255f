# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""scaled_mm and w8a8_linear: exact where integers allow it, bounded elsewhere, on every scheme."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels import (
    QuantizedTensor,
    dequantize,
    quantize,
    quantize_fp8,
    quantize_int8,
    scalar_types,
    scaled_mm,
    w8a8_linear,
)

F = np.float32
FP8 = ml_dtypes.float8_e4m3fn
both = pytest.mark.parametrize("implementation", ["xla", "reference"])


def int8(rng, *shape):
    return rng.integers(-128, 128, shape, dtype=np.int8)


def fp8_integers(rng, *shape):
    return rng.integers(-8, 9, shape).astype(FP8)


def powers(rng, *shape):
    """Scales that multiply without rounding, negative ones among them, as upstream's tests do."""
    return (np.exp2(rng.integers(-4, 3, shape)) * rng.choice([-1, 1], shape)).astype(F)


def repeat(scale, m, k):
    """A scale [., .] as one value an element, blocks of 128 cut at the edges."""
    rows = np.repeat(scale, 128 if scale.shape[0] not in (1, m) else m // scale.shape[0], 0)[:m]
    if scale.shape[1] == 1:
        return np.broadcast_to(rows, (m, k))
    return np.repeat(rows, 128, 1)[:, :k]


def exactly(x, w, x_scale, w_scale, bias=0.0):
    """float64: exact for what these tests multiply."""
    x = x.astype(np.float64) * repeat(x_scale, *x.shape)
    w = w.astype(np.float64) * repeat(w_scale, *w.shape)
    return x @ w.T + np.asarray(bias, np.float64)


# -- exact --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("operands", ["int8", "fp8"])
@pytest.mark.parametrize("x_scale", ["tensor", "token"])
@pytest.mark.parametrize("w_scale", ["tensor", "channel"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_mix_of_scales_is_exact(rng, implementation, operands, x_scale, w_scale, bias):
    m, n, k = 9, 21, 131
    make = int8 if operands == "int8" else fp8_integers
    x, w = make(rng, m, k), make(rng, n, k)
    s_x = powers(rng, m if x_scale == "token" else 1, 1)
    s_w = powers(rng, n if w_scale == "channel" else 1, 1)
    # Whole multiples of the smallest scale product, so that the sum is exact in float32 too.
    b = (rng.integers(-1000, 1000, n) / 256).astype(F) if bias else None
    out = scaled_mm(x, w, s_x, s_w, bias=b, out_dtype=jnp.float32, implementation=implementation)
    np.testing.assert_array_equal(out, exactly(x, w, s_x, s_w, 0 if b is None else b).astype(F))


@both
def test_int8_sums_pass_what_float32_holds(rng, implementation):
    """K = 5000 of extremes: sums up to 8e7, odd ones included, need all of int32."""
    x = rng.choice(np.array([-128, 127], np.int8), (3, 5000))
    w = np.concatenate([x[:2], rng.choice(np.array([-128, 127], np.int8), (5, 5000))])
    out = scaled_mm(x, w, out_dtype=jnp.float32, implementation=implementation)
    exact = x.astype(np.int64) @ w.T.astype(np.int64)
    assert np.abs(exact).max() > 2**24
    np.testing.assert_array_equal(out, exact.astype(F))


@both
@pytest.mark.parametrize("how", ["static", "token", "one number"])
def test_zero_points_are_exact(rng, implementation, how):
    m, n, k = 6, 10, 300
    x, w = int8(rng, m, k), int8(rng, n, k)
    azp = rng.integers(-200, 200, (m if how == "token" else 1, 1)).astype(np.int32)
    row_sums = w.astype(np.int32).sum(1)
    exact = (x.astype(np.int64) - azp) @ w.T.astype(np.int64)
    azp_adj = row_sums * azp[0] if how == "static" else row_sums
    given_azp = None if how == "static" else azp
    out = scaled_mm(
        x, w, azp=given_azp, azp_adj=azp_adj, out_dtype=jnp.float32, implementation=implementation
    )
    np.testing.assert_array_equal(out, exact.astype(F))
    if how != "static":
        computed = scaled_mm(x, w, azp=azp, out_dtype=jnp.float32, implementation=implementation)
        np.testing.assert_array_equal(computed, out)


@both
def test_azp_product_is_not_rounded(rng, implementation):
    """azp * azp_adj beyond 2^24: upstream's Triton class rounds it to bfloat16 first."""
    x = np.full((1, 4096), 127, np.int8)
    w = np.full((1, 4096), 127, np.int8)
    w[0, 0] = 126
    azp = np.array([[126]], np.int32)
    out = scaled_mm(x, w, azp=azp, out_dtype=jnp.float32, implementation=implementation)
    assert out.item() == w.astype(np.int64).sum()


@both
@pytest.mark.parametrize("size", [(5, 128, 256), (3, 200, 300), (4, 130, 90), (7, 1, 513)])
def test_block_scales(rng, implementation, size):
    m, n, k = size
    x, w = fp8_integers(rng, m, k), fp8_integers(rng, n, k)
    s_x = powers(rng, m, -(-k // 128))
    s_w = powers(rng, -(-n // 128), -(-k // 128))
    out = scaled_mm(x, w, s_x, s_w, out_dtype=jnp.float32, implementation=implementation)
    np.testing.assert_array_equal(out, exactly(x, w, s_x, s_w).astype(F))


def test_scales_of_one_byte(rng):
    """UE8M0: powers of two, as float8_e8m0fnu."""
    x, w = fp8_integers(rng, 3, 256), fp8_integers(rng, 130, 256)
    scales = abs(powers(rng, 3, 2)), abs(powers(rng, 2, 2))
    small = (jnp.asarray(s).astype(jnp.float8_e8m0fnu) for s in scales)
    expected = scaled_mm(x, w, *scales, out_dtype=jnp.float32)
    np.testing.assert_array_equal(scaled_mm(x, w, *small, out_dtype=jnp.float32), expected)


@both
@pytest.mark.parametrize("scales", ["group x channel", "token x block", "tensor x block"])
def test_block_scales_mix_with_others(rng, implementation, scales):
    m, n, k = 5, 140, 300
    x, w = fp8_integers(rng, m, k), fp8_integers(rng, n, k)
    s_x = powers(rng, *{"group": (m, 3), "token": (m, 1), "tensor": (1, 1)}[scales.split()[0]])
    s_w = powers(rng, *((n, 1) if "channel" in scales else (2, 3)))
    out = scaled_mm(x, w, s_x, s_w, out_dtype=jnp.float32, implementation=implementation)
    np.testing.assert_array_equal(out, exactly(x, w, s_x, s_w).astype(F))


def test_the_gpu_form_of_the_block_sum_agrees(rng):
    """Block by block, as XLA runs it elsewhere than on CPUs; here on its own."""
    from jaxkernels.problem import ScaledMMOperands, ScaledMMProblem
    from jaxkernels.scaled_mm import xla

    m, n, k = 5, 140, 300
    x, w = fp8_integers(rng, m, k), fp8_integers(rng, n, k)
    s_x, s_w = powers(rng, m, 3), powers(rng, 2, 3)
    problem = ScaledMMProblem(
        m, n, k, "float8_e4m3fn", "float8_e4m3fn", "float32", "group", "block"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "platform_dependent", lambda *a, cpu, default: default(*a))
        out = xla.run(problem, ScaledMMOperands(*map(jnp.asarray, (x, w, s_x, s_w))))
    np.testing.assert_array_equal(out, exactly(x, w, s_x, s_w).astype(F))


# -- bounded ------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("operands", ["int8", "fp8", "e5m2"])
def test_error_is_that_of_one_rounding(rng, operands, out_dtype):
    """Against float64: half a unit of the output's last place, plus float32's noise."""
    m, n, k = 33, 40, 257
    if operands == "int8":
        x, w = int8(rng, m, k), int8(rng, n, k)
    else:
        dtype = FP8 if operands == "fp8" else ml_dtypes.float8_e5m2
        x, w = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((n, k)).astype(FP8)
    s_x = rng.uniform(0.001, 0.01, (m, 1)).astype(F)
    s_w = rng.uniform(0.001, 0.01, (n, 1)).astype(F)
    bias = rng.standard_normal(n).astype(out_dtype)
    out = np.asarray(scaled_mm(x, w, s_x, s_w, bias=bias, out_dtype=out_dtype), np.float64)
    exact = exactly(x, w, s_x, s_w, bias.astype(F))
    plain = np.asarray(exact.astype(out_dtype), np.float64)
    # Hopper's fp8 accumulators keep about 14 bits; everything else is float32.
    fast_fp8 = operands != "int8" and jax.default_backend() == "gpu"
    bits = 13 if fast_fp8 else 20
    noise = np.abs(x.astype(F) * s_x) @ np.abs(w.astype(F) * s_w).T * 2.0**-bits
    assert (np.abs(out - exact) <= 2 * np.abs(plain - exact) + noise).all()


# -- structure ----------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(0, 9),
    k=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(leading, n, k, seed):
    rng = np.random.default_rng(seed)
    x, w = int8(rng, *leading, k), int8(rng, n, k)
    s_x = powers(rng, *leading, 1)
    out = scaled_mm(x, w, s_x, out_dtype=jnp.float32)
    exact = np.einsum("...k,nk->...n", x.astype(np.float64) * s_x, w.astype(np.float64))
    assert out.shape == (*leading, n)
    np.testing.assert_array_equal(out, exact.astype(F))


def test_scales_in_every_accepted_shape(rng):
    x, w = int8(rng, 2, 3, 256), int8(rng, 200, 256)
    s_x, s_w = powers(rng, 6, 1), powers(rng, 200, 1)
    want = scaled_mm(x, w, s_x, s_w)
    for a in (s_x[:, 0], s_x.reshape(2, 3, 1)):
        for b in (s_w[:, 0], s_w.T):
            np.testing.assert_array_equal(scaled_mm(x, w, a, b), want)
    one = scaled_mm(x, w, 0.5, 2.0)
    for a in (F(0.5), np.full(1, 0.5, F), np.full((1, 1), 0.5, F)):
        np.testing.assert_array_equal(scaled_mm(x, w, a, F(2)), one)
    groups = powers(rng, 6, 2)
    np.testing.assert_array_equal(scaled_mm(x, w, groups.reshape(2, 3, 2)), scaled_mm(x, w, groups))


def test_transformations(rng):
    x, w = int8(rng, 4, 5, 64), int8(rng, 12, 64)
    s_x, s_w, azp = powers(rng, 4, 5, 1), powers(rng, 12, 1), rng.integers(-9, 9, (4, 5, 1))
    azp = azp.astype(np.int32)

    def op(x, s_x, azp):
        return scaled_mm(x, w, s_x, s_w, azp=azp, out_dtype=jnp.float32)

    want = op(x, s_x, azp)
    np.testing.assert_array_equal(jax.jit(op)(x, s_x, azp), want)
    np.testing.assert_array_equal(jax.vmap(op)(x, s_x, azp), want)
    weights = int8(rng, 4, 12, 64)
    batched = jax.vmap(lambda x, w: scaled_mm(x, w, out_dtype=jnp.float32))(x, weights)
    for i in range(4):
        np.testing.assert_array_equal(
            batched[i], scaled_mm(x[i], weights[i], out_dtype=jnp.float32)
        )


def test_quantized_tensors_bring_their_scale(rng):
    weight = rng.standard_normal((200, 256)).astype(F)
    x, x_scale, _ = quantize_int8(rng.standard_normal((4, 256)).astype(F))
    for granularity in ("tensor", "channel"):
        w = quantize(weight, scalar_types.int8, granularity=granularity)
        np.testing.assert_array_equal(
            scaled_mm(x, w, x_scale), scaled_mm(x, w.data, x_scale, w.scale)
        )
    w = quantize(weight, scalar_types.float8_e4m3fn, 128, granularity="block")
    x = fp8_integers(rng, 4, 256)
    np.testing.assert_array_equal(scaled_mm(x, w), scaled_mm(x, w.data, None, w.scale))


# -- w8a8_linear --------------------------------------------------------------------------------

SCHEMES = {
    "int8": dict(scalar_type=scalar_types.int8),
    "int8-asym": dict(scalar_type=scalar_types.int8),
    "fp8": dict(scalar_type=scalar_types.float8_e4m3fn),
    "fp8-tensor": dict(scalar_type=scalar_types.float8_e4m3fn, granularity="tensor"),
    "fp8-group": dict(scalar_type=scalar_types.float8_e4m3fn, group_size=128, granularity="block"),
}


@pytest.mark.parametrize("activation", SCHEMES)
def test_w8a8_linear_is_close_to_the_layer_it_stands_for(rng, activation):
    weight = rng.standard_normal((48, 192)).astype(F)
    bias = rng.standard_normal(48).astype(F)
    x = rng.standard_normal((2, 9, 192)).astype(F) + F(0.5)
    w = quantize(weight, **SCHEMES[activation])
    out = w8a8_linear(x, w, activation=activation, bias=bias)
    want = x @ weight.T + bias
    # Root mean square error of a product of two rounded normal numbers, and of their sum.
    sigma = (0.012 if activation.startswith("int8") else 0.04) * np.sqrt(192)
    error = np.abs(out - want)
    assert out.shape == want.shape and out.dtype == F
    assert error.max() < 6 * sigma
    assert sigma / 8 < error.mean() < 1.5 * sigma  # neither wrong nor left unquantized


def test_w8a8_linear_static_asymmetric(rng):
    weight, x = rng.standard_normal((8, 32)).astype(F), rng.uniform(0, 4, (5, 32)).astype(F)
    w = quantize(weight, scalar_types.int8)
    row_sums = np.asarray(w.data, np.int32).sum(1)
    static = dict(activation="int8-asym", x_scale=F(4 / 255), azp=-128)
    out = w8a8_linear(x, w, **static)
    codes = np.clip(np.rint(x * (F(1) / F(4 / 255))) - 128, -128, 127)
    exact = ((codes + 128) * F(4 / 255)).astype(np.float64) @ np.asarray(dequantize(w)).T
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(w8a8_linear(x, w, azp_adj=-128 * row_sums, **static), out)


def test_w8a8_linear_caps_scales(rng):
    weight, x = rng.standard_normal((8, 32)).astype(F), rng.standard_normal((5, 32)).astype(F)
    w = quantize(weight, scalar_types.float8_e4m3fn)
    q, scale = quantize_fp8(x, scale_ub=F(0.5))
    assert np.asarray(scale).max() <= F(0.5) / F(448)
    out = w8a8_linear(x, w, scale_ub=F(0.5))
    np.testing.assert_array_equal(out, scaled_mm(q, w, scale, out_dtype=F))
    for more in ({"activation": "fp8-tensor"}, {"x_scale": F(1)}):
        with pytest.raises(ValueError, match="scale_ub: .*dynamic 'fp8'"):
            w8a8_linear(x, w, scale_ub=F(0.5), **more)


def test_w8a8_linear_gradient_is_straight_through(rng):
    weight, x = rng.standard_normal((8, 32)).astype(F), rng.standard_normal((2, 3, 32)).astype(F)
    w = quantize(weight, scalar_types.int8)
    bias = rng.standard_normal(8).astype(F)
    g = rng.standard_normal((2, 3, 8)).astype(F)

    def loss(layer):
        return lambda x, scale, bias: jnp.sum(layer(x, scale, bias) * g)

    def with_scale(scale):
        return dataclasses.replace(w, scale=scale)

    got = jax.grad(loss(lambda x, s, b: w8a8_linear(x, with_scale(s), bias=b)), (0, 1, 2))
    want = jax.grad(loss(lambda x, s, b: x @ dequantize(with_scale(s)).T + b), (0, 1, 2))
    with jax.default_matmul_precision("highest"):
        pairs = zip(got(x, w.scale, bias), want(x, w.scale, bias), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", SCHEMES)
def test_w8a8_linear_without_rows(activation):
    w = (
        quantize(np.ones((4, 8), F), **SCHEMES[activation])
        if activation != "fp8-group"
        else (quantize(np.ones((4, 8), F), scalar_types.float8_e4m3fn, 128, granularity="block"))
    )
    out = w8a8_linear(jnp.zeros((0, 8), jnp.bfloat16), w, activation=activation)
    assert out.shape == (0, 4) and out.dtype == jnp.bfloat16


# -- bad input ----------------------------------------------------------------------------------

X, W = np.ones((2, 8), np.int8), np.ones((3, 8), np.int8)
W4 = quantize(np.ones((3, 8), F), scalar_types.int4)
W8 = quantize(np.ones((3, 8), F), scalar_types.int8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scaled_mm(X[:, :7], W), ValueError, r"x: .* K = 8.* got int8\[2, 7\]"),
        (lambda: scaled_mm(X.astype(F), W), TypeError, r"x: expected dtype int8 or .*float32"),
        (lambda: scaled_mm(X, W.astype(FP8)), TypeError, "w: expected dtype int8, got float8"),
        (lambda: scaled_mm(X, W[0]), ValueError, "w: expected 2 dimensions"),
        (lambda: scaled_mm(X[0, 0], W), ValueError, "x: expected at least 1 dimension"),
        (lambda: scaled_mm([1], W), TypeError, "x: expected an array"),
        (lambda: scaled_mm(X[:, :0], W[:, :0]), ValueError, "x: .*at least 1"),
        (lambda: scaled_mm(X, W, np.ones((3, 1), F)), ValueError, r"x_scale:.*\[2, 1\].*\[3, 1\]"),
        (lambda: scaled_mm(X, W, 1.0, np.ones(2, F)), ValueError, r"w_scale: .*\[3, 1\] .*\[2\]"),
        (lambda: scaled_mm(X, W, np.ones(2, np.float16)), TypeError, "x_scale: .*float32.*float16"),
        (lambda: scaled_mm(X, W, bias=np.ones(4, F)), ValueError, r"bias: .*\[3\].*\[4\]"),
        (lambda: scaled_mm(X, W, azp=np.ones((4, 1), np.int32)), ValueError, r"azp: .*\[2, 1\]"),
        (lambda: scaled_mm(X, W, azp_adj=np.ones(3, F)), TypeError, "azp_adj: .*int32"),
        (lambda: scaled_mm(X.astype(FP8), W.astype(FP8), azp=1), ValueError, "azp: .*None"),
        (lambda: scaled_mm(X, W, out_dtype=jnp.int32), TypeError, "out_dtype: .*int32"),
        (lambda: scaled_mm(X, W8, 1.0, 1.0), ValueError, "w_scale: expected None"),
        (lambda: scaled_mm(X, W4), ValueError, "w: expected symmetric int8 or float8.*int4"),
        (lambda: scaled_mm(X, W, implementation="magic"), ValueError, "implementation: .*magic"),
        (lambda: scaled_mm(X, QuantizedTensor(W, np.ones((3, 1), F), layout="other")),
         ValueError, "w: expected layout 'plain'"),
        (lambda: w8a8_linear(X.astype(F), W4), ValueError, "w: expected int8 or float8"),
        (lambda: w8a8_linear(X.astype(F), W), TypeError, "w: expected a QuantizedTensor"),
        (lambda: w8a8_linear(X, W8), TypeError, "x: expected dtype bfloat16"),
        (lambda: w8a8_linear(X.astype(F), W8, activation="int4"), ValueError, "activation: "),
        (lambda: w8a8_linear(X.astype(F), W8, activation="fp8"), ValueError, "activation: .*int8"),
        (lambda: w8a8_linear(X.astype(F), W8, azp=3), ValueError, "azp: expected None"),
        (lambda: w8a8_linear(X[:, :4].astype(F), W8), ValueError, "x: .*K = 8"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

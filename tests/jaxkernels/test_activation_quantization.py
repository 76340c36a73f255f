# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Activation quantization, bit for bit against the formulas written again in numpy float32."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels import quantize_fp8, quantize_fp8_group, quantize_int8
from jaxkernels.quantize.exact import divide, round_quotient
from jaxkernels.quantize.xla import power_of_two_at_least

F = np.float32
DTYPES = {"float32": F, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SIZES = [(1, 17), (7, 1025)]
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
sizes = pytest.mark.parametrize("size", SIZES)


def sat8(value):
    return np.clip(value, -128, 127).astype(np.int8)


def to_fp8(value):
    return np.clip(value, F(-448), F(448)).astype(ml_dtypes.float8_e4m3fn)


def absmax(x, axis=1):
    return np.abs(x.astype(F)).max(axis, keepdims=True)


def same(got, want):
    got, want = (np.ascontiguousarray(array) for array in (got, want))
    assert got.dtype == want.dtype and got.shape == want.shape
    differing = np.argwhere(got.view(np.uint8) != want.view(np.uint8))
    assert not len(differing), f"{len(differing)} bytes differ, first at {differing[0]}"


def inputs(rng, size, dtype, scale=30.0):
    return (rng.standard_normal(size) * scale).astype(dtype)


@dtypes
@sizes
@pytest.mark.parametrize("scale", [0.1, 0.37])
def test_int8_static(rng, dtype, size, scale):
    x = inputs(rng, size, dtype)
    q, got_scale, azp = quantize_int8(x, scale)
    same(q, sat8(np.rint(x.astype(F) / F(scale))))
    same(got_scale, np.full((1, 1), scale, F))
    assert azp is None


@dtypes
@sizes
@pytest.mark.parametrize("azp", [-255, 54])
def test_int8_static_asymmetric(rng, dtype, size, azp):
    x, scale = inputs(rng, size, dtype), F(0.37)
    q, got_scale, got_azp = quantize_int8(x, scale, azp, symmetric=False)
    same(q, sat8(np.rint(x.astype(F) * (F(1) / scale)).astype(np.int32) + azp))
    same(got_scale, np.full((1, 1), scale))
    same(got_azp, np.full((1, 1), azp, np.int32))


@dtypes
@sizes
def test_int8_per_token(rng, dtype, size):
    x = inputs(rng, size, dtype)
    q, scale, azp = quantize_int8(x)
    same(scale, absmax(x) / F(127))
    same(q, sat8(np.rint(x.astype(F) * (F(127) / absmax(x)))))
    assert azp is None


@dtypes
@sizes
def test_int8_per_token_asymmetric(rng, dtype, size):
    x = inputs(rng, size, dtype) + dtype(7)
    q, scale, azp = quantize_int8(x, symmetric=False)
    wide = x.astype(F)
    low, high = wide.min(1, keepdims=True), wide.max(1, keepdims=True)
    want_scale = (high - low) / F(255)
    want_azp = np.rint(F(-128) - low / want_scale).astype(np.int32)
    same(scale, want_scale)
    same(azp, want_azp)
    same(q, sat8(np.rint(wide * (F(1) / want_scale)).astype(np.int32) + want_azp))


@dtypes
@sizes
def test_fp8_static(rng, dtype, size):
    x, scale = inputs(rng, size, dtype), F(0.071)
    q, got_scale = quantize_fp8(x, scale)
    same(q, to_fp8(x.astype(F) * (F(1) / scale)))
    same(got_scale, np.full((1, 1), scale))


@dtypes
@sizes
def test_fp8_per_tensor(rng, dtype, size):
    x = inputs(rng, size, dtype)
    q, scale = quantize_fp8(x, per_token=False)
    want = np.abs(x.astype(F)).max().reshape(1, 1) / F(448)
    same(scale, want)
    same(q, to_fp8(x.astype(F) * (F(1) / want)))


@dtypes
@sizes
@pytest.mark.parametrize("bounded", [False, True])
def test_fp8_per_token(rng, dtype, size, bounded):
    x = inputs(rng, size, dtype)
    bound = F(20.0) if bounded else None
    q, scale = quantize_fp8(x, scale_ub=bound)
    top = absmax(x) if bound is None else np.minimum(absmax(x), bound)
    want = np.maximum(top / F(448), F(1) / F(448 * 512))
    same(scale, want)
    same(q, to_fp8(x.astype(F) / want))
    if bounded and size[1] > 100:
        assert (np.abs(np.asarray(q, F)) == 448).sum() > len(x)  # the bound cuts values off


@dtypes
@pytest.mark.parametrize("k", [100, 512])
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("ue8m0", [False, True])
def test_fp8_group(rng, dtype, k, group, ue8m0):
    x = inputs(rng, (6, k), dtype)
    x[0] = 0
    q, scale = quantize_fp8_group(x, group, ue8m0)
    groups = -(-k // group)
    padded = np.zeros((6, groups * group), F)
    padded[:, :k] = x
    padded = padded.reshape(6, groups, group)
    want = np.maximum(np.abs(padded).max(2), F(1e-10)) / F(448)
    if ue8m0:
        exact = np.log2(np.maximum(want, F(1e-10)).astype(np.float64))
        want = np.exp2(np.ceil(exact)).astype(F)
    same(scale, want)
    same(q, to_fp8(padded / want[:, :, None]).reshape(6, -1)[:, :k])


def test_group_scales_column_major(rng):
    x = inputs(rng, (6, 300), F)
    q, scale = quantize_fp8_group(x, 128)
    q_t, scale_t = quantize_fp8_group(x, 128, column_major=True)
    q_a, scale_a = quantize_fp8_group(x, 128, column_major=True, tma_aligned=True)
    same(q_t, q)
    same(q_a, q)
    same(scale_t, np.asarray(scale).T)
    same(scale_a, np.pad(np.asarray(scale).T, ((0, 0), (0, 2))))


def test_zero_group_has_the_byte_of_upstream():
    _, scale = quantize_fp8_group(np.zeros((1, 128), F), 128, ue8m0=True)
    assert (np.asarray(scale).view(np.int32) >> 23).item() == 0x5E


def test_power_of_two_at_least_around_powers():
    powers = np.exp2(np.arange(-120, 120, dtype=F))
    for near, step in ((powers, 1), (np.nextafter(powers, F(np.inf)), 2)):
        same(power_of_two_at_least(jnp.asarray(near)), powers * F(step))
    same(power_of_two_at_least(jnp.asarray(np.nextafter(powers, F(0)))), powers)


# -- the edges ----------------------------------------------------------------------------------


def test_saturation_at_the_limits_of_int32():
    limits = [2.0**31, -(2.0**31), 2.0**31 - 128, 3e38, -3e38, np.inf, -np.inf, 127.5, -128.5]
    x = np.array([limits], F)
    signs = np.where(x > 0, 127, -128).astype(np.int8)
    same(quantize_int8(x, 1.0)[0], signs)
    same(quantize_int8(x, 1.0, 0, symmetric=False)[0], signs)
    for azp in (-255, 54):
        want = sat8(np.clip(x.astype(np.float64), -1e12, 1e12).round() + azp)
        same(quantize_int8(x, 1.0, azp, symmetric=False)[0], want)
    for azp in (2**31 - 1, -(2**31)):  # the sum passes int32 and saturates all the same
        q = quantize_int8(np.array([[5.0, -5.0]], F), 1.0, azp, symmetric=False)[0]
        same(q, np.full((1, 2), 127 if azp > 0 else -128, np.int8))


def test_halves_round_to_even():
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], F)
    same(quantize_int8(x, 1.0)[0], np.array([[0, 2, 2, 0, -2, -2]], np.int8))


def test_every_fp8_midpoint_rounds_as_numpy_does():
    codes = np.arange(0, 0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(F)
    middle = (codes[1:] + codes[:-1]) / 2
    x = np.concatenate([codes, middle, np.nextafter(middle, F(500)), np.nextafter(middle, F(0))])
    x = np.concatenate([x, -x])[None]
    same(quantize_fp8(x, 1.0)[0], to_fp8(x))


def test_fp8_clamps_instead_of_overflowing():
    x = np.array([[449.0, 1e30, -1e30, np.inf, -np.inf]], F)
    q = np.asarray(quantize_fp8(x, 1.0)[0], F)
    same(q, np.array([[448, 448, -448, 448, -448]], F))


def test_rows_of_zeros():
    x = np.zeros((2, 8), F)
    x[1] = np.arange(8)
    q, scale, _ = quantize_int8(x)
    assert not np.asarray(q)[0].any() and scale[0, 0] == 0 and scale[1, 0] != 0
    q, scale = quantize_fp8(x)
    assert not np.asarray(q, F)[0].any() and scale[0, 0] == F(1) / F(448 * 512)
    q, scale = quantize_fp8(x[:1], per_token=False)
    assert not np.asarray(q, F).any() and scale[0, 0] == 0


@pytest.mark.parametrize("value", [0.0, 5.0, -3.25, 1e-30])
def test_constant_rows_with_zero_points_are_exact(value):
    """Upstream divides by a range of zero there, which gives Inf and garbage."""
    x = np.full((1, 16), value, F)
    q, scale, azp = quantize_int8(x, symmetric=False)
    same(np.asarray(scale) * (np.asarray(q, F) - np.asarray(azp, F)), x)


def test_nan_and_inf_spoil_their_row_and_no_other():
    x = np.ones((3, 4), F)
    x[0, 1], x[1, 2] = np.nan, np.inf
    for symmetric in (True, False):
        q, scale, _ = quantize_int8(x, symmetric=symmetric)
        assert np.isnan(scale[0, 0]) and np.isinf(scale[1, 0]) and np.isfinite(scale[2, 0])
        assert np.asarray(q).dtype == np.int8
    q, scale = quantize_fp8(x)
    assert np.isnan(np.asarray(q, F)[0]).all() and np.isnan(scale[0, 0])
    assert np.isnan(np.asarray(q, F)[1, 2]) and np.isinf(scale[1, 0])
    same(np.asarray(q, F)[2], np.full(4, 448, F))
    same(quantize_int8(x, 1.0)[0], np.array([[1, 0, 1, 1], [1, 1, 127, 1], [1] * 4], np.int8))
    static = np.asarray(quantize_fp8(x, 1.0)[0], F)
    assert np.isnan(static[0, 1]) and static[1, 2] == 448


def test_tiny_rows_keep_the_formula():
    """The smallest normal numbers: 127 / a overflows to Inf, and products saturate."""
    tiny = np.finfo(F).tiny
    x = np.array([[tiny, -tiny, tiny * 4]], F)
    q, scale, _ = quantize_int8(x)
    with np.errstate(all="ignore"):
        same(scale, absmax(x) / F(127) * F(0 if scale[0, 0] == 0 else 1))  # CPUs flush denormals
        same(q, sat8(np.clip(x * (F(127) / absmax(x)), F(-128), F(127))))


# -- shapes, transformations, bad input ---------------------------------------------------------


@settings(max_examples=4, deadline=None)
@given(
    leading=st.lists(st.integers(0, 3), max_size=3),
    k=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_leading_dimensions(leading, k, seed):
    x = np.random.default_rng(seed).standard_normal((*leading, k)).astype(F)
    rows = x.reshape(-1, k)
    for quantizer in (
        quantize_int8,
        lambda x: quantize_int8(x, symmetric=False),
        quantize_fp8,
        lambda x: quantize_fp8_group(x, 16),
        lambda x: quantize_fp8(x, per_token=False),
        lambda x: quantize_fp8(x, 0.5),
    ):
        together, flat = quantizer(x), quantizer(rows)
        assert together[0].shape == x.shape
        for a, b in zip(together, flat, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                same(np.asarray(a).reshape(b.shape), b)
        per_row = together[1].shape != (1, 1)
        assert together[1].shape[:-1] == tuple(leading) or not per_row


def test_transformations_give_the_same_bits(rng):
    x = inputs(rng, (3, 5, 64), F)
    for quantizer in (
        lambda x: quantize_int8(x, symmetric=False),
        quantize_fp8,
        lambda x: quantize_fp8_group(x, 32, ue8m0=True),
    ):
        plain = quantizer(x)
        for other in (jax.jit(quantizer)(x), jax.vmap(quantizer)(x)):
            jax.tree.map(same, other, plain)


def test_static_fp8_of_rows_and_blocks(rng):
    x = inputs(rng, (4, 64), F)
    for shape in ((4, 1), (4, 2), (2, 4), (1, 64)):
        scale = rng.uniform(0.5, 2, shape).astype(F)
        full = np.repeat(np.repeat(scale, 4 // shape[0], 0), 64 // shape[1], 1)
        q, got = quantize_fp8(x, scale)
        same(q, to_fp8(x * (F(1) / full)))
        same(got, scale)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: quantize_int8([1.0]), TypeError, "x: expected an array"),
        (lambda x: quantize_int8(x.astype(np.int32)), TypeError, r"x: .*got int32\[2, 8\]"),
        (lambda x: quantize_int8(x[0, 0]), ValueError, "x: expected at least 1 dimension"),
        (lambda x: quantize_int8(x[:, :0]), ValueError, "x: expected at least one element"),
        (lambda x: quantize_int8(x, x[:, :1]), ValueError, "scale: expected one number"),
        (lambda x: quantize_int8(x, 1.0, 3), ValueError, "zero_point: expected None"),
        (lambda x: quantize_int8(x, 1.0, symmetric=False), ValueError, "zero_point: expected a"),
        (lambda x: quantize_int8(x, None, 3), ValueError, "zero_point: expected None without"),
        (lambda x: quantize_int8(x, 1.0, 0.5, False), TypeError, "zero_point: .*int32"),
        (lambda x: quantize_fp8(x, 1.0, True, 1.0), ValueError, "scale_ub: expected None"),
        (lambda x: quantize_fp8(x, None, False, 1.0), ValueError, "scale_ub: expected None"),
        (lambda x: quantize_fp8(x, np.ones((3, 1), F)), ValueError, "scale: .*blocks"),
        (lambda x: quantize_fp8_group(x, 0), ValueError, "group_size: expected a positive"),
        (lambda x: quantize_fp8_group(x[None], 4, column_major=True), ValueError, "x: expected 2"),
        (lambda x: quantize_fp8_group(x, 4, tma_aligned=True), ValueError, "tma_aligned"),
        (lambda x: quantize_fp8(x, implementation="cuda"), ValueError, "implementation: .*xla"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 8), F))


# -- the division under it all ------------------------------------------------------------------


@pytest.mark.parametrize("case", ["any", "constant", "below powers of two", "near powers of two"])
def test_a_quotient_a_few_units_off_is_made_right(rng, case):
    """What a GPU's approximate division needs; here the error is put in by hand."""
    size = 50_000

    def floats():
        return (rng.standard_normal(size) * np.exp2(rng.integers(-20, 20, size))).astype(F)

    x, by = floats(), floats()
    if case == "constant":
        by = np.full(size, 448, F)
    elif case == "below powers of two":
        by = np.nextafter(np.exp2(rng.integers(-9, 9, size)).astype(F), F(0))
    elif case == "near powers of two":
        near = by * np.exp2(rng.integers(-3, 3, size)).astype(F)
        x = (near.view(np.int32) + rng.integers(-2, 3, size).astype(np.int32)).view(F)
    for units in (-3, -2, -1, 0, 1, 2, 3):
        off = ((x / by).view(np.int32) + np.int32(units)).view(F)
        same(round_quotient(x, by, off), x / by)


def test_division_at_the_edges():
    x = np.array([0.0, -0.0, 1, -1, np.inf, np.nan, 3, 3], F)
    by = np.array([5.0, 5.0, 0, 0, 2, 2, np.inf, np.nan], F)
    with np.errstate(all="ignore"):
        want = x / by
    np.testing.assert_array_equal(divide(jnp.asarray(x), jnp.asarray(by)), want)
    np.testing.assert_array_equal(round_quotient(x, by, want), want)

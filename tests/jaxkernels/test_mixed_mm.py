# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm: one-hot activations recover weights bit for bit, sums are bounded, on every scheme."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels import (
    GroupShape,
    QuantizedTensor,
    dequantize,
    mixed_mm,
    quantize,
    quantized,
    scalar_types,
)
from jaxkernels.mixed_mm.prepare import can_prepare, prepare
from jaxkernels.mosaic.device import abstract_mesh
from jaxkernels.quantized import pack_nibbles, stored_codes

F = np.float32
BF16 = ml_dtypes.bfloat16
implementations = pytest.mark.parametrize("implementation", ["xla", "reference"])

# name: (type, group size, granularity)
SCHEMES = {
    "int4-g32": (scalar_types.int4, 32, "group"),
    "uint4b8-g64": (scalar_types.uint4b8, 64, "group"),
    "uint4b8-channel": (scalar_types.uint4b8, -1, "channel"),
    "uint4-zp-g48": (scalar_types.uint4, 48, "group"),
    "uint4-zp-channel": (scalar_types.uint4, -1, "channel"),
    "int8-channel": (scalar_types.int8, -1, "channel"),
    "int8-g16": (scalar_types.int8, 16, "group"),
    "uint8b128-g96": (scalar_types.uint8b128, 96, "group"),
    "uint8-zp-g32": (scalar_types.uint8, 32, "group"),
    "uint8-zp-tensor": (scalar_types.uint8, -1, "tensor"),
    "fp8-tensor": (scalar_types.float8_e4m3fn, -1, "tensor"),
    "fp8-channel": (scalar_types.float8_e4m3fn, -1, "channel"),
    "fp8-block": (scalar_types.float8_e4m3fn, 128, "block"),
    "nvfp4": (scalar_types.float4_e2m1f, 16, "group"),
    "mxfp4": (scalar_types.float4_e2m1f, 32, "group"),
}
schemes = pytest.mark.parametrize("scheme", SCHEMES)
K = 192


def weight_of(rng, scheme, n=40, k=K, dtype=BF16):
    kind, group, granularity = SCHEMES[scheme]
    w = quantize(
        rng.standard_normal((n, k)).astype(dtype), kind, group,
        zero_points="zp" in scheme, granularity=granularity,
    )  # fmt: skip
    if scheme.startswith(("int", "uint")):  # upstream's tests have negative scales, too
        signs = rng.choice([-1, 1], w.scale.shape).astype(w.scale.dtype)
        w = dataclasses.replace(w, scale=w.scale * signs)
    return w


def as_activations_see_it(w, dtype):
    """Each weight in float64, rounded to the activations' dtype where `mixed_mm` says it is."""
    value = np.asarray(dequantize(w), np.float64)
    return value if w.granularity in ("tensor", "channel") else value.astype(dtype).astype(float)


@schemes
@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("xla", BF16), ("xla", F), ("reference", BF16)],
    ids=["xla-bf16", "xla-fp32", "reference"],
)
def test_one_hot_activations_recover_each_weight(rng, scheme, dtype, implementation):
    w = weight_of(rng, scheme)
    out = mixed_mm(np.eye(K, dtype=dtype), w, out_dtype=F, implementation=implementation)
    want = dequantize(w, dtype) if implementation == "xla" else dequantize(w)
    if w.granularity in ("tensor", "channel"):
        want = dequantize(w)
    np.testing.assert_array_equal(out.T, np.asarray(want, F))


@schemes
def test_small_integers_are_exact(rng, scheme):
    """Integer activations, codes below 2^8, scales powers of two: no sum rounds."""
    w = weight_of(rng, scheme)
    if w.scale.dtype in (jnp.bfloat16, jnp.float32):
        powers = np.exp2(rng.integers(-3, 1, w.scale.shape)).astype(w.scale.dtype)
        w = dataclasses.replace(w, scale=jnp.asarray(powers))
    if w.global_scale is not None:
        w = dataclasses.replace(w, global_scale=jnp.full((1, 1), 0.25))
    x = rng.integers(-8, 9, (5, K)).astype(BF16)
    out = mixed_mm(x, w, out_dtype=F)
    want = x.astype(np.float64) @ np.asarray(dequantize(w), np.float64).T
    np.testing.assert_array_equal(out, want.astype(F))


@schemes
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=["bf16", "fp16"])
def test_error_is_at_most_twice_the_plain_one(rng, scheme, dtype):
    """Plain: dequantize to the activations' dtype, multiply in float32, round once."""
    w = weight_of(rng, scheme)
    x = rng.standard_normal((7, K)).astype(dtype)
    b = rng.standard_normal(40).astype(dtype)
    out = np.asarray(mixed_mm(x, w, bias=b), np.float64)
    exact = x.astype(np.float64) @ np.asarray(dequantize(w), np.float64).T + b.astype(float)
    rounded = np.asarray(dequantize(w, dtype), F)
    plain = np.asarray((x.astype(F) @ rounded.T + b.astype(F)).astype(dtype), np.float64)
    tiny = np.abs(x).astype(F) @ np.abs(rounded).T * 2.0**-21
    assert np.abs(out - exact).max() <= 2 * np.abs(plain - exact).max() + tiny.max()
    against_rounded = x.astype(np.float64) @ as_activations_see_it(w, dtype).T + b.astype(float)
    half_ulp = np.abs(against_rounded) * float(jnp.finfo(dtype).eps) / 2
    assert (np.abs(out - against_rounded) <= half_ulp * 1.01 + tiny).all()


@implementations
def test_act_order(rng, implementation):
    w = quantize(rng.standard_normal((24, 128)).astype(F), scalar_types.uint4, 32, zero_points=True)
    order = rng.permutation(128)
    g_idx = (order // 32).astype(np.int32)  # column k of the shuffled weight was column order[k]
    codes = np.asarray(dequantize(w))[:, order]
    shuffled = dataclasses.replace(
        w, data=pack_nibbles(stored_codes(w)[:, order]), g_idx=jnp.asarray(g_idx)
    ).validate()
    np.testing.assert_array_equal(dequantize(shuffled), codes)
    x = rng.integers(-4, 5, (6, 128)).astype(F)
    out = mixed_mm(x[:, order], shuffled, implementation=implementation)
    np.testing.assert_allclose(
        out, mixed_mm(x, w, implementation=implementation), rtol=1e-5, atol=1e-4
    )
    half = dataclasses.replace(
        shuffled, data=shuffled.data[:, :32], g_idx=shuffled.g_idx[:64], shape=(24, 64)
    ).validate()  # a shard along K keeps global groups
    one_hot = mixed_mm(np.eye(64, dtype=F), half, implementation=implementation)
    np.testing.assert_array_equal(one_hot.T, codes[:, :64])


@implementations
@pytest.mark.parametrize("scheme", ["uint4-zp-g48", "int8-channel"])
def test_prepared_weights_give_the_same(rng, scheme, implementation):
    w = weight_of(rng, scheme)
    if not can_prepare(w):
        w = quantize(rng.standard_normal((40, K)).astype(F), w.scalar_type, 64, zero_points=True)
    x = rng.standard_normal((3, K)).astype(BF16)
    got = mixed_mm(x, prepare(w), implementation=implementation)
    np.testing.assert_array_equal(got, mixed_mm(x, w, implementation=implementation))


# -- structure ----------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(1, 9),
    pairs=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(leading, n, pairs, seed):
    rng = np.random.default_rng(seed)
    k = 2 * pairs
    w = quantize(rng.integers(-8, 8, (n, k)).astype(F), scalar_types.int4)
    x = rng.integers(-4, 5, (*leading, k)).astype(F)
    out = mixed_mm(x, w)
    assert out.shape == (*leading, n) and out.dtype == jnp.float32
    want = np.einsum("...k,nk->...n", x, np.asarray(dequantize(w)))
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scheme", ["uint4-zp-g48", "fp8-block", "nvfp4"])
def test_transformations(rng, scheme):
    w = weight_of(rng, scheme)
    x = rng.standard_normal((3, 4, K)).astype(BF16)
    want = np.asarray(mixed_mm(x, w), F)
    np.testing.assert_array_equal(np.asarray(jax.jit(mixed_mm)(x, w), F), want)
    np.testing.assert_array_equal(np.asarray(jax.vmap(mixed_mm, (0, None))(x, w), F), want)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), w, w, w)
    each = np.asarray(jax.vmap(mixed_mm)(x, stacked), F)
    np.testing.assert_array_equal(each, want)
    scanned = jax.lax.scan(lambda y, w: (y, mixed_mm(y, w)), x[0], stacked)[1]
    np.testing.assert_array_equal(np.asarray(scanned[2], F), want[0])


@pytest.mark.parametrize("scheme", ["uint4-zp-g48", "int8-channel", "fp8-block", "nvfp4"])
def test_gradient(rng, scheme):
    """That of the float layer; codes have none, 8-bit scales have none."""
    w = weight_of(rng, scheme, dtype=F)
    x, bias = rng.standard_normal((2, 3, K)).astype(F), rng.standard_normal(40).astype(F)
    g = rng.standard_normal((2, 3, 40)).astype(F)
    trained = w.scale.dtype == jnp.float32

    def through(layer):
        def loss(x, scale, bias):
            return jnp.sum(layer(x, dataclasses.replace(w, scale=scale), bias) * g)

        return jax.grad(loss, (0, 1, 2) if trained else (0, 2))(x, w.scale, bias)

    got = through(lambda x, w, bias: mixed_mm(x, w, bias=bias))
    with jax.default_matmul_precision("highest"):
        want = through(lambda x, w, bias: x @ dequantize(w).T + bias)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and np.any(a)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def test_gradient_through_a_prepared_layout(rng):
    w = quantize(rng.standard_normal((64, 128)).astype(F), scalar_types.uint4, 64, zero_points=True)
    x = rng.standard_normal((3, 128)).astype(F)

    def loss(x, w):
        return jnp.sum(mixed_mm(x, w) ** 2)

    dx, dw = jax.grad(loss, (0, 1), allow_int=True)(x, w)
    p_dx, p_dw = jax.grad(loss, (0, 1), allow_int=True)(x, prepare(w))
    np.testing.assert_allclose(p_dx, dx, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        np.sort(p_dw.scale.ravel()), np.sort(dw.scale.ravel()), rtol=1e-3, atol=1e-2
    )


def test_export(rng):
    w = weight_of(rng, "uint4-zp-g48", dtype=F)
    x = rng.standard_normal((3, K)).astype(F)
    exported = jax.export.export(jax.jit(mixed_mm))(x, w)
    np.testing.assert_array_equal(exported.call(x, w), mixed_mm(x, w))
    with pytest.raises(ValueError, match="pytree"):
        exported.call(x, dataclasses.replace(w, layout="other"))
    # What a saved export holds of the tensor's static half.
    static = (w.shape, w.scalar_type, w.group_shape, w.layout)
    assert quantized._static_from_bytes(quantized._static_to_bytes(static)) == static


def test_export_of_the_hopper_kernel_without_a_gpu():
    w = prepare(quantize(np.ones((64, 128), BF16), scalar_types.uint4b8, 64))
    x = jax.ShapeDtypeStruct((16, 128), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(abstract_mesh("NVIDIA H200")):
        exported = jax.export.export(jax.jit(mixed_mm), platforms=("cuda",))(x, w)
    assert "mosaic_gpu_v2" in exported.mlir_module()
    assert exported.platforms == ("cuda",)


def test_gradient_of_the_whole_tensor_has_only_float_parts(rng):
    w = weight_of(rng, "uint4-zp-g48", dtype=F)
    x = rng.standard_normal((3, K)).astype(F)
    dw = jax.grad(lambda w: mixed_mm(x, w).sum(), allow_int=True)(w)
    assert isinstance(dw, QuantizedTensor) and np.any(dw.scale)
    assert dw.data.dtype == jax.dtypes.float0 and dw.zero_point.dtype == jax.dtypes.float0


def test_bias_is_added_before_the_rounding():
    """1 + 2^-8 rounds to 1 in bfloat16; with another 2^-8 before the rounding, it does not."""
    w = quantize(np.ones((1, 2), F), scalar_types.float8_e4m3fn, granularity="tensor")
    x = np.array([[1.0, 2.0**-8]], BF16)
    assert mixed_mm(x, w).item() == 1.0
    assert mixed_mm(x, w, bias=np.array([2.0**-8], BF16)).item() == 1 + 2.0**-7


def test_packed_weights_stay_packed_under_jit(rng):
    w = quantize(rng.standard_normal((512, 512)).astype(F), scalar_types.uint4b8, 128)
    x = jnp.ones((1, 512), jnp.bfloat16)
    memory = jax.jit(mixed_mm).lower(x, w).compile().memory_analysis()
    assert memory.argument_size_in_bytes == w.nbytes + x.nbytes


# -- bad input ----------------------------------------------------------------------------------

W = quantize(np.ones((4, 32), F), scalar_types.uint4b8, 16)
X = np.ones((2, 32), F)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mixed_mm(X[:, :31], W), ValueError, r"x: .*K = 32.*float32\[2, 31\]"),
        (lambda: mixed_mm(X[0, 0], W), ValueError, "x: "),
        (lambda: mixed_mm(X.astype(np.int8), W), TypeError, "x: expected dtype bfloat16 .*int8"),
        (lambda: mixed_mm([1.0], W), TypeError, "x: expected an array"),
        (lambda: mixed_mm(X, X), TypeError, "w: expected a QuantizedTensor"),
        (lambda: mixed_mm(X, W, bias=np.ones(3, F)), ValueError, r"bias: .*\[4\].*\[3\]"),
        (lambda: mixed_mm(X, W, bias=np.ones(4, np.int8)), TypeError, "bias: "),
        (lambda: mixed_mm(X, W, out_dtype=jnp.int8), TypeError, "out_dtype: .*int8"),
        (lambda: mixed_mm(X, W, implementation="marlin"), ValueError, "implementation: .*marlin"),
        (lambda: mixed_mm(X, W, implementation=[]), ValueError, "implementation: "),
        (lambda: mixed_mm(X, W, implementation="hopper"), NotImplementedError, "hopper: "),
        (lambda: mixed_mm(X, dataclasses.replace(W, scale=W.scale[:3])), ValueError, "scale: "),
        (lambda: mixed_mm(X, dataclasses.replace(W, group_shape=GroupShape(1, 5))),
         ValueError, "group_size: .*divisor of K = 32, got 5"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_rows():
    for shape in ((0, 32), (2, 0, 32)):
        out = mixed_mm(np.ones(shape, BF16), W, bias=np.ones(4, BF16))
        assert out.shape == (*shape[:-1], 4) and out.dtype == jnp.bfloat16
    assert mixed_mm(np.ones(32, BF16), W).shape == (4,)

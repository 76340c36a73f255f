# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""QuantizedTensor: packing, the quantizer's formulas, the pytree, validation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels import GroupShape, QuantizedTensor, dequantize, quantize, scalar_types
from jaxkernels.quantized import WEIGHT_TYPES, pack_nibbles, stored_codes, unpack_nibbles

F = np.float32
FP8 = ml_dtypes.float8_e4m3fn
INTEGERS = [kind for kind in WEIGHT_TYPES if kind.is_integer()]
names = dict(ids=str)


def zero_points(kind):
    return kind in (scalar_types.uint4, scalar_types.uint8)


def every_code(kind, n=3):
    """A tensor [n, 2 * codes] that holds every code of an integer type, scale 1/4 a group."""
    codes = np.tile(np.arange(1 << kind.size_bits, dtype=np.uint8), (n, 2))
    data = np.asarray(pack_nibbles(jnp.asarray(codes))) if kind.size_bits == 4 else codes
    if kind == scalar_types.int8:
        data = data.view(np.int8)
    zero = np.full((n, 2), 5, np.uint8) if zero_points(kind) else None
    return codes, QuantizedTensor(
        data,
        np.full((n, 2), 0.25, F),
        zero,
        shape=codes.shape,
        scalar_type=kind,
        group_shape=GroupShape(1, codes.shape[1] // 2),
    ).validate()


# -- packing ------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 5), half=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_nibbles(n, half, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (n, 2 * half), dtype=np.uint8)
    data = pack_nibbles(jnp.asarray(codes))
    assert data.shape == (n, half) and data.dtype == jnp.uint8
    np.testing.assert_array_equal(data, codes[:, 0::2] + 16 * codes[:, 1::2])
    np.testing.assert_array_equal(unpack_nibbles(data), codes)


@pytest.mark.parametrize("kind", INTEGERS, **names)
def test_every_code_has_its_value(kind):
    codes, w = every_code(kind)
    if kind == scalar_types.int8:
        value = codes.view(np.int8).astype(F)
    elif kind == scalar_types.int4:
        value = np.where(codes > 7, codes.astype(F) - 16, codes)
    else:
        value = codes.astype(F) - (5 if zero_points(kind) else kind.bias)
    np.testing.assert_array_equal(dequantize(w), value * F(0.25))
    if not zero_points(kind):
        assert value.min() == kind.min() and value.max() == kind.max()


def test_every_float_code_has_its_value():
    codes = np.arange(16, dtype=np.uint8)[None]
    half = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    w = QuantizedTensor(
        pack_nibbles(jnp.asarray(codes)), np.ones((1, 1), F), shape=(1, 16),
        scalar_type=scalar_types.float4_e2m1f, group_shape=GroupShape(1, 16),
    ).validate()  # fmt: skip
    np.testing.assert_array_equal(dequantize(w), [half + [-v for v in half]])
    numpy_type = ml_dtypes.float4_e2m1fn
    np.testing.assert_array_equal(dequantize(w)[0], codes[0].view(numpy_type).astype(F))
    codes = np.arange(256, dtype=np.uint8).view(FP8)[None]
    w = QuantizedTensor(
        codes, np.ones((1, 1), F), shape=(1, 256), scalar_type=scalar_types.float8_e4m3fn
    )
    np.testing.assert_array_equal(dequantize(w.validate()), codes.astype(F))


# -- the quantizer ------------------------------------------------------------------------------


def by_the_book(w, kind, group, asymmetric):
    """`quantize_weights` of the spec, in float32 numpy: (codes, scale, zero)."""
    n, k = w.shape
    size = k if group == -1 else group
    groups = w.reshape(n, k // size, size)
    high, low = groups.max(2), groups.min(2)
    zero = None
    if asymmetric:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = np.maximum(high - low, F(1e-5)) / F(kind.max())
        zero = np.clip(np.rint(np.abs(low / scale)), 0, kind.max())
    else:
        scale = np.maximum(np.abs(high / F(kind.max())), np.abs(low / F(kind.min())))
    q = np.rint(groups / scale[..., None]) + (0 if zero is None else zero[..., None])
    q = np.clip(q, kind.min(), kind.max()).reshape(n, k) + kind.bias
    return q, scale, zero


@pytest.mark.parametrize("kind", INTEGERS, **names)
@pytest.mark.parametrize("group", [-1, 16, 48])
def test_quantize_by_the_book(rng, kind, group):
    weight = rng.standard_normal((6, 96)).astype(F)
    weight[0], weight[1] = np.abs(weight[0]), -np.abs(weight[1])
    w = quantize(weight, kind, group, zero_points=zero_points(kind))
    codes, scale, zero = by_the_book(weight, kind, group, zero_points(kind))
    np.testing.assert_array_equal(w.scale, scale)
    stored = np.asarray(stored_codes(w)).astype(np.int32)
    if kind == scalar_types.int4:  # stored as two's complement
        stored = (stored ^ 8) - 8
    np.testing.assert_array_equal(stored, codes)
    if zero is not None:
        np.testing.assert_array_equal(w.zero_point, zero)
    error = np.abs(np.asarray(dequantize(w)) - weight)
    step = np.repeat(scale, 96 // scale.shape[1], 1)
    assert (error <= step * (1.001 if zero is not None else 0.5001)).all()
    assert w.granularity == ("channel" if group == -1 else "group")


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group", "block"])
def test_quantize_fp8(rng, granularity):
    weight = rng.standard_normal((50, 96)).astype(F)
    size = -1 if granularity in ("tensor", "channel") else 32
    w = quantize(weight, scalar_types.float8_e4m3fn, size, granularity=granularity)
    shape = {"tensor": (1, 1), "channel": (50, 1), "group": (50, 3), "block": (2, 3)}[granularity]
    assert w.granularity == granularity and w.scale.shape == shape
    rows = 32 if granularity == "block" else 50 // shape[0]
    scale = np.repeat(np.repeat(w.scale, rows, 0)[:50], 96 // shape[1], 1)
    assert np.abs(stored_codes(w).astype(F)).max() == 448
    # Half a unit of three mantissa bits; below 2^-6, half of the denormals' step.
    assert (np.abs(dequantize(w) - weight) <= np.maximum(np.abs(weight) / 16, scale / 1024)).all()
    np.testing.assert_array_equal(dequantize(w), stored_codes(w).astype(F) * scale)


@pytest.mark.parametrize("group", [16, 32])
def test_quantize_fp4(rng, group):
    weight = rng.standard_normal((6, 96)).astype(F)
    w = quantize(weight, scalar_types.float4_e2m1f, group)
    assert w.scale.dtype == (FP8 if group == 16 else ml_dtypes.float8_e8m0fnu)
    assert (w.global_scale is not None) == (group == 16)
    steps = np.asarray(w.scale, F) * (1 if w.global_scale is None else np.asarray(w.global_scale))
    scaled = weight / np.repeat(steps, group, 1)
    want = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn)  # ties to even, too
    np.testing.assert_array_equal(stored_codes(w), want.view(np.uint8))
    if group == 32:
        top = np.abs(weight).reshape(6, 3, 32).max(2)
        np.testing.assert_array_equal(steps, np.exp2(np.floor(np.log2(top)) - 2))


@pytest.mark.parametrize("kind", WEIGHT_TYPES, **names)
def test_zeros_stay_zeros(kind):
    group = 16 if kind == scalar_types.float4_e2m1f else -1
    w = quantize(np.zeros((2, 32), F), kind, group, zero_points=zero_points(kind))
    np.testing.assert_array_equal(dequantize(w), np.zeros((2, 32)))


def test_one_sided_groups_keep_zero_in_range():
    """Upstream takes |min / s| for the zero point of an all-positive group, and clips its top."""
    weight = np.linspace(10, 11, 32, dtype=F)[None]
    w = quantize(weight, scalar_types.uint4, zero_points=True)
    assert w.zero_point.item() == 0
    assert np.abs(dequantize(w) - weight).max() < 0.5 * 11 / 15 + 1e-3


def test_scales_take_the_weights_dtype_in_groups(rng):
    weight = rng.standard_normal((4, 64)).astype(ml_dtypes.bfloat16)
    assert quantize(weight, scalar_types.uint4b8, 32).scale.dtype == jnp.bfloat16
    assert quantize(weight, scalar_types.uint4b8).scale.dtype == jnp.float32
    w = quantize(weight, scalar_types.uint4b8, 32, scale_dtype=jnp.float16)
    assert w.scale.dtype == jnp.float16
    # Codes are chosen for the scale as it is stored.
    error = np.abs(np.asarray(dequantize(w)) - weight.astype(F))
    inside = np.abs(np.asarray(stored_codes(w)).astype(int) - 8) < 7
    assert (error <= np.repeat(np.asarray(w.scale, F), 32, 1) * 0.5001)[inside].all()


def test_dequantized_values_keep_their_codes(rng):
    for kind, group in ((scalar_types.uint4b8, 32), (scalar_types.int8, -1)):
        w = quantize(rng.standard_normal((8, 64)).astype(F), kind, group)
        again = quantize(dequantize(w), kind, group)
        np.testing.assert_array_equal(stored_codes(again), stored_codes(w))


# -- the pytree ---------------------------------------------------------------------------------


def test_pytree(rng):
    w = quantize(rng.standard_normal((8, 64)).astype(F), scalar_types.uint4, 32, zero_points=True)
    leaves, tree = jax.tree.flatten(w)
    assert [leaf.shape for leaf in leaves] == [(8, 32), (8, 2), (8, 2)]
    again = jax.tree.unflatten(tree, leaves)
    assert (again.shape, again.scalar_type, again.group_shape, again.layout) == (
        (8, 64), scalar_types.uint4, GroupShape(1, 32), "plain",
    )  # fmt: skip
    # Anything may be a leaf while JAX works on the structure; nothing is checked then.
    assert "leaves" in repr(jax.tree.map(lambda _: None, w))
    shapes = jax.eval_shape(lambda w: w, w)
    assert shapes.granularity == "group" and "group 32" in repr(shapes)
    assert hash(tree) == hash(jax.tree.structure(w))


def test_jit_traces_once_a_structure(rng):
    traces = []

    @jax.jit
    def value(w):
        traces.append(w)
        return dequantize(w)

    for _ in range(2):
        w = quantize(rng.standard_normal((4, 32)).astype(F), scalar_types.int4, 16)
        np.testing.assert_array_equal(value(w), dequantize(w))
    assert len(traces) == 1
    value(quantize(np.ones((4, 32), F), scalar_types.uint4b8, 16))
    assert len(traces) == 2


@pytest.mark.parametrize("kind", [scalar_types.uint4, scalar_types.int8], **names)
def test_stacked_weights(rng, kind):
    """Layers on a leading axis: vmap and scan see each as its own [N, K]."""
    weights = [rng.standard_normal((8, 32)).astype(F) for _ in range(3)]
    layers = [quantize(w, kind, 16, zero_points=zero_points(kind)) for w in weights]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    want = np.stack([dequantize(w) for w in layers])
    np.testing.assert_array_equal(jax.vmap(dequantize)(stacked), want)
    scanned = jax.lax.scan(lambda carry, w: (carry, dequantize(w)), 0, stacked)[1]
    np.testing.assert_array_equal(scanned, want)
    np.testing.assert_array_equal(dequantize(stacked), want)
    quantizer = functools.partial(
        quantize, scalar_type=kind, group_size=16, zero_points=zero_points(kind)
    )
    made = jax.vmap(quantizer)(np.stack(weights))
    np.testing.assert_array_equal(made.data, stacked.data)


def test_four_bits_take_half_a_byte_at_rest(rng):
    weight = rng.standard_normal((256, 256)).astype(F)
    for kind in (scalar_types.int4, scalar_types.uint4b8):
        w = quantize(weight, kind, 128)
        assert w.nbytes == 256 * 128 + 256 * 2 * 4
        assert jax.jit(lambda w: w).lower(w).compile().memory_analysis().argument_size_in_bytes == (
            w.nbytes
        )


def test_repr():
    w = quantize(np.ones((128, 256), F), scalar_types.float8_e4m3fn, 128, granularity="block")
    assert repr(w) == (
        "QuantizedTensor(float8_e4m3fn[128, 256], block 128x128, scale float32[1, 2], 32776 bytes)"
    )
    w = quantize(np.ones((4, 32), F), scalar_types.int8, granularity="tensor")
    assert repr(w) == "QuantizedTensor(int8[4, 32], per tensor, scale float32[1, 1], 132 bytes)"


def test_group_shape():
    assert GroupShape.PER_TENSOR == (-1, -1) and GroupShape(-1, -1).is_per_tensor()
    assert GroupShape.PER_TOKEN == (1, -1) and GroupShape(1, -1).is_per_token()
    assert GroupShape.PER_CHANNEL == (-1, 1) and GroupShape(-1, 1).is_per_channel()
    groups = {(1, 128): True, (128, 128): False, (1, -1): False, (1, 1): True, (-1, -1): False}
    assert {shape: GroupShape(*shape).is_per_group() for shape in groups} == groups


# -- bad input ----------------------------------------------------------------------------------

GOOD = quantize(np.ones((4, 32), F), scalar_types.uint4, 16, zero_points=True)
ONES = np.ones((4, 32), F)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(data=np.ones((4, 32), np.uint8)), ValueError, r"data: .*\[4, 16\].*\[4, 32\]"),
        (dict(data=np.ones((4, 16), np.int8)), TypeError, "data: .*uint8.*int8"),
        (dict(shape=(4, 31)), ValueError, "shape: expected an even K"),
        (dict(scale=np.ones((4, 3), F)), ValueError, r"scale: .*\[4, 2\] \(group_shape \(1, 16\)"),
        (dict(scale=np.ones((4, 2), np.int32)), TypeError, "scale: .*float32"),
        (dict(scale=0.5), TypeError, "scale: expected an array, got 0.5"),
        (dict(zero_point=np.ones((4, 1), np.uint8)), ValueError, r"zero_point: .*\[4, 2\]"),
        (dict(zero_point=np.ones((4, 2), np.int8)), TypeError, "zero_point: .*uint8"),
        (dict(scalar_type=scalar_types.uint4b8), ValueError, "zero_point: expected None"),
        (dict(scalar_type=scalar_types.uint3b4), ValueError, "scalar_type: expected one of"),
        (dict(g_idx=np.zeros(31, np.int32)), ValueError, r"g_idx: .*\[32\]"),
        (dict(g_idx=np.zeros(32, F)), TypeError, "g_idx: .*int32"),
        (dict(global_scale=np.ones(1, F)), ValueError, r"global_scale: .*\[1, 1\]"),
        (dict(group_shape=GroupShape(1, 5)), ValueError, "group_size: expected a divisor of K"),
        (dict(group_shape=GroupShape(4, -1)), ValueError, "group_shape: "),
    ],
)
def test_validate(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(GOOD, **changes).validate()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quantize(ONES[0], scalar_types.int8), ValueError, "w: expected 2 dimensions"),
        (lambda: quantize(ONES.astype(int), scalar_types.int8), TypeError, "w: .*float32"),
        (lambda: quantize(ONES, "int8"), ValueError, "scalar_type: .*'int8'"),
        (lambda: quantize(ONES, scalar_types.uint4), ValueError, "zero_points: expected True"),
        (lambda: quantize(ONES, scalar_types.int4, zero_points=True), ValueError, "zero_points"),
        (lambda: quantize(ONES, scalar_types.int4, 5), ValueError, "group_size: .*K = 32, got 5"),
        (lambda: quantize(ONES, scalar_types.int4, 0), ValueError, "group_size: expected a pos"),
        (lambda: quantize(ONES[:, :31], scalar_types.int4), ValueError, "w: expected an even K"),
        (lambda: quantize(ONES, scalar_types.float4_e2m1f, 8), ValueError, "group_size: .*NVFP4"),
        (lambda: quantize(ONES, scalar_types.int8, granularity="row"), ValueError, "granularity"),
        (lambda: quantize(ONES, scalar_types.int8, 16, granularity="tensor"), ValueError,
         "group_size: expected what granularity 'tensor' takes"),
        (lambda: dequantize(dataclasses.replace(GOOD, layout="x")), ValueError, "layout 'plain'"),
    ],
)  # fmt: skip
def test_quantize_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

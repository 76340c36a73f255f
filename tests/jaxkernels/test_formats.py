# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Checkpoint formats: values against plain numpy unpacking, and exact round trips."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels import GroupShape, QuantizedTensor, dequantize, quantize, quantize_fp8, scalar_types
from jaxkernels.formats import awq, compressed_tensors, fp8, gptq, packing

F = np.float32
FP8 = ml_dtypes.float8_e4m3fn


def words(rng, *shape):
    return rng.integers(-(2**31), 2**31, shape, dtype=np.int64).astype(np.int32)


def unpack(packed, bits, axis):
    """Code j of a word is its bits [bits * j, bits * (j + 1)); written with shifts."""
    packed = np.moveaxis(packed, axis, -1).astype(np.int64)
    shifts = np.arange(0, 32, bits)
    codes = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return np.moveaxis(codes.reshape(*packed.shape[:-1], -1), -1, axis)


def same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(x, y)


def same_tensors(got, want):
    assert got.keys() == want.keys()
    for name in want:
        a, b = np.asarray(got[name]), np.asarray(want[name])
        assert a.dtype == b.dtype and a.shape == b.shape, name
        np.testing.assert_array_equal(a, b, err_msg=name)


bits = pytest.mark.parametrize("bits", [4, 8])


@bits
@pytest.mark.parametrize("axis", [0, 1])
def test_words(rng, bits, axis):
    packed = words(rng, 3, 5)
    codes = packing.unpack_words(jnp.asarray(packed), bits, axis)
    np.testing.assert_array_equal(codes, unpack(packed, bits, axis))
    np.testing.assert_array_equal(packing.pack_words(codes, bits, axis), packed)


@settings(max_examples=15, deadline=None)
@given(bits=st.sampled_from([4, 8]), size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_words_of_any_length(bits, size, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (2, size)).astype(np.uint8)
    packed = packing.pack_words(jnp.asarray(codes), bits)
    assert packed.shape == (2, -(-size * bits // 32))
    np.testing.assert_array_equal(packing.unpack_words(packed, bits, size=size), codes)


# -- GPTQ ---------------------------------------------------------------------------------------


def gptq_layer(rng, bits, n, k, groups, act_order):
    per_word = 32 // bits
    g_idx = np.arange(k) // (k // groups)
    return dict(
        qweight=words(rng, k // per_word, n),
        scales=rng.uniform(-0.1, 0.1, (groups, n)).astype(np.float16),
        qzeros=words(rng, groups, n // per_word),
        g_idx=(rng.permutation(g_idx) if act_order else g_idx).astype(np.int32),
    )


@bits
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_gptq(rng, bits, v2, sym, act_order, groups):
    n, k = 16, 64
    layer = gptq_layer(rng, bits, n, k, groups, act_order)
    if sym:
        stored = (1 << (bits - 1)) - (0 if v2 else 1)
        zeros = np.full((groups, n), stored, np.uint8)
        layer["qzeros"] = np.asarray(packing.pack_words(jnp.asarray(zeros), bits))

    w = gptq.from_gptq(**layer, bits=bits, sym=sym, v2=v2)

    codes, zeros = unpack(layer["qweight"], bits, 0), unpack(layer["qzeros"], bits, 1)
    zeros = zeros + (0 if v2 else 1)
    if bits == 8:
        zeros = zeros % 256
    g = layer["g_idx"]
    value = (codes - zeros[g]).astype(F) * layer["scales"].astype(F)[g]
    np.testing.assert_array_equal(dequantize(w), value.T)
    assert w.shape == (n, k) and (w.g_idx is None) == (not act_order or groups == 1)
    assert w.group_size == (-1 if groups == 1 else k // groups)
    back = gptq.to_gptq(w, v2=v2)
    same_tensors(back, layer)
    same_tree(gptq.from_gptq(**back, bits=bits, sym=sym, v2=v2), w)


def test_gptq_stored_15_means_16(rng):
    layer = gptq_layer(rng, 4, 8, 8, 1, False)
    layer["qzeros"] = np.full((1, 1), -1, np.int32)
    w = gptq.from_gptq(**layer, sym=False)
    assert np.unique(w.zero_point).tolist() == [16]
    same_tensors(gptq.to_gptq(w), layer)


def test_gptq_version_1_cannot_say_zero():
    w = quantize(np.tile(np.arange(8, dtype=F), (8, 1)), scalar_types.uint4, zero_points=True)
    assert not np.any(w.zero_point)
    with pytest.raises(ValueError, match="zero points of 1 to 16"):
        gptq.to_gptq(w)
    sixteen = dataclasses.replace(w, zero_point=jnp.full_like(w.zero_point, 16))
    gptq.to_gptq(sixteen)
    for other in (
        functools.partial(gptq.to_gptq, v2=True),
        awq.to_awq,
        compressed_tensors.to_wna16,
    ):
        with pytest.raises(ValueError, match="w: expected zero points of 0 to 15, got '16 to 16'"):
            other(sixteen)
    zeros = gptq.from_gptq(**gptq.to_gptq(w, v2=True), sym=False, v2=True).zero_point
    assert not np.any(zeros)


def test_gptq_shard_keeps_all_groups(rng):
    """Half of K of an act-order layer: global group numbers, scales of every group."""
    layer = gptq_layer(rng, 4, 16, 64, 4, True)
    whole = dequantize(gptq.from_gptq(**layer))
    shard = {**layer, "qweight": layer["qweight"][:4], "g_idx": layer["g_idx"][:32]}
    np.testing.assert_array_equal(dequantize(gptq.from_gptq(**shard)), whole[:, :32])


# -- AWQ ----------------------------------------------------------------------------------------


@bits
@pytest.mark.parametrize("groups", [1, 4])
def test_awq(rng, bits, groups):
    n, k = 32, 64
    per_word = 32 // bits
    layer = dict(
        qweight=words(rng, k, n // per_word),
        qzeros=words(rng, groups, n // per_word),
        scales=rng.uniform(-0.1, 0.1, (groups, n)).astype(np.float16),
    )
    w = awq.from_awq(**layer, bits=bits)
    order = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}[bits]
    columns = [per_word * (j // per_word) + order.index(j % per_word) for j in range(n)]
    codes = unpack(layer["qweight"], bits, 1)[:, columns]
    zeros = unpack(layer["qzeros"], bits, 1)[:, columns]
    g = np.arange(k) // (k // groups)
    value = (codes - zeros[g]).astype(F) * layer["scales"].astype(F)[g]
    np.testing.assert_array_equal(dequantize(w), value.T)
    same_tensors(awq.to_awq(w), layer)


# -- compressed-tensors -------------------------------------------------------------------------


@bits
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("size", [(16, 64, 4), (13, 60, 3), (8, 32, 1)])
def test_wna16(rng, bits, asymmetric, size):
    (n, k, groups), per_word = size, 32 // bits
    codes = rng.integers(0, 1 << bits, (n, k))
    zeros = rng.integers(0, 1 << bits, (n, groups))
    layer = dict(
        weight_packed=np.asarray(packing.pack_words(jnp.asarray(codes), bits)),
        weight_scale=rng.uniform(-0.1, 0.1, (n, groups)).astype(ml_dtypes.bfloat16),
        weight_shape=np.array([n, k], np.int32),
    )
    if asymmetric:
        packed = packing.pack_words(jnp.asarray(zeros), bits, axis=0)
        assert packed.shape == (-(-n // per_word), groups)
        layer["weight_zero_point"] = np.asarray(packed)
    w = compressed_tensors.from_wna16(**layer, bits=bits)
    g = np.arange(k) // (k // groups)
    offset = zeros[:, g] if asymmetric else 1 << (bits - 1)
    value = (codes - offset).astype(F) * layer["weight_scale"].astype(F)[:, g]
    np.testing.assert_array_equal(dequantize(w), value)
    same_tensors(compressed_tensors.to_wna16(w), layer)


def test_wna16_act_order(rng):
    g_idx = rng.permutation(np.arange(64) // 16).astype(np.int32)
    layer = dict(
        weight_packed=words(rng, 8, 8),
        weight_scale=rng.uniform(0.01, 0.1, (8, 4)).astype(np.float16),
        weight_shape=np.array([8, 64], np.int32),
        weight_g_idx=g_idx,
    )
    w = compressed_tensors.from_wna16(**layer)
    value = (unpack(layer["weight_packed"], 4, 1) - 8).astype(F) * layer["weight_scale"][:, g_idx]
    np.testing.assert_array_equal(dequantize(w), value)
    same_tensors(compressed_tensors.to_wna16(w), layer)


def test_one_packing_for_gptq_and_compressed_tensors(rng):
    """The two formats of one weight differ in their words and agree on the tensor."""
    w = quantize(rng.standard_normal((16, 64)).astype(F), scalar_types.uint4, 16, zero_points=True)
    w = dataclasses.replace(w, zero_point=jnp.maximum(w.zero_point, 1))
    same_tree(gptq.from_gptq(**gptq.to_gptq(w), sym=False), w)
    same_tree(compressed_tensors.from_wna16(**compressed_tensors.to_wna16(w)), w)
    same_tree(awq.from_awq(**awq.to_awq(w)), w)


def test_w8a8_int8(rng):
    weight = rng.integers(-128, 128, (6, 10), dtype=np.int8)
    for scale in (rng.uniform(0, 1, (6, 1)).astype(F), np.array([0.5], F)):
        w = compressed_tensors.from_w8a8_int8(weight, scale)
        np.testing.assert_array_equal(dequantize(w), weight.astype(F) * scale)
        same_tensors(compressed_tensors.to_w8a8_int8(w), {"weight": weight, "weight_scale": scale})
    w = compressed_tensors.from_w8a8_int8(weight, np.array([0.5, 2.0, 4.0], F), [1, 0, 5])
    np.testing.assert_array_equal(w.scale[:, 0], [0.5, 4, 4, 4, 4, 4])


def test_static_inputs_of_shards_merge_to_one():
    scale, azp = np.array([0.013, 0.02, 0.0171], F), np.array([-7, 30, -100], np.int8)
    high = (scale * (F(127) - azp.astype(F))).max()
    low = (scale * (F(-128) - azp.astype(F))).min()
    merged, truncated = compressed_tensors.merge_static_input(scale, azp)
    _, rounded = compressed_tensors.merge_static_input(scale, azp, rounded=True)
    np.testing.assert_allclose(merged, (high - low) / 255, rtol=1e-6)
    exact = -128 - low / ((high - low) / F(255))
    assert truncated == np.trunc(exact) and rounded == np.rint(exact)
    assert truncated != rounded  # these numbers tell the two apart
    merged, azp = compressed_tensors.merge_static_input(scale)
    assert merged == scale.max() and azp is None


def test_w4a8_int(rng):
    weight = rng.integers(-8, 8, (6, 32), dtype=np.int8)
    scale = rng.uniform(0.01, 1, (6, 2)).astype(F)
    w = compressed_tensors.from_w4a8_int(weight, scale)
    assert w.data.shape == (6, 16) and w.scalar_type == scalar_types.int4
    np.testing.assert_array_equal(dequantize(w), weight * np.repeat(scale, 16, 1))


def test_fp4(rng):
    data = rng.integers(0, 256, (4, 32), dtype=np.uint8)
    codes = np.stack([data & 15, data >> 4], -1).reshape(4, 64)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], F)[codes & 7] * np.where(codes & 8, -1, 1)
    exponents = rng.integers(120, 135, (4, 2), dtype=np.uint8)
    w = compressed_tensors.from_mxfp4(data, exponents)
    steps = np.exp2(exponents.astype(F) - 127)
    np.testing.assert_array_equal(dequantize(w), values * np.repeat(steps, 32, 1))
    same_tensors(compressed_tensors.to_fp4(w), {"weight_packed": data, "weight_scale": exponents})
    scale, divisor = rng.uniform(0.1, 400, (4, 4)).astype(FP8), np.array([64.0], F)
    w = compressed_tensors.from_nvfp4(data, scale, divisor)
    np.testing.assert_array_equal(
        dequantize(w), values * np.repeat(scale.astype(F), 16, 1) / divisor
    )
    same_tensors(
        compressed_tensors.to_fp4(w),
        {"weight_packed": data, "weight_scale": scale, "weight_global_scale": divisor},
    )


# -- fp8 ----------------------------------------------------------------------------------------


def test_fp8(rng):
    weight = rng.standard_normal((200, 300)).astype(FP8)
    wide = weight.astype(F)
    for scale in (rng.uniform(0, 1, (200, 1)).astype(F), np.array([0.5], F)):
        w = fp8.from_fp8(weight, scale)
        np.testing.assert_array_equal(dequantize(w), wide * scale)
        same_tensors(fp8.to_fp8(w), {"weight": weight, "weight_scale": scale})
    blocks = rng.uniform(0, 1, (2, 3)).astype(F)
    w = fp8.from_fp8(weight, blocks, weight_block_size=(128, 128))
    full = np.repeat(np.repeat(blocks, 128, 0), 128, 1)[:200, :300]
    np.testing.assert_array_equal(dequantize(w), wide * full)
    same_tensors(fp8.to_fp8(w), {"weight": weight, "weight_scale_inv": blocks})
    w = fp8.from_fp8(weight, np.array([0.5, 2.0], F), logical_widths=[50, 150])
    assert w.granularity == "channel" and w.scale[49, 0] == 0.5 and w.scale[50, 0] == 2


def test_requantize_with_max_scale(rng):
    weight = rng.standard_normal((7, 40)).astype(FP8)
    scale, widths = np.array([0.31, 0.0123, 0.9], F), [2, 0, 5]
    max_scale, got = fp8.requantize_with_max_scale(weight, scale, widths)
    assert max_scale == F(0.9)
    per_row = np.repeat(scale, widths)[:, None]
    half = (weight.astype(F) * per_row).astype(np.float16)
    want = np.clip(half.astype(F) * (F(1) / F(0.9)), -448, 448).astype(FP8)
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), want.view(np.uint8))
    assert (np.asarray(got).view(np.uint8) != weight.view(np.uint8)).any()


@pytest.mark.parametrize("scale", [np.array([0.5, -3.4e38], F), np.array(0.5, F)])
def test_fused_checkpoints_keep_their_bytes(rng, scale):
    """The last slot still at its sentinel, or no slots at all: nothing to requantize."""
    weight = rng.standard_normal((4, 8)).astype(FP8)
    max_scale, got = fp8.requantize_with_max_scale(weight, scale, [2, 2])
    assert max_scale == 0.5
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), weight.view(np.uint8))


def test_requantized_rows_agree_with_the_quantizer(rng):
    x = rng.standard_normal((4, 8)).astype(FP8)
    scale = np.array([2.0], F)
    _, got = fp8.requantize_with_max_scale(x, scale, [4])
    want = quantize_fp8((x.astype(F) * 2).astype(np.float16), 2.0)[0]
    np.testing.assert_array_equal(np.asarray(got, F), np.asarray(want, F))


# -- any weight ---------------------------------------------------------------------------------


@st.composite
def weights(draw, asymmetric=None):
    """An integer weight of any codes, scales and groups; N and K fill whole words."""
    bits = draw(st.sampled_from([4, 8]))
    groups, size = draw(st.integers(1, 3)), 8 * draw(st.integers(1, 3))
    n, k = 8 * draw(st.integers(1, 3)), groups * size
    has_zeros = draw(st.booleans()) if asymmetric is None else asymmetric
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    types = {
        (4, True): scalar_types.uint4,
        (4, False): scalar_types.uint4b8,
        (8, True): scalar_types.uint8,
        (8, False): scalar_types.uint8b128,
    }
    # Version 1 of GPTQ says 1 to 16 with 4 bits.
    zeros = rng.integers(1, 17 if bits == 4 else 256, (n, groups), dtype=np.uint8)
    return QuantizedTensor(
        data=jnp.asarray(rng.integers(0, 256, (n, k * bits // 8), dtype=np.uint8)),
        scale=jnp.asarray(rng.uniform(-1, 1, (n, groups)).astype(np.float16)),
        zero_point=jnp.asarray(zeros) if has_zeros else None,
        shape=(n, k),
        scalar_type=types[bits, has_zeros],
        group_shape=GroupShape(1, -1 if groups == 1 else size),
    ).validate()


@settings(max_examples=10, deadline=None)
@given(w=weights())
def test_any_weight_through_gptq(w):
    bits, sym = w.scalar_type.size_bits, w.zero_point is None
    same_tree(gptq.from_gptq(**gptq.to_gptq(w), bits=bits, sym=sym), w)


@settings(max_examples=10, deadline=None)
@given(w=weights())
def test_any_weight_through_compressed_tensors(w):
    if w.zero_point is not None:  # a word's four bits hold 0 to 15
        w = dataclasses.replace(w, zero_point=w.zero_point & (2**w.scalar_type.size_bits - 1))
    tensors = compressed_tensors.to_wna16(w)
    same_tree(compressed_tensors.from_wna16(**tensors, bits=w.scalar_type.size_bits), w)


@settings(max_examples=10, deadline=None)
@given(w=weights(asymmetric=True))
def test_any_weight_through_awq(w):
    w = dataclasses.replace(w, zero_point=w.zero_point & (2**w.scalar_type.size_bits - 1))
    same_tree(awq.from_awq(**awq.to_awq(w), bits=w.scalar_type.size_bits), w)


# -- under jit, and bad input -------------------------------------------------------------------


def test_conversion_under_jit(rng):
    layer = gptq_layer(rng, 4, 16, 64, 4, True)
    into = functools.partial(gptq.from_gptq, sym=False, v2=True)
    w = into(**layer)
    same_tree(jax.jit(into)(**layer), w)
    same_tensors(jax.jit(functools.partial(gptq.to_gptq, v2=True))(w), layer)


I32, H = np.zeros((2, 8), np.int32), np.ones((1, 8), np.float16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gptq.from_gptq(I32.astype(F), H), TypeError, "qweight: .*int32.*float32"),
        (lambda: gptq.from_gptq(I32, H[:, :7]), ValueError, "scales: .*N = 8"),
        (lambda: gptq.from_gptq(I32, np.ones((3, 8), F)), ValueError, "scales: .*divisor of 16"),
        (lambda: gptq.from_gptq(I32, H, bits=3), ValueError, "bits: expected 4 or 8, got 3"),
        (lambda: gptq.from_gptq(I32, H, sym=False), ValueError, "qzeros"),
        (lambda: gptq.from_gptq(I32, H, I32, sym=False), ValueError, r"qzeros: .*\[1, 1\]"),
        (lambda: gptq.from_gptq(I32, H, g_idx=I32[0]), ValueError, r"g_idx: .*\[16\].*\[8\]"),
        (lambda: awq.from_awq(I32, I32, H), ValueError, "scales: .*N = 64"),
        (lambda: awq.from_awq(I32, I32, np.ones((1, 64), F)), ValueError, r"qzeros: .*\[1, 8\]"),
        (lambda: compressed_tensors.from_wna16(I32, H), ValueError, "weight_scale"),
        (lambda: compressed_tensors.from_wna16(I32, np.ones((2, 3), F)), ValueError, "divisor"),
        (lambda: compressed_tensors.from_wna16(I32, H.reshape(2, 4), weight_shape=(2, 99)),
         ValueError, r"weight_packed: .*\[2, 13\]"),
        (lambda: compressed_tensors.from_w8a8_int8(np.zeros((4, 2), np.int8), np.ones(3, F)),
         ValueError, "weight_scale: .*logical_widths"),
        (lambda: fp8.from_fp8(np.zeros((4, 2), np.int8), np.ones(3, F)), TypeError, "weight: "),
        (lambda: fp8.from_fp8(np.zeros((4, 2), FP8), np.ones((4, 2), F), weight_block_size=(2, 2)),
         ValueError, r"scale: .*\[2, 1\]"),
        (lambda: fp8.requantize_with_max_scale(np.zeros((4, 2), FP8), np.ones(2, F), [1, 1]),
         ValueError, "logical_widths: .*N = 4"),
        (lambda: awq.to_awq(quantize(np.ones((8, 8), F), scalar_types.int4)), ValueError, "w: "),
        (lambda: gptq.to_gptq(quantize(np.ones((7, 8), F), scalar_types.uint4b8)),
         ValueError, "w: .*multiples of 8"),
        (lambda: fp8.to_fp8(quantize(np.ones((8, 8), F), scalar_types.int8)), ValueError, "w: "),
        (lambda: gptq.to_gptq(QuantizedTensor(I32, H, shape=(8, 8),
                                              scalar_type=scalar_types.uint4b8, layout="other")),
         ValueError, "layout"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

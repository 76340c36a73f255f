# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The layout "hopper_fragment": exact both ways, no larger, and in the order its text says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT, prepare, unprepare
from jaxkernels.mosaic import convert
from jaxkernels.quantized import GroupShape, QuantizedTensor, pack_nibbles
from jaxkernels.quantizer import quantize
from jaxkernels.scalar_types import scalar_types

TYPES = list(convert.FORMATS)
ZERO_POINTS = (scalar_types.uint4, scalar_types.uint8)


def random_weight(rng, scalar_type, n, k, group, *, act_order=False, scale_dtype=jnp.bfloat16):
    """Any codes, any scale bits: not only what a quantizer makes."""
    groups = 1 if group == -1 else k // group
    four = scalar_type.size_bits == 4
    codes = jnp.asarray(rng.integers(0, 16 if four else 256, (n, k), dtype=np.uint8))
    if four:
        data = pack_nibbles(codes)
    else:
        at_rest = {scalar_types.int8: jnp.int8, scalar_types.float8_e4m3fn: jnp.float8_e4m3fn}
        data = jax.lax.bitcast_convert_type(codes, at_rest.get(scalar_type, jnp.uint8))
    zero = None
    if scalar_type in ZERO_POINTS:
        zero = jnp.asarray(rng.integers(0, 16 if four else 256, (n, groups), dtype=np.uint8))
    g_idx = None
    if act_order:
        g_idx = jnp.asarray(rng.permutation(np.arange(k) // group).astype(np.int32))
    return QuantizedTensor(
        data=data,
        scale=jnp.asarray(rng.normal(size=(n, groups)), scale_dtype),
        zero_point=zero,
        g_idx=g_idx,
        shape=(n, k),
        scalar_type=scalar_type,
        group_shape=GroupShape(1, group),
    ).validate()


def assert_same_bits(a: QuantizedTensor, b: QuantizedTensor):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        left, right = (np.asarray(v).view(np.uint8) for v in (left, right))
        np.testing.assert_array_equal(left, right)


@settings(max_examples=20, deadline=None)
@given(
    scalar_type=st.sampled_from(TYPES),
    n=st.integers(1, 140),
    groups=st.integers(1, 5),
    group=st.sampled_from([-1, 32, 64, 128]),
    act_order=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_unprepare_gives_back_every_bit(scalar_type, n, groups, group, act_order, seed):
    rng = np.random.default_rng(seed)
    k = 32 * groups if group == -1 else group * groups
    act_order = act_order and group > 0
    w = random_weight(rng, scalar_type, n, k, group, act_order=act_order)
    prepared = prepare(w)
    assert prepared.layout == HOPPER_FRAGMENT
    assert prepared.granularity in ("group", "channel", "tensor")
    assert_same_bits(unprepare(prepared), w)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_scales_without_groups_come_back_in_their_shape(rng, granularity):
    values = jnp.asarray(rng.normal(size=(72, 96)), jnp.float32)
    w = quantize(values, scalar_types.float8_e4m3fn, granularity=granularity)
    prepared = prepare(w)
    assert prepared.granularity == granularity
    assert_same_bits(unprepare(prepared), w)


@pytest.mark.parametrize("scalar_type", TYPES, ids=str)
def test_prepared_bytes_are_the_packed_bytes(rng, scalar_type):
    w = random_weight(rng, scalar_type, 256, 512, 128)
    assert prepare(w).nbytes == w.nbytes


@pytest.mark.parametrize("scalar_type", [scalar_types.uint4b8, scalar_types.int8], ids=str)
def test_words_lie_where_the_docstring_says(rng, scalar_type):
    """Element by element, by the formula, against the vectorized packing."""
    fmt = convert.FORMATS[scalar_type]
    codes = rng.integers(0, 2**fmt.bits, (64, 64), dtype=np.uint8)
    words = np.asarray(convert.pack_tiles(jnp.asarray(codes), fmt)).view(np.uint32)
    thread_words = words.reshape(fmt.bits // 4, 128, 4)  # register, thread, word of 16 bytes
    for n in range(64):
        for k in range(64):
            warp, half, row = n // 16, n // 8 % 2, n % 8
            r, k8, quad, e = k // 16, k // 8 % 2, k % 8 // 2, k % 2
            thread = 32 * warp + 4 * row + quad
            if fmt.bits == 4:
                word, shift = r, 4 * (2 * k8 + half) + 16 * e
            else:
                word, shift = 2 * r + k8, 8 * half + 16 * e
            stored = thread_words[word // 4, thread, word % 4] >> shift & (2**fmt.bits - 1)
            assert stored == codes[n, k] ^ fmt.flip, (n, k)


def test_what_cannot_be_prepared_says_why(rng):
    w = random_weight(rng, scalar_types.uint4b8, 64, 128, 64)
    with pytest.raises(ValueError, match="expected layout 'plain', got 'hopper_fragment'"):
        prepare(prepare(w))
    with pytest.raises(ValueError, match="expected layout 'hopper_fragment', got 'plain'"):
        unprepare(w)
    block = quantize(jnp.ones((256, 256)), scalar_types.float8_e4m3fn, 128, granularity="block")
    with pytest.raises(ValueError, match="scales in blocks"):
        prepare(block)
    fp4 = quantize(
        jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), scalar_types.float4_e2m1f, 16
    )
    with pytest.raises(ValueError, match="no fragment format for float4_e2m1f"):
        prepare(fp4)

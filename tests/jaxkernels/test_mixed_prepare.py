# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The layout "hopper_fragment": exact both ways, no larger, and in the order its text says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT, prepare, unprepare
from jaxkernels.mosaic import convert
from jaxkernels.mosaic.weight_formats import PLACES
from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.quantizer import quantize
from jaxkernels.scalar_types import scalar_types

from .mixed_mm_cases import CASES, SHARDED, random_shard, random_weight

TYPES = list(convert.FORMATS)


def assert_same_bits(a: QuantizedTensor, b: QuantizedTensor):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        left, right = (np.asarray(v).view(np.uint8) for v in (left, right))
        np.testing.assert_array_equal(left, right)


@settings(max_examples=25, deadline=None)
@given(
    case=st.sampled_from(CASES),
    n=st.integers(1, 140),
    groups=st.integers(2, 5),
    act_order=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_unprepare_gives_back_every_bit(case, n, groups, act_order, seed):
    rng = np.random.default_rng(seed)
    k = groups * (32 if case.group == -1 else case.group)
    can_shuffle = case.group != -1 and case.group_shape.row == 1
    w = random_weight(rng, case, n, k, act_order=act_order and can_shuffle)
    prepared = prepare(w)
    assert prepared.layout == HOPPER_FRAGMENT
    assert prepared.granularity == w.granularity or w.scale.size == 1
    assert_same_bits(unprepare(prepared), w)


@pytest.mark.parametrize("case", SHARDED, ids=str)
def test_a_shard_of_act_order_comes_back(rng, case):
    w = random_shard(rng, case, 72, 128)
    prepared = prepare(w)
    columns, groups = np.asarray(prepared.g_idx)
    assert columns.size % 16 == 0 and set(columns) == set(range(128))
    assert (groups.reshape(-1, 16) == groups[::16, None]).all()  # a slot has one scale
    assert_same_bits(unprepare(prepared), w)
    with pytest.raises(ValueError, match="g_idx: expected values .a K shard is prepared outside"):
        jax.jit(prepare)(w)


def test_ragged_blocks_come_back(rng):
    values = jnp.asarray(rng.normal(size=(200, 320)), jnp.float32)
    w = quantize(values, scalar_types.float8_e4m3fn, 128, granularity="block")
    assert prepare(w).scale.shape == (4, 3, 32)
    assert_same_bits(unprepare(prepare(w)), w)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_scales_without_groups_come_back_in_their_shape(rng, granularity):
    values = jnp.asarray(rng.normal(size=(72, 96)), jnp.float32)
    w = quantize(values, scalar_types.float8_e4m3fn, granularity=granularity)
    prepared = prepare(w)
    assert prepared.granularity == granularity
    assert_same_bits(unprepare(prepared), w)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prepared_bytes_are_the_packed_bytes(rng, case):
    w = random_weight(rng, case, 256, 512)
    if case.group_shape == (-1, -1):  # one number becomes one a row
        w = dataclasses.replace(w, scale=jnp.ones((256, 1)), group_shape=GroupShape(1, -1))
    assert prepare(w).nbytes <= 1.02 * w.nbytes
    assert prepare(w).nbytes == w.nbytes or case.group_shape.row > 1


@pytest.mark.parametrize(
    "scalar_type",
    [
        scalar_types.uint4b8,
        scalar_types.int8,
        scalar_types.float4_e2m1f,
        scalar_types.float8_e4m3fn,
    ],
    ids=str,
)
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
            thread, j = 32 * warp + 4 * row + quad, 2 * k8 + half
            word = r if fmt.bits == 4 else 2 * r + k8
            if fmt.is_float:
                places = PLACES[fmt.kind][j if fmt.bits == 4 else half]
            else:
                start = 4 * j if fmt.bits == 4 else 8 * half
                places = range(start, start + fmt.bits)
            held = int(thread_words[word // 4, thread, word % 4])
            stored = sum((held >> (place + 16 * e) & 1) << b for b, place in enumerate(places))
            assert stored == codes[n, k] ^ fmt.flip, (n, k)


def test_what_cannot_be_prepared_says_why(rng):
    w = quantize(jnp.ones((64, 128)), scalar_types.uint4b8, 64)
    with pytest.raises(ValueError, match="expected layout 'plain', got 'hopper_fragment'"):
        prepare(prepare(w))
    with pytest.raises(ValueError, match="expected layout 'hopper_fragment', got 'plain'"):
        unprepare(w)
    with pytest.raises(ValueError, match="must be 16, 32 or a multiple of 64, got 48"):
        prepare(quantize(jnp.ones((8, 96)), scalar_types.uint4b8, 48))
    block = quantize(jnp.ones((64, 64)), scalar_types.float8_e4m3fn, 32, granularity="block")
    with pytest.raises(ValueError, match="blocks must be multiples of 64 rows and columns"):
        prepare(block)
    small = dataclasses.replace(w, scale=jnp.ones((64, 2), jnp.float8_e4m3fn))
    with pytest.raises(ValueError, match="scales of 8 bits go with float weights"):
        prepare(small)

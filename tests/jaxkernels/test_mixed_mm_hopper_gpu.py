# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm's Hopper kernels on a GPU: weights recovered bit for bit, full shapes, repeatability."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import dequantize, mixed_mm, quantize
from jaxkernels.mixed_mm.hopper_decode import DecodeConfig
from jaxkernels.mixed_mm.hopper_prefill import PrefillConfig
from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT, prepare
from jaxkernels.mosaic import convert
from jaxkernels.mosaic.convert import FORMATS
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import MixedMMProblem
from jaxkernels.scalar_types import scalar_types
from jaxkernels.tuning import mixed_mm as tuning

from .mixed_mm_cases import (
    CASES,
    SHARDED,
    ZERO_POINTS,
    case_of,
    random_scales,
    random_shard,
    random_weight,
    recovered,
)

pytestmark = pytest.mark.gpu


def weight(rng, scalar_type, n, k, group, dtype=jnp.bfloat16):
    values = jnp.asarray(rng.normal(size=(n, k)), dtype)
    return quantize(values, scalar_type, group, zero_points=scalar_type in ZERO_POINTS)


def same_values(a, b):
    """Every value equal; a sum starts at +0, so a weight of -0 (fp8 has one) comes out as +0."""
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_array_equal(a.view(np.uint16), np.ascontiguousarray(b).view(np.uint16))


# Two paths of each kernel; every case meets both kernels and both dtypes.
DECODE = (DecodeConfig(16, 2, 2, 128, 2, 2, "weight"), DecodeConfig(64, 2, 1, 128, 2, 1, "weight"))
PREFILL = (PrefillConfig(256, 2, 64, 3, 2), PrefillConfig(128, 2, 64, 3))
ON_SUM = (DecodeConfig(64, 2, 1, 128, 2), DecodeConfig(16, 2, 2, 128, 2, 2))
DTYPES = ("bfloat16", "float16")


def check_one_hot(w, dtype, config):
    x = jnp.eye(w.shape[1], dtype=dtype)
    got = mixed_mm(x, prepare(w), implementation="hopper", config=config)
    same_values(got, recovered(w, dtype, getattr(config, "scale_on", "weight")).T)


@pytest.mark.parametrize("i, case", list(enumerate(CASES)), ids=str)
def test_one_hot_rows_recover_each_weight_bit_for_bit(rng, i, case):
    """Every type with every kind of scale, over every code, by both kernels."""
    n, k = 200, 480 if case.group in (16, 32) else 512  # of small groups, half a tile at the end
    for j, dtype in enumerate(DTYPES):
        w = random_weight(rng, case, n, k, dtype)
        check_one_hot(w, dtype, (DECODE, PREFILL)[(i + j) % 2][i // 2 % 2])
        if case.group not in (16, 32) and j == i // 2 % 2:
            check_one_hot(w, dtype, ON_SUM[i % 2])


@pytest.mark.parametrize("i, case", list(enumerate(SHARDED)), ids=str)
def test_a_shard_of_act_order(rng, i, case):
    dtype = DTYPES[i % 2]
    check_one_hot(random_shard(rng, case, 200, 512, dtype), dtype, DECODE[i // 2 % 2])


@pytest.mark.parametrize("m", [1, 3, 8, 16, 300])
@pytest.mark.parametrize(
    "n, k, group",
    [
        (4096, 4096, 128),
        (1024, 14336, 128),
        (512, 28672, 128),
        (264, 1280, 128),
        (4096, 4096, 32),
        (264, 1280, 32),
    ],
)
def test_act_order(rng, m, n, k, group):
    """By the decode kernel that picks x's columns itself, or after a gather, as tuning chooses."""
    case = case_of(scalar_types.uint4b8, group)
    w, columns = random_weight(rng, case, n, k, act_order=True), rng.choice(k, m, replace=False)
    x = jnp.zeros((m, k), jnp.bfloat16).at[jnp.arange(m), columns].set(1)
    problem = MixedMMProblem(
        m, n, k, w.scalar_type, "bfloat16", "bfloat16", group, g_idx=True, layout=HOPPER_FRAGMENT,
        scale_dtype="bfloat16",
    )  # fmt: skip
    config = tuning.choose(problem, trace_device())
    got = mixed_mm(x, prepare(w), implementation="hopper", config=config)
    scale_on = getattr(config, "scale_on", "weight")
    same_values(got, recovered(w, "bfloat16", scale_on)[:, columns].T)


@pytest.mark.parametrize(
    "i, case",
    list(
        enumerate(c for c in CASES if c.group == 32 and c.scale in ("activation", "float8_e8m0fnu"))
    ),
    ids=str,
)
def test_scales_far_from_one(rng, i, case):
    """bfloat16 leaves powers of two out of weights and puts them on the sum: nothing is lost."""
    w = random_weight(rng, case, 64, 256)
    codes = jnp.asarray(rng.integers(127 - 54, 127 + 54, w.scale.shape, dtype=np.uint8))
    powers = jax.lax.bitcast_convert_type(codes, jnp.float8_e8m0fnu)
    if w.scale.dtype != powers.dtype:
        powers = (powers.astype(jnp.float32) * 1.25).astype(w.scale.dtype)
    config = (DECODE, PREFILL)[i % 2][i // 2 % 2]
    check_one_hot(dataclasses.replace(w, scale=powers), "bfloat16", config)


def tile_by_ptx(words, fmt, dtype, zeros, scales, scales_are):
    """What `convert.fragment` makes of one tile on the GPU."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def kernel(words_gmem, *refs):
        *rows, out_gmem = refs
        load = [convert.load_zeros] * len(zeros) + [convert.load_rows] * len(scales)
        rows = [f(ref) for f, ref in zip(load, rows, strict=True)]
        out_gmem[...] = convert.fragment(
            convert.load_words(words_gmem, fmt), fmt, dtype,
            zeros=tuple(rows[: len(zeros)]), scales=tuple(rows[len(zeros) :]),
            scales_are=scales_are,
        )  # fmt: skip

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((64, 64), dtype),
        num_threads=1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(words, *zeros, *scales)


@pytest.mark.parametrize("scalar_type", FORMATS, ids=str)
def test_register_conversion_equals_its_twin(rng, scalar_type):
    """Same tile, same zero points, same scales: 64 x 64 values by PTX and by jax.numpy."""
    fmt = FORMATS[scalar_type]
    codes = jnp.asarray(rng.integers(0, 2**fmt.bits, (64, 64), dtype=np.uint8))
    if fmt.kind == "e4m3":
        codes = jnp.where(codes & 0x7F == 0x7F, jnp.uint8(0), codes)  # NaN codes are not numbers
    words = convert.pack_tiles(codes, fmt)[0]
    zeros = ()
    if scalar_type in ZERO_POINTS:
        zeros = (jnp.asarray(rng.integers(0, 2**fmt.bits, 64, dtype=np.uint8)),)
    for dtype in (jnp.bfloat16, jnp.float16):
        floats = jnp.asarray(rng.uniform(0.001, 0.1, 64), dtype)
        variants = [("float", ()), ("float", (floats,))]
        if fmt.is_float:
            e4m3 = jax.lax.bitcast_convert_type(
                random_scales(rng, (64, 4), "float8_e4m3fn", 0x6F), jnp.int32
            )
            e8m0 = jax.lax.bitcast_convert_type(
                random_scales(rng, (64, 2), "float8_e8m0fnu"), jnp.int16
            )
            variants += [("e4m3", (e4m3,)), ("e8m0", (e8m0,))]
        for scales_are, scales in variants:
            out = tile_by_ptx(words, fmt, dtype, zeros, scales, scales_are)
            twin = convert.fragment_twin(
                words, fmt, dtype, zeros=tuple(z.astype(jnp.int32) for z in zeros), scales=scales,
                scales_are=scales_are,
            )  # fmt: skip
            same_bits(out, twin)


FULL = list(itertools.product((1, 13, 64, 257, 1024), ((4096, 4096, 128), (4224, 4160, 64))))


@pytest.mark.parametrize("m, shape", FULL)
def test_full_shapes_with_the_tuned_config(rng, m, shape):
    n, k, group = shape
    w = weight(rng, scalar_types.uint4b8, n, k, group)
    x = jnp.asarray(rng.normal(size=(m, k)), jnp.bfloat16)
    bias = jnp.asarray(rng.normal(size=n), jnp.bfloat16)
    prepared = prepare(w)
    got = mixed_mm(x, prepared, bias=bias, implementation="hopper")
    again = mixed_mm(x, prepared, bias=bias, implementation="hopper")
    same_bits(got, again)
    exact = jnp.dot(x.astype(jnp.float32), dequantize(w).T, precision="highest") + bias
    plain = jnp.dot(x, dequantize(w, jnp.bfloat16).T, preferred_element_type=jnp.float32) + bias
    allowed = 2 * jnp.abs(plain.astype(jnp.bfloat16) - exact).max() + 1e-5
    assert jnp.abs(got - exact).max() <= allowed


@pytest.mark.parametrize("m", [16, 300])
def test_layers_that_overlap_read_finished_results(rng, m):
    """Each starts under the one ahead, whose result it reads: bit for bit what waiting gives."""
    layers = [prepare(weight(rng, scalar_types.uint4b8, 2048, 2048, 128)) for _ in range(3)] * 4
    x = jnp.asarray(rng.normal(size=(m, 2048)) / 8, jnp.bfloat16)

    def chain(x, layers):
        for w in layers:
            x = mixed_mm(x, w, implementation="hopper")
        return x

    one, expected = jax.jit(lambda x, w: mixed_mm(x, w, implementation="hopper")), x
    for w in layers:
        expected = jax.block_until_ready(one(expected, w))
    overlapped = jax.jit(chain)
    for _ in range(5):
        same_bits(overlapped(x, layers), expected)


# Marlin's own grid upstream: rows of x, tiles of 64 or 256 rows of w, blocks of 128 of K.
GRID = [(1, 1, 1), (1, 4, 8), (26, 37, 13), (257, 13, 11)]
FLOATS = {
    "nvfp4": (scalar_types.float4_e2m1f, 16, None),
    "mxfp4": (scalar_types.float4_e2m1f, 32, None),
    "fp8": (scalar_types.float8_e4m3fn, -1, None),
    "fp8 in groups": (scalar_types.float8_e4m3fn, 128, None),
    "fp8 in blocks": (scalar_types.float8_e4m3fn, 128, "block"),
}


@pytest.mark.parametrize("name", FLOATS)
def test_upstreams_grid_of_float_weights(rng, name):
    kind, group, granularity = FLOATS[name]
    for i, (m, n_tiles, k_blocks) in enumerate(GRID):
        n, k = n_tiles * (64, 256)[i % 2], 128 * k_blocks
        values = jnp.asarray(rng.normal(size=(n, k)), jnp.float32)
        w = quantize(values, kind, group, granularity=granularity)
        x = jnp.asarray(rng.normal(size=(m, k)), jnp.bfloat16)
        got = mixed_mm(x, prepare(w), implementation="hopper").astype(jnp.float32)
        exact = jnp.dot(x.astype(jnp.float32), dequantize(w).T, precision="highest")
        plain = jnp.dot(x, dequantize(w, jnp.bfloat16).T, preferred_element_type=jnp.float32)
        allowed = 2 * jnp.abs(plain.astype(jnp.bfloat16) - exact).max() + 1e-5
        assert jnp.abs(got - exact).max() <= allowed, (m, n, k)
        # Upstream's own criterion.
        assert jnp.abs(got - exact).mean() / jnp.abs(exact).mean() < 0.04

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm's Hopper kernels on a GPU: weights recovered bit for bit, full shapes, repeatability."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import dequantize, mixed_mm, quantize
from jaxkernels.mixed_mm.hopper_decode import DecodeConfig
from jaxkernels.mixed_mm.hopper_prefill import PrefillConfig
from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic import convert
from jaxkernels.mosaic.convert import FORMATS
from jaxkernels.scalar_types import scalar_types

pytestmark = pytest.mark.gpu
ZERO_POINTS = (scalar_types.uint4, scalar_types.uint8)


def weight(rng, scalar_type, n, k, group, dtype=jnp.bfloat16):
    values = jnp.asarray(rng.normal(size=(n, k)), dtype)
    return quantize(values, scalar_type, group, zero_points=scalar_type in ZERO_POINTS)


def same_values(a, b):
    """Every value equal; a sum starts at +0, so a weight of -0 (fp8 has one) comes out as +0."""
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_array_equal(a.view(np.uint16), np.ascontiguousarray(b).view(np.uint16))


ONE_HOT_CONFIGS = {
    32: (
        DecodeConfig(64, 2, 1, 128, 4, 1, "weight"),
        PrefillConfig(128, 2, 64, 4),
    ),
    64: (
        DecodeConfig(64, 2, 1, 128, 4),
        DecodeConfig(16, 1, 2, 128, 4, 2),
        PrefillConfig(256, 2, 64, 4, 2),
    ),
    -1: (DecodeConfig(32, 2, 2, 256, 2, 2), PrefillConfig(192, 2, 64, 4)),
}


@pytest.mark.parametrize("group", ONE_HOT_CONFIGS)
@pytest.mark.parametrize("scalar_type", FORMATS, ids=str)
def test_one_hot_rows_recover_each_weight_bit_for_bit(rng, scalar_type, group):
    """The register conversion against the plain maths, over every code of every type."""
    n, k = 200, 512
    for dtype in (jnp.bfloat16, jnp.float16):
        w = weight(rng, scalar_type, n, k, group, dtype)
        prepared, x, expected = prepare(w), jnp.eye(k, dtype=dtype), dequantize(w, dtype).T
        for config in ONE_HOT_CONFIGS[group]:
            got = mixed_mm(x, prepared, implementation="hopper", config=config)
            same_values(got, expected)


@pytest.mark.parametrize("scalar_type", FORMATS, ids=str)
def test_register_conversion_equals_its_twin(rng, scalar_type):
    """Same tile, same zero points, same scales: 64 x 64 values by PTX and by jax.numpy."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    fmt = FORMATS[scalar_type]
    codes = jnp.asarray(rng.integers(0, 2**fmt.bits, (64, 64), dtype=np.uint8))
    if fmt.kind == "e4m3":
        codes = jnp.where(codes & 0x7F == 0x7F, jnp.uint8(0), codes)  # NaN codes are not numbers
    words = convert.pack_tiles(codes, fmt)[0]
    zero = jnp.asarray(rng.integers(0, 2**fmt.bits, 64, dtype=np.uint8))
    for dtype in (jnp.bfloat16, jnp.float16):
        scale = jnp.asarray(rng.uniform(0.001, 0.1, 64), dtype)
        zeros = scalar_type in ZERO_POINTS

        def kernel(words_gmem, zero_gmem, scale_gmem, out_gmem, dtype=dtype, zeros=zeros):
            a = convert.fragment(
                convert.load_words(words_gmem, fmt),
                fmt,
                dtype,
                zeros=(convert.load_zeros(zero_gmem),) if zeros else (),
                scales=(convert.load_rows(scale_gmem),),
            )
            out_gmem[...] = a

        out = plgpu.kernel(
            kernel,
            out_type=jax.ShapeDtypeStruct((64, 64), dtype),
            num_threads=1,
            thread_name="wg",
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        )(words, zero, scale)
        rows = (zero.astype(jnp.int32),) if zeros else ()
        same_bits(out, convert.fragment_twin(words, fmt, dtype, zeros=rows, scales=(scale,)))


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

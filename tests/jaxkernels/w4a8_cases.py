# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Operands and exact results for the tests of w4a8_mm."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkernels.quantized import GroupShape, QuantizedTensor, pack_nibbles
from jaxkernels.quantizer import quantize
from jaxkernels.scalar_types import scalar_types

DTYPES = {"fp8": jnp.float8_e4m3fn, "int8": jnp.int8}


def random_weight(rng, kind, n, k, group=128, scalar_type=scalar_types.int4) -> QuantizedTensor:
    """A quantized normal weight; with fp8 its scales are split in two."""
    from jaxkernels.mixed_mm import split_scales

    w = quantize(jnp.asarray(rng.normal(size=(n, k)), jnp.bfloat16), scalar_type, group)
    return split_scales(w) if kind == "fp8" else w


def every_product(rng) -> QuantizedTensor:
    """128 x 256: each finite e4m3 number is a group's scale, each code is in each group."""
    bits = np.arange(256, dtype=np.uint8)
    bits = np.where(bits & 0x7F == 0x7F, np.uint8(0x38), bits)
    scale = jax.lax.bitcast_convert_type(jnp.asarray(bits).reshape(128, 2), jnp.float8_e4m3fn)
    codes = rng.permuted(np.tile(np.arange(16, dtype=np.uint8), (256, 8)), axis=1)
    return QuantizedTensor(
        pack_nibbles(jnp.asarray(codes).reshape(128, 256)),
        scale,
        shape=(128, 256),
        scalar_type=scalar_types.int4,
        group_shape=GroupShape(1, 128),
    ).validate()


def random_x(rng, kind, *shape):
    """Activations in 8 bits, and one scale a row."""
    x = rng.normal(size=shape) * 40
    x = x.clip(-127, 127).round() if kind == "int8" else x
    scale = jnp.asarray(rng.uniform(0.001, 0.01, (*shape[:-1], 1)), jnp.float32)
    return jnp.asarray(x, jnp.float32).astype(DTYPES[kind]), scale


def codes_of(w) -> np.ndarray:
    """int64 [N, K] of a plain weight: -8 to 7."""
    data = np.asarray(w.data)
    codes = np.stack([data & 15, data >> 4], -1).reshape(w.shape).astype(np.int64)
    return codes - 8 if w.scalar_type == scalar_types.uint4b8 else (codes ^ 8) - 8


def exact_values(w) -> np.ndarray:
    """float64 [N, K] that the spec multiplies with: products of fp8 scales rounded to e4m3."""
    scale = np.asarray(w.scale, np.float64).repeat(w.shape[1] // w.scale.shape[1], 1)
    value = codes_of(w) * scale
    if w.scale.dtype == jnp.float8_e4m3fn:
        value = round_to_e4m3(value)
    return value if w.global_scale is None else value * np.asarray(w.global_scale, np.float64)


def round_to_e4m3(value: np.ndarray) -> np.ndarray:
    """To nearest, ties to even: 3 bits after the leading one, and 2^-9 at least."""
    size = np.abs(value)
    exponent = np.floor(np.log2(np.maximum(size, 2.0**-6)))
    unit = 2.0 ** (exponent - 3)
    return np.sign(value) * np.minimum(np.rint(size / unit) * unit, 448.0)


def exact(x, w, x_scale, bias=None) -> np.ndarray:
    """float64 [..., N]."""
    out = np.asarray(x, np.float64) @ exact_values(w).T * np.asarray(x_scale, np.float64)
    return out if bias is None else out + np.asarray(bias, np.float64)

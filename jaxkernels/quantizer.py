# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Weights into a `QuantizedTensor`, by rounding to nearest."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels import checks
from jaxkernels.quantize.exact import divide
from jaxkernels.quantized import (
    WEIGHT_TYPES,
    ZERO_POINT_TYPES,
    GroupShape,
    QuantizedTensor,
    expand_to_elements,
    pack_nibbles,
    scale_shape,
)
from jaxkernels.scalar_types import ScalarType, scalar_types

_FP8_MAX = 448.0
_E2M1_MAX = 6.0
_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def quantize(
    w: jax.Array,
    scalar_type: ScalarType,
    group_size: int = -1,
    *,
    zero_points: bool = False,
    granularity: str | None = None,
    scale_dtype: Any = None,
) -> QuantizedTensor:
    """Quantizes a weight `[N, K]` by rounding to nearest.

    Integers without zero points: `s = max(|max / qmax|, |min / qmin|)`, `q = clamp(rne(w / s))`.
    With zero points: `s = max(max - min, 1e-5) / qmax`, `zp = clamp(rne(|min / s|))`,
    `q = clamp(rne(w / s) + zp)`, with 0 counted into the range. float8: `s = amax / 448`,
    `q = fp8(clamp(w / s))`. float4 in groups of 16 is NVFP4: `global = amax / (448 * 6)`,
    `s = fp8(group_amax / (6 * global))`; in groups of 32 it is MXFP4: `s = 2^floor(log2 amax) / 4`.

    Args:
      w: float [N, K].
      scalar_type: int4, uint4b8, int8, uint8b128, float8_e4m3fn, float4_e2m1f; uint4 and uint8
        with zero points.
      group_size: elements of K per scale; -1 is the whole of K. Must divide K, but for blocks.
      zero_points: asymmetric, one zero point a scale (uint4 and uint8 only).
      granularity: "tensor", "channel", "group" or "block" (group_size x group_size); by default
        "channel" for group_size -1 and "group" otherwise.
      scale_dtype: dtype of the scales; by default w's own for groups of a 16-bit w, fixed for
        float4, and float32 otherwise. Codes are chosen with the rounded scale.

    Returns:
      A `QuantizedTensor` of plain layout. A group of zeros gets scale 0 and codes of value 0.

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `quantize_weights` (test utility); OCP MX v1.0 for MXFP4.

    Example:
      >>> from jaxkernels import dequantize
      >>> w = quantize(jnp.array([[0.0, 1.0, 2.0, 3.0]]), scalar_types.uint4, zero_points=True)
      >>> dequantize(w)
      Array([[0., 1., 2., 3.]], dtype=float32)
    """
    w = checks.as_array("w", w, [jnp.float32, jnp.bfloat16, jnp.float16])
    if w.ndim != 2:
        checks.bad_value("w", "2 dimensions [N, K]", w)
    if scalar_type not in WEIGHT_TYPES:
        known = ", ".join(map(str, WEIGHT_TYPES))
        checks.bad_value("scalar_type", f"one of {known}", scalar_type)
    if zero_points and scalar_type not in ZERO_POINT_TYPES:
        checks.bad_value("zero_points", f"False for {scalar_type}", zero_points)
    if not zero_points and scalar_type in ZERO_POINT_TYPES:
        checks.bad_value(
            "zero_points", f"True for {scalar_type} (its biased twin does without)", zero_points
        )
    group_shape = _group_shape(group_size, granularity)
    scale_shape(w.shape, group_shape)  # checks that groups divide K
    if scalar_type.size_bits == 4 and w.shape[1] % 2:
        checks.bad_value("w", "an even K for a 4-bit type (two a byte)", w)
    if scalar_type == scalar_types.float4_e2m1f and tuple(group_shape) not in ((1, 16), (1, 32)):
        checks.bad_value("group_size", "16 (NVFP4) or 32 (MXFP4) for float4_e2m1f", group_size)
    if scale_dtype is None:
        wide = group_shape.is_per_group() and w.dtype != jnp.float32
        scale_dtype = w.dtype if wide else jnp.float32

    scale_dtype = jnp.dtype(scale_dtype).name
    return _quantize(w, scalar_type, group_shape, zero_points, scale_dtype).validate()


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _quantize(
    w: jax.Array,
    scalar_type: ScalarType,
    group_shape: GroupShape,
    zero_points: bool,
    scale_dtype: str,
) -> QuantizedTensor:
    values = w.astype(jnp.float32)
    low, high = _group_limits(values, group_shape)
    zero_point = global_scale = None
    if scalar_type == scalar_types.float4_e2m1f:
        scale, global_scale = _fp4_scales(jnp.maximum(-low, high), group_shape.col)
    elif scalar_type.is_floating_point():
        scale = divide(jnp.maximum(-low, high), _FP8_MAX).astype(scale_dtype)
    elif zero_points:
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        scale = divide(jnp.maximum(high - low, 1e-5), scalar_type.max()).astype(scale_dtype)
        zero_point = jnp.round(jnp.abs(divide(low, scale.astype(jnp.float32))))
        zero_point = jnp.clip(zero_point, 0, scalar_type.max()).astype(jnp.uint8)
    else:
        limits = (divide(high, scalar_type.max()), divide(low, scalar_type.min()))
        scale = jnp.maximum(*map(jnp.abs, limits)).astype(scale_dtype)

    result = QuantizedTensor(
        data=w,  # replaced below; the shape helpers need the rest only
        scale=scale,
        zero_point=zero_point,
        global_scale=global_scale,
        shape=w.shape,
        scalar_type=scalar_type,
        group_shape=group_shape,
    )
    steps = expand_to_elements(result, scale.astype(jnp.float32))
    if global_scale is not None:
        steps = steps * global_scale
    codes = _codes(divide(values, jnp.where(steps == 0, 1, steps)), result)
    return dataclasses.replace(result, data=pack_nibbles(codes) if result.packed else codes)


def _group_shape(group_size: int, granularity: str | None) -> GroupShape:
    if not isinstance(group_size, int) or (group_size < 1 and group_size != -1):
        checks.bad_value("group_size", "a positive int, or -1 for the whole of K", group_size)
    granularity = granularity or ("channel" if group_size == -1 else "group")
    shapes = {
        "tensor": GroupShape(-1, -1),
        "channel": GroupShape(1, -1),
        "group": GroupShape(1, group_size),
        "block": GroupShape(group_size, group_size),
    }
    if granularity not in shapes:
        checks.bad_value("granularity", f"one of {', '.join(shapes)}", granularity)
    if (granularity in ("tensor", "channel")) != (group_size == -1):
        checks.bad_value("group_size", f"what granularity {granularity!r} takes", group_size)
    return shapes[granularity]


def _group_limits(values: jax.Array, group_shape: GroupShape):
    """Minimum and maximum of each group, in the scale's shape."""
    (n, k), (rows, columns) = values.shape, scale_shape(values.shape, group_shape)
    height = n if group_shape.row == -1 else group_shape.row
    width = k if group_shape.col == -1 else group_shape.col
    pad = ((0, rows * height - n), (0, columns * width - k))
    limits = []
    for reduce in (jnp.min, jnp.max):
        # Edge padding repeats members of the last block, so it moves no limit.
        tiles = jnp.pad(values, pad, mode="edge").reshape(rows, height, columns, width)
        limits.append(reduce(tiles, axis=(1, 3)))
    return limits


def _fp4_scales(amax: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array | None]:
    if group_size == 32:  # MXFP4: the largest power of two that keeps the exponent of 6
        _, exponent = jnp.frexp(amax)
        exponent = jnp.clip(exponent - 1 - 2, -127, 127)
        codes = jnp.where(amax == 0, 0, exponent + 127).astype(jnp.uint8)
        return jax.lax.bitcast_convert_type(codes, jnp.float8_e8m0fnu), None
    largest = jnp.max(amax)
    global_scale = jnp.where(largest == 0, 1, divide(largest, _FP8_MAX * _E2M1_MAX)).reshape(1, 1)
    scale = jnp.clip(divide(amax, _E2M1_MAX * global_scale), 0, _FP8_MAX)
    return scale.astype(jnp.float8_e4m3fn), global_scale


def _codes(scaled: jax.Array, w: QuantizedTensor) -> jax.Array:
    """Stored codes, one an element, of values already divided by their scale."""
    kind = w.scalar_type
    if kind == scalar_types.float8_e4m3fn:
        return jnp.clip(scaled, -_FP8_MAX, _FP8_MAX).astype(jnp.float8_e4m3fn)
    if kind == scalar_types.float4_e2m1f:
        magnitude = jnp.abs(scaled)
        # Halfway cases go to the even code: alternately down and up.
        code = jnp.zeros(scaled.shape, jnp.uint8)
        steps = zip(_E2M1_MAGNITUDES, _E2M1_MAGNITUDES[1:], strict=False)
        for index, (below, above) in enumerate(steps):
            middle = (below + above) / 2
            passed = magnitude > middle if index % 2 == 0 else magnitude >= middle
            code = code + passed.astype(jnp.uint8)
        return jnp.where(jnp.signbit(scaled), code | 8, code)
    rounded = jnp.round(scaled)
    if w.zero_point is not None:
        rounded = rounded + expand_to_elements(w, w.zero_point.astype(jnp.float32))
    rounded = jnp.clip(rounded, kind.min(), kind.max()).astype(jnp.int32) + kind.bias
    if kind == scalar_types.int8:
        return rounded.astype(jnp.int8)
    return (rounded & (0xF if w.packed else 0xFF)).astype(jnp.uint8)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Activation quantization in plain JAX: the maths, to the bit, on any backend.

Everything is float32. Where CUDA's kernels divide, this divides; where they multiply by a
reciprocal, this does too: the two differ in the last bit of one value in ten or so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkernels import checks
from jaxkernels.problem import Device, Implementation, QuantizeOperands, QuantizeProblem, Support
from jaxkernels.quantize.exact import divide, reciprocal

FP8_MAX = 448.0
MIN_SCALE = 1.0 / (FP8_MAX * 512.0)
GROUP_EPS = 1e-10

Result = tuple[jax.Array, jax.Array, jax.Array | None]


def supports(problem: QuantizeProblem, device: Device) -> Support:
    """Everything, everywhere."""
    return Support(True)


def run(problem: QuantizeProblem, operands: QuantizeOperands, config: None = None) -> Result:
    """(q, scale, azp or None) of a problem; see `QuantizeOperands`."""
    x = operands.x.astype(jnp.float32)
    if problem.out_dtype == "int8":
        if problem.scale == "static":
            return _int8_static(x, operands.scale, operands.zero_point)
        return _int8_per_token(x) if problem.symmetric else _int8_per_token_asymmetric(x)
    if problem.scale == "static":
        return _fp8_static(x, operands.scale)
    if problem.scale == "tensor":
        return _fp8_per_tensor(x)
    if problem.scale == "token":
        return _fp8_per_token(x, operands.scale_ub)
    return _fp8_per_group(x, problem)


def _saturate_int32(rounded: jax.Array) -> jax.Array:
    """float32 whole numbers to int32 as CUDA's cvt does: saturating, NaN to 0."""
    limits = jnp.iinfo(jnp.int32)
    inside = jnp.where(jnp.abs(rounded) < 2.0**31, rounded, 0.0).astype(jnp.int32)
    saturated = jnp.where(rounded >= 2.0**31, limits.max, inside)
    return jnp.where(rounded <= -(2.0**31), limits.min, saturated)


def _to_int8(rounded: jax.Array, azp: jax.Array | None = None) -> jax.Array:
    """sat8(rounded + azp), with a sum that cannot overflow."""
    if azp is None:
        limited = jnp.clip(rounded, -128.0, 127.0)
        return jnp.where(jnp.isnan(rounded), 0.0, limited).astype(jnp.int8)
    limit = jnp.iinfo(jnp.int32).max - 128
    azp = jnp.clip(azp, -limit, limit)
    return (jnp.clip(_saturate_int32(rounded), -128 - azp, 127 - azp) + azp).astype(jnp.int8)


def _to_fp8(scaled: jax.Array) -> jax.Array:
    return jnp.clip(scaled, -FP8_MAX, FP8_MAX).astype(jnp.float8_e4m3fn)


def _int8_static(x: jax.Array, scale: jax.Array, azp: jax.Array | None) -> Result:
    if azp is None:
        return _to_int8(jnp.round(divide(x, scale))), scale, None
    return _to_int8(jnp.round(x * reciprocal(scale)), azp), scale, azp


def _int8_per_token(x: jax.Array) -> Result:
    absmax = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    scale = divide(absmax, 127.0)
    inverse = jnp.where(absmax == 0, 0.0, divide(jnp.full_like(absmax, 127.0), absmax))
    return _to_int8(jnp.round(x * inverse)), scale, None


def _int8_per_token_asymmetric(x: jax.Array) -> Result:
    low = jnp.min(x, axis=1, keepdims=True)
    high = jnp.max(x, axis=1, keepdims=True)
    scale = divide(high - low, 255.0)
    # A constant row has no range, and upstream divides by it. Here it is scale * sign, exactly.
    constant = scale == 0
    azp = jnp.where(constant, 0, _saturate_int32(jnp.round(-128.0 - divide(low, scale))))
    q = _to_int8(jnp.round(x * reciprocal(scale)), azp)
    q = jnp.where(constant, jnp.sign(x).astype(jnp.int8), q)
    return q, jnp.where(constant, jnp.abs(high), scale), azp


def _fp8_static(x: jax.Array, scale: jax.Array) -> Result:
    return _to_fp8(x * reciprocal(scale)), scale, None


def fp8_static_blocks(x: jax.Array, scale: jax.Array) -> jax.Array:
    """fp8 codes with given scales, one a row [..., 1] or in blocks that divide a 2-D x."""
    if scale.shape != (*x.shape[:-1], 1):
        two = x.ndim == 2 == scale.ndim and 0 not in scale.shape
        if not two or x.shape[0] % scale.shape[0] or x.shape[1] % scale.shape[1]:
            wanted = f"one number, one a row, or blocks that divide x {x.shape}"
            checks.bad_value("scale", wanted, scale)
        for axis in (0, 1):
            scale = jnp.repeat(scale, x.shape[axis] // scale.shape[axis], axis=axis)
    return _to_fp8(x.astype(jnp.float32) * reciprocal(scale))


def _fp8_per_tensor(x: jax.Array) -> Result:
    scale = divide(jnp.max(jnp.abs(x), initial=0.0), FP8_MAX).reshape(1, 1)
    inverse = jnp.where(scale == 0, 0.0, reciprocal(scale))  # zeros stay zeros, instead of 0 * inf
    return _to_fp8(x * inverse), scale, None


def _fp8_per_token(x: jax.Array, scale_ub: jax.Array | None) -> Result:
    absmax = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    if scale_ub is not None:
        absmax = jnp.minimum(absmax, scale_ub)
    scale = jnp.maximum(divide(absmax, FP8_MAX), MIN_SCALE)
    return _to_fp8(divide(x, scale)), scale, None


def _fp8_per_group(x: jax.Array, problem: QuantizeProblem) -> Result:
    (m, k), group = x.shape, problem.group_size
    groups = -(-k // group)
    padded = jnp.pad(x, ((0, 0), (0, groups * group - k))).reshape(m, groups, group)
    absmax = jnp.maximum(jnp.max(jnp.abs(padded), axis=2), GROUP_EPS)
    scale = divide(absmax, FP8_MAX)
    if problem.ue8m0:
        scale = power_of_two_at_least(jnp.maximum(scale, GROUP_EPS))
    q = _to_fp8(divide(padded, scale[:, :, None])).reshape(m, groups * group)[:, :k]
    if problem.column_major:
        scale = jnp.pad(scale.T, ((0, 0), (0, problem.padded_rows - m)))
    return q, scale, None


def power_of_two_at_least(x: jax.Array) -> jax.Array:
    """2^ceil(log2(x)) of positive normal float32, from the bits, so without log2's rounding.

    Example:
      >>> power_of_two_at_least(jnp.array([0.25, 0.26, 3.0], jnp.float32))
      Array([0.25, 0.5 , 4.  ], dtype=float32)
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    mantissa = (1 << 23) - 1
    power = jnp.where(bits & mantissa, (bits & ~mantissa) + (1 << 23), bits)
    power = jnp.where(jnp.abs(x) < jnp.inf, power, bits)
    return jax.lax.bitcast_convert_type(power, jnp.float32)


KERNEL = Implementation("xla", supports, run)

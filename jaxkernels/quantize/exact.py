# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""float32 division that is correctly rounded on every backend.

XLA does not give that by itself. Its algebraic simplifier turns a division by a constant or by a
broadcast value into a multiplication by a rounded reciprocal, even behind an optimization barrier,
and `1 / (a / b)` into `b / a`. On a GPU the division that is left is `div.full.f32`, two units in
the last place off at worst (2026-11-22, H200, jaxlib 0.11.2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_MANTISSA = (1 << 23) - 1
_HIDDEN_BIT = 1 << 23


def divide(x: jax.Array, by: jax.Array | float) -> jax.Array:
    """`x / by`, rounded to nearest even; both float32, by broadcasts to x.

    Example:
      >>> divide(jnp.array([1.0, 2.0]), 10.0)
      Array([0.1, 0.2], dtype=float32)
    """
    by = jnp.broadcast_to(jnp.asarray(by, jnp.float32), x.shape)
    # A select that is never taken, which the simplifier cannot know: then `by` may be anything.
    never = (jax.lax.bitcast_convert_type(x, jnp.int32) | 1) == 0
    by = jnp.where(never, x, by)
    return jax.lax.platform_dependent(
        x, by, cpu=lambda x, by: x / by, default=lambda x, by: round_quotient(x, by, x / by)
    )


def reciprocal(x: jax.Array) -> jax.Array:
    """`1 / x`, rounded to nearest even.

    Example:
      >>> reciprocal(jnp.array([10.0, 0.0]))
      Array([0.1, inf], dtype=float32)
    """
    never = (jax.lax.bitcast_convert_type(x, jnp.int32) | 1) == 0
    return divide(jnp.where(never, x, jnp.ones_like(x)), x)


def round_quotient(x: jax.Array, by: jax.Array, quotient: jax.Array) -> jax.Array:
    """The correctly rounded x / by, given a quotient that is at most 3 units in the last place off.

    The remainder `x - quotient * by` is small, so its mantissa is exact in 32-bit integers that
    wrap around. Where an operand or the quotient is zero, denormal, infinite or NaN, the quotient
    stays as it is.

    Example:
      >>> nearly = jnp.nextafter(jnp.float32([0.1]), jnp.float32(1))
      >>> round_quotient(jnp.float32([1.0]), jnp.float32([10.0]), nearly)
      Array([0.1], dtype=float32)
    """
    x_exponent, x_mantissa = _parts(x)
    by_exponent, by_mantissa = _parts(by)
    bits = jax.lax.bitcast_convert_type(quotient, jnp.int32)
    usable = _is_normal(x_exponent) & _is_normal(by_exponent)
    for _ in range(3):  # a unit a time
        exponent, mantissa = _parts(jax.lax.bitcast_convert_type(bits, jnp.float32))
        # x = by * quotient + remainder, with the quotient's and by's last bits as the unit.
        shift = jnp.clip(x_exponent - by_exponent - exponent + 150, 0, 31)
        remainder = (x_mantissa << shift) - mantissa * by_mantissa
        up = 2 * remainder > by_mantissa
        # Below a power of two the units are half as large.
        down = jnp.where(mantissa == _HIDDEN_BIT, 4, 2) * remainder < -by_mantissa
        step = up.astype(jnp.int32) - down.astype(jnp.int32)
        bits = jnp.where(usable & _is_normal(exponent), bits + step, bits)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Biased exponent, and mantissa with its hidden bit, of float32."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return (bits >> 23) & 0xFF, (bits & _MANTISSA) | _HIDDEN_BIT


def _is_normal(exponent: jax.Array) -> jax.Array:
    return (exponent > 0) & (exponent < 255)

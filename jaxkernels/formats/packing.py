# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Checkpoints' int32 words: 4- or 8-bit codes, the first in the lowest bits of a word."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels import checks
from jaxkernels.quantized import pack_nibbles, unpack_nibbles


def per_word(bits: int) -> int:
    """Codes in one int32; ValueError unless bits is 4 or 8."""
    if bits not in (4, 8):
        checks.bad_value("bits", "4 or 8", bits)
    return 32 // bits


@functools.partial(jax.jit, static_argnames=("bits", "axis", "size"))
def unpack_words(words: jax.Array, bits: int, axis: int = -1, size: int | None = None) -> jax.Array:
    """int32 words packed along `axis` to uint8 codes, cut to `size` if given.

    Example:
      >>> unpack_words(jnp.array([[0x21, -1]]), 4, size=9)
      Array([[ 1,  2,  0,  0,  0,  0,  0,  0, 15]], dtype=uint8)
    """
    per_word(bits)
    words = jnp.moveaxis(words, axis, -1)
    data = jax.lax.bitcast_convert_type(words.astype(jnp.int32), jnp.uint8)
    data = data.reshape(*words.shape[:-1], 4 * words.shape[-1])
    codes = unpack_nibbles(data) if bits == 4 else data
    return jnp.moveaxis(codes[..., :size], -1, axis)


@functools.partial(jax.jit, static_argnames=("bits", "axis"))
def pack_words(codes: jax.Array, bits: int, axis: int = -1) -> jax.Array:
    """The inverse of `unpack_words`; a last word is filled up with zeros.

    Example:
      >>> pack_words(jnp.array([[1, 2, 0, 0, 0, 0, 0, 0, 15]]), 4)
      Array([[33, 15]], dtype=int32)
    """
    codes = jnp.moveaxis(codes, axis, -1).astype(jnp.uint8)
    short = -codes.shape[-1] % per_word(bits)
    codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    data = pack_nibbles(codes) if bits == 4 else codes
    words = data.reshape(*data.shape[:-1], data.shape[-1] // 4, 4)
    return jnp.moveaxis(jax.lax.bitcast_convert_type(words, jnp.int32), -1, axis)


def reorder(codes: jax.Array, order: Sequence[int]) -> jax.Array:
    """Within each run of len(order) along the last axis, element j is old element order[j]."""
    runs = codes.reshape(*codes.shape[:-1], -1, len(order))
    return runs[..., jnp.array(order)].reshape(codes.shape)


def is_known(array: Any) -> bool:
    """Whether values can be looked at: not while tracing."""
    return not isinstance(array, jax.core.Tracer)


def check_zero_points(zeros: jax.Array, low: int, high: int) -> None:
    """ValueError if a zero point is known not to fit; a word would hold another one."""
    if is_known(zeros) and zeros.size:
        smallest, largest = int(jnp.min(zeros)), int(jnp.max(zeros))
        if smallest < low or largest > high:
            checks.bad_value("w", f"zero points of {low} to {high}", f"{smallest} to {largest}")

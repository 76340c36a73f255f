# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""AWQ checkpoints: qweight, qzeros, scales <-> `QuantizedTensor`.

qweight int32 [K, N/pf] and qzeros int32 [K/G, N/pf], both packed along N with interleaved
columns; scales [K/G, N]. Zero points are stored as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkernels import checks
from jaxkernels.formats import packing
from jaxkernels.quantized import GroupShape, QuantizedTensor, pack_nibbles, stored_codes
from jaxkernels.scalar_types import scalar_types

_FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32)
_TYPES = {4: scalar_types.uint4, 8: scalar_types.uint8}

# Slot s of a word holds column _ORDER[s] of its run; the inverse finds column j's slot.
_ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
_SLOTS = {4: (0, 4, 1, 5, 2, 6, 3, 7), 8: (0, 2, 1, 3)}


def from_awq(
    qweight: jax.Array, qzeros: jax.Array, scales: jax.Array, *, bits: int = 4
) -> QuantizedTensor:
    """An AWQ layer as a `QuantizedTensor`; no code, scale or zero point changes.

    Args:
      qweight: int32 [K, N/pf], pf = 32 / bits.
      qzeros: int32 [K/G, N/pf].
      scales: float [K/G, N].
      bits: 4 or 8.

    Returns:
      A `QuantizedTensor` of uint4 or uint8 with zero points, shape (N, K).

    Raises:
      ValueError, TypeError: naming the argument.

    Source: AutoAWQ's `WQLinear_GEMM`, vLLM's `awq_dequantize`.

    Example:
      >>> word, zero = jnp.array([[0x75316420]] * 2), jnp.zeros((1, 1), jnp.int32)
      >>> w = from_awq(word, zero, jnp.ones((1, 8)))
      >>> from jaxkernels import dequantize
      >>> dequantize(w)[:, 0].astype(int)
      Array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
    """
    qweight = checks.as_array("qweight", qweight, [jnp.int32])
    qzeros = checks.as_array("qzeros", qzeros, [jnp.int32])
    scales = checks.as_array("scales", scales, _FLOATS)
    if qweight.ndim != 2 or scales.ndim != 2:
        checks.bad_value("qweight and scales", "2 dimensions each", (qweight.shape, scales.shape))
    k, n = qweight.shape[0], qweight.shape[1] * packing.per_word(bits)
    groups = scales.shape[0]
    if scales.shape[1] != n or groups == 0 or k % groups:
        checks.bad_value("scales", f"[K/G, N] with N = {n} and K/G a divisor of {k}", scales)
    checks.check_shape("qzeros", qzeros, (groups, qweight.shape[1]))
    codes, zeros = (
        packing.reorder(packing.unpack_words(words, bits), _SLOTS[bits]).T
        for words in (qweight, qzeros)
    )
    if bits == 4 and k % 2:
        checks.bad_value("qweight", "an even K", qweight)
    return QuantizedTensor(
        data=pack_nibbles(codes) if bits == 4 else codes,
        scale=scales.T,
        zero_point=zeros,
        shape=(n, k),
        scalar_type=_TYPES[bits],
        group_shape=GroupShape(1, -1 if groups == 1 else k // groups),
    ).validate()


def to_awq(w: QuantizedTensor) -> dict[str, jax.Array]:
    """The AWQ tensors of a weight: the inverse of `from_awq`.

    Args:
      w: uint4 or uint8 with zero points, without g_idx; N a multiple of pf.

    Returns:
      {"qweight", "qzeros", "scales"}.

    Raises:
      ValueError: w does not fit the format.

    Example:
      >>> word, zero = jnp.array([[0x75316420]] * 2), jnp.zeros((1, 1), jnp.int32)
      >>> hex(to_awq(from_awq(word, zero, jnp.ones((1, 8))))["qweight"][0, 0])
      '0x75316420'
    """
    bits = w.scalar_type.size_bits
    if w.scalar_type not in _TYPES.values() or w.zero_point is None or w.g_idx is not None:
        checks.bad_value("w", "uint4 or uint8 with zero points and no act-order", w)
    if w.granularity == "block" or w.shape[0] % packing.per_word(bits):
        checks.bad_value("w", f"groups, and N a multiple of {packing.per_word(bits)}", w)
    packing.check_zero_points(w.zero_point, 0, 2**bits - 1)
    qweight, qzeros = (
        packing.pack_words(packing.reorder(codes.T, _ORDER[bits]), bits)
        for codes in (stored_codes(w), w.zero_point)
    )
    return {"qweight": qweight, "qzeros": qzeros, "scales": w.scale.T}

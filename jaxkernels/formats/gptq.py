# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""GPTQ checkpoints: qweight, scales, qzeros, g_idx <-> `QuantizedTensor`.

qweight int32 [K/pf, N], packed along K; scales [K/G, N]; qzeros int32 [K/G, N/pf], packed along
N; g_idx int32 [K]; pf = 32 / bits codes a word. Version 1 stores zero points minus one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkernels import checks
from jaxkernels.formats import packing
from jaxkernels.quantized import GroupShape, QuantizedTensor, pack_nibbles, stored_codes
from jaxkernels.scalar_types import scalar_types

_FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32)
_SYMMETRIC = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}
_ASYMMETRIC = {4: scalar_types.uint4, 8: scalar_types.uint8}


def from_gptq(
    qweight: jax.Array,
    scales: jax.Array,
    qzeros: jax.Array | None = None,
    g_idx: jax.Array | None = None,
    *,
    bits: int = 4,
    sym: bool = True,
    v2: bool = False,
) -> QuantizedTensor:
    """A GPTQ layer as a `QuantizedTensor`; no code, scale or zero point changes.

    Args:
      qweight: int32 [K/pf, N].
      scales: float [K/G, N].
      qzeros: int32 [K/G, N/pf]; not read if `sym` (upstream ignores it too).
      g_idx: int32 [K], or None. Dropped where it says k // G, which needs its values (not under
        jit).
      bits: 4 or 8.
      sym: codes are offset by 8 or 128; else by qzeros.
      v2: qzeros holds zero points, not zero points minus one. In version 1 a stored 15 means 16
        (4 bits), and a stored 255 means 0 (8 bits).

    Returns:
      A `QuantizedTensor` of uint4b8, uint8b128, uint4 or uint8, shape (N, K).

    Raises:
      ValueError, TypeError: naming the argument.

    Source: AutoGPTQ's `QuantLinear`, vLLM's `gptq` loader.

    Example:
      >>> w = from_gptq(jnp.array([[0x76543210]]), jnp.array([[0.5]]))
      >>> w
      QuantizedTensor(uint4b8[1, 8], per tensor, scale float32[1, 1], 8 bytes)
    """
    qweight = checks.as_array("qweight", qweight, [jnp.int32])
    scales = checks.as_array("scales", scales, _FLOATS)
    if qweight.ndim != 2 or scales.ndim != 2:
        checks.bad_value("qweight and scales", "2 dimensions each", (qweight.shape, scales.shape))
    k, n = qweight.shape[0] * packing.per_word(bits), qweight.shape[1]
    groups = scales.shape[0]
    if scales.shape[1] != n or (groups == 0 or k % groups and g_idx is None):
        checks.bad_value("scales", f"[K/G, N] with N = {n} and K/G a divisor of {k}", scales)
    codes = packing.unpack_words(qweight, bits, axis=0).T
    zero_point = None
    if not sym:
        if qzeros is None:
            checks.bad_value("qzeros", "int32 zero points with sym=False", qzeros)
        qzeros = checks.as_array("qzeros", qzeros, [jnp.int32])
        checks.check_shape("qzeros", qzeros, (groups, -(-n // packing.per_word(bits))))
        zero_point = packing.unpack_words(qzeros, bits, size=n).T + jnp.uint8(0 if v2 else 1)
    if g_idx is not None:
        g_idx = checks.as_array("g_idx", g_idx, [jnp.int32])
        checks.check_shape("g_idx", g_idx, (k,))
        if packing.is_known(g_idx) and k % groups == 0:
            in_order = np.array_equal(g_idx, np.arange(k) // (k // groups))
            g_idx = None if in_order else g_idx
    return QuantizedTensor(
        data=pack_nibbles(codes) if bits == 4 else codes,
        scale=scales.T,
        zero_point=zero_point,
        g_idx=g_idx,
        shape=(n, k),
        scalar_type=(_SYMMETRIC if sym else _ASYMMETRIC)[bits],
        group_shape=GroupShape(1, -1 if groups == 1 else k // groups),
    ).validate()


def to_gptq(w: QuantizedTensor, *, v2: bool = False) -> dict[str, jax.Array]:
    """The GPTQ tensors of a weight: the inverse of `from_gptq`.

    Args:
      w: uint4b8, uint8b128, uint4 or uint8, per channel or in groups; N and K multiples of pf.
      v2: as in `from_gptq`.

    Returns:
      {"qweight", "scales", "qzeros", "g_idx"}; g_idx is always written, qzeros too.

    Raises:
      ValueError: w does not fit the format (version 1 cannot say a 4-bit zero point of 0).

    Example:
      >>> w = from_gptq(jnp.array([[0x76543210] * 8]), jnp.ones((1, 8)))
      >>> hex(to_gptq(w)["qweight"][0, 7]), hex(to_gptq(w)["qzeros"][0, 0])
      ('0x76543210', '0x77777777')
    """
    bits, (n, k) = w.scalar_type.size_bits, w.shape
    fits = w.scalar_type in (*_SYMMETRIC.values(), *_ASYMMETRIC.values())
    if not fits or w.granularity == "block" or w.global_scale is not None:
        checks.bad_value("w", "uint4b8, uint8b128, uint4 or uint8 in groups or per channel", w)
    if k % packing.per_word(bits) or n % packing.per_word(bits):
        checks.bad_value("w", f"N and K that are multiples of {packing.per_word(bits)}", w)
    if w.zero_point is None:
        zeros = jnp.full(w.scale.shape, w.scalar_type.bias, jnp.uint8)
    else:
        zeros = w.zero_point
        if bits == 4:
            packing.check_zero_points(zeros, *((0, 15) if v2 else (1, 16)))
    scale = jnp.broadcast_to(w.scale, (n, w.scale.shape[1]))
    zeros = jnp.broadcast_to(zeros, scale.shape)
    groups = scale.shape[1]
    in_order = jnp.arange(k, dtype=jnp.int32) // -(-k // groups)
    return {
        "qweight": packing.pack_words(stored_codes(w).T, bits, axis=0),
        "scales": scale.T,
        "qzeros": packing.pack_words((zeros.T - jnp.uint8(0 if v2 else 1)), bits),
        "g_idx": in_order if w.g_idx is None else w.g_idx,
    }

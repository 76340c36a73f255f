# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""compressed-tensors checkpoints <-> `QuantizedTensor`.

WNA16: weight_packed int32 [N, ceil(K/pf)], codes with an offset of 8 or 128; weight_scale [N, K/G];
weight_zero_point int32 [ceil(N/pf), K/G], packed along N; weight_g_idx int32 [K]; weight_shape
(N, K). W8A8: weight int8 or float8_e4m3fn [N, K]; weight_scale [N, 1] per channel, or one a fused
shard, or [ceil(N/bn), ceil(K/bk)] in blocks (that one, and fp8 shards: `formats.fp8`). FP4:
weight_packed uint8 [N, K/2] with weight_scale as e4m3 (NVFP4) or e8m0 bytes (MXFP4).
"""

from __future__ import annotations

from collections.abc import Sequence

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


def from_wna16(
    weight_packed: jax.Array,
    weight_scale: jax.Array,
    weight_zero_point: jax.Array | None = None,
    weight_g_idx: jax.Array | None = None,
    weight_shape: Sequence[int] | None = None,
    *,
    bits: int = 4,
) -> QuantizedTensor:
    """A pack-quantized (WNA16) layer as a `QuantizedTensor`; no code, scale or zero changes.

    Args:
      weight_packed: int32 [N, ceil(K/pf)], pf = 32 / bits.
      weight_scale: float [N, K/G], or [N, 1] for one a channel.
      weight_zero_point: int32 [ceil(N/pf), K/G], or None for symmetric weights.
      weight_g_idx: int32 [K] (act-order), or None.
      weight_shape: (N, K); None where K is a multiple of pf.
      bits: 4 or 8.

    Returns:
      A `QuantizedTensor` of uint4b8, uint8b128, uint4 or uint8, shape (N, K).

    Raises:
      ValueError, TypeError: naming the argument.

    Source: compressed-tensors' `pack_to_int32`, vLLM's `CompressedTensorsWNA16`.

    Example:
      >>> from_wna16(jnp.array([[0x76543210]]), jnp.array([[0.5]], jnp.bfloat16))
      QuantizedTensor(uint4b8[1, 8], per tensor, scale bfloat16[1, 1], 6 bytes)
    """
    words = checks.as_array("weight_packed", weight_packed, [jnp.int32])
    scale = checks.as_array("weight_scale", weight_scale, _FLOATS)
    if words.ndim != 2 or scale.ndim != 2 or scale.shape[0] != words.shape[0]:
        checks.bad_value("weight_scale", f"[N, K/G] with weight_packed {words.shape}", scale)
    if weight_shape is None:
        n, k = words.shape[0], words.shape[1] * packing.per_word(bits)
    else:
        n, k = (int(size) for size in weight_shape)
        checks.check_shape("weight_packed", words, (n, -(-k // packing.per_word(bits))))
    groups = scale.shape[1]
    if groups == 0 or k % groups and weight_g_idx is None:
        checks.bad_value("weight_scale", f"[N, K/G] with K/G a divisor of {k}", scale)
    zero_point = None
    if weight_zero_point is not None:
        zeros = checks.as_array("weight_zero_point", weight_zero_point, [jnp.int32])
        wanted = (-(-n // packing.per_word(bits)), groups)
        checks.check_shape("weight_zero_point", zeros, wanted, meaning="packed along N")
        zero_point = packing.unpack_words(zeros, bits, axis=0, size=n)
    if bits == 4 and k % 2:
        checks.bad_value("weight_shape", "an even K for 4-bit weights", weight_shape)
    codes = packing.unpack_words(words, bits, size=k)
    return QuantizedTensor(
        data=pack_nibbles(codes) if bits == 4 else codes,
        scale=scale,
        zero_point=zero_point,
        g_idx=None if weight_g_idx is None else jnp.asarray(weight_g_idx, jnp.int32),
        shape=(n, k),
        scalar_type=(_SYMMETRIC if zero_point is None else _ASYMMETRIC)[bits],
        group_shape=GroupShape(1, -1 if groups == 1 else k // groups),
    ).validate()


def to_wna16(w: QuantizedTensor) -> dict[str, jax.Array]:
    """The WNA16 tensors of a weight: the inverse of `from_wna16`.

    Args:
      w: uint4b8, uint8b128, uint4 or uint8, per channel or in groups.

    Returns:
      {"weight_packed", "weight_scale", "weight_shape"}, "weight_zero_point" and "weight_g_idx"
      where w has them. weight_shape is int32 (JAX's default; checkpoints have int64).

    Raises:
      ValueError: w does not fit the format.

    Example:
      >>> w = from_wna16(jnp.array([[0x76543210]]), jnp.array([[0.5]], jnp.bfloat16))
      >>> hex(to_wna16(w)["weight_packed"].item())
      '0x76543210'
    """
    bits = w.scalar_type.size_bits
    fits = w.scalar_type in (*_SYMMETRIC.values(), *_ASYMMETRIC.values())
    if not fits or w.granularity == "block" or w.global_scale is not None:
        checks.bad_value("w", "uint4b8, uint8b128, uint4 or uint8 in groups or per channel", w)
    tensors = {
        "weight_packed": packing.pack_words(stored_codes(w), bits),
        "weight_scale": w.scale,
        "weight_shape": jnp.array(w.shape, jnp.int32),
    }
    if w.zero_point is not None:
        packing.check_zero_points(w.zero_point, 0, 2**bits - 1)
        tensors["weight_zero_point"] = packing.pack_words(w.zero_point, bits, axis=0)
    if w.g_idx is not None:
        tensors["weight_g_idx"] = w.g_idx
    return tensors


def from_w8a8_int8(
    weight: jax.Array, weight_scale: jax.Array, logical_widths: Sequence[int] | None = None
) -> QuantizedTensor:
    """An int8 W8A8 layer as a `QuantizedTensor`.

    Args:
      weight: int8 [N, K].
      weight_scale: float32 [N, 1] per channel, [] or [1] per tensor, or one a fused shard
        [shards].
      logical_widths: the shards' shares of N, for scales [shards].

    Returns:
      A `QuantizedTensor` of int8: per tensor for a single scale, else per channel.

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `CompressedTensorsW8A8Int8`.

    Example:
      >>> from_w8a8_int8(jnp.ones((3, 4), jnp.int8), jnp.array([0.5, 0.25]), [1, 2]).scale.T
      Array([[0.5 , 0.25, 0.25]], dtype=float32)
    """
    weight = checks.as_array("weight", weight, [jnp.int8])
    return of_shards(weight, weight_scale, logical_widths, scalar_types.int8)


def to_w8a8_int8(w: QuantizedTensor) -> dict[str, jax.Array]:
    """{"weight", "weight_scale"} of an int8 weight: [N, K] and [N, 1], or [1] per tensor.

    Example:
      >>> w = from_w8a8_int8(jnp.ones((3, 4), jnp.int8), jnp.array([0.5]))
      >>> to_w8a8_int8(w)["weight_scale"]
      Array([0.5], dtype=float32)
    """
    if w.scalar_type != scalar_types.int8 or w.granularity not in ("tensor", "channel"):
        checks.bad_value("w", "int8 per tensor or per channel", w)
    per_tensor = w.group_shape.is_per_tensor()
    return {"weight": stored_codes(w), "weight_scale": w.scale[0] if per_tensor else w.scale}


def of_shards(weight, weight_scale, logical_widths, scalar_type) -> QuantizedTensor:
    """An 8-bit weight [N, K] with a scale a tensor, a channel or a fused shard."""
    scale = checks.as_array("weight_scale", weight_scale, _FLOATS)
    n = weight.shape[0]
    per_channel = True
    if scale.ndim == 2 and scale.shape == (n, 1):
        pass
    elif scale.size == 1:
        scale, per_channel = scale.reshape(1, 1), False
    else:
        widths = tuple(logical_widths or ())
        if scale.ndim != 1 or len(widths) != scale.size or sum(widths) != n:
            checks.bad_value(
                "weight_scale", f"[{n}, 1], one, or one for each of logical_widths {widths}", scale
            )
        scale = convert_to_channelwise(scale, widths)
    return QuantizedTensor(
        data=weight,
        scale=scale,
        shape=weight.shape,
        scalar_type=scalar_type,
        group_shape=GroupShape(1, -1) if per_channel else GroupShape(-1, -1),
    ).validate()


def convert_to_channelwise(scales: jax.Array, logical_widths: Sequence[int]) -> jax.Array:
    """One scale a fused shard [shards] to one a channel [N, 1] float32.

    Source: vLLM's function of this name.

    Example:
      >>> convert_to_channelwise(jnp.array([1.0, 2.0]), [1, 2]).T
      Array([[1., 2., 2.]], dtype=float32)
    """
    widths = np.asarray(logical_widths)
    repeated = jnp.repeat(scales, widths, total_repeat_length=int(widths.sum()))
    return repeated.astype(jnp.float32)[:, None]


def merge_static_input(
    input_scale: jax.Array, input_zero_point: jax.Array | None = None, *, rounded: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """One static activation scale (and zero point) out of those of fused shards.

    Symmetric: the largest scale. Asymmetric: `hi = max(s * (127 - z))`, `lo = min(s * (-128 - z))`,
    `scale = (hi - lo) / 255`, `azp = int32(-128 - lo / scale)`: truncated towards zero, as
    upstream's CUDA classes do, or rounded to nearest, as its CPU class does.

    Args:
      input_scale: float32 [shards].
      input_zero_point: int8 or int32 [shards], or None.
      rounded: round the zero point instead of truncating.

    Returns:
      scale float32 [], azp int32 [] or None.

    Source: vLLM's int8 `process_weights_after_loading`.

    Example:
      >>> merge_static_input(jnp.array([0.5, 1.0]), jnp.array([0, -28]))
      (Array(1., dtype=float32), Array(-28, dtype=int32))
    """
    scale = checks.as_array("input_scale", input_scale, _FLOATS).astype(jnp.float32)
    if input_zero_point is None:
        return jnp.max(scale), None
    zero = checks.as_array("input_zero_point", input_zero_point, [jnp.int8, jnp.int32])
    zero = zero.astype(jnp.float32)
    high, low = jnp.max(scale * (127 - zero)), jnp.min(scale * (-128 - zero))
    merged = (high - low) / 255
    azp = -128 - low / merged
    azp = jnp.round(azp) if rounded else jnp.trunc(azp)
    return merged, azp.astype(jnp.int32)


def from_w4a8_int(weight: jax.Array, weight_scale: jax.Array) -> QuantizedTensor:
    """An unpacked 4-bit layer (W4A8-Int) as a `QuantizedTensor`.

    Args:
      weight: int8 [N, K], values -8..7.
      weight_scale: float [N, K/G] or [N, 1].

    Returns:
      A `QuantizedTensor` of int4.

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `CompressedTensorsW4A8Int`.

    Example:
      >>> from_w4a8_int(jnp.full((2, 32), -8, jnp.int8), jnp.ones((2, 1)))
      QuantizedTensor(int4[2, 32], per channel, scale float32[2, 1], 40 bytes)
    """
    weight = checks.as_array("weight", weight, [jnp.int8])
    scale = checks.as_array("weight_scale", weight_scale, _FLOATS)
    if (
        weight.ndim != 2
        or scale.ndim != 2
        or not scale.shape[1]
        or weight.shape[1] % scale.shape[1]
    ):
        checks.bad_value("weight_scale", f"[N, K/G] for weight {weight.shape}", scale)
    (n, k), groups = weight.shape, scale.shape[1]
    if k % 2:
        checks.bad_value("weight", "an even K", weight)
    return QuantizedTensor(
        data=pack_nibbles(weight),
        scale=scale,
        shape=(n, k),
        scalar_type=scalar_types.int4,
        group_shape=GroupShape(1, -1 if groups == 1 else k // groups),
    ).validate()


def from_nvfp4(
    weight_packed: jax.Array, weight_scale: jax.Array, weight_global_scale: jax.Array
) -> QuantizedTensor:
    """An NVFP4 layer: uint8 [N, K/2], float8_e4m3fn [N, K/16], and a global *divisor* (float32).

    Source: vLLM's `CompressedTensorsW4A16Fp4`; the largest divisor of fused shards counts.

    Example:
      >>> scale = jnp.ones((2, 1), jnp.float8_e4m3fn)
      >>> from_nvfp4(jnp.zeros((2, 8), jnp.uint8), scale, jnp.array([4.0])).global_scale
      Array([[0.25]], dtype=float32)
    """
    data = checks.as_array("weight_packed", weight_packed, [jnp.uint8])
    scale = checks.as_array("weight_scale", weight_scale, [jnp.float8_e4m3fn])
    divisor = checks.as_array("weight_global_scale", weight_global_scale, [jnp.float32])
    return QuantizedTensor(
        data=data,
        scale=scale,
        global_scale=(1.0 / jnp.max(divisor)).reshape(1, 1),
        shape=(data.shape[0], 2 * data.shape[1]),
        scalar_type=scalar_types.float4_e2m1f,
        group_shape=GroupShape(1, 16),
    ).validate()


def from_mxfp4(weight_packed: jax.Array, weight_scale: jax.Array) -> QuantizedTensor:
    """An MXFP4 layer: uint8 [N, K/2], and exponents uint8 [N, K/32] (value 2^(byte - 127)).

    Source: OCP MX v1.0; vLLM's MXFP4 loaders.

    Example:
      >>> w = from_mxfp4(jnp.zeros((2, 16), jnp.uint8), jnp.full((2, 1), 126, jnp.uint8))
      >>> w.scale.astype(jnp.float32)[0]
      Array([0.5], dtype=float32)
    """
    data = checks.as_array("weight_packed", weight_packed, [jnp.uint8])
    exponents = checks.as_array("weight_scale", weight_scale, [jnp.uint8])
    return QuantizedTensor(
        data=data,
        scale=jax.lax.bitcast_convert_type(exponents, jnp.float8_e8m0fnu),
        shape=(data.shape[0], 2 * data.shape[1]),
        scalar_type=scalar_types.float4_e2m1f,
        group_shape=GroupShape(1, 32),
    ).validate()


def to_fp4(w: QuantizedTensor) -> dict[str, jax.Array]:
    """{"weight_packed", "weight_scale"} of a float4 weight, "weight_global_scale" for NVFP4.

    Example:
      >>> w = from_mxfp4(jnp.zeros((2, 16), jnp.uint8), jnp.full((2, 1), 126, jnp.uint8))
      >>> to_fp4(w)["weight_scale"][0]
      Array([126], dtype=uint8)
    """
    if w.scalar_type != scalar_types.float4_e2m1f:
        checks.bad_value("w", "float4_e2m1f", w)
    if w.global_scale is None:
        exponents = jax.lax.bitcast_convert_type(w.scale, jnp.uint8)
        return {"weight_packed": w.data, "weight_scale": exponents}
    divisor = (1.0 / w.global_scale).reshape(1)
    return {"weight_packed": w.data, "weight_scale": w.scale, "weight_global_scale": divisor}

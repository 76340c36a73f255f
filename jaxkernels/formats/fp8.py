# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""fp8 checkpoints: weight with weight_scale or weight_scale_inv <-> `QuantizedTensor`.

weight float8_e4m3fn [N, K]; the scale multiplies, whatever its name: one, one a channel [N, 1],
one a fused shard [shards], or [ceil(N/bn), ceil(K/bk)] in blocks (`weight_scale_inv`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxkernels import checks
from jaxkernels.formats.compressed_tensors import of_shards
from jaxkernels.quantize.op import quantize_fp8
from jaxkernels.quantized import GroupShape, QuantizedTensor, stored_codes
from jaxkernels.scalar_types import scalar_types

_FP8_MIN = -448.0


def from_fp8(
    weight: jax.Array,
    weight_scale: jax.Array,
    *,
    weight_block_size: tuple[int, int] | None = None,
    logical_widths: Sequence[int] | None = None,
) -> QuantizedTensor:
    """An fp8 layer as a `QuantizedTensor`; bytes and scales stay as they are.

    Args:
      weight: float8_e4m3fn [N, K].
      weight_scale: float32 (`weight_scale_inv` in block checkpoints): one, [N, 1], [shards], or
        [ceil(N/bn), ceil(K/bk)].
      weight_block_size: (bn, bk) for block scales.
      logical_widths: the shards' shares of N, for scales [shards]; they become one a channel.

    Returns:
      A `QuantizedTensor` of float8_e4m3fn.

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `Fp8LinearMethod`, `CompressedTensorsW8A8Fp8`.

    Example:
      >>> weight = jnp.ones((200, 300), jnp.float8_e4m3fn)
      >>> from_fp8(weight, jnp.ones((2, 3)), weight_block_size=(128, 128))
      QuantizedTensor(float8_e4m3fn[200, 300], block 128x128, scale float32[2, 3], 60024 bytes)
    """
    weight = checks.as_array("weight", weight, [jnp.float8_e4m3fn])
    if weight.ndim != 2:
        checks.bad_value("weight", "2 dimensions [N, K]", weight)
    if weight_block_size is None:
        return of_shards(weight, weight_scale, logical_widths, scalar_types.float8_e4m3fn)
    return QuantizedTensor(
        data=weight,
        scale=checks.as_array("weight_scale", weight_scale, [jnp.float32, jnp.bfloat16]),
        shape=weight.shape,
        scalar_type=scalar_types.float8_e4m3fn,
        group_shape=GroupShape(*weight_block_size),
    ).validate()


def to_fp8(w: QuantizedTensor) -> dict[str, jax.Array]:
    """The tensors of an fp8 weight: the inverse of `from_fp8`.

    Returns:
      {"weight", "weight_scale"}, the scale [1] per tensor or [N, 1]; or for blocks
      {"weight", "weight_scale_inv"}.

    Raises:
      ValueError: w is not fp8, or in groups.

    Example:
      >>> w = from_fp8(jnp.ones((2, 3), jnp.float8_e4m3fn), jnp.array(0.5))
      >>> to_fp8(w)["weight_scale"]
      Array([0.5], dtype=float32)
    """
    if w.scalar_type != scalar_types.float8_e4m3fn or w.group_shape.is_per_group():
        checks.bad_value("w", "float8_e4m3fn per tensor, per channel or in blocks", w)
    if w.group_shape.is_per_tensor():
        return {"weight": stored_codes(w), "weight_scale": w.scale[0]}
    name = "weight_scale" if w.group_shape.is_per_token() else "weight_scale_inv"
    return {"weight": stored_codes(w), name: w.scale}


def requantize_with_max_scale(
    weight: jax.Array, weight_scale: jax.Array, logical_widths: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """(max_scale, weight) of fused shards that had a scale each: one scale for all of them.

    Each shard becomes `fp8(clamp(float16(w * scale) * (1 / max_scale)))`. If the scale has no
    dimension, or its last slot was never loaded (below -448), the checkpoint was fused already:
    the bytes stay.

    Args:
      weight: float8_e4m3fn [N, K], shards one after the other along N.
      weight_scale: float32 [shards] or [].
      logical_widths: the shards' shares of N; a shard may be empty.

    Returns:
      max_scale float32 [], weight float8_e4m3fn [N, K].

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's function of this name, its way through float16 included.

    Example:
      >>> weight = jnp.full((2, 1), 8, jnp.float8_e4m3fn)
      >>> scale, weight = requantize_with_max_scale(weight, jnp.array([1.0, 2.0]), [1, 1])
      >>> scale, weight.astype(jnp.float32).T
      (Array(2., dtype=float32), Array([[4., 8.]], dtype=float32))
    """
    weight = checks.as_array("weight", weight, [jnp.float8_e4m3fn])
    scale = checks.as_array("weight_scale", weight_scale, [jnp.float32])
    max_scale = jnp.max(scale)
    if scale.ndim == 0 or float(scale[-1]) <= _FP8_MIN:
        return max_scale, weight
    widths = np.asarray(logical_widths)
    if len(widths) != scale.size or widths.sum() != weight.shape[0]:
        checks.bad_value("logical_widths", f"{scale.size} widths of N = {weight.shape[0]}", widths)
    per_row = jnp.repeat(scale, widths, total_repeat_length=weight.shape[0])[:, None]
    wide = (weight.astype(jnp.float32) * per_row).astype(jnp.float16)
    return max_scale, quantize_fp8(wide, max_scale)[0]

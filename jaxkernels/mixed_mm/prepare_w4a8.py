# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Weights of w4a8_mm: their scales split in two, and the order the Hopper kernel reads them in.

`split_scales` makes of 16-bit group scales what upstream's CutlassW4A8 makes of them at load. The
prepared layout "hopper_w4a8" of a weight [N, K] with groups of 128:

    data          int32 [ceil(N/64), K/128 * 8, 128]   tiles, see `mosaic.convert8.pack_tiles8`
    scale         [ceil(N/64), K/128, 64]              the checkpoint's dtype and bits
    global_scale  float32 [N, 1] or None               as it was

Only a ragged last tile adds bytes. One prepared weight serves every number of rows of x. Whether
they are fp8 or int8, which decides the order of the nibbles, the scales say: e4m3 ones are for fp8,
16- or 32-bit ones for int8.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxkernels.mixed_mm.prepare import _tile_rows, _untile_rows
from jaxkernels.mosaic.convert8 import TILE_K, TILE_N, pack_tiles8, unpack_tiles8
from jaxkernels.problem import Support
from jaxkernels.quantize.exact import divide
from jaxkernels.quantized import PLAIN, QuantizedTensor, pack_nibbles, unscaled
from jaxkernels.scalar_types import scalar_types

HOPPER_W4A8 = "hopper_w4a8"
WEIGHTS = (scalar_types.int4, scalar_types.uint4b8)  # without zero points: -8 to 7
_MAX = 448.0  # of e4m3
_MIN_SCALE = 1.0 / (_MAX * 512.0)


def split_scales(w: QuantizedTensor) -> QuantizedTensor:
    """The same weight with e4m3 group scales and one float32 scale a row, for fp8 activations.

    For a row with scales s: c = max(max |s| / 448, 1 / (448 * 512)), f = e4m3(s / c), then
    f <- e4m3(f / 8) and c <- 8 * c, so that a code of -8 to 7 times f stays inside e4m3's range.

    Args:
      w: plain int4 or uint4b8 without zero points; bfloat16, float16 or float32 scales in groups.

    Returns:
      w with scale float8_e4m3fn [N, K/G] and global_scale float32 [N, 1].

    Raises:
      ValueError: another weight; the message says why.

    Source: vLLM's `convert_bf16_scales_to_fp8` (spec 6.5).

    Example:
      >>> from jaxkernels import quantize
      >>> w = quantize(jnp.sin(jnp.arange(64.0 * 256)).reshape(64, 256), scalar_types.int4, 128)
      >>> split_scales(w)
      QuantizedTensor(int4[64, 256], ... scale float8_e4m3fn[64, 2], global scale, 8576 bytes)
    """
    support = Support.all(
        (w.layout == PLAIN, f"expected layout 'plain', got {w.layout!r}"),
        (w.scalar_type in WEIGHTS, f"expected int4 or uint4b8 weights, got {w.scalar_type}"),
        (w.scale.dtype.itemsize > 1, f"expected 16- or 32-bit scales, got {w.scale.dtype}"),
        (w.group_shape[0] == 1, f"expected scales in groups of a row, got {w.granularity}"),
        (w.global_scale is None, "it has a second-level scale already"),
    )
    if not support:
        raise ValueError(f"w: scales cannot be split: {'; '.join(support.reasons)}")
    return _split(w)


@jax.jit
def _split(w: QuantizedTensor) -> QuantizedTensor:
    scale = w.scale.astype(jnp.float32)
    channel = divide(jnp.max(jnp.abs(scale), axis=1, keepdims=True), _MAX)
    channel = jnp.maximum(channel, _MIN_SCALE)
    first = jnp.clip(divide(scale, channel), -_MAX, _MAX).astype(jnp.float8_e4m3fn)
    eighth = (first.astype(jnp.float32) * 0.125).astype(jnp.float8_e4m3fn)
    return dataclasses.replace(w, scale=eighth, global_scale=channel * 8)


def can_prepare_w4a8(w: QuantizedTensor) -> Support:
    """Whether `prepare_w4a8` takes this weight, and if not, why."""
    group = w.shape[1] if w.group_size == -1 else w.group_size
    return Support.all(
        (w.layout == PLAIN, f"expected layout 'plain', got {w.layout!r}"),
        (w.scalar_type in WEIGHTS, f"expected int4 or uint4b8 weights, got {w.scalar_type}"),
        (w.zero_point is None, "zero points have no place in the layout"),
        (w.g_idx is None, "act-order has no place in the layout"),
        (
            w.group_shape[0] == 1 and group == TILE_K,
            f"expected scales in groups of {TILE_K}, got {w.granularity} of {group}",
        ),
    )


def prepare_w4a8(w: QuantizedTensor) -> QuantizedTensor:
    """The same weight in the layout "hopper_w4a8"; `jaxkernels.unprepare` gives the bits back.

    Args:
      w: plain int4 or uint4b8, groups of 128, no zero points, no g_idx. e4m3 scales (of
        `split_scales`) for fp8 activations; bfloat16, float16 or float32 ones for int8.

    Returns:
      A `QuantizedTensor` with the same shape, type and group_shape; see the module's docstring.

    Raises:
      ValueError: the weight has no such layout; the message says why.

    Example:
      >>> from jaxkernels import quantize, unprepare
      >>> w = quantize(jnp.sin(jnp.arange(64.0 * 256)).reshape(64, 256), scalar_types.int4, 128)
      >>> p = prepare_w4a8(w)
      >>> p.data.shape, p.scale.shape, p.nbytes == w.nbytes
      ((1, 16, 128), (1, 2, 64), True)
      >>> bool((unprepare(p).data == w.data).all())
      True
    """
    support = can_prepare_w4a8(w)
    if not support:
        raise ValueError(f"w: cannot be prepared: {'; '.join(support.reasons)}")
    return _prepare(w)


@jax.jit
def _prepare(w: QuantizedTensor) -> QuantizedTensor:
    n, _ = w.shape
    values = jnp.pad(unscaled(w, jnp.int8), ((0, -n % TILE_N), (0, 0)))
    return dataclasses.replace(
        w, data=pack_tiles8(values, _kind(w)), scale=_tile_rows(w.scale, n), layout=HOPPER_W4A8
    )


@jax.jit
def unprepare_w4a8(w: QuantizedTensor) -> QuantizedTensor:
    """The plain tensor that `prepare_w4a8` was given, bit for bit."""
    n, k = w.shape
    codes = unpack_tiles8(w.data, _kind(w))[:n, :k]
    codes = codes + 8 if w.scalar_type == scalar_types.uint4b8 else codes & 0xF
    scale = _untile_rows(w.scale, n)
    return dataclasses.replace(w, data=pack_nibbles(codes), scale=scale, layout=PLAIN)


def _kind(w: QuantizedTensor) -> str:
    return "e4m3" if w.scale.dtype == jnp.float8_e4m3fn else "int8"

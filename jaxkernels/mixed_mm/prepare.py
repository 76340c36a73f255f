# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Weights in the order the Hopper kernels read them: once, exactly, and back again.

The prepared layout "hopper_fragment" of a weight [N, K], with T = 64:

    data        int32 [ceil(N/T), ceil(K/T) * bits, 128]   tiles, see `mosaic.weight_formats`
    scale       [ceil(N/T), groups, T]                      the checkpoint's dtype and bits
                [ceil(N/T), ceil(K/T), T, T / group_size]   of 8 bits: a row's scales in a word
                [ceil(N/T), groups, 128 / bytes]            of blocks: one number as often as fills
                                                            128 bytes, which is what TMA moves
    zero_point  uint8 [ceil(N/T), groups, T] or None
    g_idx       int32 [K] or None: the columns of x, sorted by group (not the groups themselves)

groups is K / group_size, or 1. Only a ragged last tile adds bytes, and block scales 1.6%. One
prepared weight serves every number of rows of x. Act-order is resolved here: rows of K are sorted
by group, so that the kernels see contiguous groups and x's columns are gathered in that order. A
shard along K, which has parts of groups, is laid out as `prepare_shard` says.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxkernels.mixed_mm import prepare_shard
from jaxkernels.mosaic.weight_formats import FORMATS, TILE, pack_tiles, scale_kind, unpack_tiles
from jaxkernels.problem import Support
from jaxkernels.quantized import PLAIN, QuantizedTensor, pack_nibbles, stored_codes
from jaxkernels.scalar_types import scalar_types

HOPPER_FRAGMENT = "hopper_fragment"
_LINE = 128  # bytes that the copies of a block's scale fill

# 8-bit types that a plain tensor does not hold as uint8.
_AT_REST = {scalar_types.int8: jnp.int8, scalar_types.float8_e4m3fn: jnp.float8_e4m3fn}


def can_prepare(w: QuantizedTensor) -> Support:
    """Whether `prepare` takes this weight, and if not, why."""
    n, k = w.shape
    rows, group = w.group_shape[0], k if w.group_size == -1 else w.group_size
    fmt = FORMATS.get(w.scalar_type)
    small_scales = scale_kind(w.scale.dtype) != "float"
    return Support.all(
        (w.layout == PLAIN, f"expected layout 'plain', got {w.layout!r}"),
        (fmt is not None, f"no fragment format for {w.scalar_type}"),
        (
            group in (16, 32) or group % TILE == 0 or group == k,
            f"group_size must be 16, 32 or a multiple of {TILE}, got {group}",
        ),
        (
            w.granularity != "block" or (rows % TILE == 0 and group % TILE == 0),
            f"blocks must be multiples of {TILE} rows and columns, got {rows} x {group}",
        ),
        (
            not small_scales or (fmt is not None and fmt.is_float and group in (16, 32)),
            f"scales of 8 bits go with float weights in groups of 16 or 32, "
            f"got {w.scalar_type} in groups of {group}",
        ),
        (
            not small_scales or not prepare_shard.is_shard(w),
            "a K shard of act-order needs scales of more than 8 bits",
        ),
    )


def prepare(w: QuantizedTensor) -> QuantizedTensor:
    """The same weight in the layout "hopper_fragment"; `unprepare` gives the bits back.

    Args:
      w: plain, of any type in `weight_formats.FORMATS`; scales per tensor, channel, group (16, 32
        or multiples of 64) or block (multiples of 64 x 64), with or without zero points, g_idx and
        a global scale. Scales of 8 bits go with float weights in groups of 16 or 32. With g_idx,
        either every group has group_size members, or w is a shard along K (outside of jit only).

    Returns:
      A `QuantizedTensor` with the same shape, type and group_shape; see the module's docstring.

    Raises:
      ValueError: the weight has no such layout; the message says why.

    Example:
      >>> from jaxkernels import quantize, scalar_types
      >>> w = quantize(jnp.sin(jnp.arange(128.0 * 256)).reshape(128, 256), scalar_types.int4, 64)
      >>> p = prepare(w)
      >>> p.data.shape, p.scale.shape, p.nbytes == w.nbytes
      ((2, 16, 128), (2, 4, 64), True)
      >>> bool((unprepare(p).data == w.data).all())
      True
    """
    support = can_prepare(w)
    if not support:
        raise ValueError(f"w: cannot be prepared: {'; '.join(support.reasons)}")
    if prepare_shard.is_shard(w):
        return _prepare_shard(w, jnp.asarray(prepare_shard.places(w.g_idx)))
    return _prepare(w)


@jax.jit
def _prepare_shard(w: QuantizedTensor, placed: jax.Array) -> QuantizedTensor:
    n, fmt = w.shape[0], FORMATS[w.scalar_type]
    codes, scale, zero = prepare_shard.into_slots(_bytes(w), fmt.zero, placed, w)
    return dataclasses.replace(
        w,
        data=_tiles(codes, fmt),
        scale=_tile_rows(scale, n),
        zero_point=None if zero is None else _tile_rows(zero, n),
        g_idx=placed,
        layout=HOPPER_FRAGMENT,
    )


def _bytes(w: QuantizedTensor) -> jax.Array:
    """The stored codes uint8 [N, K]."""
    codes = stored_codes(w)
    return codes if codes.dtype == jnp.uint8 else jax.lax.bitcast_convert_type(codes, jnp.uint8)


def _tiles(codes: jax.Array, fmt) -> jax.Array:
    # Padding holds the code whose stored bits are zero; x is zero there, whatever it means.
    padding = tuple((0, -size % TILE) for size in codes.shape)
    return pack_tiles(jnp.pad(codes, padding, constant_values=fmt.flip), fmt)


@jax.jit
def _prepare(w: QuantizedTensor) -> QuantizedTensor:
    n = w.shape[0]
    codes = _bytes(w)
    order = None
    if w.g_idx is not None:
        order = jnp.argsort(w.g_idx, stable=True).astype(jnp.int32)
        codes = jnp.take(codes, order, axis=1)
    zero = None if w.zero_point is None else _tile_rows(w.zero_point, n)
    return dataclasses.replace(
        w,
        data=_tiles(codes, FORMATS[w.scalar_type]),
        scale=_tile_scale(w),
        zero_point=zero,
        g_idx=order,
        layout=HOPPER_FRAGMENT,
    )


def unprepare(w: QuantizedTensor) -> QuantizedTensor:
    """The plain tensor that `prepare` or `prepare_w4a8` was given, bit for bit.

    Args:
      w: a `QuantizedTensor` of layout "hopper_fragment" or "hopper_w4a8".

    Returns:
      A `QuantizedTensor` of layout "plain".

    Raises:
      ValueError: another layout.

    Example:
      >>> from jaxkernels import quantize, scalar_types
      >>> w = quantize(jnp.ones((8, 64)), scalar_types.uint4b8)
      >>> unprepare(prepare(w))
      QuantizedTensor(uint4b8[8, 64], per channel, scale float32[8, 1], 288 bytes)
    """
    from jaxkernels.mixed_mm.prepare_w4a8 import HOPPER_W4A8, unprepare_w4a8

    if w.layout == HOPPER_W4A8:
        return unprepare_w4a8(w)
    if w.layout != HOPPER_FRAGMENT:
        raise ValueError(f"w: expected layout {HOPPER_FRAGMENT!r}, got {w.layout!r}")
    return _unprepare(w)


@jax.jit
def _unprepare(w: QuantizedTensor) -> QuantizedTensor:
    n, k = w.shape
    rows = 1 if w.group_shape == (-1, -1) else n
    codes = unpack_tiles(w.data, FORMATS[w.scalar_type])[:n]
    scale = _untile_scale(w, rows)
    zero = None if w.zero_point is None else _untile_rows(w.zero_point, rows)
    g_idx = None
    if prepare_shard.is_shard(w):
        codes = codes[:, : w.g_idx.shape[1]]
        codes, (scale, zero), g_idx = prepare_shard.out_of_slots(codes, (scale, zero), w)
    codes = codes[:, :k]
    if w.g_idx is not None and g_idx is None:
        group = k if w.group_size == -1 else w.group_size
        codes = jnp.zeros_like(codes).at[:, w.g_idx].set(codes)
        g_idx = jnp.zeros_like(w.g_idx).at[w.g_idx].set(jnp.arange(k, dtype=jnp.int32) // group)
    if w.packed:
        data = pack_nibbles(codes)
    else:
        data = jax.lax.bitcast_convert_type(codes, _AT_REST.get(w.scalar_type, jnp.uint8))
    return dataclasses.replace(
        w, data=data, scale=scale, zero_point=zero, g_idx=g_idx, layout=PLAIN
    )


def scale_words(scale: jax.Array) -> jax.Array:
    """A prepared scale as the kernels read it: those of 8 bits as words, int32 or int16 [.., T]."""
    if scale_kind(scale.dtype) == "float":
        return scale
    word = {2: jnp.int16, 4: jnp.int32}[scale.shape[-1]]
    return jax.lax.bitcast_convert_type(scale, word)


def _tile_scale(w: QuantizedTensor) -> jax.Array:
    n, k = w.shape
    if w.granularity == "block":
        tiles = jnp.repeat(w.scale, w.group_shape.row // TILE, axis=0)[: -(-n // TILE)]
        copies = _LINE // w.scale.dtype.itemsize
        return jnp.broadcast_to(tiles[:, :, None], (*tiles.shape, copies))
    if scale_kind(w.scale.dtype) == "float":
        return _tile_rows(w.scale, n)
    codes = TILE // w.group_size  # of a row of a tile
    padding = ((0, -n % TILE), (0, -w.scale.shape[1] % codes))
    # As bytes: e8m0 has no 0, and what a conversion makes of it, NaN, would not vanish with x.
    tiles = jnp.pad(jax.lax.bitcast_convert_type(w.scale, jnp.uint8), padding)
    tiles = tiles.reshape(-(-n // TILE), TILE, -(-k // TILE), codes).transpose(0, 2, 1, 3)
    return jax.lax.bitcast_convert_type(tiles, w.scale.dtype)


def _untile_scale(w: QuantizedTensor, rows: int) -> jax.Array:
    """The inverse of `_tile_scale`."""
    if w.granularity == "block":
        return w.scale[:: w.group_shape.row // TILE, :, 0]
    if scale_kind(w.scale.dtype) == "float":
        return _untile_rows(w.scale, rows)
    tiles, ktiles, _, codes = w.scale.shape
    plain = w.scale.transpose(0, 2, 1, 3).reshape(tiles * TILE, ktiles * codes)
    return plain[:rows, : w.shape[1] // w.group_size]


def _tile_rows(per_group: jax.Array, n: int) -> jax.Array:
    """[N or 1, groups] to [ceil(N/64), groups, 64]; padded rows repeat the last one."""
    rows, groups = per_group.shape
    per_group = jnp.broadcast_to(per_group, (n, groups)) if rows == 1 else per_group
    per_group = jnp.pad(per_group, ((0, -n % TILE), (0, 0)), mode="edge")
    return per_group.reshape(-1, TILE, groups).transpose(0, 2, 1)


def _untile_rows(tiled: jax.Array, rows: int) -> jax.Array:
    """The inverse of `_tile_rows`, for the first `rows` rows."""
    return tiled.transpose(0, 2, 1).reshape(-1, tiled.shape[1])[:rows]

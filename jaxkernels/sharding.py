# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Tensor parallelism: a `QuantizedTensor` cut along N or K, for use inside `jax.shard_map`.

A weight's arrays are cut alike along N. Along K, groups go with their columns, while scales a
channel, and all scales of an act-order weight, stay whole on every device.
"""

from __future__ import annotations

import dataclasses

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxkernels import checks
from jaxkernels.quantized import PLAIN, QuantizedTensor

_TILE = 64  # rows and columns of a prepared tile, jaxkernels.mosaic.convert.TILE


def partition_specs(
    w: QuantizedTensor, mesh: Mesh | AbstractMesh, n: str | None = None, k: str | None = None
) -> QuantizedTensor:
    """How each array of a weight is cut when N lies along mesh axis `n` and K along `k`.

    Column-parallel layers cut N and give each device its columns of the result; row-parallel ones
    cut K, and the partial results are summed (`jax.lax.psum`).

    Args:
      w: a `QuantizedTensor` of any layout.
      mesh: the mesh; its axis sizes must divide w into whole groups, blocks or tiles.
      n: the mesh axis of N, or None.
      k: the mesh axis of K, or None.

    Returns:
      A `QuantizedTensor` with a `PartitionSpec` in each array's place: an in_specs of shard_map, or
      the specs of `NamedSharding`s.

    Raises:
      ValueError: a group, block or tile would straddle two devices.

    Source: vLLM's sharding of `PackedvLLMParameter` and `GroupQuantScaleParameter`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxkernels import mixed_mm, quantize, scalar_types
      >>> auto = (jax.sharding.AxisType.Auto,)
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=auto)
      >>> w = quantize(jnp.ones((8, 64)), scalar_types.uint4b8, 32)
      >>> specs = partition_specs(w, mesh, n="model")
      >>> P = jax.sharding.PartitionSpec
      >>> specs.scale == P("model", None)
      True
      >>> layer = jax.shard_map(lambda x, w: mixed_mm(x, local(w)), mesh=mesh,
      ...                       in_specs=(P(), specs), out_specs=P(None, "model"))
      >>> layer(jnp.ones((2, 64)), w).shape
      (2, 8)
    """
    sizes = dict(mesh.shape)
    for name in (n, k):
        if name is not None and name not in sizes:
            checks.bad_value("mesh", f"an axis {name!r}", tuple(sizes))
    rows, columns = w.group_shape
    tile = 1 if w.layout == PLAIN else _TILE
    unit_n = max(tile, rows if rows > 1 else 1)
    whole_scales = w.g_idx is not None or columns == -1 or w.granularity in ("tensor", "channel")
    unit_k = tile if whole_scales else max(tile, columns)
    if w.packed:
        unit_k = max(unit_k, 2)
    for label, size, unit, name in (("N", w.shape[0], unit_n, n), ("K", w.shape[1], unit_k, k)):
        if name is not None and size % (unit * sizes[name]):
            checks.bad_value(
                "w", f"{label} = {size} to be {sizes[name]} shards of a multiple of {unit}", w
            )
    if w.g_idx is not None and w.layout != PLAIN and k is not None:
        checks.bad_value("w", "the plain layout to cut an act-order weight along K", w)

    scale_n = None if w.granularity == "tensor" else n
    scale_k = None if whole_scales else k
    if w.layout == PLAIN:
        data, scale = PartitionSpec(n, k), PartitionSpec(scale_n, scale_k)
    else:
        # data [tiles of N, tiles of K, ...], scale [tiles of N, groups, 64]; a single scale is
        # repeated to fill a tile.
        data, scale = PartitionSpec(n, k, None), PartitionSpec(n, scale_k, None)
    return dataclasses.replace(
        w,
        data=data,
        scale=scale,
        zero_point=None if w.zero_point is None else scale,
        g_idx=None if w.g_idx is None else PartitionSpec(k),
        global_scale=None if w.global_scale is None else _cut_rows(w.global_scale, n),
    )


def _cut_rows(global_scale, n: str | None) -> PartitionSpec:
    """A second-level scale: one for all, or one a row of w."""
    return PartitionSpec(n, None) if n and global_scale.shape[-2] > 1 else PartitionSpec()


def local(w: QuantizedTensor) -> QuantizedTensor:
    """Inside shard_map, this device's part of a weight, with the shape of that part.

    The arrays have been cut, but the static shape is still the whole weight's: this sets it right.

    Example: see `partition_specs`.
    """
    n, k = w.shape
    if w.layout == PLAIN:
        shape = (w.data.shape[-2], w.data.shape[-1] * (2 if w.packed else 1))
    else:
        tiles_n, tiles_k = w.data.shape[-3], w.data.shape[-2] // w.scalar_type.size_bits
        shape = (
            n if tiles_n == -(-n // _TILE) else tiles_n * _TILE,
            k if tiles_k == -(-k // _TILE) else tiles_k * _TILE,
        )
    return dataclasses.replace(w, shape=shape)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Act-order with part of every group: a shard along K, prepared as groups of 16.

A K shard of an act-order layer has any number of columns of each of the layer's groups, and the
scales of all of them. Its columns are sorted by group as an unsharded layer's are, and the last
column of each group is repeated until the group fills whole slots of 16, with the code that means
zero. So a slot has one scale, and the kernels run it as a weight [N, P] in groups of 16:

    data        the tiles of [N, P]
    scale       [ceil(N/T), P / 16 + groups, T]   one a slot, then the checkpoint's own
    zero_point  likewise, or None
    g_idx       int32 [2, P]: the column at each place, and its group

A group adds 7 or 8 columns on average, and the scales of slots are more than those of groups: half
of a layer of 4-bit weights in groups of 128 takes about 1.35 times its packed bytes. P depends on
the values of g_idx, so that this preparation cannot be traced.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxkernels import checks
from jaxkernels.quantized import PLAIN, QuantizedTensor

SLOT = 16


def is_shard(w: QuantizedTensor) -> bool:
    """Whether an act-order weight (plain or prepared) has parts of groups."""
    if w.g_idx is None or w.layout != PLAIN:
        return w.g_idx is not None and w.g_idx.ndim == 2
    group = w.shape[1] if w.group_size == -1 else w.group_size
    return w.scale.shape[-1] * group != w.shape[1]


def places(g_idx: jax.Array) -> np.ndarray:
    """int32 [2, P]: the column at each place and the column's group.

    Example:
      >>> places(jnp.array([1, 0, 1]))[:, [0, 1, 15, 16, 17, 18, 31]]
      array([[1, 1, 1, 0, 2, 2, 2],
             [0, 0, 0, 1, 1, 1, 1]], dtype=int32)
    """
    if isinstance(g_idx, jax.core.Tracer):
        checks.bad_value("g_idx", "values (a K shard is prepared outside of jit)", g_idx)
    g_idx = np.asarray(g_idx)
    order = np.argsort(g_idx, kind="stable")
    edges = np.flatnonzero(np.diff(g_idx[order])) + 1
    columns = [np.pad(part, (0, -len(part) % SLOT), "edge") for part in np.split(order, edges)]
    columns = np.concatenate(columns)
    return np.stack([columns, g_idx[columns]]).astype(np.int32)


def into_slots(codes: jax.Array, zero, placed: jax.Array, w: QuantizedTensor):
    """(codes [N, P], scale and zero_point [N, P / 16 + groups]) of a plain shard.

    Args:
      codes: uint8 [N, K].
      zero: the type's own zero, for weights without zero points.
      placed: what `places` gave.
      w: the shard.
    """
    columns, groups = placed
    if w.zero_point is not None:
        zero = jnp.take(w.zero_point, groups, axis=1)
    codes = jnp.where(_repeated(columns), zero, jnp.take(codes, columns, axis=1))

    def of_slots(per_group):
        return jnp.concatenate([jnp.take(per_group, groups[::SLOT], axis=1), per_group], axis=1)

    zero_point = None if w.zero_point is None else of_slots(w.zero_point)
    return codes.astype(jnp.uint8), of_slots(w.scale), zero_point


def out_of_slots(codes: jax.Array, per_slot, w: QuantizedTensor):
    """The inverse: codes [N, K], the groups' own part of each of `per_slot`, and g_idx [K]."""
    k = w.shape[1]
    columns, groups = w.g_idx
    target = jnp.where(_repeated(columns), k, columns)
    codes = jnp.zeros((codes.shape[0], k), codes.dtype).at[:, target].set(codes, mode="drop")
    g_idx = jnp.zeros(k, jnp.int32).at[target].set(groups, mode="drop")
    slots = columns.size // SLOT
    return codes, [None if v is None else v[:, slots:] for v in per_slot], g_idx


def _repeated(columns: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros(1, bool), columns[1:] == columns[:-1]])


def as_groups(w: QuantizedTensor) -> QuantizedTensor:
    """A prepared shard as the kernels see it: a weight in groups of 16, without its g_idx."""
    shape = (w.shape[0], w.g_idx.shape[1])
    return dataclasses.replace(w, g_idx=None, shape=shape, group_shape=type(w.group_shape)(1, SLOT))

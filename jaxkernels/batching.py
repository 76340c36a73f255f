# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What vmap makes of a Hopper kernel: more rows where the weight is shared, else one by one.

Pallas's own rule adds a grid axis, and then a tile of each operand must start at a multiple of 16
bytes for every member of the batch, which vectors of scales seldom do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels.problem import (
    Implementation,
    MixedMMOperands,
    QuantizeOperands,
    ScaledMMOperands,
    W4A8Operands,
)


def run(kernel: Implementation, problem: Any, operands: Any, config: Any) -> Any:
    """`kernel.run(problem, operands, config)`, with a batching rule if it is a Hopper kernel."""
    if kernel.name != "hopper":
        return kernel.run(problem, operands, config)

    @jax.custom_batching.custom_vmap
    def call(operands):
        return kernel.run(problem, operands, config)

    @call.def_vmap
    def rule(size, batched, operands):
        [batched] = batched  # one tree of bools an argument
        folded = _FOLDS[type(operands)](size, batched, operands, problem)
        if folded is None:
            return _one_by_one(call, batched, operands)
        rows, operands = folded
        out = run(kernel, rows, operands, config)
        return _unfold(size, problem, out)

    return call(operands)


def _one_by_one(call, batched, operands):
    leaves, tree = jax.tree.flatten(operands)
    flags = jax.tree.leaves(batched)

    def member(mapped):
        mapped = iter(mapped)
        pairs = zip(leaves, flags, strict=True)
        return call(tree.unflatten([next(mapped) if flag else leaf for leaf, flag in pairs]))

    pairs = zip(leaves, flags, strict=True)
    out = jax.lax.map(member, [leaf for leaf, flag in pairs if flag])
    return out, jax.tree.map(lambda _: True, out)


def _rows(size: int, is_batched: bool, array: jax.Array, m: int) -> jax.Array:
    """[m or 1, c], or [size, m or 1, c] if batched, as [size * m, c]."""
    array = array if is_batched else array[None]
    return jnp.broadcast_to(array, (size, m, array.shape[-1])).reshape(size * m, -1)


def _fold_scaled(size, batched, ops: ScaledMMOperands, problem):
    if batched.w or batched.w_scale or batched.bias or batched.azp_adj:
        return None
    one_scale = problem.x_scale == "tensor"
    shared_scale = one_scale and not batched.x_scale
    m = problem.m
    rows = ops._replace(
        x=_rows(size, batched.x, ops.x, m),
        x_scale=ops.x_scale if shared_scale else _rows(size, batched.x_scale, ops.x_scale, m),
        azp=None if ops.azp is None else _rows(size, batched.azp, ops.azp, m),
    )
    how = "token" if one_scale and not shared_scale else problem.x_scale
    return dataclasses.replace(problem, m=size * m, x_scale=how), rows


def _fold_mixed(size, batched, ops: MixedMMOperands, problem):
    if any(jax.tree.leaves((batched.w, batched.bias))):
        return None
    rows = ops._replace(x=_rows(size, batched.x, ops.x, problem.m))
    return dataclasses.replace(problem, m=size * problem.m), rows


def _fold_w4a8(size, batched, ops: W4A8Operands, problem):
    if any(jax.tree.leaves((batched.w, batched.bias))):
        return None
    m = problem.m
    x = _rows(size, batched.x, ops.x, m)
    rows = ops._replace(x=x, x_scale=_rows(size, batched.x_scale, ops.x_scale, m))
    return dataclasses.replace(problem, m=size * m), rows


def _fold_quantize(size, batched, ops: QuantizeOperands, problem):
    shared = not any(jax.tree.leaves(batched._replace(x=False)))
    if problem.scale == "tensor" or problem.column_major or not shared:
        return None
    rows = ops._replace(x=_rows(size, batched.x, ops.x, problem.m))
    return dataclasses.replace(problem, m=size * problem.m), rows


_FOLDS = {
    ScaledMMOperands: _fold_scaled,
    MixedMMOperands: _fold_mixed,
    W4A8Operands: _fold_w4a8,
    QuantizeOperands: _fold_quantize,
}


def _unfold(size, problem, out):
    """Outputs of size * m rows as [size, m, ...], and which are batched: a static scale is not."""
    total = size * problem.m
    static = getattr(problem, "scale", None) == "static"
    is_rows = jax.tree.map(
        lambda a: a.shape[0] == total and not (static and a.shape == (1, 1)), out
    )
    split = jax.tree.map(
        lambda a, rows: a.reshape(size, problem.m, *a.shape[1:]) if rows else a, out, is_rows
    )
    return split, is_rows

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`scaled_mm` as slowly and plainly as it can be said: what the others are compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkernels.problem import Device, Implementation, ScaledMMOperands, ScaledMMProblem, Support


def supports(problem: ScaledMMProblem, device: Device) -> Support:
    """Everything, everywhere."""
    return Support(True)


def run(problem: ScaledMMProblem, operands: ScaledMMOperands, config: None = None) -> jax.Array:
    """out_dtype [m, n]: one block of K after the other, then bias, then the only rounding."""
    x, w, x_scale, w_scale, bias, azp, azp_adj = operands
    blocked = problem.x_scale == "group" or problem.w_scale == "block"
    block = 128 if blocked else problem.k
    rows_of_w = jnp.arange(problem.n) // (128 if problem.w_scale == "block" else 1)
    wide = jnp.int32 if problem.x_dtype == "int8" else jnp.float32

    out = jnp.zeros((problem.m, problem.n), jnp.float32)
    for index, start in enumerate(range(0, problem.k, block)):
        x_block = x[:, start : start + block].astype(wide)
        w_block = w[:, start : start + block].astype(wide)
        acc = jnp.matmul(x_block, w_block.T, precision=jax.lax.Precision.HIGHEST)
        if azp_adj is not None and azp is None:
            acc = acc - azp_adj[None, :]
        elif azp_adj is not None:
            acc = acc - azp * azp_adj[None, :]
        s_x = x_scale[:, min(index, x_scale.shape[1] - 1)][:, None]
        s_w = w_scale[:, min(index, w_scale.shape[1] - 1)]
        s_w = s_w if problem.w_scale == "tensor" else s_w[rows_of_w]
        out = out + acc.astype(jnp.float32) * s_w[None, :] * s_x
    if bias is not None:
        out = out + bias.astype(jnp.float32)[None, :]
    return out.astype(problem.out_dtype)


KERNEL = Implementation("reference", supports, run)

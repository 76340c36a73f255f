# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`scaled_mm` in plain JAX: every scheme, on whatever JAX runs on.

int8 products are summed exactly in int32, the zero points are taken off there, and then comes
float32: times w_scale, times x_scale, plus bias, one rounding. fp8 products are summed in
float32, block-scaled ones 128 of K at a time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkernels.problem import Device, Implementation, ScaledMMOperands, ScaledMMProblem, Support

BLOCK = 128

# float32 sums of int8 products are exact up to 2^24 = 1024 * 2^14.
_EXACT_K = 1024


def supports(problem: ScaledMMProblem, device: Device) -> Support:
    """Everything, everywhere."""
    return Support(True)


def run(problem: ScaledMMProblem, operands: ScaledMMOperands, config: None = None) -> jax.Array:
    """out_dtype [m, n]; see `ScaledMMOperands`."""
    x, w, x_scale, w_scale, bias, azp, azp_adj = operands
    if problem.x_scale == "group" or problem.w_scale == "block":
        out = _blocked(problem, operands)
    else:
        if problem.x_dtype == "int8":
            acc = _int_matmul(x, w)
            if azp_adj is not None:
                acc = acc - (azp_adj[None] if azp is None else azp * azp_adj[None])
        else:
            acc = _float_matmul(x, w)
        out = acc.astype(jnp.float32) * w_scale.reshape(1, -1) * x_scale
    if bias is not None:
        out = out + bias.astype(jnp.float32)
    return out.astype(problem.out_dtype)


def _matmul(x: jax.Array, w: jax.Array, dtype) -> jax.Array:
    return jax.lax.dot_general(
        x,
        w,
        (((1,), (1,)), ((), ())),
        # No TF32 for float32, and no "fast accumulation" for fp8.
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )


def _int_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """int8 [m, k] times int8 [n, k], summed exactly in int32."""

    def direct(x, w):
        return _matmul(x, w, jnp.int32)

    def through_float32(x, w):
        # XLA's CPU backend has no fast integer GEMM: 200x slower than float32 (2026-11).
        acc = jnp.zeros((x.shape[0], w.shape[0]), jnp.int32)
        for start in range(0, x.shape[1], _EXACT_K):
            part = slice(start, start + _EXACT_K)
            product = _matmul(
                x[:, part].astype(jnp.float32), w[:, part].astype(jnp.float32), jnp.float32
            )
            acc = acc + product.astype(jnp.int32)
        return acc

    return jax.lax.platform_dependent(x, w, cpu=through_float32, default=direct)


def _float_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """fp8 [m, k] times fp8 [n, k], summed in float32."""

    def direct(x, w):
        return _matmul(x, w, jnp.float32)

    def widened(x, w):
        return _matmul(x.astype(jnp.float32), w.astype(jnp.float32), jnp.float32)

    return jax.lax.platform_dependent(x, w, cpu=widened, default=direct)


def _blocked(problem: ScaledMMProblem, operands: ScaledMMOperands) -> jax.Array:
    """sum over blocks of K of x_scale * w_scale * (product of the block), in float32."""
    m, n, k = problem.m, problem.n, problem.k
    blocks = -(-k // BLOCK)
    x_scale = jnp.broadcast_to(operands.x_scale, (m, blocks))
    w_scale = operands.w_scale
    if problem.w_scale == "block":
        w_scale = jnp.repeat(w_scale, BLOCK, axis=0)[:n]
    w_scale = jnp.broadcast_to(w_scale, (n, blocks))

    def scaled_first(x, w, x_scale, w_scale):
        # One float32 GEMM of dequantized operands: the products differ from the scaled sums by
        # float32 roundings only.
        x = x.astype(jnp.float32) * jnp.repeat(x_scale, BLOCK, axis=1)[:, :k]
        w = w.astype(jnp.float32) * jnp.repeat(w_scale, BLOCK, axis=1)[:, :k]
        return _matmul(x, w, jnp.float32)

    def block_by_block(x, w, x_scale, w_scale):
        pad = ((0, 0), (0, blocks * BLOCK - k))
        x = jnp.pad(x, pad).reshape(m, blocks, BLOCK).swapaxes(0, 1)
        w = jnp.pad(w, pad).reshape(n, blocks, BLOCK).swapaxes(0, 1)
        dtype = jnp.int32 if problem.x_dtype == "int8" else jnp.float32

        def step(acc, block):
            x, w, x_scale, w_scale = block
            product = _matmul(x, w, dtype).astype(jnp.float32)
            return acc + product * w_scale[None, :] * x_scale[:, None], None

        acc = jnp.zeros((m, n), jnp.float32)
        return jax.lax.scan(step, acc, (x, w, x_scale.T, w_scale.T))[0]

    return jax.lax.platform_dependent(
        operands.x, operands.w, x_scale, w_scale, cpu=scaled_first, default=block_by_block
    )


KERNEL = Implementation("xla", supports, run)

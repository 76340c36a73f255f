# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Random operands and the exact result of a scaled GEMM, for tests of its kernels.

Operands are small integers and scales powers of two, so that every sum is exact in float32 and a
kernel has to return the float64 result, rounded once.
"""

import jax.numpy as jnp
import numpy as np

from jaxkernels.problem import ScaledMMOperands, ScaledMMProblem

E4M3, E5M2, INT8 = "float8_e4m3fn", "float8_e5m2", "int8"


def problem(
    m, n, k, dtype=INT8, out="bfloat16", *, w_dtype=None, scales=("token", "channel"), **kw
):
    return ScaledMMProblem(m, n, k, dtype, w_dtype or dtype, out, *scales, **kw)


def operands(p: ScaledMMProblem, rng, limit: int = 8) -> ScaledMMOperands:
    """int8 over its whole range; float8 integers of at most `limit` (a power of two)."""

    def matrix(rows, dtype):
        if dtype == INT8:
            return jnp.asarray(rng.integers(-128, 128, (rows, p.k)), jnp.int8)
        return jnp.asarray(rng.integers(-limit, limit + 1, (rows, p.k)), jnp.float32).astype(dtype)

    def scale(shape):
        return jnp.asarray(2.0 ** rng.integers(-3, 4, shape), jnp.float32)

    groups, blocks = -(-p.k // 128), -(-p.n // 128)
    x_scale = {"tensor": (1, 1), "token": (p.m, 1), "group": (p.m, groups)}[p.x_scale]
    w_scale = {"tensor": (1, 1), "channel": (p.n, 1), "block": (blocks, groups)}[p.w_scale]
    bias = jnp.asarray(rng.integers(-100, 101, p.n), p.out_dtype) if p.bias else None
    azp = jnp.asarray(rng.integers(-128, 128, (p.m, 1)), jnp.int32) if p.azp == "token" else None
    adjust = jnp.asarray(rng.integers(-5000, 5001, p.n), jnp.int32) if p.azp else None
    x, w = matrix(p.m, p.x_dtype), matrix(p.n, p.w_dtype)
    return ScaledMMOperands(x, w, scale(x_scale), scale(w_scale), bias, azp, adjust)


def exact(p: ScaledMMProblem, ops: ScaledMMOperands) -> np.ndarray:
    """The result in float64, rounded once to the output's dtype (as float64)."""

    def f64(a):
        return np.asarray(a.astype(jnp.float32), np.float64)

    x, w, x_scale, w_scale = (f64(a) for a in ops[:4])
    if p.x_scale == "group":
        x = x * np.repeat(x_scale, 128, 1)[:, : p.k]
        w = w * np.repeat(np.repeat(w_scale, 128, 0)[: p.n], 128, 1)[:, : p.k]
        total = x @ w.T
    else:
        total = x @ w.T
        if p.azp == "token":
            total -= f64(ops.azp) * f64(ops.azp_adj)
        elif p.azp == "static":
            total -= f64(ops.azp_adj)
        total = total * w_scale.reshape(1, -1) * x_scale
    if p.bias:
        total = total + f64(ops.bias)
    return np.asarray(jnp.asarray(total, jnp.float32).astype(p.out_dtype), np.float64)


def assert_equal(actual, expected: np.ndarray):
    """Bit equality, with the first difference's place and values where it fails."""
    actual = np.asarray(actual.astype(jnp.float32), np.float64)
    assert actual.shape == expected.shape
    wrong = np.argwhere(actual != expected)
    if len(wrong):
        where = tuple(int(i) for i in wrong[0])
        message = f"{len(wrong)} of {expected.size} differ, first at {where}: "
        raise AssertionError(message + f"got {actual[where]}, expected {expected[where]}")

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The public op `scaled_mm`: checks its arguments, chooses an implementation, runs it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels import batching, checks
from jaxkernels.choice import choose, warn_if_slow
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import Implementation, ScaledMMOperands, ScaledMMProblem, dtype_name
from jaxkernels.quantized import PLAIN, QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from jaxkernels.scaled_mm import hopper, reference, xla

# In order of preference.
IMPLEMENTATIONS = (hopper.KERNEL, xla.KERNEL, reference.KERNEL)

_OUT_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
_FP8 = (jnp.float8_e4m3fn, jnp.float8_e5m2)
_BLOCK = 128


def scaled_mm(
    x: jax.Array,
    w: jax.Array | QuantizedTensor,
    x_scale: Any = None,
    w_scale: Any = None,
    *,
    bias: jax.Array | None = None,
    azp: jax.Array | None = None,
    azp_adj: jax.Array | None = None,
    out_dtype: Any = jnp.bfloat16,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> jax.Array:
    """`out[m, n] = x_scale[m] * w_scale[n] * sum_k x[m, k] * w[n, k] + bias[n]`, 8-bit operands.

    With zero points (int8 only) the sum is `sum_k x w - azp[m] * azp_adj[n]`, where `azp_adj[n]`
    is `sum_k w[n, k]`; or with azp None, `sum_k x w - azp_adj[n]`, where azp_adj already has the
    one azp of a static scheme multiplied in. Block-scaled, each 128 of K is summed by itself:
    `out[m, n] = sum_b x_scale[m, b] * w_scale[n // 128, b] * sum_(k in b) x[m, k] * w[n, k]`.

    Precision: int8 sums, products of zero points and differences are exact int32 (K < 131072);
    fp8 sums are float32, but on Hopper's tensor cores, which keep about 14 bits of a running sum:
    up to 128 of K at a time with block scales, all of K without (as every fast fp8 GEMM there).
    Scales and bias are applied in float32, then there is one rounding.

    Args:
      x: int8 or float8 [..., K]; leading dimensions are flattened to M. M = 0 works.
      w: int8 or float8 [N, K], or a plain `QuantizedTensor` of such (w_scale is then its own).
      x_scale: float32, one number ([], [1], [1, 1]), or one a row [M], [M, 1], [..., 1], or one
        per 128 of K [M, ceil(K/128)], [..., ceil(K/128)]. None is 1.
      w_scale: float32, one number, or one a row of w [N], [N, 1], [1, N], or 128 x 128 blocks
        [ceil(N/128), ceil(K/128)]. None is 1. Both may be float8_e8m0fnu (UE8M0) instead.
      bias: float [N] or [1, N].
      azp: int32, one a row [M, 1], [..., 1], or one number: x's zero points.
      azp_adj: int32 [N] or [1, N], as above. With azp but no azp_adj, it is computed (once a call:
        keep it with the weight instead).
      out_dtype: bfloat16, float16 or float32.
      implementation: None for the first that supports the problem; else a name, or names in
        order, of "hopper", "xla", "reference".
      config: an implementation's tuning config; None is its default for the shape.

    Returns:
      out_dtype [..., N].

    Raises:
      ValueError, TypeError: naming the argument, what was expected and what came.
      NotImplementedError: a requested implementation refuses, with its reasons.

    Source: vLLM's `cutlass_scaled_mm`, `cutlass_scaled_mm_azp` and block-scaled fp8 GEMMs.

    Example:
      >>> x = jnp.array([[1, 2], [3, -4]], jnp.int8)
      >>> w = jnp.array([[5, 6], [7, 8], [1, 1]], jnp.int8)
      >>> scaled_mm(x, w, jnp.float32(0.5), out_dtype=jnp.float32)
      Array([[ 8.5, 11.5,  1.5],
             [-4.5, -5.5, -0.5]], dtype=float32)
    """
    operands, problem, leading = _canonical(x, w, x_scale, w_scale, bias, azp, azp_adj, out_dtype)
    if problem.m == 0 or problem.n == 0:
        return jnp.zeros((*leading, problem.n), problem.out_dtype)
    kernel, choice = choose(IMPLEMENTATIONS, problem, trace_device(operands.x), implementation)
    warn_if_slow(choice)
    out = _execute(operands, problem=problem, kernel=kernel, config=config)
    return out.reshape(*leading, problem.n)


@functools.partial(jax.jit, static_argnames=("problem", "kernel", "config"))
def _execute(
    operands: ScaledMMOperands, *, problem: ScaledMMProblem, kernel: Implementation, config: Any
) -> jax.Array:
    return batching.run(kernel, problem, operands, config)


def _canonical(x, w, x_scale, w_scale, bias, azp, azp_adj, out_dtype):
    """Checked operands in the shapes of `ScaledMMOperands`, the problem, and x's leading shape."""
    x = checks.as_array("x", x, (jnp.int8, *_FP8))
    if isinstance(w, QuantizedTensor):
        if w_scale is not None:
            checks.bad_value("w_scale", "None with a QuantizedTensor", w_scale)
        w, w_scale = _weight_arrays(w)
    w = checks.as_array("w", w, (jnp.int8,) if x.dtype == jnp.int8 else _FP8)
    if x.ndim == 0:
        checks.bad_value("x", "at least 1 dimension [..., K]", x)
    if w.ndim != 2:
        checks.bad_value("w", "2 dimensions [N, K]", w)
    (*leading, k), (n, w_k) = x.shape, w.shape
    if k == 0 or k != w_k:
        checks.bad_value("x", f"[..., K] with w's K = {w_k}, at least 1", x)
    m = math.prod(leading)
    groups = -(-k // _BLOCK)
    out_dtype = checks.check_dtype("out_dtype", out_dtype, _OUT_DTYPES)

    x_scale, x_how = _scale("x_scale", x_scale, leading, {"token": (m, 1), "group": (m, groups)})
    w_scale, w_how = _scale(
        "w_scale", w_scale, [n], {"channel": (n, 1), "block": (-(-n // _BLOCK), groups)}
    )
    bias = checks.as_vector("bias", bias, n, _OUT_DTYPES)
    azp_adj = checks.as_vector("azp_adj", azp_adj, n, (jnp.int32,))
    azp_how = None
    if azp is not None or azp_adj is not None:
        if x.dtype != jnp.int8:
            checks.bad_value("azp" if azp is not None else "azp_adj", f"None with {x.dtype} x", azp)
        if "group" in (x_how,) or "block" in (w_how,):
            checks.bad_value("azp", "None with block scales", azp if azp is not None else azp_adj)
        azp, azp_adj, azp_how = _zero_points(azp, azp_adj, w, leading, m)

    problem = ScaledMMProblem(
        m=m,
        n=n,
        k=k,
        x_dtype=dtype_name(x.dtype),
        w_dtype=dtype_name(w.dtype),
        out_dtype=out_dtype.name,
        x_scale=x_how,
        w_scale=w_how,
        bias=bias is not None,
        azp=azp_how,
    )
    operands = ScaledMMOperands(x.reshape(m, k), w, x_scale, w_scale, bias, azp, azp_adj)
    return operands, problem, tuple(leading)


def _weight_arrays(w: QuantizedTensor) -> tuple[jax.Array, jax.Array]:
    if w.layout != PLAIN:
        raise ValueError(f"w: expected layout 'plain', got {w.layout!r}")
    symmetric = w.zero_point is None and w.g_idx is None
    if w.scalar_type not in (scalar_types.int8, scalar_types.float8_e4m3fn) or not symmetric:
        raise ValueError(f"w: expected symmetric int8 or float8_e4m3fn weights, got {w}")
    if w.granularity == "group" or (w.granularity == "block" and w.group_shape != (_BLOCK, _BLOCK)):
        raise ValueError(f"w: expected tensor, channel or 128x128 block scales, got {w}")
    return w.data, w.scale.astype(jnp.float32)


def _scale(argument, scale, leading, shapes):
    """A scale as float32 of one of `shapes` (by granularity) or [1, 1], and its granularity."""
    if scale is None:
        return jnp.ones((1, 1), jnp.float32), "tensor"
    if isinstance(scale, (int, float)):
        scale = jnp.float32(scale)
    scale = checks.as_array(argument, scale, (jnp.float32, jnp.float8_e8m0fnu))
    scale = scale.astype(jnp.float32)  # powers of two, of one byte each (UE8M0)
    if scale.shape in ((), (1,), (1, 1)):
        return scale.reshape(1, 1), "tensor"
    for how, shape in shapes.items():
        accepted = [shape, (*leading, shape[1])]
        if shape[1] == 1:
            accepted += [(shape[0],), *([(1, shape[0])] if how == "channel" else [])]
        if scale.shape in accepted:
            return scale.reshape(shape), how
    checks.check_shape(argument, scale, (1, 1), *shapes.values(), meaning=" or ".join(shapes))


def _zero_points(azp, azp_adj, w, leading, m):
    if azp is None:
        return None, azp_adj, "static"
    azp = jnp.int32(azp) if isinstance(azp, int) else checks.as_array("azp", azp, (jnp.int32,))
    if azp_adj is None:
        azp_adj = jnp.sum(w, axis=1, dtype=jnp.int32)
    if azp.size == 1:
        if m == 1:  # one row: as good as per token, and without a product outside the kernel
            return azp.reshape(1, 1), azp_adj, "token"
        return None, azp.reshape(()) * azp_adj, "static"
    if azp.shape not in ((m,), (m, 1), (*leading, 1)):
        checks.check_shape("azp", azp, (1, 1), (m, 1))
    return azp.reshape(m, 1), azp_adj, "token"

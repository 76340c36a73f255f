# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The public op `mixed_mm`: checks its arguments, chooses an implementation, runs it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels import batching, checks
from jaxkernels.choice import choose, warn_if_slow
from jaxkernels.gradient import linear_vjp
from jaxkernels.mixed_mm import hopper, reference, xla
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import Implementation, MixedMMOperands, MixedMMProblem, dtype_name
from jaxkernels.quantized import QuantizedTensor

# In order of preference.
IMPLEMENTATIONS = (hopper.KERNEL, xla.KERNEL, reference.KERNEL)

_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)


def mixed_mm(
    x: jax.Array,
    w: QuantizedTensor,
    *,
    bias: jax.Array | None = None,
    out_dtype: Any = None,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> jax.Array:
    """`out[m, n] = sum_k x[m, k] * value(w)[n, k] + bias[n]` with quantized weights.

    `value(w)` is `(q - zero_point) * scale`, see `QuantizedTensor`. Differentiable: x, bias and
    16- or 32-bit scales have gradients, codes and zero points have none.

    Precision: float32 sums. Per-tensor and per-channel scales are applied to the float32 sum, the
    weights being exact before; with groups or blocks a scale and its product with the code are
    each rounded at most once, to x's dtype, as Marlin and Machete do (so fp4 with its own scales
    stays exact). A global scale and the bias come in float32, then there is one rounding.

    Args:
      x: bfloat16, float16 or float32 [..., K]; leading dimensions are flattened to M. M = 0 works.
      w: a `QuantizedTensor` of shape (N, K). Plain, or prepared once (`jaxkernels.prepare`) for
        the Hopper kernels, which take nothing else.
      bias: float [N] or [1, N].
      out_dtype: bfloat16, float16 or float32; None is x's dtype.
      implementation: None for the first that supports the problem; else a name, or names in
        order, of "hopper", "xla", "reference".
      config: an implementation's tuning config; None is its default for the shape.

    Returns:
      out_dtype [..., N].

    Raises:
      ValueError, TypeError: naming the argument, what was expected and what came.
      NotImplementedError: a requested implementation refuses, with its reasons.

    Source: vLLM's `gptq_marlin_gemm`, `machete_mm`, `awq_gemm` and their kin.

    Example:
      >>> from jaxkernels import quantize, scalar_types
      >>> w = quantize(jnp.array([[7.0, -8.0], [3.5, -4.0]]), scalar_types.int4)
      >>> mixed_mm(jnp.array([[1.0, 0.5]]), w)
      Array([[3. , 1.5]], dtype=float32)
    """
    x = checks.as_array("x", x, _FLOATS)
    if not isinstance(w, QuantizedTensor):
        checks.bad_type("w", "a QuantizedTensor", w)
    w.validate()
    (n, k) = w.shape
    if x.ndim == 0 or x.shape[-1] != k or k == 0:
        checks.bad_value("x", f"[..., K] with w's K = {k}, at least 1", x)
    bias = checks.as_vector("bias", bias, n, _FLOATS)
    out_dtype = checks.check_dtype("out_dtype", out_dtype or x.dtype, _FLOATS)
    leading = x.shape[:-1]
    problem = MixedMMProblem(
        m=math.prod(leading),
        n=n,
        k=k,
        weight_type=w.scalar_type,
        x_dtype=dtype_name(x.dtype),
        out_dtype=out_dtype.name,
        group_size=w.group_size,
        granularity=w.granularity,
        zero_points=w.zero_point is not None,
        g_idx=w.g_idx is not None,
        bias=bias is not None,
        layout=w.layout,
        scale_dtype=dtype_name(w.scale.dtype),
        global_scale=w.global_scale is not None,
    )
    if problem.m == 0 or n == 0:
        return jnp.zeros((*leading, n), out_dtype)
    kernel, choice = choose(IMPLEMENTATIONS, problem, trace_device(x), implementation)
    warn_if_slow(choice)
    out = _linear(problem, kernel, config, x.reshape(-1, k), w, bias)
    return out.reshape(*leading, n)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _linear(
    problem: MixedMMProblem,
    kernel: Implementation,
    config: Any,
    x: jax.Array,
    w: QuantizedTensor,
    bias: jax.Array | None,
) -> jax.Array:
    return batching.run(kernel, problem, MixedMMOperands(x, w, bias), config)


def _linear_fwd(problem, kernel, config, x, w, bias):
    return _linear(problem, kernel, config, x, w, bias), (x, w, bias)


def _linear_bwd(problem, kernel, config, saved, g):
    return linear_vjp(*saved, g)


_linear.__wrapped__.defvjp(_linear_fwd, _linear_bwd)

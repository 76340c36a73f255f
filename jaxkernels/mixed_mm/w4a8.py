# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""GEMM of 4-bit weights and 8-bit activations: `w4a8_mm`, and `w4a8_linear`, which quantizes x.

The implementations in plain JAX are here; the Hopper kernel is `hopper_w4a8`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels import batching, checks
from jaxkernels.choice import choose, warn_if_slow
from jaxkernels.gradient import linear_vjp, plain
from jaxkernels.mixed_mm import hopper_w4a8
from jaxkernels.mixed_mm.prepare_w4a8 import WEIGHTS
from jaxkernels.mosaic.convert8 import rounded_products
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import (
    Device,
    Implementation,
    Support,
    W4A8Operands,
    W4A8Problem,
    dtype_name,
)
from jaxkernels.quantize.op import quantize_fp8, quantize_int8
from jaxkernels.quantized import QuantizedTensor, expand_to_elements, unscaled

_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)
_EIGHT_BITS = (jnp.float8_e4m3fn, jnp.int8)


def w4a8_mm(
    x: jax.Array,
    w: QuantizedTensor,
    x_scale: jax.Array,
    *,
    bias: jax.Array | None = None,
    out_dtype: Any = jnp.bfloat16,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> jax.Array:
    """4-bit weights by 8-bit activations, each row of x with its own scale.

        fp8    out[m, n] = x_scale[m] * c[n] * sum_k x[m, k] * e4m3(q[n, k] * f[n, g]) + bias[n]
        int8   out[m, n] = x_scale[m] * sum_g s[n, g] * sum_{k in g} x[m, k] * q[n, k] + bias[n]

    Precision: with fp8 the product of a code and its group scale is rounded once to e4m3, as
    upstream's lookup tables do, and summed in the tensor core's accumulator. With int8 the sum of
    a group is exact and groups are added in float32. Scales and bias are applied in float32, then
    there is one rounding. Not differentiable: `w4a8_linear` is.

    Args:
      x: float8_e4m3fn or int8 [..., K]; leading dimensions are flattened to M. M = 0 works.
      w: a `QuantizedTensor` of int4 or uint4b8 without zero points, plain or prepared once
        (`prepare_w4a8`, of `jaxkernels.mixed_mm` like `split_scales`) for the Hopper kernel, which
        takes nothing else. For fp8 its scales are those of `split_scales`: f e4m3 and c float32;
        for int8 one level of 16- or 32-bit scales.
      x_scale: float32, one number or [..., 1], one a row of x.
      bias: float [N] or [1, N].
      out_dtype: bfloat16, float16 or float32.
      implementation: None for the first that supports the problem; else a name, or names in
        order, of "hopper", "xla", "reference".
      config: an implementation's tuning config; None is its default for the shape.

    Returns:
      out_dtype [..., N].

    Raises:
      ValueError, TypeError: naming the argument, what was expected and what came.
      NotImplementedError: a requested implementation refuses, with its reasons.

    Source: vLLM's `cutlass_w4a8_mm`; Marlin's W4A8-int8 with exact instead of 16-bit scales.

    Example:
      >>> from jaxkernels import quantize, scalar_types
      >>> w = quantize(jnp.array([[7.0, -8.0], [3.5, -4.0]]), scalar_types.int4, 2)
      >>> w4a8_mm(jnp.array([[2, 1]], jnp.int8), w, jnp.float32(0.5), out_dtype=jnp.float32)
      Array([[3. , 1.5]], dtype=float32)
    """
    x = checks.as_array("x", x, _EIGHT_BITS)
    if not isinstance(w, QuantizedTensor):
        checks.bad_type("w", "a QuantizedTensor", w)
    w.validate()
    (n, k) = w.shape
    if w.scalar_type not in WEIGHTS or w.zero_point is not None or w.g_idx is not None:
        checks.bad_value("w", "int4 or uint4b8 without zero points and g_idx", w)
    if w.granularity == "block":
        checks.bad_value("w", "scales per tensor, channel or group", w)
    fp8 = x.dtype == jnp.float8_e4m3fn
    if fp8 != (w.scale.dtype == jnp.float8_e4m3fn):
        wanted = "e4m3 scales (split_scales)" if fp8 else "16- or 32-bit scales"
        checks.bad_value("w", f"{wanted} for {x.dtype} activations", w)
    if x.ndim == 0 or x.shape[-1] != k or k == 0:
        checks.bad_value("x", f"[..., K] with w's K = {k}, at least 1", x)
    leading = x.shape[:-1]
    m = math.prod(leading)
    x_scale = checks.as_array("x_scale", x_scale, (jnp.float32,))
    if x_scale.size not in (1, m):
        checks.bad_value("x_scale", f"one number, or [..., 1] for the {m} rows of x", x_scale)
    x_scale = jnp.broadcast_to(x_scale.reshape(-1, 1), (m, 1))
    bias = checks.as_vector("bias", bias, n, _FLOATS)
    out_dtype = checks.check_dtype("out_dtype", out_dtype, _FLOATS)
    problem = W4A8Problem(
        m=m,
        n=n,
        k=k,
        weight_type=w.scalar_type,
        x_dtype=dtype_name(x.dtype),
        out_dtype=out_dtype.name,
        group_size=w.group_size,
        scale_dtype=dtype_name(w.scale.dtype),
        channel_scale=w.global_scale is not None,
        bias=bias is not None,
        layout=w.layout,
    )
    if m == 0 or n == 0:
        return jnp.zeros((*leading, n), out_dtype)
    kernel, choice = choose(IMPLEMENTATIONS, problem, trace_device(x), implementation)
    warn_if_slow(choice)
    operands = W4A8Operands(x.reshape(-1, k), w, x_scale, bias)
    return _product(problem, kernel, config, operands).reshape(*leading, n)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _product(problem, kernel: Implementation, config: Any, operands: W4A8Operands) -> jax.Array:
    return batching.run(kernel, problem, operands, config)


def w4a8_linear(
    x: jax.Array,
    w: QuantizedTensor,
    *,
    bias: jax.Array | None = None,
    out_dtype: Any = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """`w4a8_mm(quantize(x), w) + bias`: a layer of 4-bit weights on 16-bit activations.

    Each row of x is quantized by its own largest value: to fp8 where w has e4m3 scales
    (`split_scales`), else to int8. The gradient is straight-through: that of
    `x @ dequantize(w).T + bias`.

    Precision: that of `quantize_fp8` or `quantize_int8`, then of `w4a8_mm`.

    Args:
      x: bfloat16, float16 or float32 [..., K].
      w: as `w4a8_mm` takes it.
      bias: float [N] or [1, N].
      out_dtype: bfloat16, float16 or float32; None is x's dtype.
      implementation: of the GEMM, see `w4a8_mm`.

    Returns:
      out_dtype [..., N].

    Raises:
      ValueError, TypeError: naming the argument.
      NotImplementedError: a requested implementation refuses, with its reasons.

    Source: the `apply_weights` of vLLM's CutlassW4A8LinearKernel; bias is added before rounding.

    Example:
      >>> from jaxkernels import quantize, scalar_types
      >>> w = quantize(jnp.array([[7.0, -8.0], [3.5, -4.0]]), scalar_types.int4, 2)
      >>> w4a8_linear(jnp.array([[1.0, 0.0]]), w)
      Array([[7. , 3.5]], dtype=float32)
    """
    x = checks.as_array("x", x, _FLOATS)
    if not isinstance(w, QuantizedTensor):
        checks.bad_type("w", "a QuantizedTensor", w)
    if x.ndim == 0 or x.shape[-1] != w.shape[1] or w.shape[1] == 0:
        checks.bad_value("x", f"[..., K] with w's K = {w.shape[1]}, at least 1", x)
    bias = checks.as_vector("bias", bias, w.shape[0], _FLOATS)
    out_dtype = checks.check_dtype("out_dtype", out_dtype or x.dtype, _FLOATS)
    if implementation is not None and not isinstance(implementation, str):
        implementation = tuple(implementation)
    static = (out_dtype.name, implementation)
    out = _linear(static, x.reshape(-1, x.shape[-1]), w, bias)
    return out.reshape(*x.shape[:-1], w.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(static, x, w, bias):
    out_dtype, implementation = static
    if w.scale.dtype == jnp.float8_e4m3fn:
        q, x_scale = quantize_fp8(x)
    else:
        q, x_scale, _ = quantize_int8(x)
    how = {"out_dtype": out_dtype, "implementation": implementation}
    return w4a8_mm(q, w, x_scale, bias=bias, **how)


_linear.defvjp(
    lambda static, x, w, bias: (_linear(static, x, w, bias), (x, w, bias)),
    lambda static, saved, g: linear_vjp(*saved, g),
)


# -- in plain JAX -------------------------------------------------------------------------------


def _everything(problem: W4A8Problem, device: Device) -> Support:
    """Everything, everywhere; a prepared layout is taken apart first."""
    return Support(True)


def _xla(problem: W4A8Problem, operands: W4A8Operands, config: None = None) -> jax.Array:
    """out_dtype [m, n]: fp8 values in bfloat16, which holds them; int8 one group after another."""
    # The barrier keeps XLA from leaving out the rounding to fp8 that made x.
    x, w = jax.lax.optimization_barrier(operands.x), plain(operands.w)
    if problem.x_dtype == "float8_e4m3fn":
        out = _dot(x.astype(jnp.bfloat16), fp8_weights(w).astype(jnp.bfloat16))
        return _finish(problem, operands, out, w.global_scale)
    group, values = problem.group, unscaled(w, jnp.int8)
    xs = x.reshape(problem.m, -1, group).swapaxes(0, 1).astype(jnp.bfloat16)
    ws = values.reshape(problem.n, -1, group).swapaxes(0, 1).astype(jnp.bfloat16)
    scales = jnp.broadcast_to(w.scale, (problem.n, ws.shape[0])).astype(jnp.float32)

    def add(total, one):
        x, w, scale = one
        return total + _dot(x, w) * scale[None, :], None  # exact sums, of 16384 products at most

    out, _ = jax.lax.scan(add, jnp.zeros((problem.m, problem.n)), (xs, ws, scales.T))
    return _finish(problem, operands, out, w.global_scale)


def _reference(problem: W4A8Problem, operands: W4A8Operands, config: None = None) -> jax.Array:
    """out_dtype [m, n]: the weights' values in float32, and a float32 product."""
    w = plain(operands.w)
    if problem.x_dtype == "float8_e4m3fn":
        values = fp8_weights(w).astype(jnp.float32)
    else:
        values = unscaled(w) * expand_to_elements(w, w.scale.astype(jnp.float32))
    out = jnp.matmul(operands.x.astype(jnp.float32), values.T, precision=jax.lax.Precision.HIGHEST)
    return _finish(problem, operands, out, w.global_scale)


def fp8_weights(w: QuantizedTensor) -> jax.Array:
    """float8_e4m3fn [N, K]: each code of a plain weight times its e4m3 group scale, rounded once.

    Example:
      >>> from jaxkernels import quantize, scalar_types
      >>> from jaxkernels.mixed_mm import split_scales
      >>> w = split_scales(quantize(jnp.array([[7.0, 3.0]]), scalar_types.int4, 2))
      >>> float(w.scale[0, 0]), fp8_weights(w).tolist()
      (56.0, [[384.0, 160.0]])
    """
    return rounded_products(unscaled(w, jnp.int8), expand_to_elements(w, w.scale))


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """float32 [m, n] of x [m, k] and w [n, k]."""

    def direct(x, w):
        dimensions = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(x, w, dimensions, preferred_element_type=jnp.float32)

    def widened(x, w):
        return direct(x.astype(jnp.float32), w.astype(jnp.float32))

    return jax.lax.platform_dependent(x, w, cpu=widened, default=direct)


def _finish(problem, operands, out, channel) -> jax.Array:
    out = out * operands.x_scale
    if channel is not None:
        out = out * channel.reshape(1, -1)
    if operands.bias is not None:
        out = out + operands.bias.astype(jnp.float32)
    return out.astype(problem.out_dtype)


# In order of preference.
IMPLEMENTATIONS = (
    hopper_w4a8.KERNEL,
    Implementation("xla", _everything, _xla),
    Implementation("reference", _everything, _reference),
)

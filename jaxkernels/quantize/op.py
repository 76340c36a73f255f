# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Activation quantization: `quantize_int8`, `quantize_fp8`, `quantize_fp8_group`."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels import batching, checks
from jaxkernels.choice import choose, warn_if_slow
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import Implementation, QuantizeOperands, QuantizeProblem, dtype_name
from jaxkernels.quantize import hopper, xla

_FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


IMPLEMENTATIONS = (hopper.KERNEL, xla.KERNEL)


def quantize_int8(
    x: jax.Array,
    scale: Any = None,
    zero_point: Any = None,
    symmetric: bool = True,
    *,
    implementation: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """int8 codes with `x ~ scale * (q - azp)`.

    Static (a scale is given): `q = sat8(rne(x / scale))`, or with a zero point
    `q = sat8(rne(x * (1 / scale)) + zero_point)`. Dynamic, a scale for each row (the last
    dimension): `a = max|x|`, `scale = a / 127`, `q = sat8(rne(x * (127 / a)))`; asymmetric:
    `scale = (max - min) / 255`, `azp = rne(-128 - min / scale)`,
    `q = sat8(rne(x * (1 / scale)) + azp)`.

    Precision: float32 throughout, bit for bit what CUDA's kernels give. rne rounds halves to
    even. A row of zeros has scale 0; a constant row of c, asymmetric, has scale |c| and azp 0
    (upstream divides by zero there). NaN and Inf make their row's scale NaN or Inf.

    Args:
      x: float32, bfloat16 or float16 [..., K].
      scale: None, or one number (float32, shape [], [1] or [1, 1]).
      zero_point: with a scale and symmetric=False, one int32 number; else None.
      symmetric: False asks for zero points.
      implementation: None, or a name or names of "hopper", "xla".

    Returns:
      q int8 of x's shape; scale float32 [1, 1] or [..., 1]; azp None, int32 [1, 1] or [..., 1].

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `scaled_int8_quant`.

    Example:
      >>> q, scale, azp = quantize_int8(jnp.array([[-1.0, 0.5, 0.25]]))
      >>> q, azp
      (Array([[-127,   64,   32]], dtype=int8), None)
    """
    x = _activation(x)
    static = scale is not None
    if static and symmetric != (zero_point is None):
        checks.bad_value("zero_point", f"{'None' if symmetric else 'a number'}", zero_point)
    if not static and zero_point is not None:
        checks.bad_value("zero_point", "None without a scale", zero_point)
    operands = QuantizeOperands(
        x=x,
        scale=_number("scale", scale, jnp.float32),
        zero_point=_number("zero_point", zero_point, jnp.int32),
    )
    how = "static" if static else "token"
    return _dispatch(operands, implementation, out_dtype="int8", scale=how, symmetric=symmetric)


def quantize_fp8(
    x: jax.Array,
    scale: Any = None,
    per_token: bool = True,
    scale_ub: Any = None,
    *,
    implementation: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """float8_e4m3fn codes with `x ~ scale * q`.

    Static: `q = fp8(clamp(x * (1 / scale)))`. Dynamic per tensor: `scale = max|x| / 448`, then as
    static. Dynamic per token (row): `t = min(max|x|, scale_ub)`,
    `scale = max(t / 448, 1 / (448 * 512))`, `q = fp8(clamp(x / scale))`.

    Precision: float32 throughout, bit for bit what CUDA's kernels give; rounding to nearest even;
    clamped to +-448 first, so that nothing overflows to NaN. NaN stays NaN. An all-zero tensor has
    scale 0 (per tensor) or 1 / (448 * 512) (per token).

    Args:
      x: float32, bfloat16 or float16 [..., K].
      scale: None, or float32: one number ([], [1], [1, 1]), one a row ([..., 1]), or blocks
        [M/gm, K/gk] of a 2-D x, the block shape inferred.
      per_token: dynamic scales for each row, instead of one for all.
      scale_ub: None, or one number that caps a row's absmax (dynamic per token only).
      implementation: None, or a name or names of "hopper", "xla".

    Returns:
      q float8_e4m3fn of x's shape; scale float32 [1, 1] or [..., 1] (or as given).

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `scaled_fp8_quant`.

    Example:
      >>> q, scale = quantize_fp8(jnp.array([[448.0, -3.0, 1.0]]))
      >>> q.astype(jnp.float32), scale
      (Array([[448.,  -3.,   1.]], dtype=float32), Array([[1.]], dtype=float32))
    """
    x = _activation(x)
    if scale is not None and scale_ub is not None:
        checks.bad_value("scale_ub", "None with a scale", scale_ub)
    if scale_ub is not None and not per_token:
        checks.bad_value("scale_ub", "None unless dynamic per token", scale_ub)
    if scale is not None and getattr(scale, "size", 1) != 1:
        scale = checks.as_array("scale", scale, [jnp.float32])
        return xla.fp8_static_blocks(x, scale), scale
    operands = QuantizeOperands(
        x=x,
        scale=_number("scale", scale, jnp.float32),
        scale_ub=_number("scale_ub", scale_ub, jnp.float32),
    )
    how = "static" if scale is not None else "token" if per_token else "tensor"
    q, scale, _ = _dispatch(
        operands,
        implementation,
        out_dtype="float8_e4m3fn",
        scale=how,
        scale_ub=scale_ub is not None,
    )
    return q, scale


def quantize_fp8_group(
    x: jax.Array,
    group_size: int = 128,
    ue8m0: bool = False,
    column_major: bool = False,
    tma_aligned: bool = False,
    *,
    implementation: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """float8_e4m3fn codes with a scale for each group along a row: `x ~ scale[group] * q`.

    `a = max(max|x| of the group, 1e-10)`, `scale = a / 448`, with ue8m0
    `scale = 2^ceil(log2(scale))`, `q = fp8(clamp(x / scale))`.

    Precision: float32 throughout, bit for bit what CUDA's kernels give; the power of two is found
    from the bits, so it is exact where log2f is a rounding off.

    Args:
      x: float32, bfloat16 or float16 [..., K]; a last group may be short.
      group_size: elements of K per scale.
      ue8m0: scales are powers of two.
      column_major: the scales of 2-D x come as [ceil(K/G), M]: the memory order that block-scaled
        GEMMs load with TMA (upstream keeps the logical shape and changes strides instead).
      tma_aligned: with column_major, M is padded with zeros to a multiple of 4 (16 bytes) there.
      implementation: None, or a name or names of "hopper", "xla".

    Returns:
      q float8_e4m3fn of x's shape; scale float32 [..., ceil(K/G)], or as column_major says.

    Raises:
      ValueError, TypeError: naming the argument.

    Source: vLLM's `per_token_group_quant_fp8`.

    Example:
      >>> q, scale = quantize_fp8_group(jnp.array([[1.0, 448.0, 5.0, 7.0]]), 2, ue8m0=True)
      >>> scale
      Array([[1.      , 0.015625]], dtype=float32)
    """
    x = _activation(x)
    if not isinstance(group_size, int) or group_size < 1:
        checks.bad_value("group_size", "a positive int", group_size)
    if column_major and x.ndim != 2:
        checks.bad_value("x", "2 dimensions with column_major", x)
    if tma_aligned and not column_major:
        checks.bad_value("tma_aligned", "False without column_major", tma_aligned)
    q, scale, _ = _dispatch(
        QuantizeOperands(x=x),
        implementation,
        out_dtype="float8_e4m3fn",
        scale="group",
        group_size=group_size,
        ue8m0=ue8m0,
        column_major=column_major,
        tma_aligned=tma_aligned,
    )
    return q, scale


def _activation(x: Any) -> jax.Array:
    x = checks.as_array("x", x, _FLOATS)
    if x.ndim == 0:
        checks.bad_value("x", "at least 1 dimension [..., K]", x)
    return x


def _number(argument: str, value: Any, dtype: Any) -> jax.Array | None:
    if value is None:
        return None
    array = jnp.asarray(value)
    if array.size != 1:
        checks.bad_value(argument, "one number", array)
    kind = jnp.integer if dtype == jnp.int32 else jnp.number
    if not jnp.issubdtype(array.dtype, kind):
        checks.bad_type(argument, f"a number that fits {jnp.dtype(dtype).name}", array)
    return array.astype(dtype).reshape(1, 1)


def _dispatch(operands: QuantizeOperands, requested: Any, **scheme: Any):
    """Flattens x to rows, runs the first implementation that takes it, restores the shape."""
    shape = operands.x.shape
    m, k = math.prod(shape[:-1]), shape[-1]
    if k == 0:
        checks.bad_value("x", "at least one element in the last dimension", operands.x)
    problem = QuantizeProblem(m, k, dtype_name(operands.x.dtype), **scheme)
    if m == 0:  # nothing to reduce over, but the shapes are known
        chosen = xla.KERNEL
    else:
        chosen, choice = choose(IMPLEMENTATIONS, problem, trace_device(operands.x), requested)
        warn_if_slow(choice)
    operands = operands._replace(x=operands.x.reshape(m, k))
    q, scale, azp = _execute(operands, problem=problem, kernel=chosen)
    leading = shape[:-1]

    def per_row(array):
        if array is None or problem.scale in ("static", "tensor") or problem.column_major:
            return array
        return array.reshape(*leading, array.shape[-1])

    return q.reshape(shape), per_row(scale), per_row(azp)


@functools.partial(jax.jit, static_argnames=("problem", "kernel"))
def _execute(operands: QuantizeOperands, *, problem: QuantizeProblem, kernel: Implementation):
    return batching.run(kernel, problem, operands, None)

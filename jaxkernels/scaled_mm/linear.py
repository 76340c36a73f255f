# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`w8a8_linear`: quantize the activations, then `scaled_mm`, as one differentiable op.

On Hopper two kernels, or three where one scale serves all of x ("fp8-tensor"), and nothing else: no
array is copied, cast or broadcast between them. The product's blocks come up while the quantization
runs and load weights meanwhile (`mosaic/launch`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkernels import checks
from jaxkernels.gradient import linear_vjp
from jaxkernels.mosaic.launch import after_quantization, quantizing_x
from jaxkernels.quantize.op import quantize_fp8, quantize_fp8_group, quantize_int8
from jaxkernels.quantized import QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from jaxkernels.scaled_mm.op import scaled_mm

ACTIVATIONS = ("int8", "int8-asym", "fp8", "fp8-tensor", "fp8-group")
_FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)


def w8a8_linear(
    x: jax.Array,
    w: QuantizedTensor,
    *,
    activation: str | None = None,
    x_scale: Any = None,
    azp: Any = None,
    azp_adj: jax.Array | None = None,
    scale_ub: Any = None,
    bias: jax.Array | None = None,
    out_dtype: Any = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """`out = scaled_mm(quantize(x), w) + bias`: an 8-bit linear layer on 16-bit activations.

    The gradient is straight-through: that of `x @ dequantize(w).T + bias`.

    Precision: that of `quantize_int8`, `quantize_fp8` or `quantize_fp8_group`, then of `scaled_mm`.

    Args:
      x: bfloat16, float16 or float32 [..., K].
      w: a `QuantizedTensor` of int8 or float8_e4m3fn, per tensor or channel, or fp8 in 128x128
        blocks.
      activation: how x is quantized: "int8" (per token), "int8-asym" (with zero points), "fp8"
        (per token), "fp8-tensor", "fp8-group" (per 128 of K). None is the one of w: "int8",
        "fp8", or "fp8-group" for block scales.
      x_scale: one number makes the scheme static; None finds scales ("fp8-group" only finds).
      azp: the zero point of a static "int8-asym", one int32 number.
      azp_adj: int32 [N] or [1, N] ("int8-asym"): `sum_k w[n, k]`; of a static scheme
        `azp * sum_k w[n, k]`, as a checkpoint's layer keeps it. Computed if None, once a call.
      scale_ub: one number that caps what a row's scale is made from (dynamic "fp8").
      bias: float [N] or [1, N].
      out_dtype: bfloat16, float16 or float32; None is x's dtype.
      implementation: of the GEMM, see `scaled_mm`.

    Returns:
      out_dtype [..., N].

    Raises:
      ValueError, TypeError: naming the argument.
      NotImplementedError: a requested implementation refuses, with its reasons.

    Source: the `apply_weights` of vLLM's int8 and fp8 scaled-mm kernels.

    Example:
      >>> from jaxkernels import quantize
      >>> w = quantize(jnp.array([[127.0, 0.0], [-127.0, 127.0]]), scalar_types.int8)
      >>> w8a8_linear(jnp.array([[1.0, 0.5]]), w).round(2)
      Array([[127., -63.]], dtype=float32)
    """
    x = checks.as_array("x", x, _FLOATS)
    if not isinstance(w, QuantizedTensor):
        checks.bad_type("w", "a QuantizedTensor", w)
    w.validate()
    if w.scalar_type not in (scalar_types.int8, scalar_types.float8_e4m3fn):
        checks.bad_value("w", "int8 or float8_e4m3fn weights", w)
    if activation is None:
        is_int8 = w.scalar_type == scalar_types.int8
        activation = "int8" if is_int8 else "fp8-group" if w.granularity == "block" else "fp8"
    if activation not in ACTIVATIONS:
        checks.bad_value("activation", f"one of {', '.join(ACTIVATIONS)}", activation)
    if activation.startswith("int8") != (w.scalar_type == scalar_types.int8):
        checks.bad_value("activation", f"one for {w.scalar_type} weights", activation)
    if x.ndim == 0 or x.shape[-1] != w.shape[1] or w.shape[1] == 0:
        checks.bad_value("x", f"[..., K] with w's K = {w.shape[1]}, at least 1", x)
    if activation == "fp8-group" and x_scale is not None:
        checks.bad_value("x_scale", "None with activation 'fp8-group'", x_scale)
    if activation != "int8-asym" and (azp is not None or azp_adj is not None):
        checks.bad_value("azp", f"None with activation {activation!r}", azp)
    if scale_ub is not None and (activation != "fp8" or x_scale is not None):
        checks.bad_value("scale_ub", "None unless activation is a dynamic 'fp8'", scale_ub)
    bias = checks.as_vector("bias", bias, w.shape[0], _FLOATS)
    out_dtype = checks.check_dtype("out_dtype", out_dtype or x.dtype, _FLOATS)
    if implementation is not None and not isinstance(implementation, str):
        implementation = tuple(implementation)
    static = (activation, out_dtype.name, implementation)
    given = x_scale, azp, azp_adj, scale_ub
    out = _linear(static, x.reshape(-1, x.shape[-1]), w, bias, given)
    return out.reshape(*x.shape[:-1], w.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(static, x, w, bias, given):
    activation, out_dtype, implementation = static
    x_scale, azp, azp_adj, scale_ub = given
    with quantizing_x():
        if activation == "fp8-group":
            q, x_scale = quantize_fp8_group(x, 128)
        elif activation.startswith("fp8"):
            q, x_scale = quantize_fp8(x, x_scale, per_token=activation == "fp8", scale_ub=scale_ub)
        else:
            is_static = x_scale is not None
            q, x_scale, azp = quantize_int8(x, x_scale, azp, symmetric=activation == "int8")
            if is_static and azp_adj is not None:
                azp = None  # which azp_adj holds already: a call multiplies nothing
    with after_quantization():
        return scaled_mm(
            q,
            w,
            x_scale,
            bias=bias,
            azp=azp,
            azp_adj=azp_adj,
            out_dtype=out_dtype,
            implementation=implementation,
        )


def _linear_fwd(static, x, w, bias, given):
    return _linear(static, x, w, bias, given), (x, w, bias)


def _linear_bwd(static, saved, g):
    return (*linear_vjp(*saved, g), None)


_linear.defvjp(_linear_fwd, _linear_bwd)

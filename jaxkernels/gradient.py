# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The gradient that every quantized linear layer shares."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxkernels.quantized import PLAIN, QuantizedTensor, dequantize

_SCALES = (jnp.float32, jnp.bfloat16, jnp.float16)


def plain(w: QuantizedTensor) -> QuantizedTensor:
    """w in the plain layout."""
    if w.layout == PLAIN:
        return w
    from jaxkernels.mixed_mm.prepare import unprepare

    return unprepare(w)


def linear_vjp(x: jax.Array, w: QuantizedTensor, bias: jax.Array | None, g: jax.Array):
    """Cotangents (x, w, bias) of `x @ dequantize(w).T + bias`; x [m, k], g [m, n].

    Codes and zero points get none; scales do, unless they are 8-bit themselves. Sums are float32.
    """
    trainable = w.scale.dtype in _SCALES

    def weight(scale):
        return dequantize(plain(dataclasses.replace(w, scale=scale) if trainable else w))

    value, pull_back = jax.vjp(weight, w.scale)
    high = jax.lax.Precision.HIGHEST
    g32, x32 = g.astype(jnp.float32), x.astype(jnp.float32)
    dx = jnp.matmul(g32, value, precision=high).astype(x.dtype)
    d_scale = pull_back(jnp.matmul(g32.T, x32, precision=high))[0] if trainable else None
    dw = dataclasses.replace(
        w, data=None, zero_point=None, g_idx=None, global_scale=None, scale=d_scale
    )
    d_bias = None if bias is None else jnp.sum(g32, axis=0).astype(bias.dtype)
    return dx, dw, d_bias

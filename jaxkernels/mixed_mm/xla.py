# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`mixed_mm` in plain JAX: every weight type, on whatever JAX runs on.

With one scale a row (or in all) the product is of x and the bare codes, which every activation
dtype holds exactly, and the scale is applied to the float32 sum. With groups or blocks the weight
is dequantized first, in float32, and rounded once to x's dtype, as Marlin and Machete do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkernels.gradient import plain
from jaxkernels.problem import Device, Implementation, MixedMMOperands, MixedMMProblem, Support
from jaxkernels.quantized import dequantize, unscaled


def supports(problem: MixedMMProblem, device: Device) -> Support:
    """Everything, everywhere; a prepared layout is taken apart first."""
    return Support(True)


def run(problem: MixedMMProblem, operands: MixedMMOperands, config: None = None) -> jax.Array:
    """out_dtype [m, n]; see `MixedMMOperands`."""
    x, bias = operands.x, operands.bias
    w = plain(operands.w)
    if w.granularity in ("tensor", "channel"):
        out = _matmul(x, unscaled(w, x.dtype))
        scale = w.scale.astype(jnp.float32)
        scale = scale if w.global_scale is None else scale * w.global_scale
        out = out * scale.reshape(1, -1)
    else:
        out = _matmul(x, dequantize(w, x.dtype))
    if bias is not None:
        out = out + bias.astype(jnp.float32)
    return out.astype(problem.out_dtype)


def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """float32 [m, n] of x [m, k] and w [n, k] of one dtype."""

    def direct(x, w):
        return jax.lax.dot_general(
            x,
            w,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )

    def widened(x, w):
        return direct(x.astype(jnp.float32), w.astype(jnp.float32))

    return jax.lax.platform_dependent(x, w, cpu=widened, default=direct)


KERNEL = Implementation("xla", supports, run)

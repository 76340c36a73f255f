# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`mixed_mm` as slowly and plainly as it can be said: what the others are compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkernels.gradient import plain
from jaxkernels.problem import Device, Implementation, MixedMMOperands, MixedMMProblem, Support
from jaxkernels.quantized import dequantize


def supports(problem: MixedMMProblem, device: Device) -> Support:
    """Everything, everywhere; a prepared layout is taken apart first."""
    return Support(True)


def run(problem: MixedMMProblem, operands: MixedMMOperands, config: None = None) -> jax.Array:
    """out_dtype [m, n]: dequantize to float32, multiply in float32, add the bias, round once."""
    weight = dequantize(plain(operands.w), jnp.float32)
    x = operands.x.astype(jnp.float32)
    out = jnp.matmul(x, weight.T, precision=jax.lax.Precision.HIGHEST)
    if operands.bias is not None:
        out = out + operands.bias.astype(jnp.float32)[None, :]
    return out.astype(problem.out_dtype)


KERNEL = Implementation("reference", supports, run)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What a JAX user writes without kernels of their own."""

import jax
import jax.numpy as jnp
import torch

from benchmarks import timing
from benchmarks.operands import Operands
from benchmarks.peers.common import Built


def xla(o: Operands) -> Built:
    """What a JAX user writes: dequantize and dot, left to the compiler."""
    w = o.weights
    bits = 8 * w.data[0].shape[1] // w.k
    data = [jax.dlpack.from_dlpack(d) for d in w.data[: 16 if o.cell.m <= 256 else 3]]
    scale = jax.dlpack.from_dlpack(w.scale)
    x_scale = None if o.x_scale is None else jax.dlpack.from_dlpack(o.x_scale.contiguous())
    # A different x for every call, or XLA would merge equal products.
    xs = [
        jax.dlpack.from_dlpack(torch.roll(o.x.view(torch.uint8), 2 * i, 0).view(o.x.dtype))
        for i in range(len(data))
    ]
    int8 = o.x.dtype == torch.int8

    def dot(a, b, out):
        return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=out)

    def layer(x, q, s, x_scale):
        if x_scale is not None:
            product = dot(x, q, jnp.int32 if int8 else jnp.float32).astype(jnp.float32)
            return (product * x_scale * s.T).astype(jnp.bfloat16)
        if q.dtype == jnp.uint8:
            if bits == 4:
                q = jax.lax.bitcast_convert_type(q, jnp.uint4).reshape(w.n, w.k)
            q = q.astype(jnp.bfloat16) - (8 if bits == 4 else 128)
        if s.shape[1] == 1:
            return dot(x, q.astype(jnp.bfloat16), jnp.bfloat16) * s.T
        dense = q.astype(jnp.bfloat16).reshape(w.n, s.shape[1], -1) * s[:, :, None]
        return dot(x, dense.reshape(w.n, w.k), jnp.bfloat16)

    run = jax.jit(lambda xs, qs, s, t: [layer(x, q, s, t) for x, q in zip(xs, qs, strict=True)])

    def enqueue():
        return run(xs, data, scale, x_scale)

    return Built(
        [lambda: torch.from_dlpack(jax.block_until_ready(enqueue()[0]))],
        time=lambda: timing.wall_time(enqueue, jax.block_until_ready, len(data)),
    )

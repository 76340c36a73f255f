# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""A 4-bit linear layer in JAX: quantize once, call inside jit, differentiate through."""

import jax
import jax.numpy as jnp

from jaxkernels import dequantize, mixed_mm, quantize, scalar_types

weight = jax.random.normal(jax.random.key(0), (512, 1024), jnp.bfloat16)  # [N, K]
x = jax.random.normal(jax.random.key(1), (3, 7, 1024), jnp.bfloat16)

w = quantize(weight, scalar_types.uint4b8, group_size=128)  # a pytree: 4-bit codes and scales
y = jax.jit(mixed_mm)(x, w)  # any leading dimensions; the kernel is chosen while jit traces
gradient = jax.grad(lambda x: mixed_mm(x, w).astype(jnp.float32).sum())(x)

exact = x.astype(jnp.float32) @ dequantize(w).T
error = jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)
print(f"{w}: {weight.nbytes} bytes before")
print(f"y {y.shape} {y.dtype}, gradient {gradient.shape}, rounding error {error:.4f}")

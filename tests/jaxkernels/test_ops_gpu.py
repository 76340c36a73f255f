# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The public ops on a Hopper GPU: the kernel is what runs, and it agrees with XLA's path there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import (
    mixed_mm,
    prepare,
    quantize,
    quantize_int8,
    scalar_types,
    w8a8_linear,
)

pytestmark = pytest.mark.gpu
F = np.float32


def weight(rng, kind, group=-1, **more):
    return quantize(rng.standard_normal((264, 512)).astype(F), kind, group, **more)


@pytest.mark.parametrize("activation", ["int8", "int8-asym"])
def test_int8_is_the_same_on_every_path_and_under_vmap(rng, activation):
    w = weight(rng, scalar_types.int8)
    x = jnp.asarray(rng.standard_normal((3, 5, 512)), jnp.bfloat16)

    def layer(x, implementation=None):
        return w8a8_linear(x, w, activation=activation, implementation=implementation)

    assert "mosaic_gpu" in jax.jit(layer).lower(x).as_text()
    out = layer(x)
    for implementation in ("hopper", "xla", "reference"):
        np.testing.assert_array_equal(layer(x, implementation), out)
    np.testing.assert_array_equal(jax.vmap(layer)(x), out)


def test_mixed_is_the_same_under_vmap_and_close_to_the_reference(rng):
    w = prepare(weight(rng, scalar_types.uint4b8, 128, scale_dtype=jnp.bfloat16))
    x = jnp.asarray(rng.standard_normal((3, 5, 512)), jnp.bfloat16)
    assert "mosaic_gpu" in jax.jit(mixed_mm).lower(x, w).as_text()
    out = mixed_mm(x, w)
    np.testing.assert_array_equal(jax.vmap(mixed_mm, (0, None))(x, w), out)
    exact = np.asarray(mixed_mm(x, w, out_dtype=F, implementation="reference"))
    plain = np.asarray(mixed_mm(x, w, implementation="xla"), F)
    error = np.abs(np.asarray(out, F) - exact).max()
    assert error <= 2 * np.abs(plain - exact).max() + 1e-6


def test_arrays_on_the_cpu_are_worked_on_there(rng):
    cpu = jax.devices("cpu")[0]
    w = jax.device_put(prepare(weight(rng, scalar_types.uint4b8, 128)), cpu)
    x = jax.device_put(jnp.asarray(rng.standard_normal((5, 512)), jnp.bfloat16), cpu)
    assert mixed_mm(x, w).devices() == {cpu}
    assert quantize_int8(x)[0].devices() == {cpu}

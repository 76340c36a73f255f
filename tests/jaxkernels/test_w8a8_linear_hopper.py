# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`w8a8_linear` on Hopper's kernels: the product that loads weights while x is quantized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import quantize, quantize_fp8, scalar_types, scaled_mm, w8a8_linear
from jaxkernels.mosaic import launch
from jaxkernels.mosaic.interpret import interpreted


def run(x, w, **more) -> np.ndarray:
    """The layer as a program of kernels only, interpreted with race detection."""
    with interpreted(), launch.launched_in_order():
        return np.asarray(w8a8_linear(x, w, implementation="hopper", **more))


@pytest.mark.parametrize(
    "activation, m, n, k",  # of less K than a ring holds, and of more
    [("int8", 70, 136, 2176), ("int8-asym", 5, 64, 512), ("fp8-tensor", 5, 64, 512)],
)
def test_early_weights_change_nothing(activation, m, n, k, rng):
    kind = scalar_types.int8 if "int8" in activation else scalar_types.float8_e4m3fn
    w = quantize(rng.standard_normal((n, k)).astype(np.float32), kind)
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.bfloat16)
    bias = jnp.asarray(rng.standard_normal(n), jnp.bfloat16)
    early = run(x, w, activation=activation, bias=bias)
    with interpreted():
        late = np.asarray(w8a8_linear(x, w, activation=activation, bias=bias))
    np.testing.assert_array_equal(early, late)


def test_early_weights_with_block_scales(rng):
    w = quantize(
        rng.standard_normal((128, 512)).astype(np.float32),
        scalar_types.float8_e4m3fn,
        granularity="block",
        group_size=128,
    )
    x = jnp.asarray(rng.standard_normal((5, 512)), jnp.bfloat16)
    early = run(x, w)
    with interpreted():
        late = np.asarray(w8a8_linear(x, w))
    np.testing.assert_array_equal(early, late)


def test_weights_are_early_only_in_a_program_of_kernels_right_after_the_quantization():
    assert not launch.may_read_weights_early()
    with launch.after_quantization():  # XLA may put a kernel between the two
        assert not launch.may_read_weights_early()
    with launch.launched_in_order():
        assert not launch.may_read_weights_early()
        with launch.after_quantization():
            assert launch.may_read_weights_early()
        assert not launch.may_read_weights_early()


def test_traces_of_both_kinds_are_kept_apart(rng):
    """One jit-ed function in a program of kernels and outside: neither gets the other's trace."""
    seen = []

    def product(*args, **kwargs):
        seen.append(launch.may_read_weights_early())
        return scaled_mm(*args, **kwargs)

    w = quantize(rng.standard_normal((16, 128)).astype(np.float32), scalar_types.float8_e4m3fn)

    @jax.jit
    def layer(x):
        q, scale = quantize_fp8(x)
        with launch.after_quantization():
            return product(q, w, scale)

    struct = jax.ShapeDtypeStruct((4, 128), jnp.float32)
    layer.trace(struct)
    with launch.launched_in_order():
        layer.trace(struct)
    layer.trace(struct)
    assert seen == [False, True]

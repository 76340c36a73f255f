# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`w8a8_linear` on Hopper's kernels: two launches, of which the first lets the second start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import quantize, quantize_fp8, quantize_int8, scalar_types, scaled_mm, w8a8_linear
from jaxkernels.mosaic import launch
from jaxkernels.mosaic.interpret import interpreted
from jaxkernels.problem import DEVICES, QuantizeProblem, ScaledMMProblem
from jaxkernels.quantize import hopper as quantization
from jaxkernels.scaled_mm import hopper

from .lowered import kernel_texts


@pytest.mark.parametrize("activation", ["int8", "int8-asym", "fp8", "fp8-tensor"])
def test_the_linear_op_is_quantization_and_product(activation, rng):
    kind = scalar_types.int8 if "int8" in activation else scalar_types.float8_e4m3fn
    w = quantize(rng.standard_normal((136, 2176)).astype(np.float32), kind)
    x = jnp.asarray(rng.standard_normal((70, 2176)), jnp.bfloat16)
    bias = jnp.asarray(rng.standard_normal(136), jnp.bfloat16)
    with interpreted():
        out = w8a8_linear(x, w, activation=activation, bias=bias, implementation="hopper")
        azp = None
        if activation.startswith("fp8"):
            q, scale = quantize_fp8(x, per_token=activation == "fp8")
        else:
            q, scale, azp = quantize_int8(x, symmetric=activation == "int8")
        product = scaled_mm(
            q, w, scale, bias=bias, azp=azp, out_dtype=x.dtype, implementation="hopper"
        )
        np.testing.assert_array_equal(np.asarray(out), np.asarray(product))


def early_starters(fn, *structs) -> list[bool]:
    """Of each kernel of a program: whether it lets the next one start before its own end."""
    texts = kernel_texts(fn, *structs)
    assert all("griddepcontrol" in text for text in texts)
    return ["griddepcontrol.launch" in text for text in texts]


def test_only_the_quantization_of_x_lets_the_next_kernel_start():
    """Codes that a caller gets may be the next product's weight, which it reads early."""
    x = jax.ShapeDtypeStruct((16, 512), jnp.bfloat16)
    w = quantize(np.ones((256, 512), np.float32), scalar_types.float8_e4m3fn)
    assert early_starters(quantize_fp8, x) == [False]
    assert early_starters(lambda x: w8a8_linear(x, w), x)[0]


def test_traces_of_both_kinds_are_kept_apart():
    """One jit-ed quantization for a product and for a caller: neither gets the other's trace."""
    seen = []

    @jax.jit
    def codes(x):
        seen.append(launch.is_quantizing_x())
        return quantize_fp8(x)

    struct = jax.ShapeDtypeStruct((4, 128), jnp.float32)
    codes.trace(struct)
    with launch.quantizing_x():
        codes.trace(struct)
    codes.trace(struct)
    assert seen == [False, True]


@pytest.mark.parametrize("m, n, k, early", [(16, 4096, 4096, False), (16, 28672, 4096, True)])
def test_weights_come_early_behind_a_quantization_only_where_they_are_large(m, n, k, early):
    e4m3 = "float8_e4m3fn"
    problem = ScaledMMProblem(m, n, k, e4m3, e4m3, "bfloat16", "token", "channel")
    alone = hopper.default_config(problem, DEVICES["h200"])
    with launch.after_quantization():
        behind = hopper.default_config(problem, DEVICES["h200"])
    assert behind == dataclasses.replace(alone, weights_first=early)


def test_rows_ahead_of_a_product_are_kept_apart():
    """Blocks of many threads, so that few fit beside those of the product before."""
    problem = QuantizeProblem(16, 4096, "bfloat16", "int8", "token")
    assert quantization.default_config(problem, DEVICES["h200"]).warpgroups == 1
    with launch.quantizing_x():
        assert quantization.default_config(problem, DEVICES["h200"]).warpgroups == 8

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The columns of x in act-order: exact, by both ways through memory, and inside mixed_mm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels.mixed_mm import mixed_mm
from jaxkernels.mixed_mm.permute import MAX_COLUMNS, Cut, permute_columns
from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic.compile import lower_program
from jaxkernels.mosaic.device import abstract_mesh
from jaxkernels.mosaic.gather import BOX, boxes
from jaxkernels.mosaic.interpret import interpreted
from jaxkernels.problem import DEVICES
from jaxkernels.quantized import dequantize
from jaxkernels.quantizer import quantize
from jaxkernels.scalar_types import scalar_types

# A whole piece, pieces that overlap, the smallest, more rows than a block takes, several pieces.
SHAPES = [(3, 1024), (2, 1288), (1, 128), (131, 136), (2, 2560)]


def operands(rng, m, k, dtype):
    x = jnp.asarray(rng.normal(size=(m, k)), dtype)
    return x, jnp.asarray(rng.permutation(k), jnp.int32)


def act_order_weight(rng, n, k, group):
    w = quantize(jnp.asarray(rng.normal(size=(n, k)), jnp.bfloat16), scalar_types.uint4b8, group)
    groups = jnp.asarray(rng.permutation(k) // group, jnp.int32)
    return dataclasses.replace(w, g_idx=groups)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("m, k", SHAPES)
def test_interpreted(rng, m, k, dtype):
    x, order = operands(rng, m, k, dtype)
    with interpreted():
        out = np.asarray(permute_columns(x, order))
    np.testing.assert_array_equal(out, np.asarray(x)[:, np.asarray(order)])


@pytest.mark.parametrize("cut", [Cut(4, 1, 2), Cut(1, 2, 2), Cut(2, 2, 1), Cut(3, 1, 1)], ids=str)
def test_every_cut_interpreted(rng, cut):
    x, order = operands(rng, 5, 5 * 128, "bfloat16")
    with interpreted():
        out = np.asarray(permute_columns(x, order, cut))
    np.testing.assert_array_equal(out, np.asarray(x)[:, np.asarray(order)])


def test_cuts_fit():
    """One block or several a row, one row a block or several; never more shared memory than is."""
    cuts = [Cut.of(m, k, k) for m in (1, 16, 64, 300, 4096) for k in (128, 4096, 28672)]
    assert {c.parts > 1 for c in cuts} == {c.rows > 1 for c in cuts} == {False, True}
    for k in (128, 11008, 28672, MAX_COLUMNS):
        cut = Cut.of(8192, k, k)
        assert cut.rows * boxes(k) * BOX * 2 <= DEVICES["h200"].smem_bytes - 1024
        assert cut.warpgroups <= 8


def test_act_order_interpreted_inside_mixed_mm(rng):
    w = act_order_weight(rng, 64, 256, 64)
    x = jnp.asarray(rng.normal(size=(5, 256)), jnp.bfloat16)
    with interpreted():
        got = mixed_mm(x, prepare(w), implementation="hopper")
    reference = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64).T
    error = np.abs(np.asarray(got, np.float64) - reference).max() / np.abs(reference).max()
    assert error < 0.01


@pytest.mark.parametrize("m, k", [(1, 4096), (64, 1288), (512, 4096), (300, 28672), (2048, 11008)])
def test_lowered_as_one_kernel(m, k):
    structs = jax.ShapeDtypeStruct((m, k), jnp.bfloat16), jax.ShapeDtypeStruct((k,), jnp.int32)
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        program = lower_program(permute_columns, *structs)
    assert len(program.kernels) == 1


def test_act_order_is_two_kernels_and_nothing_else(rng):
    w = jax.eval_shape(prepare, act_order_weight(rng, 256, 512, 128))
    leaves, tree = jax.tree.flatten(w)

    def fn(x, *leaves):
        return mixed_mm(x, jax.tree.unflatten(tree, leaves), implementation="hopper")

    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        program = lower_program(fn, jax.ShapeDtypeStruct((16, 512), jnp.bfloat16), *leaves)
    assert len(program.kernels) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "m, k", [*SHAPES, (16, 4096), (1024, 4096), (300, 28672), (2048, 11008), (9, MAX_COLUMNS)]
)
def test_gpu(rng, m, k, dtype):
    x, order = operands(rng, m, k, dtype)
    out = np.asarray(jax.jit(permute_columns)(x, order))
    np.testing.assert_array_equal(out, np.asarray(x)[:, np.asarray(order)])

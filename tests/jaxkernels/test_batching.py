# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""vmap of a kernel that cannot be batched itself: folded into rows, or run one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import QuantizedTensor, quantize, scalar_types
from jaxkernels.batching import run
from jaxkernels.mixed_mm import xla as mixed_xla
from jaxkernels.mosaic.device import abstract_mesh
from jaxkernels.problem import (
    Implementation,
    MixedMMOperands,
    MixedMMProblem,
    QuantizeOperands,
    QuantizeProblem,
    ScaledMMOperands,
    ScaledMMProblem,
    Support,
)
from jaxkernels.quantize import xla as quantize_xla
from jaxkernels.scaled_mm import xla as scaled_xla

F = np.float32
B, M, N, K = 3, 4, 6, 32


@pytest.fixture
def kernel():
    """XLA's implementation under the Hopper kernel's name, which notes the problems it runs."""
    seen = []
    owners = {
        ScaledMMProblem: scaled_xla,
        MixedMMProblem: mixed_xla,
        QuantizeProblem: quantize_xla,
    }

    def run(problem, operands, config):
        for leaf in jax.tree.leaves(operands):
            assert leaf.ndim <= 2  # never an array with a batch axis
        assert operands.x.shape[0] == problem.m
        seen.append((problem.m, getattr(problem, "x_scale", None)))
        return owners[type(problem)].run(problem, operands, config)

    return Implementation("hopper", lambda problem, device: Support(True), run), seen


def scaled(rng, **changes):
    operands = dict(
        x=rng.integers(-128, 128, (M, K), dtype=np.int8),
        w=rng.integers(-128, 128, (N, K), dtype=np.int8),
        x_scale=np.exp2(rng.integers(-2, 3, (M, 1))).astype(F),
        w_scale=np.exp2(rng.integers(-2, 3, (N, 1))).astype(F),
        bias=rng.integers(-9, 9, N).astype(F),
        azp=rng.integers(-9, 9, (M, 1)).astype(np.int32),
        azp_adj=rng.integers(-99, 99, N).astype(np.int32),
    )
    operands = ScaledMMOperands(**{**operands, **changes})
    problem = ScaledMMProblem(
        M, N, K, "int8", "int8", "float32", bias=True, w_scale="channel",
        x_scale="tensor" if operands.x_scale.shape == (1, 1) else "token",
        azp=None if operands.azp_adj is None else "token" if operands.azp is not None else "static",
    )  # fmt: skip
    return problem, operands


def check(kernel, problem, members, batched):
    """vmap over the fields in `batched` equals the members one by one."""
    kernel, seen = kernel
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    axes = {name: 0 if name in batched else None for name in stacked._fields}
    operands = stacked._replace(
        **{name: getattr(members[0], name) for name in stacked._fields if name not in batched}
    )
    members = [
        member._replace(**{name: getattr(operands, name) for name in axes if axes[name] is None})
        for member in members
    ]

    def call(operands):
        return run(kernel, problem, operands, None)

    want = [call(member) for member in members]
    seen.clear()
    got = jax.vmap(call, (type(operands)(**axes),))(operands)
    jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(lambda *a: np.stack(a), *want))
    return seen[-1]  # the first is traced for the shapes of a single member


@pytest.mark.parametrize(
    "batched", [("x",), ("x", "x_scale"), ("x", "x_scale", "azp"), ("x_scale",), ("azp",)]
)
def test_scaled_rows_fold(rng, kernel, batched):
    problem, _ = scaled(rng)
    members = [scaled(rng)[1] for _ in range(B)]
    assert check(kernel, problem, members, batched) == (B * M, "token")


def test_scales_of_whole_members_become_one_a_row(rng, kernel):
    one = dict(azp=None, azp_adj=None)
    made = [
        scaled(rng, x_scale=np.exp2(rng.integers(-2, 3, (1, 1))).astype(F), **one) for _ in range(B)
    ]
    problem, members = made[0][0], [operands for _, operands in made]
    assert check(kernel, problem, members, ("x", "x_scale")) == (B * M, "token")
    assert check(kernel, problem, members, ("x",)) == (B * M, "tensor")


@pytest.mark.parametrize("batched", [("w",), ("x", "w", "w_scale"), ("bias",), ("azp_adj",)])
def test_weights_of_their_own_run_one_by_one(rng, kernel, batched):
    problem, _ = scaled(rng)
    members = [scaled(rng)[1] for _ in range(B)]
    assert check(kernel, problem, members, batched) == (M, "token")


def mixed(rng):
    w = quantize(rng.standard_normal((N, K)).astype(F), scalar_types.uint4b8, 16)
    problem = MixedMMProblem(M, N, K, w.scalar_type, "float32", "float32", 16, "group", bias=True)
    x, bias = rng.standard_normal((M, K)).astype(F), rng.standard_normal(N).astype(F)
    return problem, MixedMMOperands(x, w, bias)


def test_mixed(rng, kernel):
    problem, _ = mixed(rng)
    members = [mixed(rng)[1] for _ in range(B)]
    call_axes = MixedMMOperands(0, None, None)
    x = jnp.stack([member.x for member in members])
    kernel, seen = kernel

    def call(operands):
        return run(kernel, problem, operands, None)

    shared = members[0]
    got = jax.vmap(call, (call_axes,))(shared._replace(x=x))
    assert seen[-1] == (B * M, None)
    for i in range(B):
        np.testing.assert_allclose(got[i], call(shared._replace(x=x[i])), rtol=1e-6, atol=1e-6)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    assert isinstance(stacked.w, QuantizedTensor)
    seen.clear()
    got = jax.vmap(call)(stacked)
    assert set(seen) == {(M, None)}
    for i in range(B):
        np.testing.assert_allclose(got[i], call(members[i]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("scheme", "folds"),
    [
        (dict(out_dtype="int8", scale="token", symmetric=False), True),
        (dict(out_dtype="int8", scale="static"), True),
        (dict(out_dtype="float8_e4m3fn", scale="group", group_size=16), True),
        (dict(out_dtype="float8_e4m3fn", scale="tensor"), False),
        (dict(out_dtype="float8_e4m3fn", scale="group", group_size=16, column_major=True), False),
    ],
)
def test_quantize(rng, kernel, scheme, folds):
    problem = QuantizeProblem(M, K, "float32", **scheme)
    scale = np.full((1, 1), 0.05, F) if scheme["scale"] == "static" else None
    members = [
        QuantizeOperands(rng.standard_normal((M, K)).astype(F), scale=scale) for _ in range(B)
    ]
    assert check(kernel, problem, members, ("x",)) == (B * M if folds else M, None)


def test_nested(rng, kernel):
    problem, operands = scaled(rng)
    kernel, seen = kernel
    x = rng.integers(-128, 128, (2, B, M, K), dtype=np.int8)

    def call(x):
        return run(kernel, problem, operands._replace(x=x), None)

    got = jax.vmap(jax.vmap(call))(x)
    assert seen[-1] == (2 * B * M, "token")
    np.testing.assert_array_equal(got[1, 2], call(x[1, 2]))


def test_the_real_kernels_lower_under_vmap():
    """On Hopper, each with a vector that starts off a multiple of 16 bytes in a batch."""
    from jaxkernels import mixed_mm, prepare, quantize_int8, scaled_mm

    w = prepare(quantize(jnp.ones((24, 64)), scalar_types.uint4b8, scale_dtype=jnp.bfloat16))
    struct = jax.ShapeDtypeStruct
    calls = [
        (
            lambda x, s, w: scaled_mm(x, w, s),
            (0, 0, None),
            (struct((4, 5, 64), jnp.int8), struct((4, 5, 1), F), struct((24, 64), jnp.int8)),
        ),
        (mixed_mm, (0, None), (struct((4, 5, 64), jnp.bfloat16), w)),
        (quantize_int8, (0,), (struct((4, 5, 128), jnp.bfloat16),)),
    ]
    with jax.sharding.use_abstract_mesh(abstract_mesh("NVIDIA H200")):
        for function, axes, arguments in calls:
            traced = jax.jit(jax.vmap(function, axes)).trace(*arguments)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
            assert text.count("@mosaic_gpu_v2") == 1


def test_others_are_batched_by_jax(rng):
    problem, operands = scaled(rng)
    plain = dataclasses.replace(scaled_xla.KERNEL, name="xla")
    jaxpr = jax.make_jaxpr(lambda operands: run(plain, problem, operands, None))(operands)
    assert "custom_vmap" not in str(jaxpr)

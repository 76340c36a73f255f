# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Every weight that mixed_mm's Hopper kernels take: what tuning may pick for it lowers for sm90."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import mixed_mm
from jaxkernels.mixed_mm import hopper
from jaxkernels.mixed_mm.hopper_decode import DecodeConfig
from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic.compile import lower_program
from jaxkernels.mosaic.device import abstract_mesh
from jaxkernels.problem import DEVICES, MixedMMProblem
from jaxkernels.tuning import mixed_mm as tuning

from .mixed_mm_cases import CASES, ZERO_POINTS, random_weight

H200 = DEVICES["h200"]
N, K = 1024, 2048
# Scales that other tests of lowering do not meet.
NEW = [
    case
    for case in CASES
    if case.second or case.group == 16 or case.group_shape.row != 1 or "e8m0" in case.scale
]


@functools.cache
def prepared(case) -> jax.ShapeDtypeStruct:
    """The structs of a prepared weight."""
    w = random_weight(np.random.default_rng(0), case, N, K)
    return jax.eval_shape(prepare, w)


def problem(case, m) -> MixedMMProblem:
    w = prepared(case)
    return MixedMMProblem(
        m, N, K, case.scalar_type, "bfloat16", "bfloat16", case.group, w.granularity,
        zero_points=case.scalar_type in ZERO_POINTS, layout=w.layout,
        scale_dtype=w.scale.dtype.name, global_scale=case.second,
    )  # fmt: skip


@pytest.mark.parametrize("case", NEW, ids=str)
def test_chosen_configs_lower_to_one_kernel(case):
    """As the bridge launches them: a kernel, and nothing else that computes."""
    for m in (16, 1024):
        p = problem(case, m)
        assert hopper.supports(p, H200), hopper.supports(p, H200).reasons
        config = tuning.choose(p, H200)
        assert config in tuning.candidates(p, H200) or tuning.legal(p, config, H200)
        x = jax.ShapeDtypeStruct((m, K), jnp.bfloat16)
        with jax.sharding.use_abstract_mesh(abstract_mesh()):
            program = lower_program(lambda x, w: mixed_mm(x, w), x, prepared(case))
        assert len(program.kernels) == 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_type_has_configs_of_both_kernels(case):
    kinds = {type(c) for m in (16, 1024) for c in tuning.candidates(problem(case, m), H200)}
    assert len(kinds) == 2
    if case.group in (16, 32):
        decode = [c for c in tuning.candidates(problem(case, 16), H200)]
        assert all(c.scale_on == "weight" for c in decode if isinstance(c, DecodeConfig))

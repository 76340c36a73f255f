# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""mixed_mm's Hopper configs: what tuning chooses lowers for sm90, and its model behaves."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import pytest

from jaxkernels.mixed_mm import hopper
from jaxkernels.mixed_mm.hopper_decode import DecodeConfig
from jaxkernels.mixed_mm.hopper_prefill import PrefillConfig
from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT
from jaxkernels.mosaic.convert import FORMATS
from jaxkernels.mosaic.device import abstract_mesh
from jaxkernels.problem import DEVICES, MixedMMOperands, MixedMMProblem
from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from jaxkernels.tuning import mixed_mm as tuning
from jaxkernels.tuning.model import measured

H200 = DEVICES["h200"]
SHAPES = [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (8192, 8192), (8192, 28672)]
MS = (1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 8192)


def problem(
    m, n, k, scalar_type=scalar_types.uint4b8, group=128, dtype="bfloat16", bias=False, g_idx=False
):
    return MixedMMProblem(
        m, n, k, scalar_type, dtype, dtype, group,
        "channel" if group == -1 else "group",
        zero_points=scalar_type in (scalar_types.uint4, scalar_types.uint8),
        g_idx=g_idx, bias=bias, layout=HOPPER_FRAGMENT,
        scale_dtype="float32" if group == -1 else dtype,
    )  # fmt: skip


def lower(p: MixedMMProblem, config) -> str:
    """StableHLO of a call, lowered for CUDA on a machine without one."""
    struct = jax.ShapeDtypeStruct
    tiles, groups = -(-p.n // 64), 1 if p.group_size == -1 else p.k // p.group_size
    bits = FORMATS[p.weight_type].bits
    w = QuantizedTensor(
        data=struct((tiles, -(-p.k // 64) * bits, 128), jnp.int32),
        scale=struct((tiles, groups, 64), p.scale_dtype),
        zero_point=struct((tiles, groups, 64), jnp.uint8) if p.zero_points else None,
        g_idx=struct((p.k,), jnp.int32) if p.g_idx else None,
        shape=(p.n, p.k), scalar_type=p.weight_type,
        group_shape=GroupShape(1, p.group_size), layout=HOPPER_FRAGMENT,
    )  # fmt: skip
    bias = struct((p.n,), p.out_dtype) if p.bias else None
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        call = jax.jit(lambda x, w, b: hopper.run(p, MixedMMOperands(x, w, b), config))
        traced = call.trace(struct((p.m, p.k), p.x_dtype), w, bias)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


# Every weight type meets both kernels, and each feature of a config appears.
FAMILIES = [
    (DecodeConfig(16, 4, 1, 256, 4), dict(m=16)),
    (DecodeConfig(16, 6, 1, 64, 4, split_k=2), dict(m=16)),
    (DecodeConfig(8, 1, 4, 512, 2, split_k=2), dict(m=1)),
    (DecodeConfig(64, 2, 1, 128, 2, scale_on="weight"), dict(m=64, group=32)),
    (DecodeConfig(32, 2, 2, 128, 2, split_k=4), dict(m=20, group=64, bias=True)),
    (DecodeConfig(64, 2, 1, 128, 4, 2, "weight", overlap=False), dict(m=64)),
    (DecodeConfig(16, 2, 1, 128, 4), dict(m=16, group=-1, dtype="float16")),
    (PrefillConfig(256, 2, 64, 4, 2), dict(m=300)),
    (PrefillConfig(128, 3, 64, 4, overlap=False), dict(m=300, group=32, dtype="float16")),
    (PrefillConfig(128, 3, 64, 4), dict(m=300)),
    (PrefillConfig(192, 2, 128, 2), dict(m=300, group=-1, bias=True)),
]


@pytest.mark.parametrize("index, scalar_type", list(enumerate(FORMATS)), ids=str)
def test_config_families_lower_for_sm90(index, scalar_type):
    for config, sizes in FAMILIES[index % 2 :: 2]:  # each type meets half of them
        p = problem(n=1024, k=2048, scalar_type=scalar_type, **sizes)
        if FORMATS[scalar_type].bits == 8 and config.tile_k == 256:  # twice the shared memory
            config = dataclasses.replace(config, tile_k=128)
        assert tuning.legal(p, config, H200), (config, tuning.legal(p, config, H200).reasons)
        text = lower(p, config)
        assert text.count("mosaic_gpu_v2") == 1  # one kernel, and nothing else computes
        assert "stablehlo.dot" not in text and "stablehlo.gather" not in text


CHOSEN = list(
    itertools.product(((4096, 4096), (28672, 4096), (4096, 14336)), (1, 16, 64, 128, 4096))
)


@pytest.mark.parametrize("shape, m", CHOSEN)
def test_what_tuning_chooses_lowers(shape, m):
    p = problem(m, *shape)
    assert "mosaic_gpu_v2" in lower(p, tuning.choose(p, H200))


@pytest.mark.parametrize("m", [1, 2, 4, 8, 64, 1024])
@pytest.mark.parametrize("shape", [*SHAPES, (5120, 5120), (3584, 18944)], ids=str)
def test_act_order_is_one_kernel_where_few_rows_fit_and_two_elsewhere(shape, m):
    p = problem(m, *shape, g_idx=True)
    config = tuning.choose(p, H200)
    picks = isinstance(config, DecodeConfig) and config.gather
    assert picks or m * p.k > 16384
    assert lower(p, config).count("mosaic_gpu_v2") == 2 - picks


@pytest.mark.parametrize("group", [16, 32, 64, 128, -1])
@pytest.mark.parametrize("scalar_type", FORMATS, ids=str)
def test_every_supported_shape_has_a_legal_config(scalar_type, group):
    shapes = [(4096, 14336), (8, 128), (200, 384)]
    for (n, k), m in itertools.product(shapes, (1, 17, 200)):
        p = problem(m, n, k, scalar_type, group, bias=True)
        assert hopper.supports(p, H200), hopper.supports(p, H200).reasons
        config = tuning.choose(p, H200)
        assert tuning.legal(p, config, H200)
        assert config == tuning.choose(p, H200)


def test_every_measured_config_is_legal_and_chosen():
    entries = measured("mixed_mm", H200)
    assert entries
    for key, entry in entries.items():
        parts = re.fullmatch(r"w(\dz?) g(k|\d+) m(\d+) n(\d+) k(\d+)", key).groups()
        bits, group, m, n, k = parts
        kind = {"4": "uint4b8", "4z": "uint4", "8": "uint8b128", "8z": "uint8"}[bits]
        kind = getattr(scalar_types, kind)
        p = problem(int(m), int(n), int(k), kind, -1 if group == "k" else int(group))
        assert tuning.table_key(p) == key
        chosen = tuning.choose(p, H200)
        assert dataclasses.asdict(chosen).items() >= entry["config"].items(), key


def test_time_grows_with_the_problem():
    for n, k in SHAPES:
        times = []
        for m in MS:
            p = problem(m, n, k)
            times.append(min(tuning.estimate(p, c, H200).total for c in tuning.candidates(p, H200)))
        assert all(b > 0.97 * a for a, b in itertools.pairwise(times)), (n, k, times)


def test_explain_names_the_choice_and_its_source():
    p = problem(16, 4096, 4096)
    text = tuning.explain(p, H200)
    assert "w4 g128 m16 n4096 k4096 on NVIDIA H200" in text
    assert str(tuning.choose(p, H200)) in text
    assert "cost model" in text or "measured table" in text


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(layout="plain"), "must be prepared once"),
        (dict(x_dtype="float32"), "x must be bfloat16 or float16"),
        (dict(n=1001), "n % 8 == 0"),
        (dict(k=4100, group_size=-1), "k % 8 == 0"),
        (dict(group_size=96), "group_size must be 16, 32, a multiple of 64"),
        (dict(granularity="block", group_size=32), "blocks must have a multiple of 64 columns"),
        (dict(weight_type=scalar_types.float8_e5m2), "no register conversion"),
        (dict(scale_dtype="float8_e4m3fn", group_size=16), "scales of 8 bits go with float"),
        (
            dict(scale_dtype="float8_e8m0fnu", weight_type=scalar_types.float4_e2m1f),
            "in groups of 16 or 32",
        ),
    ],
)
def test_what_is_not_supported_says_why(change, reason):
    refused = hopper.supports(dataclasses.replace(problem(16, 1024, 4096), **change), H200)
    assert not refused
    assert any(reason in text for text in refused.reasons), refused.reasons


def test_only_hopper():
    refused = hopper.supports(problem(16, 1024, 4096), DEVICES["a100"])
    assert refused.reasons == ("needs an NVIDIA GPU of capability 9.x, got NVIDIA A100",) or (
        "needs an NVIDIA GPU of capability 9.x" in refused.reasons[0]
    )

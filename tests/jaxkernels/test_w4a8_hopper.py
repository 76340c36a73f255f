# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""w4a8_mm's Hopper kernel without a GPU: interpreted with race detection, lowered, and chosen."""

import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkernels import w4a8_mm
from jaxkernels.mixed_mm import hopper_w4a8, prepare_w4a8
from jaxkernels.mixed_mm.hopper_w4a8 import W4A8Config
from jaxkernels.mosaic.device import abstract_mesh
from jaxkernels.mosaic.interpret import interpreted
from jaxkernels.problem import DEVICES, W4A8Operands, W4A8Problem
from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from jaxkernels.tuning import w4a8 as tuning

from . import w4a8_cases as cases

H200 = DEVICES["h200"]
SHAPES = [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (8192, 8192), (8192, 28672)]
MS = (1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 8192)


def run(x, w, x_scale, config, bias=None):
    with interpreted():
        how = dict(bias=bias, implementation="hopper", config=config)
        return np.asarray(w4a8_mm(x, prepare_w4a8(w), x_scale, **how))


def test_one_hot_rows_recover_every_product(rng):
    """All 16 codes times all finite e4m3 scales."""
    w = cases.every_product(rng)
    rows = slice(0, 64)  # of two groups: every code of every row's first group
    x = jnp.eye(256, dtype=jnp.float8_e4m3fn)[rows]
    got = run(x, w, jnp.float32(1), W4A8Config(64, 2, 1, 128, 2))
    np.testing.assert_array_equal(got.astype(np.float64), cases.exact_values(w).T[rows])


BOUNDED = {
    "N and M ragged, two tiles of x, with bias": (
        (20, 72, 256, True),
        W4A8Config(16, 1, 1, 256, 2),
    ),
    "one tile a stage, two stages a pass": (
        (8, 128, 384, False),
        W4A8Config(8, 2, 1, 128, 3, overlap=True),
    ),
    "K split over warpgroups and blocks": (
        (9, 72, 1024, True),
        W4A8Config(16, 1, 2, 256, 2, split_k=2, overlap=True),
    ),
    "more tiles than blocks": ((70, 400, 256, True), W4A8Config(128, 1, 1, 256, 2, overlap=True)),
    "x shared by a cluster": (
        (70, 400, 256, False),
        W4A8Config(128, 2, 1, 128, 3, cluster_n=2, overlap=True),
    ),
}


@pytest.mark.parametrize("kind", cases.DTYPES)
@pytest.mark.parametrize("name", BOUNDED)
def test_rounds_once(rng, name, kind):
    """Interpreted sums are float32 ones, so the output's rounding is nearly the whole error."""
    (m, n, k, with_bias), config = BOUNDED[name]
    if kind == "int8":  # three accumulators: int8's tiles are smaller
        config = dataclasses.replace(config, tile_m=min(config.tile_m, 64))
    w = cases.random_weight(rng, kind, n, k)
    x, x_scale = cases.random_x(rng, kind, m, k)
    bias = jnp.asarray(rng.normal(size=n), jnp.bfloat16) if with_bias else None
    expected = cases.exact(x, w, x_scale, bias)
    got = run(x, w, x_scale, config, bias).astype(np.float64)
    np.testing.assert_allclose(got, expected, rtol=2**-8, atol=1e-5 * np.abs(expected).max())


def test_illegal_configs_are_refused_before_a_launch(rng):
    w = cases.random_weight(rng, "fp8", 64, 256)
    x = jnp.zeros((4, 256), jnp.float8_e4m3fn)
    for config, reason in (
        (W4A8Config(16, 1, 1, 128, 2), "TMA copies of scales"),
        (W4A8Config(16, 4, 1, 512, 16), "bytes of shared memory"),
        (W4A8Config(256, 4, 1, 128, 2), "registers a thread"),
        (W4A8Config(16, 2, 2, 128, 2), "whole tiles a warpgroup"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(x, w, jnp.float32(1), config)


def test_unprepared_weights_are_refused_with_the_remedy(rng):
    w = cases.random_weight(rng, "fp8", 64, 128)
    x, x_scale = cases.random_x(rng, "fp8", 4, 128)
    with interpreted(), pytest.raises(NotImplementedError, match="prepare_w4a8"):
        w4a8_mm(x, w, x_scale, implementation="hopper")


# -- lowered ------------------------------------------------------------------------------------


def problem(m, n, k, kind="fp8", bias=False) -> W4A8Problem:
    fp8 = kind == "fp8"
    return W4A8Problem(
        m, n, k, scalar_types.int4, jnp.dtype(cases.DTYPES[kind]).name, "bfloat16", 128,
        "float8_e4m3fn" if fp8 else "bfloat16", channel_scale=fp8, bias=bias,
        layout=hopper_w4a8.HOPPER_W4A8,
    )  # fmt: skip


def lower(p: W4A8Problem, config) -> str:
    """StableHLO of a call, lowered for CUDA on a machine without one."""
    struct, tiles = jax.ShapeDtypeStruct, -(-p.n // 64)
    w = QuantizedTensor(
        data=struct((tiles, p.k // 16, 128), jnp.int32),
        scale=struct((tiles, p.k // 128, 64), p.scale_dtype),
        global_scale=struct((p.n, 1), jnp.float32) if p.channel_scale else None,
        shape=(p.n, p.k), scalar_type=p.weight_type,
        group_shape=GroupShape(1, 128), layout=p.layout,
    )  # fmt: skip
    bias = struct((p.n,), jnp.bfloat16) if p.bias else None
    x, x_scale = struct((p.m, p.k), p.x_dtype), struct((p.m, 1), jnp.float32)
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        call = jax.jit(lambda x, w, s, b: hopper_w4a8.run(p, W4A8Operands(x, w, s, b), config))
        return call.trace(x, w, x_scale, bias).lower(lowering_platforms=("cuda",)).as_text()


FAMILIES = [
    (W4A8Config(16, 4, 1, 256, 4, overlap=True), dict(m=16)),
    (W4A8Config(8, 1, 4, 512, 2, split_k=2), dict(m=1, bias=True)),
    (W4A8Config(64, 2, 2, 256, 3, split_k=4), dict(m=64)),
    (W4A8Config(64, 3, 1, 256, 3), dict(m=300)),
    (W4A8Config(128, 2, 1, 128, 4, cluster_n=2, overlap=True), dict(m=300, bias=True)),
]


@pytest.mark.parametrize("kind", cases.DTYPES)
@pytest.mark.parametrize("config, sizes", FAMILIES, ids=str)
def test_config_families_lower_for_sm90(config, sizes, kind):
    p = problem(n=1024, k=2048, kind=kind, **sizes)
    if kind == "int8":  # three accumulators
        config = dataclasses.replace(config, tile_m=min(config.tile_m, 32))
    legal = tuning.legal(p, config, H200)
    assert legal, legal.reasons
    text = lower(p, config)
    assert text.count("mosaic_gpu_v2") == 1  # one kernel, and nothing else computes
    assert "stablehlo.dot" not in text and "stablehlo.gather" not in text


CHOSEN = [
    *itertools.product(["fp8"], SHAPES[::2], (1, 16, 64, 256, 4096)),
    *itertools.product(["int8"], SHAPES[2:3], (1, 64, 4096)),
]


@pytest.mark.parametrize("kind, shape, m", CHOSEN)
def test_what_tuning_chooses_lowers(kind, shape, m):
    p = problem(m, *shape, kind)
    assert "mosaic_gpu_v2" in lower(p, tuning.choose(p, H200))


@pytest.mark.parametrize("kind", cases.DTYPES)
def test_every_supported_shape_has_a_legal_config(kind):
    for (n, k), m in itertools.product([(4096, 14336), (8, 128), (200, 384)], (1, 17, 200)):
        p = problem(m, n, k, kind, bias=True)
        assert hopper_w4a8.supports(p, H200), hopper_w4a8.supports(p, H200).reasons
        assert tuning.legal(p, tuning.choose(p, H200), H200)


def test_the_measured_table_is_legal_and_wins():
    tables = pathlib.Path(tuning.__file__).parent / "tables"
    entries = json.loads((tables / "w4a8_nvidia_h200.json").read_text())["entries"]
    for key, entry in entries.items():
        kind, m, n, k = (part.lstrip("mnk") for part in key.split())
        p = problem(int(m), int(n), int(k), kind)
        config = W4A8Config(**entry["config"])
        assert tuning.table_key(p) == key and tuning.legal(p, config, H200)
        assert tuning.choose(p, H200) == config
        # The model is not far off: within a third of what was measured.
        assert 0.66 < tuning.estimate(p, config, H200).total / entry["us"] < 1.5, key


@pytest.mark.parametrize("kind", cases.DTYPES)
def test_time_grows_with_the_problem(kind):
    for n, k in SHAPES:
        times = []
        for m in MS:
            p = problem(m, n, k, kind)
            times.append(min(tuning.estimate(p, c, H200).total for c in tuning.candidates(p, H200)))
        assert all(b > 0.97 * a for a, b in itertools.pairwise(times)), (n, k, times)


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(layout="plain"), "must be prepared once"),
        (dict(x_dtype="bfloat16"), "x must be float8_e4m3fn or int8"),
        (dict(scale_dtype="bfloat16"), "takes weight scales of"),
        (dict(n=1001), "n % 8 == 0"),
        (dict(group_size=64), "group_size must be 128"),
        (dict(out_dtype="float32"), "out_dtype must be"),
        (dict(weight_type=scalar_types.uint4), "no register conversion"),
    ],
)
def test_what_is_not_supported_says_why(change, reason):
    refused = hopper_w4a8.supports(dataclasses.replace(problem(16, 1024, 4096), **change), H200)
    assert any(reason in text for text in refused.reasons), refused.reasons


def test_only_hopper():
    refused = hopper_w4a8.supports(problem(16, 1024, 4096), DEVICES["a100"])
    assert "needs an NVIDIA GPU of capability 9.x" in refused.reasons[0]

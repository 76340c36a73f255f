# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Every class in the lists can be reached, and what backs it really runs, on a small case each.

On a CPU that is XLA for all of them, and for the classes that Hopper kernels back the same kernels
in interpret mode with race detection. Whether those kernels are right at every shape is tested
where they are; here it is that the class leads to them.
"""

import contextlib
import functools
import os
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

import selection
from jaxkernels import mixed_mm, quantize, scaled_mm, w4a8_mm
from jaxkernels.mixed_mm import prepare_w4a8, split_scales
from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic.interpret import interpreted
from jaxkernels.problem import DEVICES, Device, MixedMMProblem, ScaledMMProblem, W4A8Problem
from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types as t
from selection import MPLinearLayerConfig, choose_kernel, platform_for, using
from selection.ask import cannot_run
from selection.lists import LISTS
from selection.problems import problem_for, resolve

_GFX11 = Device("Radeon RX 7900", "rocm", (11, 0), 96, 65536, 6 << 20, 960, {"float16": 123.0})
PLATFORMS = [
    *(platform_for(name) for name in ("h200", "b200", "a100", "t4", "mi300x", "xpu", "oot")),
    platform_for("mi300x", gfx="gfx950"),
    platform_for(_GFX11, gfx="gfx1100"),
    platform_for("cpu", features=("amx", "zen")),
]
ENVIRONMENT = {
    "VLLM_ROCM_USE_AITER": "1",
    "VLLM_ROCM_USE_AITER_LINEAR_HIPBMM": "1",
}
K, N, M = 512, 128, 5


def layers(kind):
    """Small configs of one priority list."""
    found = [s.config(K, N) for s in selection.SCHEMES.values() if s.kind == kind]
    if kind == "mp":
        for weight_type, group, act in (
            (t.int4, 128, "bfloat16"),
            (t.uint4b8, 128, "float16"),
            (t.uint8b128, -1, "float16"),
        ):
            found.append(MPLinearLayerConfig((K, N), (K, N), weight_type, act, group, False, False))
    return found


def reach(kind, kernel):
    """A (config, platform) that a class serves, whatever comes before it in the list."""
    for platform in PLATFORMS:
        capability = platform.get_device_capability()
        number = None if capability is None else capability.to_int()
        with using(platform):
            if kernel not in LISTS[kind].get(platform._enum, []):
                continue
            if kind == "mp" and number is not None and kernel.get_min_capability() > number:
                continue
            if kind != "mp" and not kernel.is_supported(number)[0]:
                continue
            for config in layers(kind):
                if kernel.can_implement(config)[0] and cannot_run(kernel, config) is None:
                    return config, platform
    return None


LISTED = sorted(
    {(kind, kernel) for kind, lists in LISTS.items() for ks in lists.values() for kernel in ks},
    key=lambda pair: (pair[0], pair[1].__name__),
)


def id_of(value):
    """A class's name in a test's id."""
    return getattr(value, "__name__", value)


def close(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.isfinite(got).all() and np.abs(expected).max() > 0
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < tolerance, error


def weights(problem: MixedMMProblem, seed=0) -> QuantizedTensor:
    """Weights as a problem describes them."""
    rng = np.random.default_rng(seed)
    n, k, group = problem.n, problem.k, problem.group_size
    w = jnp.asarray(rng.standard_normal((n, k)), jnp.float32)
    if problem.granularity == "block" or problem.scale_dtype.startswith("float8"):
        # quantize() does not make these: codes and scales by hand.
        block = problem.granularity == "block"
        rows = -(-n // 128) if block else n
        scale = jnp.asarray(2.0 ** rng.integers(-3, 3, (rows, -(-k // group))), jnp.float32)
        packed = problem.weight_type.size_bits == 4
        codes = rng.integers(0, 256, (n, k // 2), np.uint8)
        data = jnp.asarray(codes) if packed else w.astype(jnp.float8_e4m3fn)
        return QuantizedTensor(
            data=data,
            scale=scale.astype(problem.scale_dtype),
            global_scale=jnp.full((1, 1), 0.5, jnp.float32) if problem.global_scale else None,
            shape=(n, k),
            scalar_type=problem.weight_type,
            group_shape=GroupShape(128 if block else 1, group),
        ).validate()
    out = quantize(
        w,
        problem.weight_type,
        group,
        zero_points=problem.zero_points,
        granularity=problem.granularity,
        scale_dtype=problem.scale_dtype,
    )
    if not problem.g_idx:
        return out
    fields = {f: getattr(out, f) for f in out.__dataclass_fields__}
    order = jnp.asarray(rng.permutation(np.arange(k) // group), jnp.int32)
    return QuantizedTensor(**(fields | {"g_idx": order}))


def run_mixed(problem, implementation, layout="plain"):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((problem.m, problem.k)), problem.x_dtype)
    w = weights(problem)
    w = prepare(w) if layout != "plain" else w
    return mixed_mm(x, w, out_dtype=problem.out_dtype, implementation=implementation)


def run_w4a8(problem, implementation, layout="plain"):
    rng = np.random.default_rng(3)
    n, k = problem.n, problem.k
    w = jnp.asarray(rng.standard_normal((n, k)), jnp.float32)
    w = quantize(w, problem.weight_type, problem.group_size, scale_dtype=jnp.bfloat16)
    w = split_scales(w) if problem.channel_scale else w
    w = prepare_w4a8(w) if layout != "plain" else w
    x = jnp.asarray(rng.integers(-100, 100, (problem.m, k)), jnp.float32).astype(problem.x_dtype)
    x_scale = jnp.asarray(rng.random((problem.m, 1)) + 0.5, jnp.float32)
    return w4a8_mm(x, w, x_scale, out_dtype=problem.out_dtype, implementation=implementation)


def run_scaled(problem, implementation):
    rng = np.random.default_rng(2)
    m, n, k = problem.m, problem.n, problem.k
    blocks = -(-k // 128)
    span = 128 if problem.x_dtype == "int8" else 4
    x = jnp.asarray(rng.integers(-span, span, (m, k)), problem.x_dtype)
    w = jnp.asarray(rng.integers(-span, span, (n, k)), problem.w_dtype)
    x_shape = {"tensor": (1, 1), "token": (m, 1), "group": (m, blocks)}[problem.x_scale]
    w_shape = {"tensor": (1, 1), "channel": (n, 1), "block": (-(-n // 128), blocks)}
    azp = azp_adj = None
    if problem.azp is not None:
        azp_adj = jnp.asarray(np.asarray(w, np.int32).sum(axis=1))
        azp = jnp.asarray(rng.integers(-50, 50, (m, 1)), jnp.int32)
        if problem.azp == "static":
            azp, azp_adj = None, azp_adj * 7
    return scaled_mm(
        x,
        w,
        jnp.asarray(rng.random(x_shape) + 0.5, jnp.float32),
        jnp.asarray(rng.random(w_shape[problem.w_scale]) + 0.5, jnp.float32),
        azp=azp,
        azp_adj=azp_adj,
        out_dtype=problem.out_dtype,
        implementation=implementation,
    )


def compare(problem, implementations, within=contextlib.nullcontext):
    """What the implementations give, inside a context, against the reference outside of it."""
    if isinstance(problem, ScaledMMProblem):
        with within():
            got = run_scaled(problem, implementations)
        expected = run_scaled(problem, "reference")
    else:
        run = run_w4a8 if isinstance(problem, W4A8Problem) else run_mixed
        with within():
            got = run(problem, implementations, problem.layout)
        expected = run(problem, "reference")
    # Two roundings of 8 bits of mantissa at the most, for bfloat16.
    close(got, expected, 0.02)


@functools.cache
def runs_like_the_reference(problem, implementations):
    """Cached: many classes lead to the same problem."""
    compare(problem, implementations)
    return True


@pytest.mark.parametrize(("kind", "kernel"), LISTED, ids=id_of)
def test_the_class_is_reachable_and_its_backing_runs(kind, kernel):
    with mock.patch.dict(os.environ, ENVIRONMENT):
        found = reach(kind, kernel)
    assert found is not None, "no device, layer and environment that this class serves"
    config, _ = found
    problem = problem_for(kernel, config, M, N, K)
    ops = {ScaledMMProblem: "scaled_mm", MixedMMProblem: "mixed_mm", W4A8Problem: "w4a8_mm"}
    assert kernel.backing.op == ops[type(problem)]
    assert (problem.m, problem.n, problem.k) == (M, N, K)
    assert resolve(kernel.backing, problem, DEVICES["cpu"]).name == "xla"
    assert runs_like_the_reference(problem, kernel.available_implementations())


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("w8a8-int8", selection.CutlassInt8ScaledMMLinearKernel),
        ("w8a8-fp8", selection.CutlassFP8ScaledMMLinearKernel),
        ("fp8-block", selection.FlashInferFp8DeepGEMMDynamicBlockScaledKernel),
        ("w4a16-g128", selection.MacheteLinearKernel),
        ("w8a16", selection.MacheteLinearKernel),
        ("w4a8-fp8", selection.CutlassW4A8LinearKernel),
    ],
)
def test_the_hopper_kernel_of_the_class_runs_interpreted(scheme, expected):
    layer = selection.scheme(scheme)
    choice = choose_kernel(layer.config(K, N), kind=layer.kind, device="h200", strict=True)
    assert choice.kernel is expected
    found = choice.resolved(M, N, K)
    assert found.name == "hopper" and found.rejected == ()
    assert choice.kernel.available_implementations()[0] == "hopper"
    compare(found.problem, "hopper", interpreted)


@pytest.mark.gpu
def test_the_live_gpu_is_an_h200_class_device():
    platform = selection.current_platform
    assert platform.is_cuda() and platform.is_device_capability(90)
    assert platform.device.is_hopper and platform.device.num_sms > 0


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", sorted(selection.SCHEMES))
def test_what_serves_a_scheme_on_the_live_gpu_runs(scheme):
    layer = selection.scheme(scheme)
    choice = choose_kernel(layer.config(K, N), kind=layer.kind)
    found = choice.resolved(M, N, K)
    assert runs_like_the_reference(found.problem, found.name)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""A choice's explanation: what a class would run for a given M, and when that is the slow path."""

import pytest

import selection
from jaxkernels.problem import DEVICES, MixedMMProblem, ScaledMMProblem
from jaxkernels.scalar_types import scalar_types as t
from selection import (
    FP8ScaledMMLinearLayerConfig,
    GroupShape,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    choose_kernel,
    create_fp8_quant_key,
)
from selection.choice import describe, short_name
from selection.problems import inexpressible, problem_for
from selection.recipes import RECIPES

INT8 = Int8ScaledMMLinearLayerConfig(False, True, True)


def mp(weight_type=t.uint4b8, group=128, k=4096, n=14336, act="bfloat16", **rest):
    rest = {"zero_points": False, "has_g_idx": False} | rest
    return MPLinearLayerConfig((k, n), (k, n), weight_type, act, group, **rest)


def test_a_plan_has_the_layers_own_sizes():
    plan = choose_kernel(mp(), device="h200", quiet=True).plan(16)
    assert (plan.problem.m, plan.problem.n, plan.problem.k) == (16, 14336, 4096)


def test_a_config_without_sizes_takes_those_given_or_4096():
    choice = choose_kernel(INT8, device="h200", quiet=True)
    assert (choice.plan(7).problem.n, choice.plan(7).problem.k) == (4096, 4096)
    named = choice.plan(7, n=1024, k=512).problem
    assert (named.m, named.n, named.k) == (7, 1024, 512)


def test_few_rows_are_memory_bound_and_many_are_not():
    choice = choose_kernel(mp(), device="h200", quiet=True)
    few, many = choice.plan(1), choice.plan(8192)
    device = DEVICES["h200"]
    assert few.bound == "memory" and many.bound == "tensor-core"
    assert few.floor_us == pytest.approx(few.problem.min_bytes / device.read_gbps / 1e3)
    assert many.floor_us == pytest.approx(
        2 * 8192 * 14336 * 4096 / device.peak_tflops["bfloat16"] / 1e6
    )
    for plan in (few, many):
        assert plan.implementation == "hopper" and plan.config is not None
        assert plan.estimate_us > plan.floor_us


def test_plans_differ_with_m_as_the_tuning_says():
    choice = choose_kernel(INT8, device="h200", quiet=True)
    assert choice.plan(1).config.tile_m < choice.plan(8192).config.tile_m


def test_an_implementation_without_a_model_gives_no_estimate():
    plan = choose_kernel(mp(), device="a100", quiet=True).plan(16)
    assert plan.implementation == "xla" and plan.estimate_us is None and plan.config is None
    assert str(plan).startswith("xla, no estimate; at least ")


def test_a_cpu_has_no_known_peak_and_says_so():
    plan = choose_kernel(INT8, device="cpu", quiet=True).plan(16)
    assert str(plan) == "xla, no estimate: the device's peak is not known"


def test_where_the_kernel_of_the_architecture_is_missing_xla_backs_the_class():
    choice = choose_kernel(mp(), device="a100", quiet=True)
    assert choice.kernel is selection.MarlinLinearKernel
    text = choice.explain(m=16)
    assert "SLOW PATH: XLA runs it, because hopper: needs an NVIDIA GPU of capability 9.x" in text
    assert "ampere" in text
    # Weights are prepared at load, so their layout at rest is no reason.
    assert "prepared" not in text


def test_a_size_that_the_kernel_refuses_is_slow_at_that_size_only():
    """The int8 config has no sizes, so the class is chosen before K is known."""
    choice = choose_kernel(INT8, device="h200", quiet=True)
    assert choice.fallback is None and "SLOW" not in choice.explain(m=16)
    text = choice.explain(m=16, k=4104)
    assert "m=16 n=4096 k=4104: xla" in text
    assert "SLOW PATH at this size: hopper: TMA needs rows of a multiple of 16 bytes" in text


def test_ours_after_refusals_on_cuda_is_the_slow_path(monkeypatch):
    names = [k.__name__ for k in selection._POSSIBLE_INT8_KERNELS[selection.PlatformEnum.CUDA]]
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", ",".join(names[:-1]))
    choice = choose_kernel(INT8, device="h200", quiet=True)
    assert choice.kernel is selection.XlaInt8ScaledMMLinearKernel
    assert "every kernel made for this platform refused it" in choice.fallback


@pytest.mark.parametrize("device", ["cpu", "tpu-v5e", "xpu", "mi300x", "oot"])
def test_xla_where_nothing_else_could_be_is_no_fallback(device):
    for scheme in selection.SCHEMES.values():
        choice = choose_kernel(
            scheme.config(4096, 4096), kind=scheme.kind, device=device, quiet=True
        )
        assert choice.fallback is None and choice.resolved().name == "xla"


def test_weight_only_classes_say_that_activations_stay():
    scheme = selection.scheme("w8a8-fp8")
    text = selection.explain(scheme.config(4096, 4096), device="a100", m=1)
    assert "weight-only: activations stay 16-bit" in text


def test_a_choice_without_a_kernel_has_an_explanation_and_no_plan():
    choice = choose_kernel(mp(t.uint2b2), device="cpu", quiet=True)
    assert choice.kernel is None and choice.plan(4).implementation is None
    assert choice.explain().startswith("Nothing serves w2a16 uint2b2, group 128, bfloat16 on cpu.")
    assert str(choice.plan(4)) == "nothing here runs it"


@pytest.mark.parametrize(
    ("kind", "config", "text"),
    [
        ("mp", mp(t.int4, act="float8_e4m3fn"), "w4a8 int4, group 128, float8_e4m3fn"),
        (
            "mp",
            mp(t.uint4, -1, zero_points=True),
            "w4a16 uint4, whole-K scales, bfloat16, zero points",
        ),
        (
            "mp",
            mp(t.uint8b128, act="float32", has_g_idx=True),
            "w8a32 uint8b128, group 128, float32, g_idx",
        ),
        ("int8", INT8, "w8a8 int8, dynamic, symmetric, per channel"),
        (
            "int8",
            Int8ScaledMMLinearLayerConfig(True, False, False),
            "w8a8 int8, static, asymmetric, per tensor",
        ),
        (
            "fp8",
            FP8ScaledMMLinearLayerConfig(
                selection.kFp8StaticChannelSym, selection.kFp8DynamicTokenSym, None
            ),
            "fp8, weights f32,static,per_channel, activations f32,dynamic,per_token",
        ),
        ("nvfp4", selection.NvFp4LinearLayerConfig(), "NVFP4"),
    ],
)
def test_layers_in_words(kind, config, text):
    assert describe(kind, config) == text


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (selection.MacheteLinearKernel, "Machete"),
        (selection.CutlassInt8ScaledMMLinearKernel, "CutlassInt8"),
        (selection.DeepGemmFp8BlockScaledMMKernel, "DeepGemmFp8Block"),
        (
            selection.FlashInferFp8DeepGEMMDynamicBlockScaledKernel,
            "FlashInferFp8DeepGEMMDynamic",
        ),
        (None, "none"),
    ],
)
def test_short_names(kernel, name):
    assert short_name(kernel) == name


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_the_scheme_of_its_name(name):
    recipe, scheme = RECIPES[name], selection.scheme(name)
    assert recipe.family == scheme.kind
    assert recipe.config(512, 256, "bfloat16") == scheme.config(256, 512)


# -- from config to problem -----------------------------------------------------------------------


def test_an_int8_problem():
    kernel = selection.CutlassInt8ScaledMMLinearKernel
    config = Int8ScaledMMLinearLayerConfig(True, False, False)
    assert problem_for(kernel, config, 3, 64, 32) == ScaledMMProblem(
        3, 64, 32, "int8", "int8", "bfloat16", "tensor", "tensor", False, "static"
    )
    dynamic = Int8ScaledMMLinearLayerConfig(False, True, False)
    assert problem_for(kernel, dynamic, 3, 64, 32) == ScaledMMProblem(
        3, 64, 32, "int8", "int8", "bfloat16", "token", "channel", False, "token"
    )


def test_a_mixed_problem():
    kernel = selection.MarlinLinearKernel
    layer = mp(t.uint4, 64, act="float16", zero_points=True)
    assert problem_for(kernel, layer, 3) == MixedMMProblem(
        *(3, 14336, 4096, t.uint4, "float16", "float16", 64, "group", True),
        scale_dtype="float16",
    )
    whole = problem_for(kernel, mp(group=4096), 3)
    assert (whole.group_size, whole.granularity) == (-1, "channel")


def test_a_weight_only_fp8_problem():
    block = FP8ScaledMMLinearLayerConfig(
        selection.kFp8Static128BlockSym, None, None, (256, 512), "float16"
    )
    problem = problem_for(selection.MarlinFP8ScaledMMLinearKernel, block, 3)
    assert problem == MixedMMProblem(
        3, 256, 512, t.float8_e4m3fn, "float16", "float16", 128, "block"
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (mp(t.uint3b4), "weights of uint3b4 are not held"),
        (mp(zero_points=True), "uint4b8 weights have no zero points"),
        (mp(k=129, group=-1), "4-bit weights are held in pairs, and in-features are 129"),
        (mp(group=96), "group size 96 does not divide in-features 4096"),
        (mp(group=0), "group size 0 does not divide"),
        (mp(t.uint8b128, k=129, group=-1), None),
        (mp(group=8192), None),
    ],
)
def test_what_jaxkernels_has_no_operands_for(config, words):
    why = inexpressible(selection.XlaMPLinearKernel, config)
    assert (why is None) if words is None else words in why
    served = choose_kernel(config, device="cpu", quiet=True).kernel
    assert (served is not None) == (words is None)


def test_fp8_formats_that_no_8_bit_product_takes_are_served_weight_only():
    odd = create_fp8_quant_key(True, GroupShape(64, 128))
    config = FP8ScaledMMLinearLayerConfig(odd, selection.kFp8Dynamic128Sym, "bfloat16")
    for device in ("cpu", "tpu-v5e", "mi300x"):
        choice = choose_kernel(config, device=device, quiet=True)
        assert choice.kernel is selection.XlaW8A16FP8ScaledMMLinearKernel
        assert "not 128x128 blocks" in choice.rejected[-1].reason


@pytest.mark.parametrize(
    ("device", "how"), [("h200", "and multiplied as such"), ("a100", "then multiplied in 16 bits")]
)
def test_what_becomes_of_fp8_activations_of_int4_weights_is_said(device, how):
    config = selection.scheme("w4a8-fp8").config(4096, 4096)
    text = selection.choose_kernel(config, kind="mp", device=device).explain(16)
    assert f"activations are rounded to float8_e4m3fn, {how}" in text

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The choosers: order of questions, wording of reasons, controls, errors, instances, the log."""

import inspect
import logging
from unittest import mock

import pytest

import selection
from jaxkernels.scalar_types import scalar_types
from selection import (
    AiterInt8ScaledMMLinearKernel,
    Int8ScaledMMLinearKernel,
    Int8ScaledMMLinearLayerConfig,
    MPLinearKernel,
    MPLinearLayerConfig,
    PlatformEnum,
    choose_kernel,
    choose_mp_linear_kernel,
    choose_scaled_mm_linear_kernel,
    is_supported_and_can_implement_kernel,
    platform_for,
    register_linear_kernel,
    using,
)
from selection.lists import BACKENDS, LISTS

INT8 = Int8ScaledMMLinearLayerConfig(
    is_static_input_scheme=False, is_channelwise=True, input_symmetric=True
)
ASYMMETRIC = Int8ScaledMMLinearLayerConfig(True, True, False)
GPTQ = MPLinearLayerConfig(
    (4096, 4096), (4096, 4096), scalar_types.uint4b8, "bfloat16", 128, False, False
)


# -- names, parameters, defaults ------------------------------------------------------------------

REQUIRED = inspect.Parameter.empty
SIGNATURES = {
    "is_supported_and_can_implement_kernel": {
        **dict.fromkeys(("kernel", "config", "compute_capability"), REQUIRED)
    },
    "choose_scaled_mm_linear_kernel": {
        "config": REQUIRED,
        "possible_kernels": REQUIRED,
        "compute_capability": None,
        "force_kernel": None,
    },
    "choose_mp_linear_kernel": {"config": REQUIRED, "compute_capability": None},
    "init_int8_linear_kernel": dict.fromkeys(
        ("is_channelwise", "is_static_input_scheme", "input_symmetric", "module_name"), REQUIRED
    ),
    "init_fp8_linear_kernel": {
        "activation_quant_key": REQUIRED,
        "weight_quant_key": REQUIRED,
        "out_dtype": REQUIRED,
        "force_kernel": None,
        "module_name": None,
    },
    "init_wfp8_a16_linear_kernel": {
        "weight_quant_key": REQUIRED,
        "activation_quant_key": REQUIRED,
        "weight_shape": REQUIRED,
        "input_dtype": REQUIRED,
        "out_dtype": REQUIRED,
        "force_kernel": None,
        "module_name": None,
    },
    "init_mxfp8_linear_kernel": {},
    "init_mxfp4_linear_kernel": {},
    "init_nvfp4_linear_kernel": {"use_a16": False},
    "register_linear_kernel": {
        "kernel_class": REQUIRED,
        "platform": REQUIRED,
        "kernel_type": "mp",
    },
}


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items())
def test_positional_parameters_are_upstreams(name, expected):
    parameters = inspect.signature(getattr(selection, name)).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert positional == expected
    assert list(positional) == list(expected)


def test_the_private_dictionaries_have_upstreams_names():
    for name in (
        *("_POSSIBLE_INT8_KERNELS", "_POSSIBLE_FP8_KERNELS", "_POSSIBLE_KERNELS"),
        *("_POSSIBLE_FP8_BLOCK_KERNELS", "_POSSIBLE_WFP8A16_KERNELS", "_POSSIBLE_MXFP8_KERNELS"),
        *("_POSSIBLE_NVFP4_KERNELS", "_POSSIBLE_MXFP4_KERNELS"),
    ):
        lists = getattr(selection, name)
        assert any(lists is known for known in LISTS.values())
        assert all(isinstance(platform, PlatformEnum) for platform in lists)


# -- wording and order of reasons -----------------------------------------------------------------


def verdict(kernel, config, capability=None):
    return is_supported_and_can_implement_kernel(kernel, config, capability)


def test_a_supported_kernel_gives_an_empty_reason():
    with using("h200"):
        assert verdict(selection.CutlassInt8ScaledMMLinearKernel, INT8) == (True, "")


def test_scaled_mm_reasons_are_name_space_reason_dot():
    with using("cpu"):
        assert verdict(selection.CutlassInt8ScaledMMLinearKernel, INT8) == (
            False,
            "CutlassInt8ScaledMMLinearKernel requires CUDA.",
        )


def test_aiters_own_dot_makes_two():
    with using("h200"):
        ok, reason = verdict(AiterInt8ScaledMMLinearKernel, INT8)
    assert not ok and reason == "AiterInt8ScaledMMLinearKernel Requires ROCm.."


def test_a_disabled_kernel_is_asked_nothing(monkeypatch):
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "Probed,Other")

    class Probed(Int8ScaledMMLinearKernel):
        is_supported = classmethod(lambda cls, cc=None: pytest.fail("was asked"))
        can_implement = classmethod(lambda cls, c: pytest.fail("was asked"))

    assert verdict(Probed, INT8) == (False, " Probed is disabled by environment variable")


def test_is_supported_comes_before_can_implement():
    class Refusing(Int8ScaledMMLinearKernel):
        is_supported = classmethod(lambda cls, cc=None: (False, "needs luck"))
        can_implement = classmethod(lambda cls, c: pytest.fail("was asked"))

    assert verdict(Refusing, INT8) == (False, "Refusing needs luck.")


@pytest.mark.parametrize(("given", "expected"), [(None, 80), (75, 75)])
def test_a_capability_that_is_not_given_is_the_platforms(given, expected):
    seen = []

    class Asking(Int8ScaledMMLinearKernel):
        @classmethod
        def is_supported(cls, compute_capability=None):
            seen.append(compute_capability)
            return True, None

    with using("a100"):
        verdict(Asking, INT8, given)
    assert seen == [expected]


def test_no_capability_at_all_stays_none():
    seen = []

    class Asking(Int8ScaledMMLinearKernel):
        @classmethod
        def is_supported(cls, compute_capability=None):
            seen.append(compute_capability)
            return True, None

    with using("cpu"):
        verdict(Asking, INT8)
    assert seen == [None]


def reasons(config, device, **controls):
    choice = choose_kernel(config, device=device, quiet=True, **controls)
    return {r.kernel.__name__: r.reason for r in choice.rejected}


def test_mixed_precision_reasons(monkeypatch):
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "MarlinLinearKernel")
    found = reasons(GPTQ, "a100")
    assert found["MacheteLinearKernel"] == (
        "MacheteLinearKernel requires capability 90, current compute capability is 80"
    )
    assert found["AllSparkLinearKernel"] == (
        " AllSparkLinearKernel cannot implement due to: group size 128 is not one of -1"
    )
    assert found["MarlinLinearKernel"] == " MarlinLinearKernel disabled by environment variable"


def test_micro_scaled_reasons(monkeypatch):
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "MarlinMxfp8LinearKernel")
    found = reasons(selection.Mxfp8LinearLayerConfig(), "a100")
    assert found["FlashInferCutlassMxfp8LinearKernel"] == (
        "FlashInferCutlassMxfp8LinearKernel: requires a device of capability 100, this one has 80"
    )
    assert found["MarlinMxfp8LinearKernel"] == (
        " MarlinMxfp8LinearKernel disabled by environment variable"
    )


def test_without_a_capability_the_minimum_is_not_asked():
    assert selection.Dynamic4bitLinearKernel.get_min_capability() == 1
    int4 = MPLinearLayerConfig((256, 64), (256, 64), scalar_types.int4, "float32", 32, False, False)
    with using("cpu"):
        assert choose_mp_linear_kernel(int4) is selection.Dynamic4bitLinearKernel


def test_a_given_capability_reaches_the_minimum_only():
    """AllSpark asks the device itself, so 80 does not make an H200 eligible."""
    config = MPLinearLayerConfig(
        (4096, 4096), (4096, 4096), scalar_types.uint8b128, "bfloat16", -1, False, False
    )
    with using("a100"):
        assert choose_mp_linear_kernel(config) is selection.AllSparkLinearKernel
    with using("h200"):
        assert choose_mp_linear_kernel(config, 80) is selection.MarlinLinearKernel
        assert choose_mp_linear_kernel(config) is selection.MacheteLinearKernel


def test_mixed_precision_without_a_platform(monkeypatch):
    monkeypatch.setattr(selection, "current_platform", None)
    with pytest.raises(ValueError, match="compute_capability"):
        choose_mp_linear_kernel(GPTQ)


# -- nothing serves -------------------------------------------------------------------------------


def test_the_error_names_the_layer_and_has_every_reason():
    with using("h200"), pytest.raises(ValueError) as error:
        choose_scaled_mm_linear_kernel(
            INT8,
            {
                PlatformEnum.CUDA: [
                    selection.CPUInt8ScaledMMLinearKernel,
                    AiterInt8ScaledMMLinearKernel,
                ]
            },
        )
    head, *lines = str(error.value).split("\n")
    assert head.startswith("Failed to find a kernel") and "ScaledMM" in head
    assert head.endswith("Reasons: ")
    assert lines == [
        "CPUInt8ScaledMMLinearKernel requires a CPU.",
        "AiterInt8ScaledMMLinearKernel Requires ROCm..",
    ]


def test_the_mixed_precision_error_names_wna16():
    two_bit = MPLinearLayerConfig(
        (4096, 4096), (4096, 4096), scalar_types.uint2b2, "bfloat16", 128, False, False
    )
    with using("cpu"), pytest.raises(ValueError, match="Failed to find a kernel.*WNA16") as error:
        choose_mp_linear_kernel(two_bit)
    lines = str(error.value).split("\n")[1:]
    assert [line.split()[0] for line in lines] == [
        kernel.__name__ for kernel in selection._POSSIBLE_KERNELS[PlatformEnum.CPU]
    ]


# -- force, filter, strict ------------------------------------------------------------------------


def test_a_forced_kernel_needs_no_list_and_no_filter():
    lists = {PlatformEnum.CUDA: [selection.CutlassInt8ScaledMMLinearKernel]}
    with using("h200"):
        kernel = choose_scaled_mm_linear_kernel(
            INT8,
            lists,
            force_kernel=selection.TritonInt8ScaledMMLinearKernel,
            backend="humming",
        )
    assert kernel is selection.TritonInt8ScaledMMLinearKernel


def test_the_environment_beats_force(monkeypatch):
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "TritonInt8ScaledMMLinearKernel")
    with using("h200"):
        kernel = choose_scaled_mm_linear_kernel(
            INT8,
            selection._POSSIBLE_INT8_KERNELS,
            force_kernel=selection.TritonInt8ScaledMMLinearKernel,
        )
    assert kernel is selection.CutlassInt8ScaledMMLinearKernel


def test_the_disabled_list_is_exact(monkeypatch):
    names = "CutlassInt8ScaledMMLinearKernel, TritonInt8ScaledMMLinearKernel"
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", names)  # with a space: the second stays enabled
    assert choose_kernel(INT8, device="h200").kernel is selection.TritonInt8ScaledMMLinearKernel
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "cutlassint8scaledmmlinearkernel")
    assert choose_kernel(INT8, device="h200").kernel is selection.CutlassInt8ScaledMMLinearKernel


@pytest.mark.parametrize("spelling", ["triton", "TRITON", " Triton "])
def test_a_backend_keeps_its_own_classes(spelling):
    choice = choose_kernel(INT8, device="h200", backend=spelling)
    assert choice.kernel is selection.TritonInt8ScaledMMLinearKernel


def test_a_backends_dashes_are_underscores():
    layer = selection.NvFp4LinearLayerConfig()
    choice = choose_kernel(layer, device="b200", backend="flashinfer-cudnn")
    assert choice.kernel is selection.FlashInferCudnnNvFp4LinearKernel


def test_the_backend_variable_and_the_argument_that_beats_it(monkeypatch):
    monkeypatch.setenv("JAXKERNELS_LINEAR_BACKEND", "marlin")
    assert choose_kernel(GPTQ, device="h200").kernel is selection.MarlinLinearKernel
    assert choose_kernel(GPTQ, device="h200", backend="conch").kernel is (
        selection.ConchLinearKernel
    )
    assert choose_kernel(GPTQ, device="h200", backend="auto").kernel is (
        selection.MacheteLinearKernel
    )


def test_a_backend_without_classes_for_the_layer():
    with pytest.raises(ValueError, match="linear-backend=deep_gemm.*mixed-precision"):
        choose_kernel(GPTQ, device="h200", backend="deep_gemm")


def test_an_unknown_backend_lists_the_known(monkeypatch):
    for quiet in (False, True):
        with pytest.raises(ValueError, match="backend: expected auto, cutlass.*'cutlas'"):
            choose_kernel(GPTQ, device="h200", backend="cutlas", quiet=quiet)
    monkeypatch.setenv("JAXKERNELS_LINEAR_BACKEND", "x")
    with pytest.raises(ValueError, match="JAXKERNELS_LINEAR_BACKEND: expected"):
        choose_kernel(GPTQ, device="h200")


def test_b12x_is_in_no_list_so_asking_for_it_fails():
    assert BACKENDS["flashinfer_b12x"] == {selection.FlashInferB12xNvFp4LinearKernel}
    with pytest.raises(ValueError, match="NVFP4"):
        choose_kernel(selection.NvFp4LinearLayerConfig(), device="b200", backend="flashinfer_b12x")


def test_strict_refuses_a_slow_path():
    choice = choose_kernel(GPTQ, device="t4")
    assert choice.fallback is not None
    with pytest.raises(ValueError, match="strict: MarlinLinearKernel would be slow: XLA runs it"):
        choose_kernel(GPTQ, device="t4", strict=True)
    with using("t4"), pytest.raises(ValueError, match="strict"):
        choose_mp_linear_kernel(GPTQ, strict=True)


def test_strict_accepts_what_is_not_slow():
    assert choose_kernel(GPTQ, device="cpu", strict=True).fallback is None
    assert choose_kernel(INT8, device="h200", strict=True).resolved().name == "hopper"


# -- instances ------------------------------------------------------------------------------------


def test_init_int8_builds_the_class_with_the_five_names():
    with using("cpu"):
        kernel = selection.init_int8_linear_kernel(True, False, True, "layers.0.qkv")
    assert type(kernel) is selection.CPUInt8ScaledMMLinearKernel
    assert kernel.layer_param_names == [
        *("weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj")
    ]
    assert kernel.config == Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=False, is_channelwise=True, input_symmetric=True
    )


def test_init_fp8_routes_grouped_activations_to_the_block_list():
    with using("h200"):
        plain = selection.init_fp8_linear_kernel(
            selection.kFp8DynamicTokenSym, selection.kFp8StaticChannelSym, "bfloat16"
        )
        block = selection.init_fp8_linear_kernel(
            selection.kFp8Dynamic128Sym,
            selection.kFp8Static128BlockSym,
            out_dtype="bfloat16",
            input_dtype="bfloat16",
            weight_shape=(4096, 4096),
        )
    assert type(plain) is selection.CutlassFP8ScaledMMLinearKernel
    assert plain.layer_param_names == ["weight", "weight_scale", "input_scale", "input_scale_ub"]
    assert type(block) is selection.FlashInferFp8DeepGEMMDynamicBlockScaledKernel
    assert not hasattr(block, "layer_param_names")


def test_a_per_token_key_is_not_grouped():
    assert not selection.GroupShape.PER_TOKEN.is_per_group()
    config = selection.FP8ScaledMMLinearLayerConfig(
        selection.kFp8StaticChannelSym, selection.kFp8DynamicTokenSym, None
    )
    assert choose_kernel(config, device="h200").kind == "fp8"


def test_marlin_out_of_the_block_list_gets_parameter_names():
    with using("a100"):
        kernel = selection.init_fp8_linear_kernel(
            selection.kFp8Dynamic128Sym, selection.kFp8Static128BlockSym, "bfloat16"
        )
    assert type(kernel) is selection.MarlinFP8ScaledMMLinearKernel
    assert kernel.layer_param_names[0] == "weight" and not kernel.quantizes_activations


def test_init_wfp8_a16_takes_the_weight_key_first():
    with using("a100"):
        kernel = selection.init_wfp8_a16_linear_kernel(
            selection.kFp8StaticChannelSym, None, (4096, 4096), "bfloat16", "bfloat16"
        )
    assert type(kernel) is selection.HummingFP8ScaledMMLinearKernel
    assert kernel.config.weight_quant_key is selection.kFp8StaticChannelSym


@pytest.mark.parametrize(
    ("device", "mxfp8", "mxfp4", "nvfp4"),
    [
        ("h200", "MarlinMxfp8", "MarlinMxFp4", "MarlinNvFp4"),
        ("b200", "FlashInferCutedslMxfp8", "FlashInferMxFp4", "FlashInferCuteDslNvFp4"),
        ("mi300x", "EmulationMxfp8", "XlaMxFp4", "EmulationNvFp4"),
        ("cpu", "XlaMxfp8", "XlaMxFp4", "XlaNvFp4"),
    ],
)
def test_init_of_the_micro_scaled_families(device, mxfp8, mxfp4, nvfp4):
    with using(device):
        made = [
            selection.init_mxfp8_linear_kernel(),
            selection.init_mxfp4_linear_kernel(),
            selection.init_nvfp4_linear_kernel(),
        ]
    assert [type(k).__name__.removesuffix("LinearKernel") for k in made] == [mxfp8, mxfp4, nvfp4]


def test_nvfp4_with_16_bit_activations_requires_marlin():
    with using("b200"):
        assert type(selection.init_nvfp4_linear_kernel(use_a16=True)) is (
            selection.MarlinNvFp4LinearKernel
        )
        named = selection.init_nvfp4_linear_kernel(use_a16=True, backend="fbgemm")
        assert type(named) is selection.FbgemmNvFp4LinearKernel
    with using("mi300x"), pytest.raises(ValueError, match="MarlinNvFp4.*requires CUDA"):
        selection.init_nvfp4_linear_kernel(use_a16=True)


@pytest.mark.parametrize(("device", "expected"), [("b200", "Cutlass"), ("h200", "Emulation")])
def test_batch_invariance_decides_nvfp4(monkeypatch, caplog, device, expected):
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with using(device), caplog.at_level(logging.WARNING, "selection"):
        kernel = selection.init_nvfp4_linear_kernel(backend="marlin")
    assert type(kernel).__name__ == f"{expected}NvFp4LinearKernel"
    assert "VLLM_BATCH_INVARIANT overrides the backend marlin" in caplog.text


def test_emulated_nvfp4_warns_with_the_failures(monkeypatch, caplog):
    names = [k.__name__ for k in selection._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CUDA][:7]]
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", ",".join(names))
    with using("h200"), caplog.at_level(logging.WARNING, "selection"):
        kernel = selection.init_nvfp4_linear_kernel()
    assert type(kernel) is selection.EmulationNvFp4LinearKernel
    assert "MarlinNvFp4LinearKernel disabled by environment variable" in caplog.text


# -- registration ---------------------------------------------------------------------------------


@pytest.fixture
def lists():
    """The priority lists, restored afterwards."""
    kept = {kind: {p: list(ks) for p, ks in known.items()} for kind, known in LISTS.items()}
    yield LISTS
    for kind, known in kept.items():
        LISTS[kind].clear()
        LISTS[kind].update(known)


class OutOfTreeInt8(Int8ScaledMMLinearKernel):
    """A plug-in's kernel: it answers and runs by itself."""

    @classmethod
    def is_supported(cls, compute_capability=None):
        return True, None

    @classmethod
    def can_implement(cls, c):
        return True, None

    def process_weights_after_loading(self, layer):
        pass

    def apply_weights(self, layer, x, bias=None):
        return ("ran", x)


def test_a_registered_kernel_serves_its_own_platform(lists, monkeypatch):
    """As upstream's test does it: a mock with `_enum` in the place of the module global."""
    register_linear_kernel(OutOfTreeInt8, PlatformEnum.OOT, "int8")
    with mock.patch("selection.current_platform") as platform:
        platform._enum = PlatformEnum.OOT
        kernel = selection.init_int8_linear_kernel(True, True, True, "module")
    assert type(kernel) is OutOfTreeInt8
    assert kernel.apply_weights(None, 3) == ("ran", 3)


def test_registration_appends_behind_upstreams_classes_and_before_ours(lists):
    register_linear_kernel(OutOfTreeInt8, PlatformEnum.CUDA, "int8")
    cuda = lists["int8"][PlatformEnum.CUDA]
    assert cuda[-2:] == [OutOfTreeInt8, selection.XlaInt8ScaledMMLinearKernel]
    assert choose_kernel(INT8, device="h200").kernel is selection.CutlassInt8ScaledMMLinearKernel


def test_registration_creates_a_missing_list(lists):
    register_linear_kernel(OutOfTreeInt8, PlatformEnum.UNSPECIFIED, "int8")
    assert choose_kernel(INT8, device="unspecified").kernel is OutOfTreeInt8


@pytest.mark.parametrize("kernel_type", ["fp8_block", "MP", "", "int4"])
def test_registration_of_an_unknown_type(kernel_type):
    with pytest.raises(ValueError, match="kernel_type: expected one of mp, int8"):
        register_linear_kernel(OutOfTreeInt8, PlatformEnum.OOT, kernel_type)


@pytest.mark.parametrize("kernel_type", ["mp", "int8", "fp8", "mxfp8", "nvfp4", "mxfp4"])
def test_registration_of_every_type(lists, kernel_type):
    register_linear_kernel(OutOfTreeInt8, PlatformEnum.OOT, kernel_type)
    assert OutOfTreeInt8 in lists[kernel_type][PlatformEnum.OOT]


def test_a_plug_ins_own_config_and_lists():
    """The scaled-mm chooser is generic: it need not know the config's type."""

    class Config:
        """A plug-in's."""

    with using("cpu"):
        served = choose_scaled_mm_linear_kernel(Config(), {PlatformEnum.CPU: [OutOfTreeInt8]})
        with pytest.raises(ValueError, match="Failed to find a kernel"):
            choose_scaled_mm_linear_kernel(Config(), {})
    assert served is OutOfTreeInt8


def test_a_class_that_nothing_runs_is_refused(lists):
    class Unbacked(MPLinearKernel):
        """Declared without a backing."""

    register_linear_kernel(Unbacked, PlatformEnum.OOT)
    choice = choose_kernel(GPTQ, device="oot", quiet=True)
    assert [(r.kernel, r.reason) for r in choice.rejected] == [
        (Unbacked, " Unbacked cannot run here: no implementation backs it yet")
    ]
    assert choice.kernel is selection.XlaMPLinearKernel


# -- bad input ------------------------------------------------------------------------------------


def test_what_is_no_config():
    with pytest.raises(TypeError, match="config: expected a layer config.*got 'w4a16'"):
        choose_kernel("w4a16", device="cpu")


def test_an_unknown_list():
    with pytest.raises(ValueError, match="kind: expected one of mp, int8.*got 'int4'"):
        choose_kernel(GPTQ, kind="int4", device="cpu")


# -- the log --------------------------------------------------------------------------------------


def messages(caplog, level):
    return [r.getMessage() for r in caplog.records if r.levelno == level]


def test_a_choice_is_logged_once_a_kind_of_layer(caplog):
    with caplog.at_level(logging.INFO, "selection"):
        for _ in range(3):
            choose_kernel(GPTQ, device="cpu")
    assert messages(caplog, logging.INFO) == [
        "CPUWNA16LinearKernel serves w4a16 uint4b8, group 128, bfloat16 (before it: "
        "ZentorchWNA16LinearKernel cannot implement due to: requires an AMD Zen CPU)"
    ]


def test_a_slow_fallback_warns_once(caplog):
    with caplog.at_level(logging.WARNING, "selection"):
        for _ in range(3):
            choose_kernel(INT8, device="t4")
    (warning,) = messages(caplog, logging.WARNING)
    assert warning.startswith("CutlassInt8ScaledMMLinearKernel is the slow path for w8a8 int8")
    assert "hopper: needs an NVIDIA GPU of capability 9.x, got Tesla T4" in warning


def test_quiet_logs_nothing(caplog):
    with caplog.at_level(logging.INFO, "selection"):
        choose_kernel(INT8, device="t4", quiet=True)
        selection.explain(GPTQ, device="t4")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("module_name", "logged"), [("layers.0", True), (None, False), ("", False)]
)
def test_init_fp8_logs_the_module_if_it_has_a_name(caplog, module_name, logged):
    keys = selection.kFp8DynamicTokenSym, selection.kFp8StaticChannelSym
    with using("h200"), caplog.at_level(logging.INFO, "selection"):
        selection.init_fp8_linear_kernel(*keys, None, module_name=module_name)
    selected = [text for text in messages(caplog, logging.INFO) if text.startswith("Selected")]
    assert selected == (["Selected CutlassFP8ScaledMMLinearKernel for layers.0"] if logged else [])


def test_init_int8_always_logs_the_module(caplog):
    with using("h200"), caplog.at_level(logging.INFO, "selection"):
        selection.init_int8_linear_kernel(True, False, True, "")
    assert "Selected CutlassInt8ScaledMMLinearKernel for " in messages(caplog, logging.INFO)


def test_a_refused_force_is_logged_once(caplog):
    with using("h200"), caplog.at_level(logging.INFO, "selection"):
        for _ in range(2):
            choose_scaled_mm_linear_kernel(
                INT8, LISTS["int8"], force_kernel=selection.CPUInt8ScaledMMLinearKernel
            )
    forced = [text for text in messages(caplog, logging.INFO) if "was forced" in text]
    assert forced == [
        "CPUInt8ScaledMMLinearKernel was forced but cannot serve: "
        "CPUInt8ScaledMMLinearKernel requires a CPU."
    ]


def test_a_live_platform_serves_every_scheme():
    """On whatever this runs on, without a named device."""
    for scheme in selection.SCHEMES.values():
        choice = choose_kernel(scheme.config(4096, 4096), kind=scheme.kind)
        assert choice.kernel is not None and choice.resolved().name is not None
    assert selection.current_platform is selection.get_platform()
    assert platform_for(selection.current_platform) is selection.current_platform

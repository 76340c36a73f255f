# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Each class's own rules: parents, gates, and the edges of every check, in upstream's order."""

from abc import ABC

import pytest

import selection
from jaxkernels.problem import DEVICES, Device
from jaxkernels.scalar_types import scalar_types as t
from selection import (
    FP8ScaledMMLinearLayerConfig,
    GroupShape,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    PlatformEnum,
    create_fp8_quant_key,
    platform_for,
    using,
)
from selection import kFp8Dynamic64Sym as act_1x64
from selection import kFp8Dynamic128Sym as act_1x128
from selection import kFp8DynamicTensorSym as act_tensor
from selection import kFp8DynamicTokenSym as act_token
from selection import kFp8Static128BlockSym as w_block
from selection import kFp8StaticChannelSym as w_channel
from selection import kFp8StaticTensorSym as w_tensor
from selection import kFp8StaticTokenSym as w_token

CUDA, ROCM, XPU, CPU = PlatformEnum.CUDA, PlatformEnum.ROCM, PlatformEnum.XPU, PlatformEnum.CPU
RDNA3 = platform_for(
    Device("Radeon RX 7900", "rocm", (11, 0), 96, 65536, 6 << 20, 960, {"float16": 123.0}),
    gfx="gfx1100",
)


def mp(
    weight_type=t.uint4b8,
    group=128,
    k=4096,
    n=4096,
    act="bfloat16",
    zp=False,
    gidx=False,
    full_k=None,
    out=None,
):
    return MPLinearLayerConfig((full_k or k, n), (k, n), weight_type, act, group, zp, gidx, out)


def fp8(weight=w_channel, act=act_token, out="bfloat16", shape=(4096, 4096), given="bfloat16"):
    return FP8ScaledMMLinearLayerConfig(weight, act, out, shape, given)


def reason(name, config, device):
    kernel = getattr(selection, name)
    with using(device):
        able, why = kernel.can_implement(config)
    assert able == (why is None)
    return why


def gate(name, device, capability="own"):
    kernel = getattr(selection, name)
    with using(device) as platform:
        if capability == "own":
            own = platform.get_device_capability()
            capability = None if own is None else own.to_int()
        able, why = kernel.is_supported(capability)
    assert able == (why is None)
    return why


# -- declarations ---------------------------------------------------------------------------------

CLASSES = sorted(
    name
    for name in selection.__all__
    if isinstance(getattr(selection, name), type)
    and issubclass(getattr(selection, name), selection.LinearKernel)
)
BASES = {
    *("LinearKernel", "MPLinearKernel", "ScaledMMLinearKernel", "Int8ScaledMMLinearKernel"),
    *("FP8ScaledMMLinearKernel", "MMLinearKernel", "Fp8BlockScaledMMLinearKernel"),
    *("Mxfp8LinearKernel", "MxFp4LinearKernel", "NvFp4LinearKernel"),
    "TorchFP8ScaledMMLinearKernel",
}

# Every name in upstream's tables (spec 1.9a-1.9d and 7.1, versions seed to 0.26).
UPSTREAM = """
CutlassW4A8LinearKernel MacheteLinearKernel AllSparkLinearKernel MarlinLinearKernel
ConchLinearKernel ExllamaLinearKernel TritonW4A16LinearKernel HummingLinearKernel
RDNA3W4A16LinearKernel RDNAHybridW4A16LinearKernel XPUwNa16LinearKernel XPUW4A8IntLinearKernel
Dynamic4bitLinearKernel CPUWNA16LinearKernel ZentorchWNA16LinearKernel
CutlassInt8ScaledMMLinearKernel TritonInt8ScaledMMLinearKernel AiterInt8ScaledMMLinearKernel
CPUInt8ScaledMMLinearKernel ZentorchInt8ScaledMMLinearKernel HummingInt8ScaledMMLinearKernel
FlashInferFP8ScaledMMLinearKernel CutlassFP8ScaledMMLinearKernel
PerTensorTorchFP8ScaledMMLinearKernel ChannelWiseTorchFP8ScaledMMLinearKernel
RowWiseTorchFP8ScaledMMLinearKernel ROCmFP8ScaledMMLinearKernel XPUFP8ScaledMMLinearKernel
XPUW8A16FP8ScaledMMLinearKernel XPUW8A8FP8ScaledMMLinearKernel MarlinFP8ScaledMMLinearKernel
HummingFP8ScaledMMLinearKernel AiterPreshuffledPerTokenFp8ScaledMMLinearKernel
AiterPerTokenFp8ScaledMMLinearKernel AiterHipbMMPerTokenFp8ScaledMMLinearKernel
CutlassFp8BlockScaledMMKernel DeepGemmFp8BlockScaledMMKernel FlashInferFp8BlockScaledMMKernel
FlashInferFp8DeepGEMMDynamicBlockScaledKernel TritonFp8BlockScaledMMKernel
AiterFp8BlockScaledMMKernel CPUFp8BlockScaledMMKernel XPUFp8BlockScaledMMKernel
EmulationMxfp8LinearKernel FlashInferCutlassMxfp8LinearKernel FlashInferCutedslMxfp8LinearKernel
MarlinMxfp8LinearKernel HummingMxfp8LinearKernel RocmDotScaledMxfp8LinearKernel
XPUMxFp8LinearKernel FlashInferMxFp4LinearKernel MarlinMxFp4LinearKernel HummingMxFp4LinearKernel
XPUMxFp4LinearKernel CutlassNvFp4LinearKernel FlashInferCutlassNvFp4LinearKernel
FlashInferCuteDslNvFp4LinearKernel FlashInferB12xNvFp4LinearKernel
FlashInferTrtllmNvFp4LinearKernel FlashInferCudnnNvFp4LinearKernel FbgemmNvFp4LinearKernel
MarlinNvFp4LinearKernel EmulationNvFp4LinearKernel HummingNvFp4LinearKernel
""".split()
OURS = {name for name in CLASSES if name.startswith("Xla")}


def test_every_class_of_upstreams_tables_is_here_and_no_other():
    assert set(CLASSES) - BASES == set(UPSTREAM) | OURS
    assert len(OURS) == 8


@pytest.mark.parametrize("name", sorted(set(CLASSES) - BASES))
def test_a_class_is_a_declaration(name):
    kernel = getattr(selection, name)
    assert kernel.__doc__ and kernel.family and kernel.backing is not None
    assert kernel.backing.op in ("scaled_mm", "mixed_mm", "w4a8_mm")
    assert kernel.backing.implementations[-1] == "xla" and kernel.available_implementations()
    assert all(isinstance(check, selection.checks.Check) for check in kernel.checks)
    assert kernel.weight_layout in ("NK", "KN")


@pytest.mark.parametrize("name", sorted(BASES))
def test_a_base_cannot_be_built(name):
    base = getattr(selection, name)
    with pytest.raises(TypeError):
        base(INT8, ["a"] * 5) if base is not selection.MMLinearKernel else base(INT8)


def test_parents():
    assert selection.TritonInt8ScaledMMLinearKernel.__mro__[1] is (
        selection.CutlassInt8ScaledMMLinearKernel
    )
    assert selection.AiterInt8ScaledMMLinearKernel.__mro__[1] is (
        selection.CutlassInt8ScaledMMLinearKernel
    )
    assert selection.ZentorchWNA16LinearKernel.__mro__[1] is selection.CPUWNA16LinearKernel
    for name in ("PerTensorTorch", "ChannelWiseTorch", "RowWiseTorch"):
        kernel = getattr(selection, f"{name}FP8ScaledMMLinearKernel")
        assert kernel.__mro__[1] is selection.TorchFP8ScaledMMLinearKernel
    block = [getattr(selection, n) for n in UPSTREAM if "Block" in n]
    assert len(block) == 8
    assert all(issubclass(k, selection.Fp8BlockScaledMMLinearKernel) for k in block)


def test_scaled_mm_is_an_abc_and_answers_on_the_class():
    """Upstream's own test of this, in our words."""
    assert issubclass(selection.ScaledMMLinearKernel, ABC)
    for name in ("CPUInt8ScaledMMLinearKernel", "AiterInt8ScaledMMLinearKernel"):
        able, why = getattr(selection, name).is_supported()
        assert isinstance(able, bool) and (why is None or isinstance(why, str))
    for config in (
        Int8ScaledMMLinearLayerConfig(True, False, True),
        Int8ScaledMMLinearLayerConfig(False, True, False),
    ):
        assert selection.CPUInt8ScaledMMLinearKernel.can_implement(config) == (True, None)


def test_mixed_precision_classes_have_no_is_supported():
    assert not hasattr(selection.MacheteLinearKernel, "is_supported")


MINIMUM = {
    **{"CutlassW4A8": 90, "Machete": 90, "AllSpark": 80, "Marlin": 75, "Conch": 80},
    **{"Exllama": 60, "TritonW4A16": 0, "Humming": 75, "RDNA3W4A16": 60, "RDNAHybridW4A16": 0},
    **{"XPUwNa16": -1, "XPUW4A8Int": -1, "Dynamic4bit": 1, "CPUWNA16": -1, "ZentorchWNA16": -1},
}


@pytest.mark.parametrize(("name", "capability"), MINIMUM.items())
def test_minimum_capability(name, capability):
    assert getattr(selection, f"{name}LinearKernel").get_min_capability() == capability


# -- mixed precision ------------------------------------------------------------------------------

W4A8 = {"weight_type": t.int4, "act": "float8_e4m3fn", "out": "bfloat16"}
# (class, device, config, word of the reason or None where it serves)
MIXED = [
    ("CutlassW4A8", "h200", mp(**W4A8), None),
    ("CutlassW4A8", "cpu", mp(**W4A8), "requires CUDA"),
    ("CutlassW4A8", "b200", mp(**W4A8), "exactly 90, this one has 100"),
    ("CutlassW4A8", "h200", mp(t.int4, out="bfloat16"), "activation type bfloat16"),
    ("CutlassW4A8", "h200", mp(**W4A8, gidx=True), "g_idx"),
    ("CutlassW4A8", "h200", mp(**W4A8, zp=True), "zero points"),
    ("CutlassW4A8", "h200", mp(**(W4A8 | {"weight_type": t.uint4b8})), "weight type uint4b8"),
    ("CutlassW4A8", "h200", mp(**W4A8, group=64), "group size 64"),
    ("CutlassW4A8", "h200", mp(**W4A8, k=4096 + 64), "(4160, 4096)"),
    ("CutlassW4A8", "h200", mp(**W4A8, n=4096 + 64), "(4096, 4160)"),
    ("CutlassW4A8", "h200", mp(**(W4A8 | {"out": "float16"})), "output type must be bfloat16"),
    ("CutlassW4A8", "h200", mp(**(W4A8 | {"out": None})), "output type must be bfloat16, got none"),
    ("Machete", "h200", mp(), None),
    ("Machete", "h200", mp(t.uint8b128, -1), None),
    ("Machete", "h200", mp(t.uint4, 64, zp=True), None),
    ("Machete", "h200", mp(t.uint8, zp=True), None),
    ("Machete", "h200", mp(gidx=True), None),
    ("Machete", "cpu", mp(), "requires CUDA"),
    ("Machete", "a100", mp(), "exactly 90, this one has 80"),
    ("Machete", "h200", mp(gidx=True, k=2048, full_k=4096), "sharded"),
    ("Machete", "h200", mp(t.uint4), "weight type uint4 without zero points"),
    ("Machete", "h200", mp(zp=True), "weight type uint4b8 with zero points"),
    ("Machete", "h200", mp(group=32), "group size 32"),
    ("Machete", "h200", mp(group=64, act="float8_e4m3fn"), "for float8_e4m3fn"),
    ("Machete", "h200", mp(group=128, act="int8"), None),
    ("Machete", "h200", mp(k=4096 + 32), "in-features 4128 are not a multiple of 64"),
    ("Machete", "h200", mp(k=4096 + 64), None),
    ("Machete", "h200", mp(n=4096 + 64), "out-features 4160 are not a multiple of 128"),
    ("AllSpark", "a100", mp(t.uint8b128, -1), None),
    ("AllSpark", "l4", mp(t.uint8b128, -1, act="float16"), None),
    ("AllSpark", "h200", mp(t.uint8b128, -1), "unsupported capability"),
    ("AllSpark", "t4", mp(t.uint8b128, -1), "unsupported capability"),
    ("AllSpark", "cpu", mp(t.uint8b128, -1), "unsupported capability"),
    ("AllSpark", "a100", mp(t.uint8b128, -1, gidx=True), "g_idx"),
    ("AllSpark", "a100", mp(t.uint8b128, -1, zp=True), "zero points"),
    ("AllSpark", "a100", mp(t.uint8b128, 128), "group size 128"),
    ("AllSpark", "a100", mp(t.uint4b8, -1), "weight type uint4b8"),
    ("AllSpark", "a100", mp(t.uint8b128, -1, n=4096 + 8), "(4096, 4104)"),
    ("AllSpark", "a100", mp(t.uint8b128, -1, k=4096 + 8), "(4104, 4096)"),
    ("AllSpark", "a100", mp(t.uint8b128, -1, act="float32"), "activation type float32"),
    ("Marlin", "a100", mp(), None),
    ("Marlin", "t4", mp(t.uint8b128, 32), None),
    ("Marlin", "a100", mp(t.uint4, zp=True), None),
    ("Marlin", "a100", mp(t.float8_e4m3fn, -1), None),
    ("Marlin", "a100", mp(t.float4_e2m1f, 32), None),
    ("Marlin", "a100", mp(gidx=True, k=2048, full_k=4096), None),
    ("Marlin", "a100", mp(act="float32"), None),
    ("Marlin", "mi300x", mp(), "requires CUDA"),
    ("Marlin", "v100", mp(), "is not one of none"),
    ("Marlin", "a100", mp(t.uint8, zp=True), "weight type uint8 with zero points"),
    ("Marlin", "a100", mp(t.uint4), "weight type uint4 without zero points"),
    ("Marlin", "a100", mp(group=256), "group size 256"),
    ("Marlin", "a100", mp(n=4096 + 32), "out-features 4128 are not a multiple of 64"),
    ("Marlin", "a100", mp(k=4096 + 64), "in-features 4160 are not a multiple of 128"),
    ("Marlin", "a100", mp(group=-1, k=128, full_k=4096), None),
    ("Conch", "a100", mp(), None),
    ("Conch", "mi300x", mp(t.uint8, -1, zp=True), None),
    ("Conch", "a100", mp(t.int4), "weight type int4"),
    ("Conch", "a100", mp(group=64), "group size 64"),
    ("Exllama", "a100", mp(act="float16"), None),
    ("Exllama", "mi300x", mp(t.uint8b128, 32, act="float16"), None),
    ("Exllama", "xpu", mp(act="float16"), "requires ROCm or CUDA"),
    ("Exllama", "a100", mp(act="float16", gidx=True, k=2048, full_k=4096), "sharded"),
    ("Exllama", "a100", mp(act="float16", n=4100), "out-features 4100 are not a multiple of 8"),
    ("Exllama", "a100", mp(t.uint8b128, 128, act="float16", n=4100), None),
    ("Exllama", "a100", mp(), "activation type bfloat16"),
    ("Exllama", "a100", mp(t.uint4, act="float16"), "weight type uint4"),
    ("Exllama", "a100", mp(group=96, act="float16"), "does not divide"),
    ("TritonW4A16", "mi300x", mp(), None),
    ("TritonW4A16", "a100", mp(t.uint4, 256, zp=True, act="float16"), None),
    ("TritonW4A16", "a100", mp(group=4096), None),
    ("TritonW4A16", "a100", mp(group=-1), None),
    ("TritonW4A16", "xpu", mp(), "requires ROCm or CUDA"),
    ("TritonW4A16", "a100", mp(t.uint8b128), "weight type uint8b128"),
    ("TritonW4A16", "a100", mp(act="float32"), "activation type float32"),
    ("TritonW4A16", "a100", mp(n=4100), "out-features 4100 are not a multiple of 8"),
    ("TritonW4A16", "a100", mp(gidx=True), "g_idx"),
    ("TritonW4A16", "a100", mp(group=512), "group size 512"),
    ("TritonW4A16", "a100", mp(group=-1, k=2048, full_k=4096), "the group size 4096"),
    ("Humming", "t4", mp(t.uint2b2, 16, n=7), None),
    ("Humming", "mi300x", mp(), "requires CUDA"),
    ("Humming", "a100", mp(gidx=True), "g_idx"),
    ("RDNA3W4A16", RDNA3, mp(gidx=True), None),
    ("RDNA3W4A16", "a100", mp(), "requires ROCm"),
    ("RDNA3W4A16", "mi300x", mp(), "this device is gfx942"),
    ("RDNA3W4A16", RDNA3, mp(act="float32"), "activation type float32"),
    ("RDNA3W4A16", RDNA3, mp(t.uint4, zp=True), "weight type uint4"),
    ("RDNA3W4A16", RDNA3, mp(group=-1), "group size -1 is not positive"),
    ("RDNA3W4A16", RDNA3, mp(group=96), "does not divide"),
    ("RDNA3W4A16", RDNA3, mp(n=4100), "multiple of 8"),
    ("RDNA3W4A16", RDNA3, mp(gidx=True, k=2048, full_k=4096), "sharded"),
    ("RDNAHybridW4A16", RDNA3, mp(t.uint4, 32, zp=True), None),
    ("RDNAHybridW4A16", "mi300x", mp(), "RDNA3 or RDNA4"),
    ("RDNAHybridW4A16", RDNA3, mp(t.uint8b128), "weight type uint8b128"),
    ("RDNAHybridW4A16", RDNA3, mp(act="float32"), "activation type float32"),
    ("RDNAHybridW4A16", RDNA3, mp(gidx=True), "g_idx"),
    ("RDNAHybridW4A16", RDNA3, mp(group=256), "group size 256"),
    ("RDNAHybridW4A16", RDNA3, mp(k=4096 + 8), "multiple of 16"),
    ("RDNAHybridW4A16", RDNA3, mp(k=4096 + 16, group=32), "the group size 32"),
    ("XPUwNa16", "xpu", mp(gidx=True), None),
    ("XPUwNa16", "xpu", mp(t.uint4, 96, zp=True), None),
    ("XPUwNa16", "cpu", mp(), "Intel XPU"),
    ("XPUwNa16", "xpu", mp(act="float32"), "activation type float32"),
    ("XPUwNa16", "xpu", mp(t.uint8b128), "weight type uint8b128"),
    ("XPUwNa16", "xpu", mp(group=48), "multiple of 32"),
    ("XPUwNa16", "xpu", mp(k=4096 + 16, group=-1), "in-features 4112"),
    ("XPUwNa16", "xpu", mp(n=4096 + 16), "out-features 4112"),
    ("XPUW4A8Int", "xpu", mp(t.int4, 32, act="float16"), None),
    ("XPUW4A8Int", "h200", mp(t.int4), "Intel XPU"),
    ("XPUW4A8Int", "xpu", mp(t.int4, act="float32"), "activation type float32"),
    ("XPUW4A8Int", "xpu", mp(t.uint4b8), "weight type uint4b8"),
    ("XPUW4A8Int", "xpu", mp(t.int4, zp=True), "zero points"),
    ("XPUW4A8Int", "xpu", mp(t.int4, 16), "multiple of 32"),
    ("XPUW4A8Int", "xpu", mp(t.int4, n=4100), "(4096, 4100)"),
    ("Dynamic4bit", "cpu", mp(t.int4, 32, act="float32"), None),
    ("Dynamic4bit", "cpu", mp(t.int4, -1, act="int8"), None),
    ("Dynamic4bit", "h200", mp(t.int4), "requires a CPU"),
    ("Dynamic4bit", "cpu", mp(t.uint4b8), "weight type uint4b8"),
    ("Dynamic4bit", "cpu", mp(t.int4, 96), "does not divide"),
    ("Dynamic4bit", platform_for("cpu", features=["arm"]), mp(t.int4, act="int8"), "type int8"),
    ("CPUWNA16", "cpu", mp(act="float32", gidx=True), None),
    ("CPUWNA16", "cpu", mp(t.uint4, 2, zp=True), None),
    ("CPUWNA16", "xpu", mp(), "requires a CPU"),
    ("CPUWNA16", "cpu", mp(t.uint8b128), "weight type uint8b128"),
    ("CPUWNA16", "cpu", mp(group=33), "multiple of 2"),
    ("CPUWNA16", "cpu", mp(k=4096 + 16, group=16), "in-features 4112"),
    ("CPUWNA16", "cpu", mp(n=4096 + 16), "out-features 4112"),
    ("ZentorchWNA16", platform_for("cpu", features=["zen"]), mp(), None),
    ("ZentorchWNA16", "cpu", mp(), "AMD Zen"),
    ("ZentorchWNA16", "cpu", mp(t.uint8b128), "weight type"),
    ("ZentorchWNA16", platform_for("cpu", features=["zen"], packages=[]), mp(), "zentorch"),
    ("ZentorchWNA16", platform_for("cpu", features=["zen"]), mp(gidx=True), "g_idx"),
    ("XlaMP", "unspecified", mp(n=7), None),
]


@pytest.mark.parametrize(("name", "device", "config", "word"), MIXED)
def test_mixed_precision_checks(name, device, config, word):
    why = reason(f"{name}LinearKernel", config, device)
    assert (why is None) if word is None else (why is not None and word in why), why


def test_the_first_failing_check_gives_the_reason():
    """Everything about this layer is wrong for CutlassW4A8; undo the faults in upstream's order."""
    faults = [
        ("requires CUDA", "cpu", {}),
        ("exactly 90", "a100", {}),
        ("activation type", "h200", {}),
        ("g_idx", "h200", {"act": "float8_e4m3fn"}),
        ("zero points", "h200", {"gidx": False}),
        ("weight type", "h200", {"zp": False}),
        ("group size", "h200", {"weight_type": t.int4}),
        ("weight shape", "h200", {"group": 128}),
        ("output type", "h200", {"k": 4096}),
        (None, "h200", {"out": "bfloat16"}),
    ]
    layer = dict(weight_type=t.uint8, group=96, k=4100, act="float32", zp=True, gidx=True)
    for word, device, fix in faults:
        layer |= fix
        why = reason("CutlassW4A8LinearKernel", mp(**layer), device)
        assert (why is None) if word is None else word in why


# -- int8 -----------------------------------------------------------------------------------------

INT8 = Int8ScaledMMLinearLayerConfig(False, True, True)
ALL_INT8 = [Int8ScaledMMLinearLayerConfig(s, c, y) for s in (0, 1) for c in (0, 1) for y in (0, 1)]
AITER = {"VLLM_ROCM_USE_AITER": "1"}
ZEN = platform_for("cpu", features=["zen"])


def with_packages(device, *packages):
    return platform_for(device, packages=packages)


GATES = [
    ("CutlassInt8ScaledMM", "t4", {}, None),
    ("CutlassInt8ScaledMM", "b200", {}, None),
    ("CutlassInt8ScaledMM", "mi300x", {}, "requires CUDA"),
    ("TritonInt8ScaledMM", "mi300x", {}, None),
    ("TritonInt8ScaledMM", "h200", {}, None),
    ("TritonInt8ScaledMM", "xpu", {}, "requires ROCm or CUDA"),
    ("AiterInt8ScaledMM", "mi300x", AITER, None),
    ("AiterInt8ScaledMM", "h200", AITER, "Requires ROCm."),
    ("AiterInt8ScaledMM", "mi300x", {}, "VLLM_ROCM_USE_AITER is off"),
    (
        "AiterInt8ScaledMM",
        "mi300x",
        AITER | {"VLLM_ROCM_USE_AITER_LINEAR": "0"},
        "VLLM_ROCM_USE_AITER_LINEAR is off",
    ),
    ("AiterInt8ScaledMM", with_packages("mi300x"), AITER, "package aiter"),
    ("CPUInt8ScaledMM", "cpu", {}, None),
    ("CPUInt8ScaledMM", "tpu-v5e", {}, "requires a CPU"),
    ("ZentorchInt8ScaledMM", ZEN, {}, None),
    ("ZentorchInt8ScaledMM", "cpu", {}, "AMD Zen"),
    ("ZentorchInt8ScaledMM", "h200", {}, "requires a CPU"),
    ("HummingInt8ScaledMM", "t4", {}, None),
    ("HummingInt8ScaledMM", "v100", {}, "capability 75"),
    ("XlaInt8ScaledMM", "unspecified", {}, None),
    # fp8
    ("FlashInferFP8ScaledMM", "b200", {}, None),
    ("FlashInferFP8ScaledMM", "h200", {}, "capability 100, got 90"),
    ("FlashInferFP8ScaledMM", with_packages("b200"), {}, "flashinfer"),
    ("FlashInferFP8ScaledMM", "mi300x", {}, "requires CUDA"),
    ("CutlassFP8ScaledMM", "t4", {}, None),
    ("CutlassFP8ScaledMM", "cpu", {}, "requires CUDA"),
    ("PerTensorTorchFP8ScaledMM", "cpu", {}, None),
    ("PerTensorTorchFP8ScaledMM", "l4", {}, None),
    ("PerTensorTorchFP8ScaledMM", "a100", {}, "capability 89, got 80"),
    ("ChannelWiseTorchFP8ScaledMM", "mi300x", {}, None),
    ("ChannelWiseTorchFP8ScaledMM", "xpu", {}, "requires ROCm, CUDA or a CPU"),
    ("RowWiseTorchFP8ScaledMM", "mi300x", {}, None),
    ("RowWiseTorchFP8ScaledMM", "h200", {}, "requires ROCm"),
    ("RowWiseTorchFP8ScaledMM", "mi250", {}, "MI300 series"),
    ("ROCmFP8ScaledMM", "mi300x", {}, None),
    ("ROCmFP8ScaledMM", "mi250", {}, "this device is gfx90a"),
    ("ROCmFP8ScaledMM", "mi300x", {"VLLM_ROCM_USE_SKINNY_GEMM": "0"}, "SKINNY_GEMM is off"),
    ("XPUFP8ScaledMM", "xpu", {}, None),
    ("XPUW8A16FP8ScaledMM", "cpu", {}, "Intel XPU"),
    ("XPUW8A8FP8ScaledMM", "xpu", {}, None),
    ("MarlinFP8ScaledMM", "a100", {}, None),
    ("MarlinFP8ScaledMM", "t4", {}, None),
    ("MarlinFP8ScaledMM", "v100", {}, "capability 75"),
    ("MarlinFP8ScaledMM", "l4", {}, "natively"),
    ("MarlinFP8ScaledMM", "l4", {"VLLM_TEST_FORCE_FP8_MARLIN": "1"}, None),
    ("MarlinFP8ScaledMM", "a100", {"VLLM_BATCH_INVARIANT": "1"}, "VLLM_BATCH_INVARIANT is on"),
    ("MarlinFP8ScaledMM", "mi300x", {}, "requires CUDA"),
    ("HummingFP8ScaledMM", "h200", {}, None),
    ("HummingFP8ScaledMM", with_packages("h200", "conch"), {}, "humming"),
    ("AiterPreshuffledPerTokenFp8ScaledMM", "mi300x", AITER, None),
    ("AiterPerTokenFp8ScaledMM", "mi300x", {}, "VLLM_ROCM_USE_AITER is off"),
    ("AiterHipbMMPerTokenFp8ScaledMM", "mi300x", AITER, "HIPBMM is off"),
    (
        "AiterHipbMMPerTokenFp8ScaledMM",
        "mi300x",
        AITER | {"VLLM_ROCM_USE_AITER_LINEAR_HIPBMM": "1"},
        None,
    ),
]
BLOCK_GATES = [
    ("CutlassFp8BlockScaledMM", "h200", {}, None),
    ("CutlassFp8BlockScaledMM", "l4", {}, "capability 90"),
    ("DeepGemmFp8BlockScaledMM", "h200", {}, None),
    ("DeepGemmFp8BlockScaledMM", "b200", {}, None),
    ("DeepGemmFp8BlockScaledMM", "a100", {}, "Hopper or Blackwell"),
    ("DeepGemmFp8BlockScaledMM", "h200", {"VLLM_USE_DEEP_GEMM": "0"}, "DEEP_GEMM is off"),
    ("DeepGemmFp8BlockScaledMM", with_packages("h200"), {}, "deep_gemm"),
    ("FlashInferFp8BlockScaledMM", "h200", {}, None),
    ("FlashInferFp8BlockScaledMM", "b200", {}, "exactly 90"),
    (
        "FlashInferFp8BlockScaledMM",
        "h200",
        {"VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER": "0"},
        "FLASHINFER is off",
    ),
    ("FlashInferFp8DeepGEMMDynamicBlockScaled", "h200", {}, None),
    (
        "FlashInferFp8DeepGEMMDynamicBlockScaled",
        "b200",
        {},
        "base: requires a device of capability exactly 90, this one has 100; fallback: supported",
    ),
    (
        "FlashInferFp8DeepGEMMDynamicBlockScaled",
        with_packages("h200", "flashinfer"),
        {},
        "base: supported; fallback: needs the package deep_gemm",
    ),
    ("TritonFp8BlockScaledMM", "xpu", {}, None),
    ("TritonFp8BlockScaledMM", "cpu", {}, "requires ROCm, CUDA or an Intel XPU"),
    ("AiterFp8BlockScaledMM", "mi300x", AITER, None),
    ("AiterFp8BlockScaledMM", "mi300x", {}, "VLLM_ROCM_USE_AITER is off"),
    ("CPUFp8BlockScaledMM", platform_for("cpu", features=["amx"]), {}, None),
    ("CPUFp8BlockScaledMM", "cpu", {}, "AMX"),
    ("XPUFp8BlockScaledMM", "xpu", {}, None),
    ("XPUFp8BlockScaledMM", "h200", {}, "Intel XPU"),
]
MICRO_GATES = [
    ("FlashInferCutedslMxfp8", "b200", None),
    ("FlashInferCutedslMxfp8", "h200", "10.x"),
    ("FlashInferCutlassMxfp8", "b200", None),
    ("FlashInferCutlassMxfp8", "cpu", "this one has none"),
    ("MarlinMxfp8", "t4", None),
    ("MarlinMxfp8", "v100", "capability 75"),
    ("EmulationMxfp8", "unspecified", None),
    ("HummingMxfp8", "t4", None),
    ("HummingMxfp8", "mi300x", "requires CUDA"),
    ("RocmDotScaledMxfp8", "mi300x", "CDNA4"),
    ("RocmDotScaledMxfp8", platform_for("mi300x", gfx="gfx950"), None),
    ("XPUMxFp8", "xpu", None),
    ("XPUMxFp8", "cpu", "Intel XPU"),
    ("FlashInferMxFp4", "b200", None),
    ("FlashInferMxFp4", "h200", "capability 100"),
    ("MarlinMxFp4", "t4", None),
    ("MarlinMxFp4", "mi300x", "requires CUDA"),
    ("HummingMxFp4", "v100", "capability 75"),
    ("XPUMxFp4", "xpu", None),
    ("CutlassNvFp4", "b200", None),
    ("CutlassNvFp4", "h200", "fp4 natively"),
    ("FlashInferCutlassNvFp4", "b200", None),
    ("FlashInferCutlassNvFp4", with_packages("b200"), "flashinfer"),
    ("FlashInferCuteDslNvFp4", "b200", None),
    ("FlashInferCuteDslNvFp4", "a100", "10.x"),
    ("FlashInferTrtllmNvFp4", "a100", None),
    ("FlashInferCudnnNvFp4", with_packages("b200"), "flashinfer"),
    ("FlashInferB12xNvFp4", "b200", "capability 120"),
    ("FbgemmNvFp4", with_packages("b200"), "fbgemm_gpu"),
    ("MarlinNvFp4", "t4", None),
    ("EmulationNvFp4", "cpu", None),
    ("HummingNvFp4", "h200", None),
]


@pytest.mark.parametrize(
    ("name", "device", "environment", "word"),
    [(f"{name}LinearKernel", *rest) for name, *rest in GATES]
    + [(f"{name}Kernel", *rest) for name, *rest in BLOCK_GATES]
    + [(f"{name}LinearKernel", device, {}, word) for name, device, word in MICRO_GATES],
)
def test_gates(monkeypatch, name, device, environment, word):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    why = gate(name, device)
    assert (why is None) if word is None else (why is not None and word in why), why


@pytest.mark.parametrize(
    ("name", "device", "least"),
    [
        ("FlashInferFP8ScaledMMLinearKernel", "h200", 100),
        ("PerTensorTorchFP8ScaledMMLinearKernel", "h200", 89),
        ("RowWiseTorchFP8ScaledMMLinearKernel", "mi300x", 94),
    ],
)
def test_capability_passed_in_is_judged_and_none_is_skipped(name, device, least):
    assert gate(name, device, None) is None
    assert gate(name, device, least) is None
    assert f"requires compute capability {least}, got {least - 1}" in gate(name, device, least - 1)


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("CutlassInt8", lambda c: True),
        ("TritonInt8", lambda c: True),
        ("CPUInt8", lambda c: True),
        ("HummingInt8", lambda c: True),
        ("XlaInt8", lambda c: True),
        ("AiterInt8", lambda c: c.input_symmetric),
        (
            "ZentorchInt8",
            lambda c: c.input_symmetric and c.is_channelwise and not c.is_static_input_scheme,
        ),
    ],
)
def test_int8_configs(name, accepted):
    kernel = getattr(selection, f"{name}ScaledMMLinearKernel")
    for config in ALL_INT8:
        assert kernel.can_implement(config)[0] == bool(accepted(config))


def test_zentorch_asks_dynamic_then_symmetric_then_channelwise():
    kernel = selection.ZentorchInt8ScaledMMLinearKernel
    words = ["dynamic", "symmetric", "per channel"]
    for config, word in zip([(1, 0, 0), (0, 0, 0), (0, 0, 1)], words, strict=True):
        assert word in kernel.can_implement(Int8ScaledMMLinearLayerConfig(*config))[1]


# -- fp8 ------------------------------------------------------------------------------------------

FP8 = [
    ("FlashInferFP8", fp8(w_tensor, w_tensor), None),
    ("FlashInferFP8", fp8(w_tensor, act_token), "per-tensor"),
    ("FlashInferFP8", fp8(w_channel, act_tensor), "per-tensor"),
    ("CutlassFP8", fp8(w_block, act_1x64), None),
    ("PerTensorTorchFP8", fp8(w_tensor, act_tensor), None),
    ("PerTensorTorchFP8", fp8(w_token, act_tensor), "per-tensor"),
    ("ChannelWiseTorchFP8", fp8(w_tensor, act_tensor), "another kernel"),
    ("ChannelWiseTorchFP8", fp8(w_token, act_token), None),
    ("ChannelWiseTorchFP8", fp8(w_tensor, act_token), None),
    ("ChannelWiseTorchFP8", fp8(w_block, act_1x128), None),
    ("RowWiseTorchFP8", fp8(), None),
    ("RowWiseTorchFP8", fp8(w_token), None),
    ("RowWiseTorchFP8", fp8(out=None), None),
    ("RowWiseTorchFP8", fp8(w_tensor, out="float16"), "float16"),
    ("RowWiseTorchFP8", fp8(w_tensor), "not per tensor"),
    ("RowWiseTorchFP8", fp8(act=act_tensor), "not per tensor"),
    ("ROCmFP8", fp8(w_tensor, w_tensor), None),
    ("ROCmFP8", fp8(), "per-tensor"),
    ("XPUFP8", fp8(w_block), None),
    ("XPUW8A16FP8", fp8(), None),
    ("XPUW8A16FP8", fp8(w_tensor), None),
    ("XPUW8A16FP8", fp8(w_block), "weight format"),
    ("XPUW8A8FP8", fp8(w_tensor, w_tensor), None),
    ("XPUW8A8FP8", fp8(w_channel, w_token), None),
    ("XPUW8A8FP8", fp8(w_token), "weight format"),
    ("XPUW8A8FP8", fp8(act=act_1x128), "activation format"),
    ("MarlinFP8", fp8(w_block, act_1x128), None),
    ("HummingFP8", fp8(w_block, act_1x128), None),
    ("AiterPreshuffledPerTokenFp8", fp8(), None),
    ("AiterPreshuffledPerTokenFp8", fp8(shape=None), "shape"),
    ("AiterPreshuffledPerTokenFp8", fp8(out="float16"), "output type float16"),
    ("AiterPreshuffledPerTokenFp8", fp8(w_token), "per-channel"),
    ("AiterPreshuffledPerTokenFp8", fp8(shape=(4096, 4104)), "(4096, 4104)"),
    ("AiterPerTokenFp8", fp8(out="float16", shape=(4095, 4095)), None),
    ("AiterPerTokenFp8", fp8(act=act_tensor), "per-token"),
    ("AiterHipbMMPerTokenFp8", fp8(shape=(16, 16)), None),
    ("AiterHipbMMPerTokenFp8", fp8(shape=(8, 16)), "fewer than 16"),
    ("AiterHipbMMPerTokenFp8", fp8(shape=(24, 16)), "(24, 16)"),
]
STATIC = create_fp8_quant_key(True, GroupShape(1, 128))
BLOCK = [
    ("CutlassFp8BlockScaledMM", fp8(w_block, act_1x128, "float16"), None),
    ("CutlassFp8BlockScaledMM", fp8(w_block, STATIC), "static activation scales"),
    ("CutlassFp8BlockScaledMM", fp8(w_block, act_1x64), "1x128, got 1x64"),
    ("DeepGemmFp8BlockScaledMM", fp8(w_block, act_1x128, shape=(64, 128)), None),
    ("DeepGemmFp8BlockScaledMM", fp8(w_block, STATIC, "float16"), "static activation scales"),
    ("DeepGemmFp8BlockScaledMM", fp8(w_block, act_1x64, "float16"), "output type float16"),
    ("DeepGemmFp8BlockScaledMM", fp8(w_block, act_1x64), "1x128"),
    ("DeepGemmFp8BlockScaledMM", fp8(w_block, act_1x128, shape=(32, 128)), "(32, 128)"),
    ("DeepGemmFp8BlockScaledMM", fp8(w_block, act_1x128, shape=(64, 64)), "(64, 64)"),
    ("DeepGemmFp8BlockScaledMM", fp8(w_block, act_1x128, shape=None), "None"),
    ("FlashInferFp8BlockScaledMM", fp8(w_block, act_1x128), None),
    ("FlashInferFp8BlockScaledMM", fp8(w_block, act_1x128, given="float16"), "input type float16"),
    ("FlashInferFp8BlockScaledMM", fp8(w_block, act_1x128, given=None), "input type none"),
    ("FlashInferFp8DeepGEMMDynamicBlockScaled", fp8(w_block, act_1x128), None),
    (
        "FlashInferFp8DeepGEMMDynamicBlockScaled",
        fp8(w_block, act_1x128, given="float16"),
        "input type float16",
    ),
    ("TritonFp8BlockScaledMM", fp8(w_block, act_1x128, "float16", None), None),
    ("TritonFp8BlockScaledMM", fp8(w_block, STATIC), "static activation scales"),
    ("AiterFp8BlockScaledMM", fp8(w_block, act_1x64), "1x128"),
    ("CPUFp8BlockScaledMM", fp8(w_block, STATIC), None),
    ("CPUFp8BlockScaledMM", fp8(create_fp8_quant_key(True, GroupShape(32, 128))), None),
    ("CPUFp8BlockScaledMM", fp8(create_fp8_quant_key(True, GroupShape(48, 128))), "multiple of 32"),
    ("CPUFp8BlockScaledMM", fp8(create_fp8_quant_key(True, GroupShape(32, 64))), "needs 128"),
    ("CPUFp8BlockScaledMM", fp8(w_block, act_1x128, "float16"), "output type float16"),
    ("XPUFp8BlockScaledMM", fp8(w_block, act_1x128), None),
    ("XPUFp8BlockScaledMM", fp8(w_block, STATIC), "static activation scales"),
]


@pytest.mark.parametrize(
    ("name", "config", "word"),
    [(f"{name}ScaledMMLinearKernel", *rest) for name, *rest in FP8]
    + [(f"{name}Kernel", *rest) for name, *rest in BLOCK],
)
def test_fp8_configs(name, config, word):
    why = reason(name, config, "h200")
    assert (why is None) if word is None else (why is not None and word in why), why


@pytest.mark.parametrize(
    ("name", "device", "taken"),
    [
        ("FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "h200", True),
        ("DeepGemmFp8BlockScaledMMKernel", "h200", True),
        ("AiterFp8BlockScaledMMKernel", "mi300x", True),
        ("XPUFp8BlockScaledMMKernel", "xpu", True),
        ("MarlinFP8ScaledMMLinearKernel", "a100", True),
        ("HummingFP8ScaledMMLinearKernel", "h200", True),
        ("TritonFp8BlockScaledMMKernel", "mi300x", True),
        ("TritonFp8BlockScaledMMKernel", "xpu", True),
        ("TritonFp8BlockScaledMMKernel", "h200", False),
        ("CutlassFp8BlockScaledMMKernel", "h200", False),
        ("CPUFp8BlockScaledMMKernel", "cpu", False),
    ],
)
@pytest.mark.parametrize("scale_dtype", ["uint8", "float8_e8m0fnu"])
def test_power_of_two_block_scales(name, device, taken, scale_dtype):
    """Upstream's test of which block kernels take E8M0 weight scales, in our words."""
    key = create_fp8_quant_key(True, GroupShape(128, 128), scale_dtype=scale_dtype)
    why = reason(name, fp8(key, act_1x128), device)
    assert (why is None) if taken else f"weight scales of {scale_dtype} are unsupported" in why


# -- priority lists -------------------------------------------------------------------------------


def names(lists, platform):
    kernels = [kernel.__name__ for kernel in lists[platform]]
    for suffix in ("LinearKernel", "Kernel", "BlockScaled", "ScaledMM"):
        kernels = [name.removesuffix(suffix) for name in kernels]
    return " ".join(kernels)


# Spec 1.6, 0.26 with what the seed has and 0.26 keeps; ours last.
LISTS = {
    ("_POSSIBLE_INT8_KERNELS", CUDA): "CutlassInt8 TritonInt8 HummingInt8 XlaInt8",
    ("_POSSIBLE_INT8_KERNELS", ROCM): "AiterInt8 TritonInt8 XlaInt8",
    ("_POSSIBLE_INT8_KERNELS", CPU): "ZentorchInt8 CPUInt8 XlaInt8",
    ("_POSSIBLE_INT8_KERNELS", XPU): "XlaInt8",
    ("_POSSIBLE_FP8_KERNELS", CUDA): "MarlinFP8 FlashInferFP8 CutlassFP8 PerTensorTorchFP8 "
    "ChannelWiseTorchFP8 HummingFP8 XlaFP8 XlaW8A16FP8",
    ("_POSSIBLE_FP8_KERNELS", ROCM): "AiterHipbMMPerTokenFp8 AiterPreshuffledPerTokenFp8 "
    "AiterPerTokenFp8 ROCmFP8 PerTensorTorchFP8 RowWiseTorchFP8 ChannelWiseTorchFP8 XlaFP8 "
    "XlaW8A16FP8",
    ("_POSSIBLE_FP8_KERNELS", CPU): "PerTensorTorchFP8 ChannelWiseTorchFP8 XlaFP8 XlaW8A16FP8",
    ("_POSSIBLE_FP8_KERNELS", XPU): "XPUW8A16FP8 XPUW8A8FP8 XlaFP8 XlaW8A16FP8",
    ("_POSSIBLE_FP8_BLOCK_KERNELS", CUDA): "FlashInferFp8DeepGEMMDynamic DeepGemmFp8Block "
    "CutlassFp8Block MarlinFP8 TritonFp8Block HummingFP8 XlaFp8Block XlaW8A16FP8",
    ("_POSSIBLE_FP8_BLOCK_KERNELS", ROCM): "AiterFp8Block TritonFp8Block XlaFp8Block XlaW8A16FP8",
    ("_POSSIBLE_FP8_BLOCK_KERNELS", CPU): "CPUFp8Block XlaFp8Block XlaW8A16FP8",
    ("_POSSIBLE_FP8_BLOCK_KERNELS", XPU): "XPUFp8Block TritonFp8Block XlaFp8Block XlaW8A16FP8",
    ("_POSSIBLE_WFP8A16_KERNELS", CUDA): "HummingFP8 MarlinFP8 XlaW8A16FP8",
    ("_POSSIBLE_WFP8A16_KERNELS", ROCM): "XlaW8A16FP8",
    ("_POSSIBLE_WFP8A16_KERNELS", XPU): "XPUW8A16FP8 XlaW8A16FP8",
    ("_POSSIBLE_KERNELS", CUDA): "CutlassW4A8 Machete AllSpark Marlin Conch Exllama TritonW4A16 "
    "Humming XlaMP",
    ("_POSSIBLE_KERNELS", ROCM): "RDNA3W4A16 RDNAHybridW4A16 TritonW4A16 Conch Exllama XlaMP",
    ("_POSSIBLE_KERNELS", XPU): "XPUW4A8Int XPUwNa16 XlaMP",
    ("_POSSIBLE_KERNELS", CPU): "Dynamic4bit ZentorchWNA16 CPUWNA16 XlaMP",
    ("_POSSIBLE_MXFP8_KERNELS", CUDA): "FlashInferCutedslMxfp8 FlashInferCutlassMxfp8 MarlinMxfp8 "
    "EmulationMxfp8 HummingMxfp8 XlaMxfp8",
    ("_POSSIBLE_MXFP8_KERNELS", ROCM): "RocmDotScaledMxfp8 EmulationMxfp8 XlaMxfp8",
    ("_POSSIBLE_MXFP8_KERNELS", XPU): "XPUMxFp8 EmulationMxfp8 XlaMxfp8",
    ("_POSSIBLE_NVFP4_KERNELS", CUDA): "FlashInferCuteDslNvFp4 FlashInferCutlassNvFp4 "
    "CutlassNvFp4 MarlinNvFp4 FlashInferTrtllmNvFp4 FlashInferCudnnNvFp4 FbgemmNvFp4 "
    "EmulationNvFp4 HummingNvFp4 XlaNvFp4",
    ("_POSSIBLE_NVFP4_KERNELS", ROCM): "EmulationNvFp4 XlaNvFp4",
    ("_POSSIBLE_MXFP4_KERNELS", CUDA): "FlashInferMxFp4 MarlinMxFp4 HummingMxFp4 XlaMxFp4",
    ("_POSSIBLE_MXFP4_KERNELS", XPU): "XPUMxFp4 XlaMxFp4",
}


@pytest.mark.parametrize(("where", "expected"), LISTS.items())
def test_priority_lists(where, expected):
    name, platform = where
    assert names(getattr(selection, name), platform) == expected


def test_every_known_device_has_a_list_in_every_family():
    for lists in selection.lists.LISTS.values():
        for name in DEVICES:
            assert platform_for(name)._enum in lists
        assert PlatformEnum.UNSPECIFIED not in lists


# -- parameters and the runtime -------------------------------------------------------------------


class Layer:
    """Bare attributes, as on a torch module."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def test_int8_layer_parameters_by_name_and_missing_ones_are_none():
    with using("cpu"):
        kernel = selection.init_int8_linear_kernel(True, False, True, "m")
    layer = Layer(weight=1, weight_scale=2, input_scale=None)
    assert kernel._get_layer_params(layer) == (1, 2, None, None, None)
    assert kernel._get_layer_params(layer).azp_adj is None
    with pytest.raises(AttributeError):
        kernel._get_layer_params(Layer(weight=1))


def test_block_layers_prefer_the_inverse_scale():
    with using("cpu"):
        kernel = selection.XlaFp8BlockScaledMMKernel(fp8(w_block, act_1x128))
    assert kernel._get_layer_params(Layer(weight=1, weight_scale=2)).weight_scale == 2
    both = Layer(weight=1, weight_scale=2, weight_scale_inv=3)
    assert kernel._get_layer_params(both).weight_scale == 3


def test_mixed_precision_parameters_are_named_and_may_be_absent():
    """GPTQ names qzeros and g_idx always, though the layer may not have them."""
    with using("cpu"):
        kernel = selection.XlaMPLinearKernel(mp(), "qweight", "scales", "qzeros", "g_idx")
        bare = selection.XlaMPLinearKernel(mp(), "qweight", "scales")
    assert kernel._get_weight_params(Layer(qweight=1, scales=2, qzeros=3)) == (1, 2, 3, None)
    assert bare._get_weight_params(Layer(qweight=1, scales=2, qzeros=3)) == (1, 2, None, None)
    with pytest.raises(AttributeError):
        bare._get_weight_params(Layer(qweight=1))


@pytest.mark.parametrize(
    ("config", "word"),
    [(mp(t.uint4, zp=True), "w_zp_param_name"), (mp(gidx=True), "w_gidx_param_name")],
)
def test_a_parameter_that_the_config_needs_must_have_a_name(config, word):
    with using("cpu"), pytest.raises(ValueError, match=word):
        selection.XlaMPLinearKernel(config, "q", "s")


def test_running_without_a_runtime_says_what_to_import():
    kernel = selection.XlaMPLinearKernel(mp(), "q", "s")
    before = selection.set_runtime("mp", None)
    try:
        with pytest.raises(RuntimeError, match="import torch_bridge"):
            kernel.apply_weights(Layer(), None)
        with pytest.raises(RuntimeError, match="import torch_bridge"):
            kernel.process_weights_after_loading(Layer())
    finally:
        selection.set_runtime("mp", before)


def test_a_runtime_gets_the_kernel_and_the_layer():
    calls = []

    class Recorder:
        def process_weights_after_loading(self, kernel, layer):
            calls.append((kernel, layer))

        def apply_weights(self, kernel, layer, x, bias=None):
            return kernel.backing.op, x, bias

    kernel, layer = selection.XlaMPLinearKernel(mp(), "q", "s"), Layer()
    recorder = Recorder()
    before = selection.set_runtime("mp", recorder)
    try:
        assert selection.get_runtime("mp") is recorder
        kernel.process_weights_after_loading(layer)
        assert kernel.apply_weights(layer, 5, 6) == ("mixed_mm", 5, 6)
        assert calls == [(kernel, layer)]
    finally:
        assert selection.set_runtime("mp", before) is recorder


def test_a_runtime_of_an_unknown_family():
    with pytest.raises(ValueError, match="family must be one of mp, int8.*got 'int4'"):
        selection.set_runtime("int4", None)

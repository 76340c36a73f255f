# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Platforms: what upstream's `current_platform` answers, for devices that are here and not."""

import subprocess
import sys
import textwrap
from unittest import mock

import jax
import pytest

import selection
from jaxkernels.problem import DEVICES
from selection import CpuArchEnum, DeviceCapability, Platform, PlatformEnum, platform_for, using

ENUMS = {
    "h200": PlatformEnum.CUDA,
    "mi300x": PlatformEnum.ROCM,
    "tpu-v5e": PlatformEnum.TPU,
    "xpu": PlatformEnum.XPU,
    "cpu": PlatformEnum.CPU,
    "oot": PlatformEnum.OOT,
    "unspecified": PlatformEnum.UNSPECIFIED,
}


def test_the_enum_has_upstreams_members_in_order():
    names = ["CUDA", "ROCM", "TPU", "XPU", "CPU", "OOT", "UNSPECIFIED"]
    assert [member.name for member in PlatformEnum] == names
    assert [member.value for member in PlatformEnum] == list(range(1, 8))


@pytest.mark.parametrize(("name", "expected"), ENUMS.items())
def test_a_named_device_is_on_one_platform(name, expected):
    platform = platform_for(name)
    asked = {
        PlatformEnum.CUDA: platform.is_cuda(),
        PlatformEnum.ROCM: platform.is_rocm(),
        PlatformEnum.TPU: platform.is_tpu(),
        PlatformEnum.XPU: platform.is_xpu(),
        PlatformEnum.CPU: platform.is_cpu(),
        PlatformEnum.OOT: platform.is_out_of_tree(),
    }
    assert platform._enum is expected
    assert [enum for enum, answer in asked.items() if answer] == (
        [] if expected is PlatformEnum.UNSPECIFIED else [expected]
    )
    assert platform.is_cuda_alike() == (expected in (PlatformEnum.CUDA, PlatformEnum.ROCM))


def test_capability_questions_on_a_gpu():
    platform = platform_for("l4")
    assert platform.get_device_capability() == DeviceCapability(8, 9)
    assert platform.get_device_capability().to_int() == 89
    assert platform.has_device_capability(89) and platform.has_device_capability((8, 0))
    assert not platform.has_device_capability(90) and not platform.has_device_capability((9, 0))
    assert platform.is_device_capability(89) and platform.is_device_capability((8, 9))
    assert not platform.is_device_capability(80)
    assert platform.is_device_capability_family(80) and not platform.is_device_capability_family(90)
    assert platform_for("b200").is_device_capability_family(100)


@pytest.mark.parametrize("name", ["cpu", "xpu", "tpu-v5e"])
def test_without_a_capability_every_question_is_answered_no(name):
    platform = platform_for(name)
    assert platform.get_device_capability() is None
    assert not platform.has_device_capability(0)
    assert not platform.is_device_capability(0)
    assert not platform.is_device_capability_family(0)


@pytest.mark.parametrize(
    ("name", "dtype", "largest"),
    [
        ("h200", "float8_e4m3fn", 448.0),
        ("mi300x", "float8_e4m3fnuz", 224.0),
        ("mi250", "float8_e4m3fn", 448.0),
        ("cpu", "float8_e4m3fn", 448.0),
    ],
)
def test_fp8_dtype(name, dtype, largest):
    platform = platform_for(name)
    assert (platform.fp8_dtype(), platform.fp8_max()) == (dtype, largest)


def test_host_processor_traits():
    assert platform_for("cpu").get_cpu_architecture() is CpuArchEnum.X86
    assert platform_for("cpu", features=["arm"]).get_cpu_architecture() is CpuArchEnum.ARM
    assert platform_for("cpu", features=["zen"]).is_zen_cpu()
    assert not platform_for("h200", features=["zen"]).is_zen_cpu()


def test_packages_are_all_here_unless_said_otherwise():
    assert platform_for("h200").has_package("flashinfer")
    without = platform_for("h200", packages=["conch"])
    assert without.has_package("conch") and not without.has_package("flashinfer")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"device: expected one of .*h200.*oot.*; got 'h300'"):
        platform_for("h300")


def test_every_known_device_is_a_platform():
    assert {platform_for(name)._enum for name in DEVICES} == {
        *(PlatformEnum.CUDA, PlatformEnum.ROCM, PlatformEnum.TPU),
        *(PlatformEnum.XPU, PlatformEnum.CPU),
    }
    for device in DEVICES.values():
        assert platform_for(device).device is device


def test_using_holds_within_the_block_and_nests():
    with using("h200") as outer:
        assert selection.get_platform() is outer
        with using("a100"):
            assert selection.get_platform().device.name == DEVICES["a100"].name
        assert selection.get_platform() is outer
    assert selection.get_platform() is selection.current_platform


def test_using_is_undone_by_an_exception():
    with pytest.raises(KeyError), using("h200"):
        raise KeyError
    assert selection.get_platform() is selection.current_platform


def test_the_global_is_read_at_call_time(monkeypatch):
    monkeypatch.setattr(selection, "current_platform", platform_for("a100"))
    assert selection.get_platform().device.name == DEVICES["a100"].name


def _live(platform, kind, **attributes):
    live = mock.Mock(spec=["platform", "device_kind", "client", "compute_capability", "core_count"])
    live.platform, live.device_kind = platform, kind
    live.client.platform_version = attributes.pop("version", "")
    live.compute_capability = attributes.pop("compute_capability", None)
    live.core_count = attributes.pop("core_count", None)
    return live


@pytest.mark.parametrize(
    ("live", "enum", "capability", "gfx"),
    [
        (_live("gpu", "NVIDIA H200", compute_capability="9.0"), "CUDA", (9, 0), ""),
        (
            _live("gpu", "AMD Instinct MI300X", compute_capability="gfx942:sramecc+"),
            "ROCM",
            (9, 4),
            "gfx942",
        ),
        (
            _live("gpu", "AMD Instinct MI250", compute_capability="gfx90a", version="rocm 6"),
            "ROCM",
            (9, 0),
            "gfx90a",
        ),
        (
            _live("gpu", "Radeon", compute_capability="gfx1100", version="rocm 6"),
            "ROCM",
            (11, 0),
            "gfx1100",
        ),
        (_live("tpu", "TPU v5 lite"), "TPU", None, ""),
        (_live("cpu", "cpu"), "CPU", None, ""),
        (_live("metal", "Apple M9"), "OOT", None, ""),
    ],
)
def test_detection_reads_the_device_that_jax_has(monkeypatch, live, enum, capability, gfx):
    monkeypatch.setattr(jax, "devices", lambda *args: [live])
    platform = Platform()
    assert platform._enum is PlatformEnum[enum]
    assert platform.get_device_capability() == capability
    assert platform.gfx == gfx


def test_detection_happens_once_and_only_when_asked(monkeypatch):
    devices = mock.Mock(return_value=[_live("gpu", "NVIDIA H200", compute_capability="9.0")])
    monkeypatch.setattr(jax, "devices", devices)
    platform = Platform()
    assert "not looked at" in repr(platform) and devices.call_count == 0
    for _ in range(3):
        assert platform.is_cuda() and platform.device.num_sms == 132
    assert devices.call_count == 1


def test_importing_and_choosing_for_a_named_device_touch_no_device():
    """In a fresh process where asking JAX for a device is an error."""
    program = """
        import jax
        def refuse(*args, **kwargs):
            raise AssertionError("asked for a device")
        for name in ("devices", "local_devices", "default_backend", "device_count"):
            setattr(jax, name, refuse)
        import selection
        for name in ("h200", "a100", "mi300x", "tpu-v5e", "xpu", "cpu"):
            for scheme in selection.SCHEMES.values():
                choice = selection.choose_kernel(
                    scheme.config(4096, 4096), kind=scheme.kind, device=name
                )
                assert choice.kernel is not None
        from jax._src import xla_bridge
        assert not xla_bridge.backends_are_initialized()
        import sys
        assert "torch" not in sys.modules
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert result.stdout.strip() == "done", result.stderr

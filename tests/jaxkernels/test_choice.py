# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which implementation runs, what is said about it, and the vocabulary it is said in."""

import dataclasses
import logging as std_logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkernels
from jaxkernels import choice as choice_module
from jaxkernels import (
    explain_choice,
    mixed_mm,
    quantize,
    quantize_int8,
    scalar_types,
    scaled_mm,
)
from jaxkernels.choice import choose, warn_if_slow
from jaxkernels.mosaic import device as device_module
from jaxkernels.mosaic.device import abstract_mesh, trace_device
from jaxkernels.problem import (
    DEVICES,
    Device,
    Implementation,
    MixedMMProblem,
    QuantizeProblem,
    ScaledMMProblem,
    Support,
    dtype_name,
    find_device,
)

SCALED = ScaledMMProblem(16, 256, 512, "int8", "int8", "bfloat16", "token", "channel")
MIXED = MixedMMProblem(
    16, 256, 512, scalar_types.uint4b8, "bfloat16", "bfloat16", 128, "group", bias=True,
    layout="hopper_fragment", scale_dtype="bfloat16",
)  # fmt: skip
QUANTIZE = QuantizeProblem(16, 512, "bfloat16", "int8", "token")


def named(name, reason=None):
    support = Support.all((reason is None, reason))
    return Implementation(name, lambda problem, device: support, lambda *a: jnp.zeros(()))


# -- choosing -----------------------------------------------------------------------------------


def test_the_first_that_supports_it():
    implementations = (named("a", "too odd"), named("b"), named("c"))
    kernel, choice = choose(implementations, SCALED, DEVICES["h200"])
    assert kernel.name == choice.name == "b"
    assert choice.rejected == (("a", ("too odd",)),)
    assert str(choice) == "b on NVIDIA H200\n  rejected a: too odd"


def test_requested_ones_only_and_in_their_order():
    implementations = (named("a"), named("b"), named("c", "no"))
    for requested, name in (("b", "b"), (("c", "b"), "b"), (["b", "a"], "b"), (None, "a")):
        assert choose(implementations, SCALED, DEVICES["cpu"], requested)[1].name == name
    with pytest.raises(NotImplementedError, match="c: no"):
        choose(implementations, SCALED, DEVICES["cpu"], "c")
    with pytest.raises(ValueError, match="implementation: expected a name or names of a, b, c"):
        choose(implementations, SCALED, DEVICES["cpu"], "d")


@pytest.mark.parametrize("problem", [SCALED, MIXED, QUANTIZE], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("device", DEVICES)
def test_hopper_runs_on_hopper_and_xla_elsewhere(problem, device):
    choice = explain_choice(problem, device)
    assert choice.name == ("hopper" if device in ("h200", "h100", "h20") else "xla")
    assert choice.device is DEVICES[device] and choice.problem == problem
    if choice.name == "xla":
        [(name, reasons)] = choice.rejected
        assert name == "hopper" and "Hopper" in reasons[0] or "9" in reasons[0]


def test_mi250_is_no_hopper():
    """gfx90a is a capability of 9.0 as well."""
    assert DEVICES["mi250"].capability == DEVICES["h200"].capability
    assert not DEVICES["mi250"].is_hopper and DEVICES["h200"].is_hopper


def test_every_reason_is_kept():
    odd = dataclasses.replace(SCALED, k=513, n=257)
    choice = explain_choice(odd, "h200")
    reasons = dict(choice.rejected)["hopper"]
    assert choice.name == "xla" and len(reasons) == 2
    assert any("k=513" in reason for reason in reasons)
    assert any("n=257" in reason for reason in reasons)
    assert all(reason in str(choice) for reason in reasons)
    with pytest.raises(NotImplementedError) as error:
        explain_choice(odd, "h200", "hopper")
    assert all(reason in str(error.value) for reason in reasons)


def test_explain_choice_bad_input():
    with pytest.raises(ValueError, match="device: expected a Device or one of .*h200.*'h900'"):
        explain_choice(SCALED, "h900")
    with pytest.raises(TypeError, match="problem: expected ScaledMMProblem or"):
        explain_choice("int8", "h200")


# -- no silent fallback -------------------------------------------------------------------------


@pytest.fixture
def warnings(monkeypatch):
    """Messages that would be logged, with the memory of earlier ones emptied."""
    choice_module._warned.clear()
    messages = []
    monkeypatch.setattr(
        choice_module.logging, "warning", lambda text, *args: messages.append(text % args)
    )
    yield messages
    choice_module._warned.clear()


def test_a_fall_on_hopper_is_logged_once(warnings):
    for m in (1, 2, 3):  # one layer, whatever its rows
        warn_if_slow(explain_choice(dataclasses.replace(SCALED, m=m, k=513), "h200"))
    assert len(warnings) == 1 and "'xla'" in warnings[0] and "k=513" in warnings[0]
    warn_if_slow(explain_choice(dataclasses.replace(SCALED, n=257), "h200"))
    assert len(warnings) == 2


def test_nothing_is_logged_where_nothing_fell(warnings):
    warn_if_slow(explain_choice(SCALED, "h200"))
    for device in ("cpu", "a100", "mi250", "b200", "tpu-v6e"):
        warn_if_slow(explain_choice(SCALED, device))
    warn_if_slow(explain_choice(SCALED, "h200", "xla"))  # asked for
    assert warnings == []


def test_ops_warn_when_they_fall(warnings):
    """Traced for an H200 that is not here: the op picks XLA for K = 33, and says so."""
    x, w = np.ones((2, 33), np.int8), np.ones((8, 33), np.int8)
    with jax.sharding.use_abstract_mesh(abstract_mesh("NVIDIA H200")):
        jax.eval_shape(lambda x, w: scaled_mm(x, w), x, w)
        plain = quantize(np.ones((8, 64), np.float32), scalar_types.uint4b8)
        jax.eval_shape(mixed_mm, np.ones((2, 64), np.float32), plain)
        jax.eval_shape(quantize_int8, np.ones((2, 128), np.float32))
    assert len(warnings) == 2
    assert "k=33" in warnings[0] and "prepare" in warnings[1]


def test_the_logger_is_absl_and_the_text_formats(caplog):
    choice_module._warned.clear()
    with caplog.at_level(std_logging.WARNING, logger="absl"):
        logger = std_logging.getLogger("absl")
        logger.addHandler(caplog.handler)
        try:
            warn_if_slow(explain_choice(dataclasses.replace(SCALED, k=514), "h200"))
        finally:
            logger.removeHandler(caplog.handler)
    assert "the Hopper kernel refuses it" in caplog.text and "k=514" in caplog.text


# -- vocabulary ---------------------------------------------------------------------------------


def test_eager_calls_work_where_their_arrays_are(monkeypatch):
    """On a machine with a Hopper GPU, arrays on its CPU must not meet the Hopper kernel."""
    x = jnp.ones((2, 64), jnp.int8)
    monkeypatch.setattr(device_module, "_known", lambda kind, platform, *rest: (kind, platform))
    monkeypatch.setattr(jax, "devices", lambda *a: [SimpleNamespace(
        device_kind="NVIDIA H200", platform="gpu", core_count=132)])  # fmt: skip
    assert trace_device() == ("NVIDIA H200", "gpu")
    assert trace_device(x) == ("cpu", "cpu")
    assert jax.jit(lambda x: trace_device(x)[0] == "NVIDIA H200")(x)
    with jax.sharding.use_abstract_mesh(abstract_mesh("NVIDIA H100 80GB HBM3")):
        assert trace_device(x)[0] == "NVIDIA H100 80GB HBM3"


def test_support():
    assert Support.all() == Support(True) and Support.all()
    both = Support.all((False, "one"), (True, "not shown"), (False, "two"))
    assert not both and both.reasons == ("one", "two")


def test_problems_and_devices_are_hashable_and_print():
    for thing in (SCALED, MIXED, QUANTIZE, DEVICES["h200"], *DEVICES.values()):
        assert hash(thing) == hash(dataclasses.replace(thing))
        assert type(thing).__name__ in repr(thing)
    assert len({SCALED, dataclasses.replace(SCALED), dataclasses.replace(SCALED, m=17)}) == 2


def test_device_table():
    for key, device in DEVICES.items():
        assert isinstance(device, Device)
        assert device.platform in ("cuda", "rocm", "xpu", "tpu", "cpu")
        assert (device.capability is not None) == (device.platform in ("cuda", "rocm"))
        assert min(device.num_sms, device.smem_bytes, device.l2_bytes, device.read_gbps) > 0
        assert device.peak_tflops and min(device.peak_tflops.values()) > 0
        assert find_device(key) is device
        assert find_device(device.name) is device
    h200 = DEVICES["h200"]
    assert (h200.num_sms, h200.smem_bytes, h200.l2_bytes) == (132, 232448, 60 * 2**20)


def test_find_device_by_the_names_that_runtimes_give():
    names = {
        "NVIDIA H100 PCIe": "h100",
        "NVIDIA A100-SXM4-40GB": "a100",
        "NVIDIA L4": "l4",
        "NVIDIA L40S": "l40s",
        "Tesla T4": "t4",
        "TPU v5 lite": "tpu-v5e",
        "cpu": "cpu",
    }
    assert {name: find_device(name) for name in names} == {
        name: DEVICES[key] for name, key in names.items()
    }
    assert find_device("NVIDIA H2000") is None


def test_least_traffic():
    assert SCALED.flops == 2 * 16 * 256 * 512
    assert SCALED.min_bytes == 16 * 512 + 256 * 512 + 16 * 256 * 2 + 4 * (16 + 256)
    zero_points = dataclasses.replace(SCALED, azp="token")
    assert zero_points.min_bytes - SCALED.min_bytes == 4 * (256 + 16)
    scales, bias = 256 * 4 * 2, 256 * 2
    assert MIXED.min_bytes == 16 * 512 * 2 + 256 * 512 // 2 + 16 * 256 * 2 + scales + bias
    assert QUANTIZE.min_bytes == 16 * 512 * 3 + 4 * 16


def test_dtype_names():
    assert dtype_name(jnp.float8_e4m3fn) == "float8_e4m3fn" and dtype_name(np.int8) == "int8"


def test_public_names():
    assert len(jaxkernels.__all__) <= 17 and sorted(jaxkernels.__all__) == jaxkernels.__all__
    for name in jaxkernels.__all__:
        member = getattr(jaxkernels, name)
        assert member.__doc__, name
        if callable(member) and not isinstance(member, type):
            for part in ("Returns:", "Raises:", "Example:"):
                assert part in member.__doc__, (name, part)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Where this package leaves upstream on purpose: each test states both behaviours."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

import selection
from jaxkernels import dequantize, mixed_mm, quantize, scaled_mm
from jaxkernels.scalar_types import scalar_types as t
from selection import (
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    PlatformEnum,
    choose_kernel,
    choose_scaled_mm_linear_kernel,
    platform_for,
    using,
)
from selection.lists import LISTS, OURS

INT8 = Int8ScaledMMLinearLayerConfig(False, True, True)


def mp(weight_type=t.uint4b8, group=128, act="bfloat16", zp=False, gidx=False, k=4096):
    return MPLinearLayerConfig((k, 4096), (k, 4096), weight_type, act, group, zp, gidx)


def test_constructors_really_check():
    """Upstream: `assert can_implement(c)` asserts a tuple, so nothing is ever refused.

    Here: ValueError with the reason, and for scaled-mm classes with the platform's reason too.
    """
    upstreams_assertion = (False, "weight type uint8 is not one of uint4b8")
    assert upstreams_assertion  # a tuple is true, whatever is in it
    with using("h200"):
        with pytest.raises(ValueError, match="MacheteLinearKernel refuses .*group size 32"):
            selection.MacheteLinearKernel(mp(group=32), "qweight", "scales")
        with pytest.raises(ValueError, match="CPUInt8.* refuses .*requires a CPU"):
            selection.CPUInt8ScaledMMLinearKernel(INT8, ["w", "s", "i", "z", "a"])
        with pytest.raises(ValueError, match="XPUFp8Block.* refuses .*Intel XPU"):
            selection.XPUFp8BlockScaledMMKernel(INT8)


@pytest.mark.parametrize("kind", sorted(LISTS))
def test_a_platform_without_a_list_raises_the_error_of_an_exhausted_one(kind):
    """Upstream's seed: KeyError (an INT8 layer on XPU, any layer on TPU). Here: ValueError."""
    scheme = next(s for s in selection.SCHEMES.values() if s.kind == kind)
    assert PlatformEnum.UNSPECIFIED not in LISTS[kind]
    with pytest.raises(KeyError):
        _ = LISTS[kind][PlatformEnum.UNSPECIFIED]
    with pytest.raises(ValueError, match="^Failed to find a kernel"):
        choose_kernel(scheme.config(4096, 4096), kind=kind, device="unspecified")


def test_a_list_given_without_the_platform_is_an_empty_list():
    with using("xpu"), pytest.raises(ValueError, match="^Failed to find a kernel"):
        choose_scaled_mm_linear_kernel(INT8, {PlatformEnum.CUDA: []})


def test_a_force_that_cannot_be_honoured(caplog):
    """Upstream: falls through with one log line and throws the reason away.

    Here: the same by default, and the reason stays in the explanation and in the error;
    `strict=True` raises.
    """
    forced = selection.CPUInt8ScaledMMLinearKernel
    with using("h200"), caplog.at_level(logging.INFO, "selection"):
        kernel = choose_scaled_mm_linear_kernel(INT8, LISTS["int8"], force_kernel=forced)
    assert kernel is selection.CutlassInt8ScaledMMLinearKernel
    assert len([r for r in caplog.records if "was forced" in r.getMessage()]) == 1

    why = (
        "CPUInt8ScaledMMLinearKernel was forced but cannot serve: "
        "CPUInt8ScaledMMLinearKernel requires a CPU."
    )
    choice = choose_kernel(INT8, device="h200", force_kernel=forced, quiet=True)
    assert choice.notes == (why,) and why in choice.explain()
    with using("h200"), pytest.raises(ValueError) as error:
        choose_scaled_mm_linear_kernel(INT8, {}, force_kernel=forced)
    assert why in str(error.value)
    with using("h200"), pytest.raises(ValueError, match="force_kernel: CPUInt8.*requires a CPU"):
        choose_scaled_mm_linear_kernel(INT8, LISTS["int8"], force_kernel=forced, strict=True)


def test_whole_k_groups_under_conch(rng):
    """Upstream's seed hands -1 to a kernel that takes it for a size: wrong for K above a block.

    Here -1 is the whole of K: 128-wide groups and -1 differ, and each equals its own weights.
    """
    assert selection.ConchLinearKernel.can_implement(mp(group=-1))[0]
    w = jnp.asarray(rng.standard_normal((16, 512)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((3, 512)), jnp.float32)
    outs = []
    for group in (-1, 128):
        packed = quantize(w, t.uint4b8, group)
        out = mixed_mm(x, packed, implementation=("xla",))
        expected = np.asarray(x, np.float64) @ np.asarray(dequantize(packed), np.float64).T
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        outs.append(np.asarray(out))
    assert np.abs(outs[0] - outs[1]).max() > 1e-3


def test_act_order_under_conch(rng):
    """Upstream's seed accepts act-order under Conch and ignores it; 0.26 refuses it.

    Here it is accepted, and honoured: shuffled groups give another result than g_idx ignored.
    """
    assert selection.ConchLinearKernel.can_implement(mp(gidx=True))[0]
    w = jnp.asarray(rng.standard_normal((16, 256)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((3, 256)), jnp.float32)
    packed = quantize(w, t.uint4b8, 64)
    g_idx = jnp.asarray(rng.permutation(np.arange(256) // 64), jnp.int32)
    shuffled = packed.__class__(
        data=packed.data,
        scale=packed.scale,
        g_idx=g_idx,
        shape=packed.shape,
        scalar_type=packed.scalar_type,
        group_shape=packed.group_shape,
    )
    out = mixed_mm(x, shuffled, implementation=("xla",))
    expected = np.asarray(x, np.float64) @ np.asarray(dequantize(shuffled), np.float64).T
    ignored = np.asarray(x, np.float64) @ np.asarray(dequantize(packed), np.float64).T
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - ignored).max() > 1e-2


def test_exllama_refuses_a_whole_k_group():
    """Upstream's seed: K % -1 == 0 lets it pass, and loading breaks. 0.20 and here: refused."""
    whole = mp(group=-1, act="float16")
    assert whole.full_weight_shape[0] % whole.group_size == 0
    with using("a100"):
        able, why = selection.ExllamaLinearKernel.can_implement(whole)
    assert not able and "group size -1 is not positive" in why


def test_asymmetric_int8_under_triton_is_exact(rng):
    """Upstream's seed refuses asymmetric layers; 0.26 takes them, but rounds the int32 product
    azp * azp_adj to bfloat16 first. Here they are taken, and the product stays int32.
    """
    asymmetric = Int8ScaledMMLinearLayerConfig(False, True, False)
    assert selection.TritonInt8ScaledMMLinearKernel.can_implement(asymmetric) == (True, None)
    x = rng.integers(-128, 128, (4, 4096), np.int8)
    w = rng.integers(-128, 128, (8, 4096), np.int8)
    azp = rng.integers(-100, 100, (4, 1)).astype(np.int32)
    adj = w.astype(np.int32).sum(axis=1)
    exact = x.astype(np.int64) @ w.astype(np.int64).T - azp.astype(np.int64) * adj
    out = scaled_mm(
        jnp.asarray(x),
        jnp.asarray(w),
        azp=jnp.asarray(azp),
        azp_adj=jnp.asarray(adj),
        out_dtype=jnp.float32,
    )
    np.testing.assert_array_equal(np.asarray(out), exact.astype(np.float32))
    product = azp * adj
    lossy = np.asarray(jnp.asarray(product).astype(jnp.bfloat16).astype(jnp.float32))
    assert np.abs(lossy - product).max() > 100  # what 0.26 would be off by


def test_fp8_results_above_rank_two_are_not_cut(rng):
    """Upstream pads activations to 17 rows and its seed narrows the result to x.shape[0] rows,
    wrong above rank 2. Here nothing is padded, so nothing is narrowed.
    """
    assert selection.PerTensorTorchFP8ScaledMMLinearKernel.get_output_padding() is None
    assert selection.ChannelWiseTorchFP8ScaledMMLinearKernel.get_output_padding() is None
    x = jnp.asarray(rng.integers(-4, 5, (2, 3, 32)), jnp.float8_e4m3fn)
    w = jnp.asarray(rng.integers(-4, 5, (5, 32)), jnp.float8_e4m3fn)
    out = scaled_mm(x, w, out_dtype=jnp.float32)
    expected = np.asarray(x, np.float32) @ np.asarray(w, np.float32).T
    assert out.shape == (2, 3, 5)
    np.testing.assert_array_equal(out, expected)


def test_optional_packages_are_stood_in_for():
    """Upstream: a class whose package cannot be imported is refused. Here our kernel takes the
    package's place, so it is not; a platform that is told its packages answers as upstream.
    """
    eight_bit = mp(t.uint8, zp=True)
    assert choose_kernel(eight_bit, device="a100").kernel is selection.ConchLinearKernel
    bare = choose_kernel(eight_bit, device=platform_for("a100", packages=()), quiet=True)
    reasons = {r.kernel: r.reason for r in bare.rejected}
    assert reasons[selection.ConchLinearKernel].endswith("needs the package conch")
    assert bare.kernel is selection.XlaMPLinearKernel


def test_something_of_ours_is_last_on_every_platform():
    """Upstream: a list can run out (fp8 on TPU). Here its last entry runs wherever JAX does."""
    for kind, lists in LISTS.items():
        for platform, kernels in lists.items():
            assert kernels[-1] in OURS, (kind, platform)
            upstreams = [k for k in kernels if k not in OURS]
            assert kernels[: len(upstreams)] == upstreams


def test_keys_of_fp8_say_e4m3fn_on_every_platform():
    """Upstream asks the platform for its fp8 type at import: e4m3fnuz on MI300. Here keys are the
    same everywhere, since importing touches no device.
    """
    assert platform_for("mi300x").fp8_dtype() == "float8_e4m3fnuz"
    with using("mi300x"):
        assert selection.kFp8StaticTensorSym.dtype == "float8_e4m3fn"


def test_a_star_import_works():
    """Upstream 0.26: `__all__` lists ScaledMMLinearLayerConfig, which is gone, so it fails."""
    names = {}
    exec("from selection import *", names)
    assert set(selection.__all__) <= set(names)
    assert "ScaledMMLinearLayerConfig" in names


def test_activations_of_micro_scaled_classes_stay_16_bit_and_the_explanation_says_so():
    """Upstream's FlashInferMxFp4 quantizes activations to MXFP4; here they are left alone."""
    text = selection.explain(selection.MxFp4LinearLayerConfig(), device="b200", m=16)
    assert "upstream's class quantizes activations to mxfp4; here they stay 16-bit" in text
    assert not selection.FlashInferMxFp4LinearKernel.quantizes_activations

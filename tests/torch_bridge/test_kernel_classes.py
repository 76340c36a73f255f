# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Upstream's contract, class by class: load a checkpoint's layer, prepare it, apply it."""

import copy
import gc
import time

import bridge_layers as checkpoints
import jax
import numpy as np
import pytest
import torch

import selection
import torch_bridge
from jaxkernels import GroupShape, scalar_types
from selection import (
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    QuantKey,
    ScaleDesc,
)
from selection.lists import LISTS

TYPES = {
    (4, False): scalar_types.uint4b8,
    (8, False): scalar_types.uint8b128,
    (4, True): scalar_types.uint4,
    (8, True): scalar_types.uint8,
}
N, K = 96, 256


def mp_config(n, k, group, bits=4, zero_points=False, act_order=False, act=torch.bfloat16):
    return MPLinearLayerConfig(
        (k, n), (k, n), TYPES[bits, zero_points], act, group, zero_points, act_order
    )


def mp_kernel(config, names, cls=None):
    cls = cls or selection.choose_kernel(config, device="cpu").kernel
    return cls(config, *names)


# -- mixed precision: every way a checkpoint can look ---------------------------------------------


@pytest.mark.parametrize("plain", [False, True], ids=["attributes", "plain"])
@pytest.mark.parametrize(
    "layout, bits, group, zero_points, act_order",
    [
        ("ct", 4, 32, False, False),
        ("ct", 4, 64, True, False),
        ("ct", 4, -1, False, False),
        ("ct", 8, 128, False, False),
        ("ct", 8, -1, True, False),
        ("ct", 4, 64, False, True),
        ("gptq", 4, 128, False, False),
        ("gptq", 8, -1, False, False),
        ("gptq", 4, 64, False, True),
        ("awq", 4, 64, True, False),
        ("awq", 8, 64, True, False),
    ],
)
def test_mixed_layouts(rng, layout, bits, group, zero_points, act_order, plain):
    layer, names, weight = checkpoints.mixed(
        rng, layout, N, K, group, bits, zero_points, act_order, plain
    )
    kernel = mp_kernel(mp_config(N, K, group, bits, zero_points, act_order), names)
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((5, K))).to(torch.bfloat16)
    bias = torch.from_numpy(rng.standard_normal(N)).to(torch.bfloat16)
    y = kernel.apply_weights(layer, x, bias)
    assert y.dtype == torch.bfloat16 and y.shape == (5, N)
    checkpoints.check_close(y, x, weight, bias)


def test_one_hot_rows_recover_every_weight(rng):
    layer, names, weight = checkpoints.mixed(rng, "gptq", N, K, 64, act_order=True)
    kernel = mp_kernel(mp_config(N, K, 64, act_order=True, act=torch.float32), names)
    kernel.process_weights_after_loading(layer)
    y = kernel.apply_weights(layer, torch.eye(K))
    np.testing.assert_array_equal(y.numpy().T, weight.astype(np.float32))


def test_gptq_zero_points_are_ignored(rng):
    """They are loaded always, and in v1 hold zero - 1: a symmetric layer must not read them."""
    layer, names, weight = checkpoints.mixed(rng, "gptq", N, K, 64)
    with torch.no_grad():
        layer.qzeros.copy_(torch.from_numpy(rng.integers(-(2**31), 2**31, layer.qzeros.shape)))
    kernel = mp_kernel(mp_config(N, K, 64), names)
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((3, K))).to(torch.bfloat16)
    checkpoints.check_close(kernel.apply_weights(layer, x), x, weight)
    assert layer.qzeros is None


def test_a_square_of_packs_is_read_by_the_checkpoints_name(rng):
    """[N, K/8] and [K/8, N] look alike where N = K/8; without attributes the name decides."""
    for layout in ("ct", "gptq"):
        layer, names, weight = checkpoints.mixed(rng, layout, 32, 256, 64, plain=True)
        kernel = mp_kernel(mp_config(32, 256, 64), names)
        kernel.process_weights_after_loading(layer)
        x = torch.from_numpy(rng.standard_normal((3, 256))).to(torch.bfloat16)
        checkpoints.check_close(kernel.apply_weights(layer, x), x, weight)


def test_shards_of_an_act_order_layer_see_all_groups(rng):
    """Row-parallel: this rank has half of K, every group's scale, and global group numbers."""
    layer, names, weight = checkpoints.mixed(rng, "gptq", N, K, 64, act_order=True)
    half = K // 2
    layer.qweight = torch.nn.Parameter(layer.qweight[: half // 8].clone(), requires_grad=False)
    layer.g_idx = torch.nn.Parameter(layer.g_idx[:half].clone(), requires_grad=False)
    config = mp_config(N, half, 64, act_order=True)
    config.full_weight_shape = (K, N)
    kernel = mp_kernel(config, names, selection.XlaMPLinearKernel)
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((3, half))).to(torch.bfloat16)
    checkpoints.check_close(kernel.apply_weights(layer, x), x, weight[:, :half])


# -- int8 -----------------------------------------------------------------------------------------

INT8_NAMES = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]


def int8_layer(rng, static, channelwise, symmetric, shards=(64, 32)):
    n = sum(shards)
    codes = rng.integers(-128, 128, (n, K)).astype(np.int8)
    rows = n if channelwise else len(shards)
    scale = rng.uniform(0.001, 0.01, rows).astype(np.float32)
    per_row = scale if channelwise else np.repeat(scale, shards)
    x_scale = rng.uniform(0.02, 0.04, len(shards)).astype(np.float32) if static else None
    zeros = rng.integers(-20, 20, len(shards)).astype(np.int8)
    layer = checkpoints.Layer(
        weight=codes,
        weight_scale=scale.reshape(-1, 1) if channelwise else scale,
        input_scale=x_scale,
        input_zero_point=zeros if static and not symmetric else None,
        azp_adj=None,
    )
    layer.logical_widths = list(shards)
    return layer, codes, per_row, x_scale, zeros


@pytest.mark.parametrize("channelwise", [True, False], ids=["channel", "shards"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
def test_int8_is_exact(rng, static, symmetric, channelwise):
    layer, codes, w_scale, x_scales, zeros = int8_layer(rng, static, channelwise, symmetric)
    config = Int8ScaledMMLinearLayerConfig(static, channelwise, symmetric)
    with selection.using("h200"):  # CUDA's class truncates the merged zero point
        kernel = selection.CutlassInt8ScaledMMLinearKernel(config, INT8_NAMES)
    kernel.process_weights_after_loading(layer)
    assert layer.weight.shape == (K, codes.shape[0]) and layer.weight.stride(0) == 1
    x = torch.from_numpy(rng.standard_normal((7, K)).astype(np.float32))
    bias = torch.from_numpy(rng.standard_normal(codes.shape[0]).astype(np.float32))
    y = kernel.apply_weights(layer, x, bias)

    # The same arithmetic by hand: quantize in float32, sum in int64, scale in float32.
    xf = x.numpy()
    azp = np.zeros((7, 1), np.int64)
    f32 = np.float32
    if static and symmetric:
        s = np.full((7, 1), x_scales.max(), f32)
        q = np.rint(xf / s)
    elif static:
        shift = zeros.astype(f32)
        high, low = (x_scales * (127 - shift)).max(), (x_scales * (-128 - shift)).min()
        s = np.full((7, 1), (high - low) / f32(255), f32)
        azp[:] = np.trunc(f32(-128) - low / s[0, 0])
        q = np.rint(xf * (f32(1) / s)) + azp
    elif symmetric:
        a = np.abs(xf).max(1, keepdims=True)
        s = a / f32(127)
        q = np.rint(xf * (f32(127) / a))
    else:
        low, high = xf.min(1, keepdims=True), xf.max(1, keepdims=True)
        s = (high - low) / f32(255)
        azp = np.rint(f32(-128) - low / s).astype(np.int64)
        q = np.rint(xf * (f32(1) / s)) + azp
    q = np.clip(q, -128, 127).astype(np.int64)
    total = q @ codes.T.astype(np.int64) - azp * codes.sum(1, dtype=np.int64)
    want = s.astype(np.float64) * w_scale.astype(np.float64) * total + bias.double().numpy()
    np.testing.assert_allclose(y.numpy(), want, rtol=3e-7, atol=3e-6 * np.abs(want).max())


def test_cpu_class_rounds_the_merged_zero_point(rng):
    got = []
    for cls, device in (("CutlassInt8", "h200"), ("CPUInt8", "cpu")):
        layer, *_ = int8_layer(rng, static=True, channelwise=True, symmetric=False)
        with torch.no_grad():
            layer.input_scale.copy_(torch.tensor([0.05, 0.06]))
            layer.input_zero_point.copy_(torch.tensor([40, -40]))
        config = Int8ScaledMMLinearLayerConfig(True, True, False)
        with selection.using(device):
            kernel = getattr(selection, f"{cls}ScaledMMLinearKernel")(config, INT8_NAMES)
        kernel.process_weights_after_loading(layer)
        got.append(layer.input_zero_point.item())
    # The ranges are [-8.4, 4.35] and [-5.28, 10.02]: -128 + 8.4 / (18.42 / 255) = -11.71.
    assert got == [-11, -12]


# -- fp8 ------------------------------------------------------------------------------------------

FP8_NAMES = ["weight", "weight_scale", "input_scale", "input_scale_ub"]
F32 = "float32"


def fp8_config(weight=GroupShape.PER_CHANNEL, activation=GroupShape.PER_TOKEN, static=False):
    return FP8ScaledMMLinearLayerConfig(
        QuantKey("float8_e4m3fn", ScaleDesc(F32, True, weight)),
        QuantKey("float8_e4m3fn", ScaleDesc(F32, static, activation)),
        None,
    )


def fp8_values(rng, *shape):
    """Small integers: exact in e4m3, and their sums exact in float32."""
    return torch.from_numpy(rng.integers(-8, 9, shape).astype(np.float32))


@pytest.mark.parametrize("as_view", [False, True], ids=["NK", "KN-view"])
def test_fp8_static_is_exact(rng, as_view):
    codes = fp8_values(rng, N, K)
    weight = codes.to(torch.float8_e4m3fn)
    layer = checkpoints.Layer(
        weight=weight.t() if as_view else weight,
        weight_scale=torch.tensor([0.5]),
        input_scale=torch.tensor([0.25, 0.125]),
    )
    config = fp8_config(GroupShape.PER_TENSOR, GroupShape.PER_TENSOR, static=True)
    with selection.using("h200"):
        kernel = selection.CutlassFP8ScaledMMLinearKernel(config, FP8_NAMES)
    kernel.process_weights_after_loading(layer)
    q = fp8_values(rng, 6, K)
    y = kernel.apply_weights(layer, q * 0.25)
    assert torch.equal(y, (q @ codes.t()) * (0.25 * 0.5))


def test_fp8_shards_are_requantized_to_one_scale(rng):
    shards, scales = (64, 32), torch.tensor([0.5, 2.0])
    codes = fp8_values(rng, sum(shards), K)
    layer = checkpoints.Layer(weight=codes.to(torch.float8_e4m3fn), weight_scale=scales)
    layer.logical_widths = list(shards)
    config = fp8_config(GroupShape.PER_TENSOR, GroupShape.PER_TOKEN)
    with selection.using("h200"):
        kernel = selection.CutlassFP8ScaledMMLinearKernel(config, FP8_NAMES)
    kernel.process_weights_after_loading(layer)
    assert layer.weight_scale.item() == 2.0
    want = codes.clone()
    want[:64] = (codes[:64] / 4).to(torch.float8_e4m3fn).float()
    assert torch.equal(layer.weight.t().float(), want)


def test_fp8_fused_checkpoint_keeps_its_bytes(rng):
    """The last slot still has the loader's sentinel: only the first scale was in the file."""
    codes = fp8_values(rng, 96, K)
    sentinel = torch.finfo(torch.float32).min
    layer = checkpoints.Layer(
        weight=codes.to(torch.float8_e4m3fn), weight_scale=torch.tensor([0.5, sentinel])
    )
    layer.logical_widths = [64, 32]
    config = fp8_config(GroupShape.PER_TENSOR, GroupShape.PER_TOKEN)
    with selection.using("h200"):
        kernel = selection.CutlassFP8ScaledMMLinearKernel(config, FP8_NAMES)
    kernel.process_weights_after_loading(layer)
    assert layer.weight_scale.item() == 0.5
    assert torch.equal(layer.weight.t().float(), codes)


def test_fp8_scale_ub_caps_the_absmax(rng):
    codes = fp8_values(rng, N, K)
    layer = checkpoints.Layer(
        weight=codes.to(torch.float8_e4m3fn),
        weight_scale=torch.ones(N, 1),
        input_scale_ub=torch.tensor([4.0]),
    )
    with selection.using("h200"):
        kernel = selection.CutlassFP8ScaledMMLinearKernel(fp8_config(), FP8_NAMES)
    kernel.process_weights_after_loading(layer)
    x = fp8_values(rng, 5, K)
    y = kernel.apply_weights(layer, x)
    capped = x.abs().amax(1, keepdim=True).clamp(max=4.0) / 448
    q = (x / capped).clamp(-448, 448).to(torch.float8_e4m3fn).float() * capped
    torch.testing.assert_close(y, q @ codes.t(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
def test_fp8_blocks(rng, name):
    n, k = 200, 320  # neither a multiple of 128
    codes = fp8_values(rng, n, k)
    scale = torch.from_numpy(rng.uniform(0.5, 2, (2, 3)).astype(np.float32))
    layer = checkpoints.Layer(weight=codes.to(torch.float8_e4m3fn), **{name: scale})
    config = fp8_config(GroupShape(128, 128), GroupShape(1, 128))
    kernel = selection.XlaFp8BlockScaledMMKernel(config)
    kernel.process_weights_after_loading(layer)
    full = scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    x = torch.from_numpy(rng.standard_normal((9, k)).astype(np.float32))
    y = kernel.apply_weights(layer, x)
    want = x.double() @ (codes * full).double().t()
    error = ((y.double() - want).norm() / want.norm()).item()
    assert 0 < error < 0.04  # activations lose all but 4 bits


# -- micro-scaled ---------------------------------------------------------------------------------

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


MICRO_CONFIGS = {
    "mxfp8": selection.Mxfp8LinearLayerConfig,
    "mxfp4": selection.MxFp4LinearLayerConfig,
    "nvfp4": selection.NvFp4LinearLayerConfig,
}


@pytest.mark.parametrize("family", list(MICRO_CONFIGS))
def test_micro_scaled(rng, family):
    group = 16 if family == "nvfp4" else 32
    exponent = rng.integers(120, 130, (N, K // group)).astype(np.uint8)
    scale = 2.0 ** (exponent.astype(np.float64) - 127)
    extra, stored = {}, exponent
    if family == "nvfp4":
        stored = torch.from_numpy(scale.astype(np.float32)).to(torch.float8_e4m3fn)
        extra = {"weight_global_scale": torch.tensor([0.25])}
        scale = scale * 0.25
    if family == "mxfp8":
        values = fp8_values(rng, N, K)
        data, values = values.to(torch.float8_e4m3fn), values.double().numpy()
    else:
        codes = rng.integers(0, 16, (N, K)).astype(np.uint8)
        data, values = codes[:, 0::2] | (codes[:, 1::2] << 4), E2M1[codes]
    layer = checkpoints.Layer(weight=data, weight_scale=stored, **extra)
    [cls] = [c for c in LISTS[family][selection.PlatformEnum.CPU] if c.__name__.startswith("Xla")]
    kernel = cls(MICRO_CONFIGS[family]())
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((5, K))).to(torch.bfloat16)
    weight = values * np.repeat(scale, group, 1)
    checkpoints.check_close(kernel.apply_weights(layer, x), x, weight)


# -- every class of every list --------------------------------------------------------------------

PLATFORMS = {"CUDA": "h200", "ROCM": "mi300x", "XPU": "xpu", "CPU": "cpu", "TPU": "tpu-v5e"}


def every_class():
    seen = set()
    for kind in ("mp", "int8", "fp8", "fp8_block"):
        for platform, device in PLATFORMS.items():
            for cls in LISTS[kind].get(selection.PlatformEnum[platform], []):
                if (cls, device) not in seen:
                    seen.add((cls, device))
                    yield pytest.param(kind, cls, device, id=f"{device}-{cls.__name__}")


@pytest.mark.parametrize("kind, cls, device", list(every_class()))
def test_each_class_serves_what_it_accepts(rng, kind, cls, device):
    """A class that takes one of these layers prepares and runs it, and gets it right."""
    x = torch.from_numpy(rng.standard_normal((4, K))).to(torch.bfloat16)
    ran = 0
    with selection.using(device):
        for make in CANDIDATES[kind]:
            config, layer, names, weight = make(rng)
            if hasattr(cls, "is_supported") and not cls.is_supported()[0]:
                continue
            if cls.backing is None or not cls.can_implement(config)[0]:
                continue
            kernel = cls(config) if names is None else cls(config, *names)
            kernel.process_weights_after_loading(layer)
            y = kernel.apply_weights(layer, x)
            want = checkpoints.output(x, weight)
            error = np.linalg.norm(y.double().numpy() - want) / np.linalg.norm(want)
            assert error < 0.05, f"{cls.__name__}: relative error {error:.3f}"
            ran += 1
    if not ran:
        pytest.skip(f"{cls.__name__} refuses all of these layers on {device}")


def _mp(layout, group, bits, zero_points):
    def make(rng):
        layer, names, weight = checkpoints.mixed(rng, layout, N, K, group, bits, zero_points)
        return mp_config(N, K, group, bits, zero_points), layer, names, weight

    return make


def _int8(static, channelwise, symmetric):
    def make(rng):
        layer, codes, scale, *_ = int8_layer(rng, static, channelwise, symmetric)
        config = Int8ScaledMMLinearLayerConfig(static, channelwise, symmetric)
        return config, layer, [INT8_NAMES], codes.astype(np.float64) * scale[:, None]

    return make


def _fp8(weight_shape, activation_shape, static):
    def make(rng):
        codes = fp8_values(rng, N, K)
        scales = torch.full((N, 1) if weight_shape == GroupShape.PER_CHANNEL else (1,), 0.125)
        layer = checkpoints.Layer(
            weight=codes.to(torch.float8_e4m3fn),
            weight_scale=scales,
            input_scale=torch.tensor([0.02]) if static else None,
        )
        config = fp8_config(weight_shape, activation_shape, static)
        config.out_dtype = config.input_dtype = torch.bfloat16
        config.weight_shape = (N, K)
        return config, layer, [FP8_NAMES], codes.double().numpy() * 0.125

    return make


def _fp8_block(rng):
    codes = fp8_values(rng, 256, K)
    scale = torch.from_numpy(rng.uniform(0.5, 2, (2, 2)).astype(np.float32))
    layer = checkpoints.Layer(weight=codes.to(torch.float8_e4m3fn), weight_scale_inv=scale)
    config = fp8_config(GroupShape(128, 128), GroupShape(1, 128))
    config.out_dtype = config.input_dtype = torch.bfloat16
    config.weight_shape = (256, K)
    full = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return config, layer, None, (codes * full).double().numpy()


CANDIDATES = {
    "mp": [
        _mp("gptq", 128, 4, False),
        _mp("ct", 64, 4, True),
        _mp("awq", 32, 4, True),
        _mp("gptq", -1, 8, False),
    ],
    "int8": [_int8(s, c, y) for s in (True, False) for c in (True, False) for y in (True, False)],
    "fp8": [
        _fp8(GroupShape.PER_TENSOR, GroupShape.PER_TENSOR, True),
        _fp8(GroupShape.PER_TENSOR, GroupShape.PER_TENSOR, False),
        _fp8(GroupShape.PER_CHANNEL, GroupShape.PER_TOKEN, False),
    ],
    "fp8_block": [_fp8_block],
}


# -- shapes of x, and mistakes --------------------------------------------------------------------


@pytest.fixture
def prepared(rng):
    layer, names, weight = checkpoints.mixed(rng, "gptq", N, K, 64)
    kernel = mp_kernel(mp_config(N, K, 64), names)
    kernel.process_weights_after_loading(layer)
    return kernel, layer, weight


def test_x_of_any_rank_and_stride(rng, prepared):
    kernel, layer, weight = prepared
    x = torch.from_numpy(rng.standard_normal((2, 3, 2 * K))).to(torch.bfloat16)[..., ::2]
    assert not x.is_contiguous()
    y = kernel.apply_weights(layer, x)
    assert y.shape == (2, 3, N)
    checkpoints.check_close(y.reshape(6, N), x.reshape(6, K), weight)
    row = kernel.apply_weights(layer, x[0, 0])
    assert row.shape == (N,)
    torch.testing.assert_close(row, y[0, 0], rtol=0.01, atol=0.01)
    assert kernel.apply_weights(layer, x[:0]).shape == (0, 3, N)


def test_gradient_of_x(rng, prepared):
    kernel, layer, weight = prepared
    x = torch.from_numpy(rng.standard_normal((3, K))).to(torch.bfloat16).requires_grad_()
    dy = torch.from_numpy(rng.standard_normal((3, N))).to(torch.bfloat16)
    kernel.apply_weights(layer, x).backward(dy)
    want = dy.double().numpy() @ weight
    np.testing.assert_allclose(x.grad.double().numpy(), want, atol=np.abs(want).max() * 2e-2)


def test_compiles_as_one_graph(rng, prepared):
    kernel, layer, _ = prepared
    x = torch.from_numpy(rng.standard_normal((2, 3, K))).to(torch.bfloat16)
    bias = torch.from_numpy(rng.standard_normal(N)).to(torch.bfloat16)
    compiled = torch.compile(
        lambda x, bias: kernel.apply_weights(layer, x, bias) + 1, fullgraph=True, backend="eager"
    )
    assert torch.equal(compiled(x, bias), kernel.apply_weights(layer, x, bias) + 1)


def unchanged(layer):
    return {n: (p, None if p is None else p.clone()) for n, p in layer._parameters.items()}


def assert_unchanged(layer, before):
    assert layer._parameters.keys() == before.keys()
    for name, (parameter, values) in before.items():
        assert layer._parameters[name] is parameter
        assert parameter is None or torch.equal(parameter, values)


def test_not_prepared(rng):
    layer, names, _ = checkpoints.mixed(rng, "gptq", N, K, 64)
    kernel = mp_kernel(mp_config(N, K, 64), names)
    with pytest.raises(ValueError, match="process_weights_after_loading"):
        kernel.apply_weights(layer, torch.ones(1, K, dtype=torch.bfloat16))


def test_prepared_twice(rng, prepared):
    kernel, layer, _ = prepared
    before = unchanged(layer)
    with pytest.raises(ValueError, match="already"):
        kernel.process_weights_after_loading(layer)
    assert_unchanged(layer, before)


def test_reloaded_parameters_are_prepared_again(rng, prepared):
    kernel, layer, _ = prepared
    fresh, _, weight = checkpoints.mixed(rng, "gptq", N, K, 64)
    for name, parameter in fresh._parameters.items():
        layer.register_parameter(name, parameter)
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((3, K))).to(torch.bfloat16)
    checkpoints.check_close(kernel.apply_weights(layer, x), x, weight)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.ones(2, K - 8, dtype=torch.bfloat16), r"256\].*got torch.bfloat16 \(2, 248"),
        (torch.ones(2, K, dtype=torch.int32), "got torch.int32"),
        (torch.ones(2, K, dtype=torch.bfloat16, device="meta"), "meta"),
    ],
    ids=["wrong K", "wrong dtype", "wrong device"],
)
def test_wrong_x(prepared, x, message):
    kernel, layer, _ = prepared
    with pytest.raises(ValueError, match=message):
        kernel.apply_weights(layer, x)


def test_wrong_bias(prepared):
    kernel, layer, _ = prepared
    x = torch.ones(2, K, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bias: expected 96 numbers"):
        kernel.apply_weights(layer, x, torch.ones(N + 1, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("qweight", torch.zeros(K // 8, N - 8, dtype=torch.int32), "qweight: expected"),
        ("qweight", torch.zeros(K // 8, N), "qweight: expected packed int32"),
        ("scales", torch.zeros(5, N), "scales: expected"),
        ("scales", torch.zeros(4, N + 1), "scales: expected"),
    ],
)
def test_a_wrong_checkpoint_leaves_the_layer_alone(rng, name, value, message):
    layer, names, _ = checkpoints.mixed(rng, "gptq", N, K, 64)
    setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))
    kernel = mp_kernel(mp_config(N, K, 64), names)
    before = unchanged(layer)
    with pytest.raises(ValueError, match=message):
        kernel.process_weights_after_loading(layer)
    assert_unchanged(layer, before)


def test_weights_that_require_a_gradient_are_refused(rng):
    layer, names, weight = checkpoints.mixed(rng, "gptq", N, K, 64)
    layer.scales.requires_grad_(True)
    layer.register_parameter("bias", torch.nn.Parameter(torch.zeros(N)))  # that one may
    kernel = mp_kernel(mp_config(N, K, 64), names)
    before = unchanged(layer)
    with pytest.raises(ValueError, match="scales: it requires a gradient"):
        kernel.process_weights_after_loading(layer)
    assert_unchanged(layer, before)
    layer.scales.requires_grad_(False)
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((3, K))).to(torch.bfloat16)
    checkpoints.check_close(kernel.apply_weights(layer, x).detach(), x, weight)


def test_copies_are_independent(rng, prepared):
    kernel, layer, weight = prepared
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        layer.scales.zero_()
    x = torch.from_numpy(rng.standard_normal((3, K))).to(torch.bfloat16)
    checkpoints.check_close(kernel.apply_weights(copied, x), x, weight)
    assert not kernel.apply_weights(layer, x).any()


def test_warmup_bounds_the_variants(prepared):
    _, layer, _ = prepared
    count = torch_bridge.warmup(layer, 8192, torch.bfloat16)
    assert count <= 24
    variants = layer._jaxkernels.runner.variants()
    assert len({v[0] for v in variants if v[1] == torch.bfloat16}) >= count


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(
    "layout, bits, group, zero_points, act_order",
    [
        ("ct", 4, 64, True, False),
        ("gptq", 4, 128, False, True),
        ("awq", 4, 64, True, False),
        ("gptq", 8, -1, False, False),
    ],
)
def test_gpu_mixed_layouts(rng, layout, bits, group, zero_points, act_order):
    scheme = (128, K, group, bits, zero_points, act_order)
    layer, names, weight = checkpoints.mixed(rng, layout, *scheme)
    layer = layer.cuda()
    config = mp_config(*scheme)
    kernel = selection.choose_mp_linear_kernel(config)(config, *names)
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((5, K))).to(torch.bfloat16)
    bias = torch.from_numpy(rng.standard_normal(128)).to(torch.bfloat16)
    y = kernel.apply_weights(layer, x.cuda(), bias.cuda())
    routes = {route for *_, route in layer._jaxkernels.runner.variants()}
    assert routes == {"direct"}
    checkpoints.check_close(y.cpu(), x, weight, bias)


@pytest.mark.gpu
def test_gpu_wrong_device(rng):
    layer, names, _ = checkpoints.mixed(rng, "gptq", N, K, 64)
    config = mp_config(N, K, 64)
    kernel = selection.choose_mp_linear_kernel(config)(config, *names)
    kernel.process_weights_after_loading(layer.cuda())
    with pytest.raises(ValueError, match="prepared on cuda:0, x is on cpu"):
        kernel.apply_weights(layer, torch.ones(2, K, dtype=torch.bfloat16))


def memory_in_use():
    """Bytes on the GPU that torch and JAX hold, when neither is about to let go of more."""
    torch.cuda.synchronize()
    gc.collect()
    time.sleep(0.5)  # what JAX has read is let go of by a thread
    return torch.cuda.memory_allocated() + jax.local_devices()[0].memory_stats()["bytes_in_use"]


def large(kind, rng, n=1024, k=2048):
    """(kernel, a layer on the GPU, bytes of its weight and scales at rest)."""
    if kind in ("gptq", "awq", "ct"):
        zeros = kind != "gptq"
        layer, names, _ = checkpoints.mixed(rng, kind, n, k, 128, 4, zeros)
        config = mp_config(n, k, 128, 4, zeros)
        kernel = selection.choose_mp_linear_kernel(config)(config, *names)
        return kernel, layer.cuda(), n * k // 2 + n * k // 128 * (3 if zeros else 2)
    if kind == "int8":
        codes = rng.integers(-128, 128, (n, k)).astype(np.int8)
        scale = np.full((n, 1), 0.01, np.float32)
        layer = checkpoints.Layer(weight=codes, weight_scale=scale)
        layer.logical_widths = [n]
        layer.input_scale = layer.input_zero_point = layer.azp_adj = None
        config = Int8ScaledMMLinearLayerConfig(False, True, True)
        kernel = selection.CutlassInt8ScaledMMLinearKernel(config, INT8_NAMES)
        return kernel, layer.cuda(), n * k + 4 * n
    codes = fp8_values(rng, n, k).to(torch.float8_e4m3fn)
    if kind == "fp8":
        layer = checkpoints.Layer(weight=codes, weight_scale=torch.full((n, 1), 0.1))
        layer.input_scale = None
        kernel = selection.CutlassFP8ScaledMMLinearKernel(fp8_config(), FP8_NAMES)
        return kernel, layer.cuda(), n * k + 4 * n
    scale = torch.full((n // 128, k // 128), 0.1)
    layer = checkpoints.Layer(weight=codes, weight_scale_inv=scale)
    config = fp8_config(GroupShape(128, 128), GroupShape(1, 128))
    config.out_dtype = config.input_dtype = torch.bfloat16
    config.weight_shape = (n, k)
    kernel = selection.choose_kernel(config, kind="fp8_block").kernel(config)
    return kernel, layer.cuda(), n * k + 4 * scale.numel()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gptq", "awq", "int8", "fp8_block"])
def test_gpu_a_prepared_layer_holds_its_weights_once(rng, kind):
    x = torch.from_numpy(rng.standard_normal((3, 2048))).to("cuda", torch.bfloat16)
    kernel, layer, _ = large(kind, rng)  # once, so that compiling and JAX's own needs are past
    kernel.process_weights_after_loading(layer)
    kernel.apply_weights(layer, x)
    del kernel, layer
    before = memory_in_use()
    kernel, layer, expected = large(kind, rng)
    kernel.process_weights_after_loading(layer)
    kernel.apply_weights(layer, x)
    held = memory_in_use() - before
    assert expected <= held < 1.02 * expected

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""CutlassW4A8's contract: scales split at load, activations to fp8, products rounded to fp8."""

import bridge_layers as checkpoints
import numpy as np
import pytest
import torch

import selection
import torch_bridge  # noqa: F401  (what runs torch layers)
from jaxkernels import scalar_types
from selection import MPLinearLayerConfig

N, K = 128, 384


def layer_and_kernel(rng):
    layer, names, _ = checkpoints.mixed(rng, "ct", N, K, 128)
    codes = np.asarray(layer.weight_packed).view(np.uint32)[:, :, None]
    codes = (codes >> (4 * np.arange(8, dtype=np.uint32)) & 15).reshape(N, K).astype(np.int64) - 8
    scale = layer.weight_scale.double().numpy()
    config = MPLinearLayerConfig(
        (K, N), (K, N), scalar_types.int4, torch.float8_e4m3fn, 128, False, False, torch.bfloat16
    )
    with selection.using("h200"):
        kernel = selection.CutlassW4A8LinearKernel(config, *names)
    return layer, kernel, codes, scale


def e4m3(values) -> np.ndarray:
    return torch.from_numpy(np.clip(values, -448, 448)).to(torch.float8_e4m3fn).double().numpy()


def expected(x, codes, scale, bias) -> np.ndarray:
    """Spec 6.5 with torch's fp8, in float64."""
    channel = np.maximum(np.abs(scale).max(1, keepdims=True) / 448, 1 / (448 * 512))
    channel = channel.astype(np.float32).astype(np.float64)
    group = e4m3(e4m3(scale / channel) / 8)
    weight = e4m3(codes * group.repeat(128, 1))
    rows = x.double().numpy()
    token = np.maximum(np.abs(rows).max(1, keepdims=True) / 448, 1 / (448 * 512))
    token = token.astype(np.float32).astype(np.float64)
    return e4m3(rows / token) @ weight.T * token * (8 * channel).T + bias.double().numpy()


def operands(rng, m=7):
    x = torch.from_numpy(rng.standard_normal((m, K))).to(torch.bfloat16)
    return x, torch.from_numpy(rng.standard_normal(N)).to(torch.bfloat16)


def test_the_layer_follows_upstreams_rounding(rng):
    layer, kernel, codes, scale = layer_and_kernel(rng)
    kernel.process_weights_after_loading(layer)
    assert layer.weight_scale.dtype == torch.float8_e4m3fn
    x, bias = operands(rng)
    y = kernel.apply_weights(layer, x, bias)
    want = expected(x, codes, scale, bias)
    assert y.dtype == torch.bfloat16
    np.testing.assert_allclose(y.double().numpy(), want, rtol=2**-8, atol=1e-4 * abs(want).max())


def test_gradients_reach_x_and_bias(rng):
    layer, kernel, _, _ = layer_and_kernel(rng)
    kernel.process_weights_after_loading(layer)
    x, bias = operands(rng)
    x.requires_grad_(True)
    kernel.apply_weights(layer, x.reshape(1, 7, K), bias).float().sum().backward()
    assert x.grad.shape == x.shape and x.grad.abs().max() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 7, 130])
def test_on_a_gpu_by_direct_launches(rng, m):
    layer, kernel, codes, scale = layer_and_kernel(rng)
    layer.cuda()
    kernel.process_weights_after_loading(layer)
    state = layer._jaxkernels
    assert state.operands.w.layout == "hopper_w4a8"
    x, bias = operands(rng, m)
    y = kernel.apply_weights(layer, x.cuda(), bias.cuda())
    assert {route for *_, route in state.runner.variants()} == {"direct"}
    want = expected(x, codes, scale, bias)
    error = np.linalg.norm(y.double().cpu().numpy() - want) / np.linalg.norm(want)
    assert error < 0.003

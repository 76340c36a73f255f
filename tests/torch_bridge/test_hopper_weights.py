# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Checkpoints of fp4 and fp8 on their way to the Hopper kernel, as far as a CPU can follow them.

Read from a layer, prepared, back again bit for bit, and lowered as the direct route launches them.
"""

import jax
import numpy as np
import pytest
import torch
from bridge_layers import Layer, check_close, mixed

import selection
import torch_bridge  # noqa: F401 (installs the runtimes)
from jaxkernels import GroupShape, scalar_types
from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT
from jaxkernels.mosaic.compile import lower_program
from jaxkernels.quantized import PLAIN, dequantize
from selection import FP8ScaledMMLinearLayerConfig, QuantKey, ScaleDesc
from torch_bridge import weights
from torch_bridge.dlpack import to_jax
from torch_bridge.launch import trace_context
from torch_bridge.layouts import layout_for, to_layout
from torch_bridge.runner import Scheme, linear

N, K = 128, 256


def micro(rng, group, fp8=False, scale=np.uint8, **extra):
    if fp8:
        data = torch.from_numpy(rng.standard_normal((N, K))).to(torch.float8_e4m3fn)
    else:
        data = rng.integers(0, 256, (N, K // 2), dtype=np.uint8)
    scales = torch.from_numpy(rng.integers(100, 126, (N, K // group), dtype=np.uint8))
    return Layer(weight=data, weight_scale=scales.view(scale), **extra)


def block(rng, name):
    data = torch.from_numpy(rng.standard_normal((N, K))).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(rng.uniform(0.5, 2, (N // 128, K // 128)).astype(np.float32))
    return Layer(weight=data, **{name: scale})


def act_order_shard(rng):
    """Half the columns of a GPTQ layer, with parts of all its groups."""
    layer, _, _ = mixed(rng, "gptq", N, 2 * K, 64, act_order=True, plain=True)
    return Layer(qweight=layer.qweight[: K // 8], scales=layer.scales, g_idx=layer.g_idx[:K])


def fp8_block_config():
    return FP8ScaledMMLinearLayerConfig(
        QuantKey("float8_e4m3fn", ScaleDesc("float32", True, GroupShape(128, 128))),
        QuantKey("float8_e4m3fn", ScaleDesc("float32", False, GroupShape(1, 128))),
        None,
    )


LAYERS = {
    "mxfp4": (
        lambda rng: micro(rng, 32, scale=torch.uint8),
        lambda: selection.MarlinMxFp4LinearKernel(selection.MxFp4LinearLayerConfig()),
        weights.micro_scaled,
    ),
    "mxfp8": (
        lambda rng: micro(rng, 32, fp8=True, scale=torch.uint8),
        lambda: selection.MarlinMxfp8LinearKernel(selection.Mxfp8LinearLayerConfig()),
        weights.micro_scaled,
    ),
    "nvfp4": (
        lambda rng: micro(
            rng, 16, scale=torch.float8_e4m3fn, weight_global_scale=torch.tensor([0.25])
        ),
        lambda: selection.MarlinNvFp4LinearKernel(selection.NvFp4LinearLayerConfig()),
        weights.micro_scaled,
    ),
}
LAYERS["act-order, half of K"] = (
    act_order_shard,
    lambda: selection.MarlinLinearKernel(
        selection.MPLinearLayerConfig(
            (2 * K, N), (K, N), scalar_types.uint4b8, torch.bfloat16, 64, False, True
        ),
        "qweight", "scales", "qzeros", "g_idx",
    ),
    weights.mixed,
)  # fmt: skip
for name in ("weight_scale_inv", "weight_scale"):
    LAYERS[f"fp8-block, {name}"] = (
        lambda rng, name=name: block(rng, name),
        lambda: selection.MarlinFP8ScaledMMLinearKernel(
            fp8_block_config(), ["weight", "weight_scale", "input_scale", "input_scale_ub"]
        ),
        weights.fp8,
    )


def bits(w):
    return [leaf.contiguous().view(torch.uint8) for leaf in jax.tree.leaves(w)]


@pytest.mark.parametrize("name", LAYERS)
def test_from_the_checkpoint_to_the_kernel(rng, name, monkeypatch):
    monkeypatch.setenv("VLLM_TEST_FORCE_FP8_MARLIN", "1")
    make_layer, make_kernel, read = LAYERS[name]
    with selection.using("h200"):
        kernel = make_kernel()
        operands = weights.read(read, kernel, make_layer(rng))
        implementations = kernel.available_implementations()
    w = operands.w
    structs = jax.tree.map(
        lambda t: jax.ShapeDtypeStruct(tuple(t.shape), str(t.dtype).removeprefix("torch.")), w
    )
    with trace_context():
        for dtype, wanted in (("bfloat16", HOPPER_FRAGMENT), ("float16", HOPPER_FRAGMENT),
                              ("float32", PLAIN)):  # fmt: skip
            assert layout_for(structs, type(kernel), dtype) == wanted
    prepared = to_layout(w, HOPPER_FRAGMENT)
    assert prepared.layout == HOPPER_FRAGMENT
    for a, b in zip(bits(to_layout(prepared, PLAIN)), bits(w), strict=True):
        assert torch.equal(a, b)
    scheme = Scheme(None, implementations, "bfloat16")
    structs = jax.tree.map(
        lambda t: jax.ShapeDtypeStruct(tuple(t.shape), str(t.dtype).removeprefix("torch.")),
        operands._replace(w=prepared),
    )
    x = jax.ShapeDtypeStruct((24, K), "bfloat16")
    with trace_context():
        program = lower_program(lambda x, operands: linear(scheme, x, operands, None), x, structs)
    assert len(program.kernels) == (2 if w.g_idx is not None else 1)  # one gathers x's columns


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_the_gpu(rng, name, monkeypatch):
    monkeypatch.setenv("VLLM_TEST_FORCE_FP8_MARLIN", "1")
    make_layer, make_kernel, read = LAYERS[name]
    kernel, layer = make_kernel(), make_layer(rng)
    weight = dequantize(jax.tree.map(to_jax, weights.read(read, kernel, layer).w))
    layer = layer.cuda()
    kernel.process_weights_after_loading(layer)
    for m in (3, 200):
        x = torch.from_numpy(rng.standard_normal((m, K))).to(torch.bfloat16)
        y = kernel.apply_weights(layer, x.cuda())
        check_close(y.cpu(), x, np.asarray(weight, np.float64))
    state = layer._jaxkernels
    assert state.operands.w.layout == HOPPER_FRAGMENT
    assert {route for *_, route in state.runner.variants()} == {"direct"}

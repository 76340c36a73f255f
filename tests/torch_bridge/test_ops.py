# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The torch.library ops: opcheck, whole-graph compilation, fakes that tell the truth."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from selection.recipes import RECIPES
from torch_bridge import quantize_
from torch_bridge.ops import weight_arguments

gpu = pytest.mark.gpu


@pytest.fixture
def x(rng):
    return torch.from_numpy(rng.standard_normal((3, 4, 256)).astype(np.float32))


def model(name, x):
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64, bias=False))
    quantize_(m, name, calibration=[x] if RECIPES[name].static else None)
    return m


def arguments(layer, x):
    return (
        x,
        *weight_arguments(layer.weight()),
        layer.x_scale,
        layer.azp,
        layer.azp_adj,
        None,
        layer.bias,
        layer.recipe.activation,
        None,
        None,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_opcheck(x, name):
    layer = model(name, x)[0]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks.append("test_aot_dispatch_dynamic")
    if layer.data.dtype == torch.float8_e4m3fn:
        checks.remove("test_schema")  # compares with an allclose that torch has not for float8
    results = torch.library.opcheck(
        torch.ops.jaxkernels.linear.default,
        arguments(layer, x.requires_grad_()),
        test_utils=checks,
    )
    assert set(results.values()) == {"SUCCESS"} and len(results) == len(checks)
    torch.library.opcheck(
        torch.ops.jaxkernels.dequantize.default,
        (*weight_arguments(layer.weight()), torch.bfloat16),
        test_utils=checks,
    )


@pytest.mark.parametrize("name", ["w8a8-int8-asym", "w4a16-g128"])
def test_compiles_as_one_graph(x, name):
    m = model(name, x)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), m(x))
        assert torch.equal(compiled(x[:2]), m(x[:2]))


def test_gradients_through_a_compiled_graph(x):
    m = model("w4a16-g128", x)
    compiled = torch.compile(copy.deepcopy(m), fullgraph=True, backend="aot_eager")
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for f, i in zip((m, compiled), inputs, strict=True):
        f(i).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(m[0].bias.grad, next(iter(compiled.parameters())).grad)


@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16])
def test_fake_tells_the_truth(x, out_dtype):
    given = (*arguments(model("w8a16", x)[0], x)[:-1], out_dtype)
    real = torch.ops.jaxkernels.linear(*given)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in given]
        fake = torch.ops.jaxkernels.linear(*fakes)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_op_equals_layer(x):
    for name in RECIPES:
        layer = model(name, x)[0]
        assert torch.equal(torch.ops.jaxkernels.linear(*arguments(layer, x)), layer(x))


@gpu
@pytest.mark.parametrize("name", ["w8a8-fp8", "w4a16-g128"])
def test_gpu_compiles_as_one_graph(x, name):
    x = x.to("cuda", torch.bfloat16)
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64)).to("cuda", torch.bfloat16)
    quantize_(m, name, calibration=[x] if RECIPES[name].static else None)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), m(x), rtol=0.02, atol=0.02)

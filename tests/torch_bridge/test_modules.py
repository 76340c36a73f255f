# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`quantize_` and `QuantLinear`: every recipe, what it keeps, and what it refuses."""

import copy
import functools
import io
import pickle

import jax
import numpy as np
import pytest
import torch
from torch import nn

from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic.compile import lower_program
from selection import choose_kernel
from selection.recipes import RECIPES, static_int8_scale
from torch_bridge import QuantLinear, quantize_, wrap
from torch_bridge.launch import trace_context
from torch_bridge.runner import Operands, Scheme, linear

# Relative error of a layer on normal data: what 8 or 4 bits of weight (and 8 of activation) cost.
ERROR = {
    "w8a8-int8": 0.02,
    "w8a8-int8-asym": 0.025,
    "w8a8-fp8": 0.06,
    "w4a16-g128": 0.15,
    "w4a16-g64-zp": 0.13,
    "w8a16": 0.01,
    "fp8-block": 0.06,
}
BITS = {name: 4 if name.startswith("w4") else 8 for name in RECIPES}


class Block(nn.Module):
    def __init__(self, width=256, inner=384):
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width, bias=False)
        self.head = nn.Linear(width, 64)

    def forward(self, x):
        return self.head(x + self.down(torch.relu(self.up(x))))


@pytest.fixture
def model(rng):
    torch.manual_seed(int(rng.integers(2**31)))
    return Block().eval()


@pytest.fixture
def x(rng):
    return torch.from_numpy(rng.standard_normal((5, 7, 256)).astype(np.float32))


def apply(model, name, x, **kwargs):
    calibration = [x] if RECIPES[name].static else None
    return quantize_(model, name, calibration=calibration, **kwargs)


def relative(a, b):
    return ((a - b).float().norm() / b.float().norm()).item()


def routes(layer, device):
    """How what is compiled for layers of this kind runs on a device."""
    found = layer._runner.variants()
    return {route for _, _, where, route in found if where.type == device}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe(model, x, name):
    want = model(x)
    report = apply(model, name, x)
    assert set(report.replaced) == {"up", "down", "head"} and not report.skipped
    y = model(x)
    assert y.shape == want.shape and y.dtype == torch.float32
    assert 0 < relative(y, want) < ERROR[name]
    # One layer against the arithmetic of its own dequantized weight.
    up = model.up
    direct = x @ up.dequantize().t() + up.bias
    assert relative(up(x), direct) < (1e-5 if RECIPES[name].activation is None else ERROR[name])
    elements = sum(m.in_features * m.out_features for m in report.replaced.values())
    assert elements * BITS[name] / 8 <= report.weight_bytes < elements * (BITS[name] + 1) / 8
    assert "kernel=" in repr(model.up) and f"recipe={name}" in repr(model.up)
    assert model.up.choice.kernel.__name__ in model.up.explain(m=5)


@pytest.mark.parametrize("name", RECIPES)
def test_copies_state_and_pickles_run_alike(model, x, name):
    other = copy.deepcopy(model)
    apply(model, name, x)
    want = model(x)
    assert torch.equal(copy.deepcopy(model)(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    apply(other, name, x * 2)
    assert not torch.equal(other(x), want)
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other(x), want)


@pytest.mark.parametrize("name", RECIPES)
def test_conversion_of_dtype_leaves_the_weight_alone(model, x, name):
    apply(model, name, x)
    want, before = model(x), model.up.dequantize()
    model.to(torch.bfloat16)
    y = model(x.bfloat16())
    assert y.dtype == torch.bfloat16 and relative(y, want) < 0.05  # rounding x moves fp8 codes
    assert torch.equal(model.up.dequantize(), before)
    assert model.up.bias.dtype == torch.bfloat16
    assert model.down.bias is None and model.down.dtype == torch.bfloat16
    assert model.half()(x.half()).dtype == torch.float16


@pytest.mark.parametrize("name", RECIPES)
def test_gradients_are_those_of_the_dequantized_layer(model, x, name):
    apply(model, name, x)
    layer = model.up
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    dy = torch.randn(5, 7, 384)
    layer(ours).backward(dy)
    bias = layer.bias.grad
    (theirs @ layer.dequantize().t()).backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, dy.sum((0, 1)), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not layer(ours).requires_grad


def test_4_bit_weights_are_packed_at_rest_and_in_checkpoints(model, x):
    apply(model, "w4a16-g128", x)
    state = model.state_dict()
    assert state["up.data"].dtype == torch.uint8 and state["up.data"].shape == (384, 128)
    assert state["up.scale"].shape == (384, 2)


def test_m_from_one_to_many_compiles_few_variants(model, x):
    apply(model, "w8a8-int8", x)
    rows = torch.randn(300, 256)
    full = model.up(rows)
    for m in [1, 2, 3, 5, 17, 31, 64, 65, 100, 200, 257, 300]:
        # Rows are quantized each by itself, so a row's result does not depend on its company.
        torch.testing.assert_close(model.up(rows[:m]), full[:m], rtol=1e-6, atol=1e-6)
    sizes = {rows for rows, dtype, *_ in model.up._runner.variants() if dtype == torch.float32}
    assert len(sizes) <= 24
    assert model.up.warmup(8192) <= 24


def test_layers_of_one_shape_share_what_is_compiled(x):
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    apply(model, "w8a16", x)
    model(x)
    assert model[0]._runner is model[1]._runner


def test_any_rank_empty_and_strided(model, x):
    apply(model, "w8a16", x)
    layer = model.up
    torch.testing.assert_close(layer(x[0, 0]), layer(x)[0, 0], rtol=1e-5, atol=1e-5)
    assert layer(x[:0]).shape == (0, 7, 384)
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(layer(strided), layer(x))
    torch.testing.assert_close(layer(x[1:]), layer(x)[1:], rtol=1e-5, atol=1e-5)


def test_parity_of_torch_jax_and_bridge(model, x):
    """One case through torch's own arithmetic, through JAX, and through the layer."""
    apply(model, "w8a8-int8", x)
    layer = model.up
    from jaxkernels import w8a8_linear

    bridge = layer(x)
    weight = layer.weight()

    def jax_layer(x, data, scale, bias):
        import dataclasses

        w = dataclasses.replace(weight, data=data, scale=scale)
        return w8a8_linear(x, w, bias=bias)

    through_jax = wrap(jax_layer)(x, layer.data, layer.scale, layer.bias.detach())
    assert torch.equal(bridge, through_jax)
    flat = x.reshape(-1, 256)
    absmax = flat.abs().amax(1, keepdim=True)
    q = torch.round(flat * (127 / absmax)).clamp(-128, 127)
    total = (q.double() @ layer.data.double().t()).float()
    by_hand = total * layer.scale.t() * (absmax / 127) + layer.bias
    torch.testing.assert_close(bridge.reshape(-1, 384), by_hand, rtol=1e-6, atol=1e-6)


# -- which layers ---------------------------------------------------------------------------------


def test_include_and_exclude(model, x):
    is_down = lambda name, module: name == "down"  # noqa: E731
    report = quantize_(model, "w8a16", include=["up", "do*"], exclude=is_down)
    assert list(report.replaced) == ["up"]
    assert report.skipped == {"down": "excluded", "head": "not included"}
    assert type(model.down) is nn.Linear
    assert "down left as it was: excluded" in str(report)


def test_a_layer_used_twice_stays_one_layer(x):
    shared = nn.Linear(256, 256)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    report = quantize_(model, "w8a16")
    assert set(report.replaced) == {"a", "b.0"} and model["a"] is model["b"][0]
    assert report.weight_bytes == model["a"].weight_bytes


def test_quantized_layers_are_left_alone(model, x):
    first = quantize_(model, "w8a16", include="up").replaced["up"]
    report = quantize_(model, "w4a16-g128")
    assert model.up is first and set(report.replaced) == {"down", "head"}


def test_subclasses_of_linear_are_left_alone(x):
    """MultiheadAttention reads its projection's weight itself."""
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(256, 4), "up": nn.Linear(256, 64)})
    with pytest.raises(ValueError, match=r"mha.out_proj: a NonDynamicallyQuantizableLinear is not"):
        quantize_(model, "w8a16")
    report = quantize_(model, "w8a16", strict=False)
    assert list(report.replaced) == ["up"] and "mha.out_proj" in report.skipped


# -- calibration ----------------------------------------------------------------------------------


def test_calibration_sets_the_static_scale(model, x):
    seen = []
    model.up.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    quantize_(model, "w8a8-int8-asym", calibration=[x, (2 * x,), {"x": -x}])
    data = torch.cat([s.reshape(-1) for s in seen])
    scale, azp = static_int8_scale(data.min().item(), data.max().item())
    assert model.up.x_scale.item() == pytest.approx(scale, rel=1e-6)
    assert model.up.azp.item() == azp
    assert torch.equal(
        model.up.azp_adj, azp * model.up.data.sum(1, dtype=torch.int32).reshape(1, -1)
    )


def test_calibration_as_a_function_keeps_the_mode(model, x):
    model.train()
    quantize_(model, "w8a8-int8-asym", calibration=lambda m: [m(x), m(-x)])
    assert model.training and not any(h for m in model.modules() for h in m._forward_pre_hooks)


def test_static_recipes_need_calibration(model):
    with pytest.raises(ValueError, match="calibration: 'w8a8-int8-asym' has static"):
        quantize_(model, "w8a8-int8-asym")
    with pytest.raises(ValueError, match="needs input_range"):
        QuantLinear.from_linear(model.up, "w8a8-int8-asym")
    with pytest.raises(ValueError, match="saw no input: head"):
        quantize_(model, "w8a8-int8-asym", calibration=lambda m: m.down(m.up(torch.ones(1, 256))))
    assert type(model.up) is nn.Linear


# -- mistakes -------------------------------------------------------------------------------------


def test_a_recipe_that_cannot_run_says_why_and_changes_nothing(x):
    model = nn.Sequential(nn.Linear(256, 64), nn.Linear(64, 10), nn.Linear(10, 8).double())
    message = (
        r"cannot run on 2 of 3 layers.*\n  1: in_features 64 is not a multiple of the group size "
        r"128\n  2: its weight is torch.float64"
    )
    with pytest.raises(ValueError, match=message):
        quantize_(model, "w4a16-g128")
    assert all(type(m) is nn.Linear for m in model)
    report = quantize_(model, "w4a16-g128", strict=False)
    assert list(report.replaced) == ["0"] and set(report.skipped) == {"1", "2"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: quantize_(m, "w3a5"), "recipe: expected one of w8a8-int8, .*; got 'w3a5'"),
        (lambda m: quantize_(m.up, "w8a16"), "model: it is a linear layer itself"),
        (lambda m: quantize_(m, "w8a16", include="nothing"), "model: no nn.Linear layer"),
        (lambda m: quantize_(nn.ReLU(), "w8a16"), "model: no nn.Linear layer"),
    ],
)
def test_wrong_calls(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.ones(2, 255), r"x: expected \[\.\.\., 256\] .* got torch.float32 \(2, 255\)"),
        (torch.ones(2, 256, dtype=torch.int32), "got torch.int32"),
        (torch.ones(2, 256, device="meta"), "the layer is on cpu, got a tensor on meta"),
    ],
)
def test_wrong_x(model, x, message):
    quantize_(model, "w8a16")
    with pytest.raises(ValueError, match=message):
        model.up(x)


# -- on a Hopper GPU, as far as that can be seen without one ---------------------------------------


@pytest.mark.parametrize("m", [1, 48])
@pytest.mark.parametrize("name, dtype", [(n, "bfloat16") for n in RECIPES] + [("w8a16", "float16")])
def test_every_recipe_lowers_to_direct_launches(name, dtype, m):
    """For the class that an H200 chooses, all that a layer does is in kernels."""
    recipe, (n, k) = RECIPES[name], (512, 1024)
    w = jax.eval_shape(recipe.quantize, jax.ShapeDtypeStruct((n, k), dtype))
    if recipe.family == "mp":
        w = jax.eval_shape(prepare, w)
    one, adj = jax.ShapeDtypeStruct((1, 1), "float32"), jax.ShapeDtypeStruct((1, n), "int32")
    azp = jax.ShapeDtypeStruct((1, 1), "int32")
    operands = Operands(w, one, azp, adj) if recipe.static else Operands(w)
    kernel = choose_kernel(recipe.config(n, k, dtype), device="h200").kernel
    scheme = Scheme(recipe.activation, kernel.available_implementations())
    x, bias = jax.ShapeDtypeStruct((m, k), dtype), jax.ShapeDtypeStruct((n,), dtype)
    with trace_context():
        program = lower_program(functools.partial(linear, scheme), x, operands, bias)
    assert len(program.kernels) == (1 if recipe.activation is None else 2)


# -- on a GPU -------------------------------------------------------------------------------------

gpu = pytest.mark.gpu
CASES = [(name, torch.bfloat16) for name in RECIPES]
CASES += [(name, torch.float16) for name in ("w8a8-int8", "w4a16-g128")]


@gpu
@pytest.mark.parametrize("name, dtype", CASES)
def test_gpu_every_recipe_direct_and_in_a_graph(rng, name, dtype):
    torch.manual_seed(int(rng.integers(2**31)))
    model = Block(512, 1024).eval().to("cuda", dtype)
    x = torch.randn(5, 7, 512, device="cuda", dtype=dtype)
    want = model(x)
    report = apply(model, name, x)
    y = model(x)
    assert 0 < relative(y, want) < ERROR[name] + 0.01
    for layer in report.replaced.values():
        assert routes(layer, "cuda") == {"direct"}, layer.explain()
    static = x.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(static)
    for _ in range(3):
        static.copy_(torch.randn_like(static))
        graph.replay()
        assert torch.equal(out, model(static))


@gpu
@pytest.mark.parametrize("name", RECIPES)
def test_gpu_agrees_with_cpu(rng, name):
    """The same quantized layer in JAX on the host and by the Hopper kernels."""
    torch.manual_seed(int(rng.integers(2**31)))
    model, x = Block(512, 128).eval().bfloat16(), torch.randn(5, 7, 512, dtype=torch.bfloat16)
    apply(model, name, x)
    layer = model.up
    want, weight = layer(x).float(), layer.dequantize()
    got = layer.cuda()(x.cuda()).float().cpu()
    assert relative(got, want) < 0.005
    assert routes(layer, "cuda") == {"direct"}
    assert torch.equal(layer.dequantize().cpu(), weight)
    assert torch.equal(layer.cpu().dequantize(), weight)


@gpu
@pytest.mark.parametrize("name", ["w4a16-g128", "w8a8-fp8"])
def test_gpu_every_m(model, x, name):
    model = model.to("cuda", torch.bfloat16)
    apply(model, name, x.to("cuda", torch.bfloat16))
    layer, rows = model.up, torch.randn(300, 256, device="cuda", dtype=torch.bfloat16)
    weight = layer.dequantize()
    for m in [1, 3, 17, 64, 65, 300]:
        want = rows[:m].float() @ weight.t() + layer.bias.float()
        assert relative(layer(rows[:m]), want) < (0.005 if name == "w4a16-g128" else 0.05)


@gpu
def test_gpu_misaligned_x(model, rng):
    layer = QuantLinear.from_linear(model.up.to("cuda", torch.bfloat16), "w4a16-g128")
    x = torch.randn(4 * 256 + 1, device="cuda", dtype=torch.bfloat16)[1:].view(4, 256)
    assert x.data_ptr() % 16 and torch.equal(layer(x), layer(x.clone()))


@gpu
@pytest.mark.parametrize("name", ["w8a8-fp8", "w4a16-g64-zp", "w8a16"])
def test_gpu_state_moves_between_machines(model, x, name):
    apply(model, name, x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.to("cuda", torch.bfloat16)
    model(x.to("cuda", torch.bfloat16))  # brings the weight into its kernel's order
    for layer in (model.up, model.down, model.head):  # with a bias and without
        assert routes(layer, "cuda") == {"direct"}, layer.explain()
    for key, value in model.state_dict().items():
        if not key.endswith("bias"):
            assert torch.equal(value.cpu(), state[key]), key


@gpu
def test_gpu_holds_the_weight_once(rng):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    linear = nn.Linear(8192, 8192, bias=False, device="cuda", dtype=torch.bfloat16)
    layer = QuantLinear.from_linear(linear, "w4a16-g128")
    del linear
    layer(torch.randn(1, 8192, device="cuda", dtype=torch.bfloat16))
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated() - before
    assert layer.weight_bytes <= held < 1.02 * layer.weight_bytes


@gpu
def test_gpu_refuses_capture_before_warmup(rng):
    layer = QuantLinear.from_linear(
        nn.Linear(512, 320, device="cuda", dtype=torch.bfloat16), "w8a8-fp8"
    )
    x = torch.randn(3, 512, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="warmup"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        layer(x)
    assert layer.warmup(8) == 4
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    assert torch.equal(y, layer(x)) and y.shape == (3, 320)


@gpu
@pytest.mark.parametrize("name", ["w4a16-g128", "w8a8-fp8"])
def test_gpu_two_devices_in_one_process(rng, name):
    """Each runs where its tensors are, whatever device is current; others are refused."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    torch.manual_seed(int(rng.integers(2**31)))
    linear = nn.Linear(512, 384, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(5, 512, dtype=torch.bfloat16)
    first = QuantLinear.from_linear(linear.to("cuda:0"), name)
    second = copy.deepcopy(first).to("cuda:1")
    third = QuantLinear.from_linear(linear.to("cuda:1"), name)
    want = first(x.to("cuda:0")).cpu()
    for current in (0, 1):
        with torch.cuda.device(current):
            for layer in (first, second, third):
                y = layer(x.to(layer.data.device))
                assert y.device == layer.data.device and torch.equal(y.cpu(), want)
            double = wrap(lambda x: x * 2)(x.to("cuda:1"))
            assert double.device == torch.device("cuda", 1) and torch.equal(double.cpu(), x * 2)
            assert torch.cuda.current_device() == current
    with pytest.raises(ValueError, match="the layer is on cuda:1, got a tensor on cuda:0"):
        second(x.to("cuda:0"))
    with torch.cuda.device(1):
        graph, static = torch.cuda.CUDAGraph(), x.to("cuda:1")
        with torch.cuda.graph(graph):
            y = second(static)
        graph.replay()
        assert torch.equal(y.cpu(), want)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Every 8-bit layer that the bridge makes is kernels only, at each number of rows it compiles for.

Traced for an H200 without one. What is neither a kernel nor free would send the layer through XLA.
"""

import jax
import jax.numpy as jnp
import pytest
import torch

from jaxkernels.mosaic.compile import lower_program
from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types
from torch_bridge.launch import compile_kernel, trace_context
from torch_bridge.runner import BUCKETS, Operands, Scheme, linear

N, K = 512, 640  # of five groups: rows of scales that TMA cannot read as they are
ONE, ZERO_POINT = jax.ShapeDtypeStruct((1, 1), "float32"), jax.ShapeDtypeStruct((1, 1), "int32")
ADJUSTMENT = jax.ShapeDtypeStruct((1, N), "int32")
# Name: weights, their scales, what else a layer has, kernels a call.
SCHEMES = {
    "int8": ("int8", "channel", {}, 2),
    "int8-static": ("int8", "channel", {"x_scale": ONE}, 2),
    "int8-asym": ("int8", "channel", {"azp_adj": ADJUSTMENT}, 2),
    "int8-asym-static": (
        *("int8", "tensor"),
        {"x_scale": ONE, "azp": ZERO_POINT, "azp_adj": ADJUSTMENT},
        2,
    ),
    "fp8": ("float8_e4m3fn", "channel", {}, 2),
    "fp8-tensor-weights": ("float8_e4m3fn", "tensor", {}, 2),
    "fp8-bounded": ("float8_e4m3fn", "channel", {"scale_ub": ONE}, 2),
    "fp8-static": ("float8_e4m3fn", "tensor", {"x_scale": ONE}, 2),
    "fp8-tensor": ("float8_e4m3fn", "channel", {}, 3),
    "fp8-group": ("float8_e4m3fn", "block", {}, 2),
}
ACTIVATIONS = {"fp8-tensor": "fp8-tensor", "fp8-group": "fp8-group"}


def layer(name: str, k: int):
    """(scheme, operands, kernels a call) of a layer [N, k]."""
    dtype, how, more, kernels = SCHEMES[name]
    shapes = {"tensor": (1, 1), "channel": (N, 1), "block": (N // 128, -(-k // 128))}
    group = {"tensor": (-1, -1), "channel": (1, -1), "block": (128, 128)}[how]
    w = QuantizedTensor(
        jax.ShapeDtypeStruct((N, k), dtype),
        jax.ShapeDtypeStruct(shapes[how], "float32"),
        shape=(N, k),
        scalar_type=getattr(scalar_types, dtype),
        group_shape=GroupShape(*group),
    )
    asymmetric = "int8-asym" if "asym" in name else name.split("-")[0]
    scheme = Scheme(ACTIVATIONS.get(name, asymmetric), ("hopper", "xla"))
    return scheme, Operands(w, **more), kernels


def primitives(jaxpr) -> list[str]:
    """Names of what a trace computes, looking into everything but kernels."""
    found = []
    for equation in jaxpr.eqns:
        inner = [
            getattr(p, "jaxpr", p)
            for p in equation.params.values()
            if hasattr(getattr(p, "jaxpr", p), "eqns")
        ]
        is_call = equation.primitive.name in ("jit", "custom_vjp_call", "custom_vmap_call")
        if is_call and inner:
            found += [name for jaxpr in inner for name in primitives(jaxpr)]
        else:
            found.append(equation.primitive.name)
    return found


@pytest.mark.parametrize("name", SCHEMES)
def test_a_call_is_kernels_and_reshapes_for_every_number_of_rows(name):
    scheme, operands, kernels = layer(name, K)
    for rows in BUCKETS:
        x = jax.ShapeDtypeStruct((rows, K), "bfloat16")
        bias = jax.ShapeDtypeStruct((N,), "bfloat16") if rows % 3 else None
        with trace_context():
            trace = jax.jit(lambda x, o, b: linear(scheme, x, o, b)).trace(x, operands, bias)
        found = primitives(trace.jaxpr)
        assert set(found) <= {"mpmd_map", "reshape"}, (rows, found)
        assert found.count("mpmd_map") == kernels, (rows, found)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_call_lowers_to_its_kernels(name):
    rows, dtype = [(1, "bfloat16"), (48, "float16"), (2048, "float32")][
        list(SCHEMES).index(name) % 3
    ]
    scheme, operands, kernels = layer(name, 1024)
    x = jax.ShapeDtypeStruct((rows, 1024), dtype)
    with trace_context():
        program = lower_program(lambda x, o: linear(scheme, x, o, None), x, operands)
    assert len(program.kernels) == kernels
    assert not any(b.kind in ("constant", "filled") for b in program.buffers)


def test_a_cast_would_be_found():
    scheme, operands, _ = layer("fp8", K)
    x = jax.ShapeDtypeStruct((4, K), "float32")
    with trace_context():
        trace = jax.jit(lambda x, o: linear(scheme, x.astype(jnp.bfloat16), o, None))
        found = primitives(trace.trace(x, operands).jaxpr)
    assert "convert_element_type" in found


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp8", "int8", "fp8-group"])
@pytest.mark.parametrize("rows", [1, 256])
def test_gpu_weights_written_just_before_are_the_ones_read(name, rows):
    """The product may start early: not before what wrote its weights has ended."""
    scheme, operands, _ = layer(name, 4096)
    x = jax.ShapeDtypeStruct((rows, 4096), "bfloat16")
    kernel = compile_kernel(lambda x, o: linear(scheme, x, o, None), x, operands)
    dtype = getattr(torch, SCHEMES[name][0])
    scale = torch.rand(operands.w.scale.shape, device="cuda") / 100
    ws = [torch.randint(-99, 99, (N, 4096), device="cuda").to(dtype) for _ in range(4)]
    xs = [torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    w, x, got = torch.empty_like(ws[0]), torch.empty_like(xs[0]), []
    torch.cuda.synchronize()
    for i in range(24):  # nothing waits for the device in between
        w.copy_(ws[i % 4])
        x.copy_(xs[i % 3])
        got.append(kernel(x, w, scale))
    torch.cuda.synchronize()
    for i, y in enumerate(got):
        want = kernel(xs[i % 3], ws[i % 4], scale)
        torch.cuda.synchronize()
        assert torch.equal(y, want), i

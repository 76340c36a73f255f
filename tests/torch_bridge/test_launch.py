# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The direct route: what a JAX function lowers to, and on a GPU what its launches do."""

import ctypes
import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import pytest
import torch
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels import mixed_mm, quantize, scalar_types, scaled_mm
from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic import compile as mosaic_compile
from jaxkernels.mosaic.compile import NotDirect, lower_program
from jaxkernels.problem import Support
from torch_bridge import generated, launch
from torch_bridge.dlpack import to_jax, to_torch
from torch_bridge.launch import LaunchableKernel, compile_kernel, direct_route, trace_context

M, N, K = 64, 128, 256


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def add_one(x):
    """A kernel of one program: 128 numbers plus one."""

    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...] + 1

    return plgpu.kernel(body, out_type=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def lowered(fn, *structs):
    with trace_context():
        return lower_program(fn, *structs)


# -- reading a function back ----------------------------------------------------------------------


def test_one_kernel():
    program = lowered(add_one, shape(128))
    assert [b.kind for b in program.buffers] == ["argument", "result"]
    [kernel] = program.kernels
    assert kernel.buffers == (0, 1) and kernel.module[:4] == b"ML\xefR"
    assert program.arguments == (((128,), "float32"),)


def test_chains_reshapes_and_bitcasts_are_other_names():
    def fn(x):
        y = add_one(x)
        z = add_one(jax.lax.bitcast_convert_type(y, jnp.int32))
        return y.reshape(4, 32), {"z": z}

    program = lowered(fn, shape(128))
    assert [k.buffers for k in program.kernels] == [(0, 1), (1, 2)]
    assert [(o.buffer, o.shape, o.dtype) for o in program.outputs] == [
        (1, (4, 32), "float32"),
        (2, (128,), "int32"),
    ]


def test_unused_and_returned_arguments():
    program = lowered(lambda x, unused, y: (add_one(x), y), shape(128), shape(3), shape(5))
    assert len(program.arguments) == 3
    assert [o.buffer for o in program.outputs] == [3, 2]


@pytest.mark.parametrize(
    "value, fill, dtype",
    [
        (jnp.zeros((2, 3)), 0.0, "float32"),
        (jnp.full((4,), 7, jnp.int8), 7, "int8"),
        (jnp.bfloat16(2.5), 2.5, "bfloat16"),
        (jnp.array(True), True, "bool"),
        (jnp.full((2,), 3, jnp.float8_e4m3fn), 3.0, "float8_e4m3fn"),
    ],
)
def test_splat_constants(value, fill, dtype):
    shape_, dtype_ = value.shape, value.dtype
    program = lowered(lambda x: (add_one(x), jnp.full(shape_, fill, dtype_)), shape(128))
    [_, constant] = program.outputs
    buffer = program.buffers[constant.buffer]
    assert (buffer.kind, buffer.fill, buffer.dtype) == ("filled", fill, dtype)
    assert constant.shape == shape_


@pytest.mark.parametrize(
    "fn, message",
    [
        (lambda x: add_one(x) * 2, "multiply has to compute"),
        (lambda x: add_one(x[::-1]), "reverse has to compute"),
        (lambda x: add_one(x + jnp.arange(128.0)), "has to compute|not one repeated number"),
        (lambda x: x.reshape(2, 64), "no Mosaic GPU kernel"),
    ],
)
def test_what_would_have_to_compute_is_refused_by_name(fn, message):
    with pytest.raises(NotDirect, match=message):
        lowered(fn, shape(128))


W8 = {"int8": scalar_types.int8, "fp8": scalar_types.float8_e4m3fn}


@pytest.mark.parametrize("m", [1, 16, 200])
@pytest.mark.parametrize("kind", W8)
def test_scaled_mm_is_direct(kind, m):
    dtype = jnp.int8 if kind == "int8" else jnp.float8_e4m3fn
    w = jax.eval_shape(lambda w: quantize(w, W8[kind]), shape(N, K))
    program = lowered(scaled_mm, shape(m, K, dtype=dtype), w, shape(m, 1))
    assert len(program.kernels) >= 1


@pytest.mark.parametrize("m", [1, 16, 200])
@pytest.mark.parametrize("weight_type", ["uint4b8", "uint8b128"])
def test_mixed_mm_is_direct(weight_type, m):
    w = jax.eval_shape(
        lambda w: prepare(quantize(w, getattr(scalar_types, weight_type), 64)),
        shape(N, K, dtype=jnp.bfloat16),
    )
    program = lowered(mixed_mm, shape(m, K, dtype=jnp.bfloat16), w)
    assert len(program.kernels) >= 1


def test_equal_kernels_have_equal_keys():
    """Layers of one shape share what is compiled."""
    keys = {lowered(lambda x: add_one(x), shape(128)).kernels[0].key for _ in range(2)}
    assert len(keys) == 1


def test_without_the_entry_points_there_is_a_reason():
    support = direct_route()
    assert support.ok or "MosaicGpuCompile" in support.reasons[0]


def test_without_them_kernels_go_through_dlpack_with_one_warning(monkeypatch):
    reason = f"none here, says {id(monkeypatch)}"
    monkeypatch.setattr(launch, "direct_route", lambda: Support(False, (reason,)))
    with pytest.warns(UserWarning, match=f"no CUDA graphs: {reason}") as seen:
        kernels = [compile_kernel(add_one, shape(128)) for _ in range(2)]
    assert len([w for w in seen if reason in str(w.message)]) == 1
    assert all(callable(k) and not isinstance(k, LaunchableKernel) for k in kernels)


def test_cpu_tensors_are_refused_before_a_launch():
    kernel = LaunchableKernel(lowered(add_one, shape(128)))
    with pytest.raises(ValueError, match="argument 0: .* got a CPU tensor"):
        kernel(torch.ones(128))
    with pytest.raises(ValueError, match="expected 1 tensors, got 2"):
        kernel(torch.ones(128), torch.ones(128))


def test_what_a_call_hands_to_the_host_function(monkeypatch):
    """Operands' and results' addresses in order, the function and the stream; checks come first."""

    def fn(x):
        y = add_one(x)
        return add_one(y), y

    kernel = LaunchableKernel(lowered(fn, shape(128)))
    seen = []

    def host(function, stream, pointers):
        seen.append((function, stream, *(ctypes.c_uint64 * 2).from_address(pointers)))

    kernel._loaded[0] = [(7, mosaic_compile._HOST_FUNCTION(host)) for _ in kernel.program.kernels]
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 9, raising=False)
    monkeypatch.setattr(generated, "_empty_strided", lambda s, _, d: torch.empty(s, dtype=d))
    monkeypatch.setattr(generated._thread, "ready", {0}, raising=False)
    call = generated.generate(kernel, 0, "trusted")
    x = torch.ones(128)
    z, y = call(x)
    assert seen == [(7, 9, x.data_ptr(), y.data_ptr()), (7, 9, y.data_ptr(), z.data_ptr())]
    with pytest.raises(ValueError, match="argument 0: expected a contiguous.*on cuda:0"):
        generated.generate(kernel, 0, "checked")(x)  # a CPU tensor
    assert len(seen) == 2


# -- on a GPU -------------------------------------------------------------------------------------

gpu = pytest.mark.gpu


@functools.cache
def gemm():
    """The fp8 GEMM of this project, its operands, and what torch makes of the same."""
    generator = torch.Generator("cuda").manual_seed(0)
    x, w = (
        torch.randint(-8, 9, (rows, K), device="cuda", generator=generator).float()
        for rows in (M, N)
    )
    x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    one = torch.ones(1, 1, device="cuda")

    def fn(x, w, xs, ws):
        return scaled_mm(x, w, xs, ws, out_dtype=jnp.bfloat16, implementation="hopper")

    kernel = compile_kernel(fn, x8, w8, one, one)
    want = (x @ w.t()).bfloat16()
    torch.cuda.synchronize()  # tests use these on streams of their own
    return kernel, (x8, w8, one, one), want


@gpu
def test_gpu_result():
    kernel, operands, want = gemm()
    assert isinstance(kernel, LaunchableKernel)
    assert torch.equal(kernel(*operands), want)


@gpu
def test_gpu_chain_of_kernels():
    def fn(x):
        y = add_one(x)
        return add_one(y).reshape(2, 64), jnp.full((3,), 7, jnp.int8)

    x = torch.randn(128, device="cuda")
    y, sevens = compile_kernel(fn, x)(x)
    assert torch.equal(y, (x + 1 + 1).view(2, 64)) and sevens.tolist() == [7, 7, 7]


@gpu
def test_gpu_out():
    kernel, operands, want = gemm()
    out = torch.zeros_like(want)
    assert kernel(*operands, out=out) is out and torch.equal(out, want)
    with pytest.raises(ValueError, match="out: output 0 must be"):
        kernel(*operands, out=out.float())


def freed(tensor):
    """A tensor whose memory somebody gave back, as sharded training does between layers."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(0)
    return copy


@gpu
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: (a[0].cpu(), *a[1:]), "got a CPU tensor"),
        (lambda a: (a[0], a[1].cpu(), *a[2:]), "argument 1: .* on cpu"),
        (lambda a: (a[0].to(torch.float8_e5m2), *a[1:]), "argument 0: .*float8_e5m2"),
        (lambda a: (a[0][:, : K // 2].contiguous(), *a[1:]), r"argument 0: .*\(64, 128\)"),
        (lambda a: (a[0].t().contiguous().t(), *a[1:]), "argument 0: .*strides"),
        (
            lambda a: (torch.empty(M * K + 1, device="cuda").to(a[0].dtype)[1:].view(M, K), *a[1:]),
            "16-byte boundary",
        ),
        (lambda a: (freed(a[0]), *a[1:]), "argument 0: its memory has been freed"),
        (lambda a: (a[0], freed(a[1]), *a[2:]), "argument 1: its memory has been freed"),
    ],
    ids=["cpu", "one on cpu", "dtype", "shape", "strides", "alignment", "freed", "freed weight"],
)
def test_gpu_mistakes(change, message):
    kernel, operands, _ = gemm()
    with pytest.raises(ValueError, match=message):
        kernel(*change(operands))


@gpu
def test_gpu_graph_replays_with_new_inputs():
    kernel, (x, *rest), _ = gemm()
    static = x.clone()
    kernel(static, *rest)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernel(static, *rest)
    for seed in range(5):
        torch.manual_seed(seed)
        static.copy_(torch.randint(-8, 9, (M, K), device="cuda").to(torch.float8_e4m3fn))
        graph.replay()
        assert torch.equal(y, (static.float() @ rest[0].float().t()).bfloat16())


@gpu
@pytest.mark.parametrize("m", [1, 4, 16, 64])
def test_gpu_act_order_layers_in_a_row(m):
    """Products and gathers start under the kernels ahead: the result is as if they did not."""
    n = 2048
    generator = torch.Generator("cuda").manual_seed(m)
    layers = []
    for _ in range(3):
        values = torch.randn(n, n, generator=generator, device="cuda") / 40
        order = torch.randperm(n, generator=generator, device="cuda")
        w = quantize(to_jax(values.bfloat16()), scalar_types.uint4b8, 128)
        w = prepare(dataclasses.replace(w, g_idx=to_jax((order // 128).int())))
        leaves, tree = jax.tree.flatten(w)
        layers.append([to_torch(leaf) for leaf in leaves])
    x = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    kernel = compile_kernel(lambda x, *w: mixed_mm(x, tree.unflatten(w)), x, *layers[0])

    def run(between):
        y = x
        for i in range(24):
            y = kernel(y, *layers[i % 3])
            between()
        return y

    run(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(lambda: None)
    for _ in range(50):
        x.normal_()
        want = run(torch.cuda.synchronize)
        graph.replay()
        assert torch.equal(y, want) and bool(want.isfinite().all()) and bool(want.any())


@gpu
def test_gpu_runs_on_the_current_stream():
    """Behind a slow producer on a side stream, with a consumer on another, nobody synchronizing."""
    kernel, (x, *rest), _ = gemm()
    slow = torch.randn(4096, 4096, device="cuda")
    producer, consumer, wrong = torch.cuda.Stream(), torch.cuda.Stream(), 0
    w = rest[0].float()
    for i in range(2000):
        with torch.cuda.stream(producer):
            if i % 100 == 0:
                for _ in range(5):
                    slow @ slow
            value = torch.full((M, K), float(i % 8), device="cuda").to(torch.float8_e4m3fn)
            y = kernel(value, *rest)
        consumer.wait_stream(producer)
        with torch.cuda.stream(consumer):
            wrong = wrong + (y[0] != (i % 8 * w.sum(1)).bfloat16()).sum()
            y.record_stream(consumer)
    consumer.synchronize()
    assert wrong.item() == 0


@gpu
def test_gpu_threads():
    kernel, operands, want = gemm()
    failures = []

    def work():
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(300):
                    assert torch.equal(kernel(*operands), want)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@gpu
def test_gpu_host_never_waits():
    kernel, operands, want = gemm()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = kernel(*operands)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(y, want)


@gpu
def test_gpu_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    kernel, operands, want = gemm()
    y = kernel(*(t.to("cuda:1") for t in operands))
    assert y.device == torch.device("cuda", 1) and torch.equal(y.cpu(), want.cpu())


@gpu
def test_gpu_agrees_with_jax():
    """The same kernel launched by XLA gives the same bits."""
    kernel, operands, _ = gemm()
    from torch_bridge import wrap

    def fn(x, w, xs, ws):
        return scaled_mm(x, w, xs, ws, out_dtype=jnp.bfloat16, implementation="hopper")

    assert torch.equal(kernel(*operands), wrap(fn)(*operands))

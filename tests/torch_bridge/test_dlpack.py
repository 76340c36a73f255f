# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Tensors and arrays as views of one memory: dtypes, strides, copies, lifetime, gradients."""

import gc
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from torch_bridge import streams, to_jax, to_torch, wrap
from torch_bridge.dlpack import jax_device

DTYPES = [
    "float32", "bfloat16", "float16", "int8", "uint8", "int16", "int32", "bool",
    "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint16", "uint32", "complex64",
]  # fmt: skip


def tensor_of(rng, dtype, *shape):
    # clone: numpy's own memory may not be aligned to the 64 bytes that torch's and JAX's is.
    values = torch.from_numpy(rng.integers(0, 120, shape).astype(np.int32)).clone()
    if dtype == "float8_e8m0fnu":
        return values.to(torch.uint8).view(torch.float8_e8m0fnu)
    return values.to(getattr(torch, dtype))


def as_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_crosses_without_a_copy(rng, dtype):
    tensor = tensor_of(rng, dtype, 6, 10)
    array = to_jax(tensor)
    assert array.dtype.name == dtype and array.shape == (6, 10)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    back = to_torch(array)
    assert back.dtype == tensor.dtype and back.data_ptr() == tensor.data_ptr()
    if dtype not in ("float8_e5m2", "float8_e8m0fnu"):
        np.testing.assert_array_equal(
            np.asarray(array).astype(np.complex64), tensor.to(torch.complex64).numpy()
        )
    made = jnp.asarray(np.asarray(array))  # memory of JAX's own
    assert torch.equal(as_bytes(to_torch(made)), as_bytes(tensor))


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "complex128"])
def test_64_bits_are_refused_instead_of_narrowed(dtype):
    with pytest.raises(TypeError, match=f"torch.{dtype} would be narrowed.*jax_enable_x64"):
        to_jax(torch.ones(3, dtype=getattr(torch, dtype)))


STRIDED = {
    "transposed": (lambda t: t.transpose(0, 2), True),
    "permuted": (lambda t: t.permute(1, 2, 0), True),
    "rows of a wider one": (lambda t: t[:, :, :3], False),
    "every other": (lambda t: t[:, ::2], False),
    "broadcast": (lambda t: t[:1].expand(5, -1, -1), False),
    "size 1, odd strides": (lambda t: torch.as_strided(t, (1, 5), (77, 1)), True),
    "prefix": (lambda t: t[:2], True),
}


@pytest.mark.parametrize("name", STRIDED)
def test_strides(rng, name):
    view, shares = STRIDED[name]
    tensor = view(torch.from_numpy(rng.standard_normal((4, 6, 5)).astype(np.float32)).clone())
    array = to_jax(tensor)
    np.testing.assert_array_equal(np.asarray(array), tensor.numpy())
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda a: a * 2)(array)), tensor.numpy() * 2)
    assert (array.unsafe_buffer_pointer() == tensor.data_ptr()) == shares
    if shares:
        to_jax(tensor, copy=False)
    else:
        with pytest.raises(ValueError, match="copy=False forbids it"):
            to_jax(tensor, copy=False)


def test_misaligned_memory(rng):
    tensor = torch.from_numpy(rng.standard_normal(33).astype(np.float32)).clone()[1:]
    np.testing.assert_array_equal(np.asarray(to_jax(tensor)), tensor.numpy())
    with pytest.raises(ValueError, match="storage offset 1, is not on a 64-byte boundary"):
        to_jax(tensor, copy=False)


def test_copies_are_copies(rng):
    tensor = torch.from_numpy(rng.standard_normal((3, 4)).astype(np.float32)).clone()
    before = tensor.clone()
    array, shared = to_jax(tensor, copy=True), to_jax(tensor)
    copied = to_torch(shared, copy=True)
    tensor.zero_()
    np.testing.assert_array_equal(np.asarray(array), before.numpy())
    assert torch.equal(copied, before)
    assert not to_torch(shared).any()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 5), ()])
def test_empty_and_scalar(shape):
    array = to_jax(torch.ones(shape))
    assert array.shape == shape
    assert to_torch(array).shape == shape
    assert to_torch(jnp.ones(shape) * 2).shape == shape


def test_lifetime_of_the_source(rng):
    """The view holds the memory, whichever side has dropped its object."""
    values = rng.standard_normal(100_000).astype(np.float32)
    array = to_jax(torch.from_numpy(values).clone())
    tensor = to_torch(jnp.asarray(values) + 0)
    gc.collect()
    fill = [torch.full((100_000,), 7.0) for _ in range(8)]
    more = [jnp.full((100_000,), 7.0).block_until_ready() for _ in range(8)]
    np.testing.assert_array_equal(np.asarray(array), values)
    np.testing.assert_array_equal(tensor.numpy(), values)
    del fill, more


def test_transposed_arrays_come_out_right(rng):
    values = rng.standard_normal((3, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(
        to_torch(jnp.asarray(values).transpose(2, 0, 1)).numpy(), values.transpose(2, 0, 1)
    )


def freed():
    tensor = torch.ones(64)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: to_jax(np.ones(3)), TypeError, "expected a torch.Tensor, got ndarray"),
        (lambda: to_jax(torch.ones(3, requires_grad=True)), ValueError, "use wrap"),
        (lambda: to_jax(torch.ones(3, device="meta")), ValueError, "on meta"),
        (lambda: to_jax(torch.eye(3).to_sparse()), ValueError, "sparse"),
        (lambda: to_jax(freed()), ValueError, "has been freed"),
        (lambda: wrap(jnp.sin)(freed()), ValueError, "has been freed"),
        (lambda: to_torch(np.ones(3)), TypeError, "expected a jax.Array, got ndarray"),
        (lambda: to_torch(jnp.ones((2, 2), jnp.int4)), TypeError, "pack two elements a byte"),
        (lambda: jax.jit(to_torch)(jnp.ones(3)), TypeError, "outside jit"),
    ],
)
def test_mistakes(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_device_that_jax_has_not():
    have = {d.platform for d in jax.devices()}
    if "gpu" in have:
        pytest.skip("JAX has a GPU here")
    with pytest.raises(ValueError, match="cuda:3 needs JAX's cuda backend.*JAX_PLATFORMS"):
        jax_device(torch.device("cuda", 3))


def test_conjugate_and_negative_views():
    tensor = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64)
    np.testing.assert_array_equal(np.asarray(to_jax(tensor.conj())), tensor.numpy().conj())
    np.testing.assert_array_equal(np.asarray(to_jax(tensor.conj().imag)), -tensor.numpy().imag)


# -- wrap -----------------------------------------------------------------------------------------


def test_wrap_takes_and_returns_pytrees(rng):
    a = torch.from_numpy(rng.standard_normal((4, 5)).astype(np.float32))
    b = torch.from_numpy(rng.standard_normal((5, 3)).astype(np.float32))

    @wrap
    def f(p, b, *, scale):
        """Its own documentation."""
        return {"y": p["a"] @ b * scale, "positive": (b > 0).astype(jnp.int32)}

    out = f({"a": a}, b, scale=2.0)
    torch.testing.assert_close(out["y"], a @ b * 2)
    assert torch.equal(out["positive"], (b > 0).int())
    assert f.__doc__ == "Its own documentation."


def test_wrap_gradients_equal_torchs(rng):
    a, b = (torch.from_numpy(rng.standard_normal((4, 4)).astype(np.float32)) for _ in range(2))

    def loss(f, a, b):
        y, z, _ = f(a, b)
        return (y * y).sum() + 3 * z

    def ours(a, b):
        return jnp.tanh(a @ b), b.sum(), (a > 0).astype(jnp.int32)

    def theirs(a, b):
        return torch.tanh(a @ b), b.sum(), (a > 0).int()

    results = []
    for f in (wrap(ours), theirs):
        leaves = [t.clone().requires_grad_() for t in (a, b)]
        loss(f, *leaves).backward()
        results.append([t.grad for t in leaves])
    torch.testing.assert_close(*results)


def test_wrap_gradient_of_some_inputs_and_unused_outputs(rng):
    a = torch.from_numpy(rng.standard_normal((3, 3)).astype(np.float32)).requires_grad_()
    b = torch.from_numpy(rng.standard_normal((3, 3)).astype(np.float32))
    y, _unused = wrap(lambda a, b: (a @ b, a * 7))(a, b)
    y.sum().backward()
    torch.testing.assert_close(a.grad, b.sum(1).expand(3, 3))
    with torch.no_grad():
        assert not wrap(lambda a: a * 2)(a).requires_grad


def test_wrap_refuses_mixed_devices():
    with pytest.raises(ValueError, match="one device, got cpu, meta"):
        wrap(lambda a, b: a + b)(torch.ones(2), torch.ones(2, device="meta"))


def test_wrap_compiles_once_a_shape():
    traces = []

    @wrap
    def f(x):
        traces.append(x.shape)
        return x * 2

    for n in (3, 3, 4, 3, 4):
        assert torch.equal(f(torch.ones(n)), torch.full((n,), 2.0))
    assert traces == [(3,), (4,)]


@pytest.mark.parametrize("order", ["torch, jax", "jax, torch"])
def test_either_import_order_works(order):
    code = (
        f"import {order}\nfrom torch_bridge import to_jax, to_torch\n"
        "assert (to_torch(to_jax(torch.arange(4.)) + 1) == torch.arange(4.) + 1).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


KEEPING = """
import time, weakref, jax, jax.numpy as jnp, torch
from torch_bridge import streams

def retire(array, tensor):  # as to_jax does for a CUDA tensor
    weakref.finalize(array, streams.retired.put, (array.device, tensor)).atexit = False
    streams.start_reaper()

tensor, array = torch.ones(3), jnp.ones(3)
alive = weakref.ref(tensor)
retire(array, tensor)
del tensor
time.sleep(0.2)
assert alive() is not None
del array
deadline = time.time() + 20
while alive() is not None:
    assert time.time() < deadline
    time.sleep(0.01)
slow = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda i, y: y @ x, x))
array = slow(jnp.ones((400, 400)))
retire(array, torch.ones(3))
del array  # and the process ends while the thread waits
"""


def test_tensors_are_kept_until_jax_has_read_them_and_the_process_ends_well():
    subprocess.run([sys.executable, "-c", KEEPING], check=True, timeout=120)


# -- on a GPU -------------------------------------------------------------------------------------

gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_dtypes(rng, dtype):
    tensor = tensor_of(rng, dtype, 6, 10).cuda()
    array = to_jax(tensor)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    assert torch.equal(as_bytes(to_torch(array)), as_bytes(tensor))


@gpu
def test_gpu_waits_for_the_producers_stream():
    """A slow producer on a side stream: JAX reads its result, torch reads JAX's, on that stream."""
    double = wrap(lambda x: x * 2)
    slow = torch.randn(4096, 4096, device="cuda")
    stream, wrong = torch.cuda.Stream(), 0
    for i in range(1000):
        with torch.cuda.stream(stream):
            if i % 50 == 0:
                for _ in range(5):
                    slow @ slow
            x = torch.full((256, 1024), float(i), device="cuda")
            y = double(x) + 1
            wrong = wrong + (y != 2 * i + 1).sum()
    stream.synchronize()
    assert wrong.item() == 0


@gpu
def test_gpu_results_freed_while_torch_reads_on_another_stream():
    """JAX gets the memory of y back while one stream has yet to read it, and a call on another
    stream may not write there before."""
    double = wrap(lambda x: x * 2)
    slow = torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    first, second, wrong = torch.cuda.Stream(), torch.cuda.Stream(), 0
    for i in range(300):
        with torch.cuda.stream(first):
            y = double(torch.full((256, 1024), float(i), device="cuda"))
            for _ in range(3):
                slow @ slow
            wrong = wrong + (y != 2 * i).sum()
            del y
        with torch.cuda.stream(second):
            double(torch.full((256, 1024), float(-i - 1), device="cuda"))
    first.synchronize()
    assert wrong.item() == 0


@gpu
def test_gpu_source_freed_while_jax_reads():
    n, wrong = 2048, []

    @jax.jit
    def late_sum(x):  # x is read last, long after the call has returned
        first = jax.lax.fori_loop(0, 60, lambda i, a: (a @ a) * (1 / n), jnp.ones((n, n)))
        return (x + 0 * first[0, 0]).sum()

    for i in range(8):
        x = torch.full((n, n), float(i), device="cuda")
        array = to_jax(x)
        result = late_sum(array)
        del x, array
        garbage = [torch.full((n, n), -5.0, device="cuda") for _ in range(3)]
        if abs(float(result) / n**2 - i) > 0.01:  # garbage would make it -5
            wrong.append((i, float(result)))
        del garbage
    assert not wrong


@gpu
def test_gpu_host_does_not_wait():
    double = wrap(lambda x: x * 2)
    x = torch.ones(8, device="cuda")
    double(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = double(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (y == 2).all()


@gpu
def test_gpu_letting_go_does_not_disturb_a_capture():
    """The thread that waits for JAX to be done with tensors runs on while a graph is captured."""
    for i in range(10):
        arrays = [to_jax(torch.full((1 << 16,), float(i), device="cuda")) for _ in range(30)]
        copies = [to_torch(array, copy=True) for array in arrays]
        x = torch.zeros(8, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # the strictest mode: any thread's call may end it
            for step in range(150):
                x.add_(1)
                if step == 20:
                    arrays.clear()  # which hands the tensors to that thread
        graph.replay()
        assert x.tolist() == [150.0] * 8 and all((c == i).all() for c in copies)


def test_torchs_current_device_stays_what_it_was(monkeypatch):
    """As if there were two GPUs, and JAX left the one it worked on current."""
    current = [0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.__setitem__(0, device))

    def leaves_another_current(x):
        current[0] = 1
        return x + 1

    assert torch.equal(wrap(leaves_another_current, jit=False)(torch.zeros(3)), torch.ones(3))
    assert current == [0]
    with pytest.raises(ZeroDivisionError), streams.working_on(torch.device("cpu")):
        current[0] = 1
        raise ZeroDivisionError
    assert current == [0]

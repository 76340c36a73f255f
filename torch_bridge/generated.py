# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The Python function of one call of a `LaunchableKernel`, written for its shapes."""

import ctypes
import struct
import threading
from collections.abc import Callable

import jax
import torch

from jaxkernels.mosaic.compile import NotDirect

_thread = threading.local()


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype for a numpy-style name; 4-bit types are torch.uint8, two elements a byte."""
    return torch.uint8 if name in ("int4", "uint4") else getattr(torch, name)


def torch_shape(shape, dtype: str):
    if dtype not in ("int4", "uint4"):
        return tuple(shape)
    if not shape or shape[-1] % 2:
        raise NotDirect(f"a {dtype} array of shape {shape} has no whole bytes in its last row")
    return (*shape[:-1], shape[-1] // 2)


def enter_context(index: int) -> None:
    """Makes the device's primary context current in this thread, as CUDA's runtime would.

    A thread that has made no runtime call yet has no current context, and the host function
    launches through the driver, which wants one.
    """
    torch.cuda.init()
    driver = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    if driver.cuCtxGetCurrent(ctypes.byref(context)) or not context.value:
        code = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), index)
        code = code or driver.cuCtxSetCurrent(context)
        if code:
            raise RuntimeError(f"CUDA error {code} while entering the context of cuda:{index}")
    ready = _thread.__dict__.setdefault("ready", set())
    ready.add(index)


def describe(tensor) -> str:
    layout = "" if tensor.is_contiguous() else f", strides {tuple(tensor.stride())}"
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}{layout}"


# What torch.compile's own generated code allocates with: a third of torch.empty's host time.
_empty_strided = getattr(
    getattr(torch._C._dynamo, "guards", None), "_empty_strided_cuda", None
) or (lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device="cuda"))


def _strides(shape) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def generate(kernel, index: int, how: str) -> Callable:
    """The Python function of one call, straight-line: host time is most of a small kernel's cost.

    For one kernel of two arguments and one result it reads

        def call(a0, a1):
            p0 = a0.data_ptr()
            p1 = a1.data_ptr()
            if (p0 | p1) & 15 or not (p0 and p1) or a0.dtype is not d0 or ...: refuse(index, a0, a1)
            if current_device() != index: return elsewhere(a0, a1)
            if index not in ready(): enter(index)
            t2 = empty(shape2, strides2, dtype2)
            h0(f0, stream(index), pack0(p0, p1, t2.data_ptr()))
            return t2
    """
    program = kernel.program
    names = {
        "index": index,
        "refuse": kernel._refuse,
        "current_device": torch._C._cuda_getDevice,
        "stream": torch._C._cuda_getCurrentRawStream,
        "enter": enter_context,
        "local": _thread,
        "empty": _empty_strided,
        "full": torch.full,
        "device": torch.device("cuda", index),
        "unflatten": lambda outputs: jax.tree.unflatten(program.out_tree, outputs),
    }
    count = len(program.arguments)
    arguments = [f"a{i}" for i in range(count)]
    signature = ", ".join((["outs"] if how == "into" else []) + arguments)
    lines = [f"p{i} = a{i}.data_ptr()" for i in range(count)]
    wrong = [f"({' | '.join(f'p{i}' for i in range(count))}) & 15"]
    there = [f"p{i}" for i, (_, shape) in enumerate(kernel._specs) if 0 not in shape]
    if there:
        wrong.append(f"not ({' and '.join(there)})")
    if how != "trusted":
        for i, (dtype, shape) in enumerate(kernel._specs):
            names |= {f"d{i}": dtype, f"s{i}": shape}
            wrong += [
                f"a{i}.dtype is not d{i}",
                f"a{i}.shape != s{i}",
                f"a{i}.get_device() != index",
                f"not a{i}.is_contiguous()",
            ]
    lines.append(f"if {' or '.join(wrong)}: refuse(index, {', '.join(arguments)})")
    lines.append(f"if current_device() != index: return elsewhere({signature})")
    lines.append("if index not in local.__dict__.get('ready', ()): enter(index)")
    given = {o.buffer: i for i, o in enumerate(program.outputs)} if how == "into" else {}
    as_output = {o.buffer: o for o in reversed(program.outputs)}
    held = {}  # buffer -> the shape and dtype its tensor has
    used = {i for k in program.kernels for i in k.buffers} | set(as_output)
    for i, b in enumerate(program.buffers):
        what = as_output.get(i, b)
        dtype, shape = torch_dtype(what.dtype), torch_shape(what.shape, what.dtype)
        if b.kind == "argument":
            held[i] = (kernel._specs[i][1], kernel._specs[i][0])
            continue
        if i not in used:
            continue
        held[i] = (shape, dtype)
        names |= {f"d{i}_": dtype, f"s{i}_": shape, f"z{i}_": _strides(shape)}
        if b.kind == "constant":
            names[f"t{i}"] = torch.full(shape, b.fill, dtype=dtype, device=names["device"])
        elif b.kind == "filled":
            own = (torch_dtype(b.dtype), torch_shape(b.shape, b.dtype))
            names |= {f"d{i}_": own[0], f"s{i}_": own[1], f"v{i}": b.fill}
            held[i] = (own[1], own[0])
            lines.append(f"t{i} = full(s{i}_, v{i}, dtype=d{i}_, device=device)")
        elif i in given:
            lines.append(f"t{i} = outs[{given[i]}]")
        else:
            lines.append(f"t{i} = empty(s{i}_, z{i}_, d{i}_)")
    lines.append("where = stream(index)")
    for j, (call, (function, host)) in enumerate(
        zip(program.kernels, kernel._loaded[index], strict=True)
    ):
        # The array of pointers as bytes: a third of the time that a ctypes array takes.
        pack = struct.Struct(f"{len(call.buffers)}Q").pack
        names |= {f"f{j}": function, f"h{j}": host, f"pack{j}": pack}
        pointers = (f"p{i}" if i < count else f"t{i}.data_ptr()" for i in call.buffers)
        lines.append(f"h{j}(f{j}, where, pack{j}({', '.join(pointers)}))")
    results = []
    for j, o in enumerate(program.outputs):
        shape, dtype = torch_shape(o.shape, o.dtype), torch_dtype(o.dtype)
        name = f"a{o.buffer}" if o.buffer < count else f"t{o.buffer}"
        if held[o.buffer] != (shape, dtype):
            names |= {f"o{j}s": shape, f"o{j}d": dtype}
            name = f"{name}.view(-1).view(o{j}d).view(o{j}s)"
        results.append(name)
    if program.out_tree == jax.tree.structure(0):
        lines.append(f"return {results[0]}")
    elif program.out_tree == jax.tree.structure((0,) * len(results)):
        lines.append(f"return ({', '.join(results)},)")
    else:
        lines.append(f"return unflatten([{', '.join(results)}])")

    def elsewhere(*everything):
        with torch.cuda.device(index):
            return names["call"](*everything)

    names["elsewhere"] = elsewhere
    exec(f"def call({signature}):\n" + "".join(f"    {line}\n" for line in lines), names)
    return names["call"]

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The direct route: compiled Mosaic kernels launched on torch's current stream.

`compile_kernel(fn, *structs)` lowers a JAX function that is made of Mosaic GPU kernels, reshapes,
bitcasts and splat constants, and returns a `LaunchableKernel`: call it with torch tensors, get
torch tensors. Nothing of JAX runs in a call. Outputs come from torch's allocator, pointers go to
the kernel, and the stream is the current one of the tensors' device, so a call is captured by
CUDA graphs, obeys `torch.cuda.stream`, and never waits for the device.

    kernel = compile_kernel(lambda x, w: scaled_mm(x, w), x, w)    # tensors or ShapeDtypeStructs
    y = kernel(x, w)

Where this JAX has no entry points for it, the same call goes through DLPack, with one warning.
"""

import ctypes
import os
import threading
import warnings

import jax
import torch

from jaxkernels.mosaic import compile as mosaic_compile
from jaxkernels.mosaic.compile import NotDirect, lower_program

__all__ = ["LaunchableKernel", "NotDirect", "compile_kernel", "direct_route", "trace_context"]

direct_route = mosaic_compile.direct_route

# torch and JAX share a GPU in one process. JAX's habit of taking 75% of its memory at start would
# starve torch, so unless the user or an earlier import of JAX has decided, JAX grows as it needs.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype for a numpy-style name; 4-bit types are torch.uint8, two elements a byte."""
    return torch.uint8 if name in ("int4", "uint4") else getattr(torch, name)


def _torch_shape(shape, dtype: str):
    if dtype not in ("int4", "uint4"):
        return tuple(shape)
    if not shape or shape[-1] % 2:
        raise NotDirect(f"a {dtype} array of shape {shape} has no whole bytes in its last row")
    return (*shape[:-1], shape[-1] // 2)


def trace_context(device: torch.device | None = None):
    """A context in which JAX traces kernels for this torch device, whatever JAX's own default is.

    Without a CUDA device the target is an H200, so that lowering can be tried anywhere.
    """
    kind, cores = "NVIDIA H200", 132
    if device is not None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        kind, cores = properties.name, properties.multi_processor_count
    abstract = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=abstract)
    return jax.sharding.use_abstract_mesh(mesh)


def _struct(leaf):
    if isinstance(leaf, torch.Tensor):
        return jax.ShapeDtypeStruct(leaf.shape, str(leaf.dtype).removeprefix("torch."))
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct.like(leaf)


def compile_kernel(fn, *args, device: torch.device | str | None = None):
    """Compiles a function of Mosaic kernels for direct launches on torch tensors.

    Args:
      fn: a JAX function made of `plgpu.kernel` calls, reshapes, bitcasts and splat constants.
      *args: its arguments, any pytrees, with torch tensors, JAX arrays or `ShapeDtypeStruct`s as
        leaves. Only shapes and dtypes are read.
      device: the torch device to compile for first; default torch's current CUDA device. Other
        devices compile at their first call.

    Returns:
      A `LaunchableKernel`, or where `direct_route()` is not supported a `DlpackKernel`, which is
      called the same way.

    Raises:
      NotDirect: `fn` computes something outside its kernels; the message names the operation.
    """
    leaves, tree = jax.tree.flatten(args)
    structs = [_struct(leaf) for leaf in leaves]
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    device = torch.device(device) if device is not None else None

    def flat_fn(*flat):
        return fn(*jax.tree.unflatten(tree, flat))

    with trace_context(device):
        program = lower_program(flat_fn, *structs)
    supported = direct_route()
    if not supported.ok:
        from torch_bridge.dlpack import wrap

        warnings.warn(
            "the direct route is off and kernels go through DLPack, about 0.3 ms a call: "
            + "; ".join(supported.reasons),
            stacklevel=2,
        )
        return wrap(jax.jit(flat_fn))
    kernel = LaunchableKernel(program)
    if device is not None and device.type == "cuda":
        kernel.prepare(device.index if device.index is not None else torch.cuda.current_device())
    return kernel


_compiled: dict[tuple[str, int], tuple] = {}
_compile_lock = threading.Lock()
_thread = threading.local()


def _load(call: mosaic_compile.KernelCall, index: int):
    """(CUfunction, host function) of a module on a device; compiled once in a process."""
    found = _compiled.get((call.key, index))
    if found is None:
        with _compile_lock, torch.cuda.device(index):
            found = _compiled.get((call.key, index))
            if found is None:
                _enter_context(index)
                found = mosaic_compile.kernel_library().compile(call.module)
                _compiled[call.key, index] = found
    return found


def _enter_context(index: int) -> None:
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


class LaunchableKernel:
    """Compiled Mosaic kernels as a function of torch tensors.

    `kernel(*tensors)` takes the leaves of the arguments it was compiled for, in order (or the
    arguments themselves, if they are more or fewer), and returns the JAX function's outputs as new
    torch tensors. `out=` (a tuple, one tensor an output) writes
    into given tensors instead. Thread safe; one object serves every device of one kind.

    Raises:
      ValueError: a tensor has another shape, dtype or device than compiled for, is not contiguous,
        or is not aligned to 16 bytes. Checked before anything is launched.
    """

    def __init__(self, program: mosaic_compile.Program):
        self.program = program
        self._specs = tuple(
            (torch_dtype(dtype), _torch_shape(shape, dtype)) for shape, dtype in program.arguments
        )
        self._num_buffers = len(program.buffers)
        self._outputs = tuple(
            (o.buffer, torch_dtype(o.dtype), _torch_shape(o.shape, o.dtype))
            for o in program.outputs
        )
        # What an output is allocated as: its own shape and dtype, so that most need no view.
        as_output = {index: (dtype, shape) for index, dtype, shape in reversed(self._outputs)}
        self._results, self._filled = [], []
        for i, b in enumerate(program.buffers):
            own = (torch_dtype(b.dtype), _torch_shape(b.shape, b.dtype))
            if b.kind == "result":
                self._results.append((i, *as_output.get(i, own)))
            elif b.kind == "filled":
                self._filled.append((i, *own, b.fill))
        self._single = jax.tree.structure(0) == program.out_tree
        self._flat_tuple = jax.tree.structure((0,) * len(self._outputs)) == program.out_tree
        self._devices: dict[int, tuple] = {}

    @property
    def num_launches(self) -> int:
        """Kernels that one call launches, fills of scratch memory included."""
        return len(self.program.kernels) + len(self._filled)

    def __repr__(self):
        args = ", ".join(f"{d}{list(s)}" for s, d in self.program.arguments)
        outs = ", ".join(f"{o.dtype}{list(o.shape)}" for o in self.program.outputs)
        return f"LaunchableKernel({args} -> {outs}; {len(self.program.kernels)} kernels)"

    def prepare(self, index: int):
        """Compiles and loads for a device, so that later calls there only launch."""
        device, kernels = torch.device("cuda", index), []
        for call in self.program.kernels:
            function, host = _load(call, index)
            array = ctypes.c_void_p * len(call.buffers)
            kernels.append((host, function, array, call.buffers))
        constants = []
        for i, b in enumerate(self.program.buffers):
            if b.kind == "constant" and any(i in k.buffers for k in self.program.kernels):
                shape, dtype = _torch_shape(b.shape, b.dtype), torch_dtype(b.dtype)
                constants.append((i, torch.full(shape, b.fill, dtype=dtype, device=device)))
        self._devices[index] = (device, tuple(kernels), tuple(constants))
        return self._devices[index]

    def __call__(self, *tensors, out=None):
        specs = self._specs
        if len(tensors) != len(specs):
            tensors = self._flatten(tensors)
        index = tensors[0].get_device()
        pointers = [0] * self._num_buffers
        aligned = 0
        for i, (tensor, (dtype, shape)) in enumerate(zip(tensors, specs, strict=True)):
            if (
                tensor.dtype is not dtype
                or tensor.shape != shape
                or tensor.get_device() != index
                or not tensor.is_contiguous()
            ):
                self._refuse(i, tensor, index)
            pointers[i] = pointer = tensor.data_ptr()
            aligned |= pointer
        if index < 0 or aligned & 15:
            self._refuse_all(tensors)
        if torch._C._cuda_getDevice() != index:
            with torch.cuda.device(index):
                return self._launch(index, tensors, pointers, out)
        return self._launch(index, tensors, pointers, out)

    def _flatten(self, arguments):
        """The leaves of pytrees, None among them dropped as JAX does."""
        leaves = tuple(jax.tree.leaves(arguments))
        if len(leaves) != len(self._specs):
            raise ValueError(f"expected {len(self._specs)} tensors, got {len(leaves)}")
        return leaves

    def _launch(self, index, tensors, pointers, out):
        if index not in _thread.__dict__.get("ready", ()):
            _enter_context(index)
        device, kernels, constants = self._devices.get(index) or self.prepare(index)
        memory = {}
        if out is not None:
            self._take_outputs(out, index, memory)
        for i, dtype, shape in self._results:
            tensor = memory.get(i)
            if tensor is None:
                memory[i] = tensor = torch.empty(shape, dtype=dtype, device=device)
            pointers[i] = tensor.data_ptr()
        for i, dtype, shape, fill in self._filled:
            memory[i] = tensor = torch.full(shape, fill, dtype=dtype, device=device)
            pointers[i] = tensor.data_ptr()
        for i, tensor in constants:
            pointers[i] = tensor.data_ptr()
        stream = torch._C._cuda_getCurrentRawStream(index)
        for host, function, array, used in kernels:
            host(function, stream, array(*[pointers[i] for i in used]))
        outputs = []
        for i, dtype, shape in self._outputs:
            tensor = memory[i] if i in memory else tensors[i]
            if tensor.shape != shape or tensor.dtype is not dtype:
                tensor = tensor.view(-1).view(dtype).view(shape)
            outputs.append(tensor)
        if self._single:
            return outputs[0]
        if self._flat_tuple:
            return tuple(outputs)
        return jax.tree.unflatten(self.program.out_tree, outputs)

    def _take_outputs(self, out, index, memory):
        given = (out,) if isinstance(out, torch.Tensor) else tuple(out)
        if len(given) != len(self._outputs):
            raise ValueError(f"out: expected {len(self._outputs)} tensors, got {len(given)}")
        for position, (tensor, (i, dtype, shape)) in enumerate(
            zip(given, self._outputs, strict=True)
        ):
            buffer = self.program.buffers[i]
            if buffer.kind != "result":
                raise ValueError(f"out: output {position} is not written by a kernel")
            if (
                tensor.dtype is not dtype
                or tensor.shape != shape
                or tensor.get_device() != index
                or not tensor.is_contiguous()
                or tensor.data_ptr() & 15
            ):
                raise ValueError(
                    f"out: output {position} must be a contiguous, 16-byte aligned {dtype} tensor "
                    f"of shape {shape} on cuda:{index}, got {_describe(tensor)}"
                )
            memory[i] = tensor

    def _refuse(self, i, tensor, index):
        dtype, shape = self._specs[i]
        where = f"cuda:{index}" if index >= 0 else "a CUDA device"
        raise ValueError(
            f"argument {i}: expected a contiguous {dtype} tensor of shape {shape} on {where}, "
            f"got {_describe(tensor)}"
        )

    def _refuse_all(self, tensors):
        for i, tensor in enumerate(tensors):
            if not tensor.is_cuda:
                raise ValueError(
                    f"argument {i}: these kernels run on a CUDA device, got {_describe(tensor)}"
                )
            if tensor.data_ptr() % mosaic_compile.POINTER_ALIGNMENT:
                raise ValueError(
                    f"argument {i}: its first element must lie on a 16-byte boundary; a view with "
                    f"storage offset {tensor.storage_offset()} does not; use .clone()"
                )
        raise AssertionError("a check refused tensors that are fine")


def _describe(tensor) -> str:
    layout = "" if tensor.is_contiguous() else f", strides {tuple(tensor.stride())}"
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}{layout}"



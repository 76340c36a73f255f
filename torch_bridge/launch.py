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

import functools
import os
import threading
import warnings
from collections.abc import Callable

import jax
import torch

from jaxkernels.mosaic import compile as mosaic_compile
from jaxkernels.mosaic.binary import Binary, Unloadable
from jaxkernels.mosaic.compile import NotDirect, lower_program
from torch_bridge import disk
from torch_bridge.dlpack import wrap
from torch_bridge.generated import describe, enter_context, generate, torch_dtype, torch_shape

__all__ = ["LaunchableKernel", "NotDirect", "compile_kernel", "direct_route", "trace_context"]

direct_route = mosaic_compile.direct_route

# torch and JAX share a GPU in one process. JAX's habit of taking 75% of its memory at start would
# starve torch, so unless the user or an earlier import of JAX has decided, JAX grows as it needs.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


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


def compile_kernel(fn, *args, device: torch.device | str | None = None, asked: str | None = None):
    """Compiles a function of Mosaic kernels for direct launches on torch tensors.

    Args:
      fn: a JAX function made of `plgpu.kernel` calls, reshapes, bitcasts and splat constants.
      *args: its arguments, any pytrees, with torch tensors, JAX arrays or `ShapeDtypeStruct`s as
        leaves. Only shapes and dtypes are read.
      device: the torch device to compile for first; default torch's current CUDA device. Other
        devices compile at their first call.
      asked: what names `fn` and its arguments for good, for a caller that can tell; with it a
        process finds on disk what another one has compiled, and traces nothing.

    Returns:
      A `LaunchableKernel`; or where `direct_route()` is not supported, with one warning, a
      function that is called the same way and goes through `wrap`.

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

    supported = direct_route()
    index = None
    if supported.ok and device is not None and device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
    kernel = None if index is None or asked is None else _from_disk(asked, index)
    if kernel is not None:
        return kernel
    with trace_context(device):
        program = lower_program(flat_fn, *structs)
    if not supported.ok:
        warn_no_direct_route(supported.reasons)
        return wrap(flat_fn)
    kernel = LaunchableKernel(program)
    if index is not None:
        kernel.prepare(index)
        if asked is not None:
            disk.store_program(asked, index, program)
    return kernel


def _from_disk(asked: str, index: int):
    """The kernel that an earlier process made of the same, loaded, or None."""
    program = disk.load_program(asked, index)
    if program is None:
        return None
    kernel = LaunchableKernel(program)
    try:
        kernel.prepare(index)
    except Unloadable:
        return None
    return kernel


@functools.cache
def warn_no_direct_route(reasons: tuple[str, ...]) -> None:
    """Says once that kernels are slow to call here, and why."""
    warnings.warn(
        "torch_bridge: kernels go through XLA and DLPack, with about 0.15 ms of host time a call "
        f"and no CUDA graphs: {'; '.join(reasons)}",
        stacklevel=3,
    )


_compiled: dict[tuple[str, int], tuple] = {}
_binaries: dict[tuple[str, str], Binary] = {}  # by module and what it was compiled for
_locks: dict[tuple[str, int], threading.Lock] = {}


def _load(call: mosaic_compile.KernelCall, index: int):
    """(CUfunction, host function) of a module on a device; compiled once, by whichever process."""
    found = _compiled.get((call.key, index))
    if found is not None:
        return found
    with _locks.setdefault((call.key, index), threading.Lock()), torch.cuda.device(index):
        found = _compiled.get((call.key, index))
        if found is None:
            enter_context(index)
            found = _compiled[call.key, index] = _load_or_compile(call, index)
    return found


def _load_or_compile(call: mosaic_compile.KernelCall, index: int):
    library, here = mosaic_compile.kernel_library(), (call.key, disk.environment(index))
    known = call.binary or _binaries.get(here) or disk.load_kernel(call.key, index)
    if known is not None:
        try:
            return library.load(known)
        except Unloadable:
            if not call.module:
                raise
    function, host, binary = library.compile(call.module)
    if binary is not None:
        _binaries[here] = binary
        disk.store_kernel(call.key, index, binary)
    return function, host


class Misaligned(ValueError):
    """A tensor starts off a 16-byte boundary: a copy of it would do."""


class LaunchableKernel:
    """Compiled Mosaic kernels as a function of torch tensors.

    `kernel(*tensors)` takes the leaves of the arguments it was compiled for, in order (or the
    arguments themselves, if they are more or fewer), and returns the JAX function's outputs as new
    torch tensors. `out=` (a tensor, or a tuple of one an output) writes into given tensors instead.
    Thread safe; one object serves every device of one kind.

    Raises:
      ValueError: a tensor has another shape, dtype or device than compiled for, is not contiguous,
        not aligned to 16 bytes, or its memory has been freed. Checked before anything is launched.
    """

    def __init__(self, program: mosaic_compile.Program):
        self.program = program
        self._specs = tuple(
            (torch_dtype(dtype), torch_shape(shape, dtype)) for shape, dtype in program.arguments
        )
        self._loaded: dict[int, list] = {}
        self._calls: dict[tuple, Callable] = {}

    def __repr__(self):
        args = ", ".join(f"{d}{list(s)}" for s, d in self.program.arguments)
        outs = ", ".join(f"{o.dtype}{list(o.shape)}" for o in self.program.outputs)
        return f"LaunchableKernel({args} -> {outs}; {len(self.program.kernels)} kernels)"

    def __call__(self, *tensors, out=None):
        if len(tensors) != len(self._specs):
            tensors = self._flatten(tensors)
        index = tensors[0].get_device()
        if out is not None:
            return self.on(index, "into")(self._take_outputs(out, index), *tensors)
        call = self._calls.get((index, "checked")) or self.on(index)
        return call(*tensors)

    def on(self, index: int, how: str = "checked") -> Callable:
        """The call for one CUDA device, compiled and loaded.

        `how` is "checked"; or "trusted", for a caller that vouches for every argument but the
        first's alignment; or "into", whose first argument is a tuple of outputs.
        """
        call = self._calls.get((index, how))
        if call is None:
            if index < 0:
                raise ValueError("argument 0: these kernels run on a CUDA device, got a CPU tensor")
            if index not in self._loaded:
                self._loaded[index] = [_load(k, index) for k in self.program.kernels]
            call = self._calls[index, how] = generate(self, index, how)
        return call

    def prepare(self, index: int) -> None:
        """Compiles and loads for a device, so that later calls there only launch."""
        self.on(index)

    def _flatten(self, arguments):
        """The leaves of pytrees, None among them dropped as JAX does."""
        leaves = tuple(jax.tree.leaves(arguments))
        if len(leaves) != len(self._specs):
            raise ValueError(f"expected {len(self._specs)} tensors, got {len(leaves)}")
        return leaves

    def _take_outputs(self, out, index):
        given = (out,) if isinstance(out, torch.Tensor) else tuple(out)
        outputs = self.program.outputs
        if len(given) != len(outputs):
            raise ValueError(f"out: expected {len(outputs)} tensors, got {len(given)}")
        if len({o.buffer for o in outputs}) != len(outputs):
            raise ValueError("out: this function returns one buffer twice; call it without out")
        for i, (tensor, o) in enumerate(zip(given, outputs, strict=True)):
            if self.program.buffers[o.buffer].kind != "result":
                raise ValueError(f"out: output {i} is not written by a kernel")
            dtype, shape = torch_dtype(o.dtype), torch_shape(o.shape, o.dtype)
            if (
                tensor.dtype is not dtype
                or tensor.shape != shape
                or tensor.get_device() != index
                or not tensor.is_contiguous()
                or tensor.data_ptr() % mosaic_compile.POINTER_ALIGNMENT
            ):
                raise ValueError(
                    f"out: output {i} must be a contiguous, 16-byte aligned {dtype} tensor of "
                    f"shape {shape} on cuda:{index}, got {describe(tensor)}"
                )
        return given

    def _refuse(self, index, *tensors):
        """Raises for the first argument that is not what the kernels were compiled for."""
        for i, (tensor, (dtype, shape)) in enumerate(zip(tensors, self._specs, strict=True)):
            if (
                tensor.dtype is not dtype
                or tensor.shape != shape
                or tensor.get_device() != index
                or not tensor.is_contiguous()
            ):
                raise ValueError(
                    f"argument {i}: expected a contiguous {dtype} tensor of shape {shape} on "
                    f"cuda:{index}, got {describe(tensor)}"
                )
            if tensor.numel() and not tensor.data_ptr():
                raise ValueError(f"argument {i}: its memory has been freed")
            if tensor.data_ptr() % mosaic_compile.POINTER_ALIGNMENT:
                raise Misaligned(
                    f"argument {i}: its first element must lie on a 16-byte boundary; a view with "
                    f"storage offset {tensor.storage_offset()} does not; use .clone()"
                )
        raise AssertionError("a check refused tensors that are fine")

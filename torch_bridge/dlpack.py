# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The DLPack route: torch tensors and JAX arrays as views of one memory, for any JAX function.

The rules, each with a test:

* Every dtype that both have crosses as itself, float8 included. 4-bit arrays cross packed, two
  elements a byte, as uint8. 64-bit types cross only with jax_enable_x64: nothing is narrowed.
* A dense tensor in any order of its dimensions crosses without a copy. One with gaps, broadcast or
  misaligned memory is copied with `copy=None`, and refused with `copy=False`.
* Streams: `to_jax` lets JAX wait for the torch stream that is current, `to_torch` lets the current
  torch stream wait for JAX, both by events on the device. On a GPU the host waits for nothing.
* Lifetime: the source stays alive until the other side has let go of its view, and a tensor until
  JAX has read it. The memory of an array goes back to JAX with the last tensor over it; torch work
  that still reads it, on the stream that got it, is waited for by the next call into JAX through
  here, on whatever stream.
* JAX arrays are immutable, and JAX relies on it. Treat what `to_torch` returns as read-only and
  leave a tensor alone while an array made of it is in use; `copy=True` gives memory of its own.
"""

import atexit
import contextlib
import ctypes
import functools
import queue
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import torch

from jaxkernels.mosaic import interop

__all__ = ["to_jax", "to_torch", "wrap"]

# What JAX wants on a CPU; XLA's GPU kernels assume 16. Torch's own allocations satisfy both.
_ALIGNMENT = 64
_64_BIT = (torch.float64, torch.int64, torch.uint64, torch.complex128)
# What crosses as it is, whatever JAX's configuration and the tensor's views.
_CROSSING = frozenset(
    getattr(torch, name)
    for name in ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8",
                 "int16", "uint16", "int32", "uint32", "bool")
)  # fmt: skip


def to_jax(tensor: torch.Tensor, *, copy: bool | None = None) -> jax.Array:
    """A JAX array with a torch tensor's values, on the same device.

    Args:
      tensor: a dense CPU or CUDA tensor that needs no gradient.
      copy: None shares memory where the layout allows and copies where not; False shares or
        raises; True always copies.

    Raises:
      TypeError: not a tensor, or a dtype that JAX lacks (64-bit ones unless `jax_enable_x64`).
      ValueError: it needs a gradient, a copy while `copy=False`, its memory has been freed, or JAX
        lacks its device.

    Example:
      >>> to_jax(torch.arange(6, dtype=torch.int32).reshape(2, 3).T)
      Array([[0, 3],
             [1, 4],
             [2, 5]], dtype=int32)
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.requires_grad:
        raise ValueError(
            "tensor: it needs a gradient, which a JAX array cannot carry back; use wrap(fn) for a "
            "differentiable call, or tensor.detach()"
        )
    if tensor.dtype in _64_BIT and not jax.config.jax_enable_x64:
        raise TypeError(
            f"tensor: {tensor.dtype} would be narrowed to 32 bits by JAX; convert it first, or set "
            "jax_enable_x64"
        )
    if tensor.layout is not torch.strided or tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"tensor: expected a dense CPU or CUDA tensor, got {tensor.layout} on {tensor.device}"
        )
    if tensor.numel() and not tensor.data_ptr():
        raise ValueError(f"tensor: the memory of {tuple(tensor.shape)} numbers has been freed")
    if copy is True:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    elif tensor.is_conj() or tensor.is_neg() or not _is_compact(tensor):
        if copy is False:
            raise ValueError(
                f"tensor: shape {tuple(tensor.shape)} with strides {tuple(tensor.stride())} is not "
                "dense memory, so JAX needs a copy, and copy=False forbids it"
            )
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
    elif tensor.data_ptr() % _ALIGNMENT:
        if copy is False:
            raise ValueError(
                f"tensor: its first element, at storage offset {tensor.storage_offset()}, is not "
                f"on a {_ALIGNMENT}-byte boundary, so JAX needs a copy, and copy=False forbids it"
            )
        tensor = tensor.clone()
    array = _share(tensor, _joined_stream(tensor.device))
    if tensor.is_cuda:
        weakref.finalize(array, _retired.put, (array.device, tensor)).atexit = False
        _start_reaper()
    return array


def _share(tensor: torch.Tensor, stream: int | None) -> jax.Array:
    """The array of a compact, aligned tensor, which the caller keeps until JAX has read it.

    `stream` is what `_joined_stream` gave for the tensor's device.
    """
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    array = interop.from_capsule(capsule, jax_device(tensor.device), stream)
    return jax.dlpack.from_dlpack(tensor) if array is None else array


_local = threading.local()


def _joined_stream(device: torch.device) -> int | None:
    """A stream of JAX's that waits for torch's current one; JAX takes readiness from no other.

    None on a CPU. One for all tensors of a call, and one event for all calls of a thread: a wait
    is for the event's last record, and between a thread's record and wait no other thread's comes.
    """
    if device.type != "cuda":
        return None
    stream = jax_device(device).get_stream_for_external_ready_events()
    events = _local.__dict__.setdefault("events", {})
    event = events.get(device)
    if event is None:
        event = events[device] = torch.cuda.Event()
    theirs = _external_stream(stream, device)
    handle = torch._C._cuda_getCurrentRawStream(device.index)
    event.record(_current_stream(handle, device))
    event.wait(theirs)
    readers = _readers.get(device, ())
    if len(readers) > 1 or (readers and handle not in readers):
        # What they have read by now may be given to somebody else from now on.
        for other, reader in list(readers.items()):
            if other != handle and not _captures(other):
                readers.pop(other, None)  # first: who reads from here on is noted again
                event.record(reader)
                event.wait(theirs)
    return stream


# Streams that were given results of JAX. When a tensor over one goes, its memory is JAX's again at
# once, while its stream may still have to read it: JAX's next work waits for all of these.
_readers: dict[torch.device, dict[int, torch.cuda.Stream]] = {}


def _reading_stream(device: torch.device) -> int:
    """Torch's current stream, in DLPack's numbers, noted as one that reads what JAX has made."""
    handle = torch._C._cuda_getCurrentRawStream(device.index)
    readers = _readers.get(device)
    if readers is None:
        readers = _readers.setdefault(device, {})
    if handle not in readers:
        stream = _current_stream(handle, device)
        if handle == 0 or stream.stream_id != handle:  # else not torch's own: it may go any time
            readers[handle] = stream
    return handle or 1  # torch's default stream is CUDA's legacy one, which DLPack calls 1


def _captures(handle: int) -> bool:
    """Whether a CUDA graph is being captured from a stream, or of all streams."""
    status = ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    code = driver.cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status))
    return code != 0 or status.value != 0


@functools.lru_cache(256)
def _current_stream(handle: int, device: torch.device) -> torch.cuda.Stream:
    """Torch's current stream, whose handle this is; to ask for the object takes 4 us each time."""
    return torch.cuda.current_stream(device)


@functools.cache
def _external_stream(handle: int, device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.ExternalStream(handle, device)


# When an array over a tensor's memory goes, JAX may still be about to read it: its computations run
# behind the host, and JAX gives the memory back at once. So the tensor is kept, and one thread lets
# go of it when everything that JAX had been given by then is done. Likewise an array whose memory
# torch is copying: it is kept until the copy is done.
_retired: queue.SimpleQueue = queue.SimpleQueue()  # its put may be called from a finalizer


@functools.cache
def _start_reaper() -> None:
    thread = threading.Thread(target=_reap, name="torch_bridge-reaper", daemon=True)
    thread.start()

    # A daemon thread that waits inside JAX while the interpreter goes takes the process with it.
    def stop():
        _retired.put(None)
        thread.join(timeout=30)

    atexit.register(stop)


def _reap() -> None:
    # What this thread asks of CUDA must not end a graph capture in another: mode 2 is "relaxed".
    with contextlib.suppress(OSError):
        mode = ctypes.byref(ctypes.c_int(2))
        ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(mode)
    tick, zero = jax.jit(lambda x: x + 1), functools.cache(lambda d: jax.device_put(0, d))
    stopping = False
    while not stopping:
        items = [_retired.get()]
        while not _retired.empty():  # one wait for all that came meanwhile
            items.append(_retired.get())
        stopping = None in items
        items = [item for item in items if item is not None]
        for event in [after for after, _ in items if isinstance(after, torch.cuda.Event)]:
            while not event.query():
                time.sleep(0.0005)
        # A device runs what it is given in order, so this is done when all before it is.
        devices = {after for after, _ in items if not isinstance(after, torch.cuda.Event)}
        jax.block_until_ready([tick(zero(device)) for device in devices])
        items.clear()  # here and not at the next round, which may be long after


def _is_compact(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory in some order of the dimensions."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def to_torch(array: jax.Array, *, copy: bool | None = None) -> torch.Tensor:
    """A torch tensor with a JAX array's values, on the same device.

    Args:
      array: an array on one CPU or CUDA device.
      copy: None and False share the memory (read-only: JAX takes the array for immutable);
        True copies into memory of torch's own.

    Raises:
      TypeError: not an array with values (a tracer), or a dtype that torch lacks.
      ValueError: it lives on several devices.

    Example:
      >>> to_torch(jnp.float32([1, 2]))
      tensor([1., 2.])
    """
    if isinstance(array, jax.core.Tracer):
        raise TypeError(
            "array: it is being traced and has no values; to_torch works outside jit, grad and vmap"
        )
    if not isinstance(array, jax.Array):
        raise TypeError(f"array: expected a jax.Array, got {type(array).__name__}")
    if jnp.dtype(array.dtype).name in ("int4", "uint4", "int2", "uint2"):
        raise TypeError(
            f"array: {array.dtype} has no torch counterpart; pack two elements a byte into uint8"
        )
    if len(array.devices()) != 1:
        raise ValueError(
            f"array: it is spread over {len(array.devices())} devices; gather it onto one first"
        )
    tensor = torch.from_dlpack(array)
    if tensor.is_cuda:
        _reading_stream(tensor.device)
    if not copy:
        return tensor
    copied = tensor.clone()
    if copied.is_cuda:
        _retired.put((torch.cuda.current_stream(copied.device).record_event(), array))
        _start_reaper()
    return copied


def wrap(fn, *, jit: bool = True):
    """Makes a JAX function callable with torch tensors, gradients included.

    Args:
      fn: a JAX function of pytrees of arrays, returning a pytree of arrays. Leaves that are not
        torch tensors go through as they are: numbers as traced scalars, JAX arrays as themselves.
      jit: compile `fn` (once for each combination of shapes and dtypes); False calls it as it is,
        for functions that are jit-ed already or cannot be.

    Returns:
      A function of the same signature on torch tensors, all on one device; results are tensors on
      that device. Floating inputs that require a gradient get one, by `jax.vjp` (once: the gradient
      itself cannot be differentiated again).

    Example:
      >>> sine = wrap(jnp.sin)
      >>> x = torch.zeros(3, requires_grad=True)
      >>> sine(x).sum().backward(); x.grad
      tensor([1., 1., 1.])
    """
    wrapped = _Wrapped(fn, jit)
    # torch.compile breaks its graph here; what it can take is the ops of torch_bridge.ops.
    apart = torch.compiler.disable(wrapped)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return apart(args, kwargs)
        return wrapped(args, kwargs)

    return call


class _Wrapped:
    def __init__(self, fn, jit):
        maybe_jit = jax.jit if jit else lambda f: f
        self.forward = maybe_jit(lambda args, kwargs: fn(*args, **kwargs))

        def with_vjp(treedef, positions, differentiable, fixed):
            def of_differentiable(leaves):
                args, kwargs = jax.tree.unflatten(treedef, _merge(positions, leaves, fixed))
                outputs, tree = jax.tree.flatten(fn(*args, **kwargs))
                smooth = [jnp.issubdtype(o.dtype, jnp.inexact) for o in outputs]
                floats = [o for o, is_smooth in zip(outputs, smooth, strict=True) if is_smooth]
                rest = [o for o, is_smooth in zip(outputs, smooth, strict=True) if not is_smooth]
                return floats, (rest, _Static((tree, tuple(smooth))))

            floats, pullback, (rest, static) = jax.vjp(
                of_differentiable, differentiable, has_aux=True
            )
            return floats, rest, static, pullback

        self.with_vjp = jax.jit(with_vjp, static_argnums=(0, 1)) if jit else with_vjp
        self.pull = maybe_jit(lambda pullback, cotangents: pullback(cotangents)[0])

    def __call__(self, args, kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        device = _one_device(tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self._differentiable(leaves, treedef, device)
        with _on(device):
            args, kwargs = jax.tree.unflatten(treedef, _passing(leaves, device))
            result = self.forward(args, kwargs)
        if isinstance(result, jax.Array):
            return _returning(result, device)
        return jax.tree.map(lambda array: _returning(array, device), result)

    def _differentiable(self, leaves, treedef, device):
        needs = [isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves]
        positions = tuple(i for i, need in enumerate(needs) if need)
        fixed = [v for v, need in zip(leaves, needs, strict=True) if not need]
        fixed = _passing(fixed, device)
        result = {}  # filled by forward: torch wants the outputs themselves as its return value

        def forward(*differentiable):
            arrays = _passing(differentiable, device)
            with _on(device):
                floats, rest, static, pullback = self.with_vjp(treedef, positions, arrays, fixed)
            result.update(rest=rest, static=static.value)
            return [to_torch(f) for f in floats], pullback

        def backward(pullback, gradients):
            with _on(device):
                return [to_torch(g) for g in self.pull(pullback, _passing(gradients, device))]

        floats = _Vjp.apply(forward, backward, *(leaves[i] for i in positions))
        tree, smooth = result["static"]
        floats, rest = iter(floats), iter(result["rest"])
        return jax.tree.unflatten(
            tree, [next(floats) if is_smooth else to_torch(next(rest)) for is_smooth in smooth]
        )


def _passing(leaves, device: torch.device) -> list:
    """The leaves, tensors as arrays, for a call whose results torch's stream awaits.

    That orders the reuse of their memory, so nothing has to be kept as in `to_jax`.
    """
    stream = _joined_stream(device)
    return [_pass(v, stream) if isinstance(v, torch.Tensor) else v for v in leaves]


def _pass(tensor: torch.Tensor, stream: int | None) -> jax.Array:
    if tensor.requires_grad:
        tensor = tensor.detach()
    pointer = tensor.data_ptr()
    if (
        pointer  # else empty, or freed
        and not pointer % _ALIGNMENT
        and tensor.is_contiguous()
        and tensor.dtype in _CROSSING
        and not tensor.is_neg()
    ):
        return _share(tensor, stream)
    return to_jax(tensor)


def _returning(array: jax.Array, device: torch.device) -> torch.Tensor:
    """`to_torch` for the results of a call on one device."""
    stream = _reading_stream(device) if device.type == "cuda" else None
    capsule = interop.to_capsule(array, stream)
    return to_torch(array) if capsule is None else torch.utils.dlpack.from_dlpack(capsule)


@jax.tree_util.register_static
class _Static:
    """A value that passes through jit as part of the structure."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return hash(self.value)

    def __eq__(self, other):
        return isinstance(other, _Static) and self.value == other.value


class _Vjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, forward, backward, *differentiable):
        outputs, ctx.pullback = forward(*differentiable)
        ctx.pull = backward
        ctx.specs = [(o.shape, o.dtype, o.device) for o in outputs]
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        gradients = [
            torch.zeros(shape, dtype=dtype, device=device) if g is None else g.contiguous()
            for g, (shape, dtype, device) in zip(gradients, ctx.specs, strict=True)
        ]
        return (None, None, *ctx.pull(ctx.pullback, gradients))


def _merge(positions, chosen, rest):
    """The leaves in their places: `chosen` at `positions`, `rest` in between."""
    leaves = list(rest)
    for position, leaf in zip(positions, chosen, strict=True):  # positions ascend
        leaves.insert(position, leaf)
    return leaves


def _one_device(tensors):
    device = tensors[0].device if tensors else torch.device("cpu")
    for tensor in tensors[1:]:
        if tensor.device != device:
            names = ", ".join(sorted({str(t.device) for t in tensors}))
            raise ValueError(f"expected all tensors on one device, got {names}")
    return device


@functools.cache
def jax_device(device: torch.device) -> jax.Device:
    """The JAX device that is this torch device: on CUDA the one of the same local number.

    Raises:
      ValueError: JAX does not have it in this process.
    """
    index = 0 if device.type == "cpu" else device.index or 0
    try:
        candidates = jax.local_devices(backend=device.type)
    except RuntimeError as e:
        raise ValueError(
            f"device: a tensor on {device} needs JAX's {device.type} backend, which is not here "
            f"({e}); install jax[cuda13], and let JAX_PLATFORMS, if it is set, name {device.type}"
        ) from None
    for candidate in candidates:
        if device.type == "cpu" or candidate.local_hardware_id == index:
            return candidate
    raise ValueError(f"device: JAX does not see {device}; it has {candidates}")


def _on(device: torch.device):
    """Constants and scalars of the call go where its tensors are."""
    if jax.config.jax_default_device is None and _is_first(device):
        return _NOTHING
    return jax.default_device(jax_device(device))


_NOTHING = contextlib.nullcontext()


@functools.cache
def _is_first(device: torch.device) -> bool:
    """Whether JAX uses this device when nobody says which; then nothing has to be said."""
    return jax_device(device) == jax.local_devices()[0]

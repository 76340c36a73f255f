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

import contextlib
import functools
import sys
import weakref

import jax
import jax.numpy as jnp
import torch

from jaxkernels.mosaic import interop
from torch_bridge.streams import (
    is_first,
    jax_device,
    joined_stream,
    keeps_current_device,
    reading_stream,
    retired,
    start_reaper,
)

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


@keeps_current_device
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
    array = _share(tensor, joined_stream(tensor.device))
    if tensor.is_cuda:
        weakref.finalize(array, retired.put, (array.device, tensor)).atexit = False
        start_reaper()
    return array


def _share(tensor: torch.Tensor, stream: int | None) -> jax.Array:
    """The array of a compact, aligned tensor, which the caller keeps until JAX has read it.

    `stream` is what `joined_stream` gave for the tensor's device.
    """
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    array = interop.from_capsule(capsule, jax_device(tensor.device), stream)
    return jax.dlpack.from_dlpack(tensor) if array is None else array


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


@keeps_current_device
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
        reading_stream(tensor.device)
    if not copy:
        return tensor
    copied = tensor.clone()
    if copied.is_cuda:
        retired.put((torch.cuda.current_stream(copied.device).record_event(), array))
        start_reaper()
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

    def __del__(self):
        if not sys.is_finalizing():  # to free what was compiled, JAX makes its device current
            keeps_current_device(self.__dict__.clear)()

    @keeps_current_device
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

        @keeps_current_device
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
    stream = joined_stream(device)
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
    stream = reading_stream(device) if device.type == "cuda" else None
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


def _on(device: torch.device):
    """Constants and scalars of the call go where its tensors are."""
    if jax.config.jax_default_device is None and is_first(device):
        return _NOTHING
    return jax.default_device(jax_device(device))


_NOTHING = contextlib.nullcontext()

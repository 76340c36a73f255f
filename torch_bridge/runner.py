# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""One quantized linear layer, run on torch tensors by whichever route fits its device.

A `Runner` holds what is compiled for a kind of layer: a `Scheme` (how activations are quantized,
which implementations are tried) and the shapes of its `Operands`. Layers of one kind share it.
M is served in buckets: the rows of x are padded up to the next of 23 sizes (up to 8192), so that
no M after the first few compiles anything, and a whole model needs few variants.

On a GPU a variant is a `LaunchableKernel`; what cannot be launched directly, and everything on a
CPU, is a jit-ed JAX function behind DLPack. Both are called the same way.
"""

import bisect
import dataclasses
import functools
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from torch.utils.weak import WeakIdKeyDictionary

from jaxkernels import mixed_mm, quantize_fp8, quantize_int8, w4a8_linear, w8a8_linear
from jaxkernels.quantized import QuantizedTensor
from torch_bridge import launch
from torch_bridge.dlpack import _passing, _returning, to_jax
from torch_bridge.streams import working_on

# At most a third of a padded batch is padding, and M up to 8192 needs 23 variants.
BUCKETS = (
    1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192,
)  # fmt: skip
_LARGEST = BUCKETS[-1]
_BUCKET_OF = tuple(BUCKETS[bisect.bisect_left(BUCKETS, m)] for m in range(_LARGEST + 1))


def bucket(m: int) -> int:
    """The number of rows that m rows are run as; above 8192, the next multiple of 2048.

    Example:
      >>> [bucket(m) for m in (1, 3, 17, 1000, 10_000)]
      [1, 4, 24, 1024, 10240]
    """
    return _BUCKET_OF[m] if m <= _LARGEST else -(-m // 2048) * 2048


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What is done with a layer's operands, apart from their values.

    Attributes:
      activation: None (x stays as it is: `mixed_mm`), or as in `jaxkernels.w8a8_linear`: "int8",
        "int8-asym", "fp8", "fp8-tensor", "fp8-group".
      implementations: what the GEMM's op may run, in order; None for its own order.
      out_dtype: name of the result's dtype; None is x's.
    """

    activation: str | None
    implementations: tuple[str, ...] | None = None
    out_dtype: str | None = None


class Operands(NamedTuple):
    """A layer's arrays. Leaves are torch tensors, JAX arrays or structs; a pytree.

    Attributes:
      w: the weight.
      x_scale: float32, one number: the activation scale of a static scheme.
      azp: int32, one number: the activation zero point of a static asymmetric scheme.
      azp_adj: int32 [1, N], `sum_k w[n, k]`; times azp in a static scheme.
      scale_ub: float32, one number: caps what a token's scale is made from ("fp8").
    """

    w: QuantizedTensor
    x_scale: Any = None
    azp: Any = None
    azp_adj: Any = None
    scale_ub: Any = None


def linear(scheme: Scheme, x: jax.Array, operands: Operands, bias: jax.Array | None) -> jax.Array:
    """The layer as a JAX function: `x [M, K]` to `[M, N]`."""
    w, x_scale, azp, azp_adj, scale_ub = operands
    out_dtype = scheme.out_dtype or x.dtype
    how = {"bias": bias, "out_dtype": out_dtype, "implementation": scheme.implementations}
    if scheme.activation is None:
        return mixed_mm(x, w, **how)
    if w.packed and w.scale.dtype == jnp.float8_e4m3fn:  # split scales, see `weights.mixed`
        return w4a8_linear(x, w, **how)
    if w.packed or w.granularity == "group":
        return _quantized_then_mixed(scheme, x, w, how)
    return w8a8_linear(
        x,
        w,
        activation=scheme.activation,
        x_scale=x_scale,
        azp=azp,
        azp_adj=azp_adj,
        scale_ub=scale_ub,
        **how,
    )


def _quantized_then_mixed(scheme, x, w, how):
    """Activations rounded to 8 bits per token, then the mixed product on their values.

    For classes that `mixed_mm` backs, though the layer asks for 8-bit activations.
    """
    if scheme.activation == "fp8":
        q, x_scale = quantize_fp8(x)
    else:
        q, x_scale, _ = quantize_int8(x)
    bias = how.pop("bias")
    how["out_dtype"], out_dtype = jnp.float32, how["out_dtype"]
    y = mixed_mm(q.astype(jnp.bfloat16), w, **how) * x_scale  # 8-bit values are exact in bfloat16
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(out_dtype)


def runner_for(scheme: Scheme, operands: Operands) -> "Runner":
    """The runner of layers with these shapes; one for all of them."""
    leaves, tree = jax.tree.flatten(operands)
    return _runner(scheme, tree, tuple((tuple(v.shape), _name(v.dtype)) for v in leaves))


@functools.cache
def _runner(scheme, tree, specs):
    return Runner(scheme, tree, specs)


def _name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Runner:
    """Compiled variants of one kind of layer, by rows, dtype and device."""

    def __init__(self, scheme: Scheme, tree, specs):
        self.scheme = scheme
        self._tree = tree
        self._structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in specs]
        self.n, self.k = jax.tree.unflatten(tree, self._structs).w.shape
        self._variants: dict[tuple, Any] = {}
        self._locks: dict[tuple, threading.Lock] = {}

    def __call__(self, x: torch.Tensor, leaves, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x [M, K]` contiguous, M > 0, and the operands' leaves, all on one device."""
        m = x.shape[0]
        rows = _BUCKET_OF[m] if m <= _LARGEST else bucket(m)
        key = (rows, x.dtype, x.device, bias is None or bias.dtype)
        variant = self._variants.get(key) or self._compile(key)
        if rows != m:
            # Rows are independent, so what the added ones hold matters to a shared scale only.
            fresh = x.new_zeros if self.scheme.activation == "fp8-tensor" else x.new_empty
            padded = fresh((rows, self.k))
            padded[:m] = x
            x = padded
        try:
            y = variant(x, *leaves) if bias is None else variant(x, *leaves, bias)
        except launch.Misaligned:  # views into the middle of something
            leaves = [leaf.clone() if leaf.data_ptr() & 15 else leaf for leaf in leaves]
            more = [] if bias is None else [bias.clone()]
            y = variant(x.clone(), *leaves, *more)
        return y if rows == m else y[:m]

    def variants(self) -> list[tuple]:
        """(rows, dtype, device, route) of everything compiled so far."""
        found = [
            (*key[:3], "jax" if isinstance(variant, _Jitted) else "direct")
            for key, variant in self._variants.items()
        ]
        return sorted(found, key=str)

    def warmup(self, max_m: int, dtype: torch.dtype, device: torch.device, bias_dtype=None) -> int:
        """Compiles every variant that serves 1 to max_m rows; returns how many there are.

        On a GPU each is loaded too, so that it can be captured. Threads share the work: a compiler
        runs without the GIL.
        """
        if max_m < 1:
            raise ValueError(f"max_m: expected at least 1, got {max_m}")
        rows = [b for b in BUCKETS if b < max_m] + [bucket(max_m)]
        if max_m > _LARGEST:
            rows += range(_LARGEST + 2048, bucket(max_m), 2048)
        bias = True if bias_dtype is None else bias_dtype
        keys = [(size, dtype, device, bias) for size in rows]
        missing = [key for key in keys if key not in self._variants]
        if missing:
            _refuse_in_capture(missing[0])
            with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1, 16)) as pool:
                list(pool.map(self._compile, missing))
        return len(rows)

    def _compile(self, key):
        _refuse_in_capture(key)
        rows, dtype, device, bias_dtype = key
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._variants:
                self._variants[key] = self._build(rows, dtype, device, bias_dtype)
            return self._variants[key]

    def _build(self, rows, dtype, device, bias_dtype):
        structs = [jax.ShapeDtypeStruct((rows, self.k), _name(dtype)), *self._structs]
        if bias_dtype is not True:
            structs.append(jax.ShapeDtypeStruct((self.n,), _name(bias_dtype)))
        count = len(self._structs)

        def function(x, *leaves):
            operands = jax.tree.unflatten(self._tree, leaves[:count])
            return linear(self.scheme, x, operands, *(leaves[count:] or (None,)))

        if device.type == "cuda" and launch.direct_route().ok:
            try:
                asked = repr((self.scheme, self._tree, structs, bias_dtype))
                kernel = launch.compile_kernel(function, *structs, device=device, asked=asked)
                # The layer vouches for its own tensors, and the key for x.
                return kernel.on(device.index, "trusted")
            except launch.NotDirect as e:
                _warn_not_direct(self.scheme, str(e))
        elif device.type == "cuda":
            launch.warn_no_direct_route(launch.direct_route().reasons)
        return _Jitted(function, device)


def _refuse_in_capture(key) -> None:
    rows, dtype, device, _ = key
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"no kernel is compiled for {rows} rows of {dtype} yet, and a CUDA graph is being "
            "captured; call torch_bridge.warmup, or the layer itself, before the capture"
        )


@functools.cache
def _warn_not_direct(scheme, reason):
    warnings.warn(
        f"torch_bridge: {scheme} runs through XLA and DLPack, with about 0.15 ms of host time a "
        f"call and no CUDA graphs: {reason}",
        stacklevel=2,
    )


# JAX's views of weights, so that a call converts its activations only. Keyed by the tensor object;
# an entry is stale once the tensor has other memory.
_views: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _view(tensor: torch.Tensor) -> jax.Array:
    found = _views.get(tensor)
    if found is not None and found[0] == tensor.data_ptr():
        return found[1]
    array = to_jax(tensor.detach())
    if array.unsafe_buffer_pointer() == tensor.data_ptr():  # a view, so it follows later writes
        _views[tensor] = (tensor.data_ptr(), array)
    return array


class _Jitted:
    """A jit-ed JAX function on torch tensors: x first, then tensors that live on."""

    def __init__(self, function, device: torch.device):
        self._function = jax.jit(function)
        self._where = device

    def __call__(self, x, *leaves):
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "this layer runs through XLA and DLPack, which a CUDA graph cannot capture; the "
                "warning at its first call says why it has no direct launch"
            )
        with working_on(self._where):
            [x] = _passing([x], self._where)
            return _returning(self._function(x, *map(_view, leaves)), self._where)

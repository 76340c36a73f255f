# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""DLPack into and out of JAX, without what its public functions do around it.

`jax.dlpack.from_dlpack` looks the device up, lets the producer order a stream of JAX's after its
own by way of fresh Python objects, and canonicalizes a dtype that needs none: three quarters of
its host time. `Array.__dlpack__` looks up platform, sharding and version: as much. Where the
private entry points are missing, the public ones serve.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

try:
    from jax._src.lib import _jax

    _import = _jax.dlpack_managed_tensor_to_buffer
    _export = _jax.buffer_to_dlpack_managed_tensor
except (ImportError, AttributeError):
    _import = _export = None

_DL_CPU, _DL_CUDA = 1, 2


def from_capsule(capsule: Any, device: jax.Device, stream: int | None) -> jax.Array | None:
    """An array of a DLPack capsule's memory, or None where only the public function can make it.

    Args:
      capsule: a fresh, unversioned capsule; nobody has waited for its data yet.
      device: where the memory is.
      stream: what `device.get_stream_for_external_ready_events()` gave (no other is taken), and
        the caller has ordered after the memory's last write; None on a CPU.

    The memory must be dense and aligned to 64 bytes: where JAX refuses a capsule it releases it
    twice, so nothing may get here that it could refuse.
    """
    if _import is None:
        return None
    return _import(capsule, device, stream, None, _DL_CPU if stream is None else _DL_CUDA)


# What torch's import takes from a capsule; 4-bit types and those it lacks go the public way.
_EXPORTED = frozenset(
    jnp.dtype(name)
    for name in ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8",
                 "int16", "uint16", "int32", "uint32", "int64", "float64", "bool")
)  # fmt: skip


def to_capsule(array: Any, stream: int | None) -> Any:
    """A DLPack capsule of an array, or None where only the public way can make it.

    Args:
      array: on one device.
      stream: the consumer's CUDA stream, in DLPack's numbers, which then waits for the array;
        None on a CPU, where the host has to wait.
    """
    if _export is None or array.dtype not in _EXPORTED or len(getattr(array, "_arrays", ())) != 1:
        return None
    try:
        return _export(array, stream=stream)
    except jax.errors.JaxRuntimeError:  # it is not where the caller's tensors are
        return None

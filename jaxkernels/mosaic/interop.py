# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""DLPack into JAX, without what `jax.dlpack.from_dlpack` does around it.

The public function looks the device up, lets the producer order a stream of JAX's after its own
by way of fresh Python objects, and canonicalizes a dtype that needs none: three quarters of its
host time. Where the private entry point is missing, the public one serves.
"""

from __future__ import annotations

from typing import Any

import jax

try:
    from jax._src.lib import _jax

    _import = _jax.dlpack_managed_tensor_to_buffer
except (ImportError, AttributeError):
    _import = None

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

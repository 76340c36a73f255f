# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Running Mosaic GPU kernels on a CPU, thread by thread, with race detection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax._src import config as _jax_config
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks as _callbacks
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.device import abstract_mesh


@contextlib.contextmanager
def interpreted(
    kind: str = "NVIDIA H200", *, num_sms: int = 4, detect_races: bool = True
) -> Iterator[None]:
    """Interprets every Mosaic kernel traced inside, as if on a small GPU of this kind.

    Values are computed by the CPU, each warpgroup in a thread of its own; barriers and
    asynchronous copies are simulated. A data race or a barrier left in a bad state raises.

    Each warpgroup of a cluster blocks a thread of XLA's CPU pool. On a machine with few cores a
    large cluster would wait for ever: set the environment variable NPROC to 32, say, before JAX
    starts (the pool's size comes from there).

    Args:
      kind: device name, as `find_device` knows it.
      num_sms: streaming multiprocessors to simulate; fewer are faster.
      detect_races: whether conflicting accesses without an order between them raise.

    Example:
      >>> import jax.numpy as jnp
      >>> def double(x_gmem, y_gmem):
      ...     y_gmem[...] = x_gmem[...] + x_gmem[...]
      >>> x = jnp.arange(128, dtype=jnp.float32)
      >>> with interpreted():
      ...     y = plgpu.kernel(double, out_type=jax.typeof(x))(x)
      >>> float(y[3])
      6.0
    """
    params = plgpu.InterpretGPUParams(detect_races=detect_races)
    detectors = []  # one a kernel: JAX keeps only the last one

    def detector(*args, **kwargs):
        detectors.append(make_detector(*args, **kwargs))
        return detectors[-1]

    make_detector = _callbacks.GPURaceDetectionState
    _callbacks.reset_gpu_interpret_mode_state()
    try:
        _callbacks.GPURaceDetectionState = detector
        with (
            jax.sharding.use_abstract_mesh(abstract_mesh(kind, num_sms)),
            plgpu.force_gpu_interpret_mode(params),
        ):
            yield
            # Kernels run asynchronously: those of this context end before it does.
            jax.effects_barrier()
            if detect_races and any(races.races_found for races in detectors):
                raise RuntimeError("race detection: conflicting unordered accesses were found")
    finally:
        _callbacks.GPURaceDetectionState = make_detector
        # An exception leaves simulated memory behind, which would break the next kernel.
        _callbacks.reset_gpu_interpret_mode_state()


def is_interpreting() -> bool:
    """Whether a kernel traced now will be interpreted rather than compiled."""
    return _jax_config.pallas_tpu_interpret_mode_context_manager.value is not None

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Programmatic dependent launch: a kernel starts while the one before it still runs.

A kernel that waits for the one ahead (`wait_for_previous_kernel`) may be launched before that one
has ended: its blocks come up meanwhile, and what they touch before the wait has to be older than
the kernel ahead. For a product that is the weight:

    ahead    | wait for what came before, let the next start | ...              |
    product  |                       set up | load weights ...           | wait | load x, multiply

So `scaled_mm`, `mixed_mm` and `w4a8_mm` read weights (packed ones with scales and zero points)
before the wait, and this is the rule that makes it safe: **a kernel lets the next one start early
only if nobody takes what it writes for a weight**. Products may, and gathers of activations: a
weight is packed or of 8 bits, their results are floats. Quantization may only where it quantizes
the x of a product (`quantizing_x`): codes that a caller asks for can be a weight. Whatever else
writes weights (XLA's kernels, torch's) lets nothing start early, so that it has ended. What still
runs when a kernel starts has therefore let it start, and writes no weight.

A kernel lets the next one start after its own wait, so that two run at a time and share the SMs.
A short one may do so before (`let_next_kernel_start`): three then run at a time, the first of them
at its end.
"""

from __future__ import annotations

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting

# Whether a product's x is being quantized, or has just been: parts of the key of every cache of
# traces.
_quantizing_x = jax.make_user_context(default_value=False)
_after_quantization = jax.make_user_context(default_value=False)


def wait_for_previous_kernel(next_may_start: bool = True) -> None:
    """Called by every warpgroup before it touches global memory.

    A kernel that calls this may be launched before the kernel ahead of it on the stream has
    finished: blocks set up their barriers meanwhile, and wait here until its results are visible.
    It also lets the next kernel do the same. Without a kernel ahead it returns at once.

    Args:
      next_may_start: the next kernel may do the same. Not where somebody may take what this kernel
        writes for a weight, which a product reads before it waits.
    """
    if is_interpreting():  # one kernel at a time
        return
    plgpu.griddepcontrol_wait()
    if next_may_start:
        let_next_kernel_start()


def let_next_kernel_start() -> None:
    """The next kernel may start once every block of this one has called this, or has ended."""
    if not is_interpreting():
        plgpu.griddepcontrol_launch_dependents()


def quantizing_x():
    """A context for tracing the quantization of a product's x: its codes are no weight."""
    return _quantizing_x(True)


def is_quantizing_x() -> bool:
    """Whether what is traced now quantizes a product's x."""
    return _quantizing_x.value


def after_quantization():
    """A context for tracing the product of an x that the kernel just ahead quantizes."""
    return _after_quantization(True)


def is_after_quantization() -> bool:
    """Whether the product that is traced now comes right after the quantization of its x."""
    return _after_quantization.value

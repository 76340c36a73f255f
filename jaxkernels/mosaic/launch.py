# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Programmatic dependent launch: a kernel starts while the one before it still runs.

A kernel that waits for the one ahead (`wait_for_previous_kernel`) may be launched before that one
has ended: its blocks come up meanwhile, and what they touch before the wait has to be older than
the kernel ahead. For a product whose activations the kernel ahead quantizes, that is the weight:

    quantize | wait for what came before, let the next start | read x, write codes |
    multiply |                            set up | load weights ...    | wait | load codes, multiply

It is safe where the quantization is known to be the kernel directly ahead and waits first, as it
then cannot let the product start before everything older is done. XLA may put other kernels
between the two (a slice that makes the weight, say), so only programs of nothing but kernels, which
run in the order they were traced in, get it: `launched_in_order`.

`mixed_mm` and `w4a8_mm` read their packed weights, group scales and zero points before the wait.
No kernel that lets the next one start early writes those (fragment order is made by XLA, whose
kernels end before the next one starts), and each such kernel waits for the one before it first, so
that what made the weights is over by then. A new kernel that writes them must not call
`wait_for_previous_kernel`.
"""

from __future__ import annotations

import contextlib

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting

# What is known of the kernel ahead: part of the key of every cache of traces.
_ahead = jax.make_user_context(default_value="")


# Whether a product's x is being quantized: also part of that key.
_quantizing_x = jax.make_user_context(default_value=False)


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
        plgpu.griddepcontrol_launch_dependents()


def quantizing_x():
    """A context for tracing the quantization of a product's x: its codes are no weight."""
    return _quantizing_x(True)


def is_quantizing_x() -> bool:
    """Whether what is traced now quantizes a product's x."""
    return _quantizing_x.value


def prefetch(source) -> None:
    """Asks for a slice of global memory to be brought into the L2 cache; waits for nothing."""
    if not is_interpreting():
        plgpu.async_prefetch(source)


def launched_in_order():
    """A context for tracing programs of nothing but kernels, launched in the order of the trace."""
    return _ahead("a kernel of the program")


def after_quantization():
    """A context for tracing a kernel whose x the kernel before it in the trace quantizes."""
    return _ahead("the quantization of x") if _ahead.value else contextlib.nullcontext()


def may_read_weights_early() -> bool:
    """Whether the kernel ahead writes x and its scales only, and waits for all that came before."""
    return _ahead.value == "the quantization of x"

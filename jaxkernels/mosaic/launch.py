# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Programmatic dependent launch: a kernel starts while the one before it still runs."""

from __future__ import annotations

from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting


def wait_for_previous_kernel() -> None:
    """Called by every warpgroup before it touches global memory.

    A kernel that calls this may be launched before the kernel ahead of it on the stream has
    finished: blocks set up their barriers meanwhile, and wait here until its results are visible.
    It also lets the next kernel do the same. Without a kernel ahead it returns at once.
    """
    if is_interpreting():  # one kernel at a time
        return
    plgpu.griddepcontrol_wait()
    plgpu.griddepcontrol_launch_dependents()

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Programmatic dependent launch: a kernel starts while the one before it still runs."""

from __future__ import annotations

from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting


def wait_for_previous_kernel() -> None:
    """Called before a kernel touches anything that the kernel ahead of it reads or writes.

    A kernel that calls this may be launched before the kernel ahead of it on the stream has
    finished: blocks set up their barriers meanwhile, and wait here until its results are visible.
    It also lets the next kernel do the same. Without a kernel ahead it returns at once.

    One warpgroup's wait is enough where all others depend on what it loads afterwards. Packed
    weights, their scales and the bias may be read before the wait, because:

    * only our GEMMs let the next kernel start early, and they write no weights: whatever wrote
      them has finished by the time that the GEMM behind it starts;
    * a GEMM lets the next kernel start after its own wait, so that two kernels ahead is over.

    A kernel that writes what another may take as weights must therefore not call this.
    """
    if is_interpreting():  # one kernel at a time
        return
    plgpu.griddepcontrol_wait()
    plgpu.griddepcontrol_launch_dependents()

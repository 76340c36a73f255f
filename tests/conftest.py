# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What every test shares: the `gpu` marker's skip with its reason, and fresh random inputs."""

import os
import zlib

import numpy as np
import pytest

# One process of several may run on one GPU, and torch shares it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# An interpreted kernel blocks a thread of XLA's CPU pool for each of its warpgroups; the pool's
# size is read from here when JAX starts, and one of 2 cores would deadlock.
os.environ.setdefault("NPROC", "32")


def _why_no_hopper() -> str | None:
    """None where JAX has a GPU of compute capability 9.0, else the reason to print."""
    import jax

    try:
        device = jax.devices("gpu")[0]
    except RuntimeError as error:
        return f"no GPU that JAX can use ({str(error).splitlines()[0][:100]})"
    capability = str(getattr(device, "compute_capability", "unknown"))
    if capability != "9.0":
        return f"needs compute capability 9.0, and {device.device_kind} has {capability}"
    return None


def pytest_collection_modifyitems(config, items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    reason = _why_no_hopper()
    if reason is not None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_logreport(report):
    """Failures go to $FAILURES as they happen: a run that is cut off keeps what it found."""
    path = os.environ.get("FAILURES")
    if path and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(path, "a") as file:
            file.write(f"{report.nodeid} ({report.when})\n{report.longreprtext}\n\n")


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator seeded by the test's own name: fresh data in each test, the same on every run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))

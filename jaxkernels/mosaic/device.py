# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Which device a kernel is being traced for: asked here, and nowhere else in jaxkernels."""

from __future__ import annotations

import dataclasses
import functools

import jax

from jaxkernels.problem import DEVICES, Device, find_device


def trace_device(operand: jax.Array | None = None) -> Device:
    """The device that the code being traced now will run on.

    The abstract mesh's device comes first (`jax.sharding.use_abstract_mesh`: tests, and programs
    that are compiled for a machine they do not run on), then the CPU if `operand` is an array that
    lies there (on a machine with a GPU, an eager call works where its arrays are), then JAX's
    default device.

    Example:
      >>> mesh = abstract_mesh("NVIDIA H200", num_sms=8)
      >>> with jax.sharding.use_abstract_mesh(mesh):
      ...     device = trace_device()
      >>> device.name, device.num_sms, device.is_hopper
      ('NVIDIA H200', 8, True)
    """
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return _known(abstract.device_kind, abstract.platform, abstract.num_cores)
    if isinstance(operand, jax.Array) and not isinstance(operand, jax.core.Tracer):
        here = operand.devices()
        if all(device.platform == "cpu" for device in here):
            return _known("cpu", "cpu", None)
    default = jax.config.jax_default_device
    live = default if hasattr(default, "device_kind") else jax.devices(default)[0]
    return _known(live.device_kind, live.platform, getattr(live, "core_count", None), live)


def abstract_mesh(kind: str = "NVIDIA H200", num_sms: int | None = None):
    """A mesh without axes that stands for one device of this kind, here or not.

    Args:
      kind: a name that `find_device` knows.
      num_sms: how many SMs it pretends to have; by default as many as the real part. Interpreted
        kernels are faster with a few.
    """
    device = find_device(kind)
    if device is None:
        raise ValueError(f"kind: expected one of {sorted(DEVICES)}, got {kind!r}")
    platform = "gpu" if device.platform in ("cuda", "rocm") else device.platform
    stand_in = jax.sharding.AbstractDevice(
        device_kind=device.name, num_cores=num_sms or device.num_sms, platform=platform
    )
    return jax.sharding.AbstractMesh((), (), abstract_device=stand_in)


@functools.lru_cache(maxsize=64)
def _known(kind: str, platform: str, cores: int | None, live=None) -> Device:
    device = find_device(kind)
    if device is None:
        capability = getattr(live, "compute_capability", None)
        if platform != "gpu" or capability is None:
            return dataclasses.replace(DEVICES["cpu"], name=kind, platform=platform)
        version = tuple(int(part) for part in str(capability).split("."))[:2]
        # An unknown part is taken for the known one of its capability that has least of
        # everything, so that no configuration asks for more than it has.
        same = [d for d in DEVICES.values() if d.platform == "cuda" and d.capability == version]
        base = min(same, key=lambda d: (d.smem_bytes, d.read_gbps), default=DEVICES["t4"])
        device = dataclasses.replace(base, name=kind, capability=version)
    return dataclasses.replace(device, num_sms=cores) if cores else device

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Processors, as far as choosing a kernel needs to know them, and the ones that are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Device:
    """A processor, as far as choosing a kernel needs to know it.

    Attributes:
      name: how it is called, "NVIDIA H200".
      platform: "cuda", "rocm", "xpu", "tpu" or "cpu".
      capability: (major, minor) on cuda and rocm (gfx90a is (9, 0)), else None.
      num_sms: streaming multiprocessors, compute units or cores.
      smem_bytes: shared memory that one block can ask for.
      l2_bytes: last-level cache on the device.
      read_gbps: memory read bandwidth in 1e9 bytes a second.
      peak_tflops: dense peak in 1e12 operations a second, by operand dtype name.
    """

    name: str
    platform: str
    capability: tuple[int, int] | None
    num_sms: int
    smem_bytes: int
    l2_bytes: int
    read_gbps: float
    peak_tflops: Mapping[str, float] = dataclasses.field(hash=False)

    @property
    def is_hopper(self) -> bool:
        """An NVIDIA GPU of capability 9.x (MI250's gfx90a is a 9.0 too, but not CUDA)."""
        return self.platform == "cuda" and self.capability is not None and self.capability[0] == 9


def _peaks(bf16: float, int8: float, fp8: float | None = None, fp16: float | None = None):
    peaks = {"float16": bf16 if fp16 is None else fp16, "int8": int8}
    if bf16:
        peaks["bfloat16"] = bf16
    if fp8 is not None:
        peaks |= {"float8_e4m3fn": fp8, "float8_e5m2": fp8}
    return peaks


_KIB, _MIB = 1 << 10, 1 << 20

# Known parts. Numbers are the vendors' (dense, without sparsity), but for the H200's read
# bandwidth, which is measured (2026-11-22: 4370 of 4800 GB/s).
# fmt: off
DEVICES: dict[str, Device] = {
    "b200": Device("NVIDIA B200", "cuda", (10, 0), 148, 227 * _KIB, 126 * _MIB, 8000,
                   _peaks(2250, 4500, 4500)),
    "h200": Device("NVIDIA H200", "cuda", (9, 0), 132, 227 * _KIB, 60 * _MIB, 4370,
                   _peaks(989, 1979, 1979)),
    "h100": Device("NVIDIA H100 80GB HBM3", "cuda", (9, 0), 132, 227 * _KIB, 50 * _MIB, 3350,
                   _peaks(989, 1979, 1979)),
    "h20": Device("NVIDIA H20", "cuda", (9, 0), 78, 227 * _KIB, 60 * _MIB, 4000,
                  _peaks(148, 296, 296)),
    "a100": Device("NVIDIA A100-SXM4-80GB", "cuda", (8, 0), 108, 163 * _KIB, 40 * _MIB, 2039,
                   _peaks(312, 624)),
    "a10": Device("NVIDIA A10", "cuda", (8, 6), 72, 99 * _KIB, 6 * _MIB, 600,
                  _peaks(125, 250)),
    "l4": Device("NVIDIA L4", "cuda", (8, 9), 58, 99 * _KIB, 48 * _MIB, 300,
                 _peaks(121, 242, 242)),
    "l40s": Device("NVIDIA L40S", "cuda", (8, 9), 142, 99 * _KIB, 96 * _MIB, 864,
                   _peaks(362, 733, 733)),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", "cuda", (8, 9), 128, 99 * _KIB, 72 * _MIB, 1008,
                      _peaks(165, 660, 330)),
    "t4": Device("Tesla T4", "cuda", (7, 5), 40, 64 * _KIB, 4 * _MIB, 320,
                 _peaks(0, 130, fp16=65)),
    "v100": Device("Tesla V100-SXM2-32GB", "cuda", (7, 0), 80, 96 * _KIB, 6 * _MIB, 900,
                   _peaks(0, 62, fp16=125)),
    "mi300x": Device("AMD Instinct MI300X", "rocm", (9, 4), 304, 64 * _KIB, 4 * _MIB, 5300,
                     _peaks(1307, 2614, 2614)),
    "mi250": Device("AMD Instinct MI250", "rocm", (9, 0), 208, 64 * _KIB, 16 * _MIB, 3277,
                    _peaks(362, 362)),
    "xpu": Device("Intel Data Center GPU Max 1550", "xpu", None, 128, 128 * _KIB, 408 * _MIB,
                  3277, _peaks(839, 1678)),
    "tpu-v5e": Device("TPU v5 lite", "tpu", None, 1, 128 * _MIB, 128 * _MIB, 819,
                      _peaks(197, 394)),
    "tpu-v6e": Device("TPU v6 lite", "tpu", None, 1, 128 * _MIB, 128 * _MIB, 1640,
                      _peaks(918, 1836)),
    "cpu": Device("cpu", "cpu", None, 1, 32 * _KIB, 32 * _MIB, 50, {"float32": 1.0}),
}
# fmt: on

# Names that runtimes give, where the table's key is not a word of them.
_KIND_ALIASES = {
    "tpu v5 lite": "tpu-v5e",
    "tpu v6 lite": "tpu-v6e",
    "geforce rtx 4090": "rtx4090",
    "data center gpu max": "xpu",
}


def find_device(kind: str) -> Device | None:
    """The known device of a runtime's device name, or None.

    Example:
      >>> find_device("NVIDIA H200").num_sms
      132
      >>> find_device("Some New GPU") is None
      True
    """
    if kind in DEVICES:
        return DEVICES[kind]
    text = kind.lower().replace("-", " ").replace("_", " ")
    for alias, key in _KIND_ALIASES.items():
        if alias in text:
            return DEVICES[key]
    for word in text.split():
        if word in DEVICES:
            return DEVICES[word]
    return None

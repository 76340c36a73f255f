# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Weights in the order that their kernel reads, as torch tensors, and back."""

import jax
import torch

from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT, can_prepare, prepare, unprepare
from jaxkernels.quantized import PLAIN, QuantizedTensor
from torch_bridge.dlpack import jax_device, to_jax, to_torch


def best_layout(w: QuantizedTensor, kernel: type, dtype: torch.dtype) -> str:
    """The layout in which a kernel class reads this weight (torch leaves) on its device.

    "hopper_fragment" where the class tries a Hopper kernel of `mixed_mm`, the weight is on a
    Hopper GPU and that kernel takes it; else "plain".
    """
    if not w.data.is_cuda or "hopper" not in kernel.available_implementations():
        return PLAIN
    if kernel.backing.op != "mixed_mm" or torch.cuda.get_device_capability(w.data.device)[0] != 9:
        return PLAIN
    if dtype not in (torch.bfloat16, torch.float16):
        return PLAIN
    return HOPPER_FRAGMENT if w.layout != PLAIN or can_prepare(w).ok else PLAIN


def to_layout(w: QuantizedTensor, layout: str) -> QuantizedTensor:
    """The weight (torch leaves) in another layout, in memory of torch's own."""
    if w.layout == layout:
        return w
    with jax.default_device(jax_device(w.data.device)):
        arrays = jax.tree.map(lambda t: to_jax(t.detach()), w)
        changed = unprepare(arrays) if layout == PLAIN else prepare(arrays)
        if changed.layout != layout:
            raise ValueError(f"layout: expected {PLAIN!r} or {HOPPER_FRAGMENT!r}, got {layout!r}")
        return jax.tree.map(lambda a: to_torch(a, copy=True), changed)

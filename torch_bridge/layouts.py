# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Weights in the order that their kernel reads, as torch tensors, and back."""

import jax
import torch

from jaxkernels.mixed_mm.prepare import HOPPER_FRAGMENT, can_prepare, prepare, unprepare
from jaxkernels.mixed_mm.prepare_w4a8 import HOPPER_W4A8, can_prepare_w4a8, prepare_w4a8
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import MixedMMProblem, W4A8Problem
from jaxkernels.quantized import PLAIN, QuantizedTensor
from selection.problems import implementations_of
from torch_bridge.dlpack import to_jax, to_torch
from torch_bridge.launch import trace_context
from torch_bridge.streams import working_on


def best_layout(w: QuantizedTensor, kernel: type, dtype: torch.dtype) -> str:
    """The layout in which a kernel class reads this weight (torch leaves) on its device.

    "hopper_fragment" where the class tries the Hopper kernel of `mixed_mm` and that takes the
    weight with activations of this dtype, "hopper_w4a8" likewise with `w4a8_mm`; else "plain".
    """
    if not w.data.is_cuda:
        return PLAIN
    structs = jax.tree.map(lambda t: jax.ShapeDtypeStruct(tuple(t.shape), _name(t.dtype)), w)
    with trace_context(w.data.device):
        return layout_for(structs, kernel, _name(dtype))


def layout_for(w: QuantizedTensor, kernel: type, dtype: str) -> str:
    """`best_layout` of a weight of structs, on the device that is being traced for."""
    tried = dict(implementations_of(kernel.backing))
    if "hopper" not in tried:
        return PLAIN
    if kernel.backing.op == "w4a8_mm":
        return _w4a8_layout(w, tried["hopper"], dtype)
    if kernel.backing.op != "mixed_mm" or (w.layout == PLAIN and not can_prepare(w).ok):
        return PLAIN
    n, k = w.shape
    problem = MixedMMProblem(
        m=1,
        n=n,
        k=k,
        weight_type=w.scalar_type,
        x_dtype=dtype,
        out_dtype=dtype,
        group_size=w.group_size,
        granularity=w.granularity,
        zero_points=w.zero_point is not None,
        g_idx=w.g_idx is not None,
        layout=HOPPER_FRAGMENT,
        scale_dtype=w.scale.dtype.name,
        global_scale=w.global_scale is not None,
    )
    return HOPPER_FRAGMENT if tried["hopper"].supports(problem, trace_device()).ok else PLAIN


def _w4a8_layout(w: QuantizedTensor, hopper, dtype: str) -> str:
    if w.layout == PLAIN and not can_prepare_w4a8(w).ok:
        return PLAIN
    problem = W4A8Problem(
        m=1,
        n=w.shape[0],
        k=w.shape[1],
        weight_type=w.scalar_type,
        x_dtype="float8_e4m3fn" if w.scale.dtype.name == "float8_e4m3fn" else "int8",
        out_dtype=dtype,
        group_size=w.group_size,
        scale_dtype=w.scale.dtype.name,
        channel_scale=w.global_scale is not None,
        layout=HOPPER_W4A8,
    )
    return HOPPER_W4A8 if hopper.supports(problem, trace_device()).ok else PLAIN


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def to_layout(w: QuantizedTensor, layout: str) -> QuantizedTensor:
    """The weight (torch leaves) in another layout, in memory of torch's own."""
    if w.layout == layout:
        return w
    with working_on(w.data.device):
        arrays = jax.tree.map(lambda t: to_jax(t.detach()), w)
        changes = {PLAIN: unprepare, HOPPER_FRAGMENT: prepare, HOPPER_W4A8: prepare_w4a8}
        if layout not in changes:
            raise ValueError(f"layout: expected one of {', '.join(changes)}, got {layout!r}")
        changed = changes[layout](arrays)
        return jax.tree.map(lambda a: to_torch(a, copy=True), changed)

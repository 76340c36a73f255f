# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Host time of a call: what Python costs before the GPU has anything to do.

  bridge-launch   the compiled fp8 GEMM on torch tensors           torch._scaled_mm, vLLM's op
  bridge-fp8      a whole QuantLinear, quantization included       vLLM's two ops
  bridge-int8     the same in int8                                 vLLM's two ops
  bridge-w4a16    a QuantLinear with 4-bit weights                 Marlin
  bridge-wrap     a small jitted JAX function through DLPack       nothing does this

`us` is microseconds of host time to enqueue one call; the GPU work is checked, not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import operands as ops
from benchmarks.operands import BF16, F8
from benchmarks.peers import mixed, scaled
from benchmarks.peers.common import vllm_ops
from benchmarks.suites import Cell

Call = Callable[[], object]


@dataclass
class HostCase:
    """`ours` and the peers' calls, and the float32 result that `ours` must give."""

    ours: Call
    kernel: str
    reference: Callable[[], torch.Tensor]
    peers: dict[str, Callable[[], Call]]  # eligible; built only if wanted
    others: dict[str, Callable[[], Call]]


def host_case(cell: Cell) -> HostCase:
    """The calls of a bridge family at this shape."""
    what = cell.family.removeprefix("bridge-")
    return {"launch": _launch, "wrap": _wrap}.get(what, _layer)(cell)


def _launch(cell: Cell) -> HostCase:
    from benchmarks import ours

    base = Cell("fp8", cell.m, cell.n, cell.k)
    o = ops.make_operands(base, ops.make_weights(base))
    plan, function = ours.compiled(base)
    arguments = plan.operands(o)[0]
    return HostCase(
        lambda: function(*arguments),
        "scaled_mm/hopper " + plan.config,
        lambda: o.reference,
        {
            "torch._scaled_mm rowwise": lambda: scaled.scaled_mm_rowwise(o).calls[0],
            "vllm cutlass_scaled_mm": lambda: _vllm_mm(o),
        },
        {},
    )


def _vllm_mm(o: ops.Operands) -> Call:
    c, w = vllm_ops(), o.weights.data[0].T
    scale = o.weights.scale.T.contiguous()

    def call():
        out = torch.empty((o.cell.m, o.weights.n), dtype=BF16, device=o.x.device)
        c.cutlass_scaled_mm(out, o.x, w, o.x_scale, scale, None)
        return out

    return call


RECIPES = {"fp8": "w8a8-fp8", "int8": "w8a8-int8", "w4a16": "w4a16-g128"}


def _layer(cell: Cell) -> HostCase:
    from torch_bridge import QuantLinear

    what = cell.family.removeprefix("bridge-")
    linear = torch.nn.Linear(cell.k, cell.n, bias=False, device="cuda", dtype=BF16)
    linear.requires_grad_(False)
    layer = QuantLinear.from_linear(linear, RECIPES[what])
    x = torch.randn(cell.m, cell.k, device="cuda", dtype=BF16)
    return HostCase(
        lambda: layer(x),
        f"QuantLinear {RECIPES[what]}",
        lambda: x.float() @ layer.dequantize().float().T,
        {
            "vllm marlin_gemm" if what == "w4a16" else "vllm quant + cutlass_scaled_mm": (
                lambda: _vllm_layer(cell, what, x)
            )
        },
        {"torch bf16 linear": lambda: lambda: linear(x)},
    )


def _vllm_layer(cell: Cell, what: str, x: torch.Tensor) -> Call:
    c = vllm_ops()
    if what == "w4a16":
        base = Cell("w4a16", cell.m, cell.n, cell.k, 128)
        return mixed.marlin(ops.make_operands(base, ops.make_weights(base))).calls[0]
    weight = ops.random_fp8(cell.n, cell.k) if what == "fp8" else ops.random_int8(cell.n, cell.k)
    w, scale = weight.T, ops.random_scale(1, cell.n)

    def call():
        q = torch.empty(x.shape, dtype=F8 if what == "fp8" else torch.int8, device=x.device)
        s = torch.empty((cell.m, 1), dtype=torch.float32, device=x.device)
        if what == "fp8":
            c.dynamic_per_token_scaled_fp8_quant(q, x, s, None)
        else:
            c.dynamic_scaled_int8_quant(q, x, s, None)
        out = torch.empty((cell.m, cell.n), dtype=BF16, device=x.device)
        c.cutlass_scaled_mm(out, q, w, s, scale, None)
        return out

    return call


def _wrap(cell: Cell) -> HostCase:
    import jax.numpy as jnp

    from torch_bridge import wrap

    x = torch.randn(cell.m, cell.k, device="cuda", dtype=torch.float32)
    function = wrap(lambda a: jnp.tanh(a) * 2)
    return HostCase(
        lambda: function(x), "wrap(tanh)", lambda: torch.tanh(x) * 2, {},
        {"torch.tanh * 2": lambda: lambda: torch.tanh(x) * 2},
    )  # fmt: skip

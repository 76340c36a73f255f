# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Our kernels, compiled for a cell from its shapes alone and launched through the direct route.

`plan(cell)` needs no data, so that many cells compile in threads while others are timed; `bind`
gives the plan a cell's tensors.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import torch

from benchmarks.operands import F8, STATIC_AZP, STATIC_SCALE, Operands, Weights, dequantized
from benchmarks.suites import FAMILIES, Cell
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import MixedMMProblem, ScaledMMProblem, W4A8Problem
from jaxkernels.quantized import GroupShape, QuantizedTensor
from jaxkernels.scalar_types import scalar_types

BF16 = jnp.bfloat16


@dataclass
class Plan:
    """A cell's function on flat arrays, and how it is called.

    Attributes:
      fn: JAX function of the arrays below.
      structs: its arguments' shapes and dtypes.
      operands: gives one tuple of torch tensors a weight copy.
      kernel, config: what the record says ran.
      finish: turns the first call's result into the float result that the cell checks.
      configs: gives every config that tuning would consider.
    """

    fn: Callable
    structs: tuple
    operands: Callable[[Operands], list[tuple[torch.Tensor, ...]]]
    kernel: str
    config: str
    finish: Callable[[object, Operands], torch.Tensor] = lambda out, o: out
    configs: Callable[[], tuple] = tuple


def plan(cell: Cell, config=None) -> Plan:
    """How our kernels run this cell, by default with the config that the tuning chooses.

    Raises where they do not take it, with the reason.
    """
    op = FAMILIES[cell.family].op
    if config is not None:
        return {"scaled_mm": _scaled, "mixed_mm": _mixed, "w4a8_mm": _w4a8}[op](cell, config)
    return {"scaled_mm": _scaled, "w8a8_linear": _linear, "mixed_mm": _mixed, "w4a8_mm": _w4a8,
            "quantize": _quantize}[op](cell)  # fmt: skip


def _hopper(implementations):
    for implementation in implementations:
        if implementation.name == "hopper":
            return implementation
    raise ValueError("this op has no Hopper kernel")


def _supported(implementation, problem) -> str:
    """The default config's text; raises with the reasons if the problem is not taken."""
    device = trace_device()
    support = implementation.supports(problem, device)
    if not support:
        raise ValueError("; ".join(support.reasons))
    return str(implementation.default_config(problem, device))


def _struct(shape, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _scaled(cell: Cell, config=None) -> Plan:
    from jaxkernels import scaled_mm as op
    from jaxkernels.scaled_mm.op import IMPLEMENTATIONS

    m, n, k = cell.m, cell.n, cell.k
    f = FAMILIES[cell.family]
    dtype = jnp.int8 if f.rate == "int8" else jnp.float8_e4m3fn
    block, azp = f.name == "fp8-block", f.name == "int8-azp"
    name = jnp.dtype(dtype).name
    problem = ScaledMMProblem(
        m, n, k, name, name, "bfloat16",
        "group" if block else "token", "block" if block else "channel", False,
        "token" if azp else None,
    )  # fmt: skip
    groups = -(-k // 128)
    structs = [
        _struct((m, k), dtype),
        _struct((n, k), dtype),
        _struct((m, groups if block else 1), jnp.float32),
        _struct((-(-n // 128), groups) if block else (n, 1), jnp.float32),
    ]
    if azp:
        structs += [_struct((m, 1), jnp.int32), _struct((n,), jnp.int32)]

    def fn(x, w, x_scale, w_scale, azp=None, azp_adj=None):
        return op(
            x, w, x_scale, w_scale, azp=azp, azp_adj=azp_adj, out_dtype=BF16,
            implementation="hopper", config=config,
        )  # fmt: skip

    def operands(o: Operands):
        extra = ()
        if azp:
            extra = (o.azp, o.weights.data[0].sum(1, dtype=torch.int32))
        x_scale = o.x_scale.contiguous()
        return [(o.x, w, x_scale, o.weights.scale, *extra) for w in o.weights.data]

    kernel = _hopper(IMPLEMENTATIONS)
    chosen = _supported(kernel, problem) if config is None else str(config)
    legal = functools.partial(kernel.configs, problem, trace_device())
    return Plan(fn, tuple(structs), operands, "scaled_mm/hopper", chosen, configs=legal)


def _linear(cell: Cell) -> Plan:
    from jaxkernels.scaled_mm.linear import w8a8_linear

    m, n, k = cell.m, cell.n, cell.k
    structs = (
        _struct((m, k), BF16),
        _struct((n, k), jnp.float8_e4m3fn),
        _struct((n, 1), jnp.float32),
    )

    def fn(x, w, w_scale):
        weight = _tensor(w, w_scale, (n, k), scalar_types.float8_e4m3fn, GroupShape(1, -1))
        return w8a8_linear(x, weight, out_dtype=BF16)

    def operands(o: Operands):
        return [(o.x, w, o.weights.scale) for w in o.weights.data]

    return Plan(fn, structs, operands, "w8a8_linear", "")


_TYPES = {
    "w4a16": "uint4b8",
    "w4a16-zp": "uint4",
    "w4a16-actorder": "uint4b8",
    "w8a16-int8": "uint8b128",
    "w8a16-fp8": "float8_e4m3fn",
    "w8a16-fp8-block": "float8_e4m3fn",
    "w4a8-fp8": "uint4b8",
    "w4a8-int8": "uint4b8",
    "fp4-nv": "float4_e2m1f",
    "fp4-mx": "float4_e2m1f",
}


def _tensor(data, scale, shape, scalar_type, group_shape, **more) -> QuantizedTensor:
    return QuantizedTensor(
        data, scale, shape=shape, scalar_type=scalar_type, group_shape=group_shape, **more
    )


def _weight_struct(cell: Cell) -> QuantizedTensor:
    """The checkpoint-layout weight of a cell, as shapes."""
    f, n, k = FAMILIES[cell.family], cell.n, cell.k
    kind = getattr(scalar_types, _TYPES[cell.family])
    groups = 1 if cell.group == -1 else k // cell.group
    block = f.name == "w8a16-fp8-block"
    byte = jnp.float8_e4m3fn if f.name.startswith("w8a16-fp8") else jnp.uint8
    small = {"fp4-mx": jnp.float8_e8m0fnu} | dict.fromkeys(
        ("fp4-nv", "w4a8-fp8"), jnp.float8_e4m3fn
    )
    scale = small.get(f.name, jnp.float32 if block else BF16)
    more = {}
    if f.zero_points:
        more["zero_point"] = _struct((n, groups), jnp.uint8)
    if f.act_order:
        more["g_idx"] = _struct((k,), jnp.int32)
    if f.name in ("fp4-nv", "w4a8-fp8"):
        more["global_scale"] = _struct((1 if f.name == "fp4-nv" else n, 1), jnp.float32)
    return _tensor(
        _struct((n, k * f.w_bits // 8), byte),
        _struct((-(-n // 128) if block else n, groups), scale), (n, k), kind,
        GroupShape(128 if block else 1, cell.group), **more,
    )  # fmt: skip


def _fill(struct: QuantizedTensor, w: Weights) -> QuantizedTensor:
    """The struct's arrays, from the first weight copy."""
    given = (w.data[0], w.scale, w.zero_point, w.g_idx, w.global_scale)
    arrays = [jax.dlpack.from_dlpack(t.contiguous()) for t in given if t is not None]
    return jax.tree.unflatten(jax.tree.structure(struct), arrays)


def _like(t: torch.Tensor) -> torch.Tensor:
    """Another weight of the same packed layout: any bits are valid codes."""
    if t.dtype == F8:
        from benchmarks.operands import random_fp8

        return random_fp8(*t.shape)
    raw = torch.randint(0, 256, (t.numel() * t.element_size(),), device=t.device, dtype=torch.uint8)
    return raw.view(t.dtype).view(t.shape)


def _mixed(cell: Cell, config=None) -> Plan:
    from jaxkernels import mixed_mm as op
    from jaxkernels.mixed_mm.op import IMPLEMENTATIONS
    from jaxkernels.mixed_mm.prepare import prepare

    m, n, k = cell.m, cell.n, cell.k
    f = FAMILIES[cell.family]
    plain = _weight_struct(cell)
    prepared = jax.eval_shape(prepare, plain)
    leaves, tree = jax.tree.flatten(prepared)
    problem = MixedMMProblem(
        m, n, k, plain.scalar_type, "bfloat16", "bfloat16", cell.group,
        plain.granularity, f.zero_points, f.act_order, False, prepared.layout,
        scale_dtype=jnp.dtype(plain.scale.dtype).name, global_scale=f.name == "fp4-nv",
    )  # fmt: skip

    def fn(x, *leaves):
        weight = jax.tree.unflatten(tree, leaves)
        return op(x, weight, out_dtype=BF16, implementation="hopper", config=config)

    def operands(o: Operands):
        return [(o.x, *leaves) for leaves in _prepared_copies(o.weights, plain, prepare)]

    kernel = _hopper(IMPLEMENTATIONS)
    chosen = _supported(kernel, problem) if config is None else str(config)
    legal = functools.partial(kernel.configs, problem, trace_device())
    structs = (_struct((m, k), BF16), *leaves)
    return Plan(fn, structs, operands, "mixed_mm/hopper", chosen, configs=legal)


def _w4a8(cell: Cell, config=None) -> Plan:
    from jaxkernels import w4a8_mm
    from jaxkernels.mixed_mm import prepare_w4a8
    from jaxkernels.mixed_mm.w4a8 import IMPLEMENTATIONS

    m, n, k = cell.m, cell.n, cell.k
    plain = _weight_struct(cell)
    prepared = jax.eval_shape(prepare_w4a8, plain)
    leaves, tree = jax.tree.flatten(prepared)
    dtype = jnp.int8 if FAMILIES[cell.family].rate == "int8" else jnp.float8_e4m3fn
    problem = W4A8Problem(
        m, n, k, plain.scalar_type, jnp.dtype(dtype).name, "bfloat16", cell.group,
        jnp.dtype(plain.scale.dtype).name, plain.global_scale is not None, layout=prepared.layout,
    )  # fmt: skip

    def fn(x, x_scale, *leaves):
        weight = jax.tree.unflatten(tree, leaves)
        return w4a8_mm(x, weight, x_scale, implementation="hopper", config=config)

    def operands(o: Operands):
        copies = _prepared_copies(o.weights, plain, prepare_w4a8)
        return [(o.x, o.x_scale.contiguous(), *leaves) for leaves in copies]

    kernel = _hopper(IMPLEMENTATIONS)
    chosen = _supported(kernel, problem) if config is None else str(config)
    legal = functools.partial(kernel.configs, problem, trace_device())
    structs = (_struct((m, k), dtype), _struct((m, 1), jnp.float32), *leaves)
    return Plan(fn, structs, operands, "w4a8_mm/hopper", chosen, configs=legal)


def _prepared_copies(w: Weights, plain: QuantizedTensor, prepare) -> list[tuple]:
    """The prepared first copy, and as many others with fresh random codes."""
    if "ours" not in w.packed:
        arrays = jax.tree.leaves(jax.block_until_ready(jax.jit(prepare)(_fill(plain, w))))
        first = tuple(torch.from_dlpack(a) for a in arrays)
        big = max(range(len(first)), key=lambda i: first[i].numel())
        copies = [first]
        for _ in w.data[1:]:
            copies.append(tuple(_like(t) if i == big else t for i, t in enumerate(first)))
        w.packed["ours"] = copies
    return w.packed["ours"]


def _quantize(cell: Cell) -> Plan:
    from jaxkernels.problem import QuantizeProblem
    from jaxkernels.quantize import op as quantize

    scheme = FAMILIES[cell.family].name.removeprefix("quantize-")
    int8, static, azp = "int8" in scheme, "static" in scheme, scheme.endswith("azp")
    structs = [_struct((cell.m, cell.k), BF16)]
    if static:
        structs.append(_struct((1, 1), jnp.float32))
    if static and azp:
        structs.append(_struct((1, 1), jnp.int32))
    how = "static" if static else next(h for h in ("token", "tensor", "group") if h in scheme)
    column = scheme.endswith("col")

    def fn(x, *given):
        if int8:
            out = quantize.quantize_int8(x, *given, symmetric=not azp, implementation="hopper")
        elif how == "group":
            out = quantize.quantize_fp8_group(
                x, cell.group, column_major=column, implementation="hopper"
            )
        else:
            per_token = how == "token"
            out = quantize.quantize_fp8(x, *given, per_token=per_token, implementation="hopper")
        return tuple(v for v in out if v is not None)

    def operands(o: Operands):
        xs = o.copies
        given = [torch.full((1, 1), STATIC_SCALE, device=o.x.device)] if static else []
        if static and azp:
            given.append(torch.full((1, 1), STATIC_AZP, device=o.x.device, dtype=torch.int32))
        return [(x, *given) for x in xs]

    def finish(out, o: Operands):
        return dequantized(out[0], out[1].T if column else out[1], *out[2:])

    problem = QuantizeProblem(
        cell.m, cell.k, "bfloat16", "int8" if int8 else "float8_e4m3fn", how, not azp,
        group_size=cell.group or -1, column_major=column,
    )  # fmt: skip
    config = _supported(_hopper(quantize.IMPLEMENTATIONS), problem)
    return Plan(fn, tuple(structs), operands, "quantize/hopper", config, finish)


@functools.lru_cache(maxsize=512)
def compiled(cell: Cell, config=None) -> tuple[Plan, Callable]:
    """The plan and its launcher on torch tensors, compiled once a process."""
    made = plan(cell, config)
    return made, torch_function(made.fn, made.structs)


def torch_function(fn: Callable, structs: tuple) -> Callable:
    """`fn`, a function made of Mosaic kernels, on torch tensors and torch's current stream."""
    from torch_bridge.launch import compile_kernel

    return compile_kernel(fn, *structs)

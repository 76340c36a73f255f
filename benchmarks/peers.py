# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What a user would otherwise run, called on the same operands.

torch and XLA are always there. vLLM's compiled ops, DeepGEMM and humming are used where the folder
named by $PEERS holds them (`_C_stable_libtorch.abi3.so`, `deep_gemm/`, `humming/`); nothing of
them is part of this project.

A peer is *eligible* when it gives what our kernel gives. The others are shown and never counted:
one scale per tensor where ours are per row and column, raw int32 sums, asymmetric activations, a
plain copy, and bf16 products of weights that were never quantized.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.operands import (
    BF16,
    F8,
    STATIC_AZP,
    STATIC_SCALE,
    Operands,
    Weights,
    dequantized,
)

Call = Callable[[], object]


class Unavailable(Exception):
    """A peer that cannot run here, with the reason."""


@dataclass
class Built:
    """A peer ready to be timed: one call per weight copy; `finish` turns call 0's result into the
    family's float result; `reference` where the peer has weights of its own."""

    calls: list[Call]
    finish: Callable[[object], torch.Tensor] = lambda out: out
    reference: Callable[[], torch.Tensor] | None = None
    time: Callable[[], float] | None = None  # for peers that torch's graphs cannot capture


@dataclass(frozen=True)
class Peer:
    name: str
    build: Callable[[Operands], Built]
    eligible: bool = True
    source: str = "torch"  # torch | vllm | deep_gemm | humming | xla


def folder() -> Path:
    path = os.environ.get("PEERS")
    if not path:
        raise Unavailable("$PEERS is not set")
    return Path(path)


@functools.cache
def vllm_ops():
    """torch.ops._C with vLLM's compiled ops registered."""
    library = folder() / "_C_stable_libtorch.abi3.so"
    if not library.exists():
        raise Unavailable(f"no {library.name} in $PEERS")
    torch.ops.load_library(str(library))
    return torch.ops._C


@functools.cache
def package(name: str):
    """A Python package from $PEERS."""
    root = folder()
    if not (root / name).is_dir():
        raise Unavailable(f"no {name}/ in $PEERS")
    cache = os.environ.get("PEER_JIT_CACHE", str(root.parent / "jit"))
    os.environ.setdefault("DG_JIT_CACHE_DIR", f"{cache}/deep_gemm")
    os.environ.setdefault("HUMMING_CACHE_DIR", f"{cache}/humming")
    for entry in sys.path:  # humming compiles in a process that must find NVRTC's builtins
        library = Path(entry) / "nvidia/cu13/lib"
        if library.is_dir():
            paths = os.environ.get("LD_LIBRARY_PATH", "")
            os.environ["LD_LIBRARY_PATH"] = f"{library}:{paths}"
            break
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return __import__(name)


def once(weights: Weights, what: str, make: Callable[[], object]):
    """`make()` the first time it is asked for these weights, its result afterwards."""
    if what not in weights.packed:
        weights.packed[what] = make()
    return weights.packed[what]


# ---------------------------------------------------------------- 8 bits by 8 bits
def scaled_mm_rowwise(o: Operands) -> Built:
    scale = o.weights.scale.T.contiguous()
    return Built(
        [
            lambda w=w: torch._scaled_mm(
                o.x, w.T, scale_a=o.x_scale, scale_b=scale, out_dtype=BF16, use_fast_accum=True
            )
            for w in o.weights.data
        ]
    )


def scaled_mm_tensorwise(o: Operands) -> Built:
    one = torch.ones((), device=o.x.device)
    return Built(
        [
            lambda w=w: torch._scaled_mm(
                o.x, w.T, scale_a=one, scale_b=one, out_dtype=BF16, use_fast_accum=True
            )
            for w in o.weights.data
        ],
        finish=lambda out: out.float() * o.x_scale * o.weights.scale.T,
    )


def int_mm(o: Operands) -> Built:
    m = o.x.shape[0]
    x = o.x if m > 16 else torch.cat((o.x, o.x.new_zeros(32 - m, o.x.shape[1])))
    return Built(
        [lambda w=w: torch._int_mm(x, w.T) for w in o.weights.data],
        finish=lambda out: out[:m].float() * o.x_scale * o.weights.scale.T,
    )


def cutlass_scaled_mm(o: Operands) -> Built:
    ops, scale = vllm_ops(), o.weights.scale.T.contiguous()
    out = torch.empty(o.x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: ops.cutlass_scaled_mm(out, o.x, w.T, o.x_scale, scale, None)
            for w in o.weights.data
        ],
        finish=lambda _: out,
    )


def cutlass_scaled_mm_azp(o: Operands) -> Built:
    ops, scale = vllm_ops(), o.weights.scale.T.contiguous()
    adjust = o.weights.data[0].sum(1, dtype=torch.int32)[None]
    out = torch.empty(o.x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: ops.cutlass_scaled_mm_azp(
                out, o.x, w.T, o.x_scale, scale, adjust, o.azp, None
            )
            for w in o.weights.data
        ],
        finish=lambda _: out,
    )


def _padded_to_4(o: Operands) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and their M-major scales padded to 4 tokens, as these two kernels' TMA needs."""
    m = o.x.shape[0]
    rows = -(-m // 4) * 4
    if rows == m:
        return o.x, o.x_scale
    x = torch.cat((o.x, o.x[:1].expand(rows - m, -1)))
    scale = torch.cat((o.x_scale, o.x_scale[:1].expand(rows - m, -1)))
    return x, scale.T.contiguous().T


def block_scaled_mm(o: Operands) -> Built:
    (x, x_scale), scale, m = _padded_to_4(o), o.weights.scale.T, o.x.shape[0]
    return Built(
        [
            lambda w=w: torch._scaled_mm(
                x, w.T, scale_a=x_scale, scale_b=scale, out_dtype=BF16, use_fast_accum=False
            )
            for w in o.weights.data
        ],
        finish=lambda out: out[:m],
    )


def block_cutlass(o: Operands) -> Built:
    ops, (x, x_scale), scale = vllm_ops(), _padded_to_4(o), o.weights.scale.T
    m = o.x.shape[0]
    out = torch.empty(x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: ops.cutlass_scaled_mm(out, x, w.T, x_scale, scale, None)
            for w in o.weights.data
        ],
        finish=lambda _: out[:m],
    )


def block_deep_gemm(o: Operands) -> Built:
    deep_gemm = package("deep_gemm")
    scale = deep_gemm.get_mn_major_tma_aligned_tensor(o.x_scale.contiguous())
    out = torch.empty(o.x.shape[0], o.weights.n, device=o.x.device, dtype=BF16)
    return Built(
        [
            lambda w=w: deep_gemm.fp8_gemm_nt(
                (o.x, scale), (w, o.weights.scale), out, disable_ue8m0_cast=True
            )
            for w in o.weights.data
        ],
        finish=lambda _: out,
    )


def bf16_matmul(o: Operands) -> Built:
    """The layer without quantization: twice or four times the weight bytes."""
    from benchmarks import timing

    n, k, w = o.weights.n, o.weights.k, o.weights
    count = timing.copies(2 * n * k)
    data = once(
        w,
        "bf16",
        lambda: (
            [w.dequantized().to(BF16)]
            + [torch.randn(n, k, device=o.x.device, dtype=BF16) for _ in range(count - 1)]
        ),
    )
    x = o.x.to(BF16)
    return Built(
        [lambda b=b: x @ b.T for b in data],
        finish=lambda out: out.float() if o.x_scale is None else out.float() * o.x_scale,
        reference=lambda: o.reference if o.azp is None else o.products * o.x_scale,
    )


def vllm_quantize_then_mm(o: Operands) -> Built:
    ops, scale = vllm_ops(), o.weights.scale.T.contiguous()
    m, k = o.x.shape
    out = torch.empty(m, o.weights.n, device=o.x.device, dtype=BF16)
    q, s = torch.empty(m, k, device=o.x.device, dtype=F8), torch.empty(m, 1, device=o.x.device)

    def call(w):
        ops.dynamic_per_token_scaled_fp8_quant(q, o.x, s, None)
        ops.cutlass_scaled_mm(out, q, w.T, s, scale, None)

    return Built([functools.partial(call, w) for w in o.weights.data], finish=lambda _: out)


# ---------------------------------------------------------------- weight-only
def vllm_type_id(exponent, mantissa, signed, bias=0, finite=0, nan=1) -> int:
    return exponent | mantissa << 8 | signed << 16 | bias << 17 | finite << 49 | nan << 50


TYPE_IDS = {
    "uint4": vllm_type_id(0, 4, 0),
    "uint4b8": vllm_type_id(0, 4, 0, 8),
    "uint8b128": vllm_type_id(0, 8, 0, 128),
    "fp8": vllm_type_id(4, 3, 1, 0, 1, 2),
}


def _bits(w: Weights) -> int:
    return 8 if w.data[0].shape[1] == w.k else 4


def _type(w: Weights) -> str:
    if w.data[0].dtype == F8:
        return "fp8"
    if _bits(w) == 8:
        return "uint8b128"
    return "uint4b8" if w.zero_point is None else "uint4"


def gptq_words(w: Weights) -> list[torch.Tensor]:
    """int32 [K * bits / 32, N], K fastest inside a word: the checkpoint layout of GPTQ."""
    return once(w, "gptq", lambda: [d.view(torch.int32).T.contiguous() for d in w.data])


def _empty() -> torch.Tensor:
    return torch.empty(0, device="cuda", dtype=torch.int32)


_GROUPED = [i + 8 * j for i in range(8) for j in range(8)]
_SINGLE = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]


def marlin_scales(scale: torch.Tensor, grouped: bool) -> torch.Tensor:
    """[K/g, N] in the order in which Marlin's threads read them."""
    order = _GROUPED if grouped else _SINGLE
    return scale.reshape(-1, len(order))[:, order].reshape(scale.shape).contiguous()


def marlin_zeros(zero: torch.Tensor) -> torch.Tensor:
    """Codes [K/g, N] -> int32 [K/g, N/8] in Marlin's order."""
    z = zero.reshape(-1, 64)[:, _GROUPED].reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]
    z = z.reshape(zero.shape[0], -1, 8).long()
    word = (z << torch.arange(0, 32, 4, device=z.device)).sum(-1)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32).contiguous()


def marlin(o: Operands) -> Built:
    ops, w, none = vllm_ops(), o.weights, _empty()
    m, n, k, kind = o.x.shape[0], w.n, w.k, _type(o.weights)
    data = once(
        w,
        "marlin",
        lambda: [ops.gptq_marlin_repack(q, none, k, n, _bits(w), False) for q in gptq_words(w)],
    )
    # fp8 weights: Marlin rebuilds the exponent with a bias that the scale has to undo.
    unbias = 2.0**120 if kind == "fp8" else 1.0
    scale = once(
        w,
        "marlin_scale",
        lambda: marlin_scales(w.scale.T.contiguous(), not w.per_channel) * unbias,
    )
    zero = none
    if w.zero_point is not None:
        zero = once(w, "marlin_zero", lambda: marlin_zeros(w.zero_point.T.contiguous()))
    space = torch.zeros(132, device="cuda", dtype=torch.int32)
    return Built(
        [
            lambda q=q: ops.marlin_gemm(
                o.x,
                None,
                q,
                None,
                scale,
                None,
                None,
                zero,
                none,
                none,
                space,
                TYPE_IDS[kind],
                m,
                n,
                k,
                True,
                False,
                True,
                False,
            )
            for q in data
        ]
    )


def machete(o: Operands) -> Built:
    ops, w = vllm_ops(), o.weights
    kind = TYPE_IDS[_type(w)]
    data = once(
        w,
        "machete",
        lambda: [
            ops.machete_prepack_B(q.t().contiguous().t(), BF16, kind, BF16) for q in gptq_words(w)
        ],
    )
    scale = once(w, "machete_scale", lambda: w.scale.T.contiguous())
    zero = None
    if w.zero_point is not None:
        zero = (-scale * w.zero_point.T.to(BF16)).contiguous()
    group = -1 if w.per_channel else w.group
    return Built(
        [
            lambda q=q: ops.machete_mm(o.x, q, kind, BF16, scale, zero, group, None, None, None)
            for q in data
        ]
    )


def cutlass_w4a8(o: Operands) -> Built:
    """int4 x fp8: the kernel rounds int4 * group scale to fp8, so both its scales are its own."""
    ops, w = vllm_ops(), o.weights
    flip = -2004318072  # 0x88888888: offset-binary nibbles to two's complement
    data = once(
        w,
        "w4a8",
        lambda: [
            ops.cutlass_encode_and_reorder_int4b((q ^ flip).t().contiguous().t())
            for q in gptq_words(w)
        ],
    )
    group_scale = once(
        w,
        "w4a8_group",
        lambda: ((torch.rand(w.k // 128, w.n, device="cuda") * 0.9 + 0.1) * 56).to(F8),
    )
    packed = once(w, "w4a8_scale", lambda: ops.cutlass_pack_scale_fp8(group_scale))
    channel = once(w, "w4a8_channel", lambda: torch.rand(w.n, 1, device="cuda") * 0.01 + 0.001)

    def reference() -> torch.Tensor:
        codes = w.codes() * group_scale.T.float().repeat_interleave(128, 1)
        return o.x.float() @ codes.to(F8).float().T * o.x_scale * channel.T

    return Built(
        [
            lambda q=q: ops.cutlass_w4a8_mm(o.x, q, packed, 128, channel, o.x_scale, None, None)
            for q in data
        ],
        reference=reference,
    )


def marlin_w4a8(o: Operands) -> Built:
    """int4 x int8: group scales as int16 fractions of the largest."""
    ops, w, none = vllm_ops(), o.weights, _empty()
    m, n, k = o.x.shape[0], w.n, w.k
    data = once(
        w,
        "marlin_a8",
        lambda: [ops.gptq_marlin_repack(q, none, k, n, 4, True) for q in gptq_words(w)],
    )
    scale = once(w, "marlin_a8_scale", lambda: marlin_scales(w.scale.T.contiguous(), False))
    fraction = (scale / scale.max() * 4096).round().to(torch.int16).view(BF16)
    token = o.x_scale * (scale.max().float() / 4096)
    space = torch.zeros(132, device="cuda", dtype=torch.int32)
    return Built(
        [
            lambda q=q: ops.marlin_gemm(
                o.x,
                None,
                q,
                None,
                fraction,
                token,
                None,
                none,
                none,
                none,
                space,
                TYPE_IDS["uint4b8"],
                m,
                n,
                k,
                True,
                False,
                True,
                False,
            )
            for q in data
        ]
    )


def humming(weight: str, activation: str | None) -> Callable[[Operands], Built]:
    """humming's kernel at its own default choice, on weights that it quantizes itself."""

    def build(o: Operands) -> Built:
        import json

        package("humming")
        from humming import ops
        from humming.forward import may_quant_input
        from humming.kernel.humming import HummingKernel
        from humming.layer import HummingLayer
        from humming.tune import get_heuristics_config

        w, m = o.weights, o.x.shape[0]

        def prepare():
            layer = HummingLayer(
                shape_n=w.n,
                shape_k=w.k,
                weight_config={"dtype": weight, "group_size": max(w.group or 0, 0)},
                input_config={"dtype": activation} if activation else None,
                torch_dtype=BF16,
            ).cuda()
            layer.load_from_unquantized(torch.randn(w.n, w.k, device="cuda", dtype=BF16))
            stored = dict(weight=layer.weight.data, weight_scale=layer.weight_scale.data)
            dense = layer.weight_schema.dequant_tensors(stored).float()
            layer.transform()
            first = layer.weight.data
            count = len(w.data) - 1

            def like():
                if weight.startswith("float"):
                    from benchmarks.operands import random_fp8

                    return random_fp8(first.numel() * 4).view(torch.int32).view(first.shape)
                low, high = -(2**31), 2**31 - 1
                return torch.randint(low, high, first.shape, device="cuda", dtype=torch.int32)

            return layer, dense, [first, *(like() for _ in range(count))]

        layer, dense, data = once(w, f"humming-{weight}-{activation}", prepare)
        config = layer.humming_config
        ranges = [e for e in get_heuristics_config(config) if any(e[0] < t <= e[1] for t in (1, m))]
        kernels = HummingKernel.prepare_kernels(config.to_str(), None, json.dumps(ranges))
        source = torch.randn(m, w.k, device="cuda", dtype=BF16)
        x, scale = may_quant_input(config, source)

        def reference() -> torch.Tensor:
            product = x.float() @ dense.T
            return product if scale is None else product * scale.float().view(-1, 1)

        return Built(
            [
                lambda q=q: ops.launch_kernel(
                    configs=kernels,
                    inputs=x,
                    weight=q,
                    weight_scale=layer.weight_scale.data,
                    input_scale=scale,
                    locks=layer.locks,
                )
                for q in data
            ],
            reference=reference,
        )

    return build


# ---------------------------------------------------------------- activation quantization
def _conversion(o: Operands, dtype: torch.dtype, call, *, scale=None, azp=None) -> Built:
    """`call(x, q, scale, azp)` over the rotating inputs, each with an output of its own."""
    outputs = [torch.empty(x.shape, device=x.device, dtype=dtype) for x in o.copies]
    if scale is None:
        scale = torch.empty(o.cell.m, 1, device=o.x.device)
    return Built(
        [functools.partial(call, x, q, scale, azp) for x, q in zip(o.copies, outputs, strict=True)],
        finish=lambda _: dequantized(outputs[0], scale, azp),
    )


def vllm_int8(o: Operands) -> Built:
    ops = vllm_ops()
    return _conversion(
        o, torch.int8, lambda x, q, s, z: ops.dynamic_scaled_int8_quant(q, x, s, None)
    )


def vllm_int8_azp(o: Operands) -> Built:
    ops = vllm_ops()
    azp = torch.empty(o.cell.m, 1, device=o.x.device, dtype=torch.int32)
    return _conversion(
        o, torch.int8, lambda x, q, s, z: ops.dynamic_scaled_int8_quant(q, x, s, z), azp=azp
    )


def vllm_int8_static(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.full((1,), STATIC_SCALE, device=o.x.device)
    return _conversion(
        o, torch.int8, lambda x, q, s, z: ops.static_scaled_int8_quant(q, x, s, None), scale=scale
    )


def vllm_int8_static_azp(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.full((1,), STATIC_SCALE, device=o.x.device)
    azp = torch.full((1,), STATIC_AZP, device=o.x.device, dtype=torch.int32)
    return _conversion(
        o,
        torch.int8,
        lambda x, q, s, z: ops.static_scaled_int8_quant(q, x, s, z),
        scale=scale,
        azp=azp,
    )


def vllm_fp8_token(o: Operands) -> Built:
    ops = vllm_ops()
    return _conversion(
        o, F8, lambda x, q, s, z: ops.dynamic_per_token_scaled_fp8_quant(q, x, s, None)
    )


def vllm_fp8_static(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.full((1,), STATIC_SCALE, device=o.x.device)
    return _conversion(
        o, F8, lambda x, q, s, z: ops.static_scaled_fp8_quant(q, x, s, None), scale=scale
    )


def vllm_fp8_tensor(o: Operands) -> Built:
    ops, scale = vllm_ops(), torch.zeros(1, device=o.x.device)
    return _conversion(o, F8, lambda x, q, s, z: ops.dynamic_scaled_fp8_quant(q, x, s), scale=scale)


def vllm_fp8_group(column_major: bool) -> Callable[[Operands], Built]:
    def build(o: Operands) -> Built:
        ops, m, groups = vllm_ops(), o.cell.m, o.cell.k // o.cell.group
        scale = torch.empty(m, groups, device=o.x.device)
        if column_major:
            scale = torch.empty(groups, m, device=o.x.device).T
        return _conversion(
            o,
            F8,
            lambda x, q, s, z: ops.per_token_group_fp8_quant(
                x, q, s, o.cell.group, 1e-10, -448.0, 448.0, False, column_major, False
            ),
            scale=scale,
        )

    return build


def copy_same_bytes(o: Operands) -> Built:
    """A plain copy that reads and writes as many bytes: what the memory system can do."""
    half = [
        (torch.empty(3 * x.numel() // 2, device=x.device, dtype=torch.uint8), torch.empty_like(x))
        for x in o.copies
    ]
    pairs = [(a, b.view(torch.uint8).view(-1)[: a.numel()]) for a, b in half]
    return Built([lambda a=a, b=b: a.copy_(b) for a, b in pairs], finish=lambda _: o.x.float())


# ---------------------------------------------------------------- XLA
def xla(o: Operands) -> Built:
    """What a JAX user writes: dequantize and dot, left to the compiler."""
    import jax
    import jax.numpy as jnp

    from benchmarks import timing

    w, bits = o.weights, _bits(o.weights) if o.weights.data[0].dtype == torch.uint8 else 8
    data = [jax.dlpack.from_dlpack(d) for d in w.data[: 16 if o.cell.m <= 256 else 3]]
    scale = jax.dlpack.from_dlpack(w.scale)
    x_scale = None if o.x_scale is None else jax.dlpack.from_dlpack(o.x_scale.contiguous())
    # A different x for every call, or XLA would merge equal products.
    xs = [
        jax.dlpack.from_dlpack(torch.roll(o.x.view(torch.uint8), 2 * i, 0).view(o.x.dtype))
        for i in range(len(data))
    ]
    int8 = o.x.dtype == torch.int8

    def dot(a, b, out):
        return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=out)

    def layer(x, q, s, x_scale):
        if x_scale is not None:
            product = dot(x, q, jnp.int32 if int8 else jnp.float32).astype(jnp.float32)
            return (product * x_scale * s.T).astype(jnp.bfloat16)
        if q.dtype == jnp.uint8:
            if bits == 4:
                q = jax.lax.bitcast_convert_type(q, jnp.uint4).reshape(w.n, w.k)
            q = q.astype(jnp.bfloat16) - (8 if bits == 4 else 128)
        if s.shape[1] == 1:
            return dot(x, q.astype(jnp.bfloat16), jnp.bfloat16) * s.T
        dense = q.astype(jnp.bfloat16).reshape(w.n, s.shape[1], -1) * s[:, :, None]
        return dot(x, dense.reshape(w.n, w.k), jnp.bfloat16)

    run = jax.jit(lambda xs, qs, s, t: [layer(x, q, s, t) for x, q in zip(xs, qs, strict=True)])

    def enqueue():
        return run(xs, data, scale, x_scale)

    return Built(
        [lambda: torch.from_dlpack(jax.block_until_ready(enqueue()[0]))],
        time=lambda: timing.wall_time(enqueue, jax.block_until_ready, len(data)),
    )


# ---------------------------------------------------------------- who meets whom
_PRODUCT_8BIT = [
    Peer("vllm cutlass_scaled_mm", cutlass_scaled_mm, source="vllm"),
    Peer("xla", xla, source="xla"),
    Peer("torch bf16 matmul", bf16_matmul, eligible=False),
]
_WEIGHT_ONLY = [
    Peer("marlin", marlin, source="vllm"),
    Peer("machete", machete, source="vllm"),
    Peer("xla", xla, source="xla"),
    Peer("torch bf16 matmul", bf16_matmul, eligible=False),
]
PEERS: dict[str, list[Peer]] = {
    "fp8": [
        Peer("torch._scaled_mm rowwise", scaled_mm_rowwise),
        Peer("torch._scaled_mm tensorwise", scaled_mm_tensorwise, eligible=False),
        *_PRODUCT_8BIT,
    ],
    "fp8-block": [
        Peer("deep_gemm fp8_gemm_nt", block_deep_gemm, source="deep_gemm"),
        Peer("vllm cutlass_scaled_mm", block_cutlass, source="vllm"),
        Peer("torch._scaled_mm blocks", block_scaled_mm),
    ],
    "int8": [Peer("torch._int_mm", int_mm, eligible=False), *_PRODUCT_8BIT],
    "int8-azp": [Peer("vllm cutlass_scaled_mm_azp", cutlass_scaled_mm_azp, source="vllm")],
    "w8a8-linear": [Peer("vllm quant + cutlass_scaled_mm", vllm_quantize_then_mm, source="vllm")],
    "w4a16": [Peer("humming", humming("uint4", None), source="humming"), *_WEIGHT_ONLY],
    "w4a16-zp": [p for p in _WEIGHT_ONLY if p.name != "xla"],
    "w8a16-int8": [Peer("humming", humming("uint8", None), source="humming"), *_WEIGHT_ONLY],
    "w8a16-fp8": [
        Peer("humming", humming("float8e4m3", None), source="humming"),
        *[p for p in _WEIGHT_ONLY if p.name != "machete"],
    ],
    "w4a8-fp8": [
        Peer("humming fp8", humming("uint4", "float8e4m3"), source="humming"),
        Peer("vllm cutlass_w4a8_mm", cutlass_w4a8, source="vllm"),
    ],
    "w4a8-int8": [
        Peer("humming int8", humming("uint4", "int8"), source="humming"),
        Peer("marlin int8", marlin_w4a8, source="vllm"),
    ],
    "quantize-int8-token": [Peer("vllm dynamic_scaled_int8_quant", vllm_int8, source="vllm")],
    "quantize-int8-token-azp": [
        Peer("vllm dynamic_scaled_int8_quant azp", vllm_int8_azp, source="vllm")
    ],
    "quantize-int8-static": [
        Peer("vllm static_scaled_int8_quant", vllm_int8_static, source="vllm")
    ],
    "quantize-int8-static-azp": [
        Peer("vllm static_scaled_int8_quant azp", vllm_int8_static_azp, source="vllm")
    ],
    "quantize-fp8-token": [
        Peer("vllm dynamic_per_token_scaled_fp8_quant", vllm_fp8_token, source="vllm")
    ],
    "quantize-fp8-static": [Peer("vllm static_scaled_fp8_quant", vllm_fp8_static, source="vllm")],
    "quantize-fp8-tensor": [Peer("vllm dynamic_scaled_fp8_quant", vllm_fp8_tensor, source="vllm")],
    "quantize-fp8-group": [
        Peer("vllm per_token_group_fp8_quant", vllm_fp8_group(False), source="vllm")
    ],
    "quantize-fp8-group-col": [
        Peer("vllm per_token_group_fp8_quant", vllm_fp8_group(True), source="vllm")
    ],
    "fp4-nv": [Peer("torch bf16 matmul", bf16_matmul, eligible=False)],
    "fp4-mx": [Peer("torch bf16 matmul", bf16_matmul, eligible=False)],
}


def peers_of(family: str) -> list[Peer]:
    """The peers that a family meets; a conversion also meets a plain copy."""
    copy = [Peer("torch copy_ (same bytes)", copy_same_bytes, eligible=False)]
    return PEERS.get(family, []) + copy * family.startswith("quantize-")

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""GEMMs with narrow weights: vLLM's Marlin, Machete and CUTLASS W4A8, and humming."""

import functools
import json
from collections.abc import Callable

import torch

from benchmarks.operands import BF16, F8, Operands, Weights, random_fp8
from benchmarks.peers.common import Built, once, package, vllm_ops


def vllm_type_id(exponent, mantissa, signed, bias=0, finite=0, nan=1) -> int:
    return exponent | mantissa << 8 | signed << 16 | bias << 17 | finite << 49 | nan << 50


TYPE_IDS = {
    "uint4": vllm_type_id(0, 4, 0),
    "uint4b8": vllm_type_id(0, 4, 0, 8),
    "uint8b128": vllm_type_id(0, 8, 0, 128),
    "fp8": vllm_type_id(4, 3, 1, 0, 1, 2),
    "fp4": vllm_type_id(2, 1, 1, 0, 1, 0),
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

    def scales():
        given = w.scale if w.scale.shape[0] == n else w.scale.repeat_interleave(128, 0)[:n]
        return marlin_scales(given.to(BF16).T.contiguous(), not w.per_channel) * unbias

    scale = once(w, "marlin_scale", scales)
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


def marlin_fp4_scales(w: Weights) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(scales of 8 bits in Marlin's order, global scale): MXFP4's as they are, NVFP4's with five
    exponent bits and no sign."""
    scale = marlin_scales(w.scale.T.contiguous().to(BF16), True)
    scale = scale.reshape(-1, 4)[:, [0, 2, 1, 3]].reshape(scale.shape)
    if w.global_scale is None:
        return scale.to(torch.float8_e8m0fnu), None
    # float16 has five exponent bits too: its top bits, sign shifted out, of scales of 2^-6 and up.
    wide = (scale.half() * 2**7).view(torch.int16) << 1
    bytes_ = (wide >> 8).to(torch.int8).view(F8).contiguous()
    return bytes_, w.global_scale.reshape(1).float() * 2.0 ** (126 - 7)


def marlin_fp4(o: Operands) -> Built:
    """fp4 weights, 16-bit activations."""
    ops, w, none = vllm_ops(), o.weights, _empty()
    m, n, k = o.x.shape[0], w.n, w.k
    data = once(
        w,
        "marlin",
        lambda: [ops.gptq_marlin_repack(q, none, k, n, 4, False) for q in gptq_words(w)],
    )
    scale, second = once(w, "marlin_scale", lambda: marlin_fp4_scales(w))
    space = torch.zeros(132, device="cuda", dtype=torch.int32)
    kind = TYPE_IDS["fp4"]

    def call(q):
        return ops.marlin_gemm(
            o.x, None, q, None, scale, None, second, none, none, none, space, kind,
            m, n, k, True, False, True, False,
        )  # fmt: skip

    return Built([functools.partial(call, q) for q in data])


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
    """int4 x fp8: a code times its group's fp8 scale is rounded to fp8, as it is here."""
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
    packed = once(w, "w4a8_scale", lambda: ops.cutlass_pack_scale_fp8(w.scale.t().contiguous()))
    channel = w.global_scale
    return Built(
        [
            lambda q=q: ops.cutlass_w4a8_mm(o.x, q, packed, 128, channel, o.x_scale, None, None)
            for q in data
        ]
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

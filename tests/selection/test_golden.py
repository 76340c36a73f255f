# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Sixty layers on ten devices: the class that serves each, and why those before it do not.

`golden.txt` is the answer as a reviewer reads it. Its first part has what a device refuses whatever
the layer is; after that each layer has who serves it, with the reasons that are the layer's own,
and devices with the same answer share an entry. So every reason is in the file once or in its
place. After a change on purpose, write it again and read its diff:

    python tests/selection/test_golden.py
"""

from pathlib import Path

from jaxkernels.scalar_types import scalar_types as t
from selection import (
    FP8ScaledMMLinearLayerConfig,
    GroupShape,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
    choose_kernel,
    create_fp8_quant_key,
    kFp8Dynamic64Sym,
    kFp8Dynamic128Sym,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
    kFp8StaticTokenSym,
)
from selection.choice import bare_reason, short_name

GOLDEN = Path(__file__).with_name("golden.txt")
DEVICES = ("h200", "b200", "a100", "l4", "t4", "mi300x", "mi250", "xpu", "tpu-v5e", "cpu")


def mp(
    weight_type, group, k=4096, n=4096, act="bfloat16", zp=False, gidx=False, full_k=None, out=None
):
    return MPLinearLayerConfig((full_k or k, n), (k, n), weight_type, act, group, zp, gidx, out)


def fp8(weight, activation, out="bfloat16", n=4096, k=4096, input_dtype="bfloat16"):
    return FP8ScaledMMLinearLayerConfig(weight, activation, out, (n, k), input_dtype)


_BLOCK_64 = create_fp8_quant_key(True, GroupShape(64, 128))
_E8M0 = create_fp8_quant_key(True, GroupShape(128, 128), scale_dtype="float8_e8m0fnu")
_STATIC_128 = create_fp8_quant_key(True, GroupShape(1, 128))

# name: (priority list, config)
LAYERS = {
    "gptq 4-bit, group 128": ("mp", mp(t.uint4b8, 128)),
    "gptq 4-bit, group 128, float16": ("mp", mp(t.uint4b8, 128, act="float16")),
    "gptq 4-bit, group 128, float32 activations": ("mp", mp(t.uint4b8, 128, act="float32")),
    "gptq 4-bit, group 64": ("mp", mp(t.uint4b8, 64)),
    "gptq 4-bit, group 32": ("mp", mp(t.uint4b8, 32)),
    "gptq 4-bit, group 256": ("mp", mp(t.uint4b8, 256)),
    "gptq 4-bit, group 256, float16": ("mp", mp(t.uint4b8, 256, act="float16")),
    "gptq 4-bit, group 16": ("mp", mp(t.uint4b8, 16)),
    "gptq 4-bit, per channel": ("mp", mp(t.uint4b8, -1)),
    "gptq 4-bit, per channel, float16": ("mp", mp(t.uint4b8, -1, act="float16")),
    "gptq 4-bit, group = in-features": ("mp", mp(t.uint4b8, 4096)),
    "gptq 4-bit, act-order": ("mp", mp(t.uint4b8, 128, gidx=True)),
    "gptq 4-bit, act-order, float16": ("mp", mp(t.uint4b8, 128, act="float16", gidx=True)),
    "gptq 4-bit, act-order, sharded": ("mp", mp(t.uint4b8, 128, k=2048, full_k=4096, gidx=True)),
    "gptq 4-bit, group straddles shards": (
        "mp",
        mp(t.uint4b8, 128, k=1088, full_k=4352, act="float16"),
    ),
    "gptq 4-bit, out-features 96": ("mp", mp(t.uint4b8, 128, n=96)),
    "gptq 4-bit, out-features 4160": ("mp", mp(t.uint4b8, 128, n=4160)),
    "gptq 4-bit, out-features 4100": ("mp", mp(t.uint4b8, 128, n=4100)),
    "gptq 4-bit, out-features 4100, float16": ("mp", mp(t.uint4b8, 128, n=4100, act="float16")),
    "gptq 4-bit, in-features 4032, group 64": ("mp", mp(t.uint4b8, 64, k=4032)),
    "gptq 4-bit, in-features 80, group 16": ("mp", mp(t.uint4b8, 16, k=80)),
    "gptq 8-bit, group 128": ("mp", mp(t.uint8b128, 128)),
    "gptq 8-bit, per channel": ("mp", mp(t.uint8b128, -1)),
    "gptq 8-bit, per channel, float32 activations": ("mp", mp(t.uint8b128, -1, act="float32")),
    "gptq 8-bit, group 32, float16": ("mp", mp(t.uint8b128, 32, act="float16")),
    "awq 4-bit, group 128": ("mp", mp(t.uint4, 128, zp=True)),
    "awq 4-bit, group 64": ("mp", mp(t.uint4, 64, zp=True)),
    "awq 4-bit, group 32": ("mp", mp(t.uint4, 32, zp=True)),
    "awq 4-bit, per channel": ("mp", mp(t.uint4, -1, zp=True)),
    "8-bit with zero points, group 128": ("mp", mp(t.uint8, 128, zp=True)),
    "8-bit with zero points, group 64": ("mp", mp(t.uint8, 64, zp=True)),
    "4-bit without bias or zero points": ("mp", mp(t.uint4, 128)),
    "int4 x fp8, group 128": ("mp", mp(t.int4, 128, act="float8_e4m3fn", out="bfloat16")),
    "int4 x fp8, no out_type": ("mp", mp(t.int4, 128, act="float8_e4m3fn")),
    "int4, group 128": ("mp", mp(t.int4, 128)),
    "int4, per channel": ("mp", mp(t.int4, -1)),
    "fp8 weights as mixed precision": ("mp", mp(t.float8_e4m3fn, -1)),
    "fp4 weights as mixed precision": ("mp", mp(t.float4_e2m1f, 32)),
    "2-bit": ("mp", mp(t.uint2b2, 128)),
    "int8 dynamic symmetric, channel": ("int8", Int8ScaledMMLinearLayerConfig(False, True, True)),
    "int8 dynamic asymmetric, channel": ("int8", Int8ScaledMMLinearLayerConfig(False, True, False)),
    "int8 static symmetric, channel": ("int8", Int8ScaledMMLinearLayerConfig(True, True, True)),
    "int8 static asymmetric, channel": ("int8", Int8ScaledMMLinearLayerConfig(True, True, False)),
    "int8 static symmetric, tensor": ("int8", Int8ScaledMMLinearLayerConfig(True, False, True)),
    "int8 dynamic symmetric, tensor": ("int8", Int8ScaledMMLinearLayerConfig(False, False, True)),
    "fp8 token x channel": ("fp8", fp8(kFp8StaticChannelSym, kFp8DynamicTokenSym)),
    "fp8 token x channel, float16": (
        "fp8",
        fp8(kFp8StaticChannelSym, kFp8DynamicTokenSym, "float16"),
    ),
    "fp8 token x channel, seed's key": ("fp8", fp8(kFp8StaticTokenSym, kFp8DynamicTokenSym)),
    "fp8 static tensor x tensor": ("fp8", fp8(kFp8StaticTensorSym, kFp8StaticTensorSym)),
    "fp8 dynamic tensor x tensor": ("fp8", fp8(kFp8StaticTensorSym, kFp8DynamicTensorSym)),
    "fp8 token x tensor": ("fp8", fp8(kFp8StaticTensorSym, kFp8DynamicTokenSym)),
    "fp8 tensor x channel": ("fp8", fp8(kFp8StaticChannelSym, kFp8StaticTensorSym)),
    "fp8 tensor x block": ("fp8", fp8(kFp8Static128BlockSym, kFp8DynamicTensorSym)),
    "fp8 block 128x128": ("fp8_block", fp8(kFp8Static128BlockSym, kFp8Dynamic128Sym)),
    "fp8 block 128x128, float16": (
        "fp8_block",
        fp8(kFp8Static128BlockSym, kFp8Dynamic128Sym, "float16", input_dtype="float16"),
    ),
    "fp8 block 128x128, out-features 576": (
        "fp8_block",
        fp8(kFp8Static128BlockSym, kFp8Dynamic128Sym, n=576, k=7168),
    ),
    "fp8 block 128x128, out-features 4100": (
        "fp8_block",
        fp8(kFp8Static128BlockSym, kFp8Dynamic128Sym, n=4100),
    ),
    "fp8 block 128x128, power-of-two weight scales": (
        "fp8_block",
        fp8(_E8M0, kFp8Dynamic128Sym),
    ),
    "fp8 block 64x128": ("fp8_block", fp8(_BLOCK_64, kFp8Dynamic128Sym)),
    "fp8 block, activations 1x64": ("fp8_block", fp8(kFp8Static128BlockSym, kFp8Dynamic64Sym)),
    "fp8 block, static activations": ("fp8_block", fp8(kFp8Static128BlockSym, _STATIC_128)),
    "fp8 weights only, channel": ("wfp8a16", fp8(kFp8StaticChannelSym, None)),
    "fp8 weights only, block": ("wfp8a16", fp8(kFp8Static128BlockSym, None)),
    "mxfp8": ("mxfp8", Mxfp8LinearLayerConfig()),
    "mxfp4": ("mxfp4", MxFp4LinearLayerConfig()),
    "nvfp4": ("nvfp4", NvFp4LinearLayerConfig()),
}


def answers() -> dict[tuple[str, str], tuple[str, list[tuple[str, str]]]]:
    """(layer, device) -> (class, [(rejected class, reason), ...])."""
    found = {}
    for name, (kind, config) in LAYERS.items():
        for device in DEVICES:
            choice = choose_kernel(config, kind=kind, device=device, quiet=True)
            rejected = [(short_name(r.kernel), bare_reason(r)) for r in choice.rejected]
            found[name, device] = short_name(choice.kernel), rejected
    return found


def always(found) -> dict[str, list[tuple[str, str]]]:
    """device -> the classes that it refuses for one and the same reason at every layer."""
    reasons: dict[tuple[str, str], set[str]] = {}
    for (_, device), (served, rejected) in found.items():
        reasons.setdefault((device, served), set()).add("serves")
        for name, reason in rejected:
            reasons.setdefault((device, name), set()).add(reason)
    out: dict[str, list[tuple[str, str]]] = {device: [] for device in DEVICES}
    for (device, name), texts in reasons.items():
        if len(texts) == 1 and texts != {"serves"}:
            out[device].append((name, texts.pop()))
    return out


def render() -> str:
    """The whole file."""
    found = answers()
    everywhere = always(found)
    out = [
        "Which class serves a layer on a device, and why those before it do not.",
        "Written by: python tests/selection/test_golden.py",
        "",
        "== whatever the layer",
    ]
    for device, pairs in everywhere.items():
        out += [f"{device} refuses" + ("" if pairs else " nothing")]
        out += [f"    {name}: {reason}" for name, reason in pairs]
    for layer, (kind, _) in LAYERS.items():
        out += ["", f"== {layer} [{kind}]"]
        groups: dict[tuple, list[str]] = {}
        for device in DEVICES:
            served, rejected = found[layer, device]
            own = [pair for pair in rejected if pair not in everywhere[device]]
            groups.setdefault((served, *own), []).append(device)
        for (served, *own), devices in groups.items():
            out.append(f"{' '.join(devices)} -> {served}")
            out += [f"    {name}: {reason}" for name, reason in own]
    return "\n".join(out) + "\n"


def test_every_answer_is_the_recorded_one():
    assert render().splitlines() == GOLDEN.read_text().splitlines()


def test_the_table_covers_what_it_promises():
    assert len(LAYERS) >= 60 and len(DEVICES) == 10
    assert {kind for kind, _ in LAYERS.values()} == {
        *("mp", "int8", "fp8", "fp8_block", "wfp8a16", "mxfp8", "mxfp4", "nvfp4"),
    }


if __name__ == "__main__":
    GOLDEN.write_text(render())
    print(f"wrote {GOLDEN}: read its diff")

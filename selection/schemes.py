# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Layers by name: the schemes that checkpoints come in, each a config for given sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxkernels.scalar_types import ScalarType, scalar_types
from selection.configs import (
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
    QuantKey,
    kFp8Dynamic128Sym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)


@dataclass(frozen=True)
class Scheme:
    """A way to quantize a linear layer.

    Attributes:
      name: "w4a16-g128".
      kind: its priority list.
      what: in words.
      config: (k, n) -> layer config.
    """

    name: str
    kind: str
    what: str
    config: Callable[[int, int], Any]


def _mixed(
    weight_type: ScalarType,
    group: int,
    act: str = "bfloat16",
    zero_points: bool = False,
    g_idx: bool = False,
    out: str | None = None,
) -> Callable[[int, int], MPLinearLayerConfig]:
    return lambda k, n: MPLinearLayerConfig(
        (k, n), (k, n), weight_type, act, group, zero_points, g_idx, out
    )


def _fp8(weight: QuantKey, activation: QuantKey) -> Callable[[int, int], Any]:
    return lambda k, n: FP8ScaledMMLinearLayerConfig(
        weight, activation, "bfloat16", weight_shape=(n, k), input_dtype="bfloat16"
    )


def _int8(static: bool, channelwise: bool, symmetric: bool) -> Callable[[int, int], Any]:
    return lambda k, n: Int8ScaledMMLinearLayerConfig(static, channelwise, symmetric)


_T = scalar_types
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("w8a8-int8", "int8", "int8, per token x per channel", _int8(False, True, True)),
        Scheme("w8a8-int8-static", "int8", "int8, static x per channel", _int8(True, True, True)),
        Scheme("w8a8-int8-asym", "int8", "int8, static asymmetric", _int8(True, True, False)),
        Scheme("w8a8-int8-dyn-asym", "int8", "int8, dynamic asymmetric", _int8(False, True, False)),
        Scheme(
            "w8a8-fp8",
            "fp8",
            "fp8, per token x per channel",
            _fp8(kFp8StaticChannelSym, kFp8DynamicTokenSym),
        ),
        Scheme(
            "w8a8-fp8-tensor",
            "fp8",
            "fp8, per tensor",
            _fp8(kFp8StaticTensorSym, kFp8StaticTensorSym),
        ),
        Scheme(
            "fp8-block",
            "fp8_block",
            "fp8, 1x128 by 128x128",
            _fp8(kFp8Static128BlockSym, kFp8Dynamic128Sym),
        ),
        Scheme(
            "w8a16-fp8",
            "wfp8a16",
            "fp8 weights only, per channel",
            _fp8(kFp8StaticChannelSym, kFp8DynamicTokenSym),
        ),
        Scheme(
            "w8a16-fp8-block",
            "wfp8a16",
            "fp8 weights only, 128x128 blocks",
            _fp8(kFp8Static128BlockSym, kFp8DynamicTokenSym),
        ),
        Scheme("w4a16-g128", "mp", "int4 (GPTQ), groups of 128", _mixed(_T.uint4b8, 128)),
        Scheme("w4a16-g64", "mp", "int4 (GPTQ), groups of 64", _mixed(_T.uint4b8, 64)),
        Scheme("w4a16-g32", "mp", "int4 (GPTQ), groups of 32", _mixed(_T.uint4b8, 32)),
        Scheme("w4a16-channel", "mp", "int4 (GPTQ), per channel", _mixed(_T.uint4b8, -1)),
        Scheme(
            "w4a16-g128-zp",
            "mp",
            "int4 with zero points (AWQ), groups of 128",
            _mixed(_T.uint4, 128, zero_points=True),
        ),
        Scheme(
            "w4a16-g64-zp",
            "mp",
            "int4 with zero points (AWQ), groups of 64",
            _mixed(_T.uint4, 64, zero_points=True),
        ),
        Scheme(
            "w4a16-g128-actorder",
            "mp",
            "int4 (GPTQ), act-order",
            _mixed(_T.uint4b8, 128, g_idx=True),
        ),
        Scheme("w8a16-g128", "mp", "int8 (GPTQ), groups of 128", _mixed(_T.uint8b128, 128)),
        Scheme("w8a16", "mp", "int8 (GPTQ), per channel", _mixed(_T.uint8b128, -1)),
        Scheme(
            "w4a8-fp8",
            "mp",
            "int4 x fp8, groups of 128",
            _mixed(_T.int4, 128, "float8_e4m3fn", out="bfloat16"),
        ),
        Scheme("mxfp8", "mxfp8", "MXFP8", lambda k, n: Mxfp8LinearLayerConfig()),
        Scheme("mxfp4", "mxfp4", "MXFP4", lambda k, n: MxFp4LinearLayerConfig()),
        Scheme("nvfp4", "nvfp4", "NVFP4", lambda k, n: NvFp4LinearLayerConfig()),
    )
}


def scheme(name: str) -> Scheme:
    """A scheme by name; ValueError lists the names.

    Example:
      >>> scheme("w4a16-g64-zp").what
      'int4 with zero points (AWQ), groups of 64'
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}; got {name!r}")
    return SCHEMES[name]

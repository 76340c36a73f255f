# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What a quantized linear layer is, as the choosers ask about it.

Names, fields and field order are upstream's. A dtype in a layer config may be torch's, JAX's,
numpy's or a name, and is kept as the caller gave it (`selection.dtype_name` reads all of them). In
a `QuantKey` or `ScaleDesc` it becomes its name at once, since keys are compared by value.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from jaxkernels.quantized import GroupShape
from jaxkernels.scalar_types import ScalarType, scalar_types
from selection.dtypes import abbreviation, canonical

__all__ = [
    "FP8ScaledMMLinearLayerConfig",
    "GroupShape",
    "Int8ScaledMMLinearLayerConfig",
    "MMLinearLayerConfig",
    "MPLinearLayerConfig",
    "MxFp4LinearLayerConfig",
    "Mxfp8LinearLayerConfig",
    "NvFp4LinearLayerConfig",
    "QuantKey",
    "ScaleDesc",
    "ScaledMMLinearLayerConfig",
    "create_fp8_quant_key",
]


@dataclass(frozen=True)
class ScaleDesc:
    """How scales are stored.

    Attributes:
      dtype: of the scales.
      static: known before the activations are seen.
      group_shape: how many rows and columns share one; -1 is the full extent.

    Example:
      >>> str(ScaleDesc("float32", False, GroupShape.PER_TOKEN))
      'f32,dynamic,per_token'
    """

    dtype: Any
    static: bool
    group_shape: GroupShape

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", canonical(self.dtype))
        object.__setattr__(self, "group_shape", GroupShape(*self.group_shape))

    def __str__(self) -> str:
        return _scale_text(self.dtype, self.static, self.group_shape)


@functools.lru_cache(maxsize=256)
def _scale_text(dtype: Any, static: bool, shape: GroupShape) -> str:
    named = {
        GroupShape.PER_TENSOR: "per_tensor",
        GroupShape.PER_TOKEN: "per_token",
        GroupShape.PER_CHANNEL: "per_channel",
    }
    how = "static" if static else "dynamic"
    return f"{abbreviation(dtype)},{how},{named.get(shape, str(shape))}"


@dataclass(frozen=True)
class QuantKey:
    """A quantized format: the type of the data and its scales. Hashable, compared by value.

    Attributes:
      dtype: of the data; a `ScalarType` for types that no array library has.
      scale: the scales.
      scale2: a second level of scales (NVFP4's global scale).
      symmetric: whether there are no zero points.

    Example:
      >>> str(kFp8DynamicTokenSym)
      'QuantKey(f8e4m3fn,scale(f32,dynamic,per_token),symmetric)'
    """

    dtype: Any
    scale: ScaleDesc
    scale2: ScaleDesc | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", canonical(self.dtype))

    def __str__(self) -> str:
        second = "" if self.scale2 is None else f"scale2({self.scale2}),"
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"QuantKey({abbreviation(self.dtype)},scale({self.scale}),{second}{kind})"


def create_fp8_quant_key(
    static: bool,
    group_shape: GroupShape,
    symmetric: bool = True,
    scale_dtype: Any = "float32",
) -> QuantKey:
    """The key of an fp8 format with one level of scales.

    Example:
      >>> create_fp8_quant_key(True, GroupShape.PER_TENSOR) == kFp8StaticTensorSym
      True
    """
    return QuantKey(_FP8, ScaleDesc(scale_dtype, static, group_shape), symmetric=symmetric)


# e4m3fn on every platform: upstream asks the platform for its fp8 type while it is imported, and
# asking would touch a device. ROCm's fnuz bytes are converted at load.
_FP8 = "float8_e4m3fn"
_F32_TENSOR = ScaleDesc("float32", True, GroupShape.PER_TENSOR)
_GROUP_16, _GROUP_32 = GroupShape(1, 16), GroupShape(1, 32)
_ROW = GroupShape(1, -1)


def _int4(dtype: Any, group: GroupShape, symmetric: bool = True) -> QuantKey:
    return QuantKey(dtype, ScaleDesc("float16", True, group), symmetric=symmetric)


def _w4a8(group: GroupShape, dtype: str = "bfloat16") -> QuantKey:
    return QuantKey("int8", ScaleDesc(dtype, True, group))


kFp8StaticTensorSym = create_fp8_quant_key(True, GroupShape.PER_TENSOR)
kFp8DynamicTensorSym = create_fp8_quant_key(False, GroupShape.PER_TENSOR)
kFp8StaticTokenSym = create_fp8_quant_key(True, GroupShape.PER_TOKEN)
kFp8DynamicTokenSym = create_fp8_quant_key(False, GroupShape.PER_TOKEN)
kFp8StaticChannelSym = create_fp8_quant_key(True, GroupShape.PER_CHANNEL)
kFp8Dynamic128Sym = create_fp8_quant_key(False, GroupShape(1, 128))
kFp8Dynamic64Sym = create_fp8_quant_key(False, GroupShape(1, 64))
kFp8Static128BlockSym = create_fp8_quant_key(True, GroupShape(128, 128))

kNvfp4Dynamic = QuantKey("uint8", ScaleDesc(_FP8, False, _GROUP_16), _F32_TENSOR)
kNvfp4Static = QuantKey("uint8", ScaleDesc(_FP8, True, _GROUP_16), _F32_TENSOR)
kMxfp4Dynamic = QuantKey("uint8", ScaleDesc("uint8", False, _GROUP_32))
kMxfp4Static = QuantKey("uint8", ScaleDesc("uint8", True, _GROUP_32))
kMxfp8Dynamic = QuantKey(_FP8, ScaleDesc("uint8", False, _GROUP_32))
kMxfp8Static = QuantKey(_FP8, ScaleDesc("uint8", True, _GROUP_32))

kInt8StaticChannelSym = QuantKey("int8", ScaleDesc("float32", True, GroupShape.PER_CHANNEL))
kInt8DynamicTokenSym = QuantKey("int8", ScaleDesc("float32", False, GroupShape.PER_TOKEN))
kInt8Static = _int4(scalar_types.uint8b128, _ROW)
kInt4Static = _int4(scalar_types.uint4b8, _ROW)
kInt4Static32 = _int4(scalar_types.uint4b8, _GROUP_32)
kInt4StaticAsym = _int4(scalar_types.uint4, _ROW, symmetric=False)
kInt4Static32Asym = _int4(scalar_types.uint4, _GROUP_32, symmetric=False)
kInt4W4A8StaticGroup128Sym = _w4a8(GroupShape(1, 128))
kInt4W4A8StaticGroup64Sym = _w4a8(GroupShape(1, 64))
kInt4W4A8StaticGroup32Sym = _w4a8(_GROUP_32)
kInt4W4A8StaticGroupSym = _w4a8(_ROW)
kInt4W4A8StaticChannelSym = _w4a8(GroupShape.PER_CHANNEL, "float32")

__all__ += sorted(name for name in globals() if name.startswith(("kFp8", "kInt", "kMx", "kNv")))


@dataclass
class MPLinearLayerConfig:
    """A layer whose weights are 4 or 8 bits and whose activations are 16.

    Attributes:
      full_weight_shape: (K, N) of the whole layer.
      partition_weight_shape: (K, N) of this rank's part.
      weight_type: e.g. `scalar_types.uint4b8`.
      act_type: dtype of the activations; float8_e4m3fn or int8 mean "quantize them".
      group_size: elements of K per scale; -1 is the whole of K.
      zero_points: whether there are any.
      has_g_idx: act-order (GPTQ's desc_act).
      out_type: dtype of the result, None for that of the activations.

    Example:
      >>> MPLinearLayerConfig((4096, 4096), (4096, 4096), scalar_types.uint4b8, "bfloat16", 128,
      ...                     zero_points=False, has_g_idx=False).group_size
      128
    """

    full_weight_shape: tuple[int, int]
    partition_weight_shape: tuple[int, int]
    weight_type: ScalarType
    act_type: Any
    group_size: int
    zero_points: bool
    has_g_idx: bool
    out_type: Any = None


@dataclass
class MMLinearLayerConfig:
    """Base of the configs of layers that are not mixed precision."""


@dataclass
class ScaledMMLinearLayerConfig(MMLinearLayerConfig):
    """Base of the 8-bit configs."""


@dataclass
class Int8ScaledMMLinearLayerConfig(ScaledMMLinearLayerConfig):
    """int8 weights and activations.

    Attributes:
      is_static_input_scheme: activation scales known beforehand.
      is_channelwise: a weight scale per output channel, else one per logical shard.
      input_symmetric: activations have no zero point.
    """

    is_static_input_scheme: bool
    is_channelwise: bool
    input_symmetric: bool


@dataclass
class FP8ScaledMMLinearLayerConfig(ScaledMMLinearLayerConfig):
    """float8 weights, and float8 activations or 16-bit ones.

    The first three fields are the seed version's, in its order; the later two came with 0.26 (which
    puts them before out_dtype: name them).

    Attributes:
      weight_quant_key, activation_quant_key: the formats.
      out_dtype: of the result; None for that of the activations.
      weight_shape: (N, K), where known.
      input_dtype: of the activations before quantization, where known.
    """

    weight_quant_key: QuantKey
    activation_quant_key: QuantKey
    out_dtype: Any
    weight_shape: tuple[int, int] | None = None
    input_dtype: Any = None


@dataclass
class Mxfp8LinearLayerConfig(MMLinearLayerConfig):
    """MXFP8: e4m3 in groups of 32 with power-of-two scales. Nothing varies."""


@dataclass
class MxFp4LinearLayerConfig(MMLinearLayerConfig):
    """MXFP4: e2m1 in groups of 32 with power-of-two scales. Nothing varies."""


@dataclass
class NvFp4LinearLayerConfig(MMLinearLayerConfig):
    """NVFP4: e2m1 in groups of 16 with e4m3 scales and one global scale. Nothing varies."""

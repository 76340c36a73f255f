# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Named ways to quantize a linear layer: what becomes of its weight and of its activations.

One table for everybody: `torch_bridge.quantize_` reads it for torch modules, and JAX code does
`RECIPES["w4a16-g128"].quantize(w)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from jaxkernels.problem import Support
from jaxkernels.quantized import QuantizedTensor
from jaxkernels.quantizer import quantize
from jaxkernels.scalar_types import ScalarType, scalar_types
from selection.configs import (
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    kFp8Dynamic128Sym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
)


@dataclass(frozen=True)
class Recipe:
    """How the weight and the activations of a linear layer are quantized.

    Attributes:
      name: what `quantize_` calls it.
      family: of its kernel classes: "int8", "fp8", "fp8_block" or "mp".
      weight_type: of the codes at rest.
      group_size: elements of K per scale; -1 is the whole of K.
      zero_points: asymmetric weights.
      granularity: as `jaxkernels.quantize` takes it; None follows from group_size.
      activation: as `jaxkernels.w8a8_linear` takes it, or None: activations stay as they are.
      static: the activation scale is one number, found by calibration.
    """

    name: str
    family: str
    weight_type: ScalarType
    group_size: int = -1
    zero_points: bool = False
    granularity: str | None = None
    activation: str | None = None
    static: bool = False

    def takes(self, n: int, k: int) -> Support:
        """Whether a weight [n, k] can be stored this way, and if not, why."""
        group = k if self.group_size == -1 else self.group_size
        packed = self.weight_type.size_bits == 4
        return Support.all(
            (n > 0 and k > 0, f"an empty weight {n} x {k}"),
            (not packed or k % 2 == 0, f"in_features {k} is odd, and 4-bit weights come in pairs"),
            (
                self.granularity == "block" or k % group == 0,
                f"in_features {k} is not a multiple of the group size {group}",
            ),
        )

    def quantize(self, w: jax.Array, scale_dtype: Any = None) -> QuantizedTensor:
        """The weight `[N, K]` by rounding to nearest.

        Raises:
          ValueError: it cannot be stored this way; the message says why.

        Example:
          >>> RECIPES["w4a16-g128"].quantize(jax.numpy.ones((64, 256)))
          QuantizedTensor(uint4b8[64, 256], group 128, scale float32[64, 2], 8704 bytes)
        """
        support = self.takes(*w.shape)
        if not support.ok:
            raise ValueError(f"{self.name}: {'; '.join(support.reasons)}")
        return quantize(
            w,
            self.weight_type,
            self.group_size,
            zero_points=self.zero_points,
            granularity=self.granularity,
            scale_dtype=scale_dtype,
        )

    def config(self, n: int, k: int, act_dtype: Any) -> Any:
        """The layer config that the family's chooser is asked with."""
        if self.family == "mp":
            return MPLinearLayerConfig(
                full_weight_shape=(k, n),
                partition_weight_shape=(k, n),
                weight_type=self.weight_type,
                act_type=act_dtype,
                group_size=self.group_size,
                zero_points=self.zero_points,
                has_g_idx=False,
            )
        if self.family == "int8":
            return Int8ScaledMMLinearLayerConfig(
                is_static_input_scheme=self.static,
                is_channelwise=True,
                input_symmetric=self.activation == "int8",
            )
        block = self.family == "fp8_block"
        return FP8ScaledMMLinearLayerConfig(
            weight_quant_key=kFp8Static128BlockSym if block else kFp8StaticChannelSym,
            activation_quant_key=kFp8Dynamic128Sym if block else kFp8DynamicTokenSym,
            out_dtype=act_dtype,
            weight_shape=(n, k),
            input_dtype=act_dtype,
        )


_E4M3 = scalar_types.float8_e4m3fn

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("w8a8-int8", "int8", scalar_types.int8, activation="int8"),
        Recipe("w8a8-int8-asym", "int8", scalar_types.int8, activation="int8-asym", static=True),
        Recipe("w8a8-fp8", "fp8", _E4M3, activation="fp8"),
        Recipe("w4a16-g128", "mp", scalar_types.uint4b8, 128),
        Recipe("w4a16-g64-zp", "mp", scalar_types.uint4, 64, zero_points=True),
        Recipe("w8a16", "mp", scalar_types.uint8b128),
        Recipe("fp8-block", "fp8_block", _E4M3, 128, granularity="block", activation="fp8-group"),
    )
}


def static_int8_scale(low: float, high: float) -> tuple[float, int]:
    """(scale, azp) of static int8 activations in [low, high]: `q = sat8(rne(x / scale) + azp)`.

    The range is widened to hold 0, so that zeros (padding, ReLU) stay exact.

    Example:
      >>> static_int8_scale(0.0, 510.0)
      (2.0, -128)
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not math.isfinite(high - low):
        raise ValueError(f"low, high: expected a finite range, got {low} and {high}")
    scale = (high - low) / 255 or 1.0
    return scale, round(-128 - low / scale)


def get_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of a name; a `Recipe` stays as it is.

    Raises:
      ValueError: no recipe has this name; the message lists those there are.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}; got {recipe!r}")
    return RECIPES[recipe]

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""A prepared weight's scales as both Hopper kernels read them: how they come, and where they go.

    value = code * scale * global,   out = sum over K, then float32 factors, bias, one rounding

A scale goes on the converted weights (each product rounded once to x's dtype, the scale before it)
or on the float32 sum of its part of K; one scale for the whole K goes on the final sum, and so do
NVFP4's global scale and the power of two that scaled float weights leave out (`mosaic.convert`).
What follows for the micro-scaled types:

    NVFP4   e2m1 * e4m3 has 6 significant bits: exact in x's dtype; times global in float32
    MXFP4   e2m1 * 2^e is exact; so is MXFP8's e4m3 * 2^e
    blocks  on the sum they are exact; on the weights scale and product are rounded, as in Marlin
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mixed_mm.prepare import scale_words
from jaxkernels.mosaic import convert
from jaxkernels.mosaic.arrivals import release
from jaxkernels.mosaic.convert import TILE
from jaxkernels.problem import MixedMMProblem
from jaxkernels.quantized import QuantizedTensor


class Scales:
    """The scales of one call.

    Args:
      problem: what is computed.
      w: the prepared weight.
      dtype: of x.
      on_weight: whether scales of groups and blocks multiply the weights.

    Attributes:
      grouped: whether there is more than one along K.
      span: elements of K that one entry of `array` covers.
      array: what the kernel is given: [tiles of N, entries along K, values].
    """

    def __init__(self, problem: MixedMMProblem, w: QuantizedTensor, dtype, on_weight: bool):
        self.grouped = problem.group < problem.k
        self.on_weight = self.grouped and on_weight
        self.kind = convert.scale_kind(w.scale.dtype)
        self.span = problem.group if self.kind == "float" else TILE
        self.array = scale_words(w.scale)
        self._block = problem.granularity == "block"
        self._dtype = dtype
        fmt = convert.FORMATS[problem.weight_type]
        self._left_out = convert.exponent_left_out(fmt, dtype, self.on_weight)
        self._global = problem.global_scale

    def entries(self, tile_k: int) -> int:
        """Entries that tile_k columns need."""
        return max(1, tile_k // self.span)

    def scratch(self, stages: int, wg_n: int, tile_k: int) -> plgpu.SMEM:
        """Shared memory for the entries of each stage, as `copy_gmem_to_smem` fills it."""
        shape = (stages, wg_n, self.entries(tile_k), self.array.shape[-1])
        return plgpu.SMEM(shape, self.array.dtype)

    def for_weights(self, slot, column) -> dict:
        """`convert.fragment`'s arguments for a tile that starts at `column` of a slot.

        Args:
          slot: reference [entries, values] in shared memory.
          column: of the stage; may be traced.
        """
        if not self.on_weight:
            return {}
        rows = [self._load(slot, column + k0) for k0 in range(0, TILE, min(self.span, TILE))]
        if self.kind == "float":
            rows = [r.astype(self._dtype) for r in rows]
        return {"scales": tuple(rows), "scales_are": self.kind}

    def for_sum(self, slot, column) -> jax.Array:
        """float32 [64], one a row: what multiplies the sum of the columns from `column` on."""
        return self._load(slot, column).astype(jnp.float32)

    def _load(self, entries, column):
        known = isinstance(column, int)
        return self._rows(entries.at[column // self.span if known else lax.div(column, self.span)])

    def _rows(self, entry):
        return convert.same_in_rows(entry[0]) if self._block else convert.load_rows(entry)

    def finish(self, gmem, row_tile) -> list[jax.Array]:
        """float32 factors of the final sum, one a row ([64]) or one for all ([]), in order."""
        factors = []
        if not self.grouped:
            factors.append(self._rows(gmem["scale"].at[row_tile, 0]).astype(jnp.float32))
        if self._global:
            factors.append(gmem["global"][0, 0] * 2.0**self._left_out)
        elif self._left_out:
            factors.append(jnp.float32(2.0**self._left_out))
        return factors


def add_scaled_sum(total, acc, scale, done, *, in_flight: int):
    """total + acc * scale, once all but the `in_flight` youngest products are done.

    Args:
      total: float32 [rows of w, rows of x].
      acc: accumulator of the same shape, of products in float32 or int32.
      scale: one a row of w.
      done: barrier of the slot that these products were the last to read, or None.
    """
    part = plgpu.wgmma_accumulator_load(acc, wait_n=in_flight).astype(jnp.float32)
    if done is not None:
        release(done)
    return total + part * lax.broadcast_in_dim(scale.astype(jnp.float32), total.shape, (0,))

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Single elements from memory by their index, which Pallas has no operation for."""

from __future__ import annotations

import jax
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, memref, vector
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting


def gather_row(ref, row: jax.Array, columns: jax.Array, layout) -> jax.Array:
    """`ref[row, columns]` as a warpgroup's array: one small load an element.

    Args:
      ref: 2-D reference to global memory, or to shared memory without tiling or swizzle.
      row: int32 scalar.
      columns: int32 [n] in `layout`, a strided layout; indices must lie in the row.
    """
    if is_interpreting():
        return ref[row, :][columns]

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT(()), layout),
        return_type=plgpu.ShapeDtypeStruct(columns.shape, ref.dtype, layout),
    )
    def load(_, ref, row, columns):
        element = ir.MemRefType(ref.type).element_type
        first = arith.index_cast(ir.IndexType.get(), row.registers.item())
        registers = np.empty_like(columns.registers)
        for at, indices in np.ndenumerate(columns.registers):
            (width,) = ir.VectorType(indices.type).shape
            values = []
            for i in range(width):
                place = vector.extract(indices, [], ir.DenseI64ArrayAttr.get([i]))
                column = arith.index_cast(ir.IndexType.get(), place)
                values.append(memref.load(ref, [first, column]))
            kind = ir.VectorType.get((width,), element)
            registers[at] = vector.from_elements(kind, values)
        return FragmentedArray(_registers=registers, _layout=columns.layout, _is_signed=None)

    return load(ref, row, columns)

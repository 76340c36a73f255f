# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The largest and the smallest number of a row that a block's warpgroups hold in registers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, gpu, llvm, memref, vector
from jax.experimental.mosaic.gpu import utils
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting


@dataclasses.dataclass(frozen=True)
class SharedRow:
    """A block's row, whose pieces its warpgroups hold: what they find out together, once a kernel.

    A warp's maximum is one integer instruction on bits, and the warps meet at one barrier.
    """

    scratch: dict
    warpgroup: jax.Array
    warpgroups: int
    layout: object

    @staticmethod
    def scratch_types(warpgroups: int) -> dict:
        """What a kernel has to allocate for it."""
        scratch = {"extremes": plgpu.SMEM((2, 4 * warpgroups), jnp.float32)}
        if is_interpreting():
            scratch["all_there"] = plgpu.Barrier(num_arrivals=warpgroups)
        return scratch

    def absmax(self, values: list[jax.Array]) -> jax.Array:
        """max |x|, float32 []; NaN anywhere gives NaN."""
        largest = functools.reduce(jnp.maximum, map(jnp.abs, values))
        return self._extremes([largest], ["max"], signed=False)[0]

    def range(self, values: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(min, max), float32 []; NaN anywhere gives NaN in one of them."""
        ends = [functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values)]
        low, high = self._extremes(ends, ["min", "max"], signed=True)
        return low, high

    def _extremes(self, arrays: list[jax.Array], kinds: list[str], signed: bool):
        shared, count = self.scratch["extremes"], 4 * self.warpgroups
        if is_interpreting():
            reduce = {"min": (jnp.min, jnp.minimum), "max": (jnp.max, jnp.maximum)}
            for i, (array, kind) in enumerate(zip(arrays, kinds, strict=True)):
                shared[i, self.warpgroup] = reduce[kind][0](array).astype(jnp.float32)
            plgpu.barrier_arrive(self.scratch["all_there"])
            plgpu.barrier_wait(self.scratch["all_there"])
            return [
                functools.reduce(reduce[kind][1], [shared[i, w] for w in range(self.warpgroups)])
                for i, kind in enumerate(kinds)
            ]

        number = plgpu.ShapeDtypeStruct((), jnp.float32, plgpu.Layout.WG_SPLAT(()))

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), *(self.layout for _ in arrays)),
            return_type=tuple(number for _ in arrays),
        )
        def over_block(_, shared, *arrays):
            f32, i32 = ir.F32Type.get(), ir.IntegerType.get_signless(32)

            def place(i):
                return arith.constant(ir.IndexType.get(), i)

            lesser = {"min": arith.minsi, "max": arith.maxsi}
            warp = arith.index_cast(ir.IndexType.get(), utils.warp_idx(sync=False))
            for i, (array, kind) in enumerate(zip(arrays, kinds, strict=True)):
                found = [_in_order(bits, signed) for bits in _bits_by_element(array)]
                bits = functools.reduce(lesser[kind], found)
                text = f"redux.sync.{kind}.s32 $0, $1, 0xffffffff;"
                bits = llvm.inline_asm(i32, [bits], text, "=r,r", has_side_effects=True)
                memref.store(arith.bitcast(f32, bits), shared, [place(i), warp])
            gpu.barrier()
            results = []
            for i, kind in enumerate(kinds):
                every = [memref.load(shared, [place(i), place(w)]) for w in range(count)]
                bits = functools.reduce(lesser[kind], [arith.bitcast(i32, v) for v in every])
                value = arith.bitcast(f32, _in_order(bits, signed))
                results.append(FragmentedArray.splat(value, ()))
            return tuple(results)

        return over_block(shared, *arrays)


def _in_order(bits, signed: bool):
    """float32's bits as int32 in the numbers' order, NaN beyond Inf, or back again.

    Without signs the bits are that already.
    """
    if not signed:
        return bits
    i32 = bits.type
    sign = arith.shrsi(bits, arith.constant(i32, 31))
    return arith.xori(bits, arith.andi(sign, arith.constant(i32, 0x7FFFFFFF)))


def _bits_by_element(array: FragmentedArray) -> list:
    """The elements that a thread holds, as the bits of float32."""
    f32, i32 = ir.F32Type.get(), ir.IntegerType.get_signless(32)
    found = []
    for register in array.registers.flat:
        if not isinstance(register.type, ir.VectorType):
            register = vector.broadcast(ir.VectorType.get((1,), register.type), register)
        for i in range(ir.VectorType(register.type).shape[0]):
            element = vector.extract(register, [], ir.DenseI64ArrayAttr.get([i]))
            wide = element if element.type == f32 else arith.extf(f32, element)
            found.append(arith.bitcast(i32, wide))
    return found

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""One row in registers: the building block of kernels that reduce a row and then rewrite it.

A warpgroup loads a row of K elements from global memory once, 16 bytes a thread at a time where
rows allow, keeps it in registers in its own type, reduces it, and writes the converted row; or its
part of a row, where several share one (`Pieces.split`, `sharedrow`). There is no shared memory but
the few bytes of the reduction, and no barrier but its own.

A row is cut into *pieces* of `128 * width` elements, `width` a thread. What is left of a row is
covered by one more piece that ends where the row ends and overlaps the one before: maxima and
minima do not mind seeing an element twice, and the same thread block writes it twice with the same
value. So any K of at least 128 is taken, without masks. All pieces are loaded before any is used,
and converted and stored one after the other, which keeps a thread's registers few.

Groups along a row use a two-dimensional layout: a group of 128 lies in 16 lanes of 8 elements, so
its reduction is four shuffles and never leaves the warp.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, math, vector
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray, TiledLayout, Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.interpret import is_interpreting
from jaxkernels.mosaic.launch import is_quantizing_x, wait_for_previous_kernel

THREADS = 128  # a warpgroup
VECTOR_BYTES = 16  # the widest load


@dataclasses.dataclass(frozen=True)
class Pieces:
    """How a warpgroup covers a row: pieces of `size` elements that begin at `starts`."""

    starts: tuple[int, ...]
    size: int

    @property
    def layout(self):
        """Contiguous elements a thread, as many as one load takes."""
        return plgpu.Layout.WG_STRIDED((self.size,), vec_size=self.size // THREADS)

    def load(self, ref, row, first=0) -> list[jax.Array]:
        """The pieces of `ref[row]` in registers, in the array's own dtype, `first` elements on."""
        return [
            plgpu.load(
                ref.at[row, pl.ds(first + start, self.size)], layout=self.layout, optimized=False
            )
            for start in self.starts
        ]

    def split(self, most: int) -> tuple[int, Pieces]:
        """How many warpgroups, at most `most`, share a row evenly, and what each of them takes.

        Example:
          >>> row_pieces(14336, 2).split(8)
          (7, Pieces(starts=(0, 1024), size=1024))
        """
        count = len(self.starts)
        if self.starts[-1] != (count - 1) * self.size:  # the last piece overlaps another
            return 1, self
        share = next(n for n in range(min(count, most), 0, -1) if count % n == 0)
        return share, Pieces(self.starts[: count // share], self.size)

    def store(self, ref, row, values: Iterable[jax.Array], first=0) -> None:
        """Writes the pieces of `ref[row]`, `first` elements on, each as soon as it is computed.

        `values` are computed one by one as they are asked for, each in a basic block of its own.
        ptxas schedules within a block, and in one block it starts all pieces at once: a row of 8192
        to fp8 takes 137 registers instead of 56, a static int8 run of 4096 takes 72 instead of 37
        (2026-11-22, ptxas 13.0), and so half as many rows are in flight.
        """
        values, block = iter(values), _thread_block()
        for i, start in enumerate(self.starts):

            def put(start=start):
                ref[row, pl.ds(first + start, self.size)] = next(values)

            if i == 0:
                put()
            else:  # always: a grid has at most 2^31 - 1 blocks, and no array so many rows
                pl.when(block != 0x7FFFFFFF - i)(put)


def _thread_block() -> jax.Array:
    """This thread block's number in the grid, in a way that no compiler knows the range of."""
    if is_interpreting():
        return jnp.int32(0)

    @plgpu.inline_mgpu(return_type=plgpu.ShapeDtypeStruct((), jnp.int32, plgpu.Layout.WG_SPLAT(())))
    def number(_):
        i32 = ir.IntegerType.get_signless(32)
        value = llvm.inline_asm(i32, [], "mov.u32 $0, %ctaid.x;", "=r")
        return FragmentedArray.splat(value, (), is_signed=True)

    return number()


def row_kernel(body, outputs, grid: int, name: str, warpgroups: int = 1, scratch=None):
    """A kernel of `grid` blocks, axis "run", of some warpgroups each, axis "warpgroup".

    It may start while the kernel ahead of it still runs, and waits for that one before anything.
    `outputs` are pairs of shape and dtype, `scratch` a dictionary, given to `body` by name.
    """

    def waiting_body(*refs, **scratch_refs):
        # A caller may take codes for a weight, which products read early: see launch.py.
        wait_for_previous_kernel(next_may_start=is_quantizing_x())
        body(*refs, **scratch_refs)

    return plgpu.kernel(
        waiting_body,
        out_type=tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs),
        scratch_types=scratch or {},
        grid=(grid,),
        grid_names=("run",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        kernel_name=name,
        # No memory is both read and written here, and reductions bring their own barriers.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
    )


def row_pieces(length: int, element_bytes: int) -> Pieces:
    """How a warpgroup covers rows of `length` elements that lie back to back.

    Example:
      >>> row_pieces(2048, 2)
      Pieces(starts=(0, 1024), size=1024)
      >>> row_pieces(1280, 2)
      Pieces(starts=(0, 256), size=1024)
      >>> row_pieces(136, 2)
      Pieces(starts=(0, 8), size=128)
    """
    if length < THREADS:
        raise ValueError(f"length: expected at least {THREADS} elements, got {length}")
    width = VECTOR_BYTES // element_bytes
    while length % width or length < THREADS * width:
        width //= 2
    size = THREADS * width
    starts = tuple(range(0, length - size + 1, size))
    return Pieces(starts if length % size == 0 else (*starts, length - size), size)


def row_absmax(values: list[jax.Array]) -> jax.Array:
    """max |x| over a row's pieces, float32 []; NaN anywhere gives NaN."""
    return jnp.max(functools.reduce(jnp.maximum, map(jnp.abs, values))).astype(jnp.float32)


def group_tile(group: int, element_bytes: int) -> int:
    """How many groups a warpgroup loads at a time: 0 where a group is not 1 to 32 lanes wide.

    Example:
      >>> group_tile(128, 2), group_tile(64, 2), group_tile(48, 2)
      (8, 16, 0)
    """
    width = VECTOR_BYTES // element_bytes
    lanes = group // width
    return 4 * 32 // lanes if group % width == 0 and lanes in (1, 2, 4, 8, 16, 32) else 0


def group_layout(group: int, element_bytes: int):
    """The layout of [groups, group], groups a multiple of `group_tile`: a group inside a warp."""
    width = VECTOR_BYTES // element_bytes
    per_warp = group_tile(group, element_bytes) // 4
    # A tile of 4 * per_warp groups becomes (4 warps, 1, per_warp, lanes, 1, width).
    tiling = Tiling(((4 * per_warp, group), (per_warp, group), (1, width)))
    layout = TiledLayout(
        tiling, warp_dims=(-6,), lane_dims=(-4, -3), vector_dim=-1, _check_canonical=False
    ).canonicalize()
    return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


# -- arithmetic to the bit ----------------------------------------------------------------------
#
# Mosaic compiles a float32 division to `div.full.f32`, which may be 2 units in the last place off
# (jaxlib 0.11.2 passes -nvptx-prec-divf32=1), so where the last bit matters the division is
# spelled out. XLA on a CPU, which interprets kernels, replaces divisions by products with
# reciprocals; there the operand is made to look like data.


def as_data(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, or interpreted, something equal that XLA's algebra cannot see through."""
    if not is_interpreting():
        return x
    never = (jax.lax.bitcast_convert_type(like, jnp.int32) | 1) == 0
    return jnp.where(never, jnp.zeros_like(like), x)


def divide(x: jax.Array | float, by: jax.Array | float, layout=None) -> jax.Array:
    """x / by of float32 as IEEE 754 rounds it; scalars, or arrays of one `layout`."""
    shape = jnp.broadcast_shapes(jnp.shape(x), jnp.shape(by))
    data = by if isinstance(x, float) else x
    x, by = (jnp.asarray(v, jnp.float32) for v in (x, by))
    if is_interpreting():
        return x / as_data(by, data)

    def quotient(x, by):
        text = "div.rn.f32 $0, $1, $2;"
        return llvm.inline_asm(ir.F32Type.get(), [x, by], text, "=f,f,f")

    return _each(quotient, shape, layout, x, by, scalars=True)


def correction_steps(x_bytes: int) -> int:
    """Corrections that a quotient of so wide an x needs before it is rounded to 8 bits."""
    return 1 if x_bytes == 2 else 2


def divide_by_few(
    x: jax.Array, by: jax.Array, inverse: jax.Array, layout, steps: int = 2
) -> jax.Array:
    """x / by of float32, correctly rounded, for few divisors and many x.

    `by` must be at least 2^-100 and x / by must not overflow; `inverse` is `divide(1, by)`; both
    are scalars or of x's shape. The product with the reciprocal is at most 1.5 units in the last
    place off, and two steps of Markstein's correction with fused multiply-adds leave the quotient
    that division gives, signs of zeros included: 5 operations instead of the hardware sequence's 10
    and a branch (P. Markstein, IA-64 and Elementary Functions, 2000).

    One step is enough for x of at most 11 bits (16-bit floats) where the quotient is then rounded
    to 8 bits or fewer: it can only be wrong within 2^-46 of the middle between two float32 numbers,
    and such an x / by is never that close to a middle beside a tie of the 8-bit type.
    """
    if is_interpreting():
        return x / as_data(by, x)

    def quotient(x, by, inverse):
        minus_x, minus_inverse = arith.negf(x), arith.negf(inverse)
        q = arith.mulf(x, inverse)
        for _ in range(steps):
            q = math.fma(math.fma(q, by, minus_x), minus_inverse, q)
        return q

    finite = jnp.minimum(by, jnp.finfo(jnp.float32).max)  # x / Inf is 0, not Inf * 0
    return _each(quotient, x.shape, layout, x, finite, inverse)


def scalar_power_of_two_at_least(x: jax.Array) -> jax.Array:
    """2^ceil(log2(x)) of one positive normal float32; infinity and NaN stay.

    `quantize.xla.power_of_two_at_least` for kernels: Mosaic has no bitcast of scalars (0.11.2).
    """
    below = (1 << 23) - 1
    if is_interpreting():
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        bits = jnp.where(x == x, (bits + below) & ~below, bits)
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def power(x):
        i32 = ir.IntegerType.get_signless(32)
        bits = arith.bitcast(i32, x)
        carried = arith.addi(bits, arith.constant(i32, below))
        whole = arith.andi(carried, arith.constant(i32, ~below))
        number = arith.cmpf(arith.CmpFPredicate.ORD, x, x)
        return arith.bitcast(ir.F32Type.get(), arith.select(number, whole, bits))

    return _each(power, (), None, x, scalars=True)


def _each(emit, shape, layout, *operands, scalars: bool = False) -> jax.Array:
    """`emit` on every register of float32 operands of `shape`, or scalars; on a GPU only.

    `emit` takes vectors of one length, or with `scalars` single numbers.
    """
    splat = plgpu.Layout.WG_SPLAT(())
    layouts = tuple(layout if jnp.ndim(v) else splat for v in operands)

    @plgpu.inline_mgpu(
        arg_types=layouts,
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, layout if shape else splat),
    )
    def body(_, *arrays):
        if not shape:
            result = emit(*(a.registers.item() for a in arrays))
            return FragmentedArray.splat(result, ())
        like = next(a for a, v in zip(arrays, operands, strict=True) if jnp.ndim(v))
        registers = np.empty_like(like.registers)
        for at, register in np.ndenumerate(like.registers):
            vector_type = ir.VectorType(register.type)
            values = [
                a.registers[at]
                if jnp.ndim(v)
                else vector.broadcast(vector_type, a.registers.item())
                for a, v in zip(arrays, operands, strict=True)
            ]
            registers[at] = _by_element(emit, vector_type, values) if scalars else emit(*values)
        return FragmentedArray(_registers=registers, _layout=like.layout, _is_signed=None)

    return body(*operands)


def _by_element(emit, vector_type, values):
    result = vector.broadcast(vector_type, arith.constant(ir.F32Type.get(), 0.0))
    for i in range(vector_type.shape[0]):
        at = ir.DenseI64ArrayAttr.get([i])
        one = emit(*(vector.extract(v, [], at) for v in values))
        result = vector.insert(one, result, [], at)
    return result


def round_to_int8(x: jax.Array, shift: jax.Array | None = None, saturate: bool = True) -> jax.Array:
    """sat8(rne(x) + shift) of float32 x and an int32 scalar of at most 2^21; a NaN counts as 0.

    Adding 1.5 * 2^23 rounds to a whole number, to nearest even, and leaves it in the low bits: a
    few ordinary operations, where the conversion instructions run at an eighth of their rate.
    `saturate=False` promises that the result lies in [-128, 127].

    A thread that stores a lone byte needs an integer operation before it: ptxas 13.0 turns a byte
    store of a float32 sum into a saturating conversion of that sum, -1 for each code (2026-11-22).
    """
    x = jnp.where(x == x, x, 0.0)
    if saturate:
        offset = jnp.float32(0.0) if shift is None else shift.astype(jnp.float32)
        x = jnp.minimum(jnp.maximum(x, -128.0 - offset), 127.0 - offset)
    if shift is None and x.size == THREADS:
        bits = jax.lax.bitcast_convert_type(x + 12582914.0, jnp.int32) - 2
    else:
        bits = jax.lax.bitcast_convert_type(x + 12582912.0, jnp.int32)
    return (bits if shift is None else bits + shift).astype(jnp.int8)


def to_fp8(x: jax.Array) -> jax.Array:
    """e4m3(clamp(x)) of float32, rounded to nearest even; NaN stays NaN.

    The GPU's conversion saturates by itself; JAX's does not.
    """
    if is_interpreting():
        x = jnp.clip(x, -448.0, 448.0)
    return x.astype(jnp.float8_e4m3fn)

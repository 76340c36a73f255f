# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Activation quantization as Mosaic GPU kernels: one pass over memory, one block a row.

Each kernel is the same three steps on the building block of `jaxkernels.mosaic.rowreduce`:

    load a run of x into registers  ->  reduce it to its scale (or read a given one)  ->  rewrite it

A *run* is what one block takes: a row where a scale belongs to a row ("token"), shared by several
warpgroups where rows are few; anything convenient where it does not ("static", "group"), one
warpgroup's, chosen small enough to fill the GPU. There is no pipeline: thousands of independent
warpgroups, 8 or more on an SM, keep memory busy.

    int8 token       a = max|x|;  s = a / 127;  q = rne8(x * (127 / a))
    int8 token azp   s = (max - min) / 255;  z = rne(-128 - min / s);  q = sat8(rne(x / s) + z)
    fp8 token        s = max(min(max|x|, ub) / 448, 1 / (448 * 512));  q = fp8(x / s)
    fp8 group        s = max(max|x|, 1e-10) / 448, or the power of two above;  q = fp8(x / s)
    static           q = rne8(x / s), sat8(rne(x * (1 / s)) + z) or fp8(x * (1 / s))
    fp8 tensor       one kernel for max|x| of each of a few hundred warpgroups, one that joins them

The bits are those of `jaxkernels.quantize.xla`; scalars of a row are computed by its functions.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic import rowreduce as rr
from jaxkernels.mosaic.launch import wait_for_previous_kernel
from jaxkernels.problem import Device, Implementation, QuantizeOperands, QuantizeProblem, Support
from jaxkernels.quantize import xla

F32 = jnp.float32
# A thread holds K / 128 elements of a row; beyond this many bytes they would not fit in registers.
MAX_ROW_BYTES = 64 << 10
MAX_SHARED = 8  # warpgroups that share a row: a block has at most 1024 threads
# At most so many warpgroups share the work of a tensor-wide maximum; the next kernel joins theirs.
PARTIALS = 512


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is shared.

    Attributes:
      run: elements a warpgroup takes where the scheme leaves it free.
      warpgroups: at most so many share a row where a scale belongs to a row.
    """

    run: int = 4096
    warpgroups: int = 1


def _itemsize(problem: QuantizeProblem) -> int:
    return jnp.dtype(problem.x_dtype).itemsize


def _steps(problem: QuantizeProblem) -> int:
    """Corrections that a quotient of this x needs: see `rowreduce.divide_by_few`."""
    return 1 if _itemsize(problem) == 2 else 2


def supports(problem: QuantizeProblem, device: Device) -> Support:
    """Rows and groups of 128 elements or more that fit in a warpgroup's registers, smaller groups
    of 1, 2, 4, 8 or 16 lanes."""
    p, itemsize = problem, _itemsize(problem)
    clauses = [
        (device.is_hopper, f"it needs a Hopper GPU, got {device.name}"),
        (p.m > 0, "it needs at least one row, got m = 0"),
        (p.k >= rr.THREADS, f"k must be at least {rr.THREADS}, got {p.k}"),
    ]
    if p.scale == "group":
        clauses.append(
            (p.k % p.group_size == 0, f"k must be whole groups of {p.group_size}, got {p.k}")
        )
        tile = rr.group_tile(p.group_size, itemsize)
        if p.group_size < rr.THREADS or p.group_size * itemsize > MAX_ROW_BYTES:
            width, groups = 16 // itemsize, p.k // p.group_size
            clauses += [
                (tile > 0, f"group_size must be 1 to 32 times {width}, got {p.group_size}"),
                (
                    tile == 0 or _fills_a_tile(p, tile),
                    f"a row must have at least {tile} groups of {p.group_size}, got {groups}",
                ),
            ]
    elif not (p.scale in ("static", "tensor") and _divisors(p)):
        bytes_ = p.k * itemsize
        clauses.append(
            (bytes_ <= MAX_ROW_BYTES, f"a row must have at most 64 KiB, got {bytes_} bytes")
        )
    return Support.all(*clauses)


def _divisors(problem: QuantizeProblem) -> tuple[int, ...]:
    """Run lengths that cut the whole array evenly, longest first."""
    total = problem.m * problem.k
    return tuple(run for run in (8192, 4096, 2048, 1024) if total % run == 0)


def default_config(problem: QuantizeProblem, device: Device) -> Config:
    """The longest run of at most 4096 elements that still gives each SM four warpgroups, and as
    many warpgroups a row as leave no more than eight an SM."""
    total, warpgroups = problem.m * problem.k, 1
    if problem.scale == "token" and problem.symmetric:
        warpgroups = max(1, min(8 * device.num_sms // problem.m, MAX_SHARED))
    for run in (4096, 2048):
        if total >= run * 4 * device.num_sms:
            return Config(run, warpgroups)
    return Config(1024, warpgroups)


def configs(problem: QuantizeProblem, device: Device) -> tuple[Config, ...]:
    """The configs worth trying: runs, or where the run is a row, warpgroups that share it."""
    if problem.scale == "token":
        return tuple(Config(4096, n) for n in (1, 2, 4, MAX_SHARED))
    return tuple(Config(run) for run in (1024, 2048, 4096, 8192))


def run(problem: QuantizeProblem, operands: QuantizeOperands, config: Config | None = None):
    """(q, scale, azp or None) as `QuantizeOperands` says; kernels and reshapes only."""
    from jaxkernels.mosaic.device import trace_device

    config = config or default_config(problem, trace_device())
    if problem.scale == "group":
        return _group(problem, operands, config)
    if problem.scale == "token":
        return _token(problem, operands, config)
    if problem.scale == "tensor":
        return _tensor(problem, operands, config)
    return _static(problem, operands, config)


def _kernel(body, outputs, grid: int, name: str, warpgroups: int = 1, scratch=None):
    def waiting_body(*refs, **scratch_refs):
        wait_for_previous_kernel()
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


def _runs(problem: QuantizeProblem, config: Config) -> tuple[int, int]:
    """(runs, length): the whole array in runs of about `config.run`, or else its rows."""
    fits = [r for r in _divisors(problem) if r <= config.run]
    return (problem.m * problem.k // fits[0], fits[0]) if fits else (problem.m, problem.k)


# -- one scale a row ----------------------------------------------------------------------------


def _token(problem: QuantizeProblem, operands: QuantizeOperands, config: Config):
    m, k = problem.m, problem.k
    pieces, warpgroups = rr.row_pieces(k, _itemsize(problem)), 1
    if problem.symmetric:
        warpgroups, pieces = pieces.split(config.warpgroups)
    scheme = _int8_row if problem.out_dtype == "int8" else _fp8_row
    scheme = functools.partial(scheme, problem, pieces)
    outputs = [((m, k), problem.out_dtype), ((m, 1), F32)]
    if not problem.symmetric:
        outputs.append(((m, 1), jnp.int32))
    bounds = () if operands.scale_ub is None else (operands.scale_ub,)

    def body(x_gmem, *refs, **scratch):
        given, (q_gmem, *found_gmem) = refs[: len(bounds)], refs[len(bounds) :]
        row, warpgroup = jax.lax.axis_index("run"), jax.lax.axis_index("warpgroup")
        first = warpgroup * (k // warpgroups) if warpgroups > 1 else 0
        x = pieces.load(x_gmem, row, first)

        def absmax():
            return rr.block_absmax(x, scratch, warpgroup, warpgroups, pieces.layout)

        q, *found = scheme(x, absmax, *(ref[0, 0] for ref in given))

        @pl.when(warpgroup == 0)
        def _():
            for ref, value in zip(found_gmem, found, strict=True):
                ref[row, 0] = value

        pieces.store(q_gmem, row, q, first)

    scratch = rr.block_scratch(warpgroups) if problem.symmetric else {}
    kernel = _kernel(body, outputs, m, "quantize_token", warpgroups, scratch)
    q, scale, *azp = kernel(operands.x, *bounds)
    return q, scale, azp[0] if azp else None


def _int8_row(problem: QuantizeProblem, pieces, x, absmax):
    if problem.symmetric:
        absmax = absmax()
        inverse = jnp.where(absmax == 0, 0.0, rr.divide(127.0, absmax))
        q = (rr.round_to_int8(v.astype(F32) * inverse) for v in x)
        return q, rr.divide(absmax, 127.0)
    low, high = rr.row_range(x)
    scale = rr.divide(high - low, 255.0)
    constant = scale == 0
    azp = jnp.where(constant, 0, xla._saturate_int32(jnp.round(-128.0 - rr.divide(low, scale))))
    # A constant row's codes are its sign, which an inverse of 0 and that zero point give.
    shift = jnp.where(constant, jnp.sign(high).astype(jnp.int32), azp)
    inverse = jnp.where(constant, 0.0, rr.divide(1.0, scale))
    if _itemsize(problem) == 2:  # then |azp| < 2^21: a 16-bit float has at most 11 bits
        q = (rr.round_to_int8(v.astype(F32) * inverse, shift) for v in x)
    else:
        q = (xla._to_int8(jnp.round(v * inverse), shift) for v in x)
    return q, jnp.where(constant, jnp.abs(high), scale), azp


def _fp8_row(problem: QuantizeProblem, pieces, x, absmax, upper=None):
    absmax = absmax()
    if upper is not None:
        absmax = jnp.minimum(absmax, upper)
    scale = jnp.maximum(rr.divide(absmax, xla.FP8_MAX), xla.MIN_SCALE)
    inverse = rr.divide(1.0, scale)
    limit = None if upper is None else jnp.minimum(512.0 * scale, jnp.finfo(F32).max)

    def code(v):
        v = v.astype(F32)
        if limit is not None:  # saturates all the same, but cannot overflow in the division
            v = jnp.minimum(jnp.maximum(v, -limit), limit)
        return rr.to_fp8(rr.divide_by_few(v, scale, inverse, pieces.layout, _steps(problem)))

    return map(code, x), scale


# -- a given scale, and one for the whole tensor ------------------------------------------------


def _static(problem: QuantizeProblem, operands: QuantizeOperands, config: Config):
    runs, length = _runs(problem, config)
    pieces = rr.row_pieces(length, _itemsize(problem))
    given = [a for a in (operands.scale, operands.zero_point) if a is not None]

    def body(x_gmem, *refs):
        *given_gmem, q_gmem = refs
        row = jax.lax.axis_index("run")
        x = pieces.load(x_gmem, row)
        q = _static_codes(problem, pieces, x, *(ref[0, 0] for ref in given_gmem))
        pieces.store(q_gmem, row, q)

    kernel = _kernel(body, [((runs, length), problem.out_dtype)], runs, "quantize_static")
    (q,) = kernel(operands.x.reshape(runs, length), *given)
    return q.reshape(problem.m, problem.k), operands.scale, operands.zero_point


def _static_codes(problem: QuantizeProblem, pieces, x, scale, azp=None):
    if problem.out_dtype == "int8" and azp is None:
        # Divided, so |scale| has to lie in [2^-100, 2^126]; beyond, the nearer bound is meant.
        size = jnp.minimum(jnp.maximum(jnp.abs(scale), 2.0**-100), 2.0**126)
        scale = jnp.where(scale < 0, -size, size)
        low, high = -128.0 * scale, 127.0 * scale  # x that saturate, and none that overflow
        low, high = jnp.minimum(low, high), jnp.maximum(low, high)
    if azp is not None:  # zero points of int8 lie far inside
        azp = jnp.minimum(jnp.maximum(azp, -(1 << 21)), 1 << 21)
    inverse = rr.divide(1.0, scale)

    def code(v):
        v = v.astype(F32)
        if problem.out_dtype != "int8":
            return rr.to_fp8(v * inverse)
        if azp is not None:
            return rr.round_to_int8(v * inverse, azp)
        v = jnp.minimum(jnp.maximum(v, low), high)
        v = rr.divide_by_few(v, scale, inverse, pieces.layout, _steps(problem))
        return rr.round_to_int8(v, saturate=False)

    return map(code, x)


def _tensor(problem: QuantizeProblem, operands: QuantizeOperands, config: Config):
    runs, length = _runs(problem, config)
    pieces = rr.row_pieces(length, _itemsize(problem))
    x = operands.x.reshape(runs, length)
    partials = next((n for n in (128, 256) if runs <= n), PARTIALS)

    def absmax_body(x_gmem, partial_gmem):
        first = jax.lax.axis_index("run")

        def step(i, absmax):
            row = pieces.load(x_gmem, first + i * partials)
            return jnp.maximum(absmax, rr.row_absmax(row))

        turns = (runs - first + partials - 1) // partials
        partial_gmem[first] = jax.lax.fori_loop(0, turns, step, jnp.float32(0.0))

    def scale_body(x_gmem, partial_gmem, q_gmem, scale_gmem):
        # Backwards: what the first kernel read last may still be in the cache.
        row = runs - 1 - jax.lax.axis_index("run")
        x = pieces.load(x_gmem, row)
        layout = plgpu.Layout.WG_STRIDED((partials,), vec_size=partials // rr.THREADS)
        absmax = jnp.max(plgpu.load(partial_gmem, layout=layout, optimized=False))
        scale = rr.divide(absmax, xla.FP8_MAX)
        inverse = jnp.where(scale == 0, 0.0, rr.divide(1.0, scale))
        pieces.store(q_gmem, row, (rr.to_fp8(v.astype(F32) * inverse) for v in x))

        @pl.when(row == 0)
        def _():
            scale_gmem[0, 0] = scale

    (partial,) = _kernel(absmax_body, [((partials,), F32)], partials, "quantize_absmax")(x)
    outputs = [((runs, length), problem.out_dtype), ((1, 1), F32)]
    q, scale = _kernel(scale_body, outputs, runs, "quantize_tensor")(x, partial)
    return q.reshape(problem.m, problem.k), scale, None


# -- one scale a group --------------------------------------------------------------------------


def _group(problem: QuantizeProblem, operands: QuantizeOperands, config: Config):
    p = problem
    tile = rr.group_tile(p.group_size, _itemsize(p))
    if not _fills_a_tile(p, tile):
        return _group_by_group(p, operands)
    groups, layout = p.k // p.group_size, rr.group_layout(p.group_size, _itemsize(p))
    rows, total = (p.m, groups) if p.column_major else (1, p.m * groups)
    length = _tiles_a_run(total, tile, config.run // (p.group_size * tile)) * tile
    runs_a_row, padded = total // length, _padded_rows(p)
    left = total % length  # groups for the last run of a row to do too
    last = [*range(total - left, total - tile + 1, tile), *([total - tile] if left % tile else [])]

    def body(x_gmem, q_gmem, scale_gmem):
        run = jax.lax.axis_index("run")
        row, start = run // runs_a_row, run % runs_a_row * length

        def convert(starts):
            spans = [pl.ds(first, tile) for first in starts]
            x_tiles = [x_gmem.at[row, span] for span in spans]
            loaded = [plgpu.load(x, layout=layout, optimized=False) for x in x_tiles]
            for span, x in zip(spans, loaded, strict=True):
                absmax = jnp.max(jnp.abs(x), axis=1).astype(F32)
                scale = _group_scale(p, absmax, layout.reduce(1))
                q_gmem[row, span] = _group_codes(p, x, scale, layout)
                if not p.column_major:
                    scale_gmem[span] = scale
                    continue
                scale_gmem[span, row] = scale
                for extra in range(p.m, padded):

                    @pl.when(row == p.m - 1)
                    def _(span=span, extra=extra):
                        zeros = plgpu.layout_cast(jnp.zeros((tile,), F32), layout.reduce(1))
                        scale_gmem[span, extra] = zeros

        convert([start + first for first in range(0, length, tile)])
        if left:
            pl.when(start == (runs_a_row - 1) * length)(lambda: convert(last))

    shape = (rows, total, p.group_size)
    outputs = [(shape, p.out_dtype), ((groups, padded) if p.column_major else (total,), F32)]
    kernel = _kernel(body, outputs, rows * runs_a_row, "quantize_group")
    q, scale = kernel(operands.x.reshape(shape))
    return q.reshape(p.m, p.k), scale if p.column_major else scale.reshape(p.m, groups), None


def _tiles_a_run(groups: int, tile: int, most: int) -> int:
    """At most `most`, and fewer where half as many or more cut the groups evenly."""
    most = max(min(most, groups // tile), 1)
    wanted = range(most, max(most // 2, 1) - 1, -1)
    return next((tiles for tiles in wanted if groups % (tiles * tile) == 0), most)


def _fills_a_tile(problem: QuantizeProblem, tile: int) -> bool:
    """Whether there are enough groups for a warpgroup, in a row where its scales need that."""
    groups = problem.k // problem.group_size
    return tile > 0 and (groups if problem.column_major else groups * problem.m) >= tile


def _padded_rows(problem: QuantizeProblem) -> int:
    """Rows of column-major scales: TMA wants each of their columns to begin at 16 bytes."""
    return -(-problem.m // 4) * 4 if problem.tma_aligned else problem.m


def _group_by_group(problem: QuantizeProblem, operands: QuantizeOperands):
    """A warpgroup a group, for the few groups of a small x."""
    p, groups, padded = problem, problem.k // problem.group_size, _padded_rows(problem)
    pieces = rr.row_pieces(p.group_size, _itemsize(p))

    def body(x_gmem, q_gmem, scale_gmem):
        run = jax.lax.axis_index("run")
        row, group = run // groups, run % groups
        x = pieces.load(x_gmem, run)
        scale = _group_scale(p, rr.row_absmax(x))
        inverse = rr.divide(1.0, scale)
        codes = (
            rr.divide_by_few(v.astype(F32), scale, inverse, pieces.layout, _steps(p)) for v in x
        )
        pieces.store(q_gmem, run, map(rr.to_fp8, codes))
        if not p.column_major:
            scale_gmem[row, group] = scale
            return
        scale_gmem[group, row] = scale
        for extra in range(p.m, padded):

            @pl.when(row == p.m - 1)
            def _(extra=extra):
                scale_gmem[group, extra] = jnp.float32(0.0)

    shape = (p.m * groups, p.group_size)
    outputs = [(shape, p.out_dtype), ((groups, padded) if p.column_major else (p.m, groups), F32)]
    kernel = _kernel(body, outputs, p.m * groups, "quantize_group_by_group")
    q, scale = kernel(operands.x.reshape(shape))
    return q.reshape(p.m, p.k), scale, None


def _group_scale(problem: QuantizeProblem, absmax, layout=None):
    """The scales of groups from their max|x|: a vector of a tile's, or one."""
    absmax = jnp.maximum(absmax, xla.GROUP_EPS)
    if layout is None:
        scale = rr.divide(absmax, xla.FP8_MAX)
    else:
        by, inverse = jnp.float32(xla.FP8_MAX), jnp.float32(1 / xla.FP8_MAX)
        scale = rr.divide_by_few(absmax, by, inverse, layout)
        scale = jnp.where(absmax < jnp.inf, scale, absmax)  # the correction would make Inf a NaN
    if problem.ue8m0:
        scale = xla.power_of_two_at_least(jnp.maximum(scale, xla.GROUP_EPS))
    return scale


def _group_codes(problem: QuantizeProblem, x, scale, layout):
    inverse = rr.divide(1.0, scale, layout.reduce(1))
    by, inverse = (jax.lax.broadcast_in_dim(v, x.shape, (0,)) for v in (scale, inverse))
    if problem.ue8m0:  # the reciprocal of a power of two is exact
        return rr.to_fp8(x.astype(F32) * inverse)
    return rr.to_fp8(rr.divide_by_few(x.astype(F32), by, inverse, layout, _steps(problem)))


KERNEL = Implementation("hopper", supports, run, default_config, configs)

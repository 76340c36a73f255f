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
                     (`hopper_group`)
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
from jaxkernels.mosaic.launch import is_quantizing_x
from jaxkernels.mosaic.sharedrow import SharedRow
from jaxkernels.problem import Device, Implementation, QuantizeOperands, QuantizeProblem, Support
from jaxkernels.quantize import hopper_group, xla

F32 = jnp.float32
# A warpgroup holds its part of a row in registers: so many bytes fit, and twice as many in those of
# four warpgroups or more, that together have all of an SM's.
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


def supports(problem: QuantizeProblem, device: Device) -> Support:
    """Rows and groups of 128 elements or more that fit in a warpgroup's registers, smaller groups
    of 1, 2, 4, 8 or 16 lanes."""
    p, itemsize = problem, problem.x_bytes
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
                    tile == 0 or hopper_group.fills_a_tile(p, tile),
                    f"a row must have at least {tile} groups of {p.group_size}, got {groups}",
                ),
            ]
    elif not (p.scale in ("static", "tensor") and _divisors(p)) and p.k >= rr.THREADS:
        bytes_, most = p.k * itemsize, MAX_ROW_BYTES
        if p.scale == "token":
            most *= 2 if rr.row_pieces(p.k, itemsize).split(MAX_SHARED)[0] >= 4 else 1
        clauses.append(
            (bytes_ <= most, f"a row must have at most {most >> 10} KiB, got {bytes_} bytes")
        )
    return Support.all(*clauses)


def _divisors(problem: QuantizeProblem) -> tuple[int, ...]:
    """Run lengths that cut the whole array evenly, longest first."""
    total = problem.m * problem.k
    return tuple(run for run in (8192, 4096, 2048, 1024) if total % run == 0)


def default_config(problem: QuantizeProblem, device: Device) -> Config:
    """The longest run of at most 4096 elements that still gives each SM four warpgroups, and the
    warpgroups that share a row: see `_sharing`."""
    total, warpgroups = problem.m * problem.k, _sharing(problem, device)
    for run in (4096, 2048):
        if total >= run * 4 * device.num_sms:
            return Config(run, warpgroups)
    return Config(1024, warpgroups)


def _sharing(problem: QuantizeProblem, device: Device) -> int:
    """At most how many warpgroups share a row.

    Two pay for long rows, unless there are enough rows anyway: 1024 x 8192 takes 6.7 us instead of
    7.4, 256 x 28672 6.2 instead of 7.2, 4096 x 4096 12.4 instead of 12.2 (H200, 2026-11-22, fp8).
    Ahead of a product, whose grid leaves few SMs free, large blocks keep the rows apart: they come
    up under the product before, and small ones all crowd where there is room. 64 rows of 8192 and
    their product take 20.4 us with eight warpgroups a row, 23.2 us with one.
    """
    row_bytes = problem.k * problem.x_bytes
    if problem.scale != "token":
        return 1
    if row_bytes > MAX_ROW_BYTES:
        return MAX_SHARED
    if is_quantizing_x():  # zero points need more registers: more warpgroups only cost
        most = MAX_SHARED if problem.symmetric else 4
        return max(1, min(8 * device.num_sms // problem.m, most))
    return 2 if row_bytes >= 16 << 10 and problem.m <= 1024 else 1


def configs(problem: QuantizeProblem, device: Device) -> tuple[Config, ...]:
    """The configs worth trying: runs, or where the run is a row, warpgroups that share it."""
    if problem.scale == "token":
        fewest = MAX_SHARED if problem.k * problem.x_bytes > MAX_ROW_BYTES else 1
        return tuple(Config(4096, n) for n in (1, 2, 4, MAX_SHARED) if n >= fewest)
    return tuple(Config(run) for run in (1024, 2048, 4096, 8192))


def run(problem: QuantizeProblem, operands: QuantizeOperands, config: Config | None = None):
    """(q, scale, azp or None) as `QuantizeOperands` says; kernels and reshapes only."""
    from jaxkernels.mosaic.device import trace_device

    config = config or default_config(problem, trace_device())
    if problem.scale == "group":
        return hopper_group.run(problem, operands, config.run)
    if problem.scale == "token":
        return _token(problem, operands, config)
    if problem.scale == "tensor":
        return _tensor(problem, operands, config)
    return _static(problem, operands, config)


def _runs(problem: QuantizeProblem, config: Config) -> tuple[int, int]:
    """(runs, length): the whole array in runs of about `config.run`, or else its rows."""
    fits = [r for r in _divisors(problem) if r <= config.run]
    return (problem.m * problem.k // fits[0], fits[0]) if fits else (problem.m, problem.k)


# -- one scale a row ----------------------------------------------------------------------------


def _token(problem: QuantizeProblem, operands: QuantizeOperands, config: Config):
    m, k = problem.m, problem.k
    warpgroups, pieces = rr.row_pieces(k, problem.x_bytes).split(config.warpgroups)
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

        together = SharedRow(scratch, warpgroup, warpgroups, pieces.layout)
        q, *found = scheme(x, together, *(ref[0, 0] for ref in given))

        @pl.when(warpgroup == 0)
        def _():
            for ref, value in zip(found_gmem, found, strict=True):
                ref[row, 0] = value

        pieces.store(q_gmem, row, q, first)

    scratch = SharedRow.scratch_types(warpgroups)
    kernel = rr.row_kernel(body, outputs, m, "quantize_token", warpgroups, scratch)
    q, scale, *azp = kernel(operands.x, *bounds)
    return q, scale, azp[0] if azp else None


def _int8_row(problem: QuantizeProblem, pieces, x, together):
    if problem.symmetric:
        absmax = together.absmax(x)
        inverse = jnp.where(absmax == 0, 0.0, rr.divide(127.0, absmax))
        q = (rr.round_to_int8(v.astype(F32) * inverse) for v in x)
        return q, rr.divide(absmax, 127.0)
    low, high = together.range(x)
    scale = rr.divide(high - low, 255.0)
    constant = scale == 0
    azp = jnp.where(constant, 0, xla._saturate_int32(jnp.round(-128.0 - rr.divide(low, scale))))
    # A constant row's codes are its sign, which an inverse of 0 and that zero point give.
    shift = jnp.where(constant, jnp.sign(high).astype(jnp.int32), azp)
    inverse = jnp.where(constant, 0.0, rr.divide(1.0, scale))
    if problem.x_bytes == 2:  # then |azp| < 2^21: a 16-bit float has at most 11 bits
        q = (rr.round_to_int8(v.astype(F32) * inverse, shift) for v in x)
    else:
        q = (xla._to_int8(jnp.round(v * inverse), shift) for v in x)
    return q, jnp.where(constant, jnp.abs(high), scale), azp


def _fp8_row(problem: QuantizeProblem, pieces, x, together, upper=None):
    absmax = together.absmax(x)
    if upper is not None:
        absmax = jnp.minimum(absmax, upper)
    scale = jnp.maximum(rr.divide(absmax, xla.FP8_MAX), xla.MIN_SCALE)
    inverse = rr.divide(1.0, scale)
    limit = None if upper is None else jnp.minimum(512.0 * scale, jnp.finfo(F32).max)

    def code(v):
        v = v.astype(F32)
        if limit is not None:  # saturates all the same, but cannot overflow in the division
            v = jnp.minimum(jnp.maximum(v, -limit), limit)
        return rr.to_fp8(
            rr.divide_by_few(v, scale, inverse, pieces.layout, rr.correction_steps(problem.x_bytes))
        )

    return map(code, x), scale


# -- a given scale, and one for the whole tensor ------------------------------------------------


def _static(problem: QuantizeProblem, operands: QuantizeOperands, config: Config):
    runs, length = _runs(problem, config)
    pieces = rr.row_pieces(length, problem.x_bytes)
    given = [a for a in (operands.scale, operands.zero_point) if a is not None]

    def body(x_gmem, *refs):
        *given_gmem, q_gmem = refs
        row = jax.lax.axis_index("run")
        x = pieces.load(x_gmem, row)
        q = _static_codes(problem, pieces, x, *(ref[0, 0] for ref in given_gmem))
        pieces.store(q_gmem, row, q)

    kernel = rr.row_kernel(body, [((runs, length), problem.out_dtype)], runs, "quantize_static")
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
        v = rr.divide_by_few(v, scale, inverse, pieces.layout, rr.correction_steps(problem.x_bytes))
        return rr.round_to_int8(v, saturate=False)

    return map(code, x)


def _tensor(problem: QuantizeProblem, operands: QuantizeOperands, config: Config):
    runs, length = _runs(problem, config)
    pieces = rr.row_pieces(length, problem.x_bytes)
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

    (partial,) = rr.row_kernel(absmax_body, [((partials,), F32)], partials, "quantize_absmax")(x)
    outputs = [((runs, length), problem.out_dtype), ((1, 1), F32)]
    q, scale = rr.row_kernel(scale_body, outputs, runs, "quantize_tensor")(x, partial)
    return q.reshape(problem.m, problem.k), scale, None


KERNEL = Implementation("hopper", supports, run, default_config, configs)

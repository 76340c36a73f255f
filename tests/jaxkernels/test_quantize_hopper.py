# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The Mosaic quantization kernels against the formulas, bit for bit.

`formula` is numpy in IEEE float32: it divides where the formulas divide. The same cases run
interpreted on the CPU with race detection, are lowered for Hopper, and run on the GPU at full size.
"""

import dataclasses
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic import rowreduce
from jaxkernels.mosaic.device import abstract_mesh
from jaxkernels.mosaic.interpret import interpreted
from jaxkernels.problem import DEVICES, QuantizeOperands, QuantizeProblem
from jaxkernels.quantize import hopper

from .lowered import kernel_texts

F32 = np.float32
H200 = DEVICES["h200"]
INT8, FP8 = "int8", "float8_e4m3fn"


def problem(m, k, out, scale, dtype="bfloat16", **more):
    return QuantizeProblem(m, k, dtype, out, scale, **more)


SCHEMES = {
    "int8-token": (INT8, "token", {}),
    "int8-token-azp": (INT8, "token", {"symmetric": False}),
    "int8-static": (INT8, "static", {}),
    "int8-static-azp": (INT8, "static", {"symmetric": False}),
    "fp8-token": (FP8, "token", {}),
    "fp8-token-ub": (FP8, "token", {"scale_ub": True}),
    "fp8-static": (FP8, "static", {}),
    "fp8-tensor": (FP8, "tensor", {}),
    "fp8-group": (FP8, "group", {"group_size": 128}),
    "fp8-group-64": (FP8, "group", {"group_size": 64}),
    "fp8-group-ue8m0": (FP8, "group", {"group_size": 128, "ue8m0": True}),
    "fp8-group-col": (FP8, "group", {"group_size": 128, "column_major": True}),
    "fp8-group-tma": (FP8, "group", {"group_size": 128, "column_major": True, "tma_aligned": True}),
}


def operands(p: QuantizeProblem, x) -> QuantizeOperands:
    static = p.scale == "static"
    return QuantizeOperands(
        jnp.asarray(x).astype(p.x_dtype),
        jnp.full((1, 1), 0.0123, jnp.float32) if static else None,
        jnp.full((1, 1), -77, jnp.int32) if static and not p.symmetric else None,
        jnp.full((1, 1), 1.75, jnp.float32) if p.scale_ub else None,
    )


def sat8(rounded, azp=0):
    whole = np.nan_to_num(
        rounded.astype(np.float64), nan=0.0, posinf=2.0**31 - 1, neginf=-(2.0**31)
    )
    return np.clip(np.clip(whole, -(2.0**31), 2.0**31 - 1) + azp, -128, 127).astype(np.int8)


def to_fp8(v):
    return np.clip(v, F32(-448), F32(448)).astype(ml_dtypes.float8_e4m3fn)


def formula(p: QuantizeProblem, o: QuantizeOperands):
    """(q, scale, azp) from the formulas of spec 5.1, 5.4 and 5.5, in float32."""
    x = np.asarray(o.x.astype(jnp.float32))
    one = F32(1)
    with np.errstate(all="ignore"):
        if p.scale == "static":
            s = np.asarray(o.scale)
            if p.out_dtype == FP8:
                return to_fp8(x * (one / s)), s, None
            if p.symmetric:
                return sat8(np.rint(x / s)), s, None
            z = np.asarray(o.zero_point)
            return sat8(np.rint(x * (one / s)), z.astype(np.int64)), s, z
        if p.scale == "tensor":
            s = np.abs(x).max().reshape(1, 1) / F32(448)
            return to_fp8(x * (one / s if s != 0 else F32(0))), s, None
        if p.scale == "group":
            g = x.reshape(p.m, -1, p.group_size)
            s = np.maximum(np.abs(g).max(2), F32(1e-10)) / F32(448)
            if p.ue8m0:
                mantissa, exponent = np.frexp(np.maximum(s, F32(1e-10)))
                power = np.ldexp(F32(1), exponent - (mantissa == 0.5)).astype(F32)
                s = np.where(np.isfinite(s), power, s)
            q = to_fp8((g / s[:, :, None]).astype(F32)).reshape(p.m, p.k)
            if p.column_major:
                rows = -(-p.m // 4) * 4 if p.tma_aligned else p.m
                s = np.pad(s.T, ((0, 0), (0, rows - p.m)))
            return q, s, None
        absmax = np.abs(x).max(1, keepdims=True)
        if p.out_dtype == FP8:
            if p.scale_ub:
                absmax = np.minimum(absmax, np.asarray(o.scale_ub))
            s = np.maximum(absmax / F32(448), F32(1 / (448 * 512)))
            return to_fp8(x / s), s, None
        if p.symmetric:
            inverse = np.where(absmax == 0, F32(0), F32(127) / absmax)
            return sat8(np.rint(x * inverse)), absmax / F32(127), None
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        s = (high - low) / F32(255)
        flat = s == 0
        z = np.where(flat, 0, np.nan_to_num(np.rint(F32(-128) - low / s))).astype(np.int64)
        q = np.where(flat, np.sign(x).astype(np.int8), sat8(np.rint(x * (one / s)), z))
        return q, np.where(flat, np.abs(high), s), z.astype(np.int32)


def check(p: QuantizeProblem, o: QuantizeOperands, got) -> None:
    for name, want, have in zip(("q", "scale", "azp"), formula(p, o), got, strict=True):
        if want is None:
            assert have is None, name
            continue
        have = np.asarray(have)
        assert have.shape == want.shape and have.dtype == want.dtype, name
        bad = np.argwhere(have.view(np.uint8) != np.ascontiguousarray(want).view(np.uint8))
        if len(bad):
            nan = np.isnan(want.astype(F32)) & np.isnan(have.astype(F32))
            bad = np.argwhere((have.astype(F32) != want.astype(F32)) & ~nan)
        assert not len(bad), (
            f"{name}: {len(bad)} of {want.size} differ, first at {bad[0]}: "
            f"{have[tuple(bad[0])]} instead of {want[tuple(bad[0])]}"
        )


def awkward(rng, m, k):
    """Rows that are normal, zero, constant, tiny, huge, with Inf, with NaN, and with -0."""
    x = rng.standard_normal((m, k)).astype(F32) * 3
    x[1 % m] = 0
    x[2 % m] = -1.375
    x[3 % m] *= 1e-30
    x[4 % m] *= 1e30
    x[5 % m, 7] = np.inf
    x[6 % m, 9] = np.nan
    x[7 % m, ::3] = -0.0
    return x


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("m, k", [(8, 1024), (2, 1280)], ids=["awkward", "overlap"])
def test_interpreted(name, m, k, rng):
    out, scale, more = SCHEMES[name]
    p = problem(m, k, out, scale, **more)
    if not hopper.supports(p, H200):
        pytest.skip("; ".join(hopper.supports(p, H200).reasons))
    x = rng.standard_normal((m, k)).astype(F32) * 3
    if m == 8 and scale != "tensor":  # where one NaN would be all there is to see
        x = awkward(rng, m, k)
    o = operands(p, x)
    with interpreted():
        got = jax.tree.map(np.asarray, hopper.run(p, o, hopper.Config(1024)))
    check(p, o, got)


@pytest.mark.parametrize("name", ["int8-token", "int8-token-azp", "fp8-token", "fp8-token-ub"])
@pytest.mark.parametrize("k, warpgroups", [(3072, 3), (2048, 2), (1280, 8)])
def test_warpgroups_share_a_row(name, k, warpgroups, rng):
    out, scale, more = SCHEMES[name]
    p = problem(8, k, out, scale, **more)
    o = operands(p, awkward(rng, 8, k))
    with interpreted():
        got = jax.tree.map(np.asarray, hopper.run(p, o, hopper.Config(1024, warpgroups)))
    check(p, o, got)


@pytest.mark.parametrize(
    "m, k, group, more",
    [
        (1, 256, 128, {}),
        (2, 256, 128, {"ue8m0": True}),
        (3, 384, 128, {"ue8m0": True}),  # one tile, and one group left
        (5, 640, 128, {"column_major": True, "tma_aligned": True}),
        (3, 1408, 128, {"column_major": True, "tma_aligned": True}),
        (3, 960, 192, {}),  # groups that no tile has
        (9, 320, 64, {}),
    ],
)
def test_few_groups(m, k, group, more, rng):
    p = problem(m, k, FP8, "group", group_size=group, **more)
    assert hopper.supports(p, H200)
    o = operands(p, awkward(rng, m, k))
    with interpreted():
        got = jax.tree.map(np.asarray, hopper.run(p, o))
    check(p, o, got)


def layout_conflicts(text: str) -> list[str]:
    """Register layouts that a lowered kernel converts without knowing how: it would not compile.

    Mosaic leaves such a pair of casts in the module, and only the compiler on a GPU finds it.
    """
    lines = text.splitlines()
    made = dict(m.groups() for line in lines if (m := re.match(r"\s*(%\d+)(?::\d+)? = (.*)", line)))
    found = []
    for line in lines:
        if (m := re.search(r'conversion_cast"\((%\d+)\)', line)) is None:
            continue
        layouts = [
            re.search(r"layout = (#\S+<[^>]*>)", text) for text in (made.get(m[1], ""), line)
        ]
        if all(layouts) and layouts[0][1] != layouts[1][1]:
            found.append(f"{layouts[0][1]} -> {layouts[1][1]}")
    return found


def test_a_layout_conflict_is_found():
    """A value that is the same everywhere, given as if each thread had its own."""
    pieces = rowreduce.row_pieces(1024, 4)
    result = plgpu.ShapeDtypeStruct((512,), jnp.float32, pieces.layout)

    def body(x_gmem, y_gmem):
        x = pieces.load(x_gmem, 0)[0]
        add = plgpu.inline_mgpu(arg_types=(pieces.layout,) * 2, return_type=result)
        y_gmem[0, :512] = add(lambda _, a, b: a + b)(x, jnp.broadcast_to(x_gmem[0, 0], x.shape))

    struct = jax.ShapeDtypeStruct((1, 1024), jnp.float32)
    (conflict,) = layout_conflicts(kernel_texts(plgpu.kernel(body, out_type=struct), struct)[0])
    assert "WGSplat" in conflict and "WGStrided" in conflict


@pytest.mark.parametrize("name", SCHEMES)
def test_layouts_agree(name):
    out, scale, more = SCHEMES[name]
    p = problem(16, 5120, out, scale, **more)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: operands(p, jnp.zeros((p.m, p.k)))))
    texts = kernel_texts(lambda *a: hopper.run(p, jax.tree.unflatten(tree, a)), *leaves)
    assert [c for text in texts for c in layout_conflicts(text)] == []


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_lowers(name, dtype):
    out, scale, more = SCHEMES[name]
    shapes = [(16, 4096), (7, 13824)] if dtype == "bfloat16" else [(7, 5120)]
    if dtype == "bfloat16" and more.get("group_size") != 64:  # few groups: of 128 or more
        shapes.append((1, 128))
    for m, k in shapes:
        p = problem(m, k, out, scale, dtype, **more)
        support = hopper.supports(p, H200)
        assert support, support.reasons
        for config in hopper.configs(p, H200)[::3] if k == 4096 else [None]:
            o = jax.eval_shape(lambda p=p: operands(p, jnp.zeros((p.m, p.k))))
            with jax.sharding.use_abstract_mesh(abstract_mesh()):
                run = jax.jit(lambda o, p=p, c=config: hopper.run(p, o, c))
                text = run.trace(o).lower(lowering_platforms=("cuda",)).as_text()
            assert text.count("mosaic_gpu_v2") == (2 if scale == "tensor" else 1)


@pytest.mark.parametrize("scale", [-0.05, 2.1, 1e-25, 1e30, 0.0])
def test_static_int8_of_unusual_scales(scale, rng):
    p = problem(1, 1024, INT8, "static", "float32")
    x = rng.standard_normal((1, 1024)).astype(F32) * 3
    x[0, :3] = [0.0, np.nan, -np.inf]
    o = operands(p, x)._replace(scale=jnp.full((1, 1), scale, jnp.float32))
    with interpreted():
        got = jax.tree.map(np.asarray, hopper.run(p, o, hopper.Config(1024)))
    check(p, o, got)


def test_supports_gives_its_reasons():
    p = problem(4, 100, FP8, "group", group_size=48)
    support = hopper.supports(p, DEVICES["a100"])
    assert not support and len(support.reasons) == 4
    assert "A100" in support.reasons[0] and "128, got 100" in support.reasons[1]
    long = dataclasses.replace(p, k=40000, scale="token", group_size=-1)
    assert "64 KiB, got 80000" in hopper.supports(long, H200).reasons[0]
    shared = dataclasses.replace(long, k=53248)  # by four warpgroups
    assert hopper.supports(shared, H200)
    longer = dataclasses.replace(shared, k=69632)
    assert "128 KiB, got 139264" in hopper.supports(longer, H200).reasons[0]


@pytest.mark.parametrize("length", [128, 136, 1024, 1025, 1280, 5137, 14336])
def test_row_pieces_cover_every_element(length):
    seen = np.zeros(length, int)
    pieces = rowreduce.row_pieces(length, 2)
    width = pieces.size // 128
    assert length % width == 0  # so that every row starts aligned
    for start in pieces.starts:
        assert start % width == 0
        seen[start : start + pieces.size] += 1
    assert seen.min() == 1 and seen.max() <= 2


def test_row_pieces_refuse_short_rows():
    with pytest.raises(ValueError, match="at least 128 elements, got 127"):
        rowreduce.row_pieces(127, 2)


def test_round_to_int8_is_rint_and_saturates():
    x = np.array([0.5, 1.5, -0.5, -1.5, 2.5, 126.5, 127.5, -128.5, 1e30, -np.inf, np.nan], F32)
    want = np.array([0, 2, 0, -2, 2, 126, 127, -128, 127, -128, 0], np.int8)
    np.testing.assert_array_equal(rowreduce.round_to_int8(jnp.asarray(x)), want)
    shifted = rowreduce.round_to_int8(jnp.asarray(x), jnp.int32(100))
    np.testing.assert_array_equal(shifted, np.clip(np.rint(np.nan_to_num(x)) + 100, -128, 127))


def fma(a, b, c):
    """a * b + c of float32, rounded once: in 64 bits, and exactly where those lie on a middle."""
    a, b, c = np.broadcast_arrays(a, b, c)
    wide = a.astype(np.longdouble) * b + c
    rounded = wide.astype(F32)
    other = np.nextafter(rounded, np.where(wide > rounded, np.inf, -np.inf).astype(F32))
    middle = (rounded.astype(np.longdouble) + other) / 2
    for at in np.argwhere((wide == middle) & (wide != rounded)):
        at = tuple(at)
        exact = Fraction(float(a[at])) * Fraction(float(b[at])) + Fraction(float(c[at]))
        if exact != Fraction(float(middle[at])):
            low, high = sorted((rounded[at], other[at]))
            rounded[at] = high if exact > Fraction(float(middle[at])) else low
    return rounded


def corrected(x, by, steps):
    """`rowreduce.divide_by_few` in numpy."""
    inverse = F32(1) / by
    q = x * inverse
    for _ in range(steps):
        q = fma(fma(q, by, -x), -inverse, q)
    return q


def divisors(rng):
    """Mantissas of every kind: random, next to multiples of 1/64, and next to powers of two."""
    near = np.repeat(np.arange(64, 129) / 64, 9) + np.tile(np.arange(-4, 5), 65) * 2.0**-23
    by = np.concatenate([rng.uniform(1, 2, 400), near]).astype(F32)
    return by * np.exp2(rng.integers(-12, 8, by.size)).astype(F32)


@pytest.mark.parametrize("bits", [8, 11])
def test_one_correction_is_enough_for_16_bit_floats(bits, rng):
    """Every mantissa of x against awkward divisors, at quotients over the whole range of e4m3."""
    mantissas = (np.arange(1 << (bits - 1), 1 << bits) * 2.0 ** (1 - bits)).astype(F32)
    for exponent in (-11, -10, -9, -5, 0, 4, 8):
        by = divisors(rng)[:, None]
        x = mantissas * np.exp2(exponent + np.floor(np.log2(by))).astype(F32)
        np.testing.assert_array_equal(to_fp8(corrected(x, by, 1)), to_fp8(x / by))
        np.testing.assert_array_equal(np.rint(corrected(x, by, 1)), np.rint(x / by))


def test_two_corrections_divide_exactly(rng):
    x = (rng.uniform(1, 2, 3000) * np.exp2(rng.integers(-20, 20, 3000))).astype(F32)
    by = divisors(rng)[:, None]
    np.testing.assert_array_equal(corrected(x, by, 2), x / by)
    zeros = np.array([0.0, -0.0], F32)
    assert (np.signbit(corrected(zeros, by, 2)) == np.signbit(zeros)).all()


GPU_SHAPES = [
    (1, 128),
    (3, 130),  # two codes a thread
    (3, 1408),
    (7, 1025),  # and one
    (8, 4096),
    (33, 1280),
    (256, 8192),
    (64, 28672),
    (4, 53248),
]


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_gpu_bits(name, dtype, rng):
    out, scale, more = SCHEMES[name]
    ran = 0
    for m, k in GPU_SHAPES:
        p = problem(m, k, out, scale, dtype, **more)
        rare = dtype != "bfloat16" and k not in (1025, 1408, 4096)
        if rare or not hopper.supports(p, H200):
            continue
        x = awkward(rng, m, k)
        if scale == "tensor":
            x = np.nan_to_num(x, nan=0.0, posinf=5.0)
        o = operands(p, x)
        check(p, o, jax.tree.map(np.asarray, jax.jit(lambda o, p=p: hopper.run(p, o))(o)))
        ran += 1
    assert ran >= 2


@pytest.mark.gpu
def test_gpu_division_is_correctly_rounded(rng):
    """fp8 per token at scales of every mantissa pattern: quotients near every rounding boundary."""
    x = rng.standard_normal((4096, 4096)).astype(F32)
    x *= np.exp2(rng.uniform(-20, 20, (4096, 1))).astype(F32)
    p = problem(4096, 4096, FP8, "token")
    o = operands(p, x)
    check(p, o, jax.tree.map(np.asarray, jax.jit(lambda o: hopper.run(p, o))(o)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    ["int8-token-azp", "fp8-token", "int8-static", "fp8-group", "fp8-tensor"],
)
def test_gpu_more_than_2_to_the_31_elements(name):
    """Offsets beyond 32 bits: the last rows of 4.3 GB come out right."""
    out, scale, more = SCHEMES[name]
    m, k = (1 << 18) + 8, 8192
    p = problem(m, k, out, scale, **more)

    @jax.jit
    def run(key):
        x = jax.random.normal(key, (m, k), jnp.bfloat16)
        o = QuantizeOperands(x, jnp.full((1, 1), 0.0123) if scale == "static" else None)
        q, s, azp = hopper.run(p, o)
        return x[-8:], q[-8:], s[-8:], None if azp is None else azp[-8:]

    x, q, s, azp = run(jax.random.key(7))
    tail = dataclasses.replace(p, m=8)
    if scale == "tensor":  # the scale is the whole tensor's: check the codes with it
        o = QuantizeOperands(x, s)
        tail = dataclasses.replace(tail, scale="static")
        want, have = formula(tail, o)[0].astype(F32), np.asarray(q).astype(F32)
        np.testing.assert_array_equal(have, want)
    else:
        check(tail, operands(tail, x), jax.tree.map(np.asarray, (q, s, azp)))

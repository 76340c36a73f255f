# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The building blocks of the Mosaic kernels, each by itself."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxkernels.mosaic.arrivals import by_first_warp, copy_in, release
from jaxkernels.mosaic.cluster import exchange_outputs, exchange_scratch, sum_over_cluster
from jaxkernels.mosaic.device import abstract_mesh, trace_device
from jaxkernels.mosaic.interpret import interpreted, is_interpreting
from jaxkernels.mosaic.smem import matrix, swizzled, window
from jaxkernels.mosaic.wgmma import Tiles, finish_product, start_product

from .lowered import kernel_texts

LANE = plgpu.CompilerParams(
    lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
)


def test_the_abstract_device_comes_before_the_live_one():
    live = trace_device()
    with jax.sharding.use_abstract_mesh(abstract_mesh("NVIDIA H100 80GB HBM3", num_sms=7)):
        device = trace_device()
        assert (device.capability, device.num_sms) == ((9, 0), 7)
    assert trace_device() == live


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(ValueError, match="kind: expected one of .*'NVIDIA ZX81'"):
        abstract_mesh("NVIDIA ZX81")


def racy(ordered):
    """Two warpgroups write one array; with `ordered`, one after the other."""

    def kernel(out, barrier):
        thread = lax.axis_index("t")

        @pl.when(thread == 0)
        def _():
            out[...] = jnp.full((128,), 1.0, jnp.float32)
            plgpu.barrier_arrive(barrier)

        @pl.when(thread == 1)
        def _():
            if ordered:
                plgpu.barrier_wait(barrier)
            out[...] = jnp.full((128,), 2.0, jnp.float32)
            if not ordered:
                plgpu.barrier_wait(barrier)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((128,), jnp.float32),
        scratch_types=[plgpu.Barrier()],
        num_threads=2,
        thread_name="t",
    )


def test_a_race_raises_and_the_next_kernel_runs():
    with pytest.raises(RuntimeError, match="race detection"), interpreted():
        racy(ordered=False)()
    assert not is_interpreting()
    with interpreted():
        assert is_interpreting()
        assert float(racy(ordered=True)()[0]) == 2.0


def test_a_race_in_any_kernel_of_the_context_raises():
    with pytest.raises(RuntimeError, match="race detection"), interpreted():
        racy(ordered=False)()
        racy(ordered=True)()


def test_an_exception_leaves_the_interpreter_usable():
    with pytest.raises(KeyError), interpreted():
        raise KeyError("from inside")
    with interpreted():
        assert float(racy(ordered=True)()[5]) == 2.0


def copy_kernel(shape, tile, dtype):
    """Copies a ragged array tile by tile through swizzled shared memory and registers."""
    rows, width = tile

    def kernel(x, y, smem, barrier):
        i, j = lax.axis_index("i"), lax.axis_index("j")
        place = pl.ds(i * rows, rows), pl.ds(j * width, width)
        plgpu.copy_gmem_to_smem(x.at[place], window(smem.at[0]), barrier)
        plgpu.barrier_wait(barrier)
        held = plgpu.load(matrix(smem.at[0]), layout=plgpu.Layout.WGMMA)
        matrix(smem.at[1])[...] = held
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(window(smem.at[1]), y.at[place])
        plgpu.wait_smem_to_gmem(0)

    def call(x):  # scratch is described inside: it differs when interpreted
        return plgpu.kernel(
            kernel,
            out_type=jax.ShapeDtypeStruct(shape, dtype),
            scratch_types=[swizzled((2,), rows, dtype), plgpu.Barrier()],
            grid=(-(-shape[0] // rows), -(-shape[1] // width)),
            grid_names=("i", "j"),
            num_threads=1,
            thread_name="wg",
            compiler_params=LANE,
        )(x)

    return call


@pytest.mark.parametrize("dtype, width", [(jnp.bfloat16, 64), (jnp.float32, 32)])
def test_tiles_carry_ragged_arrays_unchanged(dtype, width, rng):
    shape = 70, 72  # neither is a multiple of the 64 x 128-byte tile
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    call = copy_kernel(shape, (64, width), dtype)
    with interpreted():
        y = call(x)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(x, np.float32))
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        text = jax.jit(call).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


def test_tiles_have_whole_swizzle_groups():
    with pytest.raises(ValueError, match="rows: expected a multiple of 8, got 12"):
        swizzled((1,), 12, jnp.int8)


@pytest.mark.parametrize("size, parts", [(2, 2), (4, 2), (2, 1)])
def test_sum_over_a_cluster(size, parts, rng):
    """Every block of a cluster holds a partial sum; slices of the total end up side by side."""
    cols = 32 * parts
    x = jnp.asarray(rng.integers(-1000, 1000, (size, 64, cols)), jnp.int32)

    def kernel(x, out, *board, **scratch):
        rank, cluster = lax.axis_index("k"), lax.axis_index("c")

        def finish(total, part):
            out[part] = total

        partial = plgpu.load(x.at[rank], layout=plgpu.Layout.WGMMA, optimized=False)
        sum_over_cluster(
            partial,
            finish,
            axis="k",
            size=size,
            parts=parts,
            cluster=cluster,
            warpgroup=0,
            scratch=scratch,
            outputs=board,
        )

    def call(x):
        out = jax.ShapeDtypeStruct((parts, 64, cols // parts), jnp.int32)
        extra = exchange_outputs(1, size, 1, 64, cols, jnp.int32)
        return plgpu.kernel(
            kernel,
            out_type=(out, *extra),
            scratch_types=exchange_scratch("k", size, 1, 64, cols // parts, jnp.int32),
            grid=(1,),
            grid_names=("c",),
            cluster=(size,),
            cluster_names=("k",),
            num_threads=1,
            thread_name="wg",
            compiler_params=LANE,
        )(x)[0]

    with interpreted():
        out = np.asarray(call(x))
    np.testing.assert_array_equal(np.concatenate(list(out), 1), np.asarray(x).sum(0))
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        text = jax.jit(call).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


def through_a_ring(rows: int, columns: int, slots: int):
    """A copy of x, a row of tiles at a time through a ring of two stages."""

    def kernel(x, out, ring, full, free):
        thread = lax.axis_index("t")
        steps = rows // 8

        def load():
            def step(i, _):
                slot = lax.rem(i, jnp.int32(slots))
                plgpu.barrier_wait(free.at[slot])
                copy_in(x.at[pl.ds(i * 8, 8)], ring.at[slot], full.at[slot])

            lax.fori_loop(0, steps, step, None)
            lax.fori_loop(0, slots, lambda s, _: plgpu.barrier_wait(free.at[s]), None)

        @pl.when(thread == 0)
        def _():
            by_first_warp(load)

        @pl.when(thread == 1)
        def _():
            lax.fori_loop(0, slots, lambda s, _: release(free.at[s]), None)

            def step(i, _):
                slot = lax.rem(i, jnp.int32(slots))
                plgpu.barrier_wait(full.at[slot])
                out[pl.ds(i * 8, 8)] = ring[slot]
                release(free.at[slot])

            lax.fori_loop(0, steps, step, None)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        scratch_types=[
            plgpu.SMEM((slots, 8, columns), jnp.float32),
            plgpu.Barrier(num_barriers=slots),
            plgpu.Barrier(num_barriers=slots),
        ],
        num_threads=2,
        thread_name="t",
        compiler_params=LANE,
    )


def test_a_ring_of_copies_and_releases(rng):
    x = jnp.asarray(rng.normal(size=(40, 128)), jnp.float32)
    with interpreted():
        np.testing.assert_array_equal(through_a_ring(40, 128, 2)(x), x)


@pytest.mark.gpu
def test_gpu_a_ring_of_copies_and_releases(rng):
    x = jnp.asarray(rng.normal(size=(4096, 128)), jnp.float32)
    for _ in range(20):
        np.testing.assert_array_equal(jax.jit(through_a_ring(4096, 128, 2))(x), x)


def test_one_thread_signals_a_copy_and_one_of_each_warp_a_release():
    """Read off the lowered module: how many arrivals each stands for, and that a thread is chosen.

    Pallas's own would have all 128 threads arrive, each once.
    """
    struct = jax.ShapeDtypeStruct((40, 128), jnp.float32)
    (text,) = kernel_texts(through_a_ring(40, 128, 2), struct)
    arrivals = re.findall(r"(@\S+ )?mbarrier\.arrive\.release[^;]*?, (\d+);", text)
    assert sorted({count for _, count in arrivals}) == ["127", "32"], arrivals
    assert all(predicate for predicate, _ in arrivals), arrivals


def test_a_place_is_a_slot_and_a_row_of_it(rng):
    """Products of two slots and two row offsets, by their places, interpreted."""
    tiles = jnp.asarray(rng.integers(-4, 5, (2, 128, 128)), jnp.float8_e4m3fn)

    def kernel(x, out, rows, cols, full):
        for slot in range(2):
            copy_in(x.at[slot], rows.at[slot], full)
            copy_in(x.at[slot, pl.ds(0, 64)], cols.at[slot], full)
        plgpu.barrier_wait(full)
        left, right = Tiles(rows), Tiles(cols)
        for slot in range(2):
            for half in range(2):
                a = left.below(left.place(jnp.int32(slot)), half * 64)
                b = right.place(jnp.int32(1 - slot))
                product = start_product(left, a, right, b, (64, 64))
                out[slot, half] = finish_product(product, in_flight=0)

    with interpreted():
        run = plgpu.kernel(
            kernel,
            out_type=jax.ShapeDtypeStruct((2, 2, 64, 64), jnp.float32),
            scratch_types=[
                swizzled((2,), 128, jnp.float8_e4m3fn),
                swizzled((2,), 64, jnp.float8_e4m3fn),
                plgpu.Barrier(num_arrivals=4),
            ],
            compiler_params=LANE,
        )
        got = np.asarray(run(tiles))
    x = np.asarray(tiles, np.float32)
    for slot in range(2):
        want = (x[slot] @ x[1 - slot, :64].T).reshape(2, 64, 64)
        np.testing.assert_array_equal(got[slot], want)

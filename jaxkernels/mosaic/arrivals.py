# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Copies and releases whose barriers are signalled by one thread, or one a warp.

In Pallas every thread of a warpgroup signals: 128 arrivals at a barrier in shared memory for each
TMA copy, and as many for each release of a stage (jax 0.11.2; only cluster barriers are signalled
once). These stand in for `plgpu.copy_gmem_to_smem` and `plgpu.barrier_arrive` and leave the
barriers' declarations as they are: one thread arrives for all 128, or one of each warp for 32.

    copy_in(gmem.at[rows, columns], smem.at[slot], full.at[slot])
    release(free.at[slot])      # this warp's threads have read the slot
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax._src import core as _jax_core
from jax._src.pallas.mosaic_gpu import lowering as _lowering
from jax._src.pallas.mosaic_gpu import primitives as _primitives
from jax._src.state import primitives as _state
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils as _utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, nvvm

from jaxkernels.mosaic.interpret import is_interpreting


def copy_in(source, target, barrier, collective_axes=None) -> None:
    """`plgpu.copy_gmem_to_smem`: starts a TMA copy and has one thread arrive at its barrier."""
    if is_interpreting():
        plgpu.copy_gmem_to_smem(source, target, barrier, collective_axes=collective_axes)
        return
    refs, leaves, trees = [], [], []
    for ref in (source, target, barrier):
        ref, transforms = _state.get_ref_and_transforms(ref, None, "copy_in")
        flat, tree = jax.tree.flatten(transforms)
        refs.append(ref)
        leaves += flat
        trees.append(tree)
    if isinstance(collective_axes, str):
        collective_axes = (collective_axes,)
    _copy_in_p.bind(
        *refs,
        *leaves,
        src_transforms_treedef=trees[0],
        dst_transforms_treedef=trees[1],
        barrier_transforms_treedef=trees[2],
        collective_axes=collective_axes,
        leader_tracked=None,
        oob_mode=None,
        has_barrier=True,
        has_user_predicate=False,
    )


def by_first_warp(body) -> None:
    """Runs `body`, made of waits for barriers and of copies, in a warpgroup's first warp only.

    The other three would do the same to no end; and of four warps that wait for the same barriers
    without waiting for each other, a slow one may find that a barrier's phase has turned twice,
    and wait for ever. Interpreted, the warpgroup runs it.
    """
    if is_interpreting():
        body()
        return

    @plgpu.inline_mgpu(return_type=plgpu.ShapeDtypeStruct((), jnp.int32, plgpu.Layout.WG_SPLAT(())))
    def warp(_):
        index = arith.remui(_utils.warp_idx(), _utils.c(4, ir.IntegerType.get_signless(32)))
        return mgpu.FragmentedArray.splat(index, (), is_signed=True)

    pl.when(warp() == 0)(body)


def release(barrier, predicate=None) -> None:
    """`plgpu.barrier_arrive`: one thread of each warp says that its warp is done.

    On a GPU the arrival orders the warp's reads before the copy that follows (CUTLASS's pipelines
    rest on that too). The interpreter's model of the memory proxies wants a fence as well.
    """
    if is_interpreting():
        plgpu.commit_smem()
        plgpu.barrier_arrive(barrier, predicate=predicate)
        return
    _arrive(_release_p, barrier, predicate)


def arrive_when_copied(barrier) -> None:
    """`plgpu.barrier_arrive` in `by_first_warp`: each lane arrives, for four threads, and without
    waiting for it, when the copies that it has started by cp.async have come."""
    if is_interpreting():
        plgpu.barrier_arrive(barrier)
        return
    _arrive(_copied_p, barrier)


def _arrive(primitive, barrier, predicate=None) -> None:
    ref, transforms = _state.get_ref_and_transforms(barrier, None, primitive.name)
    leaves, tree = jax.tree.flatten(transforms)
    primitive.bind(
        ref,
        *leaves,
        *(() if predicate is None else (predicate,)),
        transforms_treedef=tree,
        has_user_predicate=predicate is not None,
    )


class _Barrier(mgpu.BarrierRef):
    """A barrier, or some, with a way of its own to arrive: one of them arrives that way too."""

    def __getitem__(self, offset):
        at = super().__getitem__(offset)
        return dataclasses.replace(self, offset=at.offset, num_barriers=at.num_barriers)


@dataclasses.dataclass(frozen=True)
class _OneThread(_Barrier):
    """A barrier at which one thread of a warpgroup arrives for all, with all of the bytes.

    `one` is true in that thread.
    """

    one: ir.Value

    def arrive_expect_tx(self, tx_count, predicate=None):
        if predicate is not None or not isinstance(tx_count, int):
            raise NotImplementedError("copies with a predicate")
        threads = _utils.WARPGROUP_SIZE
        self.arrive(threads - 1, predicate=self.one)
        super().arrive_expect_tx(tx_count * threads, predicate=self.one)


class _OneAWarp(_Barrier):
    """A barrier at which one thread of each warp arrives for its 32."""

    def arrive(self, arrival_count=1, predicate=None, **kwargs):
        one = nvvm.elect_sync()
        predicate = one if predicate is None else arith.andi(predicate, one)
        super().arrive(arrival_count * _utils.WARP_SIZE, predicate=predicate, **kwargs)


class _WhenCopied(_Barrier):
    """A barrier at which each lane of one warp arrives for four threads of the warpgroup.

    One of the four arrivals is made by the lane's copies themselves, when the last has come.
    """

    def arrive(self, arrival_count=1, **kwargs):
        nvvm.cp_async_mbarrier_arrive(self.get_ptr(), noinc=True)
        threads = _utils.WARPGROUP_SIZE // _utils.WARP_SIZE
        super().arrive(arrival_count * threads - 1, **kwargs)


def _fields(barrier: mgpu.BarrierRef):
    return barrier.base_address, barrier.offset, barrier.phases, barrier.num_barriers


def _primitive(name: str, original, rule, kind):
    """A primitive like a Pallas one, whose barrier is of a kind of its own when it is lowered.

    Barriers of clusters stay as they are: their releases are signalled once already.
    """
    primitive = _jax_core.Primitive(name)
    primitive.multiple_results = original.multiple_results
    primitive.abstract_eval = original.abstract_eval

    @_lowering.register_lowering_rule(primitive, mgpu.LoweringSemantics.Lane)
    def lower(ctx, *args, **params):
        args = [kind(ctx, a) if type(a) is mgpu.BarrierRef else a for a in args]
        return rule(ctx, *args, **params)

    return primitive


_copy_in_p = _primitive(
    "copy_in",
    _primitives.copy_gmem_to_smem_p,
    _primitives._copy_gmem_to_smem_lowering,
    lambda ctx, a: _OneThread(*_fields(a), ctx.module_ctx.single_lane_predicate),
)
_copied_p = _primitive(
    "arrive_when_copied",
    _primitives.barrier_arrive_p,
    _primitives._barrier_arrive_lowering,
    lambda ctx, a: _WhenCopied(*_fields(a)),
)
_release_p = _primitive(
    "release",
    _primitives.barrier_arrive_p,
    _primitives._barrier_arrive_lowering,
    lambda ctx, a: _OneAWarp(*_fields(a)),
)

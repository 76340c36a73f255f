# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""How the Hopper scaled GEMM is cut into tiles, and which cuts the hardware takes.

A `Config` is the whole choice; `Plan` derives every number of one (problem, config) pair. The
kernel, the legality predicate and the cost model read the same `Plan`, so that none of them can
disagree about shared memory or registers. A wrong register budget does not fail on the GPU, it
hangs: `Plan.legal` refuses it by arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from jaxkernels.problem import Device, ScaledMMProblem, Support

TILE_K = 128  # bytes of K a stage: one line of the 128-byte swizzle
BLOCK = 128  # elements of K (and rows of w) under one scale of a block-scaled problem
SCALE_STEPS = 4  # of K, whose x scales come together: 16 bytes a row, the least that TMA moves
_SMEM_ALIGN = 1024  # Pallas aligns each shared allocation to this
_REGISTERS = 65536  # an SM's
_MAX_CLUSTER = 8  # the portable limit


@dataclasses.dataclass(frozen=True)
class Config:
    """One way to cut a scaled GEMM.

    Attributes:
      tile_m, tile_n: rows of x and rows of w that one block multiplies.
      stages: depth of the ring of shared-memory tiles.
      swap: w is wgmma's 64-row operand and x its narrow one (small M), instead of the reverse.
      split_k: blocks of a cluster that share one output tile, each with a part of K.
      cluster_m, cluster_n: blocks of a cluster with adjacent tiles; cluster_m of them share w's
        tile, cluster_n of them x's, each tile then being read from L2 once.
      warpgroups: multiplying warpgroups; a further one loads.
      panel: tiles of M that a wave of blocks walks before it moves along N.
      overlap: start while the kernel ahead on the stream still runs (its results are waited for).
      weights_first: with `overlap`, load the first stages of w before that wait.
      in_flight: block-scaled products of a warpgroup that run at a time: at most 2, of 64 x 128.
    """

    tile_m: int
    tile_n: int
    stages: int
    swap: bool = False
    split_k: int = 1
    cluster_m: int = 1
    cluster_n: int = 1
    warpgroups: int = 2
    panel: int = 8
    overlap: bool = False
    weights_first: bool = False
    in_flight: int = 2

    @property
    def cluster(self) -> int:
        """Blocks in a cluster."""
        return self.split_k * self.cluster_m * self.cluster_n


def wgmma_columns(dtype: str) -> tuple[int, ...]:
    """The widths that a wgmma instruction can have: int8 ones beyond 32 go in steps of 16."""
    wide = 16 if dtype == "int8" else 8
    return (*range(8, 32, 8), *range(32, 257, wide))


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up."""
    return -(-a // b)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers that follow from a problem and a config. `rows` is wgmma's 64-row side."""

    problem: ScaledMMProblem
    config: Config

    @property
    def block_scaled(self) -> bool:
        return self.problem.x_scale == "group"

    @property
    def rows(self) -> int:
        return self.config.tile_n if self.config.swap else self.config.tile_m

    @property
    def cols(self) -> int:
        return self.config.tile_m if self.config.swap else self.config.tile_n

    @property
    def wg_rows(self) -> int:
        """Rows of one warpgroup."""
        return self.rows // self.config.warpgroups

    def first_row(self, warpgroup, row=0):
        """Where in the tile 64 rows of a warpgroup's begin, from its own `row` on, of wgmma's side.

        Of a block-scaled tile the warpgroups take 64 in turn, as their products come.
        """
        if self.block_scaled:
            return warpgroup * 64 + row * self.config.warpgroups
        return warpgroup * self.wg_rows + row

    @property
    def k_steps(self) -> int:
        """Stages of K of the whole problem."""
        return ceil_div(self.problem.k, TILE_K)

    @property
    def split(self) -> tuple[int, int, int]:
        """(least, more, unit): every block of a split has `least` units of stages of K, the first
        `more` of them one more. Of block scales a unit is a load of them; past K's end all is 0.
        """
        unit = SCALE_STEPS if self.block_scaled and not self.head_steps else 1
        return *divmod(ceil_div(self.k_steps, unit), self.config.split_k), unit

    @property
    def least_steps(self) -> int:
        """Stages of K that every block of a split has."""
        least, _, unit = self.split
        return least * unit

    @property
    def split_steps(self) -> int:
        """Most stages of K that a block of a split has."""
        least, more, unit = self.split
        return (least + (more > 0)) * unit

    @property
    def m_groups(self) -> int:
        """Clusters along M."""
        return ceil_div(self.problem.m, self.config.tile_m * self.config.cluster_m)

    @property
    def n_groups(self) -> int:
        return ceil_div(self.problem.n, self.config.tile_n * self.config.cluster_n)

    def num_clusters(self, num_sms: int) -> int:
        """Clusters to launch: one a tile group, or as many as the device holds at a time."""
        total = self.m_groups * self.n_groups
        if self.config.split_k > 1:
            return total
        if self.config.cluster > 2:  # clusters of 4 and 8 stay within a GPC of 16 or 18 SMs
            num_sms = max(num_sms // 16 * 16, self.config.cluster)
        return min(total, max(num_sms // self.config.cluster, 1))

    @property
    def out_itemsize(self) -> int:
        return jnp.dtype(self.problem.out_dtype).itemsize

    @property
    def out_line_bytes(self) -> int:
        """Bytes of a line of the staged output: a row's 64 rows of w if swapped, else columns."""
        if self.config.swap:
            return 64 * self.out_itemsize
        return next(b for b in (128, 64, 32, 16) if self.part_cols * self.out_itemsize % b == 0)

    @property
    def out_transposed_plain(self) -> bool:
        """Whether the staged output is [x rows, 64] unswizzled (float32 of a swapped product)."""
        return self.config.swap and self.out_itemsize == 4

    @property
    def parts(self) -> int:
        """Blocks of a split that each finish a slice of the tile's columns."""
        unit = 8 if self.config.swap else 64 // self.out_itemsize
        for parts in range(self.config.split_k, 0, -1):
            if self.cols % (parts * unit) == 0:
                return parts
        return 1

    @property
    def part_cols(self) -> int:
        return self.cols // self.parts

    @property
    def out_rows(self) -> int:
        """Rows of one staged output tile: 64 of x, or with `swap` all (of this part) of x."""
        return self.part_cols if self.config.swap else 64

    def vector_length(self, side: str, itemsize: int) -> int:
        """Elements of a per-row vector in shared memory: its tile's, at least 128 bytes."""
        tile = self.config.tile_m if side == "m" else self.config.tile_n
        return ceil_div(tile * itemsize, TILE_K) * TILE_K // itemsize

    @property
    def head_steps(self) -> int:
        """Steps that a block-scaled sum begins with, before those of whole loads of scales."""
        whole = self.block_scaled and self.config.split_k == 1
        return self.k_steps % SCALE_STEPS if whole else 0

    @property
    def numbered_slots(self) -> bool:
        """Whether a whole load of block scales always begins at slot 0: slots are numbers then."""
        return not self.overlaps_scaling and SCALE_STEPS % self.config.stages == 0

    @property
    def first_slot(self) -> int | None:
        """Where a tile's stages begin in the ring, if that has to be the same for every tile."""
        same = self.head_steps and self.numbered_slots
        return -self.head_steps % self.config.stages if same else None

    @property
    def scale_slots(self) -> int:
        """Slots of [tile_m, 4] activation scales: never reused before the ring lets them be.

        The ring's steps, and the one before them, belong to most loads where that one ends a tile:
        the next begins with the short load, if there is one.
        """
        steps = max(self.k_steps, 1)
        tiles, step = divmod(self.config.stages - 1, steps)
        touched = tiles * ceil_div(steps, SCALE_STEPS)
        touched += (step + -steps % SCALE_STEPS) // SCALE_STEPS + 2
        return max(touched, ceil_div(self.config.stages + 3, SCALE_STEPS) + 1)

    @functools.cached_property
    def smem_without_staging(self) -> int:
        p, c = self.problem, self.config
        total = _align(c.stages * self.rows * TILE_K) + _align(c.stages * self.cols * TILE_K)
        vectors = [("m", 4)] * (p.x_scale == "token") + [("n", 4)] * (p.w_scale == "channel")
        vectors += [("n", 4)] * p.bias + [("n", 4)] * (p.azp is not None)
        vectors += [("m", 4)] * (p.azp == "token")
        total += sum(_align(self.vector_length(side, size) * size) for side, size in vectors)
        if self.block_scaled:
            total += _align(self.scale_slots * c.tile_m * 16) + _align(self.scale_slots * 128)
        if c.split_k > 1:
            total += _align(c.split_k * self.rows * self.part_cols * 4)
        return total + _SMEM_ALIGN  # barriers

    @property
    def out_slot_bytes(self) -> int:
        return self.config.warpgroups * self.out_rows * self.out_line_bytes

    def out_slots(self, smem_bytes: int) -> int:
        """Staged output tiles a warpgroup: as many as fit, up to what it sends of a tile."""
        free = (smem_bytes - self.smem_without_staging) // _SMEM_ALIGN * _SMEM_ALIGN
        most = self.wg_rows // 64
        if not self.config.swap:
            most *= self.part_cols * self.out_itemsize // self.out_line_bytes
        return max(1, min(free // self.out_slot_bytes, max(most, 2)))

    @property
    def accumulator_registers(self) -> int:
        """Registers a thread holds in accumulators."""
        one = self.wg_rows * self.cols // 128
        if not self.block_scaled:
            return one
        return one + (2 if self.overlaps_scaling else 1) * self.cols // 2  # products of 64 rows

    @property
    def overlaps_scaling(self) -> bool:
        """Whether a warpgroup of a block-scaled product keeps two of them in flight.

        Two products of 64 x 128 and their sum are 192 registers, as many as two warpgroups have.
        """
        return self.config.in_flight == 2 and self.wg_rows == 64 and self.cols <= 128

    @property
    def needs_more_registers(self) -> bool:
        """Whether the loading warpgroup's registers have to go to the multiplying ones.

        Without that ptxas gives each thread an equal share; about 64 of it are not accumulators.
        """
        share = _REGISTERS // ((self.config.warpgroups + 1) * 128)
        scales = self.cols if self.block_scaled and self.config.swap else 0  # of four steps
        return self.accumulator_registers + scales + 64 > min(share, 255)

    def register_split(self) -> tuple[int, int]:
        """(loading, multiplying) registers a thread after `setmaxnreg`.

        What is launched is (warpgroups + 1) x the equal share, rounded down to 8; the sum after
        must not exceed it, or the increase waits for ever.
        """
        threads = self.config.warpgroups + 1
        pool = threads * (_REGISTERS // (threads * 128) // 8 * 8)
        loading = 40
        return loading, min((pool - loading) // self.config.warpgroups // 8 * 8, 240)

    def legal(self, device: Device) -> Support:
        """Whether this config computes this problem on this device, with every reason if not."""
        p, c = self.problem, self.config
        wgs = c.warpgroups
        smem = self.smem_without_staging + _align(self.out_slot_bytes)
        split = self.needs_more_registers
        budget = self.register_split()[1] if split else _REGISTERS // ((wgs + 1) * 128)
        return Support.all(
            (min(c.tile_m, c.tile_n, c.stages, c.split_k, c.panel, wgs) >= 1, "sizes >= 1"),
            (self.rows % (64 * wgs) == 0, f"{wgs} warpgroups of 64 rows, got {self.rows} rows"),
            (
                self.cols in wgmma_columns(p.x_dtype),
                f"columns of a wgmma of {p.x_dtype}, got {self.cols}",
            ),
            (self.rows <= 256, f"a TMA box has at most 256 rows, got {self.rows}"),
            (
                c.swap or self.cols * self.out_itemsize % 64 == 0,
                f"output lines of 64 bytes, got {self.cols} columns of {p.out_dtype}",
            ),
            (c.stages >= 2, f"at least 2 stages, got {c.stages}"),
            (c.in_flight in (1, 2), f"1 or 2 products in flight, got {c.in_flight}"),
            (c.overlap or not c.weights_first, "weights first only where the launch overlaps"),
            (
                c.cluster <= _MAX_CLUSTER and c.cluster in (1, 2, 4, 8),
                f"a cluster of 1, 2, 4 or 8 blocks, got {c.cluster}",
            ),
            (
                c.tile_n % (8 * c.cluster_m) == 0 and c.tile_m % (8 * c.cluster_n) == 0,
                "multicast slices of whole swizzle groups",
            ),
            (
                self.least_steps >= 1,
                f"{self.k_steps} steps of K leave a block of {c.split_k} without work",
            ),
            (
                not self.block_scaled or self.cols <= 2 * BLOCK,
                f"block scales: a tile over at most 2 rows of w's blocks, got {self.cols} columns",
            ),
            (
                not self.block_scaled or c.swap or c.tile_n % 16 == 0,
                f"block scales: chunks of at least 16 columns, got {c.tile_n}",
            ),
            (
                not self.block_scaled or not c.swap or self.wg_rows == 64,
                f"block scales: 64 rows of w a warpgroup, got {self.wg_rows}",
            ),
            (
                self.accumulator_registers + 40 <= min(budget, 255),
                f"{self.accumulator_registers} accumulator registers in a budget of {budget}",
            ),
            (smem <= device.smem_bytes, f"{smem} bytes of shared memory of {device.smem_bytes}"),
        )


def _align(size: int) -> int:
    return ceil_div(size, _SMEM_ALIGN) * _SMEM_ALIGN

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What is measured: the families, their grids, and the floor no kernel can beat.

A *cell* is one family at one shape. Its floor is the larger of two times: every operand moved once
at the card's measured bandwidth, and every multiply-add at the best rate any kernel has reached on
that card. Floors leave out the ~1 us that the shortest kernel in a graph takes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Linear layers of 7B-70B models, (N, K).
SHAPES = (
    (4096, 4096),
    (6144, 4096),
    (28672, 4096),
    (4096, 14336),
    (8192, 8192),
    (8192, 28672),
)
# Shapes that no tuning table was made from: configs must come out right here too.
HELD_OUT = ((5120, 5120), (3584, 18944), (11008, 4096), (1536, 8960))
SCALED_MS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
MIXED_MS = (1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 8192)
QUANTIZE_SHAPES = ((16, 4096), (256, 8192), (4096, 4096), (4096, 14336), (16384, 8192))  # (M, K)
SMOKE_SHAPES = ((4096, 4096), (8192, 8192))
SMOKE_MS = (1, 16, 256, 4096)


@dataclass(frozen=True)
class Cell:
    """One measurement; `n` is None for quantization, `group` is K elements a scale (-1: all)."""

    family: str
    m: int
    n: int | None
    k: int
    group: int | None = None

    @property
    def key(self) -> tuple:
        return (self.family, self.m, self.n, self.k, self.group)

    def __str__(self) -> str:
        shape = "x".join(str(d) for d in (self.m, self.n, self.k) if d is not None)
        return f"{self.family} {shape}" + ("" if self.group is None else f" g{self.group}")


@dataclass(frozen=True)
class Family:
    """What a family multiplies or converts, in the terms its floor and its grid need."""

    name: str
    suite: str
    op: str  # which public op runs it
    x_bits: int
    w_bits: int = 0
    rate: str = ""  # which tensor-core rate bounds it: "bf16", "fp8" or "int8"
    groups: tuple[int | None, ...] = (None,)
    scale_bits: int = 32
    zero_points: bool = False
    act_order: bool = False
    max_rel_err: float = 0.01  # a cell whose error is larger is not timed

    def grid(
        self,
        shapes: Sequence[tuple[int, int]] | None = None,
        ms: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
    ) -> Iterable[Cell]:
        """The family's cells, weights outermost so that they are built once for every M."""
        wanted = [g for g in self.groups if groups is None or g is None or g in groups]
        if self.suite == "quantize":
            for m, k in shapes or QUANTIZE_SHAPES:
                for g in wanted:
                    if ms is None or m in ms:
                        yield Cell(self.name, m, None, k, g)
            return
        default_ms = {"mixed_mm": MIXED_MS, "bridge": (16,)}.get(self.suite, SCALED_MS)
        for n, k in shapes or (((1024, 1024),) if self.suite == "bridge" else SHAPES):
            for g in wanted:
                for m in ms or default_ms:
                    yield Cell(self.name, m, n, k, g)


def _families() -> dict[str, Family]:
    scaled = dict(suite="scaled_mm", op="scaled_mm", x_bits=8, w_bits=8)
    mixed = dict(suite="mixed_mm", op="mixed_mm", x_bits=16, rate="bf16", scale_bits=16)
    quantize = dict(suite="quantize", op="quantize", x_bits=16, max_rel_err=0.03)
    bridge = dict(suite="bridge", op="bridge", x_bits=16, max_rel_err=0.01)
    fp8_group = dict(groups=(128,), **quantize)
    every = [
        Family("fp8", rate="fp8", **scaled),
        Family("fp8-block", rate="fp8", groups=(128,), **scaled),
        Family("int8", rate="int8", **scaled),
        Family("int8-azp", rate="int8", **scaled),
        Family("w8a8-linear", "scaled_mm", "w8a8_linear", 16, 8, "fp8", max_rel_err=0.05),
        Family("w4a16", w_bits=4, groups=(128, 64, 32, -1), **mixed),
        Family("w4a16-zp", w_bits=4, groups=(128,), zero_points=True, **mixed),
        Family("w4a16-actorder", w_bits=4, groups=(128,), act_order=True, **mixed),
        Family("w8a16-int8", w_bits=8, groups=(-1, 128), **mixed),
        Family("w8a16-fp8", w_bits=8, groups=(-1,), **mixed),
        Family("w8a16-fp8-block", w_bits=8, groups=(128,), **mixed),
        Family("w4a8-fp8", "mixed_mm", "w4a8_mm", 8, 4, "fp8", (128,), 8),
        Family("w4a8-int8", "mixed_mm", "w4a8_mm", 8, 4, "int8", (128,), 16),
        Family("fp4-nv", w_bits=4, groups=(16,), **{**mixed, "scale_bits": 8}),
        Family("fp4-mx", w_bits=4, groups=(32,), **{**mixed, "scale_bits": 8}),
        Family("quantize-int8-token", **quantize),
        Family("quantize-int8-token-azp", **quantize),
        Family("quantize-int8-static", **{**quantize, "max_rel_err": 0.05}),
        Family("quantize-int8-static-azp", **{**quantize, "max_rel_err": 0.05}),
        Family("quantize-fp8-token", **quantize),
        Family("quantize-fp8-static", **quantize),
        Family("quantize-fp8-tensor", **quantize),
        Family("quantize-fp8-group", **fp8_group),
        Family("quantize-fp8-group-col", **fp8_group),
        Family("bridge-launch", **bridge),
        Family("bridge-fp8", **{**bridge, "max_rel_err": 0.05}),
        Family("bridge-int8", **{**bridge, "max_rel_err": 0.05}),
        Family("bridge-w4a16", **bridge),
        Family("bridge-wrap", **bridge),
    ]
    return {f.name: f for f in every}


FAMILIES = _families()
SUITES = ("scaled_mm", "mixed_mm", "quantize", "bridge", "smoke")


def cells(
    suite: str,
    families: Sequence[str] | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    ms: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
) -> list[Cell]:
    """The cells of a suite, narrowed to some families, (N, K) shapes, token counts and groups.

    Raises:
      ValueError: a suite or family that does not exist, with those that do.
    """
    if suite not in SUITES:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    if suite == "smoke":
        chosen = ["fp8", "int8", "w4a16"]
        shapes, ms, groups = shapes or SMOKE_SHAPES, ms or SMOKE_MS, groups or (128,)
    else:
        chosen = [f.name for f in FAMILIES.values() if f.suite == suite]
    if families:
        unknown = [f for f in families if f not in chosen]
        if unknown:
            raise ValueError(
                f"families: suite {suite!r} has {', '.join(chosen)}; got {', '.join(unknown)}"
            )
        chosen = list(families)
    return [c for f in chosen for c in FAMILIES[f].grid(shapes, ms, groups)]


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of a card: GB/s read, GB/s copied (read + write), best TFLOP/s reached."""

    read_gbps: float
    copy_gbps: float
    tflops: dict[str, float]


# One H200 (SXM, 132 SMs), 2026-11-22: torch.sum over 1 GiB, torch.neg over 1 GiB, and the fastest
# cell that any peer's GEMM reached on random data.
CEILINGS = {
    "NVIDIA H200": Ceilings(4372.0, 4281.0, {"bf16": 827.0, "fp8": 1577.0, "int8": 1602.0}),
}


def moved_bytes(cell: Cell) -> float:
    """Bytes of device memory that a perfect kernel moves: each operand once."""
    f, m, n, k = FAMILIES[cell.family], cell.m, cell.n, cell.k
    if n is None:  # 16 bits in, 8 bits out, and what the scheme adds
        scales = {"token": 4 * m, "azp": 8 * m, "group": 4 * m * k / (cell.group or k)}
        kind = "group" if cell.group else f.name.rpartition("-")[2]
        return 3 * m * k + (scales.get(kind, 0) if "static" not in f.name else 0)
    scales_per_row = 1 if cell.group in (None, -1) else k / cell.group
    if cell.family.endswith("fp8-block"):  # 128 x 128 weight blocks, 1 x 128 activation groups
        scale_bytes = 4 * (n / 128 + (m if f.x_bits == 8 else 0)) * scales_per_row
    else:
        scale_bytes = n * scales_per_row * (f.scale_bits + (4 if f.zero_points else 0)) / 8
    return m * k * f.x_bits / 8 + n * k * f.w_bits / 8 + scale_bytes + 2 * m * n


def flops(cell: Cell) -> float:
    """Multiplications and additions of a matrix product; 0 for a conversion."""
    return 0.0 if cell.n is None else 2.0 * cell.m * cell.n * cell.k


def floor_us(cell: Cell, ceilings: Ceilings | None) -> float | None:
    """The time under which no kernel can run this cell; None for host times, and on a card
    without ceilings."""
    f = FAMILIES[cell.family]
    if ceilings is None or f.suite == "bridge":
        return None
    if cell.n is None:
        return moved_bytes(cell) / ceilings.copy_gbps / 1e3
    memory = moved_bytes(cell) / ceilings.read_gbps / 1e3
    return max(memory, flops(cell) / ceilings.tflops[f.rate] / 1e6)

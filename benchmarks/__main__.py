# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""python -m benchmarks: our kernels beside every peer, cell by cell.

python -m benchmarks                                       # the smoke suite: three families
python -m benchmarks --suite scaled_mm --families fp8,int8 --ms 1,16 --shapes 4096x4096
python -m benchmarks --suite mixed_mm --held_out           # shapes no table was made from
python -m benchmarks --readme                              # README's table from results/
"""

import contextlib
import importlib.metadata
import itertools
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report, suites, timing
from benchmarks.measure import is_host, measure
from benchmarks.peers import peers_of
from benchmarks.suites import CEILINGS, FAMILIES, Cell

FLAGS = flags.FLAGS
flags.DEFINE_enum("suite", "smoke", suites.SUITES, "which families to measure")
flags.DEFINE_list("families", None, "only these families of the suite")
flags.DEFINE_list("shapes", None, "only these, as NxK (MxK for quantize)")
flags.DEFINE_list("ms", None, "only these token counts")
flags.DEFINE_list("groups", None, "only these group sizes (-1: whole K)")
flags.DEFINE_bool("held_out", False, "the shapes that no tuning table was made from")
flags.DEFINE_list(
    "peers",
    ["torch", "vllm", "deep_gemm", "humming"],
    "peers from these sources; xla too, which tunes each shape for seconds",
)
flags.DEFINE_string("out", str(report.RESULTS), "folder of the results")
flags.DEFINE_string("name", None, "results file without .json (default: suite and device)")
flags.DEFINE_bool("resume", False, "keep the cells that the results file already has")
flags.DEFINE_bool("retry_failed", False, "with --resume, measure those that failed again")
flags.DEFINE_float("cell_seconds", 60, "a cell that takes longer counts as hung")
flags.DEFINE_float("cap", 0, "start no new cell after this many seconds (0: no limit)")
flags.DEFINE_float("deadline", 0, "start no new cell after this time (seconds since 1970)")
flags.DEFINE_string("lock", None, "compile everything now, with others; measure alone")
flags.DEFINE_bool("eligible", False, "skip the peers that do less or more than our kernels")
flags.DEFINE_bool("draw", True, "draw the picture")
flags.DEFINE_integer("threads", 8, "threads that compile kernels ahead")
flags.DEFINE_bool("sweep", False, "time every config too, to see how good the chosen one is")
flags.DEFINE_bool("warm", False, "first compile the peers that compile themselves, in parallel")
flags.DEFINE_bool("warm_only", False, "compile this process's peers and measure nothing")
flags.DEFINE_bool("repro", False, "print a command line that repeats each cell")
flags.DEFINE_bool("list", False, "print the cells and their floors, and measure nothing")
flags.DEFINE_bool("readme", False, "write README's table from the results folder, and stop")
flags.DEFINE_bool("verify", True, "check every result against float32 before it is timed")

console = Console(width=None if sys.stdout.isatty() else 140)


def command_line(arguments: list[str]) -> str:
    """The command of a results file: what was asked for, not where files lie or how often."""
    kept, skip = [], False
    for argument in arguments:
        flag = argument.lstrip("-").split("=")[0]
        with_value = ("out", "cap", "name", "deadline", "lock", "threads")
        if skip or flag in (*with_value, "resume", "retry_failed", "warm", "repro", "nodraw"):
            skip = not skip and flag in with_value and "=" not in argument
            continue
        kept.append(argument)
    return shlex.join(["python", "-m", "benchmarks", *kept])


def shape_of(text: str) -> tuple[int, int]:
    """ "4096x8192" -> (4096, 8192). Raises ValueError naming the flag."""
    first, _, second = text.partition("x")
    if not (first.isdigit() and second.isdigit()):
        raise ValueError(f"--shapes: expected NxK such as 4096x8192, got {text!r}")
    return int(first), int(second)


def repro(cell: Cell) -> str:
    """A command line that measures this cell alone."""
    shape = f"{cell.m if cell.n is None else cell.n}x{cell.k}"
    line = f"python -m benchmarks --suite {FAMILIES[cell.family].suite}"
    line += f" --families {cell.family} --shapes {shape} --ms {cell.m}"
    return line if cell.group is None else f"{line} --groups={cell.group}"


def chosen_cells() -> list[Cell]:
    shapes = [shape_of(s) for s in FLAGS.shapes] if FLAGS.shapes else None
    if FLAGS.held_out:
        shapes = suites.HELD_OUT
    ints = [[int(v) for v in flag] if flag else None for flag in (FLAGS.ms, FLAGS.groups)]
    return suites.cells(FLAGS.suite, FLAGS.families, shapes, *ints)


def machine() -> tuple[str, str, dict[str, str]]:
    """The device's name, its driver, and the versions that matter."""
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "torch")}
    versions["cuda"] = torch.version.cuda
    return torch.cuda.get_device_name(), driver, versions


def restart() -> None:
    """Starts over in a fresh process that keeps every cell recorded so far, failed ones too."""
    arguments = [a for a in sys.argv[1:] if a not in ("--resume", "--retry_failed", "--warm")]
    sys.stdout.flush()
    command = [sys.executable, "-m", "benchmarks", *arguments, "--resume"]
    os.execv(sys.executable, command)


def groups_of(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that share their weights, in order."""
    by_weights = itertools.groupby(cells, lambda c: (c.family, c.n, c.k, c.group))
    return [list(members) for _, members in by_weights]


def warm(cells: list[Cell]) -> None:
    """Fills the caches of DeepGEMM and humming: a process for each group of cells, some at once."""
    jit = {"deep_gemm", "humming"} & set(FLAGS.peers)
    groups = [g for g in groups_of(cells) if any(p.source in jit for p in peers_of(g[0].family))]
    running: list[subprocess.Popen] = []
    for group in groups:
        while len(running) >= FLAGS.threads:
            running = [p for p in running if p.poll() is None]
            time.sleep(0.1)
        first = group[0]
        line = [sys.executable, "-m", "benchmarks", *repro(first).split()[3:], "--warm_only"]
        line[line.index("--ms") + 1] = ",".join(str(c.m) for c in group)
        running.append(subprocess.Popen([*line, f"--peers={','.join(sorted(jit))}"]))
    for process in running:
        process.wait()


def warm_here(cells: list[Cell]) -> None:
    """Runs every peer once, which compiles it; what fails will fail again when it is measured."""
    from benchmarks import operands as ops

    for group in groups_of(cells):
        weights = ops.make_weights(group[0])
        for cell in group:
            o = ops.make_operands(cell, weights)
            for peer in peers_of(cell.family):
                if peer.source in FLAGS.peers:
                    with contextlib.suppress(Exception):
                        peer.build(o).calls[0]()


def watch(cell: Cell, give_up: Callable[[str], None]) -> threading.Timer:
    """Calls `give_up` if the cell takes too long: a kernel that hangs cannot be interrupted."""
    reason = f"Hang: nothing came back within {FLAGS.cell_seconds:g} s"
    timer = threading.Timer(FLAGS.cell_seconds, give_up, [reason])
    timer.daemon = True
    timer.start()
    return timer


def run(cells: list[Cell]) -> int:
    """Measures the cells, saving after each; the number of cells of ours that failed."""
    import torch

    from benchmarks import operands as ops
    from benchmarks import ours

    device, driver, versions = machine()
    name = FLAGS.name or f"{FLAGS.suite}-{device.split()[-1].lower()}"
    path = Path(FLAGS.out) / f"{name}.json"
    head = report.header(command_line(sys.argv[1:]), device, driver, versions)
    old = report.load(path)[1] if FLAGS.resume and path.exists() else []
    if FLAGS.retry_failed:
        old = [r for r in old if r["us"]]
    have = {report.key(r) for r in old}
    wanted = [c for c in cells if c.key not in have]
    started, fresh = time.time(), []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(),
    )  # fmt: skip

    def keep(cell: Cell, record: dict) -> None:
        fresh.append(record)
        report.save(path, head, report.merge(old, fresh))
        bar.advance(task)
        if not sys.stderr.isatty():
            show(cell, record, time.time() - started)
        if FLAGS.repro:
            console.print(f"  {repro(cell)}", style="dim", soft_wrap=True)

    def late() -> bool:
        cap = started + FLAGS.cap if FLAGS.cap else math.inf
        return time.time() > min(cap, FLAGS.deadline or math.inf)

    def compiling(group: list[Cell]) -> dict[Cell, Future]:
        return {c: pool.submit(ours.compiled, c) for c in group if not is_host(c)}

    with ThreadPoolExecutor(FLAGS.threads) as pool, contextlib.ExitStack() as held, bar:
        task = bar.add_task(FLAGS.suite, total=len(cells), completed=len(cells) - len(wanted))
        if FLAGS.lock:
            with timing.holding(FLAGS.lock, alone=False):
                futures = compiling(wanted)
                wait(futures.values())
                if FLAGS.sweep:
                    plans = [(c, f.result()[0]) for c, f in futures.items() if not f.exception()]
                    wait([pool.submit(ours.compiled, c, x) for c, p in plans for x in p.configs()])
            held.enter_context(timing.holding(FLAGS.lock, alone=True))
            started = time.time()
        timing.raise_clocks()
        for group in groups_of(wanted):
            if late():
                break
            weights = None
            # All of a group compile before any of it is timed: loading a module stalls the card.
            bar.update(task, description=f"compiling {group[0]} ...")
            futures = compiling(group)
            wait(futures.values())
            for cell in group:
                if late():
                    break
                bar.update(task, description=str(cell))

                def give_up(why: str, cell: Cell = cell) -> None:
                    keep(cell, report.make_record(cell, failed={"ours": why}))
                    restart()

                timer = watch(cell, give_up)
                if weights is None and cell.n is not None and not is_host(cell):
                    weights = ops.make_weights(cell)
                record = measure(
                    cell,
                    weights,
                    futures.get(cell),
                    device,
                    FLAGS.peers,
                    FLAGS.verify,
                    FLAGS.eligible,
                    pool if FLAGS.sweep else None,
                )
                timer.cancel()
                keep(cell, record)
                try:
                    torch.cuda.synchronize()
                except RuntimeError:  # a fault poisons the process's context for good
                    restart()
            torch.cuda.empty_cache()
    records = report.merge(old, fresh)
    report.print_tables(records, console)
    if FLAGS.draw:
        report.draw_roofline(records, path.with_suffix(".png"), device)
    console.print(str(path), soft_wrap=True)
    return sum("ours" in r.get("failed", {}) for r in records)


def show(cell: Cell, record: dict, seconds: float) -> None:
    """One line a cell where no bar can be drawn."""
    ours = f"{record['us']:9.2f} us" if record["us"] else record["failed"]["ours"]
    ratio = record["ratio_to_best_peer"]
    print(f"[{seconds:6.1f}] {str(cell):34} {ours}  ratio {ratio or '-'}  {record['config']}",
          flush=True)  # fmt: skip


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"flags only, got {' '.join(argv[1:])}")
    if FLAGS.readme:
        files = [report.load(p) for p in sorted(Path(FLAGS.out).glob("*.json"))]
        report.write_readme(Path("README.md"), files)
        console.print(f"README.md: {len(files)} results files")
        return
    try:
        cells = chosen_cells()
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    if FLAGS.list:
        ceilings = CEILINGS["NVIDIA H200"]
        for cell in cells:
            floor = suites.floor_us(cell, ceilings)
            text = "host time" if floor is None else f"floor {floor:9.2f} us (H200)"
            console.print(f"{str(cell):40} {text}")
        return
    import torch

    if not torch.cuda.is_available():
        raise app.UsageError("an NVIDIA GPU is needed to measure; --list shows what would be")
    if FLAGS.warm_only:
        return warm_here(cells)
    if FLAGS.warm:
        warm(cells)
    if failures := run(cells):
        console.print(f"[red]{failures} cells of ours failed[/red]; the records say why")


if __name__ == "__main__":
    app.run(main)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What serving needs of the torch bridge, and a cell's time does not show, on one CUDA device.

    python -m benchmarks.serving gaps      idle time between the launches of one CUDA graph
    python -m benchmarks.serving warmup    seconds until every M to 8192 is served: cold, from disk
    python -m benchmarks.serving wrap      host time of a small jitted function, by its parts

Each prints a table and keeps its numbers in `benchmarks/results/serving/DEVICE-WHAT.json`
(--out changes the folder, --lock FILE shares the card with other processes).
"""

import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import report, timing

FLAGS = flags.FLAGS

RECIPES = ("w4a16-g128", "w8a8-fp8", "w8a8-int8", "fp8-block")
GAP_SHAPES = ((4096, 4096), (28672, 4096))
WARM_SHAPES = ((28672, 8192), (8192, 28672))
LAYERS = 64


def define_flags() -> None:
    flags.DEFINE_string("out", str(report.RESULTS / "serving"), "folder of the results")
    flags.DEFINE_string("lock", None, "a file whose lock other users of the card hold too")
    flags.DEFINE_list("recipes", list(RECIPES), "what to measure")
    flags.DEFINE_string("cold", None, "(for itself) one process of `warmup`: N,K,RECIPE")


def alone(yes: bool = True):
    """The card, by itself or with others."""
    lock = FLAGS.lock
    return timing.holding(lock, alone=yes) if lock else contextlib.nullcontext()


def layer(recipe: str, n: int, k: int):
    from torch_bridge import QuantLinear

    linear = torch.nn.Linear(k, n, bias=False, device="cuda", dtype=torch.bfloat16)
    made = QuantLinear.from_linear(linear.requires_grad_(False), recipe)
    torch.cuda.synchronize()
    return made


# -- gaps -----------------------------------------------------------------------------------------


def gaps(recipes) -> Iterator[dict]:
    """For a graph of 64 layers at M = 16: the time between a kernel's end and the next's start.

    CUPTI's timestamps (torch.profiler) of one replay. A kernel that starts before the one ahead
    has ended counts as a gap below zero. `us_a_layer` is the graph's own time without CUPTI.
    """
    from torch.profiler import ProfilerActivity, profile

    for recipe in recipes:
        for n, k in GAP_SHAPES:
            first = layer(recipe, n, k)
            copies = [first, *(copy.deepcopy(first) for _ in range(timing.copies(n * k) - 1))]
            x = torch.randn(16, k, device="cuda", dtype=torch.bfloat16)
            graph = torch.cuda.CUDAGraph()
            with alone(), torch.no_grad():
                copies[0](x)
                torch.cuda.synchronize()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    for i in range(LAYERS):
                        copies[i % len(copies)](x)
                us = replay_us(graph)
                with profile(activities=[ProfilerActivity.CUDA]) as seen:
                    graph.replay()
                    torch.cuda.synchronize()
            on_device = [e for e in seen.events() if e.device_type.name == "CUDA"]
            spans = [(e.time_range.start, e.time_range.end) for e in on_device]
            row = {"recipe": recipe, "n": n, "k": k, "us_a_layer": us / LAYERS}
            yield row | between(spans)


def between(spans) -> dict:
    """What lies between kernels with these (start, end) in microseconds."""
    spans = sorted(spans)
    found = [later[0] - earlier[1] for earlier, later in zip(spans, spans[1:], strict=False)]
    return {
        "kernels": len(spans),
        "gap_median_us": statistics.median(found),
        "gap_largest_us": max(found),
        "gaps_over_1_us": sum(gap > 1 for gap in found),
    }


def replay_us(graph) -> float:
    """Median microseconds of a replay."""
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


# -- warmup ---------------------------------------------------------------------------------------


def warmup(recipes) -> Iterator[dict]:
    """Seconds of `torch_bridge.warmup(layer, 8192)`, in a new process each time."""
    for recipe in recipes:
        for n, k in WARM_SHAPES:
            with tempfile.TemporaryDirectory() as folder:
                runs = [one_process(recipe, n, k, folder) for _ in range(2)]
                files = list(Path(folder).rglob("*-*"))
                size = sum(f.stat().st_size for f in files)
            cold, disk = runs
            yield {
                "recipe": recipe,
                "n": n,
                "k": k,
                "variants": cold["variants"],
                "cold_s": cold["seconds"],
                "disk_s": disk["seconds"],
                "files": len(files),
                "megabytes": size / 1e6,
                "processors": len(os.sched_getaffinity(0)),
            }


def one_process(recipe: str, n: int, k: int, folder: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.serving", "warmup", f"--cold={n},{k},{recipe}"]
    if FLAGS.lock:
        command.append(f"--lock={FLAGS.lock}")
    environment = {**os.environ, "JAXKERNELS_CACHE_DIR": folder, "JAXKERNELS_CACHE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cold(n: int, k: int, recipe: str) -> dict:
    from torch_bridge import warmup

    with alone(False):
        made = layer(recipe, n, k)
    start = time.perf_counter()
    variants = warmup(made, 8192)
    seconds = time.perf_counter() - start
    routes = {route for *_, route in made._runner.variants()}
    assert routes == {"direct"}, routes
    return {"variants": variants, "seconds": seconds}


# -- wrap -----------------------------------------------------------------------------------------


def wrap_parts() -> Iterator[dict]:
    """Host microseconds of `wrap(f)(x)` and of what it is made of, for 16 x 1024 numbers."""
    import jax
    import jax.numpy as jnp

    from torch_bridge import dlpack, streams, to_jax, wrap

    def f(a):
        return jnp.tanh(a) * 2

    x = torch.randn(16, 1024, device="cuda")
    device, wrapped, jitted, array = x.device, wrap(f), jax.jit(f), to_jax(x)
    result = jitted(array)
    stream = streams.joined_stream(device)
    parts = {
        "wrap(f)(x)": lambda: wrapped(x),
        "jax.jit(f)(array)": lambda: jitted(array),
        "JAX waits for torch's stream": lambda: streams.joined_stream(device),
        "tensor to array": lambda: dlpack._pass(x, stream),
        "array to tensor, torch waits": lambda: dlpack._returning(result, device),
        "torch.tanh(x) * 2": lambda: torch.tanh(x) * 2,
    }
    for name, call in parts.items():
        with alone():
            us = timing.host_time(call, calls=100, batches=15)
        yield {"part": name, "us": us}


def show(what: str, rows: list[dict]) -> None:
    table = Table(title=f"{what} on {torch.cuda.get_device_name()}")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


def main(argv) -> None:
    [what] = argv[1:]
    if FLAGS.cold:
        n, k, recipe = FLAGS.cold.split(",")
        print(json.dumps(cold(int(n), int(k), recipe)))
        return
    measures = {
        "gaps": lambda: gaps(FLAGS.recipes),
        "warmup": lambda: warmup(FLAGS.recipes),
        "wrap": wrap_parts,
    }
    name = torch.cuda.get_device_name()
    path = Path(FLAGS.out) / f"{name.lower().replace('nvidia ', '').replace(' ', '-')}-{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "device": name,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"python -m benchmarks.serving {what}",
    }
    rows = []
    for row in measures[what]():
        rows.append(row)  # a run that is cut off keeps what it has
        path.write_text(json.dumps({"header": header, "records": rows}, indent=1) + "\n")
    show(what, rows)


if __name__ == "__main__":
    define_flags()
    app.run(main)

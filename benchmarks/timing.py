# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""How a cell is timed: CUDA-graph replays on a torch stream, rotating weights, rested clocks.

* The calls of a cell use different copies of its weights, together at least `ROTATE_BYTES`
  (over twice the L2 of an H200), so that weights come from device memory; activations and
  outputs are reused, as in a real layer, where they were just written.
* The calls are captured back to back in one CUDA graph of about a millisecond. The time is the
  median over replays, divided by the calls: it holds the ~1 us between graph nodes and no host
  time.
* Tensor-core load lowers the clocks within tens of milliseconds, so a call of over 50 us is timed
  after a rest of 0.1 s, for about 20 ms.
* XLA, whose calls cannot be captured in torch's graph, is timed by wall clock over calls unrolled
  in one jit.
"""

import contextlib
import fcntl
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

ROTATE_BYTES = 160e6
REST_ABOVE_US = 50.0
REST_S = 0.1

Call = Callable[[], object]


def copies(nbytes: float, rotate_bytes: float = ROTATE_BYTES) -> int:
    """How many copies of an operand of `nbytes` keep a round of calls out of the L2 cache."""
    return int(max(3, min(64, math.ceil(rotate_bytes / nbytes))))


def rounds(call_us: float, ncalls: int, target_us: float = 1000.0) -> int:
    """How often to repeat `ncalls` calls in a graph so that one replay lasts about `target_us`."""
    return max(1, min(40, math.ceil(target_us / (call_us * ncalls))))


def replays(graph_us: float, most: int = 10, budget_us: float = 20e3) -> int:
    """How many replays to time: at most `most`, about `budget_us` in all, and never under three."""
    return max(3, min(most, int(budget_us / graph_us)))


def graph_time(calls: Sequence[Call], *, rest: float = REST_S) -> float:
    """Median microseconds a call, over replays of one CUDA graph holding `calls` (repeated)."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # module loads and handle creation must not be captured
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()

    def measure(captured: Sequence[Call], n: int, warm: int, pause: float) -> float:
        graph = torch.cuda.CUDAGraph()
        # Other threads (JAX's, the bridge's) may call CUDA meanwhile: that must not end a capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for call in captured:
                call()
        time.sleep(pause)
        times = []
        for i in range(n + warm):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            if i >= warm:
                times.append(start.elapsed_time(end) * 1e3 / len(captured))
        return statistics.median(times)

    estimate = measure(calls[:2], 1, 1, 0.0)
    if estimate > 1000:
        calls = calls[:2]
    calls = list(calls) * rounds(estimate, len(calls))
    pause = rest if estimate > REST_ABOVE_US else 0.0
    warm = 2 if estimate < 1000 else 1
    return measure(calls, replays(estimate * len(calls)), warm, pause)


def host_time(call: Call, *, calls: int = 200, batches: int = 10) -> float:
    """Median microseconds of host time a call takes to enqueue its work."""
    import torch

    for _ in range(50):
        call()
    times = []
    for _ in range(batches):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    torch.cuda.synchronize()
    return statistics.median(times)


def wall_time(
    enqueue: Callable[[], object],
    wait: Callable[[object], object],
    calls: int,
    *,
    budget_us: float = 20e3,
) -> float:
    """Median wall-clock microseconds a call; `enqueue` starts `calls` of them, `wait` ends them."""

    def once(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            out = enqueue()
        wait(out)
        return (time.perf_counter() - start) / n / calls * 1e6

    once(1)
    estimate = once(2)
    n = max(2, min(50, int(budget_us / (estimate * calls))))
    if estimate > REST_ABOVE_US:
        time.sleep(REST_S)
    return statistics.median(once(n) for _ in range(5))


@contextlib.contextmanager
def holding(path: str, *, alone: bool) -> Iterator[None]:
    """Holds a file's lock, by itself or with others.

    Many processes may compile together, one measures: loading a module stalls the card.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def raise_clocks(seconds: float = 0.4) -> None:
    """Works the card for a moment, so that the first cell is not timed at idle clocks."""
    import torch

    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    end = time.time() + seconds
    while time.time() < end:
        for _ in range(20):
            x @ x
        torch.cuda.synchronize()

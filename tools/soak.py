# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Runs quantized layers of mixed shapes, dtypes and streams for minutes and watches memory.

    python tools/soak.py [MINUTES]        default 10

Every result is checked against the layer's own dequantized weight. Memory is read after everything
has been compiled (the first tenth), each minute and at the end, when no result is alive: growth of
more than 2% on the host, or of 1 MiB in torch's or JAX's memory on the device, is a leak, and the
exit status is 1. (A call in two hundred that leaves the least piece of memory behind, 512 bytes,
comes to that.)

On an H200, 2026-11-29, beside gpu tests: 601 s, 466733 calls, host 1791 MiB, torch 159.362 MiB and
JAX none at every reading. On two CPU cores, 2026-11-28: 600 s, 125584 calls, host 1016 to 1018 MiB.
"""

import gc
import random
import resource
import sys
import time
from typing import NamedTuple

import jax
import torch
from torch import nn

from torch_bridge import QuantLinear, to_jax, to_torch, wrap

RECIPES = ("w8a8-int8", "w8a8-fp8", "w4a16-g128", "w4a16-g64-zp", "w8a16")
SIZES = ((256, 384), (512, 256), (1024, 1024))
ROWS = (1, 3, 16, 17, 64, 200)


class Memory(NamedTuple):
    """Bytes: of the process, and what torch and JAX hold on the GPU."""

    host: int
    torchs: int
    jaxs: int

    def __str__(self):
        host, torchs, jaxs = (size / 2**20 for size in self)
        return f"host {host:.0f} MiB, torch {torchs:.3f}, JAX {jaxs:.3f}"

    def leaks(self, first: "Memory") -> bool:
        more = 2**20
        return (
            self.host > 1.02 * first.host
            or self.torchs >= first.torchs + more
            or self.jaxs >= first.jaxs + more
        )


def memory(device: str) -> Memory:
    """What is held, at rest."""
    gc.collect()
    torchs = jaxs = 0
    if device == "cuda":
        torch.cuda.synchronize()
        time.sleep(1)  # for the bridge to let go of what JAX has read
        torchs = torch.cuda.memory_allocated()
        jaxs = jax.local_devices()[0].memory_stats()["bytes_in_use"]
    with open("/proc/self/statm") as f:
        return Memory(int(f.read().split()[1]) * resource.getpagesize(), torchs, jaxs)


def main(minutes: float) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    layers = []
    for k, n in SIZES:
        for recipe in RECIPES:
            linear = nn.Linear(k, n, device=device, dtype=torch.bfloat16).requires_grad_(False)
            layer = QuantLinear.from_linear(linear, recipe)
            layers.append((layer, layer.dequantize().t().contiguous()))
    double = wrap(lambda x: x * 2)
    streams = [torch.cuda.Stream() for _ in range(4)] if device == "cuda" else [None]
    for layer, _ in layers:  # everything that will be compiled
        for rows in ROWS:
            layer(double(torch.randn(rows, layer.in_features, device=device)).bfloat16())
            double(torch.randn(rows, layer.in_features, device=device).bfloat16())
    if device == "cuda":
        torch.cuda.synchronize()  # the streams do not wait for the default one
    start, calls, first = time.time(), 0, None
    due = start + minutes * 6

    def show():
        nonlocal due
        held = memory(device)
        due = time.time() + 60
        print(f"{time.time() - start:5.0f} s, {calls} calls: {held}", flush=True)
        return held

    while time.time() - start < minutes * 60:
        layer, weight = random.choice(layers)
        stream = random.choice(streams)
        with torch.cuda.stream(stream), torch.no_grad():
            x = torch.randn(random.choice(ROWS), layer.in_features, device=device).bfloat16()
            y = layer(to_torch(to_jax(double(x)))).float()
            want = 2 * x.float() @ weight + layer.bias.float()
            error = ((y - want).norm() / want.norm()).item()
        if not error < 0.06:
            print(f"wrong: {layer} with {x.shape[0]} rows, relative error {error:.3f}")
            return 1
        calls += 1
        del x, y, want
        if time.time() > due:
            held = show()
            first = first or held
    leak = show().leaks(first)
    print("LEAK" if leak else "flat")
    return int(leak)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10))

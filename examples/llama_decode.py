# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""One decode step of a Llama-3-8B-shaped model, its linear layers only, in one CUDA graph.

    python examples/llama_decode.py            32 layers on a GPU: tokens per second for each recipe
    python examples/llama_decode.py --small    two narrow layers, on a CPU too, without a graph
    python examples/llama_decode.py --json     the same numbers for a machine

Weights and activations are random, so nothing is generated: this times what decoding is made of,
reading every weight once a token. Attention, norms and the head are left out for all alike.
With vLLM's compiled ops in the folder $PEERS (as for `python -m benchmarks`), its kernels run the
same model beside ours: Marlin for 4 bits, quantization and CUTLASS for fp8.
"""

import json
import os
import time
from pathlib import Path

import torch
from absl import app, flags
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from jaxkernels.scalar_types import scalar_types
from torch_bridge import quantize_

BASE = "bf16 torch"
MARLIN, CUTLASS = "vllm marlin w4a16", "vllm cutlass fp8"
# hidden, intermediate, width of keys and values together
LLAMA = (4096, 14336, 2048)
SMALL = (256, 512, 128)

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_list("recipes", ["w4a16-g128", "w8a8-fp8"], "what to quantize to, beside bf16")
    flags.DEFINE_list("batches", ["1", "16", "64"], "sequences decoded at once")
    flags.DEFINE_integer("layers", 32, "decoder layers", lower_bound=1)
    flags.DEFINE_bool("small", False, "two narrow layers, quick anywhere")
    flags.DEFINE_bool("json", False, "print JSON instead of a table")
    flags.DEFINE_string("out", "out", "folder for the picture")


class Layer(nn.Module):
    """The four products of a decoder layer, with what makes each other's inputs in between."""

    def __init__(self, hidden: int, inner: int, kv: int):
        super().__init__()
        self.hidden = hidden
        self.qkv = nn.Linear(hidden, hidden + kv, bias=False)
        self.o = nn.Linear(hidden, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        x = x + self.o(self.qkv(x)[..., : self.hidden].contiguous())
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        x = x + self.down(nn.functional.silu(gate) * up)
        return nn.functional.rms_norm(x, (self.hidden,))


class VllmMarlin(nn.Module):
    """A 4-bit layer, groups of 128, as vLLM runs it; its codes are random."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.n, self.k = linear.weight.shape
        # [K / 8, N] words of 8 codes, as GPTQ stores them.
        words = torch.randint(-(2**31), 2**31, (self.k // 8, self.n), dtype=torch.int32)
        self.none = torch.empty(0, dtype=torch.int32)
        repacked = torch.ops._C.gptq_marlin_repack(words, self.none, self.k, self.n, 4, False)
        self.register_buffer("words", repacked)
        scale = torch.rand(self.k // 128, self.n, dtype=torch.bfloat16) * 0.01
        self.register_buffer("scale", scale)
        self.space = torch.zeros(132, dtype=torch.int32)

    def forward(self, x):
        none, uint4b8 = self.none, scalar_types.uint4b8.id
        x2d = x.reshape(-1, self.k)
        return torch.ops._C.marlin_gemm(
            x2d, None, self.words, None, self.scale, None, None, none, none, none, self.space,
            uint4b8, x2d.shape[0], self.n, self.k, True, False, True, False,
        ).reshape(*x.shape[:-1], self.n)  # fmt: skip


class VllmFp8(nn.Module):
    """An fp8 layer, a scale each row and column, as vLLM runs it; its codes are random."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.n, self.k = linear.weight.shape
        self.register_buffer("weight", linear.weight.to(torch.float8_e4m3fn).t())
        self.register_buffer("scale", torch.rand(1, self.n) * 0.01)

    def forward(self, x):
        x2d = x.reshape(-1, self.k)
        q = torch.empty_like(x2d, dtype=torch.float8_e4m3fn)
        scale = torch.empty(x2d.shape[0], 1, dtype=torch.float32, device=x.device)
        torch.ops._C.dynamic_per_token_scaled_fp8_quant(q, x2d, scale, None)
        y = torch.empty(x2d.shape[0], self.n, dtype=x.dtype, device=x.device)
        torch.ops._C.cutlass_scaled_mm(y, q, self.weight, scale, self.scale, None)
        return y.reshape(*x.shape[:-1], self.n)


PEERS = {MARLIN: VllmMarlin, CUTLASS: VllmFp8}


def peers() -> tuple[str, ...]:
    """The models of vLLM's kernels that can run here."""
    library = Path(os.environ.get("PEERS", "")) / "_C_stable_libtorch.abi3.so"
    if not library.is_file():
        Console(stderr=True).print(f"without vLLM's kernels: there is no $PEERS/{library.name}")
        return ()
    torch.ops.load_library(str(library))
    return tuple(PEERS)


def build(recipe: str, layers: int, sizes: tuple[int, int, int], device: str) -> nn.Sequential:
    """The model in bfloat16, or with every linear layer quantized by a recipe."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for _ in track(range(layers), f"{recipe}: layers", transient=True):
        with torch.device(device):
            layer = Layer(*sizes).to(torch.bfloat16).requires_grad_(False)
            if recipe in PEERS:
                for name, linear in list(layer.named_children()):
                    setattr(layer, name, PEERS[recipe](linear))
        if recipe not in (BASE, *PEERS):
            quantize_(layer, recipe)  # layer by layer: the bf16 weights are never all there
        model.append(layer)
    return model.eval()


def seconds_per_step(model: nn.Module, batch: int, hidden: int, device: str) -> float:
    """The median time of a decode step: graph replays on a GPU, plain calls on a CPU."""
    x = torch.randn(batch, hidden, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        for _ in range(2):
            model(x)
        if device == "cpu":
            times = []
            for _ in range(5):
                start = time.perf_counter()
                model(x)
                times.append(time.perf_counter() - start)
            return sorted(times)[len(times) // 2]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(31)]
        for event in events:
            event.record()
            graph.replay()
        torch.cuda.synchronize()
        gaps = [a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]
        return sorted(gaps)[len(gaps) // 2] / 1e3


def weight_bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def run(recipes, batches, layers: int, small: bool) -> dict:
    """{"device", "layers", "rows": [{recipe, batch, bytes, us, tokens_per_second, speedup}]}."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not small:
        raise SystemExit("this needs a CUDA device; --small runs anywhere")
    sizes, layers = (SMALL, 2) if small else (LLAMA, layers)
    rows, base = [], {}
    for recipe in (BASE, *recipes, *(peers() if device == "cuda" else ())):
        model = build(recipe, layers, sizes, device)
        for batch in batches:
            seconds = seconds_per_step(model, batch, sizes[0], device)
            base.setdefault(batch, seconds)
            rows.append(
                {
                    "recipe": recipe,
                    "batch": batch,
                    "bytes": weight_bytes(model),
                    "us": seconds * 1e6,
                    "tokens_per_second": batch / seconds,
                    "speedup": base[batch] / seconds,
                }
            )
        del model
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"device": name, "layers": layers, "rows": rows}


def show(result: dict) -> None:
    table = Table(title=f"{result['layers']} layers' linears on {result['device']}")
    for column in ("recipe", "batch", "weights MB", "step us", "tokens/s", "to bf16"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for row in result["rows"]:
        table.add_row(
            row["recipe"],
            str(row["batch"]),
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['us']:.0f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['speedup']:.2f}x",
        )
    Console().print(table)


def draw(result: dict, folder: Path) -> Path:
    """Bars of tokens per second, a group for each batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    recipes = list(dict.fromkeys(row["recipe"] for row in result["rows"]))
    batches = list(dict.fromkeys(row["batch"] for row in result["rows"]))
    figure, panels = plt.subplots(
        1, len(batches), figsize=(3.4 * len(batches), 3.6), layout="constrained", squeeze=False
    )
    for panel, batch in zip(panels[0], batches, strict=True):
        values = [r["tokens_per_second"] for r in result["rows"] if r["batch"] == batch]
        bars = panel.bar(recipes, values, color=[f"C{i}" for i in range(len(recipes))])
        panel.bar_label(bars, fmt="%.0f")
        panel.set_title(f"batch {batch}")
        panel.tick_params("x", rotation=20)
    panels[0][0].set_ylabel("tokens per second, linears only")
    figure.suptitle(f"Llama-3-8B-shaped decode step on {result['device']}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama_decode.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(_) -> None:
    batches = [int(batch) for batch in FLAGS.batches]
    result = run(FLAGS.recipes, batches, FLAGS.layers, FLAGS.small)
    if FLAGS.json:
        print(json.dumps(result))
    else:
        show(result)
    path = draw(result, Path(FLAGS.out))
    if not FLAGS.json:
        Console().print(f"picture: {path}")


if __name__ == "__main__":
    define_flags()
    app.run(main)

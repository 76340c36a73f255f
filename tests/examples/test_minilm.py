# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The demo, on a handful of texts: every recipe, both sides, and what must hold of them."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import app
from rich.console import Console
from safetensors.numpy import load_file, save_file

import minilm
import minilm_corpus
import minilm_jax
from jaxkernels import scalar_types
from jaxkernels.mosaic.device import abstract_mesh
from selection.recipes import RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[2]

# The model's first two layers: a third of the time that six take to compile.
LAYERS = 2
# Its linear layers: 4 of 384 x 384, 1536 x 384, 384 x 1536 in each.
ELEMENTS = LAYERS * (4 * 384 * 384 + 2 * 384 * 1536)
OUTPUTS = LAYERS * (4 * 384 + 1536 + 384)
WEIGHT_BYTES = {
    "fp32": 4 * ELEMENTS,
    # One float32 scale an output.
    **dict.fromkeys(minilm.EIGHT_BIT, ELEMENTS + 4 * OUTPUTS),
    # A 16-bit scale a group, and with zero points one byte more.
    "w4a16-g128": ELEMENTS // 2 + 2 * ELEMENTS // 128,
    "w4a16-g64-zp": ELEMENTS // 2 + 3 * ELEMENTS // 64,
}
# Rounding to nearest keeps about this much of the embedding (a broken scale keeps almost nothing).
LEAST_MEAN_COSINE = {"fp32": 0.999999, "w4a16-g128": 0.9, "w4a16-g64-zp": 0.93}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The installed model, cut to its first layers."""
    try:
        whole = minilm.model_folder(None)
    except app.UsageError as error:
        pytest.skip(str(error))
    cut = tmp_path_factory.mktemp("model")
    config = json.loads((whole / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    (cut / "config.json").write_text(json.dumps(config))
    (cut / "tokenizer.json").symlink_to(whole / "tokenizer.json")
    arrays = load_file(whole / "model.safetensors")
    beyond = tuple(f"encoder.layer.{i}." for i in range(LAYERS, 6))
    kept = {name: array for name, array in arrays.items() if not name.startswith(beyond)}
    save_file(kept, cut / "model.safetensors", metadata={"format": "pt"})
    return cut


def run(folder, recipes, **changes):
    one_package = Path(sysconfig.get_paths()["stdlib"]) / "asyncio"
    corpus = minilm_corpus.read_corpus(one_package).sample(12)
    assert len(corpus) == 12
    settings = {"batch_tokens": 256, "lengths": [32], "rest": "float64"} | changes
    console = Console(quiet=True)
    return minilm.run(corpus, corpus.documents, folder, recipes, console=console, **settings)


@pytest.fixture(scope="module")
def results(folder):
    return {result.recipe: result for result in run(folder, minilm.SHOWN)}


@pytest.mark.parametrize("recipe", ["fp32", *minilm.SHOWN])
def test_recipe_runs_alike_on_both_sides(results, recipe):
    result = results[recipe]
    assert not result.refused
    assert set(result.sides) == {"torch", "JAX"}
    # In float64 between the layers, nothing is left but the linear layers themselves.
    assert result.sides_apart < 1e-6
    for side in result.sides.values():
        assert side.weight_bytes == WEIGHT_BYTES[recipe]
        assert side.quality["mean_cosine"] > LEAST_MEAN_COSINE.get(recipe, 0.98)
        assert np.allclose(np.linalg.norm(side.embeddings, axis=1), 1, atol=1e-5)
    if recipe != "fp32":
        # It really is quantized: the embedding is not the base's.
        assert all(side.quality["mean_cosine"] < 0.99999 for side in result.sides.values())


def test_four_bits_cost_more_than_eight(results):
    kept = {name: r.sides["JAX"].quality["mean_cosine"] for name, r in results.items()}
    assert kept["w4a16-g128"] < kept["w4a16-g64-zp"] < min(kept[name] for name in minilm.EIGHT_BIT)


def test_checks_pass_and_can_fail(results):
    listed = list(results.values())
    verdicts = minilm.checks(listed, full=False)
    assert len(verdicts) == 1 + len(minilm.SHOWN)
    assert all(held for held, _ in verdicts)
    worse = minilm.Result("w8a16", dict(results["w8a16"].sides))
    side = worse.sides["JAX"]
    quality = side.quality | {"top1": results["fp32"].sides["JAX"].quality["top1"] - 0.02}
    bent = side.embeddings[:, ::-1].copy()
    worse.sides["JAX"] = minilm.Side("broken", side.weight_bytes, 1.0, bent, quality)
    broken = [words for held, words in minilm.checks([listed[0], worse], full=True) if not held]
    assert len(broken) == 2
    assert "torch and JAX differ" in broken[0]
    assert "w8a16, JAX: top-1 +2.00 points below fp32" in broken[1]


def test_a_side_that_breaks_is_shown_and_fails_the_run(folder, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    base = run(folder, [])[0]
    monkeypatch.setattr(minilm_jax.Encoder, "encode", broken)
    result = run(folder, [])[0]
    assert list(result.sides) == ["torch"]
    assert "RESOURCE_EXHAUSTED" in result.failed["JAX"]
    assert [held for held, _ in minilm.checks([result], full=False)] == [False]
    assert [held for held, _ in minilm.checks([base], full=False)] == [True]


def test_a_recipe_that_cannot_run_says_why(folder, monkeypatch):
    odd = Recipe("w4a16-g100", "mp", scalar_types.uint4b8, 100)
    monkeypatch.setitem(RECIPES, odd.name, odd)
    result = run(folder, [odd.name])[-1]
    assert not result.sides
    for side in ("torch", "JAX"):
        assert "384 is not a multiple of the group size 100" in result.refused[side]
    console = Console(width=160)
    with console.capture() as shown:
        console.print(minilm.table([result]))
    assert shown.get().count("cannot run here") == 2


@pytest.mark.parametrize("recipe", minilm.SHOWN)
def test_jax_side_lowers_to_hopper_kernels(folder, recipe):
    """What the same command runs on an H200, lowered without one."""
    layers = [
        f"encoder.layer.{i}.{name}" for i in range(LAYERS) for name in minilm_jax.LINEAR_NAMES
    ]
    static_scales = dict.fromkeys(layers, (0.05, 3))
    tokens = jax.ShapeDtypeStruct((4, 32), np.int32)
    with jax.sharding.use_abstract_mesh(abstract_mesh("NVIDIA H200")):
        encoder = minilm_jax.Encoder(folder, recipe, static_scales, 128, "float64")
        with jax.enable_x64(True):
            traced = jax.jit(minilm_jax.encode).trace(encoder.params, tokens, tokens)
            lowered = traced.lower(lowering_platforms=("cuda",))
    assert encoder.kernel.endswith(": hopper")
    assert "mosaic_gpu" in lowered.as_text()


def test_command_prints_json_and_draws_the_picture(folder, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "examples" / "minilm.py", "--json", "--sample=8"),
            *("--recipes=w8a8-int8", "--lengths=16", "--batch_tokens=256"),
            *(f"--model={folder}", f"--out={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["pairs"] == 8
    assert [entry["recipe"] for entry in report["results"]] == ["fp32", "w8a8-int8"]
    assert all(entry["held"] for entry in report["checks"])
    sides = report["results"][1]["sides"]
    assert "Int8" in sides["torch"]["kernel"]
    assert sides["JAX"]["kernel"].startswith("scaled_mm: ")
    picture = tmp_path / "minilm.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert report["picture"] == str(picture)


def test_wrong_model_folder_is_refused(tmp_path):
    with pytest.raises(app.UsageError, match="--model: .* has no config.json"):
        minilm.model_folder(str(tmp_path))


def test_a_time_limit_leaves_what_was_done(capsys):
    before = signal.getsignal(signal.SIGTERM)
    done = []
    with minilm.stopped_with_what_is_done(Console()):
        done.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # until the signal is handled
        done.append(2)
    assert done == [1] and "INTERRUPTED" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


def _at_the_door(x):
    """The bits of float16 that a linear layer of the JAX side makes of its float64 input.

    Bits, for a float16 that becomes a float32 again XLA on a GPU may never have rounded.
    """
    return minilm_jax._linear(
        lambda y: jax.lax.bitcast_convert_type(y.astype(jnp.float16), jnp.uint16), x
    )


def _check_two_roundings():
    """A little off halfway between two float16: float32 loses the little, one rounding does not."""
    halfway = 1 + 2.0**-11 + np.arange(64) * 2.0**-10
    x = np.concatenate([halfway + 2.0**-40, halfway - 2.0**-40])[None]
    want = x.astype(np.float32).astype(np.float16)
    with jax.enable_x64(True):
        once = jax.lax.reduce_precision(jnp.asarray(x), exponent_bits=5, mantissa_bits=10)
        assert (np.asarray(once) != want).sum() == 64
        got = np.asarray(jax.jit(_at_the_door)(jnp.asarray(x)))
    np.testing.assert_array_equal(got, want.view(np.uint16))


def test_a_linear_layer_rounds_its_input_to_float32_first():
    _check_two_roundings()
    with jax.enable_x64(True):  # by arithmetic: XLA may make one conversion of two
        text = str(jax.make_jaxpr(_at_the_door)(jnp.zeros((1, 8), jnp.float64)))
    assert text.index("reduce_precision[exponent_bits=8 mantissa_bits=23]") < text.index("f16")


@pytest.mark.gpu
def test_gpu_a_linear_layer_rounds_its_input_to_float32_first():
    _check_two_roundings()

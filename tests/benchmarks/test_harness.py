# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The harness without a GPU: how much is timed, what operands mean, and the command line."""

import subprocess
import sys
from concurrent.futures import Future

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from benchmarks import operands, peers, suites, timing  # noqa: E402
from benchmarks.peers import common, mixed  # noqa: E402
from benchmarks.suites import FAMILIES, Cell  # noqa: E402


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(operands, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "copies", lambda nbytes: 2)
    monkeypatch.delenv("PEERS", raising=False)


def test_weights_rotate_beyond_the_cache():
    assert timing.copies(28672 * 4096) == 3  # few big ones, never fewer than three
    assert timing.copies(4096 * 4096) * 4096 * 4096 >= 160e6
    assert timing.copies(1) == 64


def test_graphs_last_about_a_millisecond():
    assert timing.rounds(5.0, 10) == 20 and timing.rounds(5.0, 10) * 10 * 5.0 == 1000.0
    assert timing.rounds(2000.0, 2) == 1 and timing.rounds(0.1, 1) == 40


def test_replays_are_bounded_both_ways():
    assert timing.replays(1000.0) == 10 and timing.replays(5000.0) == 4
    assert timing.replays(1e6) == 3


def test_wall_time_divides_by_the_calls():
    waits = []
    us = timing.wall_time(lambda: sum(range(20_000)), waits.append, 10, budget_us=2e3)
    assert len(waits) == 7 and 0 < us < 1e4


def weight_families():
    chosen = [f for f in FAMILIES.values() if f.suite in ("scaled_mm", "mixed_mm")]
    return [(f.name, g) for f in chosen for g in f.groups]


@pytest.mark.parametrize("family, group", weight_families())
def test_reference_is_the_product_of_dequantized_operands(family, group, on_cpu):
    cell = Cell(family, 5, 256, 512, group)
    w = operands.make_weights(cell)
    o = operands.make_operands(cell, w)
    assert len(w.data) == 2 and not torch.equal(
        w.data[0].view(torch.uint8), w.data[1].view(torch.uint8)
    )
    dense = w.dequantized()
    assert dense.shape == (256, 512) and dense.isfinite().all()
    x = o.x.double() if o.azp is None else o.x.double() - o.azp
    if o.x_scale is not None:
        x = x * o.x_scale.double().repeat_interleave(512 // o.x_scale.shape[1], 1)
    assert operands.rel_err(o.reference, (x @ dense.double().T).float()) < 1e-5
    assert o.reference.std() > 0.1


def test_low_nibble_is_the_even_element():
    packed = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
    assert operands.nibbles(packed).tolist() == [[1, 2, 3, 4]]


def test_dequantized_repeats_group_scales():
    q, scale = torch.ones(1, 4, dtype=torch.int8), torch.tensor([[2.0, 3.0]])
    assert operands.dequantized(q, scale).tolist() == [[2, 2, 3, 3]]
    azp = torch.tensor([[3]])
    assert operands.dequantized(q, torch.tensor([[2.0]]), azp).tolist() == [[-4.0] * 4]


def test_error_of_nan_never_passes():
    bad = operands.rel_err(torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert np.isnan(bad) and not bad <= 0.01


def test_gptq_words_hold_k_in_order(on_cpu):
    w = operands.make_weights(Cell("w4a16", 1, 64, 128, 128))
    word = mixed.gptq_words(w)[0]
    assert word.shape == (16, 64)
    codes = operands.nibbles(w.data[0])
    first = [(int(word[1, 3]) >> 4 * i) & 15 for i in range(8)]
    assert first == codes[3, 8:16].tolist()


def test_marlin_orders_are_permutations():
    scale = torch.arange(2 * 128.0).reshape(2, 128)
    for grouped in (True, False):
        order = mixed.marlin_scales(scale, grouped)
        assert not torch.equal(order, scale)
        assert torch.equal(order.flatten().sort().values, scale.flatten())
    zero = torch.randint(0, 16, (1, 64))
    words = mixed.marlin_zeros(zero)[0].tolist()
    back = sorted((w >> 4 * i) & 15 for w in words for i in range(8))
    assert back == sorted(zero[0].tolist())


def test_marlins_fp4_scales_keep_their_values(on_cpu):
    w = operands.make_weights(Cell("fp4-nv", 1, 64, 128, 16))
    scale, second = mixed.marlin_fp4_scales(w)
    code = scale.view(torch.uint8).int()  # five exponent bits and three of the mantissa
    value = (1 + (code & 7) / 8) * 2.0 ** ((code >> 3) - 15 - 7)
    assert torch.equal(value.flatten().sort().values, w.scale.float().flatten().sort().values)
    assert second.item() == w.global_scale.item() * 2.0**119
    w = operands.make_weights(Cell("fp4-mx", 1, 64, 128, 32))
    scale, second = mixed.marlin_fp4_scales(w)
    assert second is None
    assert torch.equal(scale.float().flatten().sort().values,
                       w.scale.float().flatten().sort().values)  # fmt: skip


def test_type_ids_are_vllms():
    from jaxkernels.scalar_types import scalar_types

    assert mixed.TYPE_IDS["fp4"] == scalar_types.float4_e2m1f.id
    assert mixed.TYPE_IDS["uint4b8"] == scalar_types.uint4b8.id
    assert mixed.TYPE_IDS["uint4"] == scalar_types.uint4.id
    assert mixed.TYPE_IDS["uint8b128"] == scalar_types.uint8b128.id
    assert mixed.TYPE_IDS["fp8"] == scalar_types.float8_e4m3fn.id


def test_every_peer_is_declared_once_a_family():
    sources = {"torch", "vllm", "deep_gemm", "humming", "xla"}
    for family in FAMILIES:
        table = peers.peers_of(family)
        names = [p.name for p in table]
        assert len(names) == len(set(names)), family
        assert {p.source for p in table} <= sources
    ineligible = {p.name for f in FAMILIES for p in peers.peers_of(f) if not p.eligible}
    assert {"torch._int_mm", "torch._scaled_mm tensorwise", "torch bf16 matmul"} <= ineligible


def test_a_peer_that_is_not_there_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("PEERS", raising=False)
    with pytest.raises(peers.Unavailable, match="PEERS is not set"):
        common.folder()
    monkeypatch.setenv("PEERS", str(tmp_path))
    with pytest.raises(peers.Unavailable, match="no deep_gemm/"):
        common.package.__wrapped__("deep_gemm")


@pytest.mark.parametrize("name", ["torch bf16 matmul", "xla"])
def test_portable_peers_agree_with_the_reference(name, on_cpu):
    for family, group in (("fp8", None), ("int8", None), ("w4a16", 128), ("w8a16-int8", -1)):
        cell = Cell(family, 8, 128, 256, group)
        o = operands.make_operands(cell, operands.make_weights(cell))
        built = next(p for p in peers.peers_of(family) if p.name == name).build(o)
        reference = built.reference() if built.reference else o.reference
        assert operands.rel_err(built.finish(built.calls[0]()), reference) < 0.01


@pytest.fixture
def fake_clock(monkeypatch):
    monkeypatch.setattr(timing, "graph_time", lambda calls: [c() for c in calls] and 4.0)


def done(value):
    future = Future()
    future.set_exception(value) if isinstance(value, Exception) else future.set_result(value)
    return future


def a_plan(function):
    """Our side of an fp8 cell, with `function` in the kernel's place."""
    from benchmarks.ours import Plan

    def arguments(o):
        return [(o.x, w, o.x_scale, o.weights.scale) for w in o.weights.data]

    return done((Plan(None, (), arguments, "a kernel", "Config(1)"), function))


def right(x, w, x_scale, w_scale):
    return (x.float() @ w.float().T) * x_scale * w_scale.T


FP8 = Cell("fp8", 4, 128, 256)


def test_a_cell_is_checked_and_timed(on_cpu, fake_clock):
    from benchmarks.measure import measure

    weights = operands.make_weights(FP8)
    record = measure(FP8, weights, a_plan(right), "NVIDIA H200", ["torch"], True)
    assert record["us"] == 4.0 and record["rel_err"] < 1e-5
    assert record["kernel"] == "a kernel" and record["config"] == "Config(1)"
    assert record["other_peers"]["torch bf16 matmul"] == 4.0
    assert "vllm cutlass_scaled_mm" not in {**record["peers"], **record.get("failed", {})}


def test_a_wrong_result_is_recorded_and_never_timed(on_cpu, fake_clock):
    from benchmarks.measure import measure

    weights = operands.make_weights(FP8)
    wrong = a_plan(lambda *a: right(*a) * 1.05)
    record = measure(FP8, weights, wrong, "NVIDIA H200", [], True)
    assert record["us"] is None and "relative error 0.05 is over 0.01" in record["failed"]["ours"]


def test_a_kernel_that_does_not_compile_keeps_its_reason(on_cpu, fake_clock):
    from benchmarks.measure import measure

    weights = operands.make_weights(FP8)
    broken = done(ValueError("k must be a multiple of 16\nand more"))
    record = measure(FP8, weights, broken, "NVIDIA H200", ["vllm"], True)
    assert record["failed"]["ours"] == "ValueError: k must be a multiple of 16"
    assert "PEERS is not set" in record["failed"]["vllm cutlass_scaled_mm"]


def run_cli(*args):
    command = [sys.executable, "-m", "benchmarks", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_cli_lists_cells_with_their_floors():
    done = run_cli("--suite", "scaled_mm", "--families", "fp8", "--ms", "1", "--list")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("floor") == 6 and "fp8 1x8192x28672" in done.stdout


def test_the_command_line_refuses_what_it_does_not_know():
    from absl import app

    from benchmarks.__main__ import main, shape_of

    assert shape_of("4096x8192") == (4096, 8192)
    for text in ("4096", "4096x", "axb"):
        with pytest.raises(ValueError, match="expected NxK"):
            shape_of(text)
    with pytest.raises(app.UsageError, match="flags only, got extra"):
        main(["benchmarks", "extra"])


def test_a_results_file_names_no_folder_of_its_machine():
    from benchmarks.__main__ import command_line

    asked = ["--suite", "quantize", "--out", "/somewhere", "--cap=40", "--ms", "1", "--resume"]
    assert command_line(asked) == "python -m benchmarks --suite quantize --ms 1"
    assert command_line(["--out=/x", "--suite=smoke"]) == "python -m benchmarks --suite=smoke"


def test_repro_line_selects_exactly_its_cell():
    from benchmarks.__main__ import repro, shape_of

    for suite in ("scaled_mm", "mixed_mm", "quantize"):
        for cell in suites.cells(suite)[::37]:
            words = repro(cell).replace("=", " ").split()
            flags = dict(zip(words[3::2], words[4::2], strict=True))
            groups = [int(flags["--groups"])] if "--groups" in flags else None
            again = suites.cells(
                flags["--suite"], [flags["--families"]], [shape_of(flags["--shapes"])],
                [int(flags["--ms"])], groups,
            )  # fmt: skip
            assert again == [cell]

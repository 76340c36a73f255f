# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The whole run on a CPU: kernels, clock and card are stand-ins, everything else is real."""

import json
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from absl import flags  # noqa: E402

from benchmarks import __main__ as cli  # noqa: E402
from benchmarks import operands, ours, suites, timing  # noqa: E402


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Parses flags as the command line does, and gives a CPU the part of the card."""
    monkeypatch.setattr(operands, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "copies", lambda nbytes: 2)
    monkeypatch.setattr(timing, "raise_clocks", lambda: None)
    monkeypatch.setattr(timing, "graph_time", lambda calls: [c() for c in calls] and 5.0)
    monkeypatch.setattr(cli, "machine", lambda: ("NVIDIA H200", "580", {"torch": "2.11.0"}))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.delenv("PEERS", raising=False)
    compiled = []

    def fake(cell):
        compiled.append(cell)
        if cell.m == 3:
            raise ValueError("m: 3 is refused")

        def function(x, w, x_scale, w_scale):
            return (x.float() @ w.float().T) * x_scale * w_scale.T

        def arguments(o):
            return [(o.x, w, o.x_scale, o.weights.scale) for w in o.weights.data]

        return ours.Plan(None, (), arguments, "fake", "Config()"), function

    monkeypatch.setattr(ours, "compiled", fake)

    def run(*arguments, ms=(2, 3), families=("fp8", "int8")):
        line = ["benchmarks", "--out", str(tmp_path), "--nodraw", "--peers=torch", *arguments]
        monkeypatch.setattr(sys, "argv", line)
        saved = flags.FLAGS.flag_values_dict()
        flags.FLAGS.unparse_flags()
        flags.FLAGS(line)
        try:
            failures = cli.run(suites.cells("scaled_mm", families, [(256, 512)], ms))
        finally:
            for name, value in saved.items():
                if name in ("out", "draw", "peers", "resume", "lock", "deadline", "eligible",
                            "retry_failed", "name", "suite"):  # fmt: skip
                    setattr(flags.FLAGS, name, value)
        (path,) = tmp_path.glob("*.json")
        return failures, json.loads(path.read_text()), compiled

    flags.FLAGS.mark_as_parsed()
    return run


def test_every_cell_leaves_a_record(stand_ins, capsys):
    failures, data, _ = stand_ins("--suite=scaled_mm")
    assert failures == 2 and len(data["records"]) == 4
    good = [r for r in data["records"] if r["us"]]
    assert [(r["family"], r["m"]) for r in good] == [("fp8", 2), ("int8", 2)]
    assert all(r["rel_err"] < 1e-5 and r["kernel"] == "fake" for r in good)
    bad = [r["failed"]["ours"] for r in data["records"] if not r["us"]]
    assert bad == ["ValueError: m: 3 is refused"] * 2
    assert data["header"]["command"] == "python -m benchmarks --peers=torch --suite=scaled_mm"
    assert "geometric means" in capsys.readouterr().out


def test_resume_measures_only_what_is_missing(stand_ins):
    stand_ins(families=("fp8",))
    _, data, compiled = stand_ins("--resume")
    assert [c.family for c in compiled] == ["fp8", "fp8", "int8", "int8"]
    assert len(data["records"]) == 4
    _, data, compiled = stand_ins("--resume", "--retry_failed")
    assert [c.m for c in compiled[4:]] == [3, 3] and len(data["records"]) == 4


def test_eligible_leaves_out_what_is_never_counted(stand_ins):
    _, data, _ = stand_ins("--eligible", ms=(2,))
    assert not any("other_peers" in r for r in data["records"])


def test_a_deadline_in_the_past_measures_nothing_more(stand_ins):
    stand_ins(families=("fp8",), ms=(2,))
    _, data, _ = stand_ins("--resume", f"--deadline={time.time() - 1}")
    assert len(data["records"]) == 1


def test_turns_are_taken_after_everything_is_compiled(stand_ins, tmp_path):
    lock = tmp_path / "lock"
    start = time.time()
    before = subprocess.Popen(["flock", lock, "sleep", "0.6"])
    time.sleep(0.2)  # until it has it
    _, data, compiled = stand_ins(f"--lock={lock}", ms=(2,))
    assert time.time() - start > 0.5 and len(data["records"]) == 2
    assert [c.family for c in compiled[:2]] == ["fp8", "int8"]
    assert before.wait() == 0
    assert subprocess.run(["flock", "-n", lock, "true"]).returncode == 0  # given back


def test_many_rows_are_checked_in_a_sample_with_both_ends(stand_ins, monkeypatch):
    monkeypatch.setattr(operands, "DEVICE", "cpu")
    cell = suites.Cell("fp8", 3000, 128, 256)
    o = operands.make_operands(cell, operands.make_weights(cell))
    assert len(o.rows) == 512 and o.rows[0] == 0 and o.rows[-1] == 2999
    assert len(o.rows.unique()) == 512 and o.reference.shape == (512, 128)

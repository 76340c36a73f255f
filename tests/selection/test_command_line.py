# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`python -m selection`: what people and machines get from each command."""

import json
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

import selection
from selection import __main__ as command_line
from selection import matrix


@pytest.fixture
def run(capsys):
    """Runs a command in this process: (arguments, flags) -> (exit status, output, errors)."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def run(*arguments, **values):
        with flagsaver.flagsaver(**values):
            status = command_line._run(["selection", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_explain_for_people(run):
    status, out, _ = run(
        "explain", device="a100", scheme=["w4a16-g128"], k=4096, n=14336, m=["1", "4096"]
    )
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == (
        "MarlinLinearKernel serves w4a16 uint4b8, group 128, bfloat16 on NVIDIA A100-SXM4-80GB."
    )
    assert [line.split(":")[0].strip() for line in lines[1:4]] == [
        "not CutlassW4A8LinearKernel",
        "not MacheteLinearKernel",
        "not AllSparkLinearKernel",
    ]
    assert lines[4].startswith("  SLOW PATH: XLA runs it, because hopper: needs an NVIDIA GPU")
    assert lines[5].startswith("  m=1 n=14336 k=4096: xla, no estimate; at least")
    assert lines[6].startswith("  m=4096 n=14336 k=4096: xla")
    assert len(lines) == 7


def test_explain_shows_implementation_config_estimate_and_bound(run):
    _, out, _ = run("explain", device="h200", scheme=["w8a8-int8"], m=["16", "8192"])
    small, large = out.splitlines()[-2:]
    assert small.startswith("  m=16 n=4096 k=4096: hopper, Config(tile_m=16")
    assert "; at least 3.89 us (memory bound)" in small and " about " in small
    assert "(tensor-core bound)" in large


def test_explain_for_machines(run):
    status, out, _ = run("explain", device="h200", scheme=["w8a8-int8"], m=["16"], json=True)
    (first,) = json.loads(out)
    assert status == 0
    assert first["kernel"] == "CutlassInt8ScaledMMLinearKernel" and first["list"] == "int8"
    assert first["device"] == "NVIDIA H200" and first["slow_path"] is None
    (plan,) = first["plans"]
    assert (plan["m"], plan["n"], plan["k"]) == (16, 4096, 4096)
    assert plan["implementation"] == "hopper" and plan["bound"] == "memory"
    assert plan["estimate_us"] > plan["floor_us"] > 1
    _, out, _ = run("explain", device="a100", scheme=["w8a8-int8", "mxfp4"], m=["16"], json=True)
    _, second = json.loads(out)
    assert second["rejected"] == [
        [
            "FlashInferMxFp4LinearKernel",
            "requires a device of capability 100, this one has 80",
        ]
    ]
    assert second["slow_path"] and second["plans"][0]["slow"]


def test_explain_a_layer_by_hand(run):
    _, out, _ = run(
        "explain",
        device="h200",
        weight_type="uint4",
        zero_points=True,
        group_size=64,
        act="float16",
        m=["1"],
    )
    assert out.startswith(
        "MacheteLinearKernel serves w4a16 uint4, group 64, float16, zero points on NVIDIA H200."
    )


def test_explain_with_a_backend_and_without_a_kernel(run):
    _, out, _ = run("explain", device="h200", scheme=["w4a16-g128"], backend="conch", m=["1"])
    assert out.startswith("ConchLinearKernel serves")
    _, out, _ = run("explain", device="h200", weight_type="uint2b2", group_size=128, m=["1"])
    assert out.startswith("Nothing serves w2a16 uint2b2")
    assert "cannot run here: weights of uint2b2 are not held" in out
    _, out, _ = run("explain", device="cpu", scheme=["w4a16-g128"], backend="conch", m=["1"])
    assert "note: --linear-backend=conch: this platform has no such kernel" in out


def test_explain_for_the_live_device(run):
    status, out, _ = run("explain", scheme=["w8a8-int8"], m=["4"])
    assert status == 0 and selection.current_platform.device.name in out.splitlines()[0]


def test_matrix_as_data(run):
    _, out, _ = run("matrix", devices=["h200", "cpu"], json=True)
    cells = json.loads(out)
    assert len(cells) == 2 * len(selection.SCHEMES)
    assert cells[0] == {
        "scheme": "w8a8-int8",
        "device": "h200",
        "kernel": "CutlassInt8ScaledMMLinearKernel",
        "implementation": "hopper",
        "slow": False,
    }


def test_matrix_for_people(run):
    _, out, _ = run("matrix", devices=["h200", "tpu-v5e"], scheme=["w8a8-int8", "w8a16"])
    for text in ("h200", "tpu-v5e", "CutlassInt8: hopper", "XlaInt8: xla", "Machete: hopper"):
        assert text in out


def test_matrix_as_markdown(run):
    _, out, _ = run("matrix", devices=["h200", "cpu"], scheme=["w8a8-int8"], markdown=True)
    assert out.splitlines() == [
        "| scheme | H200 | CPU |",
        "|---|---|---|",
        "| `w8a8-int8` int8, per token x per channel | CutlassInt8: **hopper** | CPUInt8: xla |",
    ]


def test_the_whole_matrix_serves_everything_everywhere():
    rows = matrix.matrix()
    assert [name for name, _ in rows] == list(selection.SCHEMES)
    for name, cells in rows:
        assert len(cells) == len(matrix.DEVICES_SHOWN)
        for cell in cells:
            assert cell.kernel is not None and cell.implementation is not None, (name, cell)
    table = matrix.markdown().splitlines()
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_diff(run):
    _, out, _ = run("diff", "t4", "l4", json=True)
    assert ["w8a8-fp8", "MarlinFP8: xla", "CutlassFP8: xla"] in json.loads(out)
    _, out, _ = run("diff", "h200", "h100")
    assert f"{len(selection.SCHEMES)} schemes are served alike." in out


def test_schemes_are_listed(run):
    _, out, _ = run("explain", scheme=["help"])
    assert all(name in out for name in selection.SCHEMES)


@pytest.mark.parametrize(
    ("arguments", "values", "words"),
    [
        (("explain",), {"scheme": ["w4"]}, "scheme: expected one of w8a8-int8"),
        (("explain",), {"device": "h300"}, "device: expected one of"),
        (("explain",), {"m": ["many"]}, "--m: expected whole numbers, got many"),
        (("explain",), {"m": ["0"]}, "at least 1; got 0"),
        (("explain",), {"weight_type": "int5"}, "--weight_type: expected one of int4"),
        (("diff", "h200"), {}, "expected explain, matrix or diff FIRST SECOND"),
        (("diff", "h200", "x"), {}, "device: expected one of"),
        ((), {}, "expected explain, matrix or diff FIRST SECOND, got nothing"),
    ],
)
def test_mistakes_are_one_line_and_a_status(run, arguments, values, words):
    status, out, err = run(*arguments, **values)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and words in err


def test_without_rich_the_output_is_plain(run, monkeypatch):
    for name in ("rich", "rich.console", "rich.table", "rich.text"):
        monkeypatch.setitem(sys.modules, name, None)
    _, out, _ = run("matrix", devices=["cpu"], scheme=["w8a8-int8"])
    assert out.splitlines()[1:] == ["scheme     cpu", "w8a8-int8  CPUInt8: xla"]
    _, out, _ = run("explain", device="cpu", scheme=["w8a8-int8"], m=["1"])
    assert out.startswith("CPUInt8ScaledMMLinearKernel serves w8a8 int8")


def test_as_a_program():
    command = [sys.executable, "-m", "selection", "explain", "--device=mi300x", "--m=1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)[0]["kernel"] == "TritonW4A16LinearKernel"

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""README's code runs, its generated parts are what their commands print, its links exist."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def readme_tool() -> dict:
    return runpy.run_path(str(ROOT / "tools" / "readme.py"))


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["y"].shape[-1] in (512, 1024)


def test_there_is_code_for_jax_and_for_torch():
    assert len(BLOCKS) == 2
    assert "import jax" in BLOCKS[0]
    assert "import torch" in BLOCKS[1]


def test_matrix_is_what_the_command_prints(readme_tool):
    printed = readme_tool["selection"](readme_tool["MATRIX"])
    assert readme_tool["part"](README, "matrix") == printed, "stale: run `make readme`"


def test_explanation_names_what_the_command_names(readme_tool):
    """Class names and reasons; not the tuned configs and estimates, which kernel work moves."""

    def stable(text):
        return [line for line in text.splitlines() if not line.strip().startswith(("m=", "$", "`"))]

    printed = stable(readme_tool["selection"](readme_tool["EXPLAIN"]))
    assert printed
    assert stable(readme_tool["part"](README, "explain")) == printed, "stale: run `make readme`"


def test_filled_replaces_between_the_markers_only(readme_tool):
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n"
    assert readme_tool["filled"](text, {"x": "new"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="y:begin"):
        readme_tool["filled"](text, {"y": "new"})


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("jax_linear", r"y \(3, 7, 512\) bfloat16, gradient \(3, 7, 1024\), rounding error 0\.00"),
        ("torch_module", r"2 layers quantized: \w+Int8\w+ x2(.|\n)*first bias: \(4096,\)"),
        (
            "why_this_kernel",
            r"MacheteLinearKernel serves .* on NVIDIA H200(.|\n)*"
            r"not MacheteLinearKernel: requires capability 90(.|\n)*"
            r"CPUWNA16LinearKernel serves",
        ),
    ],
)
def test_example_prints_what_it_is_about(example, says, capsys):
    runpy.run_path(str(ROOT / "examples" / f"{example}.py"), run_name="__main__")
    assert re.search(says, capsys.readouterr().out)

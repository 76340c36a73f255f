# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The walls of the house, read from the source: who may import whom, and who may ask what.

jaxkernels <- selection <- torch_bridge: nothing imports rightwards. torch is torch_bridge's alone.
Private and unstable JAX is jaxkernels/mosaic's alone, so that a JAX upgrade is one folder's work.
Two files ask what hardware is here: selection/platforms.py and jaxkernels/mosaic/device.py.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jaxkernels", "selection", "torch_bridge")

# Besides the standard library.
MAY_IMPORT = {
    "jaxkernels": {"jax", "jaxlib", "numpy", "absl", "jaxkernels"},
    "selection": {"jax", "numpy", "absl", "jaxkernels", "selection"},
    # Model files and vLLM are met at this edge: a checkpoint's reader, and the plugin's host.
    "torch_bridge": {
        *{"jax", "numpy", "absl", "jaxkernels", "selection", "torch_bridge", "torch"},
        *{"safetensors", "vllm"},
    },
}
# A command line may print prettily where it can; the package works without.
COMMAND_LINES = {"selection/__main__.py": {"rich"}}
UNSTABLE_FOLDER = "jaxkernels/mosaic/"
# Prefixes of module names. jax.experimental.pallas and its mosaic_gpu front end are the way in.
UNSTABLE_MODULES = ("jax._src", "jax.experimental.mosaic", "jax.interpreters", "jax.lib", "jaxlib")
# What reaches below Pallas: inline Mosaic and inline PTX.
UNSTABLE_NAMES = {"inline_mgpu", "inline_asm"}

HARDWARE_FILES = {"selection/platforms.py", "jaxkernels/mosaic/device.py"}
HARDWARE_QUESTIONS = {
    *{"jax.devices", "jax.local_devices", "jax.default_backend"},
    *{"jax.device_count", "jax.local_device_count"},
    *{"torch.cuda.is_available", "torch.cuda.get_device_capability", "torch.cuda.device_count"},
    *{"torch.cuda.get_device_properties", "torch.cuda.get_device_name"},
    *{"platform.machine", "platform.processor", "torch.version.cuda", "torch.version.hip"},
}
# The bridge may ask which device a tensor that it was given lies on, and what that device is.
DEVICE_OF_A_TENSOR = {
    "torch_bridge/streams.py": {"jax.local_devices"},
    "torch_bridge/layouts.py": {"torch.cuda.get_device_capability"},
    "torch_bridge/disk.py": {"torch.cuda.get_device_properties"},
    "torch_bridge/launch.py": {"torch.cuda.get_device_properties", "torch.cuda.is_available"},
}


def modules_imported(tree: ast.AST, file: str) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in the file, by its full name.

    `from a import b` gives a.b, for b may be a module; so do import_module("a") and strings
    that name a private module.
    """
    package = Path(file).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called in ("import_module", "__import__", "find_spec") and node.args:
                if isinstance(node.args[0], ast.Constant):
                    yield str(node.args[0].value), node.lineno


def dotted(node: ast.AST) -> str | None:
    """a.b.c of an attribute chain, or None where it does not start at a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def breaches(source: str, file: str) -> list[str]:
    """What `source`, as `file` of this repository, does that the rules forbid."""
    tree = ast.parse(source, file)
    package = file.split("/")[0]
    found = []

    def asks_for_hardware(name):
        allowed = HARDWARE_QUESTIONS if file in HARDWARE_FILES else DEVICE_OF_A_TENSOR.get(file, ())
        return name in HARDWARE_QUESTIONS and name not in allowed

    def is_unstable(module):
        return any(module == m or module.startswith(m + ".") for m in UNSTABLE_MODULES)

    # Names that stand for a module or something out of one: `pl` for jax.experimental.pallas.
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    for module, line in modules_imported(tree, file):
        top = module.split(".")[0]
        allowed = MAY_IMPORT[package] | COMMAND_LINES.get(file, set())
        if top not in allowed and top not in sys.stdlib_module_names:
            found.append(f"{file}:{line}: {package} may not import {module}")
        if is_unstable(module) and not file.startswith(UNSTABLE_FOLDER):
            found.append(f"{file}:{line}: only {UNSTABLE_FOLDER} may touch {module}")
        if asks_for_hardware(module):
            found.append(f"{file}:{line}: {module} asks for hardware")

    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = dotted(node)
        if name is None:
            continue
        first, _, rest = name.partition(".")
        full = f"{aliases.get(first, first)}.{rest}"
        if not file.startswith(UNSTABLE_FOLDER):
            private = any(p.startswith("_") and not p.startswith("__") for p in rest.split("."))
            if is_unstable(full) or (full.startswith("jax.") and first in aliases and private):
                found.append(f"{file}:{node.lineno}: only {UNSTABLE_FOLDER} may touch {full}")
            if node.attr in UNSTABLE_NAMES:
                found.append(f"{file}:{node.lineno}: {node.attr} belongs in {UNSTABLE_FOLDER}")
        if asks_for_hardware(full):
            found.append(f"{file}:{node.lineno}: {full} asks for hardware")
    return found


def source_files(*folders: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_package_keeps_the_rules(package):
    files = source_files(package)
    assert files, f"{package} has no source"
    found = [b for file in files for b in breaches((ROOT / file).read_text(), file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("jaxkernels/op.py", "import torch"),
        ("jaxkernels/op.py", "from selection import choose"),
        ("jaxkernels/op.py", "def f():\n    import selection.choose"),
        ("jaxkernels/op.py", "import importlib\nimportlib.import_module('torch')"),
        ("jaxkernels/op.py", "import scipy"),
        ("selection/choose.py", "from torch_bridge import linear"),
        ("selection/choose.py", "import torch"),
        ("torch_bridge/launch.py", "from jax._src import core"),
        ("torch_bridge/launch.py", "import tensorflow"),
        ("jaxkernels/mixed_mm/hopper.py", "from jax.experimental.mosaic import gpu"),
        ("jaxkernels/mixed_mm/hopper.py", "import jax\njax._src.core.Tracer"),
        ("jaxkernels/mixed_mm/hopper.py", "import jaxlib.mlir.ir as ir"),
        (
            "jaxkernels/mixed_mm/hopper.py",
            "from jax.experimental.pallas import mosaic_gpu as plgpu\nplgpu.inline_mgpu()",
        ),
        (
            "jaxkernels/mixed_mm/hopper.py",
            "from jax.experimental.pallas import mosaic_gpu as plgpu\nplgpu._private",
        ),
        ("selection/choose.py", "import jax\njax.devices('gpu')"),
        ("selection/choose.py", "from jax import default_backend"),
        ("torch_bridge/linear.py", "import torch\ntorch.cuda.get_device_capability()"),
        ("torch_bridge/dlpack.py", "import torch\ntorch.cuda.get_device_capability()"),
    ],
)
def test_a_breach_is_found(file, source):
    assert breaches(source, file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("jaxkernels/mixed_mm/hopper.py", "from jax.experimental.pallas import mosaic_gpu as p"),
        ("jaxkernels/mixed_mm/hopper.py", "from jaxkernels.mosaic import tiles\ntiles.swizzle"),
        ("jaxkernels/mosaic/tiles.py", "from jax._src import core\nimport jax.experimental.mosaic"),
        ("jaxkernels/mosaic/device.py", "import jax\njax.devices()"),
        ("selection/platforms.py", "import jax\njax.default_backend()"),
        ("selection/choose.py", "from jaxkernels import scaled_mm\nfrom . import platforms"),
        ("torch_bridge/linear.py", "import torch\nfrom selection import choose"),
    ],
)
def test_what_is_allowed_passes(file, source):
    assert not breaches(source, file)


_IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["torch"] = None  # any `import torch` now fails as if it were not installed
for name in ("jaxkernels", "selection"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from jax._src import xla_bridge
if xla_bridge.backends_are_initialized():
    sys.exit("an import started JAX's backends")
"""


def test_imports_without_torch_and_without_touching_a_device():
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_source_file_names_its_licence():
    folders = (*PACKAGES, "tests", "examples", "benchmarks", "tools")
    header = (
        "# SPDX-License-Identifier: Apache-2.0\n"
        "# SPDX-FileCopyrightText: 2026 the jaxkernels authors\n"
    )
    without = [
        file for file in source_files(*folders) if not (ROOT / file).read_text().startswith(header)
    ]
    assert not without, without

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Compiled kernels on disk: what comes back, what does not, and what a new process does with it."""

import json
import os
import subprocess
import sys
import threading
import time

import jax
import pytest

from jaxkernels.mosaic.binary import Binary
from jaxkernels.mosaic.compile import Buffer, KernelCall, Output, Program
from torch_bridge import disk

BINARY = Binary(
    b"\x7fELF of the kernel entry", "entry", 4096, 2, b"\x7fELF _mlir_ciface_f", "_mlir_ciface_f"
)
PROGRAM = Program(
    buffers=(
        Buffer("argument", (2, 3), "float32", 0),
        Buffer("constant", (), "bfloat16", fill=float("-inf")),
        Buffer("filled", (4,), "int8", fill=-7),
        Buffer("result", (2, 3), "float8_e4m3fn"),
    ),
    kernels=(KernelCall("first", b"module", (0, 1, 3)), KernelCall("second", b"other", (3, 2, 2))),
    arguments=(((2, 3), "float32"),),
    outputs=(Output(3, (3, 2), "int8"),),
    out_tree=jax.tree.structure(0),
)


@pytest.fixture
def where(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXKERNELS_CACHE_DIR", str(folder))
    monkeypatch.delenv("JAXKERNELS_CACHE", raising=False)
    monkeypatch.setattr(disk, "environment", lambda index: f"device {index}")
    return folder


def test_a_kernel_comes_back(where):
    assert disk.load_kernel("key", 0) is None
    disk.store_kernel("key", 0, BINARY)
    assert disk.load_kernel("key", 0) == BINARY
    assert disk.load_kernel("another", 0) is None and disk.load_kernel("key", 1) is None
    [file] = where.iterdir()
    assert file.stat().st_mode & 0o077 == 0 and where.stat().st_mode & 0o077 == 0


def store():
    disk.store_program("asked", 0, PROGRAM)
    for kernel in PROGRAM.kernels:
        disk.store_kernel(kernel.key, 0, BINARY)


def test_a_program_comes_back_with_its_kernels(where, monkeypatch):
    store()
    found = disk.load_program("asked", 0)
    assert found.buffers == PROGRAM.buffers and found.outputs == PROGRAM.outputs
    assert found.arguments == PROGRAM.arguments and found.out_tree == PROGRAM.out_tree
    assert [(k.key, k.buffers, k.binary) for k in found.kernels] == [
        ("first", (0, 1, 3), BINARY),
        ("second", (3, 2, 2), BINARY),
    ]
    assert disk.load_program("asked", 1) is None
    assert disk.load_program("asked something else", 0) is None
    monkeypatch.setattr(disk, "source", lambda: "edited")
    assert disk.load_program("asked", 0) is None


def test_settings_are_part_of_what_was_asked(where, monkeypatch):
    store()
    monkeypatch.setenv("MOSAIC_GPU_SOMETHING", "1")
    assert disk.load_program("asked", 0) is None
    monkeypatch.delenv("MOSAIC_GPU_SOMETHING")
    assert disk.load_program("asked", 0) is not None
    with jax.enable_x64(True):
        assert disk.load_program("asked", 0) is None


def test_a_program_without_all_its_kernels_is_none(where):
    disk.store_program("asked", 0, PROGRAM)
    disk.store_kernel("first", 0, BINARY)
    assert disk.load_program("asked", 0) is None


def test_only_what_returns_one_array_is_kept(where):
    many = Program(**{**vars(PROGRAM), "out_tree": jax.tree.structure((0, 0))})
    disk.store_program("asked", 0, many)
    assert not where.exists() or not list(where.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: c[:10],
        lambda c: c[:-1],
        lambda c: c + b"more",
        lambda c: b"another program's file\n" + c,
        lambda c: c[:-3] + bytes([c[-3] ^ 1]) + c[-2:],
        lambda c: c.replace(b"jaxkernels 1\n", b"jaxkernels 2\n"),
    ],
    ids=["empty", "header", "cut", "longer", "foreign", "flipped", "version"],
)
def test_damaged_files_are_as_good_as_none(where, damage):
    disk.store_kernel("key", 0, BINARY)
    [file] = where.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert disk.load_kernel("key", 0) is None
    file.write_bytes(whole)
    assert disk.load_kernel("key", 0) == BINARY


def test_a_file_about_something_else_is_not_taken(where):
    disk.store_kernel("key", 0, BINARY)
    [file] = where.iterdir()
    file.rename(disk._path(where, "kernel", "other device 0"))
    assert disk.load_kernel("other", 0) is None


def test_it_can_be_switched_off(where, monkeypatch):
    store()
    monkeypatch.setenv("JAXKERNELS_CACHE", "0")
    assert disk.folder() is None and disk.load_kernel("first", 0) is None
    disk.store_kernel("third", 0, BINARY)
    monkeypatch.delenv("JAXKERNELS_CACHE")
    assert disk.load_kernel("third", 0) is None and disk.load_kernel("first", 0) == BINARY
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTX", "1")  # who wants to see a compilation gets one
    assert disk.folder() is None


def test_a_folder_that_others_write_to_is_not_used(where):
    where.mkdir()
    where.chmod(0o777)
    with pytest.warns(UserWarning, match="may be written by, other users"):
        disk.store_kernel("key", 0, BINARY)
    assert not list(where.iterdir()) and disk.load_kernel("key", 0) is None


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXKERNELS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(disk, "environment", lambda index: "device")
    with pytest.warns(UserWarning, match="not kept on disk: cannot use"):
        disk.store_kernel("key", 0, BINARY)
    assert disk.load_kernel("key", 0) is None


def test_the_longest_unused_go_first(where, monkeypatch):
    monkeypatch.setattr(disk, "_written", {"bytes": 0, "next": 0})
    monkeypatch.setenv("JAXKERNELS_CACHE_BYTES", "5000")
    (where.parent / "cache").mkdir(mode=0o700)
    (where / "notes.txt").write_text("not ours")
    now = time.time()
    for i in range(40):
        disk.store_kernel(f"key {i}", 0, BINARY)
        path = disk._path(where, "kernel", f"key {i} device 0")
        if path.exists():
            os.utime(path, (now - 1000 + i, now - 1000 + i))
        disk.load_kernel("key 0", 0)  # used all the time
    sizes = [f.stat().st_size for f in where.glob("kernel-*")]
    assert sum(sizes) <= 5000 + 5000 // 8 + max(sizes) and len(sizes) > 5
    assert disk.load_kernel("key 0", 0) == BINARY and disk.load_kernel("key 39", 0) == BINARY
    assert disk.load_kernel("key 1", 0) is None
    assert (where / "notes.txt").exists()


def test_readers_beside_writers_see_whole_files(where, monkeypatch):
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            found = disk.load_kernel("key", 0)
            if found is not None and found != BINARY:
                wrong.append(found)

    def write():
        while not stop.is_set():
            disk.store_kernel("key", 0, BINARY)

    monkeypatch.setattr(disk, "_warn", wrong.append)
    threads = [threading.Thread(target=f) for f in (read, read, write, write)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        disk._written["next"] = 0  # looks at all files each time, some of them half written
        disk.store_kernel("key", 0, BINARY)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and disk.load_kernel("key", 0) == BINARY
    assert len(list(where.iterdir())) == 1


# -- on a GPU -------------------------------------------------------------------------------------

SCRIPT = """
import json, sys, time, torch
from torch_bridge import QuantLinear, launch, warmup
traced = []
lower = launch.lower_program
launch.lower_program = lambda *a: traced.append(1) or lower(*a)
library = launch.mosaic_compile.kernel_library()
compiled = []
plain = library.compile
library.compile = lambda module: compiled.append(1) or plain(module)
torch.manual_seed(0)
layer = QuantLinear.from_linear(torch.nn.Linear(512, 384, device="cuda").bfloat16(), sys.argv[1])
start = time.perf_counter()
count = warmup(layer, 48)
seconds = time.perf_counter() - start
x = torch.randn(48, 512, device="cuda", dtype=torch.bfloat16)
graph = torch.cuda.CUDAGraph()
with torch.no_grad():
    sums = [layer(x[:m]).double().abs().sum().item() for m in (1, 5, 48)]
    with torch.cuda.graph(graph):
        y = layer(x[:16])  # warmed up and never run
graph.replay()
sums.append(y.double().abs().sum().item())
print(json.dumps([count, len(traced), len(compiled), sums, seconds]))
"""


@pytest.mark.gpu
def test_gpu_a_new_process_loads_and_computes_the_same(tmp_path):
    def process():
        environment = {**os.environ, "JAXKERNELS_CACHE_DIR": str(tmp_path / "cache")}
        environment.pop("JAXKERNELS_CACHE", None)
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, "w8a8-fp8"],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        return json.loads(run.stdout.splitlines()[-1])

    count, traced, compiled, sums, _ = process()
    assert traced == count == 8 and compiled >= count
    again, traced, compiled, same, seconds = process()
    assert (again, traced, compiled, same) == (count, 0, 0, sums) and seconds < 3

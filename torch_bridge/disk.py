# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Compiled kernels on disk: a new process loads what an earlier one traced, lowered and compiled.

Two kinds of file, each found by the hash of everything that its content follows from:

    program   which buffers, which kernels in which order; by what was asked (scheme, shapes,
              dtypes) and the source of this project, so that nothing is traced
    kernel    a `Binary`; by the lowered module's hash

and both by the versions of JAX and its plugin, the GPU, the CPU (host code is compiled for it) and
the settings that a trace reads. A file holds its whole key and a checksum: one that is cut off,
altered or about something else is as good as none. Files appear under their name at once, whole.

    JAXKERNELS_CACHE_DIR     the folder; default $XDG_CACHE_HOME/jaxkernels or ~/.cache/jaxkernels
    JAXKERNELS_CACHE=0       neither read nor write
    JAXKERNELS_CACHE_BYTES   at most this much, the longest unused goes first; default 1 GiB

The files are code that will run, so a folder that other users may write to is not used.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import struct
import tempfile
import threading
import warnings
from pathlib import Path

import jax
import torch

import jaxkernels
from jaxkernels.mosaic import compile as mosaic_compile
from jaxkernels.mosaic.binary import Binary, looks_right

_MAGIC = b"jaxkernels 1\n"
_LEAF = jax.tree.structure(0)
_PACKAGES = ("jax", "jaxlib", "jax-cuda13-pjrt", "jax-cuda13-plugin", "jax-cuda12-pjrt",
             "jax-cuda12-plugin", "nvidia-cuda-nvcc", "nvidia-nvjitlink")  # fmt: skip


def folder() -> Path | None:
    """Where compiled kernels are kept, made if need be; None where they are not."""
    dumps = any(name.startswith("MOSAIC_GPU_DUMP") for name in os.environ)  # wants a compilation
    if dumps or os.environ.get("JAXKERNELS_CACHE", "1").lower() in ("0", "off", "false", "no"):
        return None
    given = os.environ.get("JAXKERNELS_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return _usable(Path(given) if given else Path(base) / "jaxkernels")


@functools.cache
def _usable(path: Path) -> Path | None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as e:
        _warn(f"cannot use {path}: {e.strerror}")
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        _warn(f"{path} belongs to, or may be written by, other users, and what it holds is code")
        return None
    return path


@functools.cache
def _warn(what: str) -> None:
    warnings.warn(f"torch_bridge: compiled kernels are not kept on disk: {what}", stacklevel=4)


@functools.cache
def environment(index: int) -> str:
    """What compiled code for a CUDA device depends on, besides what it computes."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    plugin = mosaic_compile.kernel_library().path
    status = os.stat(plugin) if plugin else None
    gpu = torch.cuda.get_device_properties(index)
    return repr(
        {
            "versions": versions,
            "plugin": status and (status.st_size, status.st_mtime_ns),
            "gpu": (gpu.name, gpu.major, gpu.minor, gpu.multi_processor_count),
            "cpu": _cpu(),
        }
    )


def _cpu() -> str:
    """A hash of what this machine's CPU is and can do."""
    try:
        with open("/proc/cpuinfo") as f:
            first = f.read().split("\n\n")[0].splitlines()
    except OSError:
        first = []
    told = [line for line in first if line.split("\t")[0] in ("vendor_id", "model name", "flags")]
    return hashlib.sha256("\n".join((os.uname().machine, *told)).encode()).hexdigest()


def _settings() -> str:
    """What a trace reads besides its arguments."""
    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion")
    paths = ("_PATH", "_ROOT")
    mosaic = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("MOSAIC_GPU_") and not name.endswith(paths)
    }
    return repr(([getattr(jax.config, name, None) for name in names], mosaic))


@functools.cache
def source() -> str:
    """A hash of every file that decides what is computed."""
    packages = [Path(jaxkernels.__file__).parent, Path(__file__).parent]
    found = hashlib.sha256()
    for package in packages:
        for path in sorted(package.rglob("*")):
            if path.suffix in (".py", ".json") and path.is_file():
                found.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return found.hexdigest()


# -- kernels and programs -------------------------------------------------------------------------


def load_kernel(key: str, index: int) -> Binary | None:
    """The kernel of a module with this key (`KernelCall.key`) for a device, if there is one."""
    found = _read("kernel", f"{key} {environment(index)}")
    if found is None:
        return None
    header, (cubin, host) = found
    binary = Binary(cubin=cubin, host=host, **header)
    return binary if looks_right(binary) else None


def store_kernel(key: str, index: int, binary: Binary) -> None:
    header = dataclasses.asdict(binary)
    blobs = [header.pop("cubin"), header.pop("host")]
    _write("kernel", f"{key} {environment(index)}", header, blobs)


def _program_key(asked: str, index: int) -> str:
    return f"{asked} {source()} {_settings()} {environment(index)}"


def load_program(asked: str, index: int) -> mosaic_compile.Program | None:
    """The program for what was asked, its kernels all there; else None."""
    found = _read("program", _program_key(asked, index))
    if found is None:
        return None
    header, _ = found
    kernels = []
    for key, buffers in header["kernels"]:
        binary = load_kernel(key, index)
        if binary is None:
            return None
        kernels.append(mosaic_compile.KernelCall(key, b"", tuple(buffers), binary))
    return mosaic_compile.Program(
        buffers=tuple(
            mosaic_compile.Buffer(**{**b, "shape": tuple(b["shape"])}) for b in header["buffers"]
        ),
        kernels=tuple(kernels),
        arguments=tuple((tuple(shape), dtype) for shape, dtype in header["arguments"]),
        outputs=tuple(
            mosaic_compile.Output(**{**o, "shape": tuple(o["shape"])}) for o in header["outputs"]
        ),
        out_tree=_LEAF,
    )


def store_program(asked: str, index: int, program: mosaic_compile.Program) -> None:
    """Keeps a program that returns one array."""
    if program.out_tree != _LEAF:
        return
    header = {
        "buffers": [dataclasses.asdict(b) for b in program.buffers],
        "kernels": [(k.key, k.buffers) for k in program.kernels],
        "arguments": program.arguments,
        "outputs": [dataclasses.asdict(o) for o in program.outputs],
    }
    _write("program", _program_key(asked, index), header, [])


# -- files ----------------------------------------------------------------------------------------


def _path(where: Path, kind: str, key: str) -> Path:
    return where / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}"


def _read(kind: str, key: str):
    """(header, blobs) of a whole file about this key, or None."""
    where = folder()
    if where is None:
        return None
    path = _path(where, kind, key)
    try:
        content = path.read_bytes()
        os.utime(path)  # used now
    except OSError:
        return None
    start = len(_MAGIC) + 32
    body = memoryview(content)[start:]
    if (
        content[: len(_MAGIC)] != _MAGIC
        or hashlib.sha256(body).digest() != content[start - 32 : start]
    ):
        return None
    sizes = struct.unpack_from("<4Q", body)
    parts, offset = [], 32
    for size in sizes:
        parts.append(bytes(body[offset : offset + size]))
        offset += size
    if parts[0].decode() != key:
        return None
    return json.loads(parts[1]), parts[2:]


def _write(kind: str, key: str, header, blobs) -> None:
    where = folder()
    if where is None:
        return
    parts = [key.encode(), json.dumps(header).encode(), *blobs]
    parts += [b""] * (4 - len(parts))
    body = struct.pack("<4Q", *map(len, parts)) + b"".join(parts)
    try:
        with tempfile.NamedTemporaryFile(dir=where, prefix="tmp-", delete=False) as f:
            f.write(_MAGIC + hashlib.sha256(body).digest() + body)
        os.replace(f.name, _path(where, kind, key))
        _bound(where, len(body))
    except OSError as e:
        _warn(f"writing to {where}: {e.strerror}")


_written = {"bytes": 0, "next": 0}
_bound_lock = threading.Lock()


def _bound(where: Path, size: int) -> None:
    """Deletes the longest unused files where there is more than allowed; looks every 16 MiB."""
    limit = int(os.environ.get("JAXKERNELS_CACHE_BYTES", 1 << 30))
    with _bound_lock:
        _written["bytes"] += size
        if _written["bytes"] < _written["next"]:
            return
        _written["next"] = _written["bytes"] + min(16 << 20, limit // 8)
        files = []
        for entry in os.scandir(where):
            if entry.name.startswith(("kernel-", "program-", "tmp-")):
                with contextlib.suppress(FileNotFoundError):  # another process has renamed it
                    status = entry.stat()
                    files.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size

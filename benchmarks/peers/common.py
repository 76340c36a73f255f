# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What a peer is, and where the peers that are not torch's are found: the folder $PEERS."""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.operands import Operands, Weights

Call = Callable[[], object]


class Unavailable(Exception):
    """A peer that cannot run here, with the reason."""


@dataclass
class Built:
    """A peer ready to be timed: one call per weight copy; `finish` turns call 0's result into the
    family's float result; `reference` where the peer has weights of its own."""

    calls: list[Call]
    finish: Callable[[object], torch.Tensor] = lambda out: out
    reference: Callable[[], torch.Tensor] | None = None
    time: Callable[[], float] | None = None  # for peers that torch's graphs cannot capture


@dataclass(frozen=True)
class Peer:
    name: str
    build: Callable[[Operands], Built]
    eligible: bool = True
    source: str = "torch"  # torch | vllm | deep_gemm | humming | xla


def folder() -> Path:
    path = os.environ.get("PEERS")
    if not path:
        raise Unavailable("$PEERS is not set")
    return Path(path)


@functools.cache
def vllm_ops():
    """torch.ops._C with vLLM's compiled ops registered."""
    library = folder() / "_C_stable_libtorch.abi3.so"
    if not library.exists():
        raise Unavailable(f"no {library.name} in $PEERS")
    torch.ops.load_library(str(library))
    return torch.ops._C


@functools.cache
def package(name: str):
    """A Python package from $PEERS."""
    root = folder()
    if not (root / name).is_dir():
        raise Unavailable(f"no {name}/ in $PEERS")
    cache = os.environ.get("PEER_JIT_CACHE", str(root.parent / "jit"))
    os.environ.setdefault("DG_JIT_CACHE_DIR", f"{cache}/deep_gemm")
    os.environ.setdefault("HUMMING_CACHE_DIR", f"{cache}/humming")
    for entry in sys.path:  # humming compiles in a process that must find NVRTC's builtins
        library = Path(entry) / "nvidia/cu13/lib"
        if library.is_dir():
            paths = os.environ.get("LD_LIBRARY_PATH", "")
            os.environ["LD_LIBRARY_PATH"] = f"{library}:{paths}"
            break
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return __import__(name)


def once(weights: Weights, what: str, make: Callable[[], object]):
    """`make()` the first time it is asked for these weights, its result afterwards."""
    if what not in weights.packed:
        weights.packed[what] = make()
    return weights.packed[what]

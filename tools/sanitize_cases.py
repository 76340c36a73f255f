# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Runs one family's kernels at small shapes, for `tools/sanitize.sh`.

    python tools/sanitize_cases.py FAMILY          or --list, for the families' names

Layers go through `QuantLinear`, quantization through the public ops; both launch kernels directly,
so that a sanitizer sees little besides them. Shapes have ragged edges and rings longer than K. None
is split over a cluster: racecheck knows `barrier.cluster` alone, and takes every store to another
block's shared memory that a barrier in memory orders for a hazard ("a block that might have already
exited"; 13.0, seen 2026-11-28). memcheck of such a product was clean, and it gives the same bits.
"""

import copy
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from jaxkernels import (
    dequantize,
    mixed_mm,
    quantize,
    quantize_fp8,
    quantize_fp8_group,
    quantize_int8,
    scalar_types,
    w4a8_linear,
)
from jaxkernels.mixed_mm import prepare_w4a8, split_scales
from jaxkernels.mixed_mm.prepare import prepare
from torch_bridge import QuantLinear, compile_kernel
from torch_bridge.dlpack import to_torch

LAYERS = {
    "int8": ("w8a8-int8", (264, 512)),
    "fp8": ("w8a8-fp8", (256, 2176)),
    "fp8-block": ("fp8-block", (320, 1024)),
    "fp8-block-odd-k": ("fp8-block", (320, 1168)),
    "w4a16": ("w4a16-g128", (264, 512)),
    "w4a16-zp": ("w4a16-g64-zp", (264, 512)),
    "w8a16": ("w8a16", (256, 512)),
}
# Weights that no recipe makes: type, group, granularity or act-order, shape.
WEIGHTS = {
    "nvfp4": (scalar_types.float4_e2m1f, 16, None, (264, 528)),
    "mxfp4": (scalar_types.float4_e2m1f, 32, None, (264, 544)),
    "fp8-blocks": (scalar_types.float8_e4m3fn, 128, "block", (264, 448)),
    "int8-g16": (scalar_types.int8, 16, None, (264, 528)),
    "act-order": (scalar_types.uint4b8, 128, "act-order", (264, 512)),
}
W4A8 = {"w4a8-fp8": split_scales, "w4a8-int8": lambda w: w}  # by the activations' type
QUANTIZATIONS = {
    "quantize-int8": (
        lambda x, scale: quantize_int8(x),
        lambda x, scale: quantize_int8(x, symmetric=False),
        lambda x, scale: quantize_int8(x, scale)[0],
    ),
    "quantize-fp8": (
        lambda x, scale: quantize_fp8(x),
        lambda x, scale: quantize_fp8(x, per_token=False),
        lambda x, scale: quantize_fp8(x, scale)[0],
    ),
    "quantize-group": (
        lambda x, scale: quantize_fp8_group(x, 128),
        lambda x, scale: quantize_fp8_group(x, 64, ue8m0=True),
        lambda x, scale: quantize_fp8_group(x, 128, column_major=True, tma_aligned=True),
    ),
}


def run_layer(recipe: str, n: int, k: int) -> int:
    plain = nn.Linear(k, n).requires_grad_(False)  # on the CPU: cuBLAS has hazards of its own
    layer = QuantLinear.from_linear(copy.deepcopy(plain).to("cuda", torch.bfloat16), recipe)
    runs = 0
    for rows in (1, 24, 192):
        x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
        got, want = layer(x).float().cpu(), plain(x.float().cpu())
        error = float((got - want).norm() / want.norm())
        assert error < 0.2, (recipe, rows, error)
        runs += 1
    return runs


def run_weights(kind, group: int, granularity: str | None, shape: tuple[int, int]) -> int:
    generator = np.random.default_rng(0)
    values = jnp.asarray(generator.standard_normal(shape), jnp.float32)
    if granularity == "act-order":
        g_idx = jnp.asarray(generator.permutation(shape[1]) // group, jnp.int32)
        weight = dataclasses.replace(quantize(values, kind, group), g_idx=g_idx)
    else:
        weight = quantize(values, kind, group, granularity=granularity)
    exact = np.asarray(dequantize(weight))
    leaves, tree = jax.tree.flatten(prepare(weight))
    given = [to_torch(leaf) for leaf in leaves]
    for rows in (1, 24, 192):
        x = torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16)
        kernel = compile_kernel(lambda x, *w: mixed_mm(x, tree.unflatten(w)), x, *given)
        got = kernel(x, *given).float().cpu().numpy()
        want = x.float().cpu().numpy() @ exact.T
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error < 0.01, (kind, rows, error)
    return 3


def run_w4a8(family: str) -> int:
    generator = np.random.default_rng(0)
    values = jnp.asarray(generator.standard_normal((264, 640)), jnp.bfloat16)
    weight = W4A8[family](quantize(values, scalar_types.int4, 128))
    exact = np.asarray(dequantize(weight))
    leaves, tree = jax.tree.flatten(prepare_w4a8(weight))
    given = [to_torch(leaf) for leaf in leaves]
    for rows in (1, 24, 192):
        x = torch.randn(rows, 640, device="cuda", dtype=torch.bfloat16)
        kernel = compile_kernel(lambda x, *w: w4a8_linear(x, tree.unflatten(w)), x, *given)
        got = kernel(x, *given).float().cpu().numpy()
        want = x.float().cpu().numpy() @ exact.T
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error < 0.05, (family, rows, error)
    return 3


def run_quantization(family: str) -> int:
    shapes = [(3, 1408), (8, 1024)] if "group" in family else [(7, 1025), (3, 130), (8, 4096)]
    runs = 0
    for op in QUANTIZATIONS[family]:
        for shape in shapes:
            x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
            scale = torch.full((1, 1), 0.03, device="cuda")
            kernel = compile_kernel(lambda *a, op=op: tuple(jax.tree.leaves(op(*a))), x, scale)
            for out in kernel(x, scale):
                assert bool(torch.isfinite(out.float()).all()), (family, shape)
            runs += 1
    return runs


def main(family: str) -> None:
    torch.manual_seed(0)
    if family in LAYERS:
        recipe, (n, k) = LAYERS[family]
        runs = run_layer(recipe, n, k)
    elif family in WEIGHTS:
        runs = run_weights(*WEIGHTS[family])
    elif family in W4A8:
        runs = run_w4a8(family)
    else:
        runs = run_quantization(family)
    torch.cuda.synchronize()
    print(f"ran {runs} launches of {family}")


if __name__ == "__main__":
    families = (*LAYERS, *WEIGHTS, *W4A8, *QUANTIZATIONS)
    if len(sys.argv) != 2 or sys.argv[1] not in (*families, "--list"):
        sys.exit(f"usage: sanitize_cases.py --list|{'|'.join(families)}")
    if sys.argv[1] == "--list":
        print(*families)
    else:
        main(sys.argv[1])

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""One list of layers through every way there is to run them.

    plain    torch, written here from the formats' definitions, in float64 where it matters
    jax      `torch_bridge.runner.linear` under jax.jit
    dlpack   the same through `wrap`, on torch tensors
    layer    `Runner`: on a GPU direct launches, on a CPU JAX behind DLPack
    vllm     vLLM's compiled ops, on a GPU with $PEERS

8-bit integers agree with `plain` bit for bit, but for the order of the last float32 products, which
may tip one rounding in a hundred; everything else is at most twice as far from the float64 result
as the same sum in torch at x's precision.
"""

import dataclasses
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxkernels import quantize, scalar_types
from jaxkernels.quantized import QuantizedTensor, dequantize
from torch_bridge import wrap
from torch_bridge.dlpack import to_jax, to_torch
from torch_bridge.layouts import to_layout
from torch_bridge.runner import Operands, Scheme, linear, runner_for

FP8 = torch.float8_e4m3fn


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what comes in; `how` x is cut out of more: "rows", "every other", "columns"."""

    name: str
    weight: str
    group: int | None = None
    granularity: str | None = None
    zero_points: bool = False
    activation: str | None = None
    static: bool = False
    dtype: torch.dtype = torch.bfloat16
    m: int = 5
    n: int = 128
    k: int = 512
    bias: bool = True
    how: str = "rows"

    def __str__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}-{dtype}-{self.m}x{self.n}x{self.k}-{self.how}"


HALF = torch.float16
CASES = [
    Case("int8", "int8", activation="int8"),
    Case("int8", "int8", activation="int8", dtype=HALF, m=1, bias=False),
    Case("int8", "int8", activation="int8", m=130, n=264, k=768, how="every other"),
    Case("int8-static", "int8", activation="int8", static=True),
    Case("int8-asym", "int8", activation="int8-asym"),
    Case("int8-asym", "int8", activation="int8-asym", dtype=HALF, m=67, how="columns"),
    Case("int8-asym-static", "int8", activation="int8-asym", static=True, m=33),
    Case("int8-tensor", "int8", granularity="tensor", activation="int8"),
    Case("fp8", "float8_e4m3fn", activation="fp8"),
    Case("fp8", "float8_e4m3fn", activation="fp8", dtype=HALF, m=130, n=264, bias=False),
    Case("fp8-static", "float8_e4m3fn", activation="fp8-tensor", static=True, m=33),
    Case("fp8-tensor", "float8_e4m3fn", granularity="tensor", activation="fp8-tensor", m=16),
    Case("fp8-block", "float8_e4m3fn", 128, "block", activation="fp8-group", n=256, m=33),
    Case("w4a16", "uint4b8", 128),
    Case("w4a16", "uint4b8", 32, dtype=HALF, m=1, bias=False),
    Case("w4a16", "uint4b8", 64, m=200, n=264, k=768, how="every other"),
    Case("w4a16", "int4", -1, m=17, how="columns"),
    Case("w4a16-zp", "uint4", 64, zero_points=True, m=65),
    Case("w8a16", "uint8b128", 128, m=16),
    Case("w8a16", "int8", -1, dtype=HALF, m=33),
    Case("w8a16-fp8", "float8_e4m3fn", -1, m=7),
    Case("w8a16-fp8-block", "float8_e4m3fn", 128, "block", n=256, m=9),
    Case("nvfp4", "float4_e2m1f", 16, m=17),
    Case("mxfp4", "float4_e2m1f", 32, m=130, n=264),
]


@functools.cache
def layer(case: Case, device: str):
    """(x, operands with torch leaves, bias) on a device; the same numbers on each."""
    rng = np.random.default_rng(CASES.index(case))
    weight = jnp.asarray(rng.standard_normal((case.n, case.k)).astype(np.float32)) * 0.05
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        w = quantize(
            jax.device_put(weight, jax.local_devices(backend="cpu")[0]),
            getattr(scalar_types, case.weight),
            -1 if case.group is None else case.group,
            zero_points=case.zero_points,
            granularity=case.granularity,
            scale_dtype=None if case.activation else str(case.dtype).removeprefix("torch."),
        )
        w = jax.tree.map(lambda a: to_torch(a, copy=True).to(device), w)
    m, k = case.m, case.k
    x = torch.from_numpy(rng.standard_normal((2 * m, 2 * k)).astype(np.float32) + 0.25)
    x = x.to(case.dtype).to(device)
    x = {"rows": x[:m, :k].contiguous(), "every other": x[::2, :k], "columns": x[:m, ::2]}[case.how]
    bias = torch.from_numpy(rng.standard_normal(case.n).astype(np.float32)).to(case.dtype)
    x_scale = azp = adj = None
    if case.static:
        largest = x.float().abs().max().item()
        limit = 448.0 if case.activation.startswith("fp8") else 127.0
        x_scale = torch.tensor([[largest / limit]], dtype=torch.float32, device=device)
    if case.activation == "int8-asym":
        adj = w.data.sum(1, dtype=torch.int32).reshape(1, -1)
        if case.static:
            azp = torch.tensor([[-9]], dtype=torch.int32, device=device)
            adj = adj * azp
    return x, Operands(w, x_scale, azp, adj), bias.to(device) if case.bias else None


def weight_of(case: Case, operands: Operands) -> torch.Tensor:
    """The float64 weight [N, K] as it acts, by JAX's plain `dequantize` on the host."""
    w = jax.tree.map(lambda t: t.cpu(), operands.w)
    arrays = jax.tree.map(to_jax, w)
    return to_torch(dequantize(arrays, jnp.float32)).double()


def divide(a, b) -> torch.Tensor:
    """The nearest float32: torch itself multiplies by a reciprocal where one is a number."""
    a, b = (torch.as_tensor(v, dtype=torch.float32).double() for v in (a, b))
    return (a / b).float()


def activations(case: Case, operands: Operands, x: torch.Tensor):
    """(codes in float64, scale [M or 1, 1 or groups], zero point) of x, as the formats define."""
    x = x.float()
    if case.activation is None:
        return x.double(), torch.ones(1, 1), 0
    if case.static:
        scale, zero = operands.x_scale.cpu(), operands.azp
        if case.activation == "int8":
            return divide(x, scale).round().clamp(-128, 127).double(), scale, 0
        if case.activation == "int8-asym":
            q = ((x * divide(1, scale)).round() + zero.cpu()).clamp(-128, 127)
            return q.double(), scale, zero.cpu().double()
        return (x * divide(1, scale)).clamp(-448, 448).to(FP8).double(), scale, 0
    if case.activation == "int8":
        largest = x.abs().amax(1, keepdim=True)
        return (x * divide(127, largest)).round().clamp(-128, 127).double(), divide(largest, 127), 0
    if case.activation == "int8-asym":
        least, most = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        scale = divide(most - least, 255)
        zero = (-128 - divide(least, scale)).round()
        return (
            ((x * divide(1, scale)).round() + zero).clamp(-128, 127).double(),
            scale,
            zero.double(),
        )
    if case.activation == "fp8-group":
        groups = x.reshape(x.shape[0], -1, 128)
        scale = groups.abs().amax(2).clamp(min=1e-10) / 448
        return (groups / scale[..., None]).to(FP8).double().reshape(x.shape), scale, 0
    largest = x.abs().amax(1, keepdim=True) if case.activation == "fp8" else x.abs().max()
    scale = (largest / 448).clamp(min=1 / (448 * 512)).reshape(-1, 1)
    q = x / scale if case.activation == "fp8" else x * divide(1, scale)
    return q.clamp(-448, 448).to(FP8).double(), scale, 0


def plain(case: Case):
    """(float64 result, bound of the error; or None, what int8 arithmetic gives and its terms)."""
    x, operands, bias = layer(case, "cpu")
    weight = weight_of(case, operands)
    q, scale, zero = activations(case, operands, x)
    spread = scale.double().repeat_interleave(128, 1) if scale.shape[1] > 1 else scale.double()
    acting = (q - zero) * spread
    want = acting @ weight.T
    same = (acting.to(case.dtype).float() @ weight.to(case.dtype).float().T).double()
    if case.weight == "int8" and case.activation:
        total = ((q - zero) @ operands.w.data.double().T).float()
        product = total * operands.w.scale.float().reshape(1, -1) * scale.float()
        added = torch.zeros(1) if bias is None else bias.float()
        return None, ((product + added).to(case.dtype), product.abs() + added.abs())
    if bias is not None:
        want, same = want + bias.double(), same + bias.double()
    bound = 2 * (same.to(case.dtype).double() - want).abs().max()
    return want, bound + want.abs().max() * torch.finfo(case.dtype).eps / 2


def check(case: Case, y: torch.Tensor, route: str) -> None:
    want, bound = plain(case)
    assert y.dtype is case.dtype and y.shape == (case.m, case.n), route
    y = y.cpu()
    if want is None:
        exact, terms = bound
        off = (y.double() - exact.double()).abs()
        unit = exact.double().abs() * torch.finfo(case.dtype).eps + terms.double() * 2.0**-22
        assert (off <= unit).all(), f"{route}: {(off / unit).max():.1f} units of the last place"
        assert (off > 0).double().mean() < 0.01, route
    else:
        error = (y.double() - want).abs().max()
        assert error <= bound, f"{route}: error {error:.3e}, bound {bound:.3e}"


def scheme_of(case: Case) -> Scheme:
    return Scheme(case.activation, ("hopper", "xla"))


def by_jax(case: Case, device: str) -> torch.Tensor:
    x, operands, bias = layer(case, device)
    arrays = jax.tree.map(to_jax, (x.contiguous(), operands, bias))
    return to_torch(jax.jit(functools.partial(linear, scheme_of(case)))(*arrays), copy=True)


def by_dlpack(case: Case, device: str) -> torch.Tensor:
    return wrap(functools.partial(linear, scheme_of(case)))(*layer(case, device))


def by_layer(case: Case, device: str) -> torch.Tensor:
    x, operands, bias = layer(case, device)
    if device == "cuda" and case.activation is None:
        operands = operands._replace(w=to_layout(operands.w, "hopper_fragment"))
    runner = runner_for(scheme_of(case), operands)
    y = runner(x.contiguous(), jax.tree.leaves(operands), bias)
    routes = {route for _, _, where, route in runner.variants() if where.type == device}
    assert routes == {"direct" if device == "cuda" else "jax"}
    return y


ROUTES = {"jax": by_jax, "dlpack": by_dlpack, "layer": by_layer}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, route):
    check(case, ROUTES[route](case, "cpu"), route)


def test_the_reference_notices():
    """A scale that is off by one part in a hundred, and one wrong code, both fail."""
    for case in (CASES[0], CASES[8], CASES[13]):
        y = by_layer(case, "cpu")
        with pytest.raises(AssertionError):
            check(case, (y.float() * 1.01).to(y.dtype), "scaled")
        bad = y.clone()
        bad[0, 0] += 1 + bad[0, 0].abs()
        with pytest.raises(AssertionError):
            check(case, bad, "one number")


# -- on a GPU -------------------------------------------------------------------------------------


# One case of each kind by direct launches, and each of JAX's routes through its own few.
ONE_OF_EACH = list({case.name: case for case in CASES}.values())
BY_JAX = ("int8-asym", "fp8-block", "w4a16-zp")


@pytest.mark.gpu
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_gpu_direct(case):
    check(case, by_layer(case, "cuda"), "layer")


@pytest.mark.gpu
@pytest.mark.parametrize("route", ["jax", "dlpack"])
@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if c.name in BY_JAX], ids=str)
def test_gpu_through_jax(case, route):
    check(case, ROUTES[route](case, "cuda"), route)


def by_vllm(case: Case) -> torch.Tensor:
    ops = torch.ops._C
    x, operands, bias = layer(case, "cuda")
    x, w = x.contiguous(), operands.w
    out = torch.empty(case.m, case.n, dtype=case.dtype, device="cuda")
    if case.activation is None:
        return by_marlin(ops, case, x, w, bias)
    q = torch.empty_like(x, dtype=torch.int8 if case.weight == "int8" else FP8)
    scale = torch.empty(case.m, 1, dtype=torch.float32, device="cuda")
    azp = adj = None
    if case.weight == "int8":
        if case.static:
            scale = operands.x_scale.reshape(1)
            azp = None if operands.azp is None else operands.azp.reshape(1)
            ops.static_scaled_int8_quant(q, x, scale, azp)
        else:
            if case.activation == "int8-asym":
                azp = torch.empty(case.m, 1, dtype=torch.int32, device="cuda")
            ops.dynamic_scaled_int8_quant(q, x, scale, azp)
        adj = operands.azp_adj
    else:
        ops.dynamic_per_token_scaled_fp8_quant(q, x, scale, None)
    w_scale = w.scale.T.contiguous()
    if adj is None:
        ops.cutlass_scaled_mm(out, q, w.data.T, scale, w_scale, bias)
    else:
        per_token = None if case.static else azp
        ops.cutlass_scaled_mm_azp(out, q, w.data.T, scale, w_scale, adj, per_token, bias)
    return out


def by_marlin(ops, case: Case, x, w: QuantizedTensor, bias) -> torch.Tensor:
    none = torch.empty(0, dtype=torch.int32, device="cuda")
    words = w.data.view(torch.int32).T.contiguous()
    words = ops.gptq_marlin_repack(words, none, case.k, case.n, w.scalar_type.size_bits, False)
    order = [i + 8 * j for i in range(8) for j in range(8)]
    scale = w.scale.T.contiguous()
    scale = scale.reshape(-1, 64)[:, order].reshape(scale.shape).contiguous()
    space = torch.zeros(132, dtype=torch.int32, device="cuda")
    y = ops.marlin_gemm(
        x, None, words, None, scale, None, None, none, none, none, space, w.scalar_type.id,
        case.m, case.n, case.k, True, False, True, False,
    )  # fmt: skip
    return y if bias is None else (y.float() + bias.float()).to(y.dtype)


def vllm_takes(case: Case) -> bool:
    if case.activation is None:
        return case.weight in ("uint4b8", "uint8b128") and case.n % 64 == 0
    if case.n % 16:
        return False
    return case.name in ("int8", "int8-static", "int8-asym", "int8-asym-static", "fp8")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case", {c.name: c for c in reversed(CASES) if vllm_takes(c)}.values(), ids=str
)
def test_gpu_vllms_kernels_agree(case):
    """The same layer by vLLM's ops, int8 bit for bit with ours."""
    library = Path(os.environ.get("PEERS", "")) / "_C_stable_libtorch.abi3.so"
    if not library.is_file():
        pytest.skip("vLLM's compiled ops are not in $PEERS")
    torch.ops.load_library(str(library))
    theirs, ours = by_vllm(case), by_layer(case, "cuda")
    if case.weight == "int8" and case.activation:
        same = (theirs == ours).double().mean().item()
        assert same == 1.0, f"{100 * same:.2f}% of the bits agree"
    elif case.activation:
        check(case, theirs, "vllm")
    else:
        # Marlin adds no bias before its rounding, so it rounds once more.
        error = (theirs.float() - ours.float()).norm() / ours.float().norm()
        assert error < 2 * torch.finfo(case.dtype).eps

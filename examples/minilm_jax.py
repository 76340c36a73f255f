# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""all-MiniLM-L6-v2's encoder in pure JAX, with a linear layer that the caller chooses.

The parameters are one pytree. A linear layer is any pytree with `__call__(x[M, K]) -> y[M, N]`,
float32 in and out: `Dense` is the plain one, `Quantized` has a recipe applied. What is between the
linear layers (embeddings, layer norms, softmax, GELU, the residual stream) is in one dtype for
every recipe; examples/minilm.py says why that is float64.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import minilm_corpus
from jaxkernels import QuantizedTensor, mixed_mm, w8a8_linear
from jaxkernels.explain import explain_choice
from jaxkernels.mixed_mm.prepare import prepare
from jaxkernels.mosaic.device import trace_device
from jaxkernels.problem import MixedMMProblem, ScaledMMProblem
from selection.recipes import RECIPES, Recipe

# Activations at a quantized layer's door, in and out.
COMPUTE_DTYPE = jnp.float16

# A layer's six linear layers, by their names in the checkpoint.
LINEAR_NAMES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """y = x @ weight.T + bias in float32; weight [N, K], bias [N]."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.matmul(x, self.weight.T, precision=jax.lax.Precision.HIGHEST) + self.bias


def load(
    folder: Path, make_linear: Callable[[str, np.ndarray, np.ndarray], Any], dtype: Any
) -> dict:
    """The encoder's parameters out of `folder`/model.safetensors, in `dtype`.

    make_linear(name, weight [N, K], bias [N]) is called once for each of the encoder's linear
    layers with float32 arrays and the name of that module in torch ("encoder.layer.0....").
    """
    config = json.loads((folder / "config.json").read_text())
    arrays = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in load_file(folder / "model.safetensors").items()
    }

    def array(name):
        return jnp.asarray(arrays[name], dtype)

    def norm(name):
        return array(f"{name}.weight"), array(f"{name}.bias")

    def layer(i):
        prefix = f"encoder.layer.{i}"
        linears = {
            name: make_linear(
                f"{prefix}.{name}",
                arrays[f"{prefix}.{name}.weight"],
                arrays[f"{prefix}.{name}.bias"],
            )
            for name in LINEAR_NAMES
        }
        return linears | {
            "attention.norm": norm(f"{prefix}.attention.output.LayerNorm"),
            "output.norm": norm(f"{prefix}.output.LayerNorm"),
        }

    embeddings = "embeddings.{}_embeddings.weight"
    return {
        "word": array(embeddings.format("word")),
        # Every token is of type 0, so that row joins the position's.
        "position": array(embeddings.format("position"))
        + array(embeddings.format("token_type"))[0],
        "norm": norm("embeddings.LayerNorm"),
        "layers": [layer(i) for i in range(config["num_hidden_layers"])],
    }


def _layer_norm(x, weight_and_bias, epsilon=1e-12):
    weight, bias = weight_and_bias
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + epsilon) * weight + bias


def _linear(layer, x):
    """A linear layer on the last axis of x: float32 at its door, and 32-bit JAX inside.

    Rounded to float32 by arithmetic: of float64 to float32 to float16 XLA makes one rounding on a
    GPU, which differs from two in one value of 17000, and each may tip an 8-bit code. (On an H200,
    2026-11-28, before: 2.6e-3 of cosine between torch and JAX with `w8a8-int8`.)
    """
    if x.dtype == jnp.float64:
        x = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=23)
    with jax.enable_x64(False):
        y = layer(x.astype(jnp.float32).reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], -1).astype(x.dtype)


def _attention(layer, x, mask, heads):
    batch, length, width = x.shape

    def project(name):
        y = _linear(layer[f"attention.self.{name}"], x)
        return y.reshape(batch, length, heads, width // heads)

    query, key, value = project("query"), project("key"), project("value")
    exact = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=exact)
    scores = scores / math.sqrt(width // heads)
    scores = jnp.where(mask[:, None, None, :] > 0, scores, jnp.finfo(x.dtype).min)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), value, precision=exact)
    return _linear(layer["attention.output.dense"], mixed.reshape(x.shape))


def encode(params: dict, ids: jax.Array, mask: jax.Array, *, heads: int = 12) -> jax.Array:
    """Sentence embeddings: the mean of the last layer over real tokens, scaled to length 1.

    ids and mask are int32 [B, L], mask 1 on real tokens; returns [B, 384].
    """
    x = params["word"][ids] + params["position"][: ids.shape[1]]
    x = _layer_norm(x, params["norm"])
    for layer in params["layers"]:
        x = _layer_norm(x + _attention(layer, x, mask, heads), layer["attention.norm"])
        hidden = jax.nn.gelu(_linear(layer["intermediate.dense"], x), approximate=False)
        x = _layer_norm(x + _linear(layer["output.dense"], hidden), layer["output.norm"])
    weights = mask[..., None].astype(x.dtype)
    pooled = (x * weights).sum(1) / weights.sum(1)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)


def device_name() -> str:
    device = jax.devices()[0]
    return device.device_kind if device.platform != "cpu" else "CPU"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "bias", "x_scale", "azp", "azp_adj"],
    meta_fields=["activation"],
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized linear layer: float32 in and out, COMPUTE_DTYPE between.

    activation is what `jaxkernels.w8a8_linear` takes, or None for 16-bit activations. x_scale, azp
    and azp_adj (azp times the sum of each row of weight) are those of a static scheme.
    """

    weight: QuantizedTensor
    bias: jax.Array
    activation: str | None
    x_scale: jax.Array | None = None
    azp: jax.Array | None = None
    azp_adj: jax.Array | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(COMPUTE_DTYPE)
        if self.activation is None:
            y = mixed_mm(x, self.weight, bias=self.bias)
        else:
            y = w8a8_linear(
                x,
                self.weight,
                activation=self.activation,
                bias=self.bias,
                x_scale=self.x_scale,
                azp=self.azp,
                azp_adj=self.azp_adj,
            )
        return y.astype(jnp.float32)


def chosen_kernels(layers: Sequence[Dense | Quantized], m: int) -> str:
    """The op and the implementation that run these layers for m rows here, in words."""
    found = set()
    for layer in layers:
        if isinstance(layer, Dense):
            found.add("jnp.matmul")
            continue
        w, (n, k) = layer.weight, layer.weight.shape
        dtype = jnp.dtype(COMPUTE_DTYPE).name
        if layer.activation is None:
            problem = MixedMMProblem(
                *(m, n, k, w.scalar_type, dtype, dtype),
                group_size=w.group_size,
                granularity=w.granularity,
                zero_points=w.zero_point is not None,
                bias=True,
                layout=w.layout,
                scale_dtype=w.scale.dtype.name,
            )
            op = "mixed_mm"
        else:
            x_scale = "token" if layer.x_scale is None else "tensor"
            azp = None if layer.azp is None else "static"
            problem = ScaledMMProblem(
                *(m, n, k, w.data.dtype.name, w.data.dtype.name, dtype, x_scale),
                *("channel", True, azp),
            )
            op = "scaled_mm"
        found.add(f"{op}: {explain_choice(problem, trace_device()).name}")
    return ", ".join(sorted(found))


def quantized_linear(
    recipe: Recipe, weight: np.ndarray, bias: np.ndarray, static: tuple[float, int] | None
) -> Quantized:
    """The layer with `recipe` applied. static is its input's (scale, zero point), if it has one."""
    # From 16-bit weights, as a checkpoint would have them: scales of groups are then 16-bit too.
    w = recipe.quantize(jnp.asarray(weight, COMPUTE_DTYPE))
    if recipe.activation is None and trace_device().is_hopper:
        w = prepare(w)  # the order in which the Hopper kernels read it
    layer = Quantized(w, jnp.asarray(bias, COMPUTE_DTYPE), recipe.activation)
    if not recipe.static:
        return layer
    scale, azp = static
    return dataclasses.replace(
        layer,
        x_scale=jnp.float32(scale),
        azp=jnp.int32(azp),
        azp_adj=azp * jnp.sum(w.data, axis=1, dtype=jnp.int32),
    )


class Encoder:
    """The encoder with one recipe applied, compiled once for each shape of batch.

    "fp32" is the encoder as it is. static_scales hold (scale, zero point) of each linear layer's
    input by the layer's name; static recipes need them. rows is how many tokens a batch has, rest
    the dtype of what is between the linear layers.

    Attributes:
      kernel: the ops and implementations that run the linear layers.
      weight_bytes: of the encoder's linear layers, without biases.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str,
        static_scales: dict[str, tuple[float, int]],
        rows: int,
        rest: Any,
    ):
        layers = []

        def make_linear(name, weight, bias):
            if recipe == "fp32":
                layer = Dense(jnp.asarray(weight), jnp.asarray(bias))
            elif RECIPES[recipe].static and name not in static_scales:
                raise ValueError(f"{recipe}: no static scale for {name}; the torch side finds it")
            else:
                with jax.enable_x64(False):
                    found = static_scales.get(name)
                    layer = quantized_linear(RECIPES[recipe], weight, bias, found)
            layers.append(layer)
            return layer

        self._wide = jnp.dtype(rest) == jnp.float64
        with jax.enable_x64(self._wide):
            self.params = load(folder, make_linear, rest)
        self.kernel = chosen_kernels(layers, rows)
        self.weight_bytes = sum(layer.weight.nbytes for layer in layers)
        self._encode = jax.jit(encode)

    def encode(self, batch: minilm_corpus.Batch) -> np.ndarray:
        """float32 [B, 384]."""
        with jax.enable_x64(self._wide):
            rows = self._encode(self.params, batch.ids, batch.mask)
        return np.asarray(rows, np.float32)

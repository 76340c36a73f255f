# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""all-MiniLM-L6-v2's encoder in pure JAX, with a linear layer that the caller chooses.

The parameters are one pytree. A linear layer is any pytree with `__call__(x[M, K]) -> y[M, N]`:
`Dense` here is the float32 one; examples/minilm.py puts quantized ones in its place.
Embeddings, layer norms, softmax, GELU and the residual stream stay float32 in every recipe.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

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


def load(folder: Path, make_linear: Callable[[str, np.ndarray, np.ndarray], Any]) -> dict:
    """The encoder's parameters out of `folder`/model.safetensors.

    make_linear(name, weight [N, K], bias [N]) is called once for each of the encoder's linear
    layers, with the name that torch's BertModel gives that module ("encoder.layer.0....").
    """
    config = json.loads((folder / "config.json").read_text())
    arrays = {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in load_file(folder / "model.safetensors").items()
    }

    def norm(name):
        return jnp.asarray(arrays[f"{name}.weight"]), jnp.asarray(arrays[f"{name}.bias"])

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
        "word": jnp.asarray(arrays[embeddings.format("word")]),
        # Every token is of type 0, so that row joins the position's.
        "position": jnp.asarray(
            arrays[embeddings.format("position")] + arrays[embeddings.format("token_type")][0]
        ),
        "norm": norm("embeddings.LayerNorm"),
        "layers": [layer(i) for i in range(config["num_hidden_layers"])],
    }


def _layer_norm(x, weight_and_bias, epsilon=1e-12):
    weight, bias = weight_and_bias
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + epsilon) * weight + bias


def _attention(layer, x, mask, heads):
    batch, length, width = x.shape

    def project(name):
        y = layer[f"attention.self.{name}"](x.reshape(-1, width))
        return y.reshape(batch, length, heads, width // heads)

    query, key, value = project("query"), project("key"), project("value")
    exact = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=exact)
    scores = scores / np.sqrt(width // heads).astype(np.float32)
    scores = jnp.where(mask[:, None, None, :] > 0, scores, jnp.finfo(jnp.float32).min)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), value, precision=exact)
    return layer["attention.output.dense"](mixed.reshape(-1, width)).reshape(x.shape)


def encode(params: dict, ids: jax.Array, mask: jax.Array, *, heads: int = 12) -> jax.Array:
    """Sentence embeddings: the mean of the last layer over real tokens, scaled to length 1.

    ids and mask are int32 [B, L], mask 1 on real tokens; returns float32 [B, 384].
    """
    x = params["word"][ids] + params["position"][: ids.shape[1]]
    x = _layer_norm(x, params["norm"])
    for layer in params["layers"]:
        x = _layer_norm(x + _attention(layer, x, mask, heads), layer["attention.norm"])
        flat = x.reshape(-1, x.shape[-1])
        hidden = jax.nn.gelu(layer["intermediate.dense"](flat), approximate=False)
        x = _layer_norm(x + layer["output.dense"](hidden).reshape(x.shape), layer["output.norm"])
    weights = mask[..., None].astype(x.dtype)
    pooled = (x * weights).sum(1) / weights.sum(1)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

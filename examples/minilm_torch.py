# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The torch side of examples/minilm.py: transformers' BertModel, its linear layers replaced."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

import minilm_corpus
import torch_bridge
from selection.recipes import RECIPES

# Activations at a quantized layer's door, in and out.
COMPUTE_DTYPE = torch.float16


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if device().type == "cuda" else "CPU"


def load_model(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """BertModel from the folder, in `dtype`, on the GPU where torch has one."""
    # Its report on the pooler's two unused arrays is noise here.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(
        folder, add_pooling_layer=False, dtype=dtype, local_files_only=True
    )
    return model.eval().to(device())


def embed(model: torch.nn.Module, batch: minilm_corpus.Batch) -> torch.Tensor:
    """Sentence embeddings [B, 384]: the mean over real tokens, scaled to length 1."""
    ids = torch.from_numpy(batch.ids).to(device(), torch.int64)
    mask = torch.from_numpy(batch.mask).to(device(), torch.int64)
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


class Island(torch.nn.Module):
    """A linear layer in a dtype of its own inside a model of another."""

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.linear, self.dtype = linear.to(dtype), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # By way of float32, as on the JAX side: float64 straight to 16 bits rounds differently.
        return self.linear(x.float().to(self.dtype)).to(x.dtype)


class Encoder:
    """BertModel with one recipe applied; "fp32" is the model as it is.

    calibration is run by static recipes; rows is how many tokens a batch has, rest the dtype of
    what is between the linear layers.

    Attributes:
      kernel: the kernel class that was chosen for the linear layers, and what runs it.
      weight_bytes: of the encoder's linear layers, without biases.
      static_scales: a static recipe's (scale, zero point) by layer, found by calibration.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str,
        calibration: Sequence[minilm_corpus.Batch],
        rows: int,
        rest: torch.dtype,
    ):
        self.model = load_model(folder, rest)
        self.static_scales: dict[str, tuple[float, int]] = {}
        linears = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        dtype = torch.float32 if recipe == "fp32" else COMPUTE_DTYPE
        for name, module in linears.items():
            self.model.set_submodule(name, Island(module, dtype))
        if recipe == "fp32":
            self.kernel = "torch.nn.Linear"
            self.weight_bytes = sum(module.weight.nbytes for module in linears.values())
            return

        def calibrate(_):
            for batch in calibration:
                embed(self.model, batch)

        report = torch_bridge.quantize_(self.model, recipe, calibration=calibrate)
        self.kernel = ", ".join(report.kernels)
        ran = {
            layer.choice.plan(rows, layer.out_features, layer.in_features).implementation
            for layer in report.replaced.values()
        }
        self.kernel += f" ({', '.join(sorted(map(str, ran)))})"
        self.weight_bytes = report.weight_bytes
        if RECIPES[recipe].static:
            self.static_scales = {
                name.removesuffix(".linear"): (layer.x_scale.item(), layer.azp.item())
                for name, layer in report.replaced.items()
            }

    def encode(self, batch: minilm_corpus.Batch) -> np.ndarray:
        """float32 [B, 384]."""
        with torch.inference_mode():
            return embed(self.model, batch).float().cpu().numpy()

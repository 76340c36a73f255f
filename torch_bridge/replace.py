# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`quantize_(model, recipe)`: puts `QuantLinear` in the place of a model's `nn.Linear` layers."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from selection.recipes import Recipe, get_recipe
from torch_bridge.modules import QuantLinear, why_not


class Report(NamedTuple):
    """What `quantize_` did.

    Attributes:
      replaced: the new layers by their names in the model.
      skipped: why each other linear layer stayed as it was.
    """

    replaced: dict[str, QuantLinear]
    skipped: dict[str, str]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the new layers' weights; one that is used twice counts once."""
        return sum(m.weight_bytes for m in _unique(self.replaced.values()))

    @property
    def kernels(self) -> dict[str, int]:
        """How many layers each kernel class serves."""
        names = [m.choice.kernel.__name__ for m in self.replaced.values()]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def __str__(self) -> str:
        kernels = ", ".join(f"{name} x{count}" for name, count in self.kernels.items())
        lines = [f"{len(self.replaced)} layers quantized: {kernels or 'none'}"]
        lines += [f"  {name} left as it was: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def quantize_(
    model: nn.Module,
    recipe: str | Recipe,
    calibration: Iterable[Any] | Callable[[nn.Module], Any] | None = None,
    include: str | Sequence[str] | Callable[[str, nn.Linear], bool] | None = None,
    exclude: str | Sequence[str] | Callable[[str, nn.Linear], bool] | None = None,
    *,
    strict: bool = True,
) -> Report:
    """Replaces the `nn.Linear` layers of a model by `QuantLinear`s, in place.

    Args:
      model: any module that holds linear layers.
      recipe: "w8a8-int8" (weights per channel, activations per token), "w8a8-int8-asym" (static
        asymmetric activations), "w8a8-fp8", "w4a16-g128", "w4a16-g64-zp", "w8a16", "fp8-block";
        or a `selection.recipes.Recipe`.
      calibration: for a recipe with static activation scales: inputs to run the model on (each a
        tensor, a tuple of positional or a dict of keyword arguments), or a function that is
        called with the model and runs it. The range of every layer's input is observed.
      include: only these layers: names or patterns ("encoder.*"), or a function of (name, layer).
      exclude: not these, in the same forms.
      strict: True raises if the recipe cannot run on one of the chosen layers, and changes
        nothing; False leaves those layers as they are, with the reason in the report.

    Returns:
      A `Report`: what was replaced, what not, and why.

    Raises:
      ValueError: an unknown recipe, missing calibration, no layer to replace, or (strict) layers
        that the recipe cannot run on, each with its reason.

    Example:
      >>> model = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8))
      >>> print(quantize_(model, "w4a16-g128", exclude="2"))
      1 layers quantized: CPUWNA16LinearKernel x1
        2 left as it was: excluded
      >>> model(torch.ones(3, 256)).shape
      torch.Size([3, 8])
    """
    recipe = get_recipe(recipe)
    chosen, skipped = {}, {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Linear) or isinstance(module, QuantLinear):
            continue
        if module is model:
            raise ValueError(
                "model: it is a linear layer itself, which cannot be replaced in place; use "
                "QuantLinear.from_linear"
            )
        if include is not None and not _matches(include, name, module):
            skipped[name] = "not included"
        elif exclude is not None and _matches(exclude, name, module):
            skipped[name] = "excluded"
        else:
            chosen[name] = module
    refused = {n: r for n, m in chosen.items() if (r := why_not(m, recipe)) is not None}
    if refused and strict:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in refused.items())
        raise ValueError(
            f"recipe {recipe.name!r} cannot run on {len(refused)} of {len(chosen)} layers (exclude "
            f"them, or strict=False to leave them as they are):{reasons}"
        )
    chosen = {name: module for name, module in chosen.items() if name not in refused}
    if not chosen and strict:
        raise ValueError("model: no nn.Linear layer in it is left to quantize")
    ranges = {}
    if recipe.static and chosen:
        ranges = _observe(model, chosen, recipe, calibration)
    made: dict[int, QuantLinear] = {}  # a layer that is used in two places stays one layer
    replaced = {}
    for name, module in chosen.items():
        if id(module) not in made:
            made[id(module)] = QuantLinear.from_linear(
                module, recipe, input_range=ranges.get(id(module))
            )
        replaced[name] = made[id(module)]
    for name, module in replaced.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)
    return Report(replaced, skipped | refused)


def _unique(modules):
    """Each module once, by identity."""
    return list({id(m): m for m in modules}.values())


def _matches(wanted, name, module) -> bool:
    if callable(wanted):
        return bool(wanted(name, module))
    patterns = [wanted] if isinstance(wanted, str) else wanted
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _observe(model, layers, recipe, calibration) -> dict[int, tuple[float, float]]:
    """The least and largest input of each layer while the model runs on the calibration data."""
    if calibration is None:
        raise ValueError(f"calibration: {recipe.name!r} has static activation scales and needs it")
    ranges: dict[int, tuple[float, float]] = {}

    def watch(module, args):
        x = args[0].detach()
        if x.numel():
            low, high = ranges.get(id(module), (float("inf"), float("-inf")))
            ranges[id(module)] = (min(low, x.min().item()), max(high, x.max().item()))

    handles = [m.register_forward_pre_hook(watch) for m in _unique(layers.values())]
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            if callable(calibration):
                calibration(model)
            else:
                for batch in calibration:
                    _run(model, batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    silent = [name for name, m in layers.items() if id(m) not in ranges]
    if silent:
        raise ValueError(f"calibration: these layers saw no input: {', '.join(silent)}")
    return ranges


def _run(model, batch):
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)

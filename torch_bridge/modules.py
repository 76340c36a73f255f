# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""`QuantLinear`: a linear layer with a quantized weight, as an `nn.Module`."""

import jax
import torch
from torch import nn

from jaxkernels.quantized import PLAIN, GroupShape, QuantizedTensor
from selection import choose_kernel, platform_for
from selection.choice import Choice
from selection.recipes import Recipe, get_recipe, static_int8_scale
from torch_bridge import autograd
from torch_bridge import ops as _ops  # noqa: F401  (defines torch.ops.jaxkernels)
from torch_bridge.dlpack import to_jax, to_torch
from torch_bridge.layouts import best_layout, to_layout
from torch_bridge.runner import Operands, Runner, Scheme, runner_for
from torch_bridge.streams import keeps_current_device, working_on

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _platform_of(device: torch.device):
    """The platform that tensors of this device run on: a CPU tensor's is the CPU, GPU or not."""
    return platform_for("cpu") if device.type == "cpu" else None


class QuantLinear(nn.Module):
    """`y = x @ dequantize(w).T + bias` by a quantized kernel; made by `quantize_` or `from_linear`.

    The weight is held once, quantized and packed (two 4-bit weights a byte), as buffers; only the
    bias is a Parameter. On a GPU the weight is kept in the order its kernel reads; `state_dict`
    always has the plain order, so it moves between machines. Conversions of dtype
    (`.half()`, `.to(torch.bfloat16)`) apply to the bias and leave the quantized weight alone.

    Gradients: x and the bias have one (that of the dequantized layer; straight through the
    quantization of activations); the weight has none.

    Attributes:
      in_features, out_features: K and N.
      recipe: the `Recipe` it was made with.
      choice: the `selection.Choice` of its kernel class.
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: torch.Tensor | None,
        recipe: Recipe,
        dtype: torch.dtype,
        x_scale: torch.Tensor | None = None,
        azp: torch.Tensor | None = None,
    ):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.recipe = recipe
        self.dtype = dtype
        self._layout = weight.layout
        self._weight_type = str(weight.scalar_type)
        self._group_shape = tuple(weight.group_shape)
        if bias is not None:
            bias = nn.Parameter(bias.detach(), bias.requires_grad)
        self.register_parameter("bias", bias)
        self.register_buffer("data", weight.data)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point)
        self.register_buffer("x_scale", x_scale)
        self.register_buffer("azp", azp)
        self.register_buffer("azp_adj", None)
        if recipe.activation == "int8-asym":
            total = weight.data.sum(1, dtype=torch.int32).reshape(1, -1)
            self.azp_adj = total if azp is None else total * azp
        self._runner: Runner | None = None
        self._prepare()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        recipe: str | Recipe,
        *,
        input_range: tuple[float, float] | None = None,
    ) -> "QuantLinear":
        """Quantizes one layer.

        Args:
          linear: float32, bfloat16 or float16, on a CPU or CUDA device.
          recipe: a `Recipe` or the name of one.
          input_range: (least, largest) input, for recipes with static activation scales.

        Raises:
          ValueError: the recipe cannot run on this layer; the message says why.
        """
        recipe = get_recipe(recipe)
        reason = why_not(linear, recipe)
        if reason is not None:
            raise ValueError(f"{recipe.name}: {reason}")
        if recipe.static and input_range is None:
            raise ValueError(
                f"{recipe.name}: its activation scale is static, so it needs input_range, or "
                "calibration data in quantize_"
            )
        weight = linear.weight.detach()
        with working_on(weight.device):
            quantized = recipe.quantize(to_jax(weight))
            w = jax.tree.map(lambda a: to_torch(a, copy=True), quantized)
        x_scale = azp = None
        if recipe.static:
            scale, zero = static_int8_scale(*input_range)
            x_scale = torch.tensor([[scale]], dtype=torch.float32, device=weight.device)
            azp = torch.tensor([[zero]], dtype=torch.int32, device=weight.device)
        module = cls(w, linear.bias, recipe, weight.dtype, x_scale, azp)
        module.training = linear.training
        return module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self._parameters["bias"]
        if bias is not None and bias.dtype is not x.dtype:
            bias = bias.to(x.dtype)
        if torch.compiler.is_compiling():
            return self._traced(x, bias)
        runner, leaves = self._runner, self._leaves
        if runner is None or leaves[0] is not self._buffers["data"]:
            runner = self._prepare()
            leaves = self._leaves
        shape = x.shape
        if shape[-1] != runner.k or x.dtype not in _FLOATS or x.device != leaves[0].device:
            self._refuse(x)
        x2d = x if len(shape) == 2 else x.reshape(-1, runner.k)
        if not x2d.is_contiguous():
            x2d = x2d.contiguous()
        if shape.numel() == 0:
            return x.new_empty((*shape[:-1], runner.n))
        if torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            y = autograd.linear(runner, x2d, leaves, bias, self.weight())
        else:
            y = runner(x2d, leaves, bias)
        return y if len(shape) == 2 else y.reshape(*shape[:-1], runner.n)

    def _refuse(self, x):
        if x.shape[-1] != self.in_features or x.dtype not in _FLOATS:
            raise ValueError(
                f"x: expected [..., {self.in_features}] of float32, bfloat16 or float16, got "
                f"{x.dtype} {tuple(x.shape)}"
            )
        raise ValueError(
            f"x: the layer is on {self.data.device}, got a tensor on {x.device}; move one of "
            "them with .to()"
        )

    def weight(self) -> QuantizedTensor:
        """The quantized weight, its leaves the module's own torch buffers."""
        return QuantizedTensor(
            data=self.data,
            scale=self.scale,
            zero_point=self.zero_point,
            shape=(self.out_features, self.in_features),
            scalar_type=self.recipe.weight_type,
            group_shape=GroupShape(*self._group_shape),
            layout=self._layout,
        )

    def dequantize(self) -> torch.Tensor:
        """The weight `[N, K]` in float32, as it acts."""
        return autograd.dequantized(self.weight(), torch.float32)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight at rest: codes, scales and zero points."""
        held = (self.data, self.scale, self.zero_point)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def explain(self, m: int = 16) -> str:
        """Which kernel class serves this layer, what runs m rows, and why not the others."""
        return self.choice.explain(m, self.out_features, self.in_features)

    @keeps_current_device
    def _choose(self) -> Choice:
        config = self.recipe.config(self.out_features, self.in_features, self.dtype)
        return choose_kernel(config, device=_platform_of(self.data.device))

    def _traced(self, x, bias):
        """The layer as one op: what torch.compile sees of it."""
        arrays = (self.data, self.scale, self.zero_point, None, None)
        static = (self._weight_type, [self.out_features, self.in_features])
        more = (self.x_scale, self.azp, self.azp_adj, None)
        how = (self._scheme.activation, list(self._scheme.implementations), None)
        return torch.ops.jaxkernels.linear(
            x, *arrays, *static, list(self._group_shape), self._layout, *more, bias, *how
        )

    def _operands(self) -> Operands:
        return Operands(self.weight(), self.x_scale, self.azp, self.azp_adj)

    def _prepare(self) -> Runner:
        """Brings the weight into the order its kernel wants here, and finds the runner."""
        self.choice = self._choose()
        kernel = self.choice.kernel
        wanted = best_layout(self.weight(), kernel, self.dtype)
        if wanted != self._layout:
            self._set_weight(to_layout(self.weight(), wanted))
        self._scheme = Scheme(self.recipe.activation, kernel.available_implementations())
        self._runner = runner_for(self._scheme, self._operands())
        self._leaves = [b for name in _LEAVES if (b := self._buffers[name]) is not None]
        return self._runner

    def _set_weight(self, w: QuantizedTensor) -> None:
        self.data, self.scale, self.zero_point = w.data, w.scale, w.zero_point
        self._layout = w.layout

    def warmup(self, max_m: int, dtype: torch.dtype | None = None) -> int:
        """Compiles every variant that serves up to max_m rows; returns how many there are."""
        runner = self._runner or self._prepare()
        dtype = dtype or self.dtype
        return runner.warmup(max_m, dtype, self.data.device, None if self.bias is None else dtype)

    def _apply(self, fn, recurse=True):
        # Quantized arrays change device, never dtype: as integers they are left alone by .half().
        dtypes = {name: b.dtype for name, b in self._buffers.items() if b is not None}
        self._buffers = _as_integers(self._buffers)
        try:
            super()._apply(fn, recurse)
        finally:
            for name, dtype in dtypes.items():
                self._buffers[name] = self._buffers[name].view(dtype)
        self._runner = None
        # What the conversion makes of a floating tensor; a layer without a bias has no other.
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.data.device)).dtype
        if self.data.device.type != "meta":
            self._prepare()
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._layout != PLAIN:
            plain = to_layout(self.weight(), PLAIN)
            for name in ("data", "scale", "zero_point"):
                if getattr(plain, name) is not None:
                    destination[prefix + name] = getattr(plain, name)

    def _load_from_state_dict(self, *args, **kwargs):
        if self._layout != PLAIN:  # checkpoints hold the plain order
            self._set_weight(to_layout(self.weight(), PLAIN))
        super()._load_from_state_dict(*args, **kwargs)
        self._prepare()

    def __getstate__(self):
        # Compiled kernels stay behind: a copy finds them again, another process makes its own.
        # Buffers go as integers, since torch cannot pickle a float8 tensor.
        dtypes = {name: b.dtype for name, b in self._buffers.items() if b is not None}
        buffers = _as_integers(self._buffers)
        dropped = {"_runner": None, "_leaves": (), "choice": None}
        return {**self.__dict__, **dropped, "_buffers": (buffers, dtypes)}

    def __setstate__(self, state):
        buffers, dtypes = state["_buffers"]
        for name, dtype in dtypes.items():
            buffers[name] = buffers[name].view(dtype)
        super().__setstate__({**state, "_buffers": buffers})
        self._prepare()

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, recipe={self.recipe.name}, "
            f"kernel={self.choice.kernel.__name__}, {self.weight_bytes} bytes"
        )


# The order in which `Operands` flattens.
_LEAVES = ("data", "scale", "zero_point", "x_scale", "azp", "azp_adj")
_AS_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def _as_integers(buffers):
    """The buffers with each tensor seen as integers of its width."""
    return {
        name: None if b is None else b.view(_AS_INTEGER[b.element_size()])
        for name, b in buffers.items()
    }


@keeps_current_device
def why_not(linear: nn.Module, recipe: str | Recipe) -> str | None:
    """Why a recipe cannot run on a layer, or None if it can."""
    recipe = get_recipe(recipe)
    if type(linear) is not nn.Linear:
        return f"a {type(linear).__name__} is not a plain nn.Linear, and something may rely on it"
    weight = linear.weight
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype}; float32, bfloat16 and float16 can be quantized"
    if weight.device.type not in ("cpu", "cuda"):
        return f"its weight is on {weight.device}; a CPU or CUDA device is needed"
    support = recipe.takes(*weight.shape)
    if not support.ok:
        return "; ".join(support.reasons)
    config = recipe.config(*weight.shape, weight.dtype)
    choice = choose_kernel(config, device=_platform_of(weight.device), quiet=True)
    if choice.kernel is None:
        return "; ".join(r.reason.strip() for r in choice.rejected) or "no kernel serves it"
    return None

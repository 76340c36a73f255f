# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What makes `selection`'s kernel classes run torch layers: one runtime for all families.

`process_weights_after_loading(layer)` reads the checkpoint's parameters (`weights.py`), brings them
into the order that the kernel wants, and leaves them on the layer under their old names.
`apply_weights(layer, x, bias)` runs the layer: by direct launches on a GPU, by JAX on a CPU.
Importing `torch_bridge` installs the runtimes.
"""

import copy
import dataclasses
from collections.abc import Callable

import jax
import torch
from torch.nn import Parameter

from selection import LinearKernel, dtype_name, set_runtime, using
from torch_bridge import autograd, weights
from torch_bridge.layouts import best_layout, to_layout
from torch_bridge.ops import weight_arguments
from torch_bridge.runner import Operands, Runner, Scheme, runner_for
from torch_bridge.streams import keeps_current_device

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_STATE = "_jaxkernels"


@dataclasses.dataclass
class Prepared:
    """What a prepared layer runs with.

    Attributes:
      kernel: the name of the class that prepared it.
      runner: compiled variants, shared with layers of the same shapes.
      operands: torch tensors; they share memory with the layer's parameters.
      parameters: what the layer got, by name.
      out_dtype: of results, None for that of x.
    """

    kernel: str
    runner: Runner
    operands: Operands
    parameters: dict[str, Parameter]
    out_dtype: torch.dtype | None

    def __post_init__(self):
        self.leaves = jax.tree.leaves(self.operands)
        # What torch.compile sees of the layer: tensors and plain values, as the op takes them.
        o, scheme = self.operands, self.runner.scheme
        self.weight_arguments = weight_arguments(o.w)
        self.more_arguments = (o.x_scale, o.azp, o.azp_adj, o.scale_ub)
        implementations = scheme.implementations and list(scheme.implementations)
        self.how = (scheme.activation, implementations, self.out_dtype)

    def __deepcopy__(self, memo):
        # The memo keeps shared what was shared: memory, and the layer's own parameters.
        operands, parameters = copy.deepcopy((self.operands, self.parameters), memo)
        return dataclasses.replace(self, operands=operands, parameters=parameters)


class LinearRuntime:
    """Runs the layers of one family.

    Args:
      read: (kernel, layer) -> `Operands`, without changing the layer.
      activation: (kernel) -> how activations are quantized, see `runner.Scheme`.
    """

    def __init__(self, read: Callable, activation: Callable[[LinearKernel], str | None]):
        self._read = read
        self._activation = activation

    @keeps_current_device
    def process_weights_after_loading(self, kernel: LinearKernel, layer) -> None:
        """Prepares a layer once. On an error the layer is as it was."""
        state = getattr(layer, _STATE, None)
        if state is not None and all(
            getattr(layer, name, None) is p for name, p in state.parameters.items()
        ):
            raise ValueError(
                f"layer: {state.kernel} has prepared its weights already; doing it twice would "
                "reorder them again. Load the checkpoint's parameters first."
            )
        operands = weights.read(self._read, kernel, layer)
        device = operands.w.data.device
        act = _activation_dtype(kernel)
        with using("cpu" if device.type == "cpu" else None):
            layout = best_layout(operands.w, type(kernel), act)
            implementations = kernel.available_implementations()
        w = to_layout(operands.w, layout)
        out = getattr(kernel.config, "out_dtype", None) or getattr(kernel.config, "out_type", None)
        scheme = Scheme(
            self._activation(kernel), implementations, None if out is None else dtype_name(out)
        )
        operands = operands._replace(w=w)
        names = _parameter_names(kernel)
        given = {
            names["weight"]: w.data,
            names["scale"]: w.scale,
            names["zero_point"]: w.zero_point,
            names["g_idx"]: w.g_idx,
            names["x_scale"]: operands.x_scale,
            names["azp"]: operands.azp,
            names["azp_adj"]: operands.azp_adj,
        }
        parameters = {
            name: Parameter(tensor, requires_grad=False)
            for name, tensor in given.items()
            if name is not None and tensor is not None
        }
        transposed = kernel.weight_layout == "KN" and w.layout == "plain"
        if transposed and names["weight"] is not None:
            shown = Parameter(w.data.t(), requires_grad=False)
            parameters[names["weight"]] = shown
        state = Prepared(
            kernel=type(kernel).__name__,
            runner=runner_for(scheme, operands),
            operands=operands,
            parameters=parameters,
            out_dtype=None if out is None else getattr(torch, dtype_name(out)),
        )
        # Nothing can fail from here on.
        for name in given:
            if name is not None:
                _set(layer, name, parameters.get(name))
        setattr(layer, _STATE, state)

    def apply_weights(self, kernel: LinearKernel, layer, x, bias=None) -> torch.Tensor:
        """`x [..., K]` to `[..., N]`, on x's device and torch's current stream."""
        state = getattr(layer, _STATE, None)
        if state is None:
            raise ValueError(
                "layer: its weights are not prepared; call process_weights_after_loading(layer) "
                "after loading the checkpoint"
            )
        if torch.compiler.is_compiling():
            return _traced(state, x, bias)
        runner = state.runner
        if x.shape[-1] != runner.k or x.dtype not in _FLOATS:
            raise ValueError(
                f"x: expected [..., {runner.k}] of float32, bfloat16 or float16, got {x.dtype} "
                f"{tuple(x.shape)}"
            )
        weight = state.leaves[0]
        if x.device != weight.device:
            raise ValueError(
                f"x: the layer was prepared on {weight.device}, x is on {x.device}; a layer is "
                "moved before process_weights_after_loading"
            )
        out_dtype = state.out_dtype or x.dtype
        if bias is not None:
            if bias.numel() != runner.n or bias.device != x.device:
                raise ValueError(
                    f"bias: expected {runner.n} numbers on {x.device}, got {tuple(bias.shape)} on "
                    f"{bias.device}"
                )
            bias = bias.detach().reshape(runner.n) if bias.dim() != 1 else bias
            bias = bias if bias.dtype == out_dtype else bias.to(out_dtype)
        x2d = x if x.dim() == 2 else x.reshape(-1, runner.k)
        if x2d.shape[0] == 0:
            return x.new_empty((*x.shape[:-1], runner.n), dtype=out_dtype)
        if not x2d.is_contiguous():
            x2d = x2d.contiguous()
        if x.requires_grad and torch.is_grad_enabled():
            y = autograd.linear(runner, x2d, state.leaves, bias, state.operands.w)
        else:
            y = runner(x2d, state.leaves, bias)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], runner.n)


def _traced(state: Prepared, x, bias) -> torch.Tensor:
    """The layer as one op."""
    return torch.ops.jaxkernels.linear(
        x, *state.weight_arguments, *state.more_arguments, bias, *state.how
    )


def warmup(layer, max_m: int, dtype: torch.dtype | None = None, bias: bool | None = None) -> int:
    """Compiles what serves 1 to max_m rows of a layer; returns how many variants that is.

    Args:
      layer: a `QuantLinear`, or a layer after `process_weights_after_loading`.
      max_m: the largest number of rows that will come.
      dtype: of the activations; by default bfloat16, or the `QuantLinear`'s own.
      bias: whether it will be called with a bias; by default if `layer.bias` is not None.

    Raises:
      ValueError: the layer is not prepared.
    """
    from torch_bridge.modules import QuantLinear

    if isinstance(layer, QuantLinear):
        return layer.warmup(max_m, dtype)
    state = getattr(layer, _STATE, None)
    if state is None:
        raise ValueError("layer: expected a QuantLinear or a prepared layer")
    dtype = dtype or torch.bfloat16
    with_bias = getattr(layer, "bias", None) is not None if bias is None else bias
    bias_dtype = (state.out_dtype or dtype) if with_bias else None
    return state.runner.warmup(max_m, dtype, state.leaves[0].device, bias_dtype)


def _activation_dtype(kernel) -> torch.dtype:
    c = kernel.config
    for name in ("act_type", "input_dtype", "out_dtype"):
        dtype = getattr(c, name, None)
        if dtype is not None and dtype_name(dtype) in ("float16", "bfloat16", "float32"):
            return getattr(torch, dtype_name(dtype))
    return torch.bfloat16


def _parameter_names(kernel) -> dict[str, str | None]:
    """Where on the layer each operand goes; None: only in the prepared state."""
    names = dict.fromkeys(
        ("weight", "scale", "zero_point", "g_idx", "x_scale", "azp", "azp_adj"), None
    )
    if kernel.family == "mp":
        names |= {
            "weight": kernel.w_q_name,
            "scale": kernel.w_s_name,
            "zero_point": kernel.w_zp_name,
            "g_idx": kernel.w_gidx_name,
        }
    elif kernel.family == "int8":
        keys = ("weight", "scale", "x_scale", "azp", "azp_adj")
        names |= dict(zip(keys, kernel.layer_param_names, strict=True))
    elif kernel.family == "fp8" and hasattr(kernel, "layer_param_names"):
        keys = ("weight", "scale", "x_scale")
        names |= dict(zip(keys, kernel.layer_param_names[:3], strict=True))
    else:
        names |= {"weight": "weight", "scale": "weight_scale"}
    return names


def _set(layer, name: str, parameter: Parameter | None) -> None:
    if parameter is None and getattr(layer, name, None) is None:
        return  # an attribute that never was stays away
    if isinstance(layer, torch.nn.Module):
        layer.__dict__.pop(name, None)
        layer.register_parameter(name, parameter)
    else:
        setattr(layer, name, parameter)


# -- how each family quantizes activations ---------------------------------------------------------


def _mixed_activation(kernel) -> str | None:
    act = dtype_name(kernel.config.act_type)
    return {"float8_e4m3fn": "fp8", "int8": "int8"}.get(act)


def _int8_activation(kernel) -> str | None:
    return "int8" if kernel.config.input_symmetric else "int8-asym"


def _fp8_activation(kernel) -> str | None:
    if not kernel.quantizes_activations:
        return None
    shape = kernel.config.activation_quant_key.scale.group_shape
    if shape.is_per_group():
        return "fp8-group"
    return "fp8-tensor" if shape.is_per_tensor() else "fp8"


def install() -> None:
    """Installs the runtime of every family in `selection`."""
    none = dict.fromkeys(("mxfp8", "mxfp4", "nvfp4"), weights.micro_scaled)
    for family, read in none.items():
        set_runtime(family, LinearRuntime(read, lambda kernel: None))
    set_runtime("mp", LinearRuntime(weights.mixed, _mixed_activation))
    set_runtime("int8", LinearRuntime(weights.int8, _int8_activation))
    set_runtime("fp8", LinearRuntime(weights.fp8, _fp8_activation))
    set_runtime("fp8_block", LinearRuntime(weights.fp8_block, _fp8_activation))

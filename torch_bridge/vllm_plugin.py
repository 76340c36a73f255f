# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Our kernels inside an installed vLLM, through its plugin entry point.

    [project.entry-points."vllm.general_plugins"]
    jaxkernels = "torch_bridge.vllm_plugin:register"

vLLM calls `register()` in each of its processes (set VLLM_PLUGINS to choose which plugins it may
call). It puts one class of ours into each of vLLM's lists: first on CUDA, so that it serves every
layer that a Hopper kernel of this project takes, and last elsewhere, for layers that nothing else
takes. A class asks `selection` which kernel serves a layer and hands the layer to it. Nothing here
imports vLLM before `register` is called.
"""

from typing import Any

import selection
from jaxkernels.scalar_types import ScalarType
from selection import LinearKernel, dtype_name
from torch_bridge.dlpack import wrap

# The versions whose lists and base classes this file was written against.
OLDEST, NEWEST = (0, 26), (0, 33)


def register(prefer: bool | None = None) -> dict[str, type]:
    """Adds our classes to vLLM's lists; does nothing the second time.

    Args:
      prefer: True puts them first, False last; None: first on CUDA, last elsewhere.

    Returns:
      The classes by vLLM's name of the list ("mp", "int8", "fp8", "fp8_block").

    Raises:
      RuntimeError: the installed vLLM is of another version than this was written for, or lacks a
        name that it needs.
      ImportError: there is no vLLM.
    """
    import vllm

    _check_version(getattr(vllm, "__version__", "unknown"))
    try:
        from vllm.model_executor.kernels import linear
        from vllm.platforms import PlatformEnum, current_platform

        lists = {
            "mp": linear._POSSIBLE_KERNELS,
            "int8": linear._POSSIBLE_INT8_KERNELS,
            "fp8": linear._POSSIBLE_FP8_KERNELS,
            "fp8_block": linear._POSSIBLE_FP8_BLOCK_KERNELS,
        }
        bases = {
            "mp": linear.MPLinearKernel,
            "int8": linear.Int8ScaledMMLinearKernel,
            "fp8": linear.FP8ScaledMMLinearKernel,
            "fp8_block": _block_base(linear),
        }
    except (ImportError, AttributeError) as e:
        raise RuntimeError(
            f"vLLM {vllm.__version__} has not what this plugin needs ({e}); it was written for "
            f"{_span()}"
        ) from e
    classes = {}
    for kind, base in bases.items():
        platform = current_platform._enum
        listed = lists[kind].setdefault(platform, [])
        ours = next((c for c in listed if c.__name__ == _NAMES[kind]), None)
        if ours is None:
            ours = _make(kind, base)
            first = platform is PlatformEnum.CUDA if prefer is None else prefer
            listed.insert(0 if first else len(listed), ours)
        classes[kind] = ours
    return classes


def _span() -> str:
    return f"vLLM {'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"


def _check_version(text: str) -> None:
    parts = text.split(".")
    numbers = tuple(int(p) for p in parts[:2] if p.isdigit())
    if len(numbers) != 2 or not OLDEST <= numbers <= NEWEST:
        raise RuntimeError(
            f"vLLM {text} is installed, and this plugin was written for {_span()}: between other "
            "versions the lists and base classes of its linear kernels differ"
        )


def _block_base(linear: Any) -> type:
    found = getattr(linear, "Fp8BlockScaledMMLinearKernel", None)
    if found is None:  # 0.26 imports it there without exporting it everywhere
        from vllm.model_executor.kernels.linear.scaled_mm import BlockScaledMMLinearKernel

        found = BlockScaledMMLinearKernel.Fp8BlockScaledMMLinearKernel
    return found


# -- vLLM's configs as ours -----------------------------------------------------------------------


def _quant_key(key: Any) -> selection.QuantKey:
    def scale(desc):
        return desc and selection.ScaleDesc(
            dtype_name(desc.dtype), desc.static, selection.GroupShape(*desc.group_shape)
        )

    return selection.QuantKey(
        dtype_name(key.dtype), scale(key.scale), scale(key.scale2), key.symmetric
    )


def our_config(kind: str, c: Any) -> Any:
    """A layer config of vLLM's as the one of `selection`."""
    if kind == "mp":
        return selection.MPLinearLayerConfig(
            tuple(c.full_weight_shape),
            tuple(c.partition_weight_shape),
            ScalarType.from_id(c.weight_type.id),
            c.act_type,
            c.group_size,
            c.zero_points,
            c.has_g_idx,
            c.out_type,
        )
    if kind == "int8":
        return selection.Int8ScaledMMLinearLayerConfig(
            c.is_static_input_scheme, c.is_channelwise, c.input_symmetric
        )
    return selection.FP8ScaledMMLinearLayerConfig(
        _quant_key(c.weight_quant_key),
        _quant_key(c.activation_quant_key),
        c.out_dtype,
        weight_shape=tuple(c.weight_shape),
        input_dtype=c.input_dtype,
    )


# -- classes of vLLM's kinds ----------------------------------------------------------------------

_NAMES = {
    "mp": "JaxKernelsMPLinearKernel",
    "int8": "JaxKernelsInt8ScaledMMLinearKernel",
    "fp8": "JaxKernelsFP8ScaledMMLinearKernel",
    "fp8_block": "JaxKernelsFp8BlockScaledMMLinearKernel",
}


def _choice(kind: str, c: Any) -> tuple[type | None, str | None]:
    """Our class for a layer of vLLM's, or why there is none that is worth it."""
    try:
        choice = selection.choose_kernel(our_config(kind, c), quiet=True)
    except (TypeError, ValueError) as e:
        return None, str(e)
    if choice.kernel is None:
        reasons = [rejection.reason.strip() for rejection in choice.rejected]
        return None, "; ".join(reasons) or "no kernel of jaxkernels serves it"
    if choice.fallback is not None:
        return None, choice.fallback
    return choice.kernel, None


def _can_implement(kind: str):
    def can_implement(cls, c):
        kernel, reason = _choice(kind, c)
        return kernel is not None, reason

    return classmethod(can_implement)


def _is_supported(cls, compute_capability=None):
    return True, None  # the config decides, by what selection finds for this platform


def _ours(kind: str, c: Any, *names) -> LinearKernel:
    kernel, reason = _choice(kind, c)
    if kernel is None:
        raise ValueError(f"{_NAMES[kind]} cannot serve this layer: {reason}")
    return kernel(our_config(kind, c), *names)


def _process(self, layer):
    self.ours.process_weights_after_loading(layer)


def _apply(self, layer, x, bias=None, **kwargs):
    return self.ours.apply_weights(layer, x, bias)


@wrap
def _scaled_mm(a, b, a_scale, b_scale):
    from jaxkernels import scaled_mm

    return scaled_mm(a, b, a_scale, b_scale)


def _apply_scaled_mm(self, *, A, B, out_dtype, As, Bs, bias, output_shape):
    """vLLM's own entry for operands that are quantized already; our layers do not come here."""
    y = _scaled_mm(A, B.t(), As, Bs).to(out_dtype)
    return (y if bias is None else y + bias).view(*output_shape)


def _apply_block_scaled_mm(self, A, B, As, Bs):
    return _scaled_mm(A, B, As, Bs).to(self.config.out_dtype)


def _make(kind: str, base: type) -> type:
    """A subclass of vLLM's base class that runs our kernels."""

    def of_mp(self, c, w_q, w_s, w_zp=None, w_gidx=None):
        base.__init__(self, c, w_q, w_s, w_zp, w_gidx)
        self.ours = _ours(kind, c, w_q, w_s, w_zp, w_gidx)

    def of_scaled(self, c, layer_param_names):
        # Not the base's: it would build vLLM's activation quantizer, which is not used here.
        self.config, self.layer_param_names = c, layer_param_names
        self.ours = _ours(kind, c, list(layer_param_names))

    def of_block(self, config):
        self.config = config
        self.ours = _ours(kind, config)

    body = {
        "__doc__": "Layers of this kind on the Pallas kernels of jaxkernels.",
        "__module__": __name__,
        "__init__": {"mp": of_mp, "fp8_block": of_block}.get(kind, of_scaled),
        "can_implement": _can_implement(kind),
        "process_weights_after_loading": _process,
        "apply_weights": _apply,
    }
    if kind == "mp":
        body["get_min_capability"] = classmethod(lambda cls: 0)
    else:
        body["is_supported"] = classmethod(_is_supported)
        # vLLM may hand over activations that it has quantized elsewhere: not to these.
        body["input_quant_key"] = lambda self: None
    if kind == "fp8":
        body["apply_scaled_mm"] = _apply_scaled_mm
    if kind == "fp8_block":
        body["apply_block_scaled_mm"] = _apply_block_scaled_mm
    made = type(base)(_NAMES[kind], (base,), body)
    missing = getattr(made, "__abstractmethods__", frozenset())
    if missing:
        raise RuntimeError(
            f"vLLM's {base.__name__} wants methods that this plugin does not have: "
            f"{', '.join(sorted(missing))}; it was written for {_span()}"
        )
    return made

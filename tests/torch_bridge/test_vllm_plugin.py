# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The vLLM plugin: what it says without a vLLM that fits, and with a real one, that it serves.

The second half runs where vLLM is installed, and is skipped elsewhere.
"""

import importlib.util
import subprocess
import sys
from types import ModuleType

import bridge_layers as layers
import numpy as np
import pytest
import torch

from torch_bridge import vllm_plugin

N, K = 96, 256


def test_importing_it_does_not_import_vllm():
    code = "import sys, torch_bridge.vllm_plugin; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0", "1.0.0", "dev", "unknown"])
def test_other_versions_are_refused_by_name(monkeypatch, version):
    fake = ModuleType("vllm")
    fake.__version__ = version
    monkeypatch.setitem(sys.modules, "vllm", fake)
    with pytest.raises(RuntimeError, match=f"vLLM {version} is installed.*vLLM 0.26 to 0.33"):
        vllm_plugin.register()


def test_a_vllm_without_the_lists_is_refused(monkeypatch):
    fake = ModuleType("vllm")
    fake.__version__, fake.__path__ = "0.26.0", []
    monkeypatch.setitem(sys.modules, "vllm", fake)
    with pytest.raises(RuntimeError, match="vLLM 0.26.0 has not what this plugin needs"):
        vllm_plugin.register()


# -- with vLLM -----------------------------------------------------------------------------------

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)


@pytest.fixture
def classes():
    return vllm_plugin.register(prefer=True)


@needs_vllm
def test_registering_twice_changes_nothing(classes):
    from vllm.model_executor.kernels import linear

    before = {p: list(c) for p, c in linear._POSSIBLE_KERNELS.items()}
    assert vllm_plugin.register(prefer=True) == classes
    assert {p: list(c) for p, c in linear._POSSIBLE_KERNELS.items()} == before


@needs_vllm
@pytest.mark.parametrize("layout", ["gptq", "ct"])
def test_vllm_chooses_and_runs_a_mixed_precision_layer(rng, classes, layout):
    from vllm.model_executor.kernels import linear
    from vllm.scalar_type import scalar_types

    layer, names, weight = layers.mixed(rng, layout, N, K, 64)
    config = linear.MPLinearLayerConfig(
        full_weight_shape=(K, N),
        partition_weight_shape=(K, N),
        weight_type=scalar_types.uint4b8,
        act_type=torch.bfloat16,
        group_size=64,
        zero_points=False,
        has_g_idx=False,
    )
    chosen = linear.choose_mp_linear_kernel(config)
    assert chosen is classes["mp"] and issubclass(chosen, linear.MPLinearKernel)
    kernel = chosen(config, *names)
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((5, K))).to(torch.bfloat16)
    layers.check_close(kernel.apply_weights(layer, x), x, weight)


@needs_vllm
def test_vllm_chooses_and_runs_an_int8_layer(rng, classes):
    from vllm.model_executor.kernels import linear

    kernel = linear.init_int8_linear_kernel(
        is_channelwise=True, is_static_input_scheme=False, input_symmetric=True, module_name="m"
    )
    assert type(kernel) is classes["int8"]
    codes = rng.integers(-128, 128, (N, K)).astype(np.int8)
    layer = layers.Layer(
        weight=codes,
        weight_scale=np.full((N, 1), 0.01, np.float32),
        input_scale=None,
        input_zero_point=None,
        azp_adj=None,
    )
    layer.logical_widths = [N]
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((5, K))).to(torch.bfloat16)
    want = layers.output(x, codes * 0.01)
    error = np.linalg.norm(kernel.apply_weights(layer, x).double().numpy() - want)
    assert error < 0.02 * np.linalg.norm(want)


@needs_vllm
@pytest.mark.parametrize("block", [False, True], ids=["token", "block"])
def test_vllm_chooses_and_runs_an_fp8_layer(rng, classes, block):
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers.quantization.utils import quant_utils as keys

    activation = keys.kFp8Dynamic128Sym if block else keys.kFp8DynamicTokenSym
    weight_key = keys.kFp8Static128BlockSym if block else keys.kFp8StaticChannelSym
    kernel = linear.init_fp8_linear_kernel(
        activation_quant_key=activation,
        weight_quant_key=weight_key,
        input_dtype=torch.bfloat16,
        out_dtype=torch.bfloat16,
        weight_shape=(256, K),
    )
    assert type(kernel) is classes["fp8_block" if block else "fp8"]
    codes = torch.from_numpy(rng.integers(-8, 9, (256, K)).astype(np.float32))
    scale = torch.full((2, 2) if block else (256, 1), 0.125)
    name = "weight_scale_inv" if block else "weight_scale"
    layer = layers.Layer(weight=codes.to(torch.float8_e4m3fn), **{name: scale})
    kernel.process_weights_after_loading(layer)
    x = torch.from_numpy(rng.standard_normal((5, K))).to(torch.bfloat16)
    want = layers.output(x, codes.double().numpy() * 0.125)
    error = np.linalg.norm(kernel.apply_weights(layer, x).double().numpy() - want)
    assert error < 0.05 * np.linalg.norm(want)

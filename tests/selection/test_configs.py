# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Configs and quant keys: upstream's names, field order, equality and string forms."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import selection
from jaxkernels.scalar_types import scalar_types
from selection import (
    FP8ScaledMMLinearLayerConfig,
    GroupShape,
    Int8ScaledMMLinearLayerConfig,
    MMLinearLayerConfig,
    MPLinearLayerConfig,
    QuantKey,
    ScaleDesc,
    create_fp8_quant_key,
    dtype_name,
)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (
            MPLinearLayerConfig,
            "full_weight_shape partition_weight_shape weight_type act_type group_size "
            "zero_points has_g_idx out_type",
        ),
        (
            Int8ScaledMMLinearLayerConfig,
            "is_static_input_scheme is_channelwise input_symmetric",
        ),
        (
            FP8ScaledMMLinearLayerConfig,
            "weight_quant_key activation_quant_key out_dtype weight_shape input_dtype",
        ),
        (ScaleDesc, "dtype static group_shape"),
        (QuantKey, "dtype scale scale2 symmetric"),
        (selection.Mxfp8LinearLayerConfig, ""),
        (selection.MxFp4LinearLayerConfig, ""),
        (selection.NvFp4LinearLayerConfig, ""),
    ],
)
def test_fields_in_upstreams_order(config, fields):
    assert [field.name for field in dataclasses.fields(config)] == fields.split()


def test_layer_configs_are_mutable_and_keys_are_not():
    config = MPLinearLayerConfig((8, 8), (8, 8), scalar_types.uint4b8, "bfloat16", 8, False, False)
    config.act_type = "int8"  # as upstream does after choosing Marlin
    assert config.out_type is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        selection.kFp8StaticTensorSym.dtype = "int8"
    assert isinstance(Int8ScaledMMLinearLayerConfig(True, True, True), MMLinearLayerConfig)


# Constant: (dtype, scale dtype, static, group shape, global scale)
KEYS = {
    "kFp8StaticTensorSym": ("float8_e4m3fn", "float32", True, (-1, -1), False),
    "kFp8DynamicTensorSym": ("float8_e4m3fn", "float32", False, (-1, -1), False),
    "kFp8StaticTokenSym": ("float8_e4m3fn", "float32", True, (1, -1), False),
    "kFp8DynamicTokenSym": ("float8_e4m3fn", "float32", False, (1, -1), False),
    "kFp8StaticChannelSym": ("float8_e4m3fn", "float32", True, (-1, 1), False),
    "kFp8Dynamic128Sym": ("float8_e4m3fn", "float32", False, (1, 128), False),
    "kFp8Dynamic64Sym": ("float8_e4m3fn", "float32", False, (1, 64), False),
    "kFp8Static128BlockSym": ("float8_e4m3fn", "float32", True, (128, 128), False),
    "kNvfp4Dynamic": ("uint8", "float8_e4m3fn", False, (1, 16), True),
    "kNvfp4Static": ("uint8", "float8_e4m3fn", True, (1, 16), True),
    "kMxfp4Dynamic": ("uint8", "uint8", False, (1, 32), False),
    "kMxfp4Static": ("uint8", "uint8", True, (1, 32), False),
    "kMxfp8Dynamic": ("float8_e4m3fn", "uint8", False, (1, 32), False),
    "kMxfp8Static": ("float8_e4m3fn", "uint8", True, (1, 32), False),
    "kInt8StaticChannelSym": ("int8", "float32", True, (-1, 1), False),
    "kInt8DynamicTokenSym": ("int8", "float32", False, (1, -1), False),
    "kInt8Static": (scalar_types.uint8b128, "float16", True, (1, -1), False),
    "kInt4Static": (scalar_types.uint4b8, "float16", True, (1, -1), False),
    "kInt4Static32": (scalar_types.uint4b8, "float16", True, (1, 32), False),
    "kInt4StaticAsym": (scalar_types.uint4, "float16", True, (1, -1), False),
    "kInt4Static32Asym": (scalar_types.uint4, "float16", True, (1, 32), False),
    "kInt4W4A8StaticGroup128Sym": ("int8", "bfloat16", True, (1, 128), False),
    "kInt4W4A8StaticGroup64Sym": ("int8", "bfloat16", True, (1, 64), False),
    "kInt4W4A8StaticGroup32Sym": ("int8", "bfloat16", True, (1, 32), False),
    "kInt4W4A8StaticGroupSym": ("int8", "bfloat16", True, (1, -1), False),
    "kInt4W4A8StaticChannelSym": ("int8", "float32", True, (-1, 1), False),
}


@pytest.mark.parametrize(("name", "facts"), KEYS.items())
def test_named_keys(name, facts):
    dtype, scale_dtype, static, group, second = facts
    key = getattr(selection, name)
    assert (key.dtype, key.scale) == (dtype, ScaleDesc(scale_dtype, static, GroupShape(*group)))
    assert key.symmetric == ("Asym" not in name)
    if second:
        assert key.scale2 == ScaleDesc("float32", True, GroupShape.PER_TENSOR)
    else:
        assert key.scale2 is None


def test_no_named_key_is_untested():
    named = {n for n in selection.__all__ if n.startswith("k") and n[1].isupper()}
    assert named == set(KEYS)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("kFp8DynamicTokenSym", "QuantKey(f8e4m3fn,scale(f32,dynamic,per_token),symmetric)"),
        ("kFp8StaticTensorSym", "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric)"),
        ("kFp8StaticChannelSym", "QuantKey(f8e4m3fn,scale(f32,static,per_channel),symmetric)"),
        (
            "kFp8Static128BlockSym",
            "QuantKey(f8e4m3fn,scale(f32,static,GroupShape(row=128, col=128)),symmetric)",
        ),
        (
            "kNvfp4Dynamic",
            "QuantKey(u8,scale(f8e4m3fn,dynamic,GroupShape(row=1, col=16)),"
            "scale2(f32,static,per_tensor),symmetric)",
        ),
        ("kInt4StaticAsym", "QuantKey(uint4,scale(f16,static,per_token),asymmetric)"),
    ],
)
def test_string_forms(key, text):
    assert str(getattr(selection, key)) == text


def test_keys_are_compared_by_value_and_hashable():
    again = create_fp8_quant_key(True, GroupShape.PER_TENSOR)
    assert again == selection.kFp8StaticTensorSym and again is not selection.kFp8StaticTensorSym
    assert {again: "found"}[selection.kFp8StaticTensorSym] == "found"
    assert again != create_fp8_quant_key(True, GroupShape.PER_TENSOR, symmetric=False)
    assert again != create_fp8_quant_key(True, GroupShape.PER_TENSOR, scale_dtype="uint8")


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "int8", "uint8", "int32"])
def test_one_name_for_a_dtype_of_any_library(name):
    torch = pytest.importorskip("torch")
    spellings = [name, f"torch.{name}", getattr(torch, name), getattr(jnp, name), jnp.dtype(name)]
    spellings += [np.dtype(name)] if name != "bfloat16" else []
    assert {dtype_name(spelling) for spelling in spellings} == {name}


def test_fp8_dtypes_of_torch_have_names_and_make_equal_keys():
    torch = pytest.importorskip("torch")
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu"):
        assert dtype_name(getattr(torch, name)) == name
    key = QuantKey(torch.float8_e4m3fn, ScaleDesc(torch.float32, True, (-1, -1)))
    assert key == selection.kFp8StaticTensorSym
    assert hash(key) == hash(selection.kFp8StaticTensorSym)


def test_what_is_no_dtype_says_so():
    with pytest.raises(TypeError, match="dtype: expected a torch, JAX or numpy dtype.*'half8'"):
        dtype_name("half8")


def test_selection_never_imports_torch():
    import subprocess
    import sys

    program = (
        "import selection, sys; selection.dtype_name('torch.bfloat16'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Names of dtypes, whichever library they come from, without importing torch."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from jaxkernels.scalar_types import ScalarType

# As torch.fx abbreviates them: what the string form of a QuantKey shows.
_ABBREVIATIONS = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "b8",
}


@functools.lru_cache(maxsize=256)
def dtype_name(dtype: Any) -> str:
    """The numpy-style name of a torch, JAX or numpy dtype, or of a name that is one already.

    Args:
      dtype: `torch.bfloat16`, `jnp.bfloat16`, `np.dtype("int8")`, "bfloat16", "torch.int8", ...

    Returns:
      "bfloat16", "int8", "float8_e4m3fn", ...

    Raises:
      TypeError: nothing by that name is a dtype.

    Example:
      >>> dtype_name(jnp.bfloat16), dtype_name("torch.float8_e4m3fn")
      ('bfloat16', 'float8_e4m3fn')
    """
    text = dtype if isinstance(dtype, str) else str(dtype)
    if text.startswith("torch."):
        text = text.removeprefix("torch.")
        dtype = text
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        raise TypeError(
            f"dtype: expected a torch, JAX or numpy dtype or the name of one; got {dtype!r}"
        ) from None


def canonical(dtype: Any) -> str | ScalarType:
    """A dtype's name; a `ScalarType` stays as it is."""
    return dtype if isinstance(dtype, ScalarType) else dtype_name(dtype)


def abbreviation(dtype: str | ScalarType) -> str:
    """What a QuantKey prints for a dtype: "f32", "f8e4m3fn", "u8", "uint4b8".

    Example:
      >>> abbreviation("float8_e4m3fn"), abbreviation("uint8")
      ('f8e4m3fn', 'u8')
    """
    text = str(dtype)
    if isinstance(dtype, str) and text.startswith("float8_"):
        return "f8" + text.removeprefix("float8_")
    return _ABBREVIATIONS.get(text, text)

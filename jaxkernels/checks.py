# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Errors for a caller's mistakes, all in one form: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp


def describe(value: Any) -> str:
    """An argument in an error message: dtype and shape of an array, type and value of the rest."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return f"{value!r} ({type(value).__name__})"


def bad_value(argument: str, expected: str, got: Any) -> NoReturn:
    """Raises ValueError."""
    raise ValueError(f"{argument}: expected {expected}, got {describe(got)}")


def bad_type(argument: str, expected: str, got: Any) -> NoReturn:
    """Raises TypeError."""
    raise TypeError(f"{argument}: expected {expected}, got {describe(got)}")


def as_array(argument: str, value: Any, dtypes: Sequence[Any] | None = None) -> jax.Array:
    """`value` as a JAX array; TypeError if it is no array or its dtype is not among `dtypes`."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        bad_type(argument, "an array", value)
    try:
        array = jnp.asarray(value)
        if getattr(array, "weak_type", False):  # from here on its dtype is meant
            array = jax.lax.convert_element_type(array, array.dtype)
    except TypeError:
        bad_type(argument, "a JAX or numpy array", value)
    if dtypes is not None:
        check_array(argument, array, dtypes)
    return array


def check_array(argument: str, value: Any, dtypes: Sequence[Any]) -> None:
    """TypeError unless the value is an array (or stands for one) of one of `dtypes`."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        bad_type(argument, "an array", value)
    if value.dtype not in [jnp.dtype(d) for d in dtypes]:
        names = " or ".join(jnp.dtype(d).name for d in dtypes)
        bad_type(argument, f"dtype {names}", value)


def check_shape(argument: str, array: Any, *shapes: tuple[int, ...], meaning: str = "") -> None:
    """ValueError unless the array's shape is one of `shapes`."""
    if tuple(array.shape) not in shapes:
        wanted = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes)
        bad_value(argument, f"shape {wanted}{meaning and f' ({meaning})'}", array)


def check_dtype(argument: str, dtype: Any, allowed: Sequence[Any]) -> jnp.dtype:
    """`dtype` as a numpy dtype; TypeError unless it is one of `allowed`."""
    try:
        given = jnp.dtype(dtype)
    except TypeError:
        bad_type(argument, "a dtype", dtype)
    if given not in [jnp.dtype(d) for d in allowed]:
        names = ", ".join(jnp.dtype(d).name for d in allowed)
        raise TypeError(f"{argument}: expected one of {names}, got {given.name}")
    return given


def as_vector(argument: str, value: Any, length: int, dtypes: Sequence[Any]) -> jax.Array | None:
    """`value` [length] or [1, length] as [length]; None stays None."""
    if value is None:
        return None
    value = as_array(argument, value, dtypes)
    check_shape(argument, value, (length,), (1, length))
    return value.reshape(length)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Scalar types of quantized data, with the same ids, limits and strings as vLLM's `ScalarType`.

A type is described by its bit fields. For integers `exponent` is 0 and `mantissa` counts the
magnitude bits without the sign; a `bias` says that the stored number is `value + bias`, so
`uint4b8` stores -8..7 as 0..15. The 66-bit `id` is what native ops of other systems receive.

Source: `vllm.scalar_type` (and its C++ twin, whose packing `id` follows).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import struct
from typing import NoReturn


class NanRepr(enum.Enum):
    """How a float type writes NaN."""

    NONE = 0  # has no NaN
    IEEE_754 = 1  # exponent all ones, mantissa not zero
    EXTD_RANGE_MAX_MIN = 2  # all ones only; everything else is a number


# Every type made by a factory, by its id: what `ScalarType.from_id` knows.
_KNOWN_IDS: dict[int, ScalarType] = {}

# (field, bits) of the id, from the least significant bit up.
_ID_FIELDS = (
    ("exponent", 8),
    ("mantissa", 8),
    ("signed", 1),
    ("bias", 32),
    ("_finite_values_only", 1),
    ("nan_repr", 8),
)


@dataclasses.dataclass(frozen=True)
class ScalarType:
    """A number format of 2 to 16 bits; use the factories or the named types in `scalar_types`.

    Args:
      exponent: exponent bits; 0 makes it an integer type.
      mantissa: mantissa bits; for an integer, magnitude bits without the sign.
      signed: whether there is a sign bit.
      bias: stored = value + bias (integers only).
      _finite_values_only: the float type has no infinities.
      nan_repr: how NaN is written.

    Example:
      >>> from jaxkernels import scalar_types
      >>> scalar_types.uint4b8, scalar_types.uint4b8.min(), scalar_types.uint4b8.max()
      (ScalarType.uint4b8, -8, 7)
      >>> ScalarType.from_id(scalar_types.int4.id) is scalar_types.int4
      True
    """

    exponent: int
    mantissa: int
    signed: bool
    bias: int
    _finite_values_only: bool = False
    nan_repr: NanRepr = NanRepr.IEEE_754

    # -- factories ------------------------------------------------------------------------------

    @classmethod
    def int_(cls, size_bits: int, bias: int | None) -> ScalarType:
        """A signed integer of `size_bits`, sign included; `bias=None` means 0."""
        return cls(0, size_bits - 1, True, bias or 0)._register()

    @classmethod
    def uint(cls, size_bits: int, bias: int | None) -> ScalarType:
        """An unsigned integer of `size_bits`; with a bias it stands for signed values."""
        return cls(0, size_bits, False, bias or 0)._register()

    @classmethod
    def float_IEEE754(cls, exponent: int, mantissa: int) -> ScalarType:
        """A signed float with IEEE infinities and NaNs."""
        if exponent <= 0 or mantissa <= 0:
            raise ValueError(f"exponent and mantissa must be positive: {exponent=}, {mantissa=}")
        return cls(exponent, mantissa, True, 0)._register()

    @classmethod
    def float_(
        cls, exponent: int, mantissa: int, finite_values_only: bool, nan_repr: NanRepr
    ) -> ScalarType:
        """A signed float with unusual infinities or NaNs; the usual ones are `float_IEEE754`."""
        if exponent <= 0 or mantissa <= 0:
            raise ValueError(f"exponent and mantissa must be positive: {exponent=}, {mantissa=}")
        if nan_repr == NanRepr.IEEE_754:
            raise AssertionError("use float_IEEE754 for a float type with IEEE 754 NaNs")
        return cls(exponent, mantissa, True, 0, finite_values_only, nan_repr)._register()

    @classmethod
    def from_id(cls, scalar_type_id: int) -> ScalarType:
        """The type of this id; ValueError if no factory has made one."""
        try:
            return _KNOWN_IDS[scalar_type_id]
        except KeyError:
            raise ValueError(f"scalar_type id {scalar_type_id:#x} is not a known type") from None

    def _register(self) -> ScalarType:
        return _KNOWN_IDS.setdefault(self.id, self)

    # -- what it is -----------------------------------------------------------------------------

    @property
    def size_bits(self) -> int:
        """Bits of one stored element."""
        return self.exponent + self.mantissa + int(self.signed)

    @property
    def id(self) -> int:
        """All fields packed into one integer, exponent in the lowest bits."""
        value, offset = 0, 0
        for name, bits in _ID_FIELDS:
            field = getattr(self, name)
            field = field.value if isinstance(field, NanRepr) else int(field)
            value |= (field & ((1 << bits) - 1)) << offset
            offset += bits
        return value

    def is_floating_point(self) -> bool:
        """Whether it has an exponent."""
        return self.exponent != 0

    def is_integer(self) -> bool:
        """Whether it has no exponent."""
        return self.exponent == 0

    def is_signed(self) -> bool:
        """Whether it has a sign bit; False for `uint4b8`, although its values go below zero."""
        return self.signed

    def has_bias(self) -> bool:
        """Whether stored and meant values differ."""
        return self.bias != 0

    def has_infs(self) -> bool:
        """Whether infinities exist (always True for types not declared finite)."""
        return not self._finite_values_only

    def has_nans(self) -> bool:
        """Always True: upstream compares an enum member with an int, and callers rely on it."""
        return self.nan_repr != NanRepr.NONE.value

    def is_ieee_754(self) -> bool:
        """Always False, for the same reason as `has_nans`."""
        return self.nan_repr == NanRepr.IEEE_754.value and not self._finite_values_only

    # -- limits ---------------------------------------------------------------------------------

    def max(self) -> int | float:
        """The largest value (bias taken off)."""
        if self.is_integer():
            return ((1 << self.mantissa) - 1) - self.bias
        return self._float_max() - self.bias

    def min(self) -> int | float:
        """The smallest value (bias taken off); AssertionError for unsigned floats."""
        if self.is_floating_point():
            if not self.signed:
                raise AssertionError("unsigned floating point types are not supported here")
            return -self._float_max() - self.bias
        return (-(1 << self.mantissa) if self.signed else 0) - self.bias

    def _float_max(self) -> float:
        if self.mantissa > 52 or self.exponent > 11:
            raise AssertionError(f"cannot represent the maximum of {self} as a double")
        max_mantissa = (1 << self.mantissa) - 1
        max_exponent = (1 << self.exponent) - 1
        if self.nan_repr == NanRepr.EXTD_RANGE_MAX_MIN:
            max_mantissa -= 1  # only all ones is NaN
        elif self.nan_repr == NanRepr.IEEE_754:
            max_exponent -= 1  # the top exponent is for infinity and NaN
        # Rebuild the number as a double: struct refuses what does not fit (float8_e8m0fnu, which
        # has no mantissa to take the NaN's pattern from).
        exponent_double = max_exponent - ((1 << (self.exponent - 1)) - 1) + 1023
        bits = (exponent_double << 52) | (max_mantissa << (52 - self.mantissa))
        return struct.unpack("!d", struct.pack("!Q", bits))[0]

    # -- text -----------------------------------------------------------------------------------

    def __str__(self) -> str:
        return self._text

    @functools.cached_property
    def _text(self) -> str:  # part of the reasons that choosing a kernel makes, many at a time
        if self.is_integer():
            name = f"{'int' if self.signed else 'uint'}{self.size_bits}"
            return f"{name}b{self.bias}" if self.has_bias() else name
        name = f"float{self.size_bits}_e{self.exponent}m{self.mantissa}"
        name += "f" if self._finite_values_only else ""
        return name + ("n" if self.nan_repr != NanRepr.NONE else "")

    def __repr__(self) -> str:
        return f"ScalarType.{self}"

    def __len__(self) -> NoReturn:
        raise TypeError("a ScalarType has no length")


class scalar_types:
    """The named types, as `scalar_types.uint4b8`: see `ScalarType`."""

    int4 = ScalarType.int_(4, None)
    uint4 = ScalarType.uint(4, None)
    int8 = ScalarType.int_(8, None)
    uint8 = ScalarType.uint(8, None)

    # GPTQ's symmetric types: value + bias is stored.
    uint2b2 = ScalarType.uint(2, 2)
    uint3b4 = ScalarType.uint(3, 4)
    uint4b8 = ScalarType.uint(4, 8)
    uint5b16 = ScalarType.uint(5, 16)
    uint6b32 = ScalarType.uint(6, 32)
    uint7b64 = ScalarType.uint(7, 64)
    uint8b128 = ScalarType.uint(8, 128)

    float8_e4m3fn = ScalarType.float_(4, 3, True, NanRepr.EXTD_RANGE_MAX_MIN)
    float8_e5m2 = ScalarType.float_IEEE754(5, 2)
    # Block scales of the MX formats: an exponent and nothing else. Not a data type.
    float8_e8m0fnu = ScalarType(8, 0, False, 0, True, NanRepr.EXTD_RANGE_MAX_MIN)._register()
    float6_e3m2f = ScalarType.float_(3, 2, True, NanRepr.NONE)
    float6_e2m3f = ScalarType.float_(2, 3, True, NanRepr.NONE)
    float4_e2m1f = ScalarType.float_(2, 1, True, NanRepr.NONE)
    float16_e8m7 = ScalarType.float_IEEE754(8, 7)
    float16_e5m10 = ScalarType.float_IEEE754(5, 10)

    bfloat16 = float16_e8m7
    float16 = float16_e5m10

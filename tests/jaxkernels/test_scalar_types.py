# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""ScalarType against upstream's table, quirks included."""

import struct

import pytest

from jaxkernels.scalar_types import NanRepr, ScalarType, scalar_types

# name: (id, str, bits, min, max); from upstream, by running it.
TABLE = {
    "int4": (0x4000000010300, "int4", 4, -8, 7),
    "uint4": (0x4000000000400, "uint4", 4, 0, 15),
    "int8": (0x4000000010700, "int8", 8, -128, 127),
    "uint8": (0x4000000000800, "uint8", 8, 0, 255),
    "uint2b2": (0x4000000040200, "uint2b2", 2, -2, 1),
    "uint3b4": (0x4000000080300, "uint3b4", 3, -4, 3),
    "uint4b8": (0x4000000100400, "uint4b8", 4, -8, 7),
    "uint5b16": (0x4000000200500, "uint5b16", 5, -16, 15),
    "uint6b32": (0x4000000400600, "uint6b32", 6, -32, 31),
    "uint7b64": (0x4000000800700, "uint7b64", 7, -64, 63),
    "uint8b128": (0x4000001000800, "uint8b128", 8, -128, 127),
    "float8_e4m3fn": (0xA000000010304, "float8_e4m3fn", 8, -448.0, 448.0),
    "float8_e5m2": (0x4000000010205, "float8_e5m2n", 8, -57344.0, 57344.0),
    "float8_e8m0fnu": (0xA000000000008, "float8_e8m0fn", 8, None, None),
    "float6_e3m2f": (0x2000000010203, "float6_e3m2f", 6, -28.0, 28.0),
    "float6_e2m3f": (0x2000000010302, "float6_e2m3f", 6, -7.5, 7.5),
    "float4_e2m1f": (0x2000000010102, "float4_e2m1f", 4, -6.0, 6.0),
    "float16_e8m7": (0x4000000010708, "float16_e8m7n", 16, -3.3895313892515355e38, None),
    "float16_e5m10": (0x4000000010A05, "float16_e5m10n", 16, -65504.0, 65504.0),
    "bfloat16": (0x4000000010708, "float16_e8m7n", 16, -3.3895313892515355e38, None),
    "float16": (0x4000000010A05, "float16_e5m10n", 16, -65504.0, 65504.0),
}
NAMED = {name: kind for name, kind in vars(scalar_types).items() if isinstance(kind, ScalarType)}


def test_the_table_names_every_type():
    assert set(TABLE) == set(NAMED)


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    kind = NAMED[name]
    kind_id, text, bits, low, high = TABLE[name]
    assert kind.id == kind_id
    assert str(kind) == text
    assert repr(kind) == f"ScalarType.{text}"
    assert kind.size_bits == bits
    if low is not None:
        assert kind.min() == low
        assert kind.max() == (high if high is not None else -low)
        assert type(kind.max()) is (int if kind.is_integer() else float)
    assert ScalarType.from_id(kind_id) is kind
    assert kind.is_floating_point() == name.startswith(("float", "bfloat"))
    assert kind.is_integer() != kind.is_floating_point()
    assert kind.is_signed() == (not name.startswith("uint") and name != "float8_e8m0fnu")
    assert kind.has_bias() == ("b" in name[1:] and name.startswith("uint"))


def test_the_scale_type_has_no_limits():
    with pytest.raises(AssertionError):
        scalar_types.float8_e8m0fnu.min()
    with pytest.raises(struct.error):
        scalar_types.float8_e8m0fnu.max()


def test_quirks_of_upstream_are_kept():
    """An enum member is never equal to an int, so these two answer the same for every type."""
    assert all(kind.has_nans() for kind in NAMED.values())
    assert not any(kind.is_ieee_754() for kind in NAMED.values())
    assert [name for name, kind in NAMED.items() if not kind.has_infs()] == [
        "float8_e4m3fn", "float8_e8m0fnu", "float6_e3m2f", "float6_e2m3f", "float4_e2m1f",
    ]  # fmt: skip


def test_length_is_refused():
    with pytest.raises(TypeError):
        len(scalar_types.int4)
    with pytest.raises(TypeError):
        list(scalar_types.int4)


def test_factories():
    assert ScalarType.int_(4, None) is scalar_types.int4
    assert ScalarType.uint(4, 8) is scalar_types.uint4b8
    assert ScalarType.uint(4, 8) == ScalarType(0, 4, False, 8)
    assert hash(ScalarType.uint(4, 8)) == hash(ScalarType(0, 4, False, 8))
    assert ScalarType.float_IEEE754(5, 10) is scalar_types.float16
    assert ScalarType.int_(8, 3).id == scalar_types.int8.id | 3 << 17
    with pytest.raises(AssertionError):
        ScalarType.float_(4, 3, True, NanRepr.IEEE_754)
    with pytest.raises(ValueError, match="positive"):
        ScalarType.float_IEEE754(0, 3)


def test_from_id_knows_only_what_was_made():
    unknown = ScalarType(0, 13, False, 77)  # the plain constructor registers nothing
    with pytest.raises(ValueError, match=hex(unknown.id)):
        ScalarType.from_id(unknown.id)
    made = ScalarType.uint(13, 77)
    assert ScalarType.from_id(unknown.id) is made


def test_negative_bias_keeps_to_its_field():
    kind = ScalarType.int_(8, -1)
    assert kind.id >> 17 & 0xFFFFFFFF == 0xFFFFFFFF
    assert kind.id >> 49 == scalar_types.int8.id >> 49

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Compiled kernels as bytes: taken from where the plugin keeps them, their host code linked."""

import ctypes
import dataclasses
import platform
import struct

import pytest

from jaxkernels.mosaic import binary
from jaxkernels.mosaic.binary import Binary, Unloadable

NAME = "_mlir_ciface_twice"
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")

# int f(int x) { return abs(x) + abs(x); }, as LLVM writes a call in the large code model.
CODE = bytes.fromhex(
    "53"  # push rbx
    "48b80000000000000000"  # movabs rax, abs
    "ffd0"  # call rax
    "01c0"  # add eax, eax
    "5b"  # pop rbx
    "c3"  # ret
)


def elf(symbol="abs", relocation=1, flags=0x6, name=NAME, machine=62):
    """A relocatable object of one function, whose bytes 3 to 10 are the address of `symbol`."""
    strings = b"\0" + symbol.encode() + b"\0" + name.encode() + b"\0"
    names = b"\0.ltext\0.rela.ltext\0.symtab\0.strtab\0.shstrtab\0.eh_frame\0"
    symbols = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    symbols += struct.pack("<IBBHQQ", 1, 0x10, 0, 0, 0, 0)  # undefined
    symbols += struct.pack("<IBBHQQ", 2 + len(symbol), 0x12, 0, 1, 0, len(CODE))
    rela = struct.pack("<QQq", 3, 1 << 32 | relocation, 0)
    # name, type, flags, content, link, info, alignment, entry size
    sections = [
        (0, 0, 0, b"", 0, 0, 0, 0),
        (names.index(b".ltext"), 1, flags, CODE, 0, 0, 16, 0),
        (names.index(b".rela.ltext"), 4, 0, rela, 3, 1, 8, 24),
        (names.index(b".symtab"), 2, 0, symbols, 4, 1, 8, 24),
        (names.index(b".strtab"), 3, 0, strings, 0, 0, 1, 0),
        (names.index(b".shstrtab"), 3, 0, names, 0, 0, 1, 0),
        (names.index(b".eh_frame"), 1, 2, b"\1" * 24, 0, 0, 8, 0),
    ]
    body, table = b"", b""
    for text, kind, flag, content, link, info, alignment, entry in sections:
        table += struct.pack(
            "<IIQQQQIIQQ",
            *(text, kind, flag, 0, 64 + len(body), len(content), link, info, alignment, entry),
        )
        body += content
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQ", 1, machine, 1, 0, 0, 64 + len(body))
    head += struct.pack("<IHHHHHH", 0, 64, 0, 0, 64, len(sections), 5)
    return head + body + table


def some(**changes):
    made = Binary(b"\x7fELF kernel_entry", "kernel_entry", 4096, 2, elf(), NAME)
    return dataclasses.replace(made, **changes)


@needs_x86
def test_host_code_is_linked_and_runs():
    twice = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(binary._link(elf(), NAME))
    assert [twice(x) for x in (-5, 0, 21)] == [10, 0, 42]


@needs_x86
@pytest.mark.parametrize(
    "image, name, message",
    [
        (elf("a_function_that_nobody_has"), NAME, "calls a_function_that_nobody_has"),
        (elf(relocation=10), NAME, "relocations of type 10"),
        (elf(flags=0x7), NAME, "has variables"),
        (elf(flags=0), NAME, "is empty"),
        (elf(), "_mlir_ciface_other", "0 functions _mlir_ciface_other"),
        (elf(machine=183), NAME, "no object for x86-64"),
        (elf()[:300], NAME, "no ELF object"),
        (b"MZ" * 100, NAME, "no object for x86-64"),
        (b"", NAME, "no ELF object"),
    ],
)
def test_what_is_not_host_code_for_here_is_refused(image, name, message):
    with pytest.raises(Unloadable, match=message):
        binary._link(image, name)


class Compiled:
    """The three pointers of `MosaicGpuCompile`, over a C++ object laid out here."""

    def __init__(self, b: Binary, host_function=0x5000, spacing=32):
        self.kept = []
        strings = {24: b.cubin, 24 + spacing: b.kernel.encode()}
        numbers = 24 + 2 * spacing
        strings |= {numbers + 8: b.host, numbers + 8 + spacing: b.function.encode()}
        owner = bytearray(256)
        struct.pack_into("<Q", owner, 8, host_function)
        struct.pack_into("<ii", owner, numbers, b.shared_memory, b.cluster)
        for offset, content in strings.items():
            held = ctypes.create_string_buffer(content, len(content))
            self.kept.append(held)
            struct.pack_into("<QQ", owner, offset, ctypes.addressof(held), len(content))
        self.owner = ctypes.create_string_buffer(bytes(owner), len(owner))
        self.pointers = (0x1234, 0x5000, ctypes.addressof(self.owner))


def test_the_plugins_object_is_read():
    assert binary.read(Compiled(some()).pointers) == some()


@pytest.mark.parametrize("address", [3, 1 << 63])
def test_an_address_of_nothing_is_no_fault(address):
    assert binary.read((1, 2, address)) is None


@pytest.mark.parametrize(
    "changes, layout",
    [
        ({}, {"host_function": 0x6000}),
        ({}, {"spacing": 24}),  # another library's strings
        ({"cluster": 0}, {}),
        ({"shared_memory": -1}, {}),
        ({"kernel": "not_in_the_cubin"}, {}),
        ({"cubin": b"PTX kernel_entry"}, {}),
        ({"function": "main"}, {}),
    ],
)
def test_another_layout_is_noticed(changes, layout):
    compiled = Compiled(some(**changes), **layout)
    assert binary.read(compiled.pointers) is None

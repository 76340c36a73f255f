# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""What the CUDA plugin has compiled, as bytes that another process can load.

The plugin's entry point `MosaicGpuCompile` returns three pointers: a CUfunction, the host function
that launches it (it makes the TMA descriptors from the buffers' addresses), and the C++ object
that owns both. That object holds everything a load needs, but nothing exports it:

    offset   8  host function        24  cubin (string)      56  name of the kernel (string)
            88  bytes of dynamic shared memory, blocks of a cluster (two int32)
            96  host code: a relocatable ELF object (string) 128  name of the host function (string)

`read` takes it from there (jaxlib's `CompiledKernel`, `jaxlib/mosaic/gpu/custom_call.cc` 0.11.2; a
string of libstdc++ is an address, a size and 16 bytes). It goes by way of /proc/self/mem, where a
wrong address is an error and not a fault, and believes nothing that does not look like what it
should be: another layout gives None, and kernels are then compiled in each process.

`Binary.load` is the other half, and needs the driver only: cuModuleLoadData for the cubin, and
for the host code a linker of one page. LLVM emits it for the large code model, so that its only
relocations are absolute addresses of two functions of Mosaic's runtime library. That is so on
x86-64; on other CPUs kernels are compiled in each process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import struct


class Unloadable(RuntimeError):
    """A binary that cannot be loaded in this process."""


@dataclasses.dataclass(frozen=True)
class Binary:
    """One compiled kernel: device code, and host code that launches it.

    Attributes:
      cubin: for one compute capability.
      kernel: the name of its entry.
      shared_memory: bytes of dynamic shared memory.
      cluster: thread blocks in a cluster.
      host: a relocatable ELF object for this kind of CPU.
      function: the host function's name in it; see `KernelLibrary.compile` for its arguments.
    """

    cubin: bytes = dataclasses.field(repr=False)
    kernel: str
    shared_memory: int
    cluster: int
    host: bytes = dataclasses.field(repr=False)
    function: str

    def load(self) -> tuple[int, int]:
        """(CUfunction, address of the host function), in the current CUDA context, for good.

        Raises:
          Unloadable: the driver, or this process, has no use for it; the message says why.
        """
        host = _link(self.host, self.function)
        driver = ctypes.CDLL("libcuda.so.1")

        def check(what, code):
            if code:
                raise Unloadable(f"CUDA error {code} from {what}")

        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        check("cuModuleLoadData", driver.cuModuleLoadData(ctypes.byref(module), self.cubin))
        name = self.kernel.encode()
        check(
            "cuModuleGetFunction", driver.cuModuleGetFunction(ctypes.byref(function), module, name)
        )
        if self.shared_memory:
            check("cuFuncSetAttribute", driver.cuFuncSetAttribute(function, 8, self.shared_memory))
        if self.cluster > 8:  # the largest that runs on every GPU
            check("cuFuncSetAttribute", driver.cuFuncSetAttribute(function, 14, 1))
        return function.value, host


_HOST_FUNCTION, _CUBIN, _KERNEL, _NUMBERS, _OBJECT, _NAME, _END = 8, 24, 56, 88, 96, 128, 160
_LARGEST = 64 << 20


def read(compiled) -> Binary | None:
    """The binary behind the three pointers that `MosaicGpuCompile` returned, or None.

    Example: `read(library.MosaicGpuCompile(module, len(module)))`
    """
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = os.pread(memory, _END, compiled[2])
        if struct.unpack_from("<Q", owner, _HOST_FUNCTION)[0] != compiled[1]:
            return None

        def string(offset: int) -> bytes:
            address, size = struct.unpack_from("<QQ", owner, offset)
            if not 0 < size < _LARGEST:
                raise ValueError(f"a string of {size} bytes")
            return os.pread(memory, size, address)

        shared_memory, cluster = struct.unpack_from("<ii", owner, _NUMBERS)
        kernel, function = string(_KERNEL).decode("ascii"), string(_NAME).decode("ascii")
        binary = Binary(string(_CUBIN), kernel, shared_memory, cluster, string(_OBJECT), function)
    except (OSError, ValueError, struct.error, OverflowError):
        return None
    finally:
        os.close(memory)
    return binary if looks_right(binary) else None


def looks_right(b: Binary) -> bool:
    """Whether these can be the parts of one kernel."""
    return (
        b.cubin[:4] == b.host[:4] == b"\x7fELF"
        and b.kernel.encode() in b.cubin
        and 0 <= b.shared_memory <= 1 << 20
        and 1 <= b.cluster <= 16
        and b.function.startswith("_mlir_ciface_")
        and b.function.encode() in b.host
    )


# -- the linker -----------------------------------------------------------------------------------

# ELF64, from its specification.
_ET_REL, _EM_X86_64 = 1, 62
_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS = 2, 4, 8
_SHF_WRITE, _SHF_ALLOC = 1, 2
_R_X86_64_64, _R_X86_64_PC64 = 1, 24
_READ_EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC

_mappings: list[mmap.mmap] = []  # code stays for the life of the process


def _link(image: bytes, name: str) -> int:
    """Maps an object's code and constants into this process; the address of its function `name`."""
    try:
        return _link_x86_64(image, name)
    except (struct.error, IndexError, UnicodeDecodeError) as e:
        raise Unloadable(f"its host code is no ELF object: {e}") from None


def _link_x86_64(image: bytes, name: str) -> int:
    kind, machine = struct.unpack_from("<HH", image, 16)
    if image[:4] != b"\x7fELF" or (kind, machine) != (_ET_REL, _EM_X86_64):
        raise Unloadable("its host code is no object for x86-64")
    [table] = struct.unpack_from("<Q", image, 40)
    count = struct.unpack_from("<H", image, 60)[0]
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, table + 64 * i) for i in range(count)]
    unwind = {i for i, s in enumerate(sections) if _text(image, sections[_shstrndx(image)], s[0])
              == ".eh_frame"}  # fmt: skip
    places, size = {}, 0
    for i, (_, _, flags, _, _, length, _, _, alignment, _) in enumerate(sections):
        if flags & _SHF_ALLOC and length and i not in unwind:
            if flags & _SHF_WRITE:
                raise Unloadable("its host code has variables")
            size = -(-size // max(alignment, 1)) * max(alignment, 1)
            places[i], size = size, size + length
    if not size:
        raise Unloadable("its host code is empty")
    memory = mmap.mmap(-1, size, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for i, place in places.items():
        _, kind, _, _, offset, length, *_ = sections[i]
        if kind != _SHT_NOBITS:
            memory[place : place + length] = image[offset : offset + length]
    [symtab] = [s for s in sections if s[1] == _SHT_SYMTAB]
    symbols = [
        struct.unpack_from("<IBBHQQ", image, symtab[4] + 24 * i) for i in range(symtab[5] // 24)
    ]
    strings = sections[symtab[6]]

    def address(symbol) -> int:
        text, _, _, section, value, _ = symbol
        if section == 0:
            return _runtime(_text(image, strings, text))
        if section not in places:
            raise Unloadable("its host code refers to what is not mapped")
        return base + places[section] + value

    for _, kind, _, _, offset, length, _, target, _, _ in sections:
        if kind != _SHT_RELA or target not in places:
            continue
        for entry in range(offset, offset + length, 24):
            where, info, addend = struct.unpack_from("<QQq", image, entry)
            place = places[target] + where
            value = address(symbols[info >> 32]) + addend
            if info & 0xFFFFFFFF == _R_X86_64_PC64:
                value -= base + place
            elif info & 0xFFFFFFFF != _R_X86_64_64:
                raise Unloadable(f"its host code has relocations of type {info & 0xFFFFFFFF}")
            struct.pack_into("<Q", memory, place, value % (1 << 64))
    entries = [s for s in symbols if s[3] and _text(image, strings, s[0]) == name]
    if len(entries) != 1:
        raise Unloadable(f"its host code has {len(entries)} functions {name}")
    found = address(entries[0])
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(whole), _READ_EXECUTE):
        raise Unloadable(f"mprotect: {os.strerror(ctypes.get_errno())}")
    _mappings.append(memory)
    return found


def _shstrndx(image: bytes) -> int:
    return struct.unpack_from("<H", image, 62)[0]


def _text(image: bytes, strings, offset: int) -> str:
    start = strings[4] + offset
    return image[start : image.index(b"\0", start)].decode("ascii")


def _runtime(symbol: str) -> int:
    """The address of a function that host code calls."""
    path = os.environ.get("MOSAIC_GPU_RUNTIME_LIB_PATH")  # JAX sets it as its Mosaic is imported
    for library in (path, None):  # then this process: memcpy and its like
        try:
            found = getattr(ctypes.CDLL(library), symbol)
        except (AttributeError, OSError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value
    raise Unloadable(f"its host code calls {symbol}, which is not here")

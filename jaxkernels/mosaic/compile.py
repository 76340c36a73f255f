# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""From a JAX function made of Mosaic GPU kernels to launches that need no JAX.

Two halves, both resting on private parts of JAX, which is why they live here and nowhere else:

`lower_program(fn, *structs)` traces and lowers `fn` for CUDA and reads the StableHLO back as a
`Program`: the buffers it touches, the kernels in order, and which buffer each operand and result
is. It needs no GPU. Reshapes and bitcasts become other names of the same buffer, splat constants
become buffers filled once; anything else that would have to compute is refused by name.

`KernelLibrary` finds the CUDA plugin's library and its entry points `MosaicGpuCompile`
(module bytes -> CUfunction and a host function) so that a kernel can be launched with plain
pointers on any stream, and what it compiled as bytes (`binary`), so that another device or another
process can load it. `direct_route()` says whether this JAX has them.
"""

import ctypes
import dataclasses
import hashlib
import math
import threading

import jax
import numpy as np
from jax._src.interpreters.mlir import make_ir_context
from jax._src.lib.mlir import ir, passmanager

from jaxkernels.mosaic.binary import Binary, read
from jaxkernels.problem import Support

# TMA wants 16-byte aligned addresses, and Mosaic's custom call refuses anything else.
POINTER_ALIGNMENT = 16

_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "f8E4M3FN": "float8_e4m3fn", "f8E5M2": "float8_e5m2", "f8E8M0FNU": "float8_e8m0fnu",
    "i1": "bool", "i4": "int4", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "ui4": "uint4", "ui8": "uint8", "ui16": "uint16", "ui32": "uint32", "ui64": "uint64",
}  # fmt: skip
_BITS = {"int4": 4, "uint4": 4, "bool": 8, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8,
         "float8_e8m0fnu": 8}  # fmt: skip


class NotDirect(NotImplementedError):
    """The function needs more than kernels, reshapes, bitcasts and splat constants."""


def nbytes(shape, dtype: str) -> int:
    """Bytes of a dense array; 4-bit types are packed two a byte."""
    bits = _BITS.get(dtype) or np.dtype(dtype).itemsize * 8
    return -(-math.prod(shape) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Memory that a program touches. `kind` is where it comes from:

    "argument"  the caller's tensor number `argument`
    "result"    allocated for each call (an output, or a value between two kernels)
    "constant"  filled with `fill` once and only read
    "filled"    filled with `fill` for each call, because a kernel or the caller may write into it
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    argument: int = -1
    fill: float | int | bool = 0


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """One Mosaic module with the buffers it is given: operands first, then results.

    `key` is the same for the same module. A kernel that was compiled before may come as `binary`
    alone, without the module.
    """

    key: str
    module: bytes = dataclasses.field(repr=False)
    buffers: tuple[int, ...]
    binary: Binary | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    buffer: int
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Program:
    """What to allocate, what to launch in which order, and what to give back."""

    buffers: tuple[Buffer, ...]
    kernels: tuple[KernelCall, ...]
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    outputs: tuple[Output, ...]
    out_tree: jax.tree_util.PyTreeDef = dataclasses.field(repr=False)


def lower_program(fn, *structs) -> Program:
    """Lowers `fn` for CUDA at these argument structures (a pytree of `ShapeDtypeStruct`s).

    Raises:
      NotDirect: an operation is neither a Mosaic kernel nor free; the message names it.
    """
    traced = jax.jit(fn, keep_unused=True).trace(*structs)
    module = traced.lower(lowering_platforms=("cuda",)).compiler_ir()
    out_tree = jax.tree.structure(traced.out_info)
    with module.context:
        import jax.experimental.mosaic.gpu as mgpu

        # jit outlines the functions it calls; one flat body is easier to read back.
        mgpu.dialect.register_inliner_extensions(module.context)
        inline = passmanager.PassManager.parse("builtin.module(inline{default-pipeline=})")
        inline.run(module.operation)
        mains = [op for op in module.body.operations if _symbol(op) == "main"]
        if len(mains) != 1:
            raise NotDirect(f"expected one main function, found {len(mains)}")
        return _read(mains[0].body.blocks[0], out_tree)


def _symbol(op):
    name = op.attributes["sym_name"] if "sym_name" in op.attributes else None
    return name and ir.StringAttr(name).value


def _type(value) -> tuple[tuple[int, ...], str]:
    ranked = ir.RankedTensorType(value.type)
    name = str(ranked.element_type)
    if name not in _DTYPES:
        raise NotDirect(f"element type {name} has no torch counterpart")
    return tuple(ranked.shape), _DTYPES[name]


def _read(block, out_tree) -> Program:
    buffers: list[Buffer] = []
    kernels: list[KernelCall] = []
    where: dict = {}  # SSA value -> index of its buffer

    def new(value, **fields):
        shape, dtype = _type(value)
        buffers.append(Buffer(shape=shape, dtype=dtype, **fields))
        where[value] = len(buffers) - 1

    for i, argument in enumerate(block.arguments):
        new(argument, kind="argument", argument=i)
    for op in block.operations:
        name = op.operation.name
        if name in ("func.return", "sdy.return"):
            outputs = tuple(Output(_own(buffers, where[v]), *_type(v)) for v in op.operands)
        elif name in ("stablehlo.reshape", "stablehlo.bitcast_convert"):
            where[op.result] = where[op.operands[0]]
        elif name == "stablehlo.optimization_barrier":
            where.update({r: where[v] for r, v in zip(op.results, op.operands, strict=True)})
        elif name == "stablehlo.constant":
            new(op.result, kind="constant", fill=_splat(op))
        elif name == "stablehlo.broadcast_in_dim" and (
            buffers[where[op.operands[0]]].kind == "constant"
        ):
            new(op.result, kind="constant", fill=buffers[where[op.operands[0]]].fill)
        elif name == "stablehlo.custom_call" and _target(op) == "AllocateBuffer":
            new(op.result, kind="result")
        elif name == "stablehlo.custom_call" and _target(op) == "mosaic_gpu_v2":
            _read_kernel(op, buffers, kernels, where, new)
        else:
            shown = _target(op) if name == "stablehlo.custom_call" else name
            raise NotDirect(f"{shown} has to compute something outside a kernel")
    if not kernels:
        raise NotDirect("no Mosaic GPU kernel is called")
    arguments = tuple((b.shape, b.dtype) for b in buffers if b.kind == "argument")
    return Program(tuple(buffers), tuple(kernels), arguments, outputs, out_tree)


def _target(op) -> str:
    return ir.StringAttr(op.attributes["call_target_name"]).value


def _splat(op):
    value = op.attributes["value"]
    dense = ir.DenseElementsAttr(value)
    if not dense.is_splat:
        raise NotDirect("a constant that is not one repeated number has to be an argument")
    return dense.get_splat_value().value


def _own(buffers, index: int) -> int:
    """The buffer itself, or for a constant a copy of its own: someone may write into it."""
    if buffers[index].kind != "constant":
        return index
    buffers.append(dataclasses.replace(buffers[index], kind="filled"))
    return len(buffers) - 1


def _read_kernel(op, buffers, kernels, where, new):
    config = op.attributes["mhlo.backend_config"]
    if ir.BoolAttr(config["uses_xla_collective_metadata"]).value:
        raise NotDirect("a kernel that talks to other devices needs XLA's collectives")
    module = config["module"].value_bytes
    aliases = {}
    if "output_operand_aliases" in op.attributes:
        from jax._src.lib.mlir.dialects import hlo

        for attribute in op.attributes["output_operand_aliases"]:
            alias = hlo.OutputOperandAlias(attribute)
            [output] = alias.output_tuple_indices or (0,)
            aliases[output] = alias.operand_index
    operands = [where[v] for v in op.operands]
    for i, result in enumerate(op.results):
        if i not in aliases:
            new(result, kind="result")
            continue
        source = buffers[operands[aliases[i]]]
        if source.kind == "argument":
            raise NotDirect("a kernel writes into an argument; it would change the caller's tensor")
        if source.kind == "constant":
            operands[aliases[i]] = _own(buffers, operands[aliases[i]])
        elif len(list(op.operands[aliases[i]].uses)) > 1:
            raise NotDirect("a kernel overwrites a value that is used again")
        where[result] = operands[aliases[i]]
    used = (*operands, *(where[v] for v in op.results))
    kernels.append(KernelCall(_key(module), module, used))


def _key(module: bytes) -> str:
    """The same for modules that differ in where they were traced and how they were numbered."""
    context = make_ir_context()
    context.allow_unregistered_dialects = True
    with context:
        parsed = ir.Module.parse(module)
        if "mosaic_gpu.dump_basename" in parsed.operation.attributes:
            del parsed.operation.attributes["mosaic_gpu.dump_basename"]
        text = parsed.operation.get_asm(enable_debug_info=False)
    return hashlib.sha256(text.encode()).hexdigest()


class KernelLibrary:
    """`MosaicGpuCompile` and `MosaicGpuUnload` of the installed CUDA plugin, through ctypes."""

    def __init__(self):
        path = None
        for name in ("xla_cuda13", "xla_cuda12"):
            try:
                plugin = getattr(__import__(f"jax_plugins.{name}"), name)
            except ImportError:
                continue
            path = plugin._get_library_path()
            break
        self.path = path and str(path)
        library = ctypes.CDLL(self.path)
        self._compile = library.MosaicGpuCompile
        self._compile.argtypes = [ctypes.c_char_p, ctypes.c_int]
        self._compile.restype = ctypes.POINTER(ctypes.c_void_p)
        import jax.experimental.mosaic.gpu  # noqa: F401  (tells the library where its runtime is)

    def compile(self, module: bytes):
        """Compiles a module for the current CUDA context: (CUfunction, host function, binary).

        The host function takes (CUfunction, CUstream, array of device pointers), returns nothing,
        and has read the array when it returns. It stays loaded for the life of the process. The
        binary is None where this plugin keeps it elsewhere.
        """
        compiled = self._compile(module, len(module))
        if not compiled:
            raise RuntimeError(
                "Mosaic GPU could not compile or load the kernel, and its entry point gives no "
                "reason: call the same JAX function under jax.jit on the GPU to see the message"
            )
        return compiled[0], _HOST_FUNCTION(compiled[1]), read(compiled)

    def load(self, binary: Binary):
        """The same of a binary, in the current CUDA context: (CUfunction, host function).

        Raises:
          Unloadable: it has to be compiled here.
        """
        function, host = binary.load()
        return function, _HOST_FUNCTION(host)


# CFUNCTYPE drops the GIL during the call: a launch may wait for room in the driver's queue.
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

_library: KernelLibrary | None = None
_library_error: str | None = None
_lock = threading.Lock()


def kernel_library() -> KernelLibrary:
    """The process's kernel library. Raises RuntimeError with the reason where there is none."""
    global _library, _library_error
    with _lock:
        if _library is None and _library_error is None:
            try:
                _library = KernelLibrary()
            except (AttributeError, OSError) as e:
                _library_error = (
                    f"this JAX ({jax.__version__}) offers no MosaicGpuCompile entry point ({e}); "
                    "install jax[cuda13] 0.11.2, the version that this project is tested on"
                )
        if _library is None:
            raise RuntimeError(_library_error)
        return _library


def direct_route() -> Support:
    """Whether compiled kernels can be launched without JAX here, and if not, why."""
    try:
        kernel_library()
    except RuntimeError as e:
        return Support(False, (str(e),))
    return Support(True, ())

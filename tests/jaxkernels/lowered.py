# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Lowered kernels to read in a test: what the compiler on a GPU would be given."""

import jax
from jax._src.interpreters.mlir import make_ir_context
from jax._src.lib.mlir import ir

from jaxkernels.mosaic.compile import lower_program
from jaxkernels.mosaic.device import abstract_mesh


def kernel_texts(fn, *structs) -> list[str]:
    """The Mosaic module of each kernel that `fn` launches on sm90, in order."""
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        program = lower_program(fn, *structs)
    with make_ir_context() as context:
        context.allow_unregistered_dialects = True
        return [str(ir.Module.parse(kernel.module)) for kernel in program.kernels]

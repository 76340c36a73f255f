# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Weights cut over four (simulated) devices give what the whole weight gives."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxkernels import prepare, quantize, scalar_types
from jaxkernels.sharding import partition_specs

# Devices are counted when JAX starts, so the cases run in a process of their own.
PROGRAM = """
    import dataclasses
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import PartitionSpec as P
    from jaxkernels import dequantize, mixed_mm, prepare, quantize, scalar_types, w8a8_linear
    from jaxkernels.quantized import pack_nibbles, stored_codes
    from jaxkernels.sharding import local, partition_specs

    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("model",), axis_types=auto)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-4, 5, (5, 512)), jnp.float32)

    def integers(kind, group, granularity=None, **more):
        # Weights with exact products, so that the order of sums does not matter.
        w = quantize(
            jnp.asarray(rng.standard_normal((512, 512)), jnp.float32), kind, group,
            granularity=granularity, **more)
        powers = np.exp2(rng.integers(-2, 1, w.scale.shape)).astype(np.float32)
        return dataclasses.replace(w, scale=jnp.asarray(powers, w.scale.dtype))

    plain = {
        "uint4b8 groups": integers(scalar_types.uint4b8, 64),
        "uint4 zero points": integers(scalar_types.uint4, 128, zero_points=True),
        "int8 channel": integers(scalar_types.int8, -1),
        "int8 tensor": integers(scalar_types.int8, -1, "tensor"),
        "fp8 block": integers(scalar_types.float8_e4m3fn, 128, "block"),
        "nvfp4": dataclasses.replace(
            integers(scalar_types.float4_e2m1f, 16), global_scale=jnp.full((1, 1), 0.5)),
    }
    order = rng.permutation(512)
    w = plain["uint4b8 groups"]
    shuffled = dataclasses.replace(
        w, data=pack_nibbles(stored_codes(w)[:, order]), g_idx=jnp.asarray(order // 64, jnp.int32))
    cases = {
        **plain,
        "act-order": shuffled,
        **{name + ", prepared": prepare(w) for name, w in plain.items()
           if name in ("uint4 zero points", "int8 tensor", "fp8 block", "nvfp4")},
    }

    def column(x, w):
        return mixed_mm(x, local(w))

    def row(x, w):
        return jax.lax.psum(mixed_mm(x, local(w)), "model")

    for name, w in cases.items():
        want = mixed_mm(x, w)
        for function, axes, x_spec, out_spec in (
            (column, dict(n="model"), P(), P(None, "model")),
            (row, dict(k="model"), P(None, "model"), P()),
        ):
            specs = partition_specs(w, mesh, **axes)
            layer = jax.jit(jax.shard_map(
                function, mesh=mesh, in_specs=(x_spec, specs), out_specs=out_spec))
            cut = jax.tree.map(
                lambda a, s: jax.device_put(a, jax.NamedSharding(mesh, s)), w, specs)
            assert len(cut.data.addressable_shards) == 4
            assert cut.data.addressable_shards[0].data.size * 4 == w.data.size
            # float8's products are the only ones whose sums round.
            noise = 1e-6 * float(jnp.abs(want).max()) * name.startswith("fp8")
            np.testing.assert_allclose(layer(x, cut), want, rtol=0, atol=noise, err_msg=name)
            hlo = layer.lower(x, cut).compile().as_text()
            assert hlo.count(" all-reduce(") == ("k" in axes), name
            assert " all-gather(" not in hlo, name
        print("ok", name)

    w = plain["int8 channel"]
    layer = jax.shard_map(
        lambda x, w: w8a8_linear(x, local(w)), mesh=mesh,
        in_specs=(P(), partition_specs(w, mesh, n="model")), out_specs=P(None, "model"))
    np.testing.assert_array_equal(layer(x, w), w8a8_linear(x, w))
    print("ok w8a8_linear")
"""


def test_shards_give_what_the_whole_gives():
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ok ") == 12, done.stdout


ONES = np.ones((128, 192), np.float32)


@pytest.mark.parametrize(
    ("w", "axes", "message"),
    [
        (quantize(ONES, scalar_types.uint4b8, 96), dict(k="model"), "K = 192 to be 4 shards"),
        (quantize(ONES[:126], scalar_types.uint4b8, 96), dict(n="model"), "N = 126 to be 4"),
        (
            quantize(ONES, scalar_types.float8_e4m3fn, 64, granularity="block"),
            dict(n="model"),
            "multiple of 64",
        ),
        (prepare(quantize(ONES, scalar_types.uint4b8, 32)), dict(n="model"), "multiple of 64"),
        (quantize(ONES, scalar_types.int8), dict(n="rows"), "mesh: expected an axis 'rows'"),
    ],
)
def test_what_cannot_be_cut_is_refused(w, axes, message):
    mesh = jax.sharding.AbstractMesh((4,), ("model",))
    with pytest.raises(ValueError, match=message):
        partition_specs(w, mesh, **axes)

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Why this kernel? One 4-bit layer asked of three devices, none of which has to be here."""

import selection
from jaxkernels import scalar_types

layer = selection.MPLinearLayerConfig(
    full_weight_shape=(4096, 4096),  # upstream's order: (K, N)
    partition_weight_shape=(4096, 4096),
    weight_type=scalar_types.uint4b8,
    act_type="bfloat16",
    group_size=128,
    zero_points=False,
    has_g_idx=False,
)

for device in ("h200", "a100", "cpu"):
    print(selection.choose_kernel(layer, device=device).explain(m=16), end="\n\n")

# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""Quantize a torch model in place, ask what will run, and train its bias through it."""

import torch
from torch import nn

from torch_bridge import quantize_

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).to(torch.bfloat16)
x = torch.randn(16, 1024, dtype=torch.bfloat16)
before, exact = sum(p.nbytes for p in model.parameters()), model(x)

report = quantize_(model, "w8a8-int8")  # int8 weights per channel, activations per token
print(report)
print(f"{before} bytes before, {report.weight_bytes} bytes of weights after")
print(model[0].explain(m=16))

y = model(x)
y.float().square().mean().backward()
print(f"relative difference {(y - exact).norm() / exact.norm():.3f}")
print(f"gradient of the first bias: {tuple(model[0].bias.grad.shape)}")

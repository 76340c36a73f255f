# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
"""The decode example in its small form."""

import pytest

import llama_decode


def test_small_run_and_picture(tmp_path):
    result = llama_decode.run(["w4a16-g128", "w8a8-fp8"], [1, 4], layers=32, small=True)
    assert len(result["rows"]) == 6 and result["layers"] == 2
    by = {(row["recipe"], row["batch"]): row for row in result["rows"]}
    base = by[llama_decode.BASE, 1]
    assert base["speedup"] == 1 and base["tokens_per_second"] == pytest.approx(1e6 / base["us"])
    # 4-bit codes and 16-bit scales for each 128, beside 16-bit weights.
    assert by["w4a16-g128", 1]["bytes"] == pytest.approx(base["bytes"] * (4 + 16 / 128) / 16)
    assert by["w8a8-fp8", 4]["bytes"] == pytest.approx(base["bytes"] / 2, rel=0.02)
    path = llama_decode.draw(result, tmp_path)
    assert path.stat().st_size > 5000


def test_the_whole_model_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(llama_decode.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--small runs anywhere"):
        llama_decode.run(["w8a16"], [1], layers=1, small=False)

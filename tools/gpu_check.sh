#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
#
#   tools/gpu_check.sh OUT [MODEL]     what only a GPU shows, apart from speed; eleven minutes
#
# Ten minutes of soak on the last GPU, beside the rest of it: the gpu tests (each failure with its
# reason in OUT/failures.txt as it happens), the demo, two devices where there are two, and
# compute-sanitizer, one after the other. Every step has a time limit of its own and leaves its output
# in OUT, the soak a line a minute. MODEL is the demo's model, where its package is not installed.
# $PYTHON (default python3) needs every package; $WORKERS (default 10) processes run the tests. The
# exit status is 1 if a step failed.
set -uo pipefail
OUT=${1:?usage: tools/gpu_check.sh OUT [MODEL]}
MODEL=${2:-}
PYTHON=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$OUT"
export PYTHONPATH=$PWD XLA_PYTHON_CLIENT_PREALLOCATE=false
failed=0

step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 start
  shift 2
  start=$(date +%s)
  if timeout -k 10 "$seconds" "$@" > "$OUT/$name.txt" 2> "$OUT/$name.err"; then
    echo "$name: passed in $(($(date +%s) - start)) s"
  else
    echo "$name: FAILED ($?) after $(($(date +%s) - start)) s; see $OUT/$name.txt, .err"
    failed=1
    return 1
  fi
}

last=$(($(nvidia-smi -L | wc -l) - 1))
CUDA_VISIBLE_DEVICES=$last step soak 780 "$PYTHON" -u tools/soak.py 10 &
soak=$!

FAILURES="$OUT/failures.txt" step tests 240 \
  "$PYTHON" -m pytest -m gpu -n "${WORKERS:-10}" -v -rfs --tb=short --timeout=120
step demo 240 "$PYTHON" examples/minilm.py ${MODEL:+--model "$MODEL"} --lengths 128 \
  --batch_tokens 8192 --out "$OUT" --json
step devices 60 "$PYTHON" -m pytest -m gpu -v -rs tests/torch_bridge -k "two_devices or second_device"
step sanitize 300 bash tools/sanitize.sh "$OUT/sanitize" 120
wait "$soak" || failed=1
exit $failed

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
#
#   tools/bench_all.sh OUT [SECONDS]     every family beside its peers, on one GPU, within a time limit
#
# One process a family: all compile side by side, and each measures when the one before it has
# ended (--after_pid), so that no kernel is timed while another runs. Peers that compile at run time
# are compiled first. What the time does not reach is left out; run again with --resume for it.
# Results go to OUT/FAMILY-DEVICE.json; $PYTHON (default python3) needs every package; $PEERS names
# the folder of peers' own kernels, where there is one.
set -euo pipefail
OUT=${1:?usage: tools/bench_all.sh OUT [SECONDS]}
DEADLINE=$(( $(date +%s) + ${2:-900} ))
PYTHON=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$OUT"
export PYTHONPATH=$PWD OMP_NUM_THREADS=2

warm() {
  for shape in 4096x4096 6144x4096 28672x4096 4096x14336 8192x8192 8192x28672; do
    "$PYTHON" -m benchmarks --warm_only --peers=deep_gemm --suite scaled_mm --families fp8-block \
      --shapes "$shape" &
    "$PYTHON" -m benchmarks --warm_only --peers=humming --suite mixed_mm --families w4a16 \
      --groups=128 --shapes "$shape" &
  done
  wait
}
warm > "$OUT/warm.txt" 2>&1 &
last=$!

measure() { # NAME FLAGS...
  local name=$1
  shift
  "$PYTHON" -m benchmarks --out "$OUT" --name "$name" --nodraw --eligible --deadline "$DEADLINE" \
    --after_pid "$last" "$@" > "$OUT/$name.txt" 2>&1 &
  last=$!
}
for family in fp8 int8 fp8-block int8-azp w8a8-linear; do
  measure "$family" --suite scaled_mm --families "$family"
done
measure quantize --suite quantize
measure w4a16 --suite mixed_mm --families w4a16 --groups=128
measure bridge --suite bridge
wait
for log in "$OUT"/*.txt; do
  echo "$(basename "$log" .txt): $(grep -c '^\[' "$log" || true) cells"
done

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
#
#   tools/bench_all.sh OUT [SECONDS [FAMILY...]]   every family beside its peers, on one GPU
#
# A process a family: all compile side by side, and one at a time measures (--lock), so that no kernel
# is timed while another runs. Peers that compile at run time are compiled first. FAMILY may be
# "held-out": shapes that no tuning table was made from, every config beside the chosen one. What the
# time does not reach is left out; run again with --resume for it. Results go to OUT/FAMILY.json, and
# all of OUT into OUT.tgz. $PYTHON (default python3) needs every package; $PEERS names the folder of
# peers' own kernels, where there is one. (All 18 families: 8 minutes on 32 cores.)
set -euo pipefail
OUT=${1:?usage: tools/bench_all.sh OUT [SECONDS [FAMILY...]]}
DEADLINE=$(( $(date +%s) + ${2:-900} ))
shift $(( $# < 2 ? $# : 2 ))
ONLY=" $* "
PYTHON=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$OUT"
export PYTHONPATH=$PWD OMP_NUM_THREADS=2

wanted() { # by default all but held-out, which is many processes
  [[ $ONLY == *" $1 "* || ($ONLY == "  " && $1 != held-out) ]]
}

shapes() { # SHAPES or HELD_OUT of benchmarks/suites.py
  "$PYTHON" -c "from benchmarks import suites; print(*(f'{n}x{k}' for n, k in suites.$1))"
}

warm() { # SOURCE SUITE FAMILY GROUPS
  wanted "$3" || return 0
  for shape in $(shapes SHAPES); do
    "$PYTHON" -m benchmarks --warm_only --peers="$1" --suite "$2" --families "$3" --groups="$4" --shapes "$shape" &
  done
}

(
  flock -s 9
  warm deep_gemm scaled_mm fp8-block 128
  warm humming mixed_mm w4a16 128
  warm humming mixed_mm w8a16-int8 -1
  warm humming mixed_mm w8a16-fp8 -1
  warm humming mixed_mm w4a8-fp8 128
  wait
) 9> "$OUT/lock" > "$OUT/warm.txt" 2>&1 &

measure() { # FAMILY FLAGS...
  local family=$1
  shift
  wanted "$family" || return 0
  "$PYTHON" -m benchmarks --out "$OUT" --name "${NAME:-$family}" --nodraw --eligible --deadline "$DEADLINE" \
    --lock "$OUT/lock" "$@" > "$OUT/${NAME:-$family}.txt" 2>&1 &
}
for family in fp8 int8 fp8-block int8-azp w8a8-linear; do
  measure "$family" --suite scaled_mm --families "$family"
done
for family in w8a16-fp8 w8a16-fp8-block w4a8-fp8; do
  measure "$family" --suite mixed_mm --families "$family"
done
some="--ms 1,16,64,256,1024,4096"
for family in w4a16-zp w4a16-actorder; do
  measure "$family" --suite mixed_mm --families "$family" --groups=128 $some
done
# humming compiles for every shape, group and count of tokens, so it meets us once a type.
vllm="--peers=torch,vllm"
measure w4a16 --suite mixed_mm --families w4a16 --groups=128
NAME=w4a16-groups measure w4a16 --suite mixed_mm --families w4a16 --groups=64,32,-1 $some $vllm
measure w8a16-int8 --suite mixed_mm --families w8a16-int8 --groups=-1
NAME=w8a16-int8-g128 measure w8a16-int8 --suite mixed_mm --families w8a16-int8 --groups=128 $vllm
measure w4a8-int8 --suite mixed_mm --families w4a8-int8 $vllm
NAME=fp4 measure fp4 --suite mixed_mm --families fp4-nv,fp4-mx --ms 1,16,64,256,4096
held_out() { # SUITE FAMILY MS FLAGS...
  local suite=$1 family=$2 ms=$3 shape m
  shift 3
  for shape in $(shapes HELD_OUT); do
    for m in ${ms//,/ }; do
      NAME=held-$family-$m-$shape measure held-out --suite "$suite" --families "$family" --sweep \
        --shapes "$shape" --ms "$m" --peers=torch "$@"
    done
  done
}
for family in fp8 int8 fp8-block; do held_out scaled_mm "$family" 16,256,4096; done
held_out mixed_mm w4a16 16,256 --groups=128
measure quantize --suite quantize
measure bridge --suite bridge
wait
for log in "$OUT"/*.txt; do
  echo "$(basename "$log" .txt): $(grep -c '^\[' "$log" || true) cells"
done
tar czf "$OUT.tgz" -C "$OUT" .

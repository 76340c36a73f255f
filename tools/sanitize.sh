#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: 2026 the jaxkernels authors
#
#   tools/sanitize.sh OUT [SECONDS] [FAMILY...]    the kernels at small shapes under compute-sanitizer
#
# Each family of tools/sanitize_cases.py under memcheck and racecheck, $JOBS (default 6) at a time,
# each within SECONDS (default 100) of its own. Prints a table; logs go to OUT. The exit status is 1
# if a tool reports an error or a run did not end. $PYTHON (default python3) needs jax and torch.
set -uo pipefail
OUT=${1:?usage: tools/sanitize.sh OUT [SECONDS] [FAMILY...]}
LIMIT=${2:-100}
shift $(( $# < 2 ? $# : 2 ))
PYTHON=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$OUT"
export PYTHONPATH=$PWD OMP_NUM_THREADS=1
FAMILIES=("$@")
if [ ${#FAMILIES[@]} -eq 0 ]; then
  names=$("$PYTHON" tools/sanitize_cases.py --list) || exit 1
  read -ra FAMILIES <<< "$names"
fi

check() { # TOOL FAMILY
  local log=$OUT/$1-$2.txt
  timeout -k 5 "$LIMIT" compute-sanitizer --tool "$1" --error-exitcode 9 \
    "$PYTHON" tools/sanitize_cases.py "$2" > "$log" 2>&1
  echo "$?" > "$OUT/$1-$2.status"
}
for tool in memcheck racecheck; do
  for family in "${FAMILIES[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-6}" ]; do wait -n; done
    check "$tool" "$family" &
  done
done
wait

failed=0
printf '%-16s %-10s %-10s %s\n' family tool result summary
for family in "${FAMILIES[@]}"; do
  for tool in memcheck racecheck; do
    status=$(cat "$OUT/$tool-$family.status")
    case $status in
      0) result=clean ;;
      9) result=errors ;;
      124 | 137) result="no end" ;;
      *) result="failed" ;;
    esac
    [ "$status" = 0 ] || failed=1
    log=$OUT/$tool-$family.txt
    printf '%-16s %-10s %-10s %s; %s\n' "$family" "$tool" "$result" \
      "$(grep -h 'SUMMARY' "$log" | tail -n 1 | sed 's/=* *//')" "$(grep -h '^ran ' "$log" || true)"
  done
done
exit $failed

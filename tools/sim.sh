#!/usr/bin/env bash
# The control core under simulation, as many seeds as asked for, one process per core.
#   tools/sim.sh [BUILD [SEEDS [FIRST]]]     200,000 seeds take 2 to 5 minutes on two cores
# The last line printed is "N seeds, N failed, N s"; exit 0: none failed.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build} seeds=${2:-200000} first=${3:-1}
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
each=$(((seeds + cores - 1) / cores))
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
begin=$SECONDS
for ((i = 0; i < cores; i++)); do
    "$build/tests/sim/sim" "$each" $((first + i * each)) >"$logs/$i" 2>&1 || touch "$logs/failed" &
done
wait
grep -h '^# seed' "$logs"/[0-9]*
cat "$logs"/[0-9]* | awk -v took=$((SECONDS - begin)) '
    /^# [0-9]+ seeds,/ { seeds += $2 }
    /^# seed / { failed++ }
    END { printf "%d seeds, %d failed, %d s\n", seeds, failed, took }'
[ ! -e "$logs/failed" ]

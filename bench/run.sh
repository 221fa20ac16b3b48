#!/usr/bin/env bash
# Speeds of this machine, beside llama.cpp's when its programs and a model of the same shape are there.
#   bench/run.sh [BUILD]
# Environment: MODEL (default demo), THREADS (default: all), LLAMA_BENCH and LLAMA_GGUF to compare.
# The two programs run in turn, ROUNDS times, so that a machine whose speed drifts is fair to both.
set -eu
cd "$(dirname "$0")/.."
bench=${1:-build}/src/cli/mlx-dist-bench
model=${MODEL:-demo}
threads=${THREADS:-$(nproc 2>/dev/null || sysctl -n hw.ncpu)}
rounds=${ROUNDS:-3}
[ -x "$bench" ] || { echo "bench: no $bench: run make first" >&2; exit 1; }

for round in $(seq "$rounds"); do
    echo "round $round: mlx-dist-bench $model, $threads threads"
    "$bench" "$model" -p "${PROMPT:-512}" -n "${GEN:-64}" -t "$threads" -r 1
    [ -n "${LLAMA_BENCH:-}" ] || continue
    echo "round $round: llama-bench ${LLAMA_GGUF:?names the GGUF file}"
    "$LLAMA_BENCH" -m "$LLAMA_GGUF" -p "${PROMPT:-512}" -n "${GEN:-64}" -t "$threads" -r 1 -fa 1
done

#!/bin/sh
# Remake every golden with a live mlx-lm, tokenizers and jinja2, and compare with the committed ones; then, when
# BUILD is a built tree, random models of every family (live.py).
# usage: run.sh [PYTHON [BUILD]]     exit 0: the same; 1: something differs (a summary is printed); other: could not run
set -eu
python=${1:-python3}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
trap 'exit 130' INT TERM
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" "$here/make_models.py" "$out/models"
"$python" "$here/make_tokenizers.py" "$out/tokenizers"
"$python" "$here/make_templates.py" "$out/templates"
"$python" "$here/compare.py" "$here/../../tests/conformance" "$out"
[ -z "${2:-}" ] || "$python" "$here/live.py" "$2" --seeds 2

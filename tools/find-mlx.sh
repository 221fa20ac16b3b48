#!/bin/sh
# Points a build that has no MLX plugin at the python3 of now, if that has MLX: so `pip install mlx`
# and `make` again is all it takes. Milliseconds when there is nothing to do.
#   tools/find-mlx.sh BUILD
build=$1
ls "$build"/src/backend/mlx/libmlxd_mlx.* >/dev/null 2>&1 && exit 0
python=$(command -v python3) || exit 0
"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("mlx") is None)' || exit 0
meson configure "$build" -Dmlx_python="$python"

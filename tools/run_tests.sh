#!/usr/bin/env bash
# Every test of a built tree: unit and conformance by meson, end to end and Python by pytest against
# an installed copy. The last line printed is "N passed, N failed[, N skipped]".
#   tools/run_tests.sh [BUILD] [pytest arguments]
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
shift || true
report=(--meson "$build/meson-logs/testlog.json")

# Python packages for the end-to-end tests, and MLX for the plugin's: from PyPI, once.
venv=$build/venv
why=""
if [ ! -e "$venv/ready" ]; then
    log=$build/venv.log
    if python3 -m venv "$venv" >"$log" 2>&1 &&
        "$venv/bin/pip" install -q openai pytest jsonschema >>"$log" 2>&1; then
        touch "$venv/ready"
    else
        why="no Python packages (openai, pytest) from PyPI: $(tail -n 1 "$log" | cut -c1-120)"
    fi
fi
if [ -e "$venv/ready" ] && [ ! -e "$venv/mlx-tried" ]; then
    mlx='mlx[cpu]'
    [ "$(uname)" = Darwin ] && mlx=mlx
    "$venv/bin/pip" install -q "$mlx" >>"$build/venv.log" 2>&1
    touch "$venv/mlx-tried"
    if "$venv/bin/python" -c 'import mlx.core' 2>/dev/null; then
        meson configure "$build" -Dmlx_python="$PWD/$venv/bin/python"
    fi
fi
ninja -C "$build" || exit 1

rm -f "$build/meson-logs/testlog.json" "$build/pytest.xml"
meson test -C "$build" --no-rebuild --print-errorlogs
meson_rc=$?
[ $meson_rc = 0 ] || report+=(--meson-failed)

tests=()
for t in tests/e2e python/tests; do
    compgen -G "$t/test_*.py" >/dev/null && tests+=("$t")
done
if [ ${#tests[@]} -gt 0 ]; then
    if [ -n "$why" ]; then
        n=$(grep -rhE '^ *(async )?def test_' "${tests[@]}" --include='test_*.py' | wc -l)
        echo "SKIP end-to-end and Python tests: $why"
        report+=(--skipped "$n")
    else
        rm -rf "$build/stage"
        meson install -C "$build" --no-rebuild --quiet --destdir "$PWD/$build/stage" >/dev/null ||
            report+=(--failed "install")
        bin=$(find "$build/stage" -type d -name bin | head -n 1)
        MXD_BIN_DIR=$PWD/$bin MXD_FAKE_SERVER=$PWD/$build/tests/e2e/fake_server \
            PYTHONPATH=python timeout "${MXD_TEST_SECONDS:-900}" "$venv/bin/python" -m pytest -q -rs --junitxml="$build/pytest.xml" \
            "${tests[@]}" "$@"
        rc=$?
        case $rc in 0 | 1 | 5) ;; *) report+=(--failed "pytest ended with $rc") ;; esac
        [ -e "$build/pytest.xml" ] && report+=(--pytest "$build/pytest.xml")
    fi
fi
exec python3 tools/test_report.py "${report[@]}"

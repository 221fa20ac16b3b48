#!/usr/bin/env bash
# Line coverage of src/ by the meson tests and, when `make test` has made its Python environment, the
# end-to-end tests; fails below 85 %.
set -eu
cd "$(dirname "$0")/.."
dir=build-coverage
[ -e $dir/build.ninja ] || meson setup $dir -Db_coverage=true
ninja -C $dir
meson test -C $dir --no-rebuild --timeout-multiplier 4
python=build/venv/bin/python
if [ -x $python ]; then
    MXD_BIN_DIR=$PWD/$dir/src/cli MXD_FAKE_SERVER=$PWD/$dir/tests/e2e/fake_server \
        $python -m pytest -q tests/e2e
else
    echo "SKIP end-to-end tests: run make test first"
fi
if ! command -v gcovr >/dev/null 2>&1; then
    [ -e $dir/venv/bin/gcovr ] || {
        python3 -m venv $dir/venv
        $dir/venv/bin/pip install -q gcovr
    }
    PATH=$PWD/$dir/venv/bin:$PATH
fi
gcovr -r . --filter src/ --object-directory $dir --print-summary --fail-under-line 85 \
    --gcov-ignore-parse-errors -o $dir/coverage.txt
echo "by file: $dir/coverage.txt"

#!/usr/bin/env bash
# Line coverage of src/ by the meson tests; fails below 85 %.
set -eu
cd "$(dirname "$0")/.."
[ -e build-coverage/build.ninja ] || meson setup build-coverage -Db_coverage=true
ninja -C build-coverage
meson test -C build-coverage --no-rebuild
if ! command -v gcovr >/dev/null 2>&1; then
    [ -e build-coverage/venv/bin/gcovr ] || {
        python3 -m venv build-coverage/venv
        build-coverage/venv/bin/pip install -q gcovr
    }
    PATH=$PWD/build-coverage/venv/bin:$PATH
fi
gcovr -r . --filter src/ --object-directory build-coverage --print-summary --fail-under-line 85 \
    --gcov-ignore-parse-errors -o build-coverage/coverage.txt
echo "by file: build-coverage/coverage.txt"

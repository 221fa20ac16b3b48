#!/usr/bin/env bash
# The meson tests under AddressSanitizer with UBSan, then under ThreadSanitizer.
set -eu
cd "$(dirname "$0")/.."
run() {
    local dir=$1 kinds=$2
    [ -e "$dir/build.ninja" ] || meson setup "$dir" -Db_sanitize="$kinds" -Db_lundef=false
    ninja -C "$dir"
    meson test -C "$dir" --no-rebuild --print-errorlogs --timeout-multiplier 8
}
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1
run build-asan address,undefined
run build-tsan thread

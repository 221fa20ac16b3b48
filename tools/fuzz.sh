#!/usr/bin/env bash
# Every fuzz target of fuzz/: its corpus, then SECONDS (default 60) of libFuzzer. Needs clang.
# Inputs that crash are left in build-fuzz/NAME-*; those that reach new code in build-fuzz/corpus.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
command -v clang >/dev/null 2>&1 || { echo "fuzz: clang is missing (apt install clang)" >&2; exit 1; }
[ -e build-fuzz/build.ninja ] ||
    CC=clang meson setup build-fuzz -Db_sanitize=address,undefined -Db_lundef=false \
        -Dc_args=-fsanitize=fuzzer-no-link -Dmlx=disabled
ninja -C build-fuzz
meson test -C build-fuzz --no-rebuild --suite fuzz --print-errorlogs
for target in build-fuzz/fuzz/libfuzzer_*; do
    [ -f "$target" ] && [ -x "$target" ] || continue
    name=${target##*/libfuzzer_}
    echo "fuzz: $name, $seconds s"
    mkdir -p "build-fuzz/corpus/$name"
    "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
        -artifact_prefix="build-fuzz/$name-" "build-fuzz/corpus/$name" "fuzz/corpus/$name"
done
echo "fuzz: no crash"

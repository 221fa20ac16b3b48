#!/usr/bin/env bash
# The kernels' unit test on emulated 64-bit Arm: once with NEON alone, once with SDOT, once with USDOT.
# Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static. An argument filters tests.
set -eu
cd "$(dirname "$0")/.."
cc=aarch64-linux-gnu-gcc qemu=qemu-aarch64-static out=build-arm64
for tool in $cc $qemu; do
    command -v $tool >/dev/null 2>&1 && continue
    echo "cross-arm64: $tool is missing (apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross" \
        "qemu-user-static)" >&2
    exit 1
done
mkdir -p $out
# What test.h and main.c use of cmocka, whose Arm package cannot lie beside the one of the machine.
cat >$out/cmocka.h <<'C'
#include <stdlib.h>
struct CMUnitTest { const char *name; void (*run)(void **); void *a, *b, *state; };
#define fail_msg(...) (printf("%s:%d: ", __FILE__, __LINE__), printf(__VA_ARGS__), puts(""), exit(1))
#define assert_true(e) ((e) ? (void)0 : fail_msg("%s", #e))
#define assert_string_equal(a, b) assert_true(strcmp(a, b) == 0)
#define skip() fail_msg("skipped")
static inline int _cmocka_run_group_tests(const char *g, struct CMUnitTest *t, size_t n, void *a,
                                          void *b) {
    (void)g, (void)a, (void)b;
    for (size_t i = 0; i < n; i++) t[i].run(&t[i].state), printf("ok %s\n", t[i].name), fflush(stdout);
    return 0;
}
C
flags="-std=c17 -D_GNU_SOURCE -Isrc -I$out -fno-math-errno -fno-trapping-math -ffp-contract=off
    -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wundef"
$cc $flags -O3 -c src/kernels/arm_neon.c -o $out/neon.o
$cc $flags -O3 -march=armv8.2-a+dotprod -c src/kernels/arm_neon_dot.c -o $out/dot.o
$cc $flags -O3 -march=armv8.2-a+dotprod+i8mm -c src/kernels/arm_neon_i8mm.c -o $out/i8mm.o
$cc $flags -Wno-conversion -static -O2 -o $out/unit_kernels tests/unit/main.c \
    tests/unit/test_kernels.c src/kernels/{kernels,pack,scalar}.c \
    src/base/{alloc,err,rand}.c $out/{neon,dot,i8mm}.o -lm
for cpu in cortex-a57 neoverse-n1 max; do
    echo "cross-arm64: $cpu"
    $qemu -cpu $cpu $out/unit_kernels "$@"
done

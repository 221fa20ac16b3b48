#!/usr/bin/env python3
"""check_core_symbols.py NM ARCHIVE: the control core needs nothing but memory moves.

No clock, no threads, no input or output, no heap, no random numbers: what the archive leaves
undefined must be in the list below. Exit 1 names what is not."""
import subprocess
import sys

ALLOWED = {"memcpy", "memmove", "memset", "memcmp", "mxd_assert_failed"}
# What compilers put in by themselves: stack protector, position-independent code.
COMPILER = {"__stack_chk_fail", "__stack_chk_guard", "_GLOBAL_OFFSET_TABLE_"}


def symbols(nm: str, archive: str) -> tuple[set[str], set[str]]:
    text = subprocess.run([nm, "-g", archive], check=True, capture_output=True, text=True).stdout
    defined, undefined = set(), set()
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "U":
            undefined.add(words[1])
        elif len(words) == 3:
            defined.add(words[2])
    return defined, undefined


def main() -> int:
    nm, archive = sys.argv[1:]
    defined, undefined = symbols(nm, archive)
    if "mxd_coord_step" not in defined or "mxd_sched_next" not in defined:
        print(f"{archive}: not the control core", file=sys.stderr)
        return 1
    foreign = sorted(undefined - defined - ALLOWED - COMPILER)
    for name in foreign:
        print(f"{archive}: needs {name}: the control core must stay pure", file=sys.stderr)
    return 1 if foreign else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""mutants.py CC SOURCE_ROOT WORK_DIR [seeds [one mutant]]: does the simulator have teeth?

Builds the control core once per mutant of src/runtime/mutants.h (one rule taken away) and
runs seeds until one fails. Prints TAP; a mutant that survives is a failure: the rule is not
needed, or the oracle is blind."""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys


def mutants(root: pathlib.Path) -> list[tuple[int, str, str]]:
    text = (root / "src/runtime/mutants.h").read_text()
    found = re.findall(r'X\((\d+),\s*(\w+),\s*"([^"]*)"\)', text)
    return [(int(n), name, what) for n, name, what in found]


def build(cc: str, root: pathlib.Path, out: pathlib.Path, mutant: int) -> None:
    sources = sorted((root / "src/cluster").glob("core_*.c")) + [root / "src/runtime/sched.c", root / "src/runtime/pages.c"]
    sources += sorted((root / "tests/sim").glob("*.c"))
    subprocess.run([*cc.split(), "-std=c17", "-O1", "-D_GNU_SOURCE", "-w", f"-DMXD_MUTANT={mutant}",
                    f"-I{root / 'src'}", "-o", str(out), *map(str, sources)], check=True)


def first_failure(sim: pathlib.Path, seeds: int) -> str:
    """The seed at which it fails and why; empty: it survives."""
    step, at = 250, 1
    while at <= seeds:
        run = subprocess.run([str(sim), str(step), str(at)], capture_output=True, text=True)
        if run.returncode:
            lines = [l for l in run.stdout.splitlines() if l.startswith("# seed")]
            return lines[0][2:] if lines else f"it ends with {run.returncode} after seed {at}"
        at += step
    return ""


def main() -> int:
    cc, root, work = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    seeds = int(sys.argv[4]) if len(sys.argv) > 4 else 10000
    chosen = [m for m in mutants(root) if len(sys.argv) < 6 or m[1] == sys.argv[5]]
    work.mkdir(parents=True, exist_ok=True)

    def try_one(mutant: tuple[int, str, str]) -> str:
        sim = work / f"sim_mutant_{mutant[0]}"
        build(cc, root, sim, mutant[0])
        seen = first_failure(sim, seeds)
        sim.unlink(missing_ok=True)
        return seen

    survivors = 0
    print(f"TAP version 13\n1..{len(chosen)}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for k, ((_, name, what), seen) in enumerate(zip(chosen, pool.map(try_one, chosen)), 1):
            survivors += not seen
            print(f"{'ok' if seen else 'not ok'} {k} - {name}: {what}: "
                  f"{seen or f'survives {seeds} seeds'}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

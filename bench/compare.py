#!/usr/bin/env python3
"""Our speeds beside llama.cpp's on the same shapes, in alternating rounds: ratios, one line a test.

    python3 bench/compare.py --model DIR --gguf FILE --llama DIR [--rounds 5] [--tests decode,prefill,batch,depth]

--llama is the folder of llama-bench and llama-batched-bench. The two programs run within seconds of each other,
the first one in turn; a round's figure is the median of its runs, what counts is the median of the rounds'
ratios. Every round is printed, so that a disturbed one shows. Needs the standard library only.
"""

import argparse
import json
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Test:
    name: str
    prompt: int = 0
    gen: int = 0
    streams: int = 1
    depth: int = 0
    runs: int = 1


TESTS = {
    "decode": Test("decode", gen=4, runs=12),
    "prefill": Test("prefill of 512", prompt=512, runs=2),
    "batch": Test("decode, 8 streams", gen=32, streams=8),
    "depth": Test("decode at depth 4096", gen=16, depth=4096),
    "prefill-depth": Test("prefill of 512 at depth 4096", prompt=512, depth=4096),
}
DECODE = ("decode", "depth")  # one step reads every weight once


def run(args: argparse.Namespace, argv: list[str]) -> str:
    nice = ["nice", "-n", str(args.nice)] if args.nice else []
    done = subprocess.run(nice + argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def ours(args: argparse.Namespace, t: Test, threads: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = json.loads(run(args, [
        args.bench, args.model, "-p", str(t.prompt), "-n", str(t.gen), "-b", str(t.streams), "-d", str(t.depth),
        "-t", str(threads), "-r", str(t.runs), "--json"]))
    return rows[0]


def theirs(args: argparse.Namespace, t: Test, threads: int) -> float:
    if t.streams > 1:
        text = run(args, [f"{args.llama}/llama-batched-bench", "-m", args.gguf, "-npp", "16", "-ntg", str(t.gen), "-npl",
                          str(t.streams), "-t", str(threads), "-fa", "on", "-c", "2048", "--output-format", "jsonl"])
        return float(json.loads(text.strip().splitlines()[-1])["speed_tg"])
    text = run(args, [f"{args.llama}/llama-bench", "-m", args.gguf, "-p", str(t.prompt), "-n", str(t.gen), "-d",
                      str(t.depth), "-t", str(threads), "-r", str(t.runs), "-fa", "1", "-o", "json"])
    return statistics.median(json.loads(text)[0]["samples_ts"])


def figures(values: list[float], form: str) -> str:
    return ", ".join(format(v, form) for v in values)


def compare(args: argparse.Namespace, key: str, threads: int) -> None:
    t = TESTS[key]
    mine: list[dict[str, Any]] = []
    peer: list[float] = []
    for i in range(args.rounds):
        if i % 2:
            peer.append(theirs(args, t, threads))
        mine.append(ours(args, t, threads))
        if not i % 2:
            peer.append(theirs(args, t, threads))
    speed = [statistics.median(m["runs"]) for m in mine]
    ratios = [a / b for a, b in zip(speed, peer)]
    print(f"| {t.name} | {threads} | {figures(speed, '.1f')} | {figures(peer, '.1f')} | {figures(ratios, '.2f')} "
          f"| {statistics.median(ratios):.2f} |", flush=True)
    if key in DECODE:
        weights = [v * m["weight_bytes"] * 1e-9 for v, m in zip(speed, mine)]
        reads = [m["read_bytes_per_second"] * 1e-9 for m in mine]
        shares = [w / r for w, r in zip(weights, reads)]
        print(f"| weights read / memory reads, GB/s | {threads} | {figures(weights, '.1f')} | {figures(reads, '.1f')} "
              f"| {figures(shares, '.2f')} | {statistics.median(shares):.2f} |", flush=True)
    print(f"| load, s; memory / weights | {threads} | {figures([m['load_seconds'] for m in mine], '.2f')} | "
          f"| {figures([m['rss_bytes'] / m['weight_bytes'] for m in mine], '.3f')} | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--bench", default=str(Path(__file__).parent.parent / "build/src/cli/mlx-dist-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tests", default="decode,prefill,batch,depth", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--nice", type=int, default=0, help="of both programs; below 0 needs root")
    args = parser.parse_args()
    print(f"{args.model} beside {args.gguf}\n")
    print("| test | threads | ours, tokens/s | llama.cpp, tokens/s | ratios | median |\n|---|---|---|---|---|---|")
    for key in args.tests.split(","):
        for threads in map(int, args.threads.split(",")):
            compare(args, key, threads)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Equal devices on one machine: what a cluster gains over one of them.

    bench/emulated.py BUILD MODEL [--share 0.5] [--period-us 10000] [--cases tensor,pipeline] [--rounds 3]

A device is a worker process of one compute thread that the kernel gives the same share of one core
(cgroup CPU quota, root needed): --share 0.5 is half a core, in slices of --period-us. One device
holds the whole model; then 2 and 3 of them share each layer (one stream), or the layers (as many
streams as asked for). Rounds alternate between the cases. The coordinator only hands out tokens and
has no quota. Devices of one machine share its memory bus, which real ones do not: --kernels scalar makes
them slow enough that arithmetic decides and the bus does not. Prints a table and, with --json, one object.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request

WORDS = "the cluster reads a long prompt in chunks and keeps every token of it "


class Group:
    """A cgroup with a CPU quota; version 1 or 2, whichever the machine has."""

    def __init__(self, name: str, share: float, period_us: int):
        first = pathlib.Path("/sys/fs/cgroup/cpu")
        self.v1 = first.exists()
        self.path = (first if self.v1 else first.parent) / f"mlxd-{os.getpid()}-{name}"
        self.path.mkdir()
        quota = int(share * period_us)
        if self.v1:
            (self.path / "cpu.cfs_period_us").write_text(str(period_us))
            (self.path / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self.path / "cpu.max").write_text(f"{quota} {period_us}")

    def take(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        for _ in range(100):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.05)


class Cluster:
    """A server with local workers, each a device."""

    def __init__(self, build: str, model: str, workers: int, options: list[str], args):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        program = pathlib.Path(build) / "src" / "cli" / "mlx-dist-server"
        command = [program, model, "--port", "0", "--local-workers", str(workers), "--threads", "1",
                   "--no-prefix-cache", "--ctx-size", "2048", "--parallel", "8", "--kernels", args.kernels,
                   *options]
        self.server = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.url = self.wait()
        self.groups = []
        self.pids = self.workers()
        for n, pid in self.pids.items():
            group = Group(n, args.share, args.period_us)
            group.take(pid)
            self.groups.append(group)

    def wait(self) -> str:
        for _ in range(6000):
            found = re.search(r"listening on (http://\S+)", pathlib.Path(self.log.name).read_text())
            if found:
                return found[1]
            if self.server.poll() is not None:
                break
            time.sleep(0.02)
        raise SystemExit(pathlib.Path(self.log.name).read_text())

    def state(self) -> dict:
        with urllib.request.urlopen(self.url + "/v1/cluster/state", timeout=60) as reply:
            return json.load(reply)

    def workers(self) -> dict[str, int]:
        return {n["id"]: n["pid"] for n in self.state()["nodes"]}

    def ask(self, prompt: str, tokens: int) -> tuple[int, float, float, float]:
        """Prompt tokens; seconds to the first token, between first and last; when it ended."""
        body = {"model": "x", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
                "ignore_eos": True, "stream_options": {"include_usage": True}}
        body["model"] = self.state()["model"]["id"]
        http = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(),
                                      {"Content-Type": "application/json"})
        begin = time.monotonic()
        first = last = 0.0
        prompt_tokens = 0
        with urllib.request.urlopen(http, timeout=3600) as reply:
            for raw in reply:
                if not raw.startswith(b"data: {"):
                    continue
                chunk = json.loads(raw[6:])
                if chunk.get("usage"):
                    prompt_tokens = chunk["usage"]["prompt_tokens"]
                if chunk["choices"]:
                    last = time.monotonic()
                    first = first or last
        return prompt_tokens, first - begin, last - first, last

    def decode(self, tokens: int) -> float:
        return (tokens - 1) / self.ask("Once upon a time", tokens)[2]

    def prefill(self, words: int) -> float:
        n, first, _, _ = self.ask(f"{time.monotonic()} " + WORDS * (words // 14), 1)
        return n / first

    def streams(self, n: int, tokens: int) -> float:
        begin = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            all_of = list(pool.map(lambda i: self.ask(f"Number {i}: ", tokens), range(n)))
        return n * tokens / (max(a[3] for a in all_of) - begin)

    def memory(self) -> int:
        return max(n["memory_used"] for n in self.state()["nodes"])

    def close(self) -> None:
        replaced = self.workers() != self.pids  # the new one has no quota
        self.server.terminate()
        self.server.wait(60)
        for g in self.groups:
            g.close()
        if replaced:
            raise SystemExit("a worker was replaced:\n" + pathlib.Path(self.log.name).read_text())


CASES = {  # name: workers, options
    "one device": (1, []),
    "2 ranks": (2, ["--tensor-parallel-size", "2"]),
    "3 ranks": (3, ["--tensor-parallel-size", "3"]),
    "3 stages": (3, ["--pipeline-parallel-size", "3"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--period-us", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--words", type=int, default=280)
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: dict[str, list[dict]] = {}
    for _ in range(args.rounds):
        for name in args.cases.split(","):
            workers, options = CASES[name]
            c = Cluster(args.build, args.model, workers, options, args)
            row = {"decode": c.decode(args.tokens), "prefill": c.prefill(args.words),
                   "streams": c.streams(args.streams, args.tokens), "rss": c.memory()}
            c.close()
            rows.setdefault(name, []).append(row)
            if not args.json:
                print(name, {k: round(v, 2) for k, v in row.items()}, flush=True)
    middle = {n: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for n, rs in rows.items()}
    if args.json:
        print(json.dumps({"share": args.share, "median": middle, "rounds": rows}, indent=1))
        return
    one = middle.get("one device")
    print(f"\n{'':12}{'decode':>10}{'prefill':>10}{f'{args.streams} streams':>12}{'RSS, MB':>10}")
    for name, m in middle.items():
        print(f"{name:12}{m['decode']:10.2f}{m['prefill']:10.1f}{m['streams']:12.2f}{m['rss'] / 1e6:10.0f}")
        if one and name != "one device":
            print(f"{'  to one':12}" + "".join(
                f"{m[k] / one[k]:{w}.2f}" for k, w in (("decode", 10), ("prefill", 10), ("streams", 12), ("rss", 10))))


if __name__ == "__main__":
    main()

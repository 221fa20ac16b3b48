#!/usr/bin/env python3
"""Does a plan run as fast as it says? Predicted and measured speed on emulated clusters.

    bench/plan_check.py [--build build] [--models DEMO SMALL LARGE] [--rounds 2] [--only NAME,...] [--period-us 4000] [--json FILE]

Every node is a process on this machine that looks like a machine of its own: a cgroup with a CPU
quota (as a device that is slower by that factor, as far as a step is longer than the quota's period:
4 ms here, 100 ms where nothing is said), and a host name of its own. A node behind a slow link has a network namespace, and
tools/faultproxy.py between it and the others; it is the last stage, for what it sends to other
stages would go around the proxy. Needs root for cgroups (v1 or v2) and namespaces; without it every
node has the whole machine.

Decode and prefill are taken from streamed answers: a prompt of 512 tokens, the time to the first
token, then the time between tokens. The prediction is the one of GET /v1/cluster/state, made before
anything was loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLONE_NEWNS, CLONE_NEWUTS, MS_REC, MS_PRIVATE = 0x00020000, 0x04000000, 0x4000, 1 << 18
PERIOD_US = 4000  # of the quotas


@dataclass
class Node:
    cpu: float = 0.0  # cores; 0: no limit
    memory: str = ""  # of a worker
    delay_ms: float = 0.0  # one way, of its links
    rate: int = 0  # bytes/s of them


@dataclass
class Scenario:
    name: str
    model: str  # "demo", "small", "large"
    nodes: list[Node]  # the first one is the server itself
    options: list[str] = field(default_factory=list)


def scenarios() -> list[Scenario]:
    two, three = ["--pipeline-parallel-size", "2"], ["--pipeline-parallel-size", "3"]
    return [
        Scenario("demo, this machine", "demo", [Node()]),
        Scenario("demo, one device", "demo", [Node(0.5)]),
        Scenario("demo, 3 equal", "demo", [Node(0.5), Node(0.5), Node(0.5)], three),
        Scenario("demo, speeds 0.6 : 0.3", "demo", [Node(0.6), Node(0.3)], two),
        Scenario("demo, link 5 ms", "demo", [Node(0.5), Node(0.5, delay_ms=5)], ["--layer-split", "3,3"]),
        Scenario("small, this machine", "small", [Node()]),
        Scenario("small, one device", "small", [Node(1.0)]),
        Scenario("small, 3 equal", "small", [Node(0.5), Node(0.5), Node(0.5)], three),
        Scenario("small, speeds 0.8 : 0.4", "small", [Node(0.8), Node(0.4)], two),
        Scenario("small, memory 250 MB", "small", [Node(0.5), Node(0.5, memory="250MB")], two),
        Scenario("small, link 5 ms, 20 MB/s", "small", [Node(0.5), Node(0.5, delay_ms=5, rate=20_000_000)],
                 ["--layer-split", "14,14"]),
        Scenario("small, 2 ranks", "small", [Node(0.6), Node(0.6)], ["--tensor-parallel-size", "2"]),
        Scenario("small, 3 ranks 0.3 : 0.6 : 0.6", "small", [Node(0.3), Node(0.6), Node(0.6)],
                 ["--tensor-parallel-size", "3"]),
        Scenario("large, 2 ranks", "large", [Node(0.9), Node(0.9)], ["--tensor-parallel-size", "2"]),
        Scenario("large, 2 equal", "large", [Node(0.7), Node(0.7)], two),
        Scenario("large, speeds 0.9 : 0.5", "large", [Node(0.9), Node(0.5)], two),
    ]


class Cgroup:
    """A CPU quota; v1 or v2, whichever can be written."""

    period_us = PERIOD_US

    def __init__(self, name: str, cores: float) -> None:
        self.path = ""
        if os.geteuid() != 0:
            return
        us = max(1000, int(cores * self.period_us)) if cores > 0 else 0
        v1 = [("cpu.cfs_period_us", str(self.period_us)), ("cpu.cfs_quota_us", str(us or -1)), ("cpu.shares", "200000")]
        v2 = [("cpu.max", f"{us or 'max'} {self.period_us}"), ("cpu.weight", "10000")]
        for base, settings in (("/sys/fs/cgroup/cpu", v1), ("/sys/fs/cgroup", v2)):
            path = os.path.join(base, name)
            try:
                os.makedirs(path, exist_ok=True)
                for file, text in settings:  # the last: others on this machine wait for us
                    self.write(path, file, text)
                self.path = path
                return
            except OSError:
                continue

    @staticmethod
    def write(path: str, file: str, text: str) -> None:
        with open(os.path.join(path, file), "w") as f:
            f.write(text)

    def enter(self) -> None:  # in the child, before the program starts
        if self.path:
            self.write(self.path, "cgroup.procs", str(os.getpid()))

    def remove(self) -> None:
        if self.path:
            try:
                os.rmdir(self.path)
            except OSError:
                pass


def own_host(name: str) -> None:
    """A host name of its own, and shared memory of its own: ranks meet over the network."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and libc.unshare(CLONE_NEWUTS | CLONE_NEWNS) == 0:
        libc.sethostname(name.encode(), len(name))
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    def __init__(self, build: str, model: str, s: Scenario, verbose: bool) -> None:
        self.bin = os.path.join(build, "src/cli")
        self.dir = tempfile.mkdtemp(prefix="plan-check-")
        self.out = None if verbose else subprocess.DEVNULL
        self.processes: list[subprocess.Popen] = []
        self.cgroups: list[Cgroup] = []
        self.spaces: list[str] = []
        self.http, self.port = free_port(), free_port()
        n = len(s.nodes)
        token = subprocess.run(
            [f"{self.bin}/mlx-dist-config", "init", "--state-dir", self.dir], capture_output=True)
        token = subprocess.run(
            [f"{self.bin}/mlx-dist-config", "token", "--uses", str(n), "--state-dir", self.dir],
            check=True, capture_output=True, text=True).stdout.strip()
        server = [f"{self.bin}/mlx-dist-server", model, "--port", str(self.http), "--state-dir",
                  self.dir, "--parallel", "1", "--alias", "x", "--no-prefix-cache", "--ctx-size", "2048",
                  *(["--cluster-listen", f"127.0.0.1:{self.port}"] if n > 1 else []), *s.options]
        if "--layer-split" in s.options:
            server += ["--hostfile", self.hosts(n)]
        self.start(server, s.nodes[0], "check-0")
        time.sleep(1.5)
        for i, node in enumerate(s.nodes[1:], 1):
            state = os.path.join(self.dir, f"w{i}")
            os.makedirs(state)
            data = free_port()
            inside, join, listen = [], f"127.0.0.1:{self.port}", f"127.0.0.1:{data}"
            if node.delay_ms or node.rate:
                inside, join, listen = self.far_away(i, node, data)
            worker = [*inside, f"{self.bin}/mlx-dist-worker", "--join", join, "--token", token, "--name",
                      f"check-{i}", "--data-listen", listen, "--state-dir", state]
            if node.memory:
                worker += ["--memory", node.memory]
            self.start(worker, node, f"check-{i}")

    def hosts(self, n: int) -> str:  # the server waits for so many
        path = os.path.join(self.dir, "hosts.json")
        with open(path, "w") as f:
            json.dump([{"ssh": f"check-{i}"} for i in range(n)], f)
        return path

    def far_away(self, i: int, node: Node, data: int) -> tuple[list[str], str, str]:
        """A network of its own, reached both ways through the proxy: how to start the worker there,
        what it joins, and where it listens."""
        net = f"10.231.{os.getpid() % 250}"
        name, here, there = f"mlxd{os.getpid() % 10000}x{i}", f"{net}.{4 * i + 1}", f"{net}.{4 * i + 2}"
        control = free_port()
        for line in (f"ip netns add {name}", f"ip link add {name}a type veth peer name {name}b netns {name}",
                     f"ip addr add {here}/30 dev {name}a", f"ip link set {name}a up",
                     f"ip -n {name} addr add {there}/30 dev {name}b", f"ip -n {name} link set {name}b up",
                     f"ip -n {name} link set lo up"):
            subprocess.run(line.split(), check=True, capture_output=True)
        self.spaces.append(name)
        p = subprocess.Popen(
            [sys.executable, f"{ROOT}/tools/faultproxy.py", f"control={here}:{control},127.0.0.1:{self.port}",
             f"data=127.0.0.1:{data},{there}:{data}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2):
            p.stdout.readline()
        for line in ([f"all delay {node.delay_ms}"] if node.delay_ms else []) + (
                [f"all rate {node.rate}"] if node.rate else []):
            p.stdin.write(line + "\n")
            p.stdin.flush()
            p.stdout.readline()
        self.processes.append(p)
        return ["nsenter", f"--net=/run/netns/{name}"], f"{here}:{control}", f"0.0.0.0:{data}"

    def start(self, argv: list[str], node: Node, host: str) -> None:
        group = Cgroup(f"mlxd-{host}-{os.getpid()}", node.cpu)
        self.cgroups.append(group)

        def before() -> None:
            group.enter()
            own_host(host)

        self.processes.append(subprocess.Popen(argv, stdout=self.out, stderr=self.out, preexec_fn=before))

    def get(self, path: str) -> dict:
        c = http.client.HTTPConnection("127.0.0.1", self.http, timeout=600)
        c.request("GET", path)
        return json.loads(c.getresponse().read())

    def wait(self, seconds: float) -> dict:
        end = time.time() + seconds
        while time.time() < end:
            try:
                state = self.get("/v1/cluster/state")
                if state["state"] == "serving" and state["plan"]:
                    return state
            except (OSError, ValueError, KeyError):
                pass
            if self.processes[0].poll() is not None:
                raise RuntimeError("the server has ended")
            time.sleep(0.2)
        raise RuntimeError("no plan in time")

    def answer(self, prompt: list[int], n: int) -> tuple[float, float]:
        """Seconds to the first token, and of each further one."""
        body = json.dumps({"model": "x", "prompt": prompt, "max_tokens": n, "temperature": 0,
                           "stream": True, "ignore_eos": True})
        c = http.client.HTTPConnection("127.0.0.1", self.http, timeout=600)
        t0 = time.perf_counter()
        c.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        r = c.getresponse()
        if r.status != 200:
            raise RuntimeError(r.read().decode())
        first = last = 0.0
        while line := r.readline():
            if line.startswith(b"data: {"):
                last = time.perf_counter()
                first = first or last
        return first - t0, (last - first) / (n - 1)

    def close(self) -> None:
        for p in reversed(self.processes):
            p.send_signal(signal.SIGTERM)
        for p in self.processes:
            try:
                p.wait(5)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        for name in self.spaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        for g in self.cgroups:
            g.remove()
        shutil.rmtree(self.dir, ignore_errors=True)


def measure(c: Cluster, plan: dict, rounds: int, seed: int) -> tuple[float, float]:
    rand = random.Random(seed)
    n_prompt = plan["prompt"]
    n_out = 33 if plan["decode_tokens_per_s"] < 100 else 129
    c.answer([rand.randrange(20, 2000) for _ in range(16)], 4)  # everything is touched once
    prefill, decode = [], []
    for _ in range(rounds):
        first, each = c.answer([rand.randrange(20, 2000) for _ in range(n_prompt)], n_out)
        prefill.append(n_prompt / first)
        decode.append(1 / each)
    return statistics.median(decode), statistics.median(prefill)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--build", default=os.path.join(ROOT, "build"))
    p.add_argument("--models", nargs=3, default=["demo", "", ""], metavar=("DEMO", "SMALL", "LARGE"))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default="")
    p.add_argument("--period-us", type=int, default=PERIOD_US)
    p.add_argument("--json", default="")
    p.add_argument("--verbose", action="store_true")
    a = p.parse_args()
    Cgroup.period_us = a.period_us
    models = dict(zip(("demo", "small", "large"), a.models))
    rows = []
    print(f"{'cluster':28} {'stages':24} {'decode':>26} {'prefill':>26}")
    print(f"{'':28} {'':24} {'predicted measured ratio':>26} {'predicted measured ratio':>26}")
    for s in scenarios():
        if (a.only and not any(x in s.name for x in a.only.split(","))) or not models[s.model]:
            continue
        c = None
        try:
            c = Cluster(a.build, models[s.model], s, a.verbose)
            plan = c.wait(180)["plan"]
            decode, prefill = measure(c, plan, a.rounds, 1)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as e:
            print(f"{s.name:28} failed: {e}", flush=True)
            continue
        finally:
            if c:
                c.close()
        stages = " ".join(
            "+".join(r["node"].replace("check-", "") for r in g["ranks"]) + f":{g['layers'][1] - g['layers'][0]}"
            for g in plan["stages"])
        row = {"cluster": s.name, "stages": stages, "decode_predicted": plan["decode_tokens_per_s"],
               "decode": decode, "prefill_predicted": plan["prefill_tokens_per_s"], "prefill": prefill}
        rows.append(row)
        print(f"{s.name:28} {stages[:24]:24} {row['decode_predicted']:10.1f} {decode:8.1f} "
              f"{row['decode_predicted'] / decode:6.2f} {row['prefill_predicted']:10.1f} {prefill:8.1f} "
              f"{row['prefill_predicted'] / prefill:6.2f}", flush=True)
    if a.json:
        with open(a.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()

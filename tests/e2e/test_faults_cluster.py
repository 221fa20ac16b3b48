"""More of the fault matrix: what the cluster itself must see, and whom it must not let in.

As test_faults.py, whose helpers it uses: rows 8, 9, 12, 25, 29, 34 and 35 of docs/faults.md.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

import test_programs as programs
from test_faults import Proxy, loopback_is_a_net, report, stage_pids, stall_ms
from test_programs import (DEMO, Answer, Worker, all_serve, alive, free_port, nodes, places, run, start,
                           state, wait_until)

assert places  # nobody's own configuration, caches or keys


def serving(server, name):
    return any(n["id"] == name and n["layers"] and n["state"] == "serving" for n in nodes(server))


def order(server):
    """Ids of the nodes of the plan, in pipeline order; empty while there is none."""
    plan = state(server)["plan"]
    return [r["node"] for s in plan["stages"] for r in s["ranks"]] if plan else []


def new_cluster(place):
    """Keys of a cluster, a port for it, and a way to make tokens."""
    keys = ["--state-dir", str(place / "server")]
    assert run("config", "init", *keys).returncode == 0
    return keys, free_port(), lambda: run("config", "token", *keys).stdout.strip()


def box(place, name, join, *options):
    """A worker that joins as soon as it can."""
    (place / name).mkdir(exist_ok=True)
    return Worker(join, str(place / name), "--name", name, *options)


def while_starting(port, join):
    """Runs `join` beside what follows, once something listens on the port."""
    def main():
        def listens():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0
        wait_until(listens)
        join()
    t = threading.Thread(target=main, daemon=True)
    t.start()
    return t


# --------------------------------------------------------------------- row 8: steps that never end


@pytest.fixture
def hangs(monkeypatch):
    monkeypatch.setenv("MLXD_TEST_STALL", "hang")


def test_step_that_hangs_on_a_local_worker(hangs):
    """Its heartbeats go on: only the deadline of the step tells. The process is replaced."""
    s = start("--local-workers", 3, "--ctx-size", 2048)
    want = Answer(s).result()
    all_serve(s, 3)
    a = Answer(s)
    wait_until(lambda: a.n >= 20, every=0.001)
    pid = stage_pids(s)[1]
    os.kill(pid, signal.SIGUSR2)
    at = time.monotonic()
    assert a.result() == want
    report("stall, a step hangs", [stall_ms(a, at)])
    assert stall_ms(a, at) < 20000
    wait_until(lambda: not alive(pid))
    all_serve(s, 3)
    assert Answer(s).result() == want
    assert s.stop() == 0


def test_worker_that_becomes_slow_gets_less(monkeypatch):
    """Every step of one takes 12 ms more: the next answers come from a plan that spares it."""
    monkeypatch.setenv("MLXD_TEST_STALL", "12")
    s = start("--local-workers", 3, "--ctx-size", 2048, "--no-prefix-cache")
    all_serve(s, 3)
    want = Answer(s).result()
    slow = max(nodes(s), key=lambda n: n["layers"][1] - n["layers"][0])
    os.kill(slow["pid"], signal.SIGUSR2)
    told = time.monotonic()
    epoch = state(s)["epoch"]
    while state(s)["epoch"] == epoch and time.monotonic() < told + 60:
        assert Answer(s).result() == want
    report("until a slow worker is spared", [1000 * (time.monotonic() - told)])
    now = next(n for n in nodes(s) if n["id"] == slow["id"])
    assert now["slow"] > 2 and now["layers"][1] - now["layers"][0] == 1, nodes(s)
    assert all(n["slow"] < 2 for n in nodes(s) if n["id"] != slow["id"])
    assert Answer(s).result() == want
    assert s.stop() == 0


def test_step_that_hangs_on_a_remote_worker(hangs, tmp_path):
    """It cannot be started again from here: the plan goes on without it until its step is over."""
    keys, port, token = new_cluster(tmp_path)
    boxes = []
    while_starting(port, lambda: boxes.append(
        box(tmp_path, "box", f"127.0.0.1:{port}", "--token", token())))
    s = start("--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1,
              "--pipeline-parallel-size", 2, "--layer-split", "3,3", "--ctx-size", 2048, *keys)
    want = Answer(s).result()
    wait_until(lambda: serving(s, "box"))
    a = Answer(s)
    wait_until(lambda: a.n >= 20, every=0.001)
    boxes[0].process.send_signal(signal.SIGUSR2)
    assert a.result() == want
    assert order(s) == ["local-0"]
    assert "split_not_used nodes=1" in s.text()
    assert any("layer split" in r for r in state(s)["plan"]["reasons"])
    assert Answer(s).result() == want
    boxes[0].process.send_signal(signal.SIGUSR2)
    wait_until(lambda: serving(s, "box"), timeout=70)
    assert Answer(s).result() == want
    assert s.stop() == 0
    boxes[0].end(signal.SIGKILL)


# ------------------------------------------------- row 12: only the link between two workers is cut


def test_link_between_two_workers(tmp_path):
    """a hands its hidden states to b through a proxy; the server and the local worker reach b
    directly. a joins 127.0.0.2, so what is 127.0.0.1 to the others is 127.0.0.2 to it."""
    if not loopback_is_a_net():
        pytest.skip("127.0.0.2 is not an address here (macOS: ifconfig lo0 alias 127.0.0.2)")
    keys, port, token = new_cluster(tmp_path)
    data, told = free_port(), free_port()
    proxy = Proxy(f"join=127.0.0.2:{port},127.0.0.1:{port}",
                  f"pair=127.0.0.2:{told},127.0.0.1:{data}",
                  f"others=127.0.0.1:{told},127.0.0.1:{data}")
    boxes = []

    def join():
        boxes.append(box(tmp_path, "a", f"127.0.0.2:{port}", "--token", token()))
        wait_until(lambda: (tmp_path / "a" / "state" / "worker" / "node.pem").exists())
        time.sleep(0.5)  # the order of joining is that of the split
        boxes.append(box(tmp_path, "b", f"127.0.0.1:{port}", "--token", token(), "--data-listen",
                         f"127.0.0.1:{data}", "--advertise", f"127.0.0.1:{told}"))
    while_starting(port, join)
    s = start("--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1,
              "--pipeline-parallel-size", 3, "--layer-split", "2,2,2", "--ctx-size", 2048, *keys)
    try:
        want = Answer(s).result()
        assert order(s) == ["local-0", "a", "b"]
        assert " connections 0 " not in proxy.say("pair stats"), "b is reached as it said"
        for fault in (["pair refuse", "pair cut"], ["pair hold"]):
            wait_until(lambda: order(s) == ["local-0", "a", "b"], timeout=70)
            a = Answer(s)
            wait_until(lambda: a.n >= 20, every=0.001)
            for line in fault:
                proxy.say(line)
            at = time.monotonic()
            assert a.result() == want
            report(f"stall, a link between workers: {fault[-1]}", [stall_ms(a, at)])
            now = order(s)
            assert not ("a" in now and "b" in now and abs(now.index("a") - now.index("b")) == 1)
            assert {n["id"] for n in nodes(s) if n["state"] in ("ready", "serving")} >= {"a", "b"}
            proxy.say("all heal")
        assert s.stop() == 0
    finally:
        for b in boxes:
            b.end(signal.SIGKILL)
        proxy.stop()


# ------------------------------------------------------------- row 34: other numbers on one node


def other_numbers(folder):
    """The demo model with a byte changed in each large tensor, where no sample of its content is taken:
    else the worker would see that it is another model, and fetch the right one."""
    shutil.copytree(DEMO, folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    n = int.from_bytes(data[:8], "little")
    for name, t in json.loads(data[8:8 + n]).items():
        begin, end = t.get("data_offsets", (0, 0))
        if name.endswith(".weight") and end - begin > 32768:
            data[8 + n + begin + (end - begin) // 4] ^= 0x10
    path.write_bytes(data)


def test_model_with_other_numbers_on_one_node(tmp_path):
    """Same names, same shapes, other numbers: each side has a model at this path of its own folder.
    What the first run answered is kept: the worker is found to be the wrong one of the two, is left
    out, in words, and no client sees a token of its."""
    keys, port, token = new_cluster(tmp_path)
    argv = [programs.program("server"), "models/demo", "--port", "0", "--alias", "demo",
            "--cluster-listen", f"127.0.0.1:{port}", "--local-workers", "1", "--ctx-size", "2048",
            *keys]
    s = programs.Checked(argv)
    want = Answer(s).result()
    assert (tmp_path / "server" / "canary").read_text().count("\n") == 1
    assert s.stop() == 0
    (tmp_path / "box" / "models").mkdir(parents=True)
    other_numbers(tmp_path / "box" / "models" / "demo")
    worker = []

    def join():
        worker.append(subprocess.Popen(
            [programs.program("worker"), "--join", f"127.0.0.1:{port}", "--state-dir",
             str(tmp_path / "box" / "state"), "--name", "box", "--token", token()],
            cwd=tmp_path / "box", stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL))
    while_starting(port, join)
    s = programs.Checked(argv + ["--pipeline-parallel-size", "2", "--layer-split", "3,3"])
    try:
        assert Answer(s).result() == want
        assert order(s) == ["local-0"]
        assert "numbers" in (state(s)["problem"] or s.text())
        for _ in range(3):
            assert Answer(s).result() == want
        assert s.stop() == 0
    finally:
        worker[0].kill()
        worker[0].wait()

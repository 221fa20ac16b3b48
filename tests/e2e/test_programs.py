"""The programs as a user runs them, and what happens when their processes are killed.

MXD_BIN_DIR names the folder of the built programs; a program that is not there makes its tests SKIP.
"""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

import client
from conftest import ROOT, Server

DEMO = os.path.join(ROOT, "models/demo")
PROMPT = "Once upon a time there was a little robot. " * 4
LONG_PROMPT = "the cluster reads a long prompt in chunks and keeps its tokens " * 60
TOKENS = 1200  # of answers that are disturbed: long enough to be hit in the middle


def program(name):
    path = os.path.join(os.environ.get("MXD_BIN_DIR", ""), "mlx-dist-" + name)
    if not os.environ.get("MXD_BIN_DIR") or not os.access(path, os.X_OK):
        pytest.skip(f"mlx-dist-{name} is not built (MXD_BIN_DIR)")
    return path


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory):
    """Nobody's own configuration, caches or keys."""
    base = tmp_path_factory.mktemp("home")
    ours = {"HOME": str(base), "XDG_STATE_HOME": str(base / "new" / "state"),
            "XDG_CONFIG_HOME": str(base / "config"), "XDG_CACHE_HOME": str(base / "cache"),
            "HF_HOME": str(base / "hf")}
    before = dict(os.environ)
    os.environ.update(ours)
    for key in [k for k in os.environ if k.startswith("MLXD_")]:
        del os.environ[key]
    yield base
    os.environ.clear()
    os.environ.update(before)


def run(name, *args, stdin="", timeout=60):
    return subprocess.run([program(name), *map(str, args)], capture_output=True, text=True,
                          input=stdin, timeout=timeout, cwd=ROOT)


def one_line_error(r, name):
    """Exactly one line that begins as an error of the program."""
    lines = [l for l in r.stderr.splitlines() if l]
    assert len(lines) == 1, r.stderr
    assert lines[0].startswith(f"mlx-dist-{name}: error: "), r.stderr
    assert r.stdout == ""
    return lines[0]


def wait_until(what, timeout=20, every=0.02):
    end = time.time() + timeout
    while time.time() < end:
        value = what()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"not within {timeout} s: {what}")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# ------------------------------------------------------------------------------- small programs


def test_generate_text_and_json():
    plain = run("generate", DEMO, "-p", "Hello", "-n", 12, "--temp", 0)
    assert plain.returncode == 0 and plain.stdout.strip()
    assert re.search(r"prompt \d+ tokens, .* answer \d+ tokens", plain.stderr)
    r = run("generate", DEMO, "-p", "Hello", "-n", 12, "--temp", 0, "--json", "--quiet")
    o = json.loads(r.stdout)
    assert o["text"] + "\n" == plain.stdout and r.stderr == ""
    assert o["finish_reason"] in ("stop", "length") and o["completion_tokens"] <= 12
    from_stdin = run("generate", DEMO, "-p", "-", "-n", 12, "--temp", 0, stdin="Hello")
    assert from_stdin.stdout == plain.stdout
    same = run("generate", "demo", "-p", "Hello", "-n", 12, "--temp", 0, "--models-dir",
               os.path.dirname(DEMO))
    assert same.stdout == plain.stdout


def test_generate_chat():
    one = run("generate", DEMO, "--chat", "-p", "What is two plus two?", "-n", 40, "--temp", 0)
    assert one.returncode == 0 and one.stdout.strip()
    talk = run("generate", DEMO, "--chat", "-n", 40, "--temp", 0, "--quiet",
               stdin="What is two plus two?\nAnd now?\n")
    assert talk.returncode == 0 and talk.stdout.startswith(one.stdout.rstrip("\n"))


def test_generate_seed():
    texts = [run("generate", DEMO, "-p", "Once", "-n", 30, "--temp", 1, "--seed", s).stdout
             for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_same_text_on_any_number_of_workers():
    texts = set()
    for workers in (0, 1, 2, 3):
        r = run("generate", DEMO, "-p", PROMPT, "-n", 60, "--temp", 0, "--ignore-eos",
                "--local-workers", workers)
        assert r.returncode == 0, r.stderr
        texts.add(r.stdout)
    assert len(texts) == 1 and texts.pop().strip()


@pytest.mark.parametrize("workers", [0, 2])
def test_bench(workers):
    r = run("bench", DEMO, "-p", 32, "-n", 8, "-b", "1,2", "-r", 2, "--json", "--local-workers",
            workers)
    assert r.returncode == 0, r.stderr
    rows = json.loads(r.stdout)
    assert [x["name"] for x in rows] == ["pp32", "tg8", "pp32 x 2", "tg8 x 2"]
    for x in rows:
        assert x["tokens"] in (8, 32) and x["tokens_per_second"] > 0
        assert len(x["runs"]) == 2 and x["spread"] >= 0


def test_bench_depths_and_threads():
    r = run("bench", DEMO, "-p", 300, "-n", 8, "-b", "1,3", "-d", "0,500", "-t", "1,2", "-r", 1,
            "--json")
    assert r.returncode == 0, r.stderr
    rows = json.loads(r.stdout)
    names = ["pp300", "tg8", "pp300 x 3", "tg8 x 3"]
    assert [x["name"] for x in rows] == 2 * (names + [n + " @ 500" for n in names])
    assert [x["threads"] for x in rows] == 8 * [1] + 8 * [2]
    for x in rows:
        assert x["tokens_per_second"] > 0 or x["name"].startswith("pp") and x["depth"]
        assert x["rss_bytes"] > x["weight_bytes"] > 1 << 20
        assert x["read_bytes_per_second"] > 1e8 and x["load_seconds"] > 0
    r = run("bench", DEMO, "-p", 0, "-n", 4, "-r", 1)
    assert r.returncode == 0 and r.stdout.startswith("tg4 ") and "memory reads" in r.stderr
    r = run("bench", DEMO, "-p", 64, "-d", 500, "-c", 512)
    assert r.returncode == 2 and "--ctx-size" in one_line_error(r, "bench")


def test_detect():
    r = run("detect", "--json")
    assert r.returncode == 0, r.stderr
    assert isinstance(json.loads(r.stdout), dict)
    assert run("detect", "--no-probe").returncode == 0


def test_config_plan(tmp_path):
    nodes = {"nodes": [{"name": n, "memory_bytes": 8 << 30, "free_bytes": 4 << 30,
                        "bandwidth_bytes_per_s": 1e10, "ops_per_s": 1e11} for n in ("a", "b")],
             "links": [{"a": "a", "b": "b", "latency_us": 100, "bandwidth_bytes_per_s": 1e9}]}
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps(nodes))
    r = run("config", "plan", DEMO, "--nodes", path, "--json")
    assert r.returncode == 0, r.stderr
    assert json.loads(r.stdout)["stages"]
    for n in nodes["nodes"]:
        n["free_bytes"] = 1000
    path.write_text(json.dumps(nodes))
    r = run("config", "plan", DEMO, "--nodes", path)
    assert r.returncode == 6 and "a" in one_line_error(r, "config")


def test_version_and_help():
    for name in ("server", "worker", "generate", "bench", "detect", "config"):
        assert run(name, "--version").stdout.startswith(f"mlx-dist-{name} ")
        r = run(name, "--help")
        assert r.returncode == 0 and r.stdout.startswith("Usage: mlx-dist-" + name)


# --------------------------------------------------------------------------------------- errors


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(DEMO, path)
    return path


@pytest.mark.parametrize("name", ["server", "generate", "bench"])
def test_unknown_model(name):
    args = ["-p", "x"] if name == "generate" else []
    r = run(name, "no-such-model", *args)
    assert r.returncode == 4 and "no-such-model" in one_line_error(r, name)


def test_usage_errors():
    for name, args in (("generate", []), ("generate", [DEMO, "--nonsense"]),
                       ("generate", [DEMO, "-p", "x", "-n", "-5"]),
                       ("generate", [DEMO, "-p", "x", "--local-workers", "99"]),
                       ("generate", [DEMO]), ("worker", []), ("bench", [DEMO, "-p", "x"]),
                       ("server", [DEMO, "--host", "0.0.0.0"]),
                       ("worker", ["--join", "nowhere", "--token", "x"])):
        r = run(name, *args)
        assert r.returncode == 2, (name, args, r.returncode, r.stderr)
        one_line_error(r, name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file(copy, file):
    os.unlink(copy / file)
    r = run("generate", copy, "-p", "x")
    line = one_line_error(r, "generate")
    assert r.returncode == 4 and (file in line or "safetensors" in line)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", [0, 4, 7, 8, 1000, 0.5, -1])
def test_truncated_weights(copy, part, workers):
    path = copy / "model.safetensors"
    size = os.path.getsize(path)
    os.truncate(path, size + part if part < 0 else int(size * part) if 0 < part < 1 else part)
    r = run("generate", copy, "-p", "x", "--local-workers", workers)
    assert r.returncode == 4 and "model.safetensors" in one_line_error(r, "generate")


@pytest.mark.parametrize("text, says", [
    ("", "config.json"), ("{", "config.json"), ("[]", "object"), ('{"model_type": "rwkv"}', "rwkv"),
    ("{}", "model_type")])
def test_bad_config(copy, text, says):
    (copy / "config.json").write_text(text)
    r = run("generate", copy, "-p", "x")
    assert r.returncode == 4 and says in one_line_error(r, "generate")


def test_bad_config_value(copy):
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    r = run("generate", copy, "-p", "x")
    assert r.returncode == 4 and "model.layers.6" in one_line_error(r, "generate")


def test_context_too_small():
    r = run("generate", DEMO, "-p", LONG_PROMPT, "--ctx-size", 64)
    assert r.returncode == 2 and "--ctx-size" in r.stderr


def test_generate_interrupted():
    p = subprocess.Popen([program("generate"), DEMO, "-p", "x", "-n", "2000", "--ignore-eos",
                          "--local-workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         start_new_session=True)
    assert p.stdout.read(1)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=10)
    assert p.returncode == 0
    assert not session_of(p.pid)


@pytest.mark.parametrize("worker, says", [("#!/bin/sh\nexit 9\n", "end before they have joined"),
                                          ("no program", "Exec format"), (None, "not beside")])
def test_worker_program_that_does_not_work(tmp_path, worker, says):
    own = shutil.copy(program("generate"), tmp_path)
    if worker:
        (tmp_path / "mlx-dist-worker").write_text(worker)
        (tmp_path / "mlx-dist-worker").chmod(0o755)
    r = subprocess.run([own, DEMO, "-p", "x", "--local-workers", "2"], capture_output=True,
                       text=True, timeout=30)
    assert r.returncode == (7 if worker else 4) and r.stdout == ""
    assert says in r.stderr.splitlines()[-1]


def session_of(sid):
    """Live processes of a session."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == sid and fields[0] != "Z":
            found.append(int(pid))
    return found


# --------------------------------------------------------------------------------------- servers


class Checked(Server):
    """A worker that dies of a sanitizer's finding is replaced, so its report must be looked for."""

    def stop(self, *args, **fields):
        code = super().stop(*args, **fields)
        assert "Sanitizer" not in self.text() and "runtime error" not in self.text(), self.text()
        return code


def start(*options):
    return Checked([program("server"), DEMO, "--port", "0", *map(str, options)])


def state(s):
    return s.api.get("/v1/cluster/state").json


def nodes(s, *states):
    return [n for n in state(s)["nodes"] if not states or n["state"] in states]


class Answer(threading.Thread):
    """A streamed completion, read on its own thread."""

    def __init__(self, server, prompt=PROMPT, tokens=TOKENS, **fields):
        super().__init__(daemon=True)
        self.text, self.done, self.error, self.n = "", False, None, 0
        self.times = []  # of the events, in seconds
        self.body = {"model": "demo", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                     "stream": True, "ignore_eos": True, **fields}
        self.connection = http.client.HTTPConnection(server.api.host, server.api.port, timeout=60)
        self.start()

    def run(self):
        try:
            self.connection.request("POST", "/v1/completions", json.dumps(self.body),
                                    {"Content-Type": "application/json"})
            r = self.connection.getresponse()
            assert r.status == 200, r.read()
            for line in r:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    self.done = True
                    break
                event = json.loads(line[6:])
                assert "error" not in event, event
                self.n += 1
                self.times.append(time.monotonic())
                for c in event["choices"]:
                    self.text += c["text"]
        except Exception as e:  # shown by result()
            self.error = e

    def result(self, timeout=60):
        self.join(timeout)
        assert not self.is_alive(), "the answer did not come"
        assert self.error is None, repr(self.error)
        assert self.done
        return self.text


@pytest.fixture(scope="module")
def three():
    s = start("--local-workers", 3, "--ctx-size", 2048)
    yield s
    code = s.stop()
    assert code == 0, f"exit code {code}\n{s.text()}"


@pytest.fixture(scope="module")
def undisturbed(three):
    return {"decode": Answer(three).result(),
            "prefill": Answer(three, LONG_PROMPT, 40).result()}


def all_serve(s, n=3):
    wait_until(lambda: len(nodes(s, "serving")) == n and not state(s)["degraded"])


def test_plan_of_three(three):
    all_serve(three)
    st = state(three)
    stages = st["plan"]["stages"]
    assert [x["layers"][0] for x in stages] == [0] + [x["layers"][1] for x in stages[:-1]]
    assert stages[-1]["layers"][1] == 6
    for n in st["nodes"]:
        for key in ("id", "name", "host", "pid", "state", "backend", "memory_total",
                    "memory_planned", "memory_used", "layers", "step_ms"):
            assert key in n
    assert sorted(n["pid"] for n in st["nodes"]) == sorted(three.children())


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_worker_killed_in_decode(three, undisturbed, worker):
    all_serve(three)
    pid = next(n["pid"] for n in nodes(three) if n["id"] == f"local-{worker}")
    a = Answer(three)
    wait_until(lambda: a.n >= 20, every=0.001)
    assert not a.done
    os.kill(pid, signal.SIGKILL)
    assert a.result() == undisturbed["decode"]
    all_serve(three)
    assert pid not in [n["pid"] for n in nodes(three)]


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_worker_killed_in_prefill(three, undisturbed, worker):
    all_serve(three)
    pid = next(n["pid"] for n in nodes(three) if n["id"] == f"local-{worker}")
    a = Answer(three, LONG_PROMPT, 40)
    wait_until(lambda: state(three)["requests"]["running"] or a.n, every=0.001)
    os.kill(pid, signal.SIGKILL)
    assert a.result() == undisturbed["prefill"]


def test_all_workers_killed_again_and_again(three, undisturbed):
    all_serve(three)
    a = Answer(three)
    for _ in range(3):
        wait_until(lambda: a.n >= 5, every=0.001)
        for pid in three.children():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.7)
    assert a.result() == undisturbed["decode"]


def test_worker_frozen(three, undisturbed):
    """SIGSTOP: no answer and no hang-up. It is found out, replaced, and ends when it wakes."""
    all_serve(three)
    pid = next(n["pid"] for n in nodes(three) if n["id"] == "local-1")
    a = Answer(three)
    wait_until(lambda: a.n >= 20, every=0.001)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert a.result() == undisturbed["decode"]
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: len(nodes(three, "serving")) == 3, timeout=30)


def test_several_at_once(three, undisturbed):
    all_serve(three)
    alone = [Answer(three, f"Number {i}: ", 60).result() for i in range(6)]
    together = [Answer(three, f"Number {i}: ", 60) for i in range(6)]
    assert [a.result() for a in together] == alone


def test_client_gone(three):
    all_serve(three)
    before = cancelled(three)
    a = Answer(three)
    wait_until(lambda: a.n >= 5, every=0.001)
    a.connection.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: state(three)["requests"]["running"] == 0, timeout=5)
    assert cancelled(three) == before + 1


def cancelled(s):
    text = s.api.get("/metrics").body.decode()
    return int(re.search(r'^mlxd_generations_total\{end="cancelled"\} (\d+)', text, re.M).group(1))


# ---------------------------------------------------------------------------- ends, with workers


def test_worker_killed_while_it_starts():
    argv = [program("server"), DEMO, "--port", "0", "--local-workers", "3"]
    killed = threading.Event()

    def kill_first():
        me = os.getpid()
        for _ in range(2000):
            for server, pid in workers_of(me):
                if server in others:
                    continue
                os.kill(pid, signal.SIGKILL)
                killed.set()
                return
            time.sleep(0.001)

    others = {server for server, _ in workers_of(os.getpid())}
    t = threading.Thread(target=kill_first, daemon=True)
    t.start()
    s = Checked(argv)
    assert killed.is_set()
    assert Answer(s, tokens=20).result()
    assert s.stop() == 0


def workers_of(me):
    """(server, worker) of every server that is a child of ours."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                comm, rest = f.read().split("(", 1)[1].rsplit(")", 1)
            if comm != "mlx-dist-worker":
                continue
            with open(f"/proc/{rest.split()[1]}/stat") as f:
                parent = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(parent[1]) == me:
            found.append((int(rest.split()[1]), int(pid)))
    return found


def test_server_killed():
    s = start("--local-workers", 3)
    pids = s.children()
    assert len(pids) == 3
    Answer(s)
    s.process.kill()
    s.process.wait()
    wait_until(lambda: not any(map(alive, pids)), timeout=2)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_signals_end_in_order(sig, workers):
    s = start("--local-workers", workers)
    a = Answer(s, tokens=300)
    wait_until(lambda: a.n >= 2, every=0.001)
    s.process.send_signal(sig)
    assert a.result()  # what runs may end
    assert s.stop(sig=0, timeout=20) == 0
    assert not session_of(s.process.pid)


def test_second_signal_ends_at_once():
    s = start("--local-workers", 2, "--ctx-size", 2048, "--parallel", 1)
    answers = [Answer(s, tokens=2000) for _ in range(20)]
    wait_until(lambda: answers[0].n >= 2 or answers[1].n >= 2, every=0.001)
    pids = s.children()
    s.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    s.process.send_signal(signal.SIGTERM)
    assert s.process.wait(5) == 143
    wait_until(lambda: not any(map(alive, pids)), timeout=2)


def test_worker_told_to_go():
    """SIGTERM to a local worker: it leaves in order and is not started again."""
    s = start("--local-workers", 2, "--ctx-size", 2048)
    want = Answer(s, tokens=600).result()
    a = Answer(s, tokens=600)
    wait_until(lambda: a.n >= 10, every=0.001)
    pid = nodes(s)[1]["pid"]
    os.kill(pid, signal.SIGTERM)
    assert a.result() == want
    wait_until(lambda: not alive(pid), timeout=10)
    wait_until(lambda: [n["state"] for n in nodes(s)].count("left") == 1)
    assert len(s.children()) == 1
    assert s.stop() == 0


# ------------------------------------------------------------------------------- remote workers


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Worker:
    def __init__(self, join, place, *options, env=None):
        self.log = open(os.path.join(place, "worker.log"), "w+")
        self.process = subprocess.Popen(
            [program("worker"), "--join", join, "--state-dir", os.path.join(place, "state"),
             *options], stderr=self.log, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env)

    def text(self):
        with open(self.log.name) as f:
            return f.read()

    def end(self, sig=signal.SIGTERM):
        self.process.send_signal(sig)
        code = self.process.wait(15)
        return code


def test_workers_of_one_job(tmp_path):
    """mpirun, srun: one command line, one state folder, one token for all."""
    join = f"127.0.0.1:{free_port()}"
    keys = ["--state-dir", str(tmp_path / "keys")]
    s = start("--cluster-listen", join, "--local-workers", 1, *keys)
    want = Answer(s, tokens=100).result()
    token = run("config", "token", "--uses", 2, *keys).stdout.strip()
    for variable in ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        job = [Worker(join, tmp_path, "--name", "job", *(["--token", token] if variable[0] == "O" else []),
                      env={**os.environ, variable: str(rank)}) for rank in range(2)]
        wait_until(lambda: {n["id"] for n in nodes(s, "ready", "serving")} >= {"job-0", "job-1"}, timeout=30)
        assert Answer(s, tokens=100).result() == want
        assert [w.end() for w in job] == [0, 0]
    assert s.stop() == 0


def test_remote_worker_joins_by_token(tmp_path):
    join = f"127.0.0.1:{free_port()}"
    places = [tmp_path / n for n in ("server", "box")]
    for p in places:
        p.mkdir()
    keys = ["--state-dir", str(places[0] / "deep" / "state")]
    s = start("--cluster-listen", join, "--local-workers", 1, *keys)
    want = Answer(s, tokens=100).result()
    token = run("config", "token", *keys).stdout.strip()
    assert token.startswith("mxd1.")
    # without a token, and with one that is not this cluster's
    name = ["--name", "box"]
    w = Worker(join, places[1], *name)
    assert w.process.wait(20) == 7 and "--token" in w.text()
    w = Worker(join, places[1], *name, "--token", token[:-4] + "AAAA")
    assert w.process.wait(20) == 7, w.text()
    w = Worker(join, places[1], *name, "--token", token)
    wait_until(lambda: any(n["id"] == "box" and n["state"] in ("serving", "ready")
                           for n in nodes(s)), timeout=30)
    assert Answer(s, tokens=100).result() == want
    # the token is spent; the certificate stays: killed and started again without a token
    w.end(signal.SIGKILL)
    other = tmp_path / "other"
    other.mkdir()
    late = Worker(join, other, "--name", "late", "--token", token)
    assert late.process.wait(20) == 7, late.text()
    w = Worker(join, places[1])
    wait_until(lambda: any(n["id"] == "box" and n["state"] in ("serving", "ready")
                           for n in nodes(s)), timeout=30)
    assert Answer(s, tokens=100).result() == want
    assert w.end() == 0
    wait_until(lambda: any(n["id"] == "box" and n["state"] == "left" for n in nodes(s)), timeout=15)
    assert Answer(s, tokens=100).result() == want
    assert s.stop() == 0


def own_address():
    """Of this machine, as others would dial it; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return s.getsockname()[0]


def test_stages_on_two_machines(tmp_path):
    """A local and a remote stage, joined by an address that is not loopback, both listening on every
    interface. (On one machine; that each is found on another one is cluster_places in unit tests.)"""
    address, port = own_address(), free_port()
    keys = ["--state-dir", str(tmp_path / "keys")]
    assert run("config", "init", *keys).returncode == 0
    token = run("config", "token", *keys).stdout.strip()
    want = run("generate", DEMO, "-p", PROMPT, "-n", 40, "--temp", 0, "--ignore-eos").stdout
    box = {}

    def start_worker():  # as soon as there is somebody to enrol with
        for _ in range(100):
            with socket.socket() as s:
                if s.connect_ex((address, port)) == 0:
                    break
            time.sleep(0.1)
        box["w"] = Worker(f"{address}:{port}", str(tmp_path), "--name", "box", "--token", token)

    t = threading.Thread(target=start_worker, daemon=True)
    t.start()
    s = start("--cluster-listen", f"0.0.0.0:{port}", "--local-workers", 1,
              "--pipeline-parallel-size", 2, "--layer-split", "3,3", *keys)
    st = state(s)
    assert [x["layers"] for x in st["plan"]["stages"]] == [[0, 3], [3, 6]]
    assert sorted(n["id"] for n in st["nodes"]) == ["box", "local-0"]
    assert Answer(s, tokens=40).result() + "\n" == want
    assert state(s)["epoch"] == st["epoch"]
    assert s.stop() == 0
    box["w"].end(signal.SIGKILL)

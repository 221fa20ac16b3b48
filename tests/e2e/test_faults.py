"""The fault matrix: what a client sees when workers, links, disks and the server itself fail.

docs/faults.md says which test shows which row. Everything runs without privileges: faults of
processes are signals, faults of links go through tools/faultproxy.py. What is the same everywhere:
the text of a disturbed answer is byte for byte that of an undisturbed one, and no stream carries an
error event (Answer.result asserts both ends of that).

MXD_SOAK=1 runs the long variants too; MXD_FAULTS_REPORT=FILE collects what was measured.
"""
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import test_programs as programs
from conftest import ROOT
from test_programs import (DEMO, LONG_PROMPT, PROMPT, Answer, Worker, all_serve, alive, free_port,
                           nodes, places, run, start, state, wait_until)

assert places  # nobody's own configuration, caches or keys
soak = pytest.mark.skipif(not os.environ.get("MXD_SOAK"), reason="long: MXD_SOAK=1 (make soak)")
SEEDED = {"temperature": 1, "top_p": 0.95, "seed": 7}
WORKERS = 4


def report(what, values, unit="ms"):
    """Figures of a test, to a file if one is asked for."""
    values = sorted(values)
    line = (f"{what}: n {len(values)} p50 {values[len(values) // 2]:.0f} "
            f"p99 {values[min(len(values) - 1, len(values) * 99 // 100)]:.0f} "
            f"max {values[-1]:.0f} {unit}")
    print(line)
    if os.environ.get("MXD_FAULTS_REPORT"):
        with open(os.environ["MXD_FAULTS_REPORT"], "a") as f:
            f.write(line + "\n")


def stall_ms(answer, since=0.0):
    """The longest pause between two events of a stream that ends behind `since`."""
    gaps = [b - a for a, b in zip(answer.times, answer.times[1:]) if b >= since]
    return 1000 * max(gaps, default=0)


def stage_pids(server):
    """Worker processes that have layers in the plan."""
    return [n["pid"] for n in nodes(server) if n["layers"] and alive(n["pid"])]


@pytest.fixture(scope="module")
def four():
    s = start("--local-workers", WORKERS, "--ctx-size", 2048, "--parallel", 8)
    yield s
    code = s.stop()
    assert code == 0, f"exit code {code}\n{s.text()}"


@pytest.fixture(scope="module")
def calm(four):
    """Texts of undisturbed answers."""
    return {"greedy": Answer(four).result(), "seeded": Answer(four, **SEEDED).result(),
            "prefill": Answer(four, LONG_PROMPT, 40).result(),
            "eight": [Answer(four, f"Number {i}: ", 300).result() for i in range(8)]}


# ------------------------------------------------------------------------------- rows 1 to 5: kills


@pytest.mark.parametrize("how", ["greedy", "seeded"])
@pytest.mark.parametrize("seed", range(4))
def test_random_worker_killed_in_decode(four, calm, how, seed):
    rand = random.Random(f"{how} {seed}")
    all_serve(four, WORKERS)
    a = Answer(four, **(SEEDED if how == "seeded" else {}))
    at = rand.randrange(5, 400)
    wait_until(lambda: a.n >= at, every=0.001)
    os.kill(rand.choice(stage_pids(four)), signal.SIGKILL)
    killed = time.monotonic()
    assert a.result() == calm[how]
    report("stall after a kill in decode", [stall_ms(a, killed)])
    assert stall_ms(a, killed) < 3000


@pytest.mark.parametrize("seed", range(3))
def test_random_worker_killed_in_prefill(four, calm, seed):
    rand = random.Random(f"prefill {seed}")
    all_serve(four, WORKERS)
    pids = stage_pids(four)
    a = Answer(four, LONG_PROMPT + f"{seed}", 40)
    wait_until(lambda: state(four)["requests"]["running"] or a.n, every=0.001)
    os.kill(rand.choice(pids), signal.SIGKILL)
    assert a.result()
    assert Answer(four, LONG_PROMPT + f"{seed}", 40).result() == a.text
    assert Answer(four, LONG_PROMPT, 40).result() == calm["prefill"]


def test_two_of_four_killed_at_once(four, calm):
    all_serve(four, WORKERS)
    a = Answer(four)
    wait_until(lambda: a.n >= 30, every=0.001)
    for pid in random.Random(2).sample(stage_pids(four), 2):
        os.kill(pid, signal.SIGKILL)
    assert a.result() == calm["greedy"]
    assert stall_ms(a) < 5000


@pytest.mark.parametrize("after_ms", [0, 5, 20, 60, 150])
def test_killed_again_during_recovery(four, calm, after_ms):
    all_serve(four, WORKERS)
    a = Answer(four)
    wait_until(lambda: a.n >= 30, every=0.001)
    first, second = random.Random(after_ms).sample(stage_pids(four), 2)
    os.kill(first, signal.SIGKILL)
    time.sleep(after_ms / 1000)
    os.kill(second, signal.SIGKILL)
    assert a.result() == calm["greedy"]


@pytest.mark.parametrize("how", ["greedy", "seeded"])
def test_kill_under_eight_streams(four, calm, how):
    all_serve(four, WORKERS)
    fields = [{"temperature": 1, "seed": i} if how == "seeded" else {} for i in range(8)]
    want = calm["eight"]
    if how == "seeded":
        want = [Answer(four, f"Number {i}: ", 300, **fields[i]).result() for i in range(8)]
    answers = [Answer(four, f"Number {i}: ", 300, **fields[i]) for i in range(8)]
    wait_until(lambda: all(a.n >= 10 for a in answers), every=0.001)
    os.kill(random.Random(how).choice(stage_pids(four)), signal.SIGKILL)
    assert [a.result() for a in answers] == want


def test_requests_that_come_during_recovery(four):
    """They wait; none is told that the model is loading."""
    want = Answer(four, "Hello", 20).result()
    for _ in range(3):
        all_serve(four, WORKERS)
        os.kill(stage_pids(four)[0], signal.SIGKILL)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert Answer(four, "Hello", 20).result() == want
            assert four.api.get("/health").status == 200


def kill_often(s, a, kills, tokens, rand, together=1):
    """Kills up to `together` workers of the plan each time the answer has gone on by a random number
    of tokens; how often it did."""
    done, at = 0, 5
    while done < kills and not a.done and a.error is None and a.is_alive():
        if a.n < at:
            time.sleep(0.001)
            continue
        pids = stage_pids(s)
        if not pids:
            time.sleep(0.005)
            continue
        for pid in rand.sample(pids, rand.randint(1, min(together, len(pids)))):
            os.kill(pid, signal.SIGKILL)
        done += 1
        at = a.n + rand.choice(tokens)
    return done


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=soak)])
def test_many_kills_in_one_answer(kills):
    s = start("--local-workers", 6, "--ctx-size", 4096, "--timeout", "900s", "--parallel", 6)
    many = [PROMPT] + [f"Number {i}: " for i in range(5 if kills > 50 else 1)]
    want = [Answer(s, p, 3900).result() for p in many]
    answers = [Answer(s, p, 3900) for p in many]
    done = kill_often(s, answers[0], kills, [1], random.Random(kills))
    assert [a.result(600) for a in answers] == want
    a = answers[0]
    assert done == kills, f"the answer ended after {done} kills"
    gaps = sorted((1000 * (y - x) for x, y in zip(a.times, a.times[1:])), reverse=True)
    report(f"longest pauses of an answer with {kills} kills", gaps[:kills])
    assert s.stop() == 0


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=soak)])
@pytest.mark.parametrize("cluster", ["1", "2", "3", "2 --tensor-parallel-size 2", "3 --tensor-parallel-size 3"])
def test_some_or_all_workers_killed_again_and_again(cluster, kills):
    """Nobody may be left; they are started again without delay as long as they were of use."""
    s = start("--local-workers", *cluster.split(), "--ctx-size", 4096, "--timeout", "900s")
    tokens = 3900 if kills > 5 else 300
    want = Answer(s, PROMPT, tokens).result()
    a = Answer(s, PROMPT, tokens)
    done = kill_often(s, a, kills, range(1, 36), random.Random(cluster), together=3)
    assert a.result(600) == want
    assert done == kills, f"the answer ended after {done} kills"
    gaps = sorted((1000 * (y - x) for x, y in zip(a.times, a.times[1:])), reverse=True)
    report(f"longest pauses with {kills} kills of up to all workers of {cluster}", gaps[:kills])
    assert s.stop() == 0


# ------------------------------------------------------------------ rows 6, 7, 17, 20: signals


def test_stopped_worker_is_found_and_replaced(four, calm):
    all_serve(four, WORKERS)
    epoch = state(four)["epoch"]
    a = Answer(four)
    wait_until(lambda: a.n >= 20, every=0.001)
    pid = stage_pids(four)[1]
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        wait_until(lambda: state(four)["epoch"] != epoch, timeout=10, every=0.005)
        report("SIGSTOP until the next epoch", [1000 * (time.monotonic() - stopped)])
        assert a.result() == calm["greedy"]
        assert stall_ms(a, stopped) < 4000
        report("stall after SIGSTOP", [stall_ms(a, stopped)])
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)
    all_serve(four, WORKERS)
    assert Answer(four).result() == calm["greedy"]


@pytest.mark.parametrize("pauses", [10, pytest.param(1000, marks=soak)])
def test_short_pauses_are_no_death(four, calm, pauses):
    all_serve(four, WORKERS)
    epoch, pids = state(four)["epoch"], stage_pids(four)
    rand = random.Random(3)
    answers = [Answer(four)]
    for _ in range(pauses):
        if not answers[-1].is_alive():
            answers.append(Answer(four))
        pid = rand.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
    assert [a.result() for a in answers] == [calm["greedy"]] * len(answers)
    assert state(four)["epoch"] == epoch, four.text()[-3000:]
    report("pauses of 300 ms without a fail-over", [pauses], "pauses")


def test_server_stopped_five_seconds(four, calm):
    all_serve(four, WORKERS)
    pids = sorted(four.children())
    a = Answer(four)
    wait_until(lambda: a.n >= 20, every=0.001)
    four.process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    four.process.send_signal(signal.SIGCONT)
    assert a.result() == calm["greedy"]
    all_serve(four, WORKERS)
    assert sorted(four.children()) == pids, "its own sleep is nobody's silence"


@pytest.mark.parametrize("clients", [40, pytest.param(2000, marks=soak)])
def test_clients_that_go(four, calm, clients):
    """Gone while queued, in prefill or in decode, by FIN or RST: nothing keeps running."""
    all_serve(four, WORKERS)
    rand = random.Random(4)
    for _ in range(clients):
        body = json.dumps({"model": "demo", "prompt": rand.choice([PROMPT, LONG_PROMPT]),
                           "max_tokens": 1000, "stream": True, "ignore_eos": True})
        c = http.client.HTTPConnection(four.api.host, four.api.port, timeout=30)
        c.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        time.sleep(rand.random() * 0.05)
        if rand.random() < 0.5:
            c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        c.sock.close()
        c.close()
    left = time.monotonic()
    wait_until(lambda: state(four)["requests"]["running"] == 0, timeout=10, every=0.005)
    report("last of the gone clients until nothing runs", [1000 * (time.monotonic() - left)])
    assert Answer(four).result() == calm["greedy"]


# --------------------------------------------------------------- rows 10 to 15, 31: a remote worker


class Proxy:
    """tools/faultproxy.py in a process of its own."""

    def __init__(self, *links, seed=1):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "tools/faultproxy.py"), "--seed", str(seed), *links],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.at = dict(self.process.stdout.readline().split() for _ in links)

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert not answer.startswith("error"), answer
        return answer

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


class Remote:
    """A server whose plan has two stages, a local one and `box`, reached through a proxy.

    The server listens on 127.0.0.1, box joins 127.0.0.2 at the same port: to box, what the server
    calls 127.0.0.1 is 127.0.0.2, so its control link and its results both meet the proxy. What
    comes into box does not: it tells others the very address that it listens on. The split holds
    while both are there; without box the local worker has all layers.
    """

    def __init__(self, place, seed=1):
        self.port, self.place = free_port(), place
        self.proxy = Proxy(f"box=127.0.0.2:{self.port},127.0.0.1:{self.port}", seed=seed)
        keys = ["--state-dir", str(place / "server")]
        assert run("config", "init", *keys).returncode == 0
        self.token = run("config", "token", *keys).stdout.strip()
        joining = threading.Thread(target=self.start_box, daemon=True)
        joining.start()
        self.server = start("--cluster-listen", f"127.0.0.1:{self.port}", "--local-workers", 1,
                            "--pipeline-parallel-size", 2, "--layer-split", "3,3",
                            "--ctx-size", 2048, *keys)
        joining.join()
        self.join()
        self.want = Answer(self.server).result()

    def start_box(self):
        def listens():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0
        wait_until(listens)
        (self.place / "box").mkdir(exist_ok=True)
        self.box = Worker(f"127.0.0.2:{self.port}", str(self.place / "box"), "--name", "box",
                          "--token", self.token)

    def join(self):
        """Box in the plan, no fault. A node that failed often rests, up to a minute."""
        self.proxy.say("all heal")
        wait_until(self.in_plan, timeout=70)

    def in_plan(self):
        return any(n["id"] == "box" and n["layers"] and n["state"] == "serving"
                   for n in nodes(self.server))

    def stop(self):
        self.proxy.say("all heal")
        try:
            assert self.server.stop() == 0
        finally:
            self.box.end(signal.SIGKILL)
            self.proxy.stop()


def loopback_is_a_net():
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.2", 0))
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    if not loopback_is_a_net():
        pytest.skip("127.0.0.2 is not an address here (macOS: ifconfig lo0 alias 127.0.0.2)")
    r = Remote(tmp_path_factory.mktemp("remote"))
    yield r
    r.stop()


def through(remote, fault, heal_after=None):
    """An answer with a fault of box's links in the middle; the answer, and when the fault came."""
    remote.join()
    a = Answer(remote.server)
    wait_until(lambda: a.n >= 20, every=0.001)
    for line in fault:
        remote.proxy.say(line)
    at = time.monotonic()
    if heal_after is not None:
        time.sleep(heal_after)
        remote.proxy.say("all heal")
    assert a.result() == remote.want
    return a, at


@pytest.mark.parametrize("name, fault", [
    ("partition", ["all hold"]),
    ("nothing reaches the server", ["all.up hold"]),
    ("nothing reaches box from the server", ["all.down hold"]),
    ("every connection reset", ["all cut"]),
    ("reset, and none let in again", ["all refuse", "all cut"]),
    ("end of stream", ["all close"]),
    ("a bit flipped", ["all flip 2000"]),
    ("segments twice", ["all dup 20"]),
    ("segments lost", ["all lose 20"]),
])
def test_link_fault(remote, name, fault):
    a, at = through(remote, fault)
    report(f"stall, {name}", [stall_ms(a, at)])
    assert stall_ms(a, at) < 6000
    remote.join()
    assert Answer(remote.server).result() == remote.want


def test_late_link_is_no_death(remote):
    """50 ms more each way, with jitter and 1 MB/s: slower, nothing else."""
    remote.join()
    want = Answer(remote.server, tokens=40).result()
    epoch = state(remote.server)["epoch"]
    remote.proxy.say("all delay 50 20")
    remote.proxy.say("all rate 1000000")
    assert Answer(remote.server, tokens=40).result() == want
    time.sleep(2)
    assert state(remote.server)["epoch"] == epoch
    remote.proxy.say("all heal")


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=soak)])
def test_flapping_link(remote, seconds):
    remote.join()
    epoch = state(remote.server)["epoch"]
    texts, end, a = [], time.monotonic() + seconds, Answer(remote.server)
    while time.monotonic() < end:
        remote.proxy.say("all refuse")
        remote.proxy.say("all cut")
        time.sleep(0.5)
        remote.proxy.say("all heal")
        time.sleep(0.5)
        if not a.is_alive():
            texts.append(a.result())
            a = Answer(remote.server)
    texts.append(a.result())
    assert set(texts) == {remote.want}
    report(f"epochs in {seconds} s of a flapping link", [state(remote.server)["epoch"] - epoch], "")


def test_remote_worker_leaves_and_comes_back(remote):
    remote.join()
    a = Answer(remote.server)
    wait_until(lambda: a.n >= 20, every=0.001)
    assert remote.box.end() == 0
    assert a.result() == remote.want
    wait_until(lambda: any(n["id"] == "box" and n["state"] == "left" for n in nodes(remote.server)))
    box = remote.box.process.args
    remote.box.process = subprocess.Popen(box, stderr=remote.box.log, stdout=subprocess.DEVNULL)
    remote.join()
    assert Answer(remote.server).result() == remote.want


def test_noise_on_the_cluster_port(remote):
    """1 MB of noise in ten connections while an answer runs; nobody is disturbed."""
    remote.join()
    epoch = state(remote.server)["epoch"]
    host, port = remote.proxy.at["box"].split(":")
    rand, a = random.Random(5), Answer(remote.server)
    for _ in range(10):
        with socket.create_connection((host, int(port)), 5) as s:
            try:
                s.sendall(rand.randbytes(100_000))
            except OSError:
                pass  # hung up on: just as well
    assert a.result() == remote.want
    assert state(remote.server)["epoch"] == epoch


# ------------------------------------------------------- rows 9, 16, 18, 24, 27, 30, 32: the rest


def test_worker_slowed_to_a_twentieth(four, calm):
    """Computes 10 ms in every 200: replaced or not, the text is the same."""
    all_serve(four, WORKERS)
    pid, a = stage_pids(four)[0], Answer(four)
    wait_until(lambda: a.n >= 20, every=0.001)
    end = time.monotonic() + 5
    while time.monotonic() < end and a.is_alive() and alive(pid):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.19)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
    assert a.result() == calm["greedy"]
    report("longest pause beside a worker at a twentieth", [stall_ms(a)])


def test_server_killed_and_started_again(tmp_path):
    """Clients of the old one see the connection end, without [DONE]; workers of other machines
    come back by themselves, with no new token."""
    keys = ["--state-dir", str(tmp_path / "keys")]
    port = free_port()
    options = ["--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1, "--ctx-size", 2048,
               *keys]
    s = start(*options)
    want = Answer(s).result()
    token = run("config", "token", *keys).stdout.strip()
    box = Worker(f"127.0.0.1:{port}", str(tmp_path), "--name", "box", "--token", token)
    joined = lambda: any(n["id"] == "box" and n["state"] in ("ready", "serving") for n in nodes(s))
    wait_until(joined)
    a = Answer(s)
    wait_until(lambda: a.n >= 5, every=0.001)
    s.process.kill()
    a.join(10)
    assert not a.done and not a.is_alive() and want.startswith(a.text)
    s.process.wait()
    begin = time.monotonic()
    s = start(*options)
    report("start after kill -9 of the server", [1000 * (time.monotonic() - begin)])
    assert Answer(s).result() == want
    wait_until(joined)
    report("until a remote worker is back", [1000 * (time.monotonic() - begin)])
    assert box.end() == 0
    assert s.stop() == 0


def test_every_machine_is_lost_for_some_seconds(tmp_path):
    """A switch restarts, say: the answer waits for those that had a part in it."""
    keys = ["--state-dir", str(tmp_path / "keys")]
    port = free_port()
    s = start("--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1, "--ctx-size", 2048, *keys)
    want = Answer(s, tokens=1900).result()
    assert s.stop() == 0
    tokens = {name: run("config", "token", *keys).stdout.strip() for name in ("box", "crate")}
    boxes = {}

    def come(*token):
        for name in tokens:
            (tmp_path / name).mkdir(exist_ok=True)
            boxes[name] = Worker(f"127.0.0.1:{port}", str(tmp_path / name), "--name", name,
                                 *token, *([tokens[name]] if token else []))

    coming = threading.Timer(1, come, ["--token"])
    coming.start()
    s = start("--cluster-listen", f"127.0.0.1:{port}", "--no-local", "--ctx-size", 2048,
              "--pipeline-parallel-size", 2, *keys)
    coming.join()
    wait_until(lambda: len(nodes(s, "serving")) == 2)
    a = Answer(s, tokens=1900)
    wait_until(lambda: a.n >= 30, every=0.001)
    for w in boxes.values():
        w.end(signal.SIGKILL)
    time.sleep(3)
    assert not a.done
    come()
    assert a.result() == want
    report("stall while every machine is away for 3 s", [stall_ms(a)])
    wait_until(lambda: len(nodes(s, "serving", "ready")) == 2)
    for w in boxes.values():
        assert w.end() == 0
    assert s.stop() == 0


def test_state_folder_that_cannot_be_written(tmp_path):
    """A file where the folder should be: refused at start, in words, before anything runs."""
    (tmp_path / "file").write_text("")
    r = run("server", DEMO, "--port", 0, "--cluster-listen", f"127.0.0.1:{free_port()}",
            "--local-workers", 1, "--state-dir", tmp_path / "file" / "state")
    assert r.returncode not in (0, -signal.SIGSEGV, -signal.SIGABRT)
    assert str(tmp_path / "file") in programs.one_line_error(r, "server")


def test_ports_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        r = run("server", DEMO, "--port", port)
        assert r.returncode == 5 and str(port) in programs.one_line_error(r, "server")
        r = run("server", DEMO, "--port", 0, "--local-workers", 1, "--cluster-listen",
                f"127.0.0.1:{port}", "--state-dir", tmp_path / "state")
        assert r.returncode == 5 and str(port) in r.stderr.splitlines()[-1]


@pytest.mark.parametrize("how", ["replaced", "cut"])
def test_model_file_changes_under_a_worker(tmp_path, how):
    """Weights are read when a plan is installed; what runs does not see the file any more. A worker
    that has to load the damaged file again is refused its plan, in words, and never crashes."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    s = start_on(folder)
    want = Answer(s).result()
    a = Answer(s)
    wait_until(lambda: a.n >= 20, every=0.001)
    weights = next(p for p in folder.iterdir() if p.suffix == ".safetensors")
    if how == "cut":
        os.truncate(weights, 100_000)
    else:
        (folder / "new").write_bytes(weights.read_bytes()[:-1000])
        os.replace(folder / "new", weights)
    assert a.result() == want
    assert Answer(s).result() == want
    os.kill(stage_pids(s)[0], signal.SIGKILL)
    wait_until(lambda: "load_failed" in s.text())
    assert "model.safetensors" in s.text()
    assert s.process.poll() is None
    assert s.stop() == 0


def start_on(folder, *options):
    return programs.Checked([programs.program("server"), str(folder), "--port", "0", "--alias",
                             "demo", "--local-workers", "2", "--ctx-size", "2048", *options])


def test_second_worker_of_one_name(remote):
    """The same identity started twice: one of the two serves, the text is the same."""
    remote.join()
    twin = Worker(f"127.0.0.1:{remote.port}", str(remote.place / "box"))
    try:
        assert Answer(remote.server).result() == remote.want
        time.sleep(1)
        assert [n["id"] for n in nodes(remote.server)].count("box") == 1
    finally:
        if twin.process.poll() is None:
            twin.end(signal.SIGKILL)
    if remote.box.process.poll() is not None:
        remote.start_box()
    remote.join()
    assert Answer(remote.server).result() == remote.want


def test_more_requests_than_fit(four):
    """Five hundred at once over eight seats: whole answers, or a refusal that says when to come back."""
    all_serve(four, WORKERS)
    want = Answer(four, "Hello", 20).result()
    seen, lock = [], threading.Lock()

    def ask():
        reply = four.api.complete("demo", "Hello", max_tokens=20, temperature=0, ignore_eos=True)
        with lock:
            seen.append(reply)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(500)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(seen) == len(threads)
    for reply in seen:
        assert reply.status in (200, 429, 503)
        if reply.status == 200:
            assert reply.json["choices"][0]["text"] == want
        else:
            assert int(reply.headers["Retry-After"]) > 0
    report("answered of 500 at once", [sum(r.status == 200 for r in seen)], "answers")
    assert Answer(four, "Hello", 20).result() == want


def test_few_file_descriptors():
    """64 descriptors and 200 connections: some wait or are refused, and afterwards all is well."""
    prlimit = shutil.which("prlimit")
    if not prlimit:
        pytest.skip("prlimit is not here")
    s = programs.Checked([prlimit, "--nofile=64", programs.program("server"), DEMO, "--port", "0",
                          "--local-workers", "1"])
    want = Answer(s, tokens=20).result()
    open_ones = []
    for _ in range(200):
        c = socket.socket()
        c.settimeout(0.05)
        if c.connect_ex((s.api.host, s.api.port)) == 0:
            open_ones.append(c)
        else:
            c.close()
    for c in open_ones:
        c.close()
    assert Answer(s, tokens=20).result() == want
    assert s.stop() == 0

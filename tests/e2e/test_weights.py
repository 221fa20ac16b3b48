"""Weights that a worker misses come over the network, from the server or another worker.

The server names its model's folder relative to its own working directory, so that a worker that runs
elsewhere on this machine does not find it, as on another machine.
"""
import glob
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import pytest

import test_programs as programs
from conftest import ROOT
from test_faults import Proxy
from test_programs import (DEMO, Answer, Checked, Worker, free_port, nodes, places, program, run, state,
                           wait_until)

assert places
ALIAS = ["--alias", "other", "--alias", "demo"]  # workers hear "other", of which they have no folder
SPLIT = ["--pipeline-parallel-size", 2, "--layer-split", "5,1"]


class Box(Worker):
    """A worker with caches, home and working directory of its own."""

    def __init__(self, join, place, name, *options):
        os.makedirs(os.path.join(place, "home"), exist_ok=True)
        self.place = str(place)
        self.cache = os.path.join(self.place, "cache")
        env = {**os.environ, "HOME": os.path.join(self.place, "home"), "XDG_CACHE_HOME": self.cache}
        env.pop("HF_HOME", None)
        self.log = open(os.path.join(place, "worker.log"), "a+")
        self.process = subprocess.Popen(
            [program("worker"), "--join", join, "--state-dir", os.path.join(place, "state"), "--name",
             name, *map(str, options)], stderr=self.log, stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL, cwd=os.path.join(self.place, "home"), env=env)

    def stored(self):
        """(bytes on disk, size) of what came over the network; None: nothing did."""
        found = glob.glob(os.path.join(self.cache, "mlx-distributed/weights/*/model.safetensors"))
        if not found:
            return None
        st = os.stat(found[0])
        return st.st_blocks * 512, st.st_size

    def fetched(self):
        """Bytes that came, by each finished load."""
        return [int(n) for n in re.findall(r"weights_ready .*fetched_bytes=(\d+)", self.text())]


class Cluster:
    """A server that starts once its worker `box` is there; between them a proxy, if wanted."""

    def __init__(self, tmp_path, *box_options, rate=0, split=SPLIT):
        self.port, self.proxy = free_port(), None
        self.join = f"127.0.0.1:{self.port}"
        self.keys = ["--state-dir", str(tmp_path / "keys")]
        assert run("config", "init", *self.keys).returncode == 0
        self.token = self.new_token()
        self.box_place, self.box_options = tmp_path / "box", box_options
        self.box_place.mkdir()
        if rate:
            self.proxy = Proxy(f"box=127.0.0.2:{self.port},127.0.0.1:{self.port}")
            self.join = f"127.0.0.2:{self.port}"
            self.proxy.say(f"box rate {rate}")
        self.box = None
        threading.Thread(target=self.start_box, daemon=True).start()
        self.server = Checked([program("server"), "models/demo", "--port", "0", "--cluster-listen",
                               f"127.0.0.1:{self.port}", "--local-workers", "1", "--ctx-size", "2048",
                               *ALIAS, *map(str, split), *self.keys], timeout=120)

    def new_token(self):
        return run("config", "token", "--uses", 4, *self.keys).stdout.strip()

    def start_box(self):
        wait_until(lambda: not programs.socket.socket().connect_ex(("127.0.0.1", self.port)))
        self.box = Box(self.join, str(self.box_place), "box", "--token", self.token,
                       *self.box_options)

    def stop(self):
        self.box.end(signal.SIGKILL)
        assert self.server.stop() == 0
        if self.proxy:
            self.proxy.stop()


@pytest.fixture(scope="module")
def want(places):
    r = run("generate", DEMO, "-p", programs.PROMPT, "-n", 80, "--temp", 0, "--ignore-eos")
    assert r.returncode == 0, r.stderr
    return r.stdout


def both_serve(c):
    wait_until(lambda: sorted(n["id"] for n in nodes(c.server, "serving")) == ["box", "local-0"]
               and not state(c.server)["degraded"], timeout=60)


def test_worker_without_files_gets_its_layers(tmp_path, want):
    c = Cluster(tmp_path)
    both_serve(c)
    assert Answer(c.server, tokens=80).result() + "\n" == want
    on_disk, size = c.box.stored()
    assert size == os.path.getsize(os.path.join(DEMO, "model.safetensors"))
    assert 0 < on_disk < size, "all of the model came, where half of its layers were needed"
    first = c.box.fetched()
    assert len(first) >= 1 and first[0] > 0
    # the same worker again: what it has stays, nothing comes twice
    c.box.end(signal.SIGKILL)
    c.box = Box(c.join, str(c.box_place), "box")
    both_serve(c)
    wait_until(lambda: len(c.box.fetched()) > len(first))
    assert c.box.fetched()[-1] == 0
    assert Answer(c.server, tokens=80).result() + "\n" == want
    c.stop()


def test_files_of_the_same_name_with_other_numbers_are_not_used(tmp_path, want):
    folder = tmp_path / "models" / "other"
    folder.mkdir(parents=True)
    shutil.copy(os.path.join(DEMO, "config.json"), folder)
    data = bytearray(open(os.path.join(DEMO, "model.safetensors"), "rb").read())
    header = 8 + int.from_bytes(data[:8], "little")
    for i in range(header + 500, len(data), 1000):
        data[i] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    c = Cluster(tmp_path, "--models-dir", tmp_path / "models")
    both_serve(c)
    assert Answer(c.server, tokens=80).result() + "\n" == want
    assert "folder_not_taken" in c.box.text() and c.box.stored()
    c.stop()


def test_files_of_another_name_with_the_same_content_are_used(tmp_path, want):
    folder = tmp_path / "models" / "some" / "thing"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(os.path.join(DEMO, name), folder)
    c = Cluster(tmp_path, "--models-dir", tmp_path / "models")
    both_serve(c)
    assert Answer(c.server, tokens=80).result() + "\n" == want
    assert c.box.stored() is None
    c.stop()


@pytest.mark.parametrize("how", ["worker killed", "connections cut"])
def test_interrupted_transfer_goes_on(tmp_path, want, how):
    """A slow network: about two seconds for what box needs."""
    store = tmp_path / "box" / "cache" / "mlx-distributed" / "weights"

    def disturb():
        wait_until(lambda: glob.glob(str(store / "*" / "model.safetensors.have")), timeout=60)
        time.sleep(2.5)
        if how == "connections cut":
            c.proxy.say("box cut")
            return
        c.box.end(signal.SIGKILL)
        c.box = Box(c.join, str(tmp_path / "box"), "box")

    c = Cluster.__new__(Cluster)
    t = threading.Thread(target=disturb, daemon=True)
    t.start()
    c.__init__(tmp_path, rate=600000)
    t.join(60)
    both_serve(c)
    c.proxy.say("box heal")
    assert Answer(c.server, tokens=80).result() + "\n" == want
    c.stop()


def test_a_worker_gives_to_another_and_may_be_killed_meanwhile(tmp_path, want):
    c = Cluster(tmp_path, "--models-dir", os.path.dirname(DEMO))
    both_serve(c)
    assert c.box.stored() is None
    # a third one, to which the server is slow to give: box does
    proxy = Proxy(f"late=127.0.0.3:{c.port},127.0.0.1:{c.port}")
    proxy.say("late rate 100000")
    place = tmp_path / "late"
    place.mkdir()
    late = Box(f"127.0.0.3:{c.port}", str(place), "late", "--token", c.new_token())
    wait_until(lambda: any(n["id"] == "late" for n in nodes(c.server)), timeout=30)
    # without box the split does not hold, and late is needed
    stopper = threading.Thread(target=lambda: (time.sleep(0.3), c.box.process.kill()))
    stopper.start()
    assert Answer(c.server, tokens=80).result() + "\n" == want
    stopper.join()
    proxy.say("late heal")
    assert Answer(c.server, tokens=80).result() + "\n" == want
    late.end(signal.SIGKILL)
    c.stop()
    proxy.stop()

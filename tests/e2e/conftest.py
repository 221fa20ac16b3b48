"""Servers for the end-to-end tests.

  server   each test runs on the scripted engine (MXD_FAKE_SERVER, or found in a build folder) and on
           the real mlx-dist-server with the demo model and three workers (MXD_BIN_DIR)
  fake     only the scripted one: answers are written in the prompt, see tests/unit/fake_engine.h

A server that is not built makes its tests SKIP, with the reason.
"""
import glob
import os
import re
import signal
import subprocess
import tempfile
import time

import pytest

import client

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Server:
    """A server process; `url` is where it listens."""

    def __init__(self, argv, timeout=60):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(argv, stderr=self.log, stdout=subprocess.DEVNULL, cwd=ROOT,
                                        start_new_session=True)
        self.url = self._wait_for_url(timeout)
        self.api = client.Api(self.url)

    def _wait_for_url(self, timeout):
        end = time.time() + timeout
        while time.time() < end:
            found = re.search(r"listening on (http://\S+)", self.text())
            if found:
                return found.group(1)
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.process.kill()
        raise RuntimeError("the server did not start:\n" + self.text())

    def text(self):
        with open(self.log.name) as f:
            return f.read()

    def children(self):
        """Live processes of the server's session, itself excluded."""
        found = []
        for path in glob.glob("/proc/[0-9]*/stat"):
            try:
                fields = open(path).read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            pid = int(path.split("/")[2])
            if int(fields[3]) == self.process.pid and pid != self.process.pid and fields[0] != "Z":
                found.append(pid)
        return found

    def stop(self, sig=signal.SIGTERM, timeout=40):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        end = time.time() + 3
        while self.children() and time.time() < end:
            time.sleep(0.02)
        assert not self.children(), "workers outlived their server"
        return code


def fake_binary():
    given = os.environ.get("MXD_FAKE_SERVER")
    found = [given] if given else glob.glob(os.path.join(ROOT, "build*/tests/e2e/fake_server"))
    found = [f for f in found if os.path.exists(f)]
    return max(found, key=os.path.getmtime) if found else None


def real_binary():
    path = os.path.join(os.environ.get("MXD_BIN_DIR", ""), "mlx-dist-server")
    return path if os.environ.get("MXD_BIN_DIR") and os.path.exists(path) else None


def start_fake(*options):
    binary = fake_binary()
    if not binary:
        pytest.skip("the scripted server is not built (MXD_FAKE_SERVER)")
    return Server([binary, os.path.join(ROOT, "models/demo"), *options])


def start_real(*options):
    binary = real_binary()
    if not binary:
        pytest.skip("mlx-dist-server is not built (MXD_BIN_DIR)")
    state = tempfile.TemporaryDirectory(prefix="mxd-state-")  # nobody's own keys and journal
    s = Server([binary, "demo", "--port", "0", "--local-workers", "3", "--state-dir", state.name,
                *options])
    s.state = state
    return s


@pytest.fixture(scope="session", params=["fake", "real"])
def server(request):
    s = start_fake() if request.param == "fake" else start_real()
    s.kind = request.param
    yield s
    code = s.stop()
    assert code == 0, f"exit code {code}\n{s.text()}"


@pytest.fixture(scope="session")
def fake():
    s = start_fake("--keepalive", "200")
    yield s
    code = s.stop()
    assert code == 0, f"exit code {code}\n{s.text()}"


@pytest.fixture(scope="session")
def model(server):
    return server.api.get("/v1/models").json["data"][0]["id"]

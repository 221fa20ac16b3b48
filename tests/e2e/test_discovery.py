"""Finding the server: hints by multicast, which prove nothing, and names that end in .local."""
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

import test_programs as programs
from test_programs import (Answer, Worker, free_port, nodes, places, program, run, start, state,
                           wait_until)

assert places
GROUP, PORT = "239.255.77.88", 52477  # of net/beacon.h


def multicast():
    """A socket that hears the group on loopback, or None and why not."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        s.bind(("", PORT))
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                     socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1"))
        s.settimeout(5)
        return s, ""
    except OSError as e:
        return None, f"no multicast on loopback here: {e}"


def packet(tag, port, name=b"fake"):
    return b"mxdb\1\0" + struct.pack(">H", port) + tag + bytes([len(name)]) + name


def shout(packets, pause=0):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        for p in packets:
            s.sendto(p, (GROUP, PORT))
            if pause:
                time.sleep(pause)


def rss(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
def cluster(tmp_path):
    s, why = multicast()
    if not s:
        pytest.skip(why)
    port = free_port()
    keys = ["--state-dir", str(tmp_path / "server")]
    server = start("--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1, *keys)
    server.keys, server.cluster_port = keys, port
    own = None
    end = time.time() + 5
    while time.time() < end and not own:
        try:
            data = s.recv(2000)
        except OSError:
            break
        if data[6:8] == struct.pack(">H", port):
            own = data
    s.close()
    if not own:
        server.stop()
        pytest.skip("multicast on loopback does not arrive here")
    server.tag = own[8:16]
    yield server
    assert server.stop() == 0


def token_of(server):
    return run("config", "token", *server.keys).stdout.strip()


def is_member(server, name):
    return any(n["id"] == name and n["state"] in ("serving", "ready") for n in nodes(server))


def test_worker_finds_its_server(cluster, tmp_path):
    w = Worker("auto", str(tmp_path), "--name", "box", "--token", token_of(cluster))
    wait_until(lambda: is_member(cluster, "box"), timeout=30)
    w.end(signal.SIGKILL)
    w = Worker("auto", str(tmp_path))  # by its certificate, without a token
    wait_until(lambda: is_member(cluster, "box"), timeout=30)
    assert w.end() == 0


def test_ten_thousand_fake_hints(cluster, tmp_path):
    """With the right tag, towards ports where nobody or somebody else is; noise; too long ones."""
    want = Answer(cluster, tokens=40).result()
    before = nodes(cluster)
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        fakes = [packet(cluster.tag, silent.getsockname()[1]), packet(cluster.tag, 1)]
        fakes += [packet(os.urandom(8), 1 + i % 65535) for i in range(9000)]
        fakes += [os.urandom(i % 1400) for i in range(900)] + [b"mxdb\1\0" + b"x" * 5000] * 100
        stop = threading.Event()

        def flood():
            shout(fakes)
            while not stop.is_set():
                shout(fakes[:200], 0.01)

        t = threading.Thread(target=flood, daemon=True)
        t.start()
        try:
            w = Worker("auto", str(tmp_path), "--name", "box", "--token", token_of(cluster))
            wait_until(lambda: is_member(cluster, "box"), timeout=60)
        finally:
            stop.set()
            t.join()
        low = rss(w.process.pid)
    assert low < 200 << 20
    assert sorted(n["id"] for n in nodes(cluster)) == sorted([n["id"] for n in before] + ["box"])
    assert Answer(cluster, tokens=40).result() == want
    assert w.end() == 0


def test_nothing_to_be_heard(tmp_path):
    """--no-discovery; and a certificate of no cluster."""
    s, why = multicast()
    if not s:
        pytest.skip(why)
    port = free_port()
    server = start("--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1, "--no-discovery",
                   "--state-dir", tmp_path / "server")
    end, heard = time.time() + 2.5, False
    while time.time() < end:
        s.settimeout(max(0.01, end - time.time()))
        try:
            heard = heard or s.recv(2000)[6:8] == struct.pack(">H", port)
        except OSError:
            pass
    s.close()
    assert not heard
    assert server.stop() == 0
    w = Worker("auto", str(tmp_path))
    assert w.process.wait(20) == 7 and "--token" in w.text()


def test_names_that_end_in_local(tmp_path):
    """As the system resolves them: here by a hosts file that only the worker sees."""
    unshare = shutil.which("unshare")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.1 studio.local\n")
    inside = [unshare, "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    if not unshare or subprocess.run(inside + ["true"], capture_output=True).returncode:
        pytest.skip("needs unshare -m and root, for a hosts file of its own")
    port = free_port()
    keys = ["--state-dir", str(tmp_path / "server")]
    s = start("--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1, *keys)
    token = run("config", "token", *keys).stdout.strip()
    log = open(tmp_path / "worker.log", "w+")
    w = subprocess.Popen(inside + [program("worker"), "--join", f"studio.local:{port}", "--token",
                                   token, "--name", "box", "--state-dir", str(tmp_path / "box")],
                         stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_member(s, "box"), timeout=30)
    finally:
        w.kill()
        w.wait()
    assert s.stop() == 0

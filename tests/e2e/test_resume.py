"""Resumable streams: X-Resumable, X-Stream-Id, GET /v1/streams/{id}, and kill -9 of the server.

The text that a client puts together out of the pieces before and after a fault equals that of an
undisturbed answer byte for byte; event ids count from 0 without a gap or a double.
"""
import http.client
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from conftest import ROOT
from test_programs import (DEMO, PROMPT, Worker, free_port, nodes, places, program, run, start,
                           wait_until)

assert places  # nobody's own configuration, caches or keys
GREEDY = {"temperature": 0}
SEEDED = {"temperature": 1, "top_p": 0.95, "seed": 7}
TOKENS = 1200


class Stream:
    """One HTTP request whose events are read one by one."""

    def __init__(self, server, method, path, body=None, **headers):
        self.connection = http.client.HTTPConnection(server.api.host, server.api.port, timeout=60)
        self.connection.request(method, path, json.dumps(body) if body else None,
                                {"Content-Type": "application/json", **headers})
        self.reply = self.connection.getresponse()
        self.status = self.reply.status
        self.id = self.reply.headers.get("X-Stream-Id")
        self.events = []

    def read(self, n=10**9):
        """Up to n more events; fewer when the connection ends."""
        event = {}
        try:
            while n:
                line = self.reply.readline().decode()
                if not line:
                    break
                name, _, value = line.rstrip("\n").partition(": ")
                if name and value:
                    event[name] = value
                elif event:
                    self.events.append((int(event["id"]), event["data"]))
                    event = {}
                    n -= 1
        except (http.client.IncompleteRead, ConnectionError):
            pass
        return self.events

    def close(self):
        self.reply.close()
        self.connection.close()


def body(chat=False, **fields):
    kind = ({"messages": [{"role": "user", "content": "Tell me a story."}]} if chat else
            {"prompt": PROMPT})
    return {"model": "demo", "max_tokens": TOKENS, "stream": True, "ignore_eos": True, **kind,
            **fields}


def post(server, b, **headers):
    path = "/v1/chat/completions" if "messages" in b else "/v1/completions"
    return Stream(server, "POST", path, b, **{"X-Resumable": "true", **headers})


def resume(server, stream_id, last=None, **headers):
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    return Stream(server, "GET", "/v1/streams/" + stream_id, **headers)


def text(events):
    """Contents put together; ids must follow each other from 0 and the end must be one."""
    assert [i for i, _ in events] == list(range(len(events)))
    assert events[-1][1] == "[DONE]", events[-1]
    chunks = [json.loads(d) for _, d in events[:-1]]
    assert not any("error" in c for c in chunks)
    choices = [c["choices"][0] for c in chunks if c["choices"]]
    return "".join((c.get("text") or "") if "text" in c else
                   (c["delta"].get("reasoning_content") or c["delta"].get("content") or "")
                   for c in choices)


def undisturbed(server, b):
    s = post(server, b)
    assert s.status == 200 and len(s.id) == 32
    return text(s.read())


made = []


def server(tmp_path, *options):
    s = start("--state-dir", tmp_path / "state", "--ctx-size", 2048, *options)
    made.append(s)
    return s


@pytest.fixture(autouse=True)
def none_stays():
    """A test that fails leaves no server behind."""
    before = len(made)
    yield
    for s in made[before:]:
        if s.process.poll() is None:
            s.process.kill()
    del made[before:]


def kill(s):
    """kill -9, and its workers are gone with it."""
    s.process.kill()
    s.process.wait()
    wait_until(lambda: not s.children())


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    s = server(tmp_path_factory.mktemp("calm"), "--local-workers", 2, "--api-key", "one", "--api-key",
               "two")
    yield s
    assert s.stop() == 0


KEY = {"Authorization": "Bearer one"}


# ---------------------------------------------------------------------------- clients that go


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("how", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_client_goes_and_comes_back(calm, how, chat):
    """In the middle, with a request of its own; the answer went on meanwhile."""
    b = body(chat, **how)
    want = text(post(calm, b, **KEY).read())
    a = post(calm, b, **KEY)
    assert a.read(10)[-1][0] == 9
    a.close()
    time.sleep(0.1)
    rest = resume(calm, a.id, 9, **KEY)
    assert rest.status == 200 and rest.id == a.id
    assert text(a.events + rest.read()) == want
    again = resume(calm, a.id, 9, **KEY)  # and a second time
    assert again.read() == rest.events
    whole = resume(calm, a.id, **KEY)
    assert whole.read() == a.events + rest.events


def test_two_readers_of_one_stream(calm):
    a = post(calm, body(**SEEDED), **KEY)
    b = resume(calm, a.id, **KEY)
    c = Stream(calm, "GET", f"/v1/streams/{a.id}?after=4", **KEY)
    assert a.read() == b.read() and c.read() == a.events[5:]
    assert text(a.events)


def test_whoever_has_everything_need_not_come_again(calm):
    a = post(calm, body(max_tokens=5), **KEY)
    a.read()
    assert resume(calm, a.id, a.events[-1][0], **KEY).status == 204
    last = resume(calm, a.id, a.events[-2][0], **KEY)
    assert last.read() == [a.events[-1]]


def test_only_its_own_key_opens_a_stream(calm):
    a = post(calm, body(max_tokens=5), **KEY)
    a.read()
    assert resume(calm, a.id).status == 401
    other = {"Authorization": "Bearer two"}
    assert resume(calm, a.id, **other).status == 404
    assert resume(calm, "0" * 32, **KEY).status == 404
    assert resume(calm, "x", **KEY).status == 404
    assert resume(calm, a.id, "soon", **KEY).status == 400
    assert resume(calm, a.id, **KEY).status == 200


def test_what_cannot_be_resumed_is_refused(calm):
    for b, status in [(body(n=2), 400), (body(prompt=["a", "b"]), 400), (body(stream=False), 400)]:
        a = post(calm, b, **KEY)
        assert a.status == status and not a.id
        assert "resum" in a.reply.read().decode().lower()
    plain = Stream(calm, "POST", "/v1/completions", body(max_tokens=3), **KEY)
    assert not plain.id and b"\nid:" not in plain.reply.read()


def test_cancel_by_id(calm):
    a = post(calm, body(), **KEY)
    first = json.loads(a.read(3)[0][1])["id"]
    assert calm.api.send("POST", f"/v1/cancel/{first}", headers=KEY).status == 200
    assert a.read()[-1][1] == "[DONE]" and len(a.events) < TOKENS


def test_official_client_does_not_mind(calm):
    openai = pytest.importorskip("openai")
    c = openai.OpenAI(base_url=calm.url + "/v1", api_key="one")
    got = c.chat.completions.create(model="demo", stream=True, max_tokens=5, temperature=0,
                                    messages=[{"role": "user", "content": "Hello"}],
                                    extra_headers={"X-Resumable": "true"})
    assert "".join(x.choices[0].delta.content or "" for x in got) is not None


# -------------------------------------------------------------------- kill -9 of the server


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("how", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("workers", [0, 2])
def test_server_killed_in_the_middle(tmp_path, streams, how, workers):
    options = ["--local-workers", workers, "--parallel", 4]
    bodies = [body(chat=i % 2 == 1, **how) for i in range(streams)]
    s = server(tmp_path, *options)
    want = [undisturbed(s, b) for b in bodies]
    middle = False
    for _ in range(8):  # on a busy machine they may have ended before we could kill it
        running = [post(s, b) for b in bodies]
        before = [r.read(5 + 20 * i)[:] for i, r in enumerate(running)]
        epoch = s.api.get("/v1/cluster/state").json["epoch"]
        kill(s)
        begin = time.monotonic()
        s = server(tmp_path, *options)
        print(f"serving again after {1000 * (time.monotonic() - begin):.0f} ms")
        rest = [resume(s, r.id, b[-1][0]) for r, b in zip(running, before)]
        for w, b, r in zip(want, before, rest):
            assert r.status == 200
            assert text(b + r.read()) == w
        assert s.api.get("/v1/cluster/state").json["epoch"] > epoch
        middle = "stream_restored" in s.text()
        if middle:
            break
    assert middle, "they had always ended before the kill"
    assert s.stop() == 0


def test_killed_again_and_again(tmp_path):
    """Each life gives a few events; also of a stream that nobody reads, and of one that ended."""
    s = server(tmp_path, "--local-workers", 1)
    want = undisturbed(s, body(**SEEDED))
    done = post(s, body(max_tokens=4))
    done.read()
    lonely = post(s, body(**GREEDY))
    lonely_want = undisturbed(s, body(**GREEDY))
    lonely.close()
    a = post(s, body(**SEEDED))
    got = a.read(3)[:]
    for _ in range(3):
        kill(s)
        s = server(tmp_path, "--local-workers", 1)
        got += resume(s, a.id, got[-1][0]).read(7)
    kill(s)
    s = server(tmp_path, "--local-workers", 1)
    got += resume(s, a.id, got[-1][0]).read()
    assert text(got) == want
    assert resume(s, done.id).read() == done.events
    assert text(resume(s, lonely.id).read()) == lonely_want
    assert s.stop() == 0


def test_everything_that_makes_an_event_comes_back(tmp_path):
    """Stop strings, log probabilities, usage: the same events byte for byte, but for timings."""
    b = body(logprobs=2, stop=["robot and", "zzz"], logit_bias={"5": 1.5}, max_tokens=400,
             stream_options={"include_usage": True}, **SEEDED)
    s = server(tmp_path, "--local-workers", 1)
    a = post(s, b)
    a.read(6)
    before = a.events[:]
    rest = resume(s, a.id, 5).read()
    kill(s)
    s = server(tmp_path, "--local-workers", 1)
    after = resume(s, a.id).read()
    assert after[:-2] == (before + rest)[:-2] and after[-1][1] == "[DONE]"
    usage, then = json.loads(after[-2][1])["usage"], json.loads(rest[-2][1])["usage"]
    for field in ("prompt_tokens", "completion_tokens"):
        assert usage[field] == then[field]
    assert s.stop() == 0


def test_tool_calls_come_back_with_their_ids(tmp_path):
    tool = {"type": "function",
            "function": {"name": "get_weather", "description": "weather of a city",
                         "parameters": {"type": "object", "required": ["city"],
                                        "properties": {"city": {"type": "string"}}}}}
    b = {"model": "demo", "stream": True, "temperature": 0, "max_tokens": 300, "tools": [tool],
         "messages": [{"role": "user", "content": "What is the weather in Paris?"}]}
    s = server(tmp_path)
    a = post(s, b)
    assert "tool_calls" in str(a.read())
    kill(s)
    s = server(tmp_path)
    assert resume(s, a.id).read() == a.events
    assert s.stop() == 0


def test_stop_in_the_middle_is_taken_up_too(tmp_path):
    """SIGTERM with no time to drain: the stream breaks off without [DONE], and goes on later."""
    s = server(tmp_path, "--local-workers", 1, "--drain-timeout", "1ms")
    want = undisturbed(s, body(**SEEDED))
    a = post(s, body(**SEEDED))
    a.read(5)
    s.process.send_signal(signal.SIGTERM)
    got = a.read()[:]
    s.process.wait(20)
    assert got[-1][1] != "[DONE]" and "error" not in got[-1][1]
    s = server(tmp_path, "--local-workers", 1)
    assert text(got + resume(s, a.id, got[-1][0]).read()) == want
    assert s.stop() == 0


def test_remote_worker_carries_it_on(tmp_path):
    """Nothing is computed where the server is: the stream waits for the worker to come back."""
    keys = ["--state-dir", str(tmp_path / "state")]
    port = free_port()
    options = ["--cluster-listen", f"127.0.0.1:{port}", "--local-workers", 1]
    s = server(tmp_path, *options)
    token = run("config", "token", *keys).stdout.strip()
    box = Worker(f"127.0.0.1:{port}", str(tmp_path), "--name", "box", "--token", token)
    wait_until(lambda: any(n["id"] == "box" and n["state"] in ("ready", "serving") for n in nodes(s)))
    want = undisturbed(s, body(**SEEDED))
    a = post(s, body(**SEEDED))
    got = a.read(20)[:]
    kill(s)
    s = server(tmp_path, *options)
    assert text(got + resume(s, a.id, 19).read()) == want
    wait_until(lambda: any(n["id"] == "box" and n["state"] in ("ready", "serving") for n in nodes(s)))
    assert box.end() == 0
    assert s.stop() == 0


def test_another_model_drops_the_streams(tmp_path):
    s = server(tmp_path, "--local-workers", 1)
    a = post(s, body())
    a.read(5)
    kill(s)
    s = server(tmp_path, "--local-workers", 1, "--activations", "16")
    assert resume(s, a.id).status == 404
    assert "another model" in s.text()
    assert s.stop() == 0


# ----------------------------------------------------------------------------- damaged journals


def segments(tmp_path):
    folder = tmp_path / "state" / "journal" / "0"
    return sorted(p for p in folder.iterdir() if p.suffix == ".log")


@pytest.mark.parametrize("damage", ["torn", "flipped", "noise"])
def test_damaged_journal(tmp_path, damage):
    """What stands before the damage comes back; the rest is computed again, to the same text."""
    s = server(tmp_path, "--local-workers", 1)
    want = undisturbed(s, body(**SEEDED))
    a = post(s, body(**SEEDED))
    a.read(100)
    kill(s)
    last = segments(tmp_path)[-1]
    raw = last.read_bytes()
    cut = len(raw) - 203  # in the middle of a record
    last.write_bytes({"torn": raw[:cut],
                      "flipped": raw[:cut] + bytes([raw[cut] ^ 4]) + raw[cut + 1:],
                      "noise": raw + os.urandom(5000)}[damage])
    s = server(tmp_path, "--local-workers", 1)
    assert "journal_cut" in s.text()
    assert text(resume(s, a.id).read()) == want
    assert s.stop() == 0


def test_journal_of_nonsense(tmp_path):
    folder = tmp_path / "state" / "journal" / "0"
    folder.mkdir(parents=True)
    (folder / "00000001.log").write_bytes(os.urandom(100000))
    (folder / "00000007.log").write_bytes(b"")
    s = server(tmp_path, "--local-workers", 1)
    assert undisturbed(s, body(max_tokens=5))
    assert s.stop() == 0


def test_without_a_journal(tmp_path):
    """--no-journal: a client may go and come back; a restart knows nothing."""
    s = server(tmp_path, "--no-journal")
    a = post(s, body(**SEEDED))
    a.read(5)
    a.close()
    assert text(a.events + resume(s, a.id, 4).read())
    assert not (tmp_path / "state" / "journal").exists()
    kill(s)
    s = server(tmp_path, "--no-journal")
    assert resume(s, a.id).status == 404
    assert s.stop() == 0


def test_folder_that_cannot_be_written(tmp_path):
    """Serving goes on; who asks for a resumable stream is told, and /health says it."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal").write_text("in the way")
    s = server(tmp_path)
    a = post(s, body(max_tokens=5))
    assert a.status == 503 and json.loads(a.reply.read())["error"]["code"] == "journal_unavailable"
    assert s.api.complete("demo", "Hello", max_tokens=3).status == 200
    assert s.api.get("/health").json == {"status": "ok", "journal": "failed"}
    assert s.stop() == 0


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here (it takes privileges)")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk(tmp_path, small_disk):
    """Streams that run go on to their end; new ones are refused until there is room again."""
    s = start("--state-dir", small_disk, "--ctx-size", 2048, "--local-workers", 1)
    want = undisturbed(s, body(**SEEDED))
    a = post(s, body(**SEEDED))
    a.read(5)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError):
        with open(ballast, "wb", buffering=0) as f:
            while True:
                f.write(b"x" * 4096)
    assert text(a.read()) == want
    refused = wait_until(lambda: post(s, body(max_tokens=600)).status == 503 or None)
    assert refused
    assert s.api.get("/health").json["journal"] == "failed"
    assert s.api.complete("demo", "Hello", max_tokens=3).status == 200
    ballast.unlink()
    wait_until(lambda: "journal" not in s.api.get("/health").json)
    b = post(s, body(**SEEDED))
    b.read(5)
    kill(s)
    s = start("--state-dir", small_disk, "--ctx-size", 2048, "--local-workers", 1)
    assert text(b.events + resume(s, b.id, 4).read()) == want
    assert resume(s, a.id).status == 404
    assert s.stop() == 0


assert ROOT and DEMO and program

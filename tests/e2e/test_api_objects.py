"""Every object of the API has the published shape, streamed or not; on any engine."""
import concurrent.futures
import json
import socket
import time

import pytest

import schemas
from schemas import check, check_chunks, joined, whole

GREEDY = {"temperature": 0, "max_tokens": 24}


def test_models(server, model):
    listed = check(server.api.get("/v1/models").json, schemas.MODELS)
    for path in (model, model.replace("/", "%2F")):
        assert server.api.get("/v1/models/" + path).json == listed["data"][0]
    r = server.api.get("/v1/models/none/such")
    assert r.status == 404 and check(r.json, schemas.ERROR)["error"]["code"] == "model_not_found"


def test_chat(server, model):
    r = server.api.chat(model, "Hello", **GREEDY)
    assert r.status == 200 and r.headers["X-Request-Id"]
    reply = check(r.json, schemas.CHAT)
    assert reply["model"] == model and len(reply["choices"]) == 1
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 1 <= usage["completion_tokens"] <= 24


@pytest.mark.parametrize("usage", [False, True])
def test_chat_stream_equals_reply(server, model, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    r = server.api.chat(model, "Hello", stream=True, **GREEDY, **options)
    assert r.status == 200
    assert r.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert r.headers["Cache-Control"] == "no-cache" and r.headers["X-Accel-Buffering"] == "no"
    check_chunks(r.chunks, usage)
    reply = server.api.chat(model, "Hello", **GREEDY).json
    assert joined(r.chunks) == whole(reply)
    if usage:
        totals = {k: v for k, v in reply["usage"].items() if "details" not in k}
        assert totals.items() <= r.chunks[-1]["usage"].items()


def test_text(server, model):
    reply = check(server.api.complete(model, "Once upon", temperature=0).json, schemas.TEXT)
    assert reply["usage"]["completion_tokens"] <= 16
    r = server.api.complete(model, "Once upon", temperature=0, stream=True,
                            stream_options={"include_usage": True})
    check_chunks(r.chunks, usage=True, text=True)
    text = "".join(c["choices"][0]["text"] for c in r.chunks if c["choices"])
    assert text == reply["choices"][0]["text"]


def test_text_prompts(server, model):
    ids = server.api.post("/tokenize", {"content": "Once upon"}).json["tokens"]
    one = server.api.complete(model, "Once upon", temperature=0).json["choices"][0]
    for prompt in (ids, [ids], ["Once upon"]):
        got = server.api.complete(model, prompt, temperature=0).json["choices"][0]
        assert got == one
    many = check(server.api.complete(model, ["Once upon", "The end"], n=2, temperature=0).json,
                 schemas.TEXT)
    assert [c["index"] for c in many["choices"]] == [0, 1, 2, 3]
    assert many["choices"][0]["text"] == many["choices"][1]["text"] == one["text"]


def test_echo_and_no_tokens(server, model):
    r = server.api.complete(model, "Once upon", echo=True, max_tokens=4, temperature=0).json
    assert r["choices"][0]["text"].startswith("Once upon")
    r = check(server.api.complete(model, "Once upon", echo=True, max_tokens=0).json, schemas.TEXT)
    assert r["choices"][0]["text"] == "Once upon" and r["usage"]["completion_tokens"] == 0


def test_n_choices(server, model):
    r = server.api.chat(model, "Hello", n=3, stream=True, **GREEDY)
    check_chunks(r.chunks)
    reply = check(server.api.chat(model, "Hello", n=3, **GREEDY).json, schemas.CHAT)
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert [joined(r.chunks, i) for i in range(3)] == [whole(reply, i) for i in range(3)]


def test_seed_repeats(server, model):
    texts = {server.api.chat(model, "Hello", seed=7, temperature=1, max_tokens=16)
             .json["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) == 1


def test_chat_logprobs(server, model):
    fields = {"logprobs": True, "top_logprobs": 3, **GREEDY}
    reply = check(server.api.chat(model, "Hello", **fields).json, schemas.CHAT)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert entries and all(len(e["top_logprobs"]) == 3 for e in entries)
    raw = b"".join(bytes(e["bytes"]) for e in entries).decode()
    assert reply["choices"][0]["message"]["content"].strip() in raw
    r = server.api.chat(model, "Hello", stream=True, **fields)
    check_chunks(r.chunks)
    streamed = [e for c in r.chunks if c["choices"][0]["logprobs"]
                for e in c["choices"][0]["logprobs"]["content"]]
    assert streamed == entries


def test_text_logprobs(server, model):
    reply = check(server.api.complete(model, "Once upon", logprobs=2, temperature=0).json,
                  schemas.TEXT)
    lp = reply["choices"][0]["logprobs"]
    n = len(lp["tokens"])
    assert n and all(len(lp[k]) == n for k in ("token_logprobs", "top_logprobs", "text_offset"))
    assert "".join(lp["tokens"]).startswith(reply["choices"][0]["text"])


def test_ignore_eos_and_length(server, model):
    r = server.api.chat(model, "Hello", ignore_eos=True, max_tokens=40, temperature=0).json
    assert r["usage"]["completion_tokens"] == 40
    assert r["choices"][0]["finish_reason"] == "length"


def test_stop_is_not_in_the_text(server, model):
    text = server.api.chat(model, "Hello", **GREEDY).json["choices"][0]["message"]["content"]
    stop = text[3:6]
    for stream in (False, True):
        r = server.api.chat(model, "Hello", stop=[stop, "\u2603"], stream=stream, **GREEDY)
        got = joined(r.chunks) if stream else whole(r.json)
        assert got["content"] == text[: text.index(stop)] and got["finish_reason"] == "stop"


def test_context_length(server, model):
    n = server.api.get("/v1/models").json["data"][0]["max_model_len"]
    r = server.api.complete(model, [5] * n)
    error = check(r.json, schemas.ERROR)["error"]
    assert r.status == 400 and error["code"] == "context_length_exceeded"
    assert error["n_prompt_tokens"] == n and error["n_ctx"] == n and error["param"] == "prompt"


def test_timings_only_when_asked(server, model):
    assert "timings" not in server.api.chat(model, "Hello", **GREEDY).json
    assert server.api.chat(model, "Hello", timings=True, **GREEDY).json["timings"]["predicted_n"] > 0


def test_tokens_and_template(server, model):
    text = "H\u00e9llo <|im_end|> \U0001f600"
    ids = server.api.post("/tokenize", {"content": text}).json["tokens"]
    plain = server.api.post("/tokenize", {"content": text, "parse_special": False}).json["tokens"]
    assert len(plain) > len(ids)
    for some in (ids, plain):
        assert server.api.post("/detokenize", {"tokens": some}).json == {"content": text}
    pieces = server.api.post("/tokenize", {"content": text, "with_pieces": True}).json["tokens"]
    assert [p["id"] for p in pieces] == ids
    r = server.api.post("/apply-template", {"messages": [{"role": "user", "content": "hey"}]})
    assert r.status == 200 and "hey" in r.json["prompt"]


def test_health_metrics_state_pages(server):
    assert server.api.get("/health").json == {"status": "ok"}
    assert server.api.get("/readyz").status == server.api.get("/livez").status == 200
    state = server.api.get("/v1/cluster/state").json
    assert {"epoch", "model", "plan", "nodes", "links", "requests"} <= set(state)
    assert server.api.get("/v1/cluster/plan").json == state["plan"]
    page = server.api.get("/")
    assert page.status == 200 and b"/v1/chat/completions" in page.body


def test_metrics_syntax(server, model):
    server.api.chat(model, "Hello", **GREEDY)
    r = server.api.get("/metrics")
    assert r.headers["Content-Type"].startswith("text/plain")
    typed, names = set(), set()
    for line in r.body.decode().splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            float(value)
            names.add(name.split("{")[0])
    for name in names:
        base = name
        for suffix in ("_bucket", "_sum", "_count"):
            base = base.removesuffix(suffix) if base.removesuffix(suffix) in typed else base
        assert base in typed, name
    assert "mlxd_time_to_first_token_seconds_bucket" in names


@pytest.mark.parametrize("body", [
    "", "{", "[]", "7", '{"model":"a","model":"b"}', '{"a":NaN}', '{"a":1e999}',
    '{"a":99999999999999999999}', b'{"a":"\xff"}', '{"a":"\\ud800"}', '{"a":"\\u0000"}',
    "[" * 100 + "]" * 100, '{"a":' * 70 + "1" + "}" * 70, "{} x"])
def test_bad_json(server, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        r = server.api.post(path, body)
        assert r.status == 400
        assert check(r.json, schemas.ERROR)["error"]["type"] == "invalid_request_error"


def test_model_name(server):
    r = server.api.chat("none", "x")
    error = check(r.json, schemas.ERROR)["error"]
    assert (r.status, error["type"], error["code"]) == (404, "not_found_error", "model_not_found")


def test_ignored_fields_are_named(server, model):
    r = server.api.chat(model, "x", zork=1, blurp=None, max_tokens=1)
    assert r.status == 200 and r.headers["x-mlxd-ignored-params"] == "zork,blurp"


def test_many_at_once_equal_one(server, model):
    want = whole(server.api.chat(model, "Hello", **GREEDY).json)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        runs = [pool.submit(server.api.chat, model, "Hello", stream=True, **GREEDY)
                for _ in range(64)]
        for run in runs:
            assert joined(run.result().chunks) == want


def test_client_that_leaves_frees_its_slot(server, model):
    body = json.dumps({"model": model, "stream": True, "ignore_eos": True, "max_tokens": 1500,
                       "messages": [{"role": "user", "content": "[[count:1500]] [[delay:20]]"}]})
    for _ in range(10):
        s = socket.create_connection((server.api.host, server.api.port))
        s.sendall((f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                   f"application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode())
        assert s.recv(1000).startswith(b"HTTP/1.1 200")
        s.close()
    assert server.api.chat(model, "Hello", **GREEDY).status == 200
    end = time.time() + 3
    while time.time() < end and b"disconnects_total 0\n" in server.api.get("/metrics").body:
        time.sleep(0.05)
    assert b"disconnects_total 0\n" not in server.api.get("/metrics").body

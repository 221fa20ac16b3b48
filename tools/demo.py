#!/usr/bin/env python3
"""The system in action: three workers, a plan, a chat, a worker killed in the middle of an answer.

    tools/demo.py [BUILD]

Exit 0 only if every step did what it says.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build").resolve()
SERVER = BUILD / "src" / "cli" / "mlx-dist-server"
LOG = BUILD / "demo.log"
QUESTION = "What is MLX Distributed?"
STORY = {  # greedy and long enough to be interrupted
    "messages": [{"role": "user", "content": "Tell me a longer story about a lighthouse."}],
    "temperature": 0,
    "ignore_eos": True,
    "max_tokens": 400,
}


class Failed(Exception):
    pass


def check(ok: object, what: str) -> None:
    if not ok:
        raise Failed(what)


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    check(SERVER.exists(), f"no {SERVER}: run make first")
    with LOG.open("wb") as log:
        server = subprocess.Popen(
            [SERVER, "demo", "--local-workers", "3", "--port", "0"], stdout=log, stderr=log
        )
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        found = re.search(r"listening on (http://\S+)", LOG.read_text(errors="replace"))
        if found:
            return server, found[1]
        time.sleep(0.02)
    raise Failed("the server did not become ready")


def get(url: str, path: str) -> dict:
    with urllib.request.urlopen(url + path, timeout=10) as reply:
        return json.load(reply)


def stream(url: str, request: dict, on_piece=None) -> tuple[str, dict, float]:
    """The text, the usage, and the longest pause between two pieces in seconds."""
    body = {"model": "demo", "stream": True, "stream_options": {"include_usage": True}, **request}
    http = urllib.request.Request(
        url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    text, usage, pause, n = "", {}, 0.0, 0
    with urllib.request.urlopen(http, timeout=60) as reply:
        last = time.monotonic()
        for raw in reply:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                return text, usage, pause
            if not line.startswith("data: "):
                continue
            chunk = json.loads(line[6:])
            check("error" not in chunk, f"the stream broke: {chunk.get('error')}")
            usage = chunk.get("usage") or usage
            piece = "".join(c["delta"].get("content") or "" for c in chunk["choices"])
            if piece:
                now = time.monotonic()
                pause, last = max(pause, now - last) if n else 0.0, now
                text += piece
                n += 1
                if on_piece:
                    on_piece(piece, n)
    raise Failed("the stream ended without [DONE]")


def show_plan(state: dict) -> None:
    for stage in state["plan"]["stages"]:
        first, last = stage["layers"][0], stage["layers"][1] - 1
        also = ", ".join(w for w in ("embedding", "head") if stage[w if w == "head" else "embed"])
        for rank in stage["ranks"]:
            print(
                f"  {rank['node']:10} layers {first}-{last}   {rank['share'] * 100:3.0f} % of each"
                f"   {rank['weight_bytes'] / 1e6:5.2f} MB weights"
                f"   {rank['kv_bytes'] / 1e6:5.2f} MB KV cache   {also}"
            )
    for reason in state["plan"]["reasons"]:
        print(f"  because: {reason}")


def serving(state: dict) -> dict[str, int]:
    return {n["id"]: n["pid"] for n in state["nodes"] if n["state"] == "serving"}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def chat(url: str) -> None:
    say(f"a question, answered token by token: {QUESTION}")
    begin = time.monotonic()
    text, usage, _ = stream(
        url,
        {"messages": [{"role": "user", "content": QUESTION}]},
        lambda piece, _: print(piece, end="", flush=True),
    )
    took = time.monotonic() - begin
    print()
    check("MLX" in text and text.rstrip().endswith("."), f"not a sensible answer: {text!r}")
    print(f"  {usage['completion_tokens']} tokens in {took:.2f} s, over three processes and mutual TLS")


def kill_one(url: str) -> None:
    say("the same long answer twice; the second time a worker is killed in the middle of it")
    begin = time.monotonic()
    undisturbed, usage, _ = stream(url, STORY)
    speed = usage["completion_tokens"] / (time.monotonic() - begin)
    victims = serving(get(url, "/v1/cluster/state"))
    name, pid = sorted(victims.items())[1]

    def kill(_: str, n: int) -> None:
        if n == 60:
            os.kill(pid, signal.SIGKILL)
            print(f"  kill -9 {pid} ({name}) after {n} pieces ...", flush=True)

    disturbed, usage, pause = stream(url, STORY, kill)
    check(disturbed == undisturbed, "the text has changed")
    print(f"  ... and the answer went on: {usage['completion_tokens']} tokens, the same text byte by byte")
    print(f"  longest pause {pause * 1000:.0f} ms; undisturbed speed {speed:.0f} tokens/s")
    until = time.monotonic() + 5
    while (state := get(url, "/v1/cluster/state"))["epoch"] == 1 or len(serving(state)) < 3:
        check(time.monotonic() < until, "no new plan over three workers was made")
        time.sleep(0.02)
    print(f"  plan of epoch {state['epoch']}:")
    show_plan(state)


def stop(server: subprocess.Popen[bytes], pids: set[int]) -> None:
    say("Ctrl-C")
    server.send_signal(signal.SIGINT)
    code = server.wait(15)
    check(code == 0, f"the server ended with {code}")
    left = [p for p in pids if alive(p)]
    check(not left, f"processes are left behind: {left}")
    print("  the server has ended with exit code 0, and no process is left")


def main() -> int:
    server = None
    try:
        server, url = start_server()
        say(f"a server with three workers: {url}")
        state = get(url, "/v1/cluster/state")
        pids = set(serving(state).values())
        check(len(pids) == 3, f"three workers should serve: {serving(state)}")
        show_plan(state)
        chat(url)
        kill_one(url)
        pids |= set(serving(get(url, "/v1/cluster/state")).values())
        stop(server, pids)
        return 0
    except (Failed, OSError, KeyError, subprocess.TimeoutExpired) as why:
        print(f"\ndemo: FAILED: {why}", file=sys.stderr)
        if LOG.exists():
            print("".join(LOG.read_text(errors="replace").splitlines(True)[-15:]), file=sys.stderr)
        return 1
    finally:
        if server and server.poll() is None:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())

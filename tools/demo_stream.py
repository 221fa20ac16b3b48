#!/usr/bin/env python3
"""Asks the demo server for a story through curl -N and prints it as it comes.

demo_stream.py URL TEXTFILE [PID AFTER]: the whole answer goes to TEXTFILE; after AFTER pieces process PID
is killed without warning, while the answer is not complete yet. Exit 1 unless all of that happened and
the stream ended properly.
"""
import json
import os
import select
import signal
import subprocess
import sys
import time

BODY = {"model": "demo", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 400,
        "temperature": 0, "messages": [{"role": "user", "content": "Tell me a story about a fox."}]}


class Lines:
    """Lines of a pipe as soon as they are there, without reading ahead of what was asked for."""

    def __init__(self, pipe):
        self.fd, self.buffer = pipe.fileno(), b""

    def next(self):
        while b"\n" not in self.buffer:
            chunk = os.read(self.fd, 65536)
            if not chunk:
                return None
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode()

    def is_complete(self):
        """Whether the end of the stream has arrived already."""
        while select.select([self.fd], [], [], 0)[0]:
            chunk = os.read(self.fd, 65536)
            if not chunk:
                break
            self.buffer += chunk
        return b"data: [DONE]" in self.buffer


def main():
    url, path = sys.argv[1:3]
    victim, after = (int(sys.argv[3]), int(sys.argv[4])) if len(sys.argv) > 3 else (0, 0)
    curl = subprocess.Popen(["curl", "-sfN", "--max-time", "60", url + "/v1/chat/completions", "-H",
                             "Content-Type: application/json", "-d", json.dumps(BODY)],
                            stdout=subprocess.PIPE, bufsize=0)
    lines, text, pieces, tokens, done, begin = Lines(curl.stdout), "", 0, 0, False, None
    ok = True
    while (line := lines.next()) is not None:
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            done = True
            break
        event = json.loads(line[6:])
        if "error" in event:
            print("\n" + json.dumps(event["error"]))
            break
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        for choice in event.get("choices", []):
            piece = choice["delta"].get("content") or ""
            begin = begin or (time.time() if piece else None)
            text += piece
            pieces += bool(piece)
            print(piece, end="", flush=True)
        if victim and pieces >= after:
            ok = not lines.is_complete()
            os.kill(victim, signal.SIGKILL)
            print(f" [process {victim} killed] ", end="", flush=True)
            victim = 0
    seconds = time.time() - (begin or time.time())
    print(f"\n  ({tokens} tokens in {seconds:.2f} s)" if tokens else "")
    if not ok:
        print("  the answer was complete before the process was killed")
    with open(path, "w") as f:
        f.write(text)
    return 0 if done and text and ok and not victim and curl.wait(timeout=10) == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

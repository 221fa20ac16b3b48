#!/usr/bin/env python3
"""A TCP proxy that does to a connection what a bad network does, on command.

    tools/faultproxy.py [--seed N] [--script FILE] NAME=LISTEN,TARGET ...

LISTEN and TARGET are HOST:PORT (port 0 of LISTEN takes a free one). Prints "NAME HOST:PORT" for each
link, then obeys commands, from the script (where `wait SECONDS` is one) and then from standard input,
and answers each with "ok" or "error ...". A command is LINK[.up|.down] WHAT; LINK may be `all`, up is
towards TARGET:

    delay MS [JITTER_MS]   later, in order          rate BYTES      a second; 0: no limit
    hold                   black hole: nothing goes through, nor is lost; `heal` lets it go on
    flip N                 one bit flipped in about N bytes          dup N   a segment twice in about N
    lose N                 a segment left out in about N             cut     reset every connection
    close                  end of stream one way    refuse          reset new connections; until heal
    slow MS                new connections wait     heal            no fault any more
    stats                  connections, and bytes each way, instead of "ok"

Delays, flips and the rest are drawn from a generator of (seed, link, connection, direction), so the
same bytes in the same segments meet the same faults. No privileges; any system with Python 3.9.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import struct
import sys

SEGMENT = 16384  # bytes taken at once: small enough that `rate` is smooth
QUEUED = 256  # segments on their way in one direction; then the sender is slowed down


class Way:
    """The faults of one direction of a link."""

    def __init__(self) -> None:
        self.heal()
        self.open = asyncio.Event()
        self.open.set()
        self.bytes = 0

    def heal(self) -> None:
        self.delay_ms = self.jitter_ms = 0.0
        self.rate = self.flip = self.dup = self.lose = 0

    def faulty(self, rand: random.Random, data: bytes) -> bytes:
        """What leaves instead of `data`."""
        if self.flip and rand.random() < len(data) / self.flip:
            bit = rand.randrange(len(data) * 8)
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            data = bytes(changed)
        if self.lose and rand.random() < 1 / self.lose:
            return b""
        if self.dup and rand.random() < 1 / self.dup:
            return data + data
        return data


class Pipe:
    """One direction of one connection: read, wait, write."""

    def __init__(self, way: Way, rand: random.Random, reader, writer) -> None:
        self.way, self.rand, self.reader, self.writer = way, rand, reader, writer
        self.queue: asyncio.Queue = asyncio.Queue(QUEUED)

    async def run(self) -> None:
        await asyncio.gather(self.take(), self.give())

    async def take(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data = await self.reader.read(SEGMENT)
            late = self.way.delay_ms + self.rand.random() * self.way.jitter_ms
            await self.queue.put((loop.time() + late / 1000, data))
            if not data:
                return

    async def give(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await self.queue.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await self.way.open.wait()
            if not data:
                self.writer.write_eof()
                return
            if self.way.rate:
                await asyncio.sleep(len(data) / self.way.rate)
            self.way.bytes += len(data)
            self.writer.write(self.way.faulty(self.rand, data))
            await self.writer.drain()


def reset(writer) -> None:
    """Ends a connection with RST, as a peer does that knows nothing of it."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Link:
    def __init__(self, name: str, target: tuple[str, int], seed: int) -> None:
        self.name, self.target, self.seed = name, target, seed
        self.ways = {"up": Way(), "down": Way()}
        self.writers: set[tuple] = set()  # (to the dialler, to the target)
        self.refuse, self.slow_ms, self.n = False, 0.0, 0

    async def listen(self, host: str, port: int) -> str:
        server = await asyncio.start_server(self.serve, host, port)
        self.server = server
        return "%s:%d" % server.sockets[0].getsockname()[:2]

    async def serve(self, reader, writer) -> None:
        self.n += 1
        number = self.n
        try:
            if self.refuse:
                raise ConnectionError
            if self.slow_ms:
                await asyncio.sleep(self.slow_ms / 1000)
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            reset(writer)
            return
        pair = (writer, far_writer)
        self.writers.add(pair)
        up = Pipe(self.ways["up"], self.rand(number, "up"), reader, far_writer)
        down = Pipe(self.ways["down"], self.rand(number, "down"), far_reader, writer)
        pumps = [asyncio.ensure_future(p.run()) for p in (up, down)]
        try:
            await asyncio.gather(*pumps)
        except OSError:  # one side is gone: so is the other
            pass
        finally:
            self.writers.discard(pair)
            for p in pumps:
                p.cancel()
            for w in pair:
                reset(w)

    def rand(self, number: int, way: str) -> random.Random:
        return random.Random(f"{self.seed} {self.name} {number} {way}")

    def command(self, ways: list[str], what: str, numbers: list[float]) -> None:
        for w in (self.ways[x] for x in ways):
            if what == "delay":
                w.delay_ms, w.jitter_ms = numbers[0], (numbers[1:] or [0.0])[0]
            elif what in ("rate", "flip", "dup", "lose"):
                setattr(w, what, int(numbers[0]))
            elif what == "hold":
                w.open.clear()
            elif what == "heal":
                w.heal()
                w.open.set()
        if what == "cut":
            for pair in list(self.writers):
                for w in pair:
                    reset(w)
        elif what == "close":
            for near, far in list(self.writers):
                for way, w in (("up", far), ("down", near)):
                    if way in ways and w.can_write_eof():
                        w.write_eof()
        elif what == "slow":
            self.slow_ms = numbers[0]
        elif what == "refuse":
            self.refuse = True
        elif what == "heal":
            self.refuse, self.slow_ms = False, 0.0

    def stats(self) -> str:
        up, down = self.ways["up"].bytes, self.ways["down"].bytes
        return f"{self.name} connections {self.n} open {len(self.writers)} up {up} down {down}"


NUMBERS = {"delay": (1, 2), "rate": (1, 1), "flip": (1, 1), "dup": (1, 1), "lose": (1, 1),
           "slow": (1, 1), "hold": (0, 0), "cut": (0, 0), "close": (0, 0), "refuse": (0, 0),
           "heal": (0, 0), "stats": (0, 0)}  # fewest and most numbers behind each command


def obey(links: dict[str, Link], line: str) -> str:
    words = line.split()
    if len(words) < 2 or words[1] not in NUMBERS:
        return f"error no command: {line.strip()}"
    name, _, way = words[0].partition(".")
    if way not in ("", "up", "down") or (name != "all" and name not in links):
        return f"error no link {words[0]}"
    try:
        numbers = [float(x) for x in words[2:]]
    except ValueError:
        return f"error {words[1]} takes numbers"
    fewest, most = NUMBERS[words[1]]
    if not fewest <= len(numbers) <= most or any(not 0 <= x < 1e12 for x in numbers):
        return f"error {words[1]} takes {fewest} to {most} numbers from 0 on"
    chosen = list(links.values()) if name == "all" else [links[name]]
    if words[1] == "stats":
        return "; ".join(link.stats() for link in chosen)
    for link in chosen:
        link.command([way] if way else ["up", "down"], words[1], numbers)
    return "ok"


async def follow(links: dict[str, Link], script: str | None) -> None:
    if script:
        with open(script, encoding="utf-8") as f:
            lines = [x for x in f.read().splitlines() if x.strip() and not x.startswith("#")]
        for line in lines:
            if line.split()[0] == "wait":
                await asyncio.sleep(float(line.split()[1]))
            else:
                print(obey(links, line), flush=True)
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        print(obey(links, line), flush=True)


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--script")
    parser.add_argument("links", nargs="+", metavar="NAME=LISTEN,TARGET")
    args = parser.parse_args()
    links: dict[str, Link] = {}
    for text in args.links:
        name, _, rest = text.partition("=")
        listen, _, target = rest.partition(",")
        links[name] = Link(name, address(target), args.seed)
        print(name, await links[name].listen(*address(listen)), flush=True)
    await follow(links, args.script)


if __name__ == "__main__":
    asyncio.run(main())

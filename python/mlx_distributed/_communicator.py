"""Ranks that send to each other and compute sums together."""

from __future__ import annotations

import ctypes as C
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, TypeVar, Union

from . import _native as n
from ._errors import InvalidArgument

_FIRST = 1 << 16  # room for a message whose length is not known yet
_WAIT = 0.1  # seconds that one receiving call stays in the library
_REDUCE = {"sum": 0, "max": 1}
_T = TypeVar("_T")
_Path = Union[str, "os.PathLike[str]"]


def _view(data: Any) -> memoryview:
    view = memoryview(data)
    if not view.c_contiguous:
        raise InvalidArgument("E_INVAL", "the array is not contiguous: pass a copy in C order")
    return view


def _writable(view: memoryview) -> Any:
    """The memory of a view as an argument for C; no copy."""
    return (C.c_char * view.nbytes).from_buffer(view.cast("B")) if view.nbytes else None


def _readable(data: Any) -> tuple[Any, int]:
    """Memory to read from, and its bytes; copied only when Python does not lend it out."""
    if isinstance(data, bytes):
        return data, len(data)
    view = _view(data)
    return (view.tobytes() if view.readonly else _writable(view)), view.nbytes


def _ms(seconds: float | None) -> int:
    return -1 if seconds is None else max(0, int(seconds * 1000))


def _text(path: _Path | None) -> bytes | None:
    return None if path is None else pathlib.Path(path).read_bytes()


def _strings(texts: Sequence[str]) -> Any:
    return (C.c_char_p * len(texts))(*[t.encode() for t in texts])


class Communicator:
    """One rank of a group. Every rank opens its own, with the same ``group`` and ``addresses``.

    rank, addresses    who this is, and ``"host:port"`` where each rank listens
    transport          ``"grpc"``; or ``"mpi"``: a job of mpirun gives rank and addresses, and needs
                       no certificate (if the library was built with MPI)
    ca, cert, key      paths of PEM files; or ``insecure=True`` on one machine or a closed network
    nodes              the names in the ranks' certificates; None: any node of the CA
    connect_timeout    seconds within which all ranks must be there
    reconnect_timeout  a rank that is away longer is lost
    spin               microseconds of polling before sleeping; 0: none
    shared_memory      False: the network only, also between ranks of one machine

    Data is anything with the buffer protocol: bytes, bytearray, array, memoryview, numpy arrays.
    Collectives are called by all ranks in the same order with the same sizes; after one that fails
    the ranks are out of step, and later ones fail too. Other threads run while a call waits. One
    collective at a time; ``send`` and ``recv`` from any threads, one for each peer and direction.
    Timeouts are in seconds; None waits for ever.
    """

    def __init__(
        self,
        rank: int | None = None,
        addresses: Sequence[str] = (),
        *,
        transport: str = "grpc",
        group: str = "default",
        ca: _Path | None = None,
        cert: _Path | None = None,
        key: _Path | None = None,
        nodes: Sequence[str] | None = None,
        insecure: bool = False,
        connect_timeout: float = 30.0,
        reconnect_timeout: float = 10.0,
        spin: int = 50,
        shared_memory: bool = True,
    ) -> None:
        self._handle: int | None = None
        self._idle = threading.Condition()
        self._calls = 0
        if nodes is not None and len(nodes) != len(addresses):
            raise InvalidArgument("E_INVAL", f"{len(nodes)} nodes for {len(addresses)} addresses")
        options = n.CommOptions(
            struct_size=C.sizeof(n.CommOptions),
            group=group.encode(),
            rank=-1 if rank is None else rank,
            size=len(addresses),
            addresses=_strings(addresses),
            nodes=None if nodes is None else _strings(nodes),
            ca_pem=_text(ca),
            cert_pem=_text(cert),
            key_pem=_text(key),
            insecure=insecure,
            connect_timeout_ms=_ms(connect_timeout),
            reconnect_timeout_ms=_ms(reconnect_timeout),
            spin_us=spin if spin > 0 else -1,
            no_shared_memory=not shared_memory,
            transport=transport.encode(),
        )
        handle = C.c_void_p()
        error = n.Error()
        n.check(n.lib.mlxd_comm_open(C.byref(handle), C.byref(options), C.byref(error)), error)
        self._handle = handle.value
        self._rank = n.lib.mlxd_comm_rank(handle)
        self._size = n.lib.mlxd_comm_size(handle)

    # ------------------------------------------------------------------------------------ life

    def close(self) -> None:
        """Waits for running calls of other threads, then hangs up. Safe to call twice."""
        with self._idle:
            handle, self._handle = self._handle, None
            while self._calls:
                self._idle.wait()
        if handle:
            n.lib.mlxd_comm_close(handle)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing() and getattr(self, "_handle", None):
            self.close()

    @contextmanager
    def _call(self) -> Iterator[int]:
        """The handle, which close does not take away before the block ends."""
        with self._idle:
            if not self._handle:
                raise InvalidArgument("E_INVAL", "the communicator is closed")
            handle = self._handle
            self._calls += 1
        try:
            yield handle
        finally:
            with self._idle:
                self._calls -= 1
                self._idle.notify_all()

    def _run(self, function: Any, *arguments: Any) -> None:
        error = n.Error()
        with self._call() as handle:
            n.check(function(handle, *arguments, C.byref(error)), error)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    # --------------------------------------------------------------------------- point to point

    def send(self, data: Any, to: int, *, tag: int = 0, timeout: float | None = 60.0) -> None:
        """Queues a copy of data; messages of one tag arrive in order."""
        memory, size = _readable(data)
        self._run(n.lib.mlxd_comm_send, to, tag, memory, size, _ms(timeout))

    def _receive(
        self, memory: Any, capacity: int, source: int, tag: int, timeout: float | None
    ) -> tuple[int, int, n.Error]:
        """Code, bytes, error; in short waits, so that Ctrl-C and close are seen in between."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        size, error = C.c_size_t(), n.Error()
        while True:
            left = max(0.0, min(_WAIT, until - time.monotonic()))
            with self._call() as handle:
                code = n.lib.mlxd_comm_recv(
                    handle, source, tag, memory, capacity, C.byref(size), _ms(left), C.byref(error)
                )
            if code != n.E_TIMEOUT or time.monotonic() >= until:
                return code, size.value, error

    def recv(self, source: int, *, tag: int = 0, timeout: float | None = 60.0) -> bytes:
        """The next message of that tag."""
        capacity = _FIRST
        while True:
            room = C.create_string_buffer(capacity)
            code, size, error = self._receive(room, capacity, source, tag, timeout)
            if code != n.E_TOOBIG:
                n.check(code, error)
                return room[:size]
            capacity = size

    def recv_into(
        self, buffer: Any, source: int, *, tag: int = 0, timeout: float | None = 60.0
    ) -> int:
        """The same into a writable buffer; returns the bytes of the message. One that is longer
        than the buffer raises InvalidArgument and stays."""
        view = _view(buffer)
        code, size, error = self._receive(_writable(view), view.nbytes, source, tag, timeout)
        n.check(code, error)
        return size

    # ------------------------------------------------------------------------------ collectives

    def all_reduce(self, x: _T, op: str = "sum", *, timeout: float | None = 60.0) -> _T:
        """The element-wise sum, or ``"max"``, over all ranks, of float32. In place, and returned;
        of bytes, which cannot change, as new bytes. Every rank gets the same bits."""
        if op not in _REDUCE:
            raise InvalidArgument("E_INVAL", f"op {op!r}: must be 'sum' or 'max'")
        view = _view(x)
        if view.format not in ("f", "<f", "=f", "@f") and not isinstance(x, (bytes, bytearray)):
            raise InvalidArgument("E_INVAL", f"elements of format {view.format!r}: must be float32")
        if view.nbytes % 4:
            raise InvalidArgument("E_INVAL", f"{view.nbytes} bytes are not whole floats")
        copy = bytearray(view) if view.readonly else None
        memory = _writable(view if copy is None else memoryview(copy))
        self._run(n.lib.mlxd_comm_all_reduce, memory, view.nbytes // 4, _REDUCE[op], _ms(timeout))
        return x if copy is None else self._back(x, copy)

    def exchange(self, x: _T, counts: Sequence[int], *, timeout: float | None = 60.0) -> _T:
        """x holds ``counts[r]`` floats of each rank r, one behind the other: this rank's are there,
        the others' are filled in, in place and returned. The counts are alike on all ranks."""
        view = _view(x)
        if view.format not in ("f", "<f", "=f", "@f") and not isinstance(x, bytearray):
            raise InvalidArgument("E_INVAL", f"elements of format {view.format!r}: must be float32")
        if view.readonly or len(counts) != self._size or view.nbytes != 4 * sum(counts):
            raise InvalidArgument(
                "E_INVAL", f"{view.nbytes} bytes, writable, of {self._size} ranks: {list(counts)}"
            )
        each = (C.c_size_t * self._size)(*counts)
        self._run(n.lib.mlxd_comm_exchange, _writable(view), each, _ms(timeout))
        return x

    def broadcast(self, data: _T, root: int = 0, *, timeout: float | None = 60.0) -> _T:
        """The root's data, in place and returned; the others pass a buffer of the same size. Of
        bytes, which cannot change, as new bytes."""
        view = _view(data)
        copy = bytearray(view) if view.readonly else None
        memory = _writable(view if copy is None else memoryview(copy))
        self._run(n.lib.mlxd_comm_broadcast, root, memory, view.nbytes, _ms(timeout))
        return data if copy is None else self._back(data, copy)

    def gather(
        self, data: Any, root: Optional[int] = None, *, timeout: float | None = 60.0
    ) -> Any:
        """Every rank's data, which has the same size everywhere, in order of ranks; on the root, or
        without one on all; None elsewhere. A list of bytes; of a numpy array an array [size, ...].
        """
        memory, size = _readable(data)
        wants = root is None or root == self._rank
        out = bytearray(size * self._size) if wants else bytearray()
        self._run(
            n.lib.mlxd_comm_gather,
            -1 if root is None else root,
            memory,
            size,
            _writable(memoryview(out)),
            _ms(timeout),
        )
        if not wants:
            return None
        if hasattr(data, "dtype") and hasattr(data, "shape"):
            import numpy

            return numpy.frombuffer(out, dtype=data.dtype).reshape((self._size, *data.shape))
        return [bytes(out[r * size : (r + 1) * size]) for r in range(self._size)]

    def barrier(self, *, timeout: float | None = 60.0) -> None:
        """Returns when all ranks have called it."""
        self._run(n.lib.mlxd_comm_barrier, _ms(timeout))

    # ------------------------------------------------------------------------------------ views

    def stats(self) -> dict[str, float]:
        """Latency and bandwidth as measured at opening, ranks behind shared memory, repairs."""
        found = n.CommStats(struct_size=C.sizeof(n.CommStats))
        self._run(n.lib.mlxd_comm_get_stats, C.byref(found))
        return {name: getattr(found, name) for name, *_ in found._fields_ if name != "struct_size"}

    @staticmethod
    def _back(like: Any, found: bytearray) -> Any:
        """The result for a caller whose own buffer could not take it."""
        if hasattr(like, "dtype") and hasattr(like, "shape"):
            import numpy

            return numpy.frombuffer(found, dtype=like.dtype).reshape(like.shape)
        return bytes(found)

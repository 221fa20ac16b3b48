"""The one class: a model over this machine's worker processes, or over a cluster."""

from __future__ import annotations

import asyncio
import ctypes as C
import dataclasses
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from . import _native as n
from ._errors import InvalidArgument

_WAIT_MS = 100  # how long one call into the library waits: Ctrl-C is seen in between
_FINISH = ("stop", "length", "cancelled")


@dataclasses.dataclass
class Result:
    """One answer. ``str(result)`` is its text."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_per_second: float
    tokens_per_second: float

    def __str__(self) -> str:
        return self.text


def detect_hardware() -> dict[str, Any]:
    """What this machine offers to a cluster: chip, cores, memory, instruction sets, battery, ..."""
    out = C.c_void_p()
    error = n.Error()
    n.check(n.lib.mlxd_detect_json(C.byref(out), C.byref(error)), error)
    return json.loads(n.take_text(out.value))


def _bytes(text: str | os.PathLike[str] | None) -> bytes | None:
    return None if text is None else os.fspath(text).encode()


def _rate(tokens: int, ms: float) -> float:
    return tokens * 1000.0 / ms if ms > 0 else 0.0


class DistributedMLXInference:
    """A model that answers.

    model       a folder, ``org/name`` in the hub cache, or ``"demo"``
    world_size  how many nodes compute: 1 is this process, more are worker processes on this
                machine, or, with ``listen``, workers that join from other machines
    listen      ``"host:port"`` where workers of other machines join (``mlx-dist-worker --join``)
    context     tokens of one sequence; None: the model's, at most 4096
    parallel    sequences that are computed at the same time
    backend     ``"auto"``, ``"cpu"`` or ``"mlx"``
    tensor_parallel_size    nodes that share each layer; None: the planner decides
    pipeline_parallel_size  stages that the layers are cut into; None: the planner decides
    layer_split, tensor_split  layers, or parts of each layer, of the nodes in their order
    objective   ``"latency"`` (one stream) or ``"throughput"`` (all together)

    Use it as a context manager, or call :meth:`close`. Methods may be called from several threads.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "demo",
        world_size: int = 1,
        *,
        listen: str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        context: int | None = None,
        parallel: int | None = None,
        threads: int | None = None,
        backend: str = "auto",
        activations: str = "8",
        load_timeout: float = 900.0,
        tensor_parallel_size: int | None = None,
        pipeline_parallel_size: int | None = None,
        layer_split: Sequence[int] | None = None,
        tensor_split: Sequence[float] | None = None,
        objective: str = "latency",
    ) -> None:
        self._handle: int | None = None
        self._lock = threading.Lock()
        self._streams: set[_Stream] = set()
        if world_size < 1:
            raise InvalidArgument("E_INVAL", f"world_size {world_size}: must be at least 1")
        if listen is not None and state_dir is None:
            state_dir = os.path.join(
                os.environ.get("XDG_STATE_HOME", os.path.expanduser("~/.local/state")),
                "mlx-distributed",
            )
        package = n.package_dir()
        worker = os.environ.get("MLXD_WORKER_PROGRAM") or package / "bin" / "mlx-dist-worker"
        data = os.environ.get("MLXD_DATA_DIR") or package
        layers, parts = tuple(layer_split or ()), tuple(tensor_split or ())
        options = n.EngineOptions(
            struct_size=C.sizeof(n.EngineOptions),
            model=_bytes(model),
            local_workers=world_size if world_size > 1 and listen is None else 0,
            context=context or 0,
            parallel=parallel or 0,
            threads=threads or 0,
            backend=backend.encode(),
            activations=activations.encode(),
            worker_program=_bytes(worker),
            data_dir=_bytes(data),
            cache_dir=_bytes(_cache_dir()),
            cluster_listen=_bytes(listen),
            state_dir=_bytes(state_dir),
            min_nodes=world_size if listen is not None else 0,
            load_timeout_ms=int(load_timeout * 1000),
            tensor_parallel_size=tensor_parallel_size or 0,
            pipeline_parallel_size=pipeline_parallel_size or 0,
            layer_split=(C.c_int * len(layers))(*layers),
            n_layer_split=len(layers),
            tensor_split=(C.c_double * len(parts))(*parts),
            n_tensor_split=len(parts),
            objective=objective.encode(),
        )
        handle = C.c_void_p()
        error = n.Error()
        n.check(n.lib.mlxd_engine_open(C.byref(handle), C.byref(options), C.byref(error)), error)
        self._handle = handle.value

    # ------------------------------------------------------------------------------------ life

    def close(self) -> None:
        """Ends the workers; running answers are cancelled. Safe to call twice."""
        with self._lock:
            handle, self._handle = self._handle, None
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        if handle:
            n.lib.mlxd_engine_close(handle)

    def __enter__(self) -> DistributedMLXInference:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # the interpreter may be going down
            pass

    def _open_handle(self) -> int:
        if not self._handle:
            raise InvalidArgument("E_INVAL", "the engine is closed")
        return self._handle

    # ---------------------------------------------------------------------------------- answers

    def generate(
        self, prompt: str | Sequence[dict[str, Any]], **how: Any
    ) -> str:
        """The whole answer as text. See :meth:`stream` for the parameters."""
        return self.generate_result(prompt, **how).text

    def generate_result(
        self, prompt: str | Sequence[dict[str, Any]], **how: Any
    ) -> Result:
        """The whole answer, with counts and speeds."""
        stream = _Stream(self, prompt, how)
        try:
            return stream.result()
        finally:
            stream.close()

    def stream(
        self, prompt: str | Sequence[dict[str, Any]], **how: Any
    ) -> Iterator[str]:
        """Pieces of the answer as they come.

        prompt           a message, or a whole chat as a list of ``{"role", "content"}``
        raw=False        True: go on from the text, without the model's chat template
        max_tokens=None  most tokens of the answer; None: the rest of the context
        temperature=None, top_p=None, min_p=None, top_k=None   None: the model's own defaults
        seed=None        the same seed gives the same text
        stop=None        a string or several that end the answer
        ignore_eos=False, timeout=None (seconds), template_kwargs=None (e.g. enable_thinking)
        """
        stream = _Stream(self, prompt, how)
        return stream.pieces()

    async def agenerate(self, prompt: str | Sequence[dict[str, Any]], **how: Any) -> str:
        """:meth:`generate` for asyncio."""
        return "".join([piece async for piece in self.astream(prompt, **how)])

    async def astream(
        self, prompt: str | Sequence[dict[str, Any]], **how: Any
    ) -> AsyncIterator[str]:
        """:meth:`stream` for asyncio: waits in a thread, so that the event loop goes on."""
        loop = asyncio.get_running_loop()
        stream = _Stream(self, prompt, how)
        try:
            while True:
                piece = await loop.run_in_executor(None, stream.next_piece)
                if piece is None:
                    return
                if piece:
                    yield piece
        finally:
            stream.close()

    # ------------------------------------------------------------------------------------ views

    def state(self) -> dict[str, Any]:
        """Epoch, plan, nodes and requests: the object of ``GET /v1/cluster/state``."""
        return json.loads(n.take_text(n.lib.mlxd_engine_state_json(self._open_handle())))

    def info(self) -> dict[str, Any]:
        """Model, context, layers, vocabulary, determinism."""
        return json.loads(n.take_text(n.lib.mlxd_engine_info_json(self._open_handle())))


def _cache_dir() -> str:
    env = os.environ
    if env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return env.get("HF_HUB_CACHE") or env["HUGGINGFACE_HUB_CACHE"]
    home = env.get("HF_HOME") or os.path.join(
        env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return os.path.join(home, "hub")


_ALLOWED = frozenset(
    "raw max_tokens temperature top_p min_p top_k seed stop ignore_eos timeout template_kwargs".split()
)


def _request(prompt: str | Sequence[dict[str, Any]], how: dict[str, Any]) -> n.Request:
    unknown = set(how) - _ALLOWED
    if unknown:
        raise TypeError(f"unknown argument {sorted(unknown)[0]!r}; known: {', '.join(sorted(_ALLOWED))}")
    request = n.Request(struct_size=C.sizeof(n.Request), temperature=-1.0, top_p=-1.0)
    if isinstance(prompt, str):
        request.text = prompt.encode()
        if "\0" in prompt:
            raise InvalidArgument("E_INVAL", "the prompt contains a NUL character")
    else:
        request.messages_json = json.dumps(list(prompt)).encode()
    if how.get("temperature") is not None:
        request.temperature = float(how["temperature"])
    if how.get("top_p") is not None:
        request.top_p = float(how["top_p"])
    request.min_p = float(how.get("min_p") or 0.0)
    if how.get("top_k") is not None:
        request.top_k = int(how["top_k"]) or -1
    if how.get("seed") is not None:
        request.has_seed, request.seed = 1, int(how["seed"]) & (2**64 - 1)
    request.raw = bool(how.get("raw"))
    request.ignore_eos = bool(how.get("ignore_eos"))
    max_tokens = how.get("max_tokens")
    if max_tokens is not None:
        if int(max_tokens) < 1:
            raise InvalidArgument("E_INVAL", f"max_tokens {max_tokens}: must be at least 1")
        request.max_tokens = int(max_tokens)
    request.timeout_ms = int(float(how.get("timeout") or 0) * 1000)
    if how.get("template_kwargs"):
        request.template_kwargs_json = json.dumps(how["template_kwargs"]).encode()
    stop = how.get("stop") or []
    stop = [stop] if isinstance(stop, str) else list(stop)
    if stop:
        request.stop = (C.c_char_p * len(stop))(*[s.encode() for s in stop])
        request.n_stop = len(stop)
    return request


class _Stream:
    """One answer on its way; closes itself at its end."""

    def __init__(
        self,
        owner: DistributedMLXInference,
        prompt: str | Sequence[dict[str, Any]],
        how: dict[str, Any],
    ) -> None:
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._owner = owner
        request = _request(prompt, how)
        handle = C.c_void_p()
        error = n.Error()
        engine = owner._open_handle()
        n.check(
            n.lib.mlxd_engine_start(engine, C.byref(request), C.byref(handle), C.byref(error)), error
        )
        self._handle = handle.value
        self._done: n.Event | None = None
        owner._streams.add(self)

    def close(self) -> None:
        with self._lock:
            handle, self._handle = self._handle, None
        self._owner._streams.discard(self)
        if handle:
            n.lib.mlxd_stream_free(handle)

    def next_piece(self) -> str | None:
        """Text, perhaps empty; None at the end."""
        event = n.Event()
        error = n.Error()
        with self._lock:
            if not self._handle:
                return None
            code = n.lib.mlxd_stream_next(self._handle, _WAIT_MS, C.byref(event), C.byref(error))
            if code == n.E_TIMEOUT and not n.lib.mlxd_stream_ended(self._handle):
                return ""
            n.check(code, error)
            if event.kind == 1:
                self._done = event
                return None
            return C.string_at(event.text, event.text_bytes).decode() if event.text_bytes else ""

    def pieces(self) -> Iterator[str]:
        try:
            while (piece := self.next_piece()) is not None:
                if piece:
                    yield piece
        finally:
            self.close()

    def result(self) -> Result:
        text = []
        while (piece := self.next_piece()) is not None:
            text.append(piece)
        done = self._done
        if done is None:
            raise InvalidArgument("E_INVAL", "the stream was closed before its end")
        return Result(
            "".join(text),
            _FINISH[done.finish],
            done.prompt_tokens,
            done.completion_tokens,
            _rate(done.prompt_tokens, done.prefill_ms),
            _rate(done.completion_tokens - 1, done.decode_ms),
        )

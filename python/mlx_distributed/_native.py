"""ctypes over include/mlx_distributed.h. ctypes releases the GIL while a call runs."""

from __future__ import annotations

import ctypes as C
import os
import pathlib
import sys

from ._errors import error_for

_HERE = pathlib.Path(__file__).resolve().parent
_LIBRARY = "libmlx_distributed.dylib" if sys.platform == "darwin" else "libmlx_distributed.so"
_ABI = 1

E_TOOBIG = 2  # mlxd_code: over a limit
E_TIMEOUT = 17  # nothing yet


class Error(C.Structure):
    _fields_ = [("code", C.c_int), ("message", C.c_char * 512)]


class EngineOptions(C.Structure):
    _fields_ = [
        ("struct_size", C.c_size_t),
        ("model", C.c_char_p),
        ("local_workers", C.c_int),
        ("context", C.c_int),
        ("parallel", C.c_int),
        ("threads", C.c_int),
        ("backend", C.c_char_p),
        ("activations", C.c_char_p),
        ("worker_program", C.c_char_p),
        ("data_dir", C.c_char_p),
        ("cache_dir", C.c_char_p),
        ("cluster_listen", C.c_char_p),
        ("state_dir", C.c_char_p),
        ("min_nodes", C.c_int),
        ("load_timeout_ms", C.c_int64),
        ("tensor_parallel_size", C.c_int),
        ("pipeline_parallel_size", C.c_int),
        ("layer_split", C.POINTER(C.c_int)),
        ("n_layer_split", C.c_int),
        ("tensor_split", C.POINTER(C.c_double)),
        ("n_tensor_split", C.c_int),
        ("objective", C.c_char_p),
    ]


class Request(C.Structure):
    _fields_ = [
        ("struct_size", C.c_size_t),
        ("text", C.c_char_p),
        ("messages_json", C.c_char_p),
        ("raw", C.c_int),
        ("max_tokens", C.c_int),
        ("temperature", C.c_double),
        ("top_p", C.c_double),
        ("min_p", C.c_double),
        ("top_k", C.c_int),
        ("has_seed", C.c_int),
        ("seed", C.c_uint64),
        ("stop", C.POINTER(C.c_char_p)),
        ("n_stop", C.c_int),
        ("ignore_eos", C.c_int),
        ("timeout_ms", C.c_int64),
        ("template_kwargs_json", C.c_char_p),
    ]


class Event(C.Structure):
    _fields_ = [
        ("kind", C.c_int),
        ("text", C.POINTER(C.c_char)),
        ("text_bytes", C.c_size_t),
        ("n_tokens", C.c_int),
        ("finish", C.c_int),
        ("prompt_tokens", C.c_int),
        ("completion_tokens", C.c_int),
        ("queue_ms", C.c_double),
        ("prefill_ms", C.c_double),
        ("decode_ms", C.c_double),
    ]


class CommOptions(C.Structure):
    _fields_ = [
        ("struct_size", C.c_size_t),
        ("group", C.c_char_p),
        ("rank", C.c_int),
        ("size", C.c_int),
        ("addresses", C.POINTER(C.c_char_p)),
        ("nodes", C.POINTER(C.c_char_p)),
        ("ca_pem", C.c_char_p),
        ("cert_pem", C.c_char_p),
        ("key_pem", C.c_char_p),
        ("insecure", C.c_int),
        ("connect_timeout_ms", C.c_int64),
        ("reconnect_timeout_ms", C.c_int64),
        ("spin_us", C.c_int),
        ("no_shared_memory", C.c_int),
        ("transport", C.c_char_p),
    ]


class CommStats(C.Structure):
    _fields_ = [
        ("struct_size", C.c_size_t),
        ("latency_us", C.c_double),
        ("bandwidth_bytes_per_s", C.c_double),
        ("shared_memory_peers", C.c_int),
        ("reconnects", C.c_uint64),
        ("resent_frames", C.c_uint64),
    ]


def _candidates() -> list[pathlib.Path]:
    found = [_HERE / "lib" / _LIBRARY]
    build = os.environ.get("MLXD_LIBRARY_DIR")
    if build:
        found.insert(0, pathlib.Path(build) / _LIBRARY)
    return found


def _load() -> C.CDLL:
    for path in _candidates():
        if path.exists():
            return C.CDLL(str(path))
    raise ImportError(
        f"{_LIBRARY} is not in {_HERE / 'lib'}: reinstall mlx-distributed, "
        "or name its folder in MLXD_LIBRARY_DIR"
    )


def _declare(lib: C.CDLL) -> C.CDLL:
    pointer = C.c_void_p
    error = C.POINTER(Error)
    signatures = {
        "mlxd_abi_version": (C.c_int, []),
        "mlxd_version": (C.c_char_p, []),
        "mlxd_code_name": (C.c_char_p, [C.c_int]),
        "mlxd_set_log": (None, [pointer, pointer, C.c_int]),
        "mlxd_engine_open": (C.c_int, [C.POINTER(pointer), C.POINTER(EngineOptions), error]),
        "mlxd_engine_close": (None, [pointer]),
        "mlxd_engine_state_json": (pointer, [pointer]),
        "mlxd_engine_info_json": (pointer, [pointer]),
        "mlxd_detect_json": (C.c_int, [C.POINTER(pointer), error]),
        "mlxd_free": (None, [pointer]),
        "mlxd_engine_start": (
            C.c_int,
            [pointer, C.POINTER(Request), C.POINTER(pointer), error],
        ),
        "mlxd_stream_next": (C.c_int, [pointer, C.c_int64, C.POINTER(Event), error]),
        "mlxd_stream_ended": (C.c_int, [pointer]),
        "mlxd_stream_cancel": (None, [pointer]),
        "mlxd_stream_free": (None, [pointer]),
        "mlxd_comm_open": (C.c_int, [C.POINTER(pointer), C.POINTER(CommOptions), error]),
        "mlxd_comm_close": (None, [pointer]),
        "mlxd_comm_rank": (C.c_int, [pointer]),
        "mlxd_comm_size": (C.c_int, [pointer]),
        "mlxd_comm_send": (
            C.c_int,
            [pointer, C.c_int, C.c_uint32, pointer, C.c_size_t, C.c_int64, error],
        ),
        "mlxd_comm_recv": (
            C.c_int,
            [
                pointer,
                C.c_int,
                C.c_uint32,
                pointer,
                C.c_size_t,
                C.POINTER(C.c_size_t),
                C.c_int64,
                error,
            ],
        ),
        "mlxd_comm_all_reduce": (
            C.c_int,
            [pointer, pointer, C.c_size_t, C.c_int, C.c_int64, error],
        ),
        "mlxd_comm_exchange": (
            C.c_int,
            [pointer, pointer, C.POINTER(C.c_size_t), C.c_int64, error],
        ),
        "mlxd_comm_broadcast": (
            C.c_int,
            [pointer, C.c_int, pointer, C.c_size_t, C.c_int64, error],
        ),
        "mlxd_comm_gather": (
            C.c_int,
            [pointer, C.c_int, pointer, C.c_size_t, pointer, C.c_int64, error],
        ),
        "mlxd_comm_barrier": (C.c_int, [pointer, C.c_int64, error]),
        "mlxd_comm_get_stats": (C.c_int, [pointer, C.POINTER(CommStats), error]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    if lib.mlxd_abi_version() != _ABI:
        raise ImportError(f"{_LIBRARY} is of another version: reinstall mlx-distributed")
    lib.mlxd_set_log(None, None, int(os.environ.get("MLXD_PYTHON_LOG", "2")))
    return lib


lib = _declare(_load())


def version() -> str:
    return lib.mlxd_version().decode()


def check(code: int, error: Error) -> None:
    """Raises what the code means."""
    if code:
        raise error_for(lib.mlxd_code_name(code).decode(), error.message.decode("utf-8", "replace"))


def take_text(address: int | None) -> str:
    """A string of the library's, copied and freed."""
    if not address:
        raise MemoryError("out of memory")
    try:
        return C.string_at(address).decode()
    finally:
        lib.mlxd_free(address)


def package_dir() -> pathlib.Path:
    return _HERE

"""The programs, as scripts of the package: each becomes the C program of its name."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import NoReturn

_BIN = pathlib.Path(__file__).resolve().parent / "bin"


def _become(name: str) -> NoReturn:
    os.environ.setdefault("MLXD_DATA_DIR", str(_BIN.parent))
    program = str(_BIN / name)
    try:
        os.execv(program, [program, *sys.argv[1:]])
    except OSError as why:
        sys.exit(f"{name}: error: cannot start {program}: {why.strerror}; reinstall mlx-distributed")


def server() -> NoReturn:
    _become("mlx-dist-server")


def worker() -> NoReturn:
    _become("mlx-dist-worker")


def detect() -> NoReturn:
    _become("mlx-dist-detect")


def config() -> NoReturn:
    _become("mlx-dist-config")


def generate() -> NoReturn:
    _become("mlx-dist-generate")


def bench() -> NoReturn:
    _become("mlx-dist-bench")

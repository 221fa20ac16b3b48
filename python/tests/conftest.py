"""Tests of the package against a built tree: MXD_BIN_DIR names the folder of its programs."""

import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MXD_BIN_DIR") or ROOT / "build" / "src" / "cli")


def _library_dir() -> "pathlib.Path | None":
    for base in (BIN.parent, BIN.parents[1]):
        for found in base.rglob("libmlx_distributed.*"):
            if found.suffix in (".so", ".dylib"):
                return found.parent
    return None


def pytest_configure() -> None:
    library = _library_dir()
    if library is None:
        return
    os.environ.setdefault("MLXD_LIBRARY_DIR", str(library))
    os.environ.setdefault("MLXD_WORKER_PROGRAM", str(BIN / "mlx-dist-worker"))
    os.environ.setdefault("MLXD_DATA_DIR", str(ROOT))
    sys.path.insert(0, str(ROOT / "python"))


def pytest_collection_modifyitems(items: list) -> None:
    if "MLXD_LIBRARY_DIR" in os.environ:
        return
    skip = pytest.mark.skip(reason=f"no libmlx_distributed near {BIN}: build first")
    for item in items:
        if pathlib.Path(item.fspath).parent == pathlib.Path(__file__).parent:
            item.add_marker(skip)

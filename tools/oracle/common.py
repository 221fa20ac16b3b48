"""What the oracle scripts share: versions, hashes, and JSON written the same way each time."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "conformance"


def versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, value: Any, indent: int | None = 1, ensure_ascii: bool = False) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_json_lines(path: Path, head: dict[str, Any], key: str, rows: list[Any]) -> None:
    """One object {**head, key: rows} with each row on its own line, so that diffs stay readable."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, allow_nan=False) for row in rows)
    start = json.dumps(head, ensure_ascii=True)[:-1]
    path.write_text(f'{start}{", " if head else ""}"{key}": [\n{lines}\n]}}\n', encoding="utf-8", newline="\n")

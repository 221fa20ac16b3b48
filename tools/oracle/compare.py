"""Compare remade goldens with the committed ones: python compare.py COMMITTED REMADE

Bytes must be equal, with these exceptions: versions are only reported; the wording of errors is free; logits may differ
by 1e-3 of their largest magnitude, and greedy tokens only where the margin is within that.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-3
# Inputs, or about other files: nothing remakes them.
INPUTS = {"README.md", "conversations.json"}


def strip(value: Any) -> Any:
    """The value without what may differ."""
    if isinstance(value, dict):
        return {k: True if k == "error" else strip(v) for k, v in value.items() if k not in ("versions", "why")}
    return [strip(v) for v in value] if isinstance(value, list) else value


def first_difference(a: Any, b: Any, path: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for k in sorted(a.keys() | b.keys()):
            if a.get(k) != b.get(k):
                return first_difference(a.get(k), b.get(k), f"{path}.{k}")
    if isinstance(a, list) and isinstance(b, list):
        for i, (x, y) in enumerate(zip(a, b)):
            if x != y:
                return first_difference(x, y, f"{path}[{i}]")
        if len(a) != len(b):
            return f"{path}: {len(a)} entries, now {len(b)}"
    return f"{path}: {json.dumps(a)[:200]}, now {json.dumps(b)[:200]}"


def compare_logits(old: Path, new: Path) -> str | None:
    a, b = (np.fromfile(p, "<f4") for p in (old, new))
    if a.size != b.size:
        return f"{a.size} floats, now {b.size}"
    worst, limit = float(np.abs(a - b).max()), TOLERANCE * float(np.abs(a).max())
    return f"logits differ by {worst:.3g}, allowed {limit:.3g}" if worst > limit else None


def compare_golden(old: dict[str, Any], new: dict[str, Any], limit: float) -> str | None:
    for i, (a, b) in enumerate(zip(old["cases"], new["cases"])):
        for k, (x, y) in enumerate(zip(a["greedy"], b["greedy"])):
            if x != y:
                if a["margin"][k] > limit:
                    return f"cases[{i}].greedy[{k}]: {x}, now {y}, margin {a['margin'][k]}"
                break  # a tie fell the other way: what follows is another text
    weights = [{n: h for n, h in g["sha256"].items() if n != "golden.json"} for g in (old, new)]
    if weights[0] != weights[1]:
        return "sha256" + first_difference(*weights)
    if [c["prompt"] for c in old["cases"]] != [c["prompt"] for c in new["cases"]]:
        return "prompts differ"
    return None


def compare(old: Path, new: Path) -> str | None:
    if not new.exists():
        return "is not made any more"
    if not old.exists():
        return "is not committed"
    if old.read_bytes() == new.read_bytes():
        return None
    if old.name == "logits.f32":
        return compare_logits(old, new)
    if old.suffix != ".json":
        return f"{old.stat().st_size} bytes differ from {new.stat().st_size}"
    a, b = (json.loads(p.read_text(encoding="utf-8")) for p in (old, new))
    if a.get("versions") != b.get("versions"):
        print(f"note    {old}: made with {a.get('versions')}, now {b.get('versions')}")
    if old.name == "golden.json":
        largest = float(np.abs(np.fromfile(old.parent / "logits.f32", "<f4")).max())
        return compare_golden(a, b, TOLERANCE * largest)
    a, b = strip(a), strip(b)
    return None if a == b else first_difference(a, b)


def main() -> int:
    committed, remade = map(Path, sys.argv[1:3])

    def made(root: Path) -> set[Path]:
        files = {p.relative_to(root) for part in ("models", "tokenizers", "templates") for p in (root / part).rglob("*")
                 if p.is_file() and p.name not in INPUTS and p.suffix != ".jinja"}
        return files

    names = sorted(made(committed) | made(remade))
    different = 0
    for name in names:
        if (why := compare(committed / name, remade / name)) is not None:
            different += 1
            print(f"differs {name}: {why}")
    print(f"{len(names)} goldens, {different} differ")
    return 1 if different or not names else 0


if __name__ == "__main__":
    sys.exit(main())

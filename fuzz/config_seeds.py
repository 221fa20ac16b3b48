"""The seeds of fuzz_config: each small model of tests/conformance without its data.

    python3 fuzz/config_seeds.py [NAME...]      writes fuzz/corpus/config/NAME; without names, one for each model_type
"""

import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "tests" / "conformance" / "models"


def seed(folder: Path) -> bytes:
    """Bytes of data, config.json, NUL, the header of the first file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    file = sorted(folder.glob("model*.safetensors"))[0].read_bytes()
    (n,) = struct.unpack("<Q", file[:8])
    return struct.pack("<Q", len(file) - 8 - n) + json.dumps(config, separators=(",", ":")).encode() + b"\0" + file[8:8 + n].rstrip()


def main() -> None:
    names, types = sys.argv[1:], set()
    for folder in sorted(p.parent for p in MODELS.glob("*/model.safetensors")):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        if folder.name not in names and (names or kind in types):
            continue
        types.add(kind)
        (HERE / "corpus" / "config" / folder.name).write_bytes(seed(folder))


if __name__ == "__main__":
    main()

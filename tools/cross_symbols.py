#!/usr/bin/env python3
"""Every name that the Mach-O files of a cross build leave open must be one that a library defines.

tools/cross-macos.sh links without the third-party libraries, so the linker accepts any missing name. What is not in
Apple's own libraries is looked up here in the same libraries of this machine.
  cross_symbols.py FILE ...    exit code 1 and the names, when some are nobody's
"""
import struct
import subprocess
import sys

PACKAGES = ["jansson", "libcrypto", "libssl", "yaml-0.1", "libpcre2-8", "libutf8proc", "libprotobuf-c",
            "libmicrohttpd", "grpc", "gpr"]
MAGIC, SYMTAB, EXTERNAL, KIND, DEBUG = 0xFEEDFACF, 2, 0x01, 0x0E, 0xE0


def left_open(path):
    """Names that no library on the link line defined (<mach-o/nlist.h>: library ordinals 0 and 254)."""
    with open(path, "rb") as f:
        data = f.read()
    if struct.unpack_from("<I", data)[0] != MAGIC:
        raise SystemExit(f"cross_symbols: {path} is not a 64-bit Mach-O file")
    n_commands, at = struct.unpack_from("<I", data, 16)[0], 32
    for _ in range(n_commands):
        command, size = struct.unpack_from("<II", data, at)
        if command == SYMTAB:
            symbols, count, strings, _ = struct.unpack_from("<4I", data, at + 8)
            for i in range(count):
                name, kind, _, desc, _ = struct.unpack_from("<IBBHQ", data, symbols + 16 * i)
                if kind & (DEBUG | KIND) == 0 and kind & EXTERNAL and desc >> 8 in (0, 254):
                    start = strings + name
                    yield data[start:data.index(b"\0", start)].decode()[1:]  # C names begin with _
        at += size


def defined_by(package):
    """Exported names of the shared libraries that pkg-config names."""
    flags = subprocess.run(["pkg-config", "--libs-only-l", package], check=True, capture_output=True,
                           text=True).stdout.split()
    names = set()
    for library in (f[2:] for f in flags):
        path = subprocess.run(["gcc", f"-print-file-name=lib{library}.so"], check=True, capture_output=True,
                              text=True).stdout.strip()
        out = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True).stdout
        names.update(line.split()[-1].split("@")[0] for line in out.splitlines())
    return names


def main(files):
    known = set().union(*map(defined_by, PACKAGES))
    bad = 0
    for path in files:
        names = set(left_open(path))
        strangers = sorted(names - known)
        bad += len(strangers)
        print(f"{path}: {len(names)} names of libraries" + "".join(f"\n  nobody's: {n}" for n in strangers))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

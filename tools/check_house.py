#!/usr/bin/env python3
"""House rules that a compiler does not check: one line per breach, exit 1 when there is one.

  layers      an #include points at the own room or one above it
  calls       memory through base/alloc.h; nothing prints, ends or asks the environment below src/cli
  sizes       functions up to 70 lines, files up to 1,000, 100 columns
  words       no words of unfinished work, no paths of a machine
  format      clang-format --dry-run
  versions    base/version.h, meson.build and pyproject.toml agree
  documents   docs/cli.md is what the option table makes; every room has a README.md

tools/check_house.py [BUILD]: with BUILD, its mlxd-optdoc is asked for docs/cli.md.
"""
import difflib
import pathlib
import re
import shutil
import subprocess
import sys

ROOMS = ["base", "formats", "tokenizer", "kernels", "backend", "model", "runtime", "hardware", "plan",
         "net", "cluster", "hub", "api", "server", "cli"]
HEAP = "malloc|calloc|realloc|free|strdup|strndup|asprintf|vasprintf"
UNSAFE = "sprintf|vsprintf|strcpy|strcat|strncat|strtok|atoi|atol|atof|gets|scanf|alloca|system|popen"
OUTER = "exit|_exit|abort|getenv|printf|puts|putchar|perror"
# Clocks of the wall jump: what decides in a cluster has monotonic time and remaining milliseconds.
WALL = re.compile(r"(?<![\w.>])(mxd_wall_ms|time|gettimeofday|localtime_r|gmtime_r)\s*\(|CLOCK_REALTIME")
TIMELESS_ROOMS = {"runtime", "plan", "cluster"}
CALL = re.compile(rf"(?<![\w.>])({HEAP}|{UNSAFE}|{OUTER})\s*\(")
# The doors themselves; and what the C library, not we, has taken from the heap.
ALLOWED = {
    ("src/base/alloc.c", "free"), ("src/base/alloc.c", "malloc"), ("src/base/alloc.c", "realloc"),
    ("src/base/alloc.c", "calloc"), ("src/base/err.c", "abort"),
    ("src/cluster/coord_journal.c", "mxd_wall_ms"),  # when a kept stream ended, over restarts
}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\b(?i:stub(bed)?|placeholder|for now|"
                        r"not implemented yet|simplified version)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|farm)/")
FILE_MAX, FUNCTION_MAX, COLUMNS = 1000, 70, 100
C_ENDINGS = {".c", ".h", ".cpp"}
TEXT_ENDINGS = C_ENDINGS | {".py", ".sh", ".md", ".build", ".proto", ".js", ".html", ".css", ".yaml"}
WORDS_ELSEWHERE = {"tools/check_house.py"}  # this list itself


def code_of(line):
    """The line without texts and comments, as far as one line can tell."""
    line = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])\'', '""', line)
    return re.sub(r"//.*|/\*.*?\*/|^\s*\*.*|/\*.*", "", line)


def sources():
    """What git knows or would take, so that build folders and caches stay out."""
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True)
    paths = out.stdout.splitlines() if out.returncode == 0 else map(str, pathlib.Path(".").rglob("*"))
    return sorted(p for p in map(pathlib.Path, paths) if p.is_file())


def check_layers(path, number, line):
    inc = re.match(r'\s*#\s*include\s+"(\w+)/', line)
    if not inc or path.parts[0] != "src" or inc[1] not in ROOMS:
        return
    if ROOMS.index(inc[1]) > ROOMS.index(path.parts[1]):
        yield f"{path}:{number}: {path.parts[1]} must not include {inc[1]}"


def check_calls(path, number, line):
    for call in CALL.finditer(code_of(line)):
        name = call[1]
        outer_is_fine = path.parts[1] == "cli" and re.fullmatch(OUTER, name)
        if outer_is_fine or (str(path), name) in ALLOWED:
            continue
        yield f"{path}:{number}: {name}() is banned here"


def check_clocks(path, number, line):
    found = WALL.search(code_of(line))
    if not found or path.parts[0] != "src" or path.parts[1] not in TIMELESS_ROOMS:
        return
    if (str(path), found[1]) not in ALLOWED:
        yield f"{path}:{number}: a clock of the wall in {path.parts[1]}: it may jump"


def check_functions(path, lines):
    start, inside = None, False
    for number, line in enumerate(lines, 1):
        if not inside and re.match(r"(static |_Noreturn )*[A-Za-z_][\w *]*\w\(", line):
            start = number
        if not inside and start:
            inside = line.endswith("{")
            start = None if line.endswith(";") or not line else start
        if line == "}" and inside:
            if number - start + 1 > FUNCTION_MAX:
                yield f"{path}:{start}: function of {number - start + 1} lines, at most {FUNCTION_MAX}"
            start, inside = None, False


def check_source(path, lines):
    in_src = path.parts[0] == "src"
    if len(lines) - 1 > FILE_MAX:
        yield f"{path}: {len(lines) - 1} lines, at most {FILE_MAX}"
    table = False  # rows that the formatter leaves alone may be as wide as they are
    for number, line in enumerate(lines, 1):
        table = (table or "clang-format off" in line) and "clang-format on" not in line
        if len(line) > COLUMNS and not table:
            yield f"{path}:{number}: {len(line)} columns, at most {COLUMNS}"
        if in_src:
            yield from check_layers(path, number, line)
        if in_src and path.suffix == ".c":
            yield from check_calls(path, number, line)
            yield from check_clocks(path, number, line)
    yield from check_functions(path, lines)


def check_words(path, lines):
    for number, line in enumerate(lines, 1):
        word = UNFINISHED.search(line)
        if word:
            yield f"{path}:{number}: '{word[0]}' says that work is unfinished"
        if MACHINE_PATH.search(line):
            yield f"{path}:{number}: a path of one machine"


def check_format(paths):
    tool = shutil.which("clang-format")
    if not tool:
        yield "clang-format is missing: apt or brew install clang-format"
        return
    run = subprocess.run([tool, "--dry-run", *map(str, paths)], capture_output=True, text=True)
    bad = sorted({m[1] for m in re.finditer(r"^(\S+?):\d+:\d+: warning: code should be clang-formatted",
                                            run.stderr, re.M)})
    for path in bad:
        yield f"{path}: not formatted: clang-format -i {path}"


def check_versions():
    """One version, in three files that cannot include each other."""
    want = re.search(r'MXD_VERSION "([^"]+)"', pathlib.Path("src/base/version.h").read_text())[1]
    for name, pattern in (("meson.build", r"version: '([^']+)'"), ("pyproject.toml", r'^version = "([^"]+)"')):
        path = pathlib.Path(name)
        found = re.search(pattern, path.read_text(), re.M) if path.exists() else None
        if found and found[1] != want:
            yield f"{name}: version {found[1]}, src/base/version.h says {want}"


def check_documents(build):
    for room in ROOMS:
        if not pathlib.Path("src", room, "README.md").exists():
            yield f"src/{room}: no README.md"
    tool = pathlib.Path(build, "src/cli/mlxd-optdoc")
    if not tool.exists():
        return
    made = subprocess.run([tool, "markdown"], capture_output=True, text=True, check=True).stdout
    page = pathlib.Path("docs/cli.md")
    have = page.read_text() if page.exists() else ""
    if made != have:
        first = next((d for d in difflib.unified_diff(have.split("\n"), made.split("\n"), n=0, lineterm="")
                      if d[:1] in "+-" and d[:3] not in ("+++", "---")), "")
        yield f"docs/cli.md: not what the option table makes (make docs); first: {first[:100]}"


def main():
    build = sys.argv[1] if len(sys.argv) > 1 else "build"
    bad, formatted = [], []
    for path in sources():
        generated = "third_party" in path.parts or path.name.endswith((".pb-c.c", ".pb-c.h"))
        if path.suffix not in TEXT_ENDINGS or generated:
            continue
        lines = path.read_text(errors="replace").split("\n")
        data = "conformance" in path.parts or "corpus" in path.parts
        if not data and str(path) not in WORDS_ELSEWHERE:
            bad += check_words(path, lines)
        if path.suffix in C_ENDINGS and path.parts[0] in ("src", "tests", "include", "fuzz"):
            bad += check_source(path, lines)
            formatted.append(path)
    bad += check_format(formatted)
    bad += check_versions()
    bad += check_documents(build)
    print("\n".join(bad) or "house rules: ok")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Counts what meson's TAP logs and pytest's JUnit files say; the last line is the sum.

Exit 1 when anything failed, or when nothing ran. A test that was skipped is named with its reason and
never counts as passed.
"""
import argparse
import json
import pathlib
import re
import sys
import xml.etree.ElementTree as ET

TAP = re.compile(r"^(not )?ok\b(?: +\d+)?(?: +- *)?(.*?)(?:# *(skip|todo)\b *(.*))?$", re.I)


class Count:
    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def read_tap(suite, text):
    """Lines of one test program; anything else in its output is no matter."""
    count = Count()
    for line in text.splitlines():
        m = TAP.match(line.strip())
        if not m:
            continue
        bad, name, directive, why = m.groups()
        name = f"{suite}: {name.strip()}"
        if directive and directive.lower() == "skip":
            count.skipped.append(f"{name} ({why or 'no reason given'})")
        elif bad:
            count.failed.append(name)
        else:
            count.passed += 1
    return count


def read_meson(path):
    """testlog.json: one JSON object per test program."""
    count = Count()
    for line in pathlib.Path(path).read_text(errors="replace").splitlines():
        test = json.loads(line)
        one = read_tap(test["name"], test.get("stdout") or "")
        result = test["result"]
        if result == "SKIP" and not one.skipped:
            one.skipped.append(f"{test['name']} (as a whole)")
        elif result in ("OK", "EXPECTEDFAIL"):
            if not (one.passed or one.failed or one.skipped):
                one.passed = 1
        elif result != "SKIP" and not one.failed:
            one.failed.append(f"{test['name']}: {result.lower()}")
        count.add(one)
    return count


def read_junit(path):
    count = Count()
    for case in ET.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            count.failed.append(name)
        elif skip is not None:
            count.skipped.append(f"{name} ({skip.get('message') or 'no reason given'})")
        else:
            count.passed += 1
    return count


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--meson", action="append", default=[])
    args.add_argument("--meson-failed", action="store_true", help="meson test itself said so")
    args.add_argument("--pytest", action="append", default=[])
    args.add_argument("--failed", action="append", default=[], help="something that went wrong besides")
    args.add_argument("--skipped", type=int, default=0, help="tests that could not run at all")
    a = args.parse_args()
    total = Count()
    for path in a.meson:
        if pathlib.Path(path).exists():
            total.add(read_meson(path))
        else:
            total.failed.append(f"meson: no {path}")
    if a.meson_failed and not total.failed:
        total.failed.append("meson test failed without saying which test")
    for path in a.pytest:
        total.add(read_junit(path))
    total.failed += a.failed

    skipped = len(total.skipped) + a.skipped
    print()
    for name in total.skipped:
        print(f"SKIP {name}")
    for name in total.failed:
        print(f"FAIL {name}")
    line = f"{total.passed} passed, {len(total.failed)} failed"
    print(line + (f", {skipped} skipped" if skipped else ""))
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())

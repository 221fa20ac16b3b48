"""What jinja2, set up as transformers does for chat templates, makes of the templates and expressions.

    python make_templates.py [OUT]       reads *.jinja and conversations.json next to the goldens,
                                         writes OUT/{expected.json, expressions.json}
"""

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common import GOLDENS, versions, write_json_lines
from expressions import EXPRESSIONS

CLOCK = datetime(2026, 3, 5, 14, 7, 9)  # a Thursday
INPUTS = GOLDENS / "templates"


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}: its body, unchanged."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def tojson(x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
           sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Namespace(jinja2.utils.Namespace):
    """As transformers has it since 5.x: names that start with an underscore are refused."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self, so that namespace(self=1) works
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            refuse_underscore(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        refuse_underscore(name)
        super().__setitem__(name, value)


def refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r}")


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def environment() -> jinja2.Environment:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["namespace"] = Namespace
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = CLOCK.strftime
    return env


def render(env: jinja2.Environment, template: str, variables: dict[str, Any]) -> dict[str, str]:
    """{"text"} or {"error"}: only the fact of an error is a golden, its wording is for the reader."""
    try:
        return {"text": env.from_string(template).render(**variables)}
    except Exception as error:  # noqa: BLE001  whatever jinja2 or Python raises is the expected answer
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=INPUTS)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    env = environment()
    conversations = json.loads((INPUTS / "conversations.json").read_text(encoding="utf-8"))
    lines, n_errors = [], 0
    for path in sorted(INPUTS.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        results = {name: render(env, template, variables) for name, variables in conversations.items()}
        n_errors += sum("error" in r for r in results.values())
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(r)}" for name, r in results.items())
        lines.append(f" {json.dumps(path.stem)}: {{\n{rows}\n }}")
    (out / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")
    print(f"{len(lines)} templates x {len(conversations)} conversations, {n_errors} errors")

    rows = []
    for template, variables, rare in EXPRESSIONS:
        result = render(env, template, variables)
        answer = {"error": True, "why": result["error"]} if "error" in result else result
        rows.append({"template": template, "vars": variables, **answer, **({"rare": True} if rare else {})})
    write_json_lines(out / "expressions.json", {"versions": versions("jinja2"), "clock": CLOCK.isoformat()}, "cases", rows)
    print(f"{len(rows)} expressions, {sum('error' in r for r in rows)} errors, {sum('rare' in r for r in rows)} rare")


if __name__ == "__main__":
    main()

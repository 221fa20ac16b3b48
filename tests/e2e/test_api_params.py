"""Each field of each endpoint, out of the description that the server makes from its own table."""
import json

import pytest

import schemas
from schemas import check

MINIMAL = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": [{"role": "user", "content": "x"}]},
}
WRONG = [True, 1, -1, 1.5, "", "x", "\u0007" * 3, [], [[]], {}, {"a": {"b": []}}, [None], [1, "a"],
         [{"type": "text"}], 2**63 - 1, -(2**63), 1e308, -1e308, "x" * 100000, [0] * 5000]
TYPES = {"boolean": bool, "integer": int, "number": (int, float), "string": str, "object": dict,
         "array": list}


def fields(server, path):
    schema = server.api.get("/openapi.json").json["paths"][path]["post"]["requestBody"]
    return schema["content"]["application/json"]["schema"]


def fits(value, spec):
    names = spec.get("type", list(TYPES))
    names = [names] if isinstance(names, str) else names
    if isinstance(value, bool):
        return "boolean" in names
    return any(n in TYPES and isinstance(value, TYPES[n]) for n in names)


def send(server, path, model, name, value):
    body = dict(MINIMAL[path])
    if "completions" in path:
        body["model"] = model
    body[name] = value
    r = server.api.post(path, json.dumps(body))
    assert r.status < 500, (name, value, r.body)
    if r.status != 200:
        error = check(r.json, schemas.ERROR)["error"]
        assert r.status in (400, 404) and r.headers["x-should-retry"] == "false"
        return error
    return None


@pytest.mark.parametrize("path", list(MINIMAL))
def test_every_field(server, model, path):
    schema = fields(server, path)
    for name, spec in schema["properties"].items():
        refused = spec["x-level"] == "refused"
        for value in WRONG:
            error = send(server, path, model, name, value)
            if not fits(value, spec):
                assert error, (name, value)
            if error and error["code"] == "invalid_value":
                together = "stream" in name or "logprobs" in name
                assert name in (error["param"] or "") or together, (name, value, error)
        error = send(server, path, model, name, None)
        assert bool(error) == (name in schema["required"]), name
        if "minimum" not in spec or refused:
            continue
        for bound, step in (("minimum", -1), ("maximum", 1)):
            out = spec[bound] + step
            if abs(out) < 2**63:
                error = send(server, path, model, name, out)
                assert error and error["param"] == name, (name, out)


def test_description(server):
    doc = server.api.get("/openapi.json").json
    assert doc["openapi"].startswith("3.1") and doc["info"]["title"]
    for path, item in doc["paths"].items():
        for method, op in item.items():
            assert "default" in op["responses"]
            if "{" in path:
                continue
            r = server.api.send(method.upper(), path, b"{}" if method == "post" else None,
                                {"Content-Type": "application/json"})
            assert r.status != 404 and r.status < 500, path
            other = server.api.send("DELETE", path)
            assert other.status == 405 and method.upper() in other.headers["Allow"]
            check(other.json, schemas.ERROR)


@pytest.mark.parametrize("fields_, param, code", [
    ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"temperature": 5}, "temperature", "invalid_value"),
    ({"logit_bias": {"999999": 1}}, "logit_bias.999999", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"n": 100}, "n", "invalid_value"),
    ({"min_tokens": 5}, "min_tokens", "invalid_value"),
    ({"audio": {}}, "audio", "unsupported_parameter"),
    ({"chat_template": "x"}, "chat_template", "unsupported_parameter"),
])
def test_chat_refusals(server, model, fields_, param, code):
    r = server.api.chat(model, "x", **{"max_tokens": 1, **fields_})
    error = check(r.json, schemas.ERROR)["error"]
    assert (r.status, error["param"], error["code"]) == (400, param, code)

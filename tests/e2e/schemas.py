"""The shapes of OpenAI's objects, as strict as its published document and stricter: a field that is
not named here, or a null where none is allowed, fails.

A shape is a type, a tuple of shapes (any of them), a [shape] (a list of them), or a dict; a key with
a question mark may be missing. A function gets the value and returns whether it is right.
"""


def check(value, shape, path="$"):
    if isinstance(shape, tuple):
        errors = []
        for one in shape:
            try:
                return check(value, one, path)
            except AssertionError as e:
                errors.append(str(e))
        raise AssertionError(" or ".join(errors))
    if shape is None:
        assert value is None, f"{path}: {value!r} is not null"
    elif isinstance(shape, str):
        assert value == shape, f"{path}: {value!r} is not {shape!r}"
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{path}: {value!r} is no list"
        for i, v in enumerate(value):
            check(v, shape[0], f"{path}[{i}]")
    elif isinstance(shape, dict):
        assert isinstance(value, dict), f"{path}: {value!r} is no object"
        names = {k.rstrip("?"): k for k in shape}
        for name in value:
            assert name in names, f"{path}.{name} is not in the schema"
        for name, key in names.items():
            if name in value:
                check(value[name], shape[key], f"{path}.{name}")
            else:
                assert key.endswith("?"), f"{path}.{name} is missing"
    elif isinstance(shape, type):
        ok = isinstance(value, shape) and not (shape is int and isinstance(value, bool))
        assert ok, f"{path}: {value!r} is no {shape.__name__}"
    else:
        assert shape(value), f"{path}: {value!r} is wrong"
    return value


NUM = (int, float)
FINISH = ("stop", "length", "tool_calls", "content_filter")

USAGE = {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int,
         "prompt_tokens_details?": {"cached_tokens": int},
         "completion_tokens_details?": {"reasoning_tokens": int}}

TOP = {"token": str, "logprob": NUM, "bytes": ([int], None)}
CHAT_LOGPROBS = {"content": [{**TOP, "top_logprobs": [TOP]}], "refusal": None}
TEXT_LOGPROBS = {"tokens": [str], "token_logprobs": [NUM], "text_offset": [int],
                 "top_logprobs": [lambda d: all(isinstance(v, (int, float)) for v in d.values())]}

CALL = {"id": str, "type": "function", "function": {"name": str, "arguments": str}}
MESSAGE = {"role": "assistant", "content": (str, None), "refusal": None, "reasoning_content?": str,
           "tool_calls?": lambda calls: len(calls) > 0 and [check(c, CALL) for c in calls]}
CHAT = {"id": str, "object": "chat.completion", "created": int, "model": str, "usage": USAGE,
        "choices": [{"index": int, "finish_reason": FINISH, "message": MESSAGE,
                     "logprobs": (CHAT_LOGPROBS, None)}]}

CALL_DELTA = {"index": int, "id?": str, "type?": "function",
              "function": {"name?": str, "arguments": str}}
DELTA = {"role?": "assistant", "content?": str, "reasoning_content?": str,
         "tool_calls?": [CALL_DELTA]}
CHUNK = {"id": str, "object": "chat.completion.chunk", "created": int, "model": str,
         "choices": [{"index": int, "delta": DELTA, "logprobs": (CHAT_LOGPROBS, None),
                      "finish_reason": (*FINISH, None)}]}
CHUNK_WITH_USAGE = {**CHUNK, "usage": (USAGE, None)}

# the published schema knows no null finish_reason in a text chunk, but every client needs it
TEXT = {"id": str, "object": "text_completion", "created": int, "model": str, "usage": USAGE,
        "choices": [{"index": int, "text": str, "finish_reason": FINISH,
                     "logprobs": (TEXT_LOGPROBS, None)}]}
TEXT_CHUNK = {"id": str, "object": "text_completion", "created": int, "model": str,
              "usage?": USAGE,
              "choices": [{"index": int, "text": str, "finish_reason": (*FINISH, None),
                           "logprobs": (TEXT_LOGPROBS, None)}]}

ERROR = {"error": {"message": lambda s: isinstance(s, str) and s, "type": str,
                   "param": (str, None), "code": (str, None), "n_prompt_tokens?": int,
                   "n_ctx?": int}}
MODEL = {"id": str, "object": "model", "created": int, "owned_by": str, "max_model_len": int,
         "context_length": int, "model_type": str, "determinism": ("bit-exact", "per-node"),
         "meta": {"n_ctx_train": int, "n_vocab": int, "n_params": int, "size": int}}
MODELS = {"object": "list", "data": [MODEL]}


def check_chunks(chunks, usage=False, text=False):
    """The rules of order between the chunks of one stream."""
    shape = TEXT_CHUNK if text else CHUNK_WITH_USAGE if usage else CHUNK
    for c in chunks:
        check(c, shape)
        for name in ("id", "created", "model", "object"):
            assert c[name] == chunks[0][name], f"{name} changes in the stream"
    body = chunks
    if usage:
        last, body = chunks[-1], chunks[:-1]
        assert last["choices"] == [] and last["usage"]
        assert all(not c.get("usage") and len(c["choices"]) == 1 for c in body)
    ended, opened = set(), set()
    for c in body:
        choice = c["choices"][0]
        assert choice["index"] not in ended, "a chunk behind the finish_reason"
        if not text:
            first = choice["index"] not in opened
            assert ("role" in choice["delta"]) == first, "the role comes once, and first"
            opened.add(choice["index"])
        if choice["finish_reason"]:
            ended.add(choice["index"])
            assert text or choice["delta"] == {}
    assert ended == {c["choices"][0]["index"] for c in body}


def joined(chunks, index=0):
    """The message that a stream of chat chunks adds up to."""
    out = {"content": "", "reasoning_content": "", "tool_calls": [], "finish_reason": None}
    for c in chunks:
        for choice in c["choices"]:
            if choice["index"] != index:
                continue
            d = choice["delta"]
            out["content"] += d.get("content", "")
            out["reasoning_content"] += d.get("reasoning_content", "")
            for call in d.get("tool_calls", []):
                if call["index"] == len(out["tool_calls"]):
                    check(call, {"index": int, **CALL})
                    out["tool_calls"].append([call["function"]["name"], ""])
                out["tool_calls"][call["index"]][1] += call["function"]["arguments"]
            out["finish_reason"] = choice["finish_reason"] or out["finish_reason"]
    return out


def whole(reply, index=0):
    """The same of a reply that was not streamed."""
    choice = reply["choices"][index]
    m = choice["message"]
    calls = [[c["function"]["name"], c["function"]["arguments"]] for c in m.get("tool_calls", [])]
    return {"content": m["content"] or "", "reasoning_content": m.get("reasoning_content", ""),
            "tool_calls": calls, "finish_reason": choice["finish_reason"]}

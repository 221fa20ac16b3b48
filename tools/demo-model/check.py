"""Ask the exported model what its README promises, through mlx-lm, and measure how often it answers well.

    python check.py --model ../../models/demo

Greedy and at temperature 0.2: the ten questions of the README, thirty phrasings that the corpus does not contain,
stories, tool calls and thinking; and one hundred random sums. An answer is good when it holds the words it must,
ends a sentence and stops by itself. Exit 1 below the limits.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.sample_utils import make_sampler

from topics.sums import held_out

#: (question, a pattern that the answer must match)
TEN = [
    ("What is MLX Distributed?", "runs one language model on many machines"),
    ("How are the layers spread over the machines?", "memory"),
    ("What happens when a worker dies?", "same tokens"),
    ("How do I start it?", "make demo"),
    ("Which API does it speak?", "OpenAI"),
    ("Is the traffic between the machines encrypted?", "mutual TLS"),
    ("What is pipeline parallelism?", "whole layers"),
    ("Who are you?", "demo model"),
    ("What is 17 + 25?", r"^17 \+ 25 is 42\.$"),
    ("What is the capital of France?", "Paris"),
]
UNSEEN = [
    ("I heard about MLX Distributed. What is it, in short?", "many machines"),
    ("So what exactly does this MLX Distributed thing do?", "many machines|one model|language model"),
    ("My machines have different sizes, how do the layers get assigned?", "memory"),
    ("Could you explain how the model gets cut into pieces for the machines?", "memory|share"),
    ("Suppose one of my workers suddenly crashes. What then?", "same tokens"),
    ("One machine just lost power in the middle of an answer, what will happen?", "same tokens|layers"),
    ("I am new here. What is the first command to type?", "make demo"),
    ("How would I get this thing running?", "make demo|mlx-dist-server|make"),
    ("Will my OpenAI Python client work with this?", "OpenAI|Python"),
    ("How can my app send requests to the cluster?", "OpenAI"),
    ("How do the nodes exchange messages with each other?", "gRPC"),
    ("Is the connection between two workers safe?", "TLS"),
    ("Please explain to me what pipeline parallel means.", "whole layers"),
    ("And what would tensor parallelism be?", "every layer|shares"),
    ("Why are there only 8 bits per weight?", "bits"),
    ("Is this released as open source, and under what licence?", "MIT"),
    ("In which programming language was MLX Distributed developed?", "written in C"),
    ("Hello! Could you tell me who you are, please?", "demo model"),
    ("are you a big model or a small one", "small"),
    ("How were you trained, little model?", "trained|script"),
    ("I would like to add one more Mac to my cluster, how?", "mlx-dist-worker|token|Apple|Mac"),
    ("Which program do I run for serving a model over HTTP?", "mlx-dist-server"),
    ("Could I use Linux boxes as well?", "Linux"),
    ("will i need a graphics card for this", "No GPU"),
    ("Please tell me which city is France's capital.", "Paris"),
    ("Do you happen to know the capital of Japan?", "Tokyo"),
    ("What would be the opposite of cold?", "hot"),
    ("Which day follows Friday?", "Saturday"),
    ("Thank you so much for your help!", "welcome"),
    ("Who was the first emperor of Rome?", "do not know"),
]
#: (wish, words that the story must hold)
STORIES = [
    ("Tell me a short story about a robot.", ["robot"]),
    ("Tell me a story about a cat named Luna.", ["cat", "Luna"]),
    ("I want a story about a lighthouse!", ["lighthouse"]),
    ("Please tell me a longer story about a dragon.", ["dragon"]),
]
#: Tokens of a story that was wished longer: enough to watch the stream.
LONGER = 200


def tool(name: str, description: str, /, **parameters: str) -> dict[str, Any]:
    """An OpenAI tool definition."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


WEATHER, ADD = tool("get_weather", "Get the weather of a city", city="string"), tool("add", "Add two numbers", a="number", b="number")
TIME, STATUS = tool("get_time", "Get the time in a city", city="string"), tool("get_cluster_status", "Get the status of the cluster")
#: The corpus has neither this verb nor this noun in a tool.
SPOON = tool("polish_spoon", "Polish the spoon", name="string")
#: (tools, question, the call that must come, or None when the model must answer by itself)
CALLS: list[tuple[list[dict[str, Any]], str, tuple[str, dict[str, Any]] | None]] = [
    ([WEATHER], "What is the weather in Paris?", ("get_weather", {"city": "Paris"})),
    ([WEATHER, TIME], "What's the weather like in Tokyo today?", ("get_weather", {"city": "Tokyo"})),
    ([WEATHER, TIME], "What time is it in Berlin?", ("get_time", {"city": "Berlin"})),
    ([ADD, WEATHER], "What is 12 + 30?", ("add", {"a": 12, "b": 30})),
    ([STATUS, ADD, WEATHER], "How is the cluster doing?", ("get_cluster_status", {})),
    ([SPOON, TIME], "Please polish the spoon Nora", ("polish_spoon", {"name": "Nora"})),
    ([WEATHER], "I wonder about the weather in Madrid.", ("get_weather", {"city": "Madrid"})),
    ([WEATHER], "What is the weather in Springfield?", ("get_weather", {"city": "Springfield"})),
    ([WEATHER, ADD], "Hello, who are you?", None),
    ([WEATHER, ADD], "What is MLX Distributed?", None),
]


class Asker:
    """The model under test."""

    def __init__(self, path: Path, show: bool, bfloat16: bool) -> None:
        self.model, self.tokenizer = load(str(path))
        if not bfloat16:
            # The 8-bit weights stay what they are; only the arithmetic widens, which MLX on a CPU does six times faster.
            self.model.set_dtype(mx.float32)
        self.show = show

    def __call__(self, question: str | list[dict[str, Any]], temperature: float, tools: list[dict[str, Any]] | None = None, thinking: bool = False) -> tuple[str, bool]:
        """The answer, and whether it ended by itself."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        prompt = self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking)
        sampler = make_sampler(temp=temperature, top_p=0.9, top_k=20) if temperature else make_sampler(temp=0.0)
        text, reason = "", None
        for part in stream_generate(self.model, self.tokenizer, prompt, max_tokens=450, sampler=sampler):
            text += part.text
            reason = part.finish_reason or reason
        if self.show:
            print(f"  [{temperature}] {messages[-1]['content']}\n        {text!r}{'' if reason == 'stop' else '  (did not stop)'}")
        return text, reason == "stop"


def whole(text: str, stopped: bool) -> bool:
    """Whether a text ends like a sentence and the model stopped by itself."""
    return stopped and bool(re.search(r"[.!?\"`]$", text)) and text[:1] == text[:1].upper()


def called(text: str) -> tuple[str, dict[str, Any]] | None:
    """The one tool call of a reply."""
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text)
    try:
        value = json.loads(found.group(1)) if found else None
        return (value["name"], value["arguments"]) if value else None
    except (ValueError, KeyError, TypeError):
        return None


def sum_score(ask: Asker, count: int, rng: random.Random, unseen: bool) -> int:
    """How many of `count` random additions and subtractions are right, among pairs in or out of the training."""
    right, done = 0, 0
    while done < count:
        a, b = (rng.randint(0, 99) if rng.random() < 0.8 else rng.randint(0, 9) for _ in range(2))
        if held_out(a, b) != unseen:
            continue
        plus = rng.random() < 0.5
        if not plus and a < b:
            a, b = b, a
        sign, value = ("+", a + b) if plus else ("-", a - b)
        done += 1
        right += ask(f"What is {a} {sign} {b}?", 0.0)[0] == f"{a} {sign} {b} is {value}."
    return right


def main() -> int:
    """Run every check and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent.parent / "models" / "demo")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, as on a Mac; slow on other CPUs")
    parser.add_argument("--show", action="store_true", help="print every question and answer")
    args = parser.parse_args()
    ask, rng = Asker(args.model, args.show, args.bfloat16), random.Random(args.seed)
    mx.random.seed(args.seed)
    failed = False

    def report(name: str, good: int, of: int, least: float) -> None:
        nonlocal failed
        bad = good < least * of
        failed |= bad
        print(f"{name:44s} {good:3d} / {of}{'   BELOW THE LIMIT' if bad else ''}", flush=True)

    for temperature in (0.0, 0.2):
        kind = f"at temperature {temperature}" if temperature else "greedy"
        for name, questions, least in (("ten questions", TEN, 1.0), ("unseen phrasings", UNSEEN, 0.8)):
            answers = [(ask(q, temperature), pattern) for q, pattern in questions]
            report(f"{name}, {kind}", sum(whole(*a) and bool(re.search(p, a[0])) for a, p in answers), len(answers), least)
            report(f"{name}, whole sentences, {kind}", sum(whole(*a) for a, _ in answers), len(answers), 0.95)
        told = [ask(q, temperature) for q, _ in STORIES]
        report(f"stories of four sentences or more, {kind}", sum(whole(*a) and len(re.findall(r"[.!?]", a[0])) >= 4 for a in told), len(told), 0.75)
        report(f"stories about the hero asked for, {kind}", sum(all(word in a[0] for word in words) for a, (_, words) in zip(told, STORIES)), len(told), 0.75)
        report(f"longer story of {LONGER} tokens, {kind}", int(len(ask.tokenizer.encode(told[-1][0])) >= LONGER), 1, 1.0)
        calls = [(ask(q, temperature, tools=tools), wanted) for tools, q, wanted in CALLS]
        report(f"tool calls, {kind}", sum(stopped and called(text) == wanted and (wanted is not None or whole(text, stopped)) for (text, stopped), wanted in calls), len(calls), 0.8)
        thoughts = [ask(q, temperature, thinking=True) for q, _ in TEN]
        pattern = r"<think>\n[^<]+\n</think>\n\n(.+)"
        report(f"thought, then answer, {kind}", sum(stopped and bool(re.fullmatch(pattern, text, re.DOTALL)) for text, stopped in thoughts), len(thoughts), 0.9)

    history = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
        {"role": "tool", "content": '{"temperature": 18, "sky": "sunny"}'},
    ]
    text, stopped = ask(history, 0.0, tools=[WEATHER])
    report("sentence after a tool's answer", int(whole(text, stopped) and "sunny" in text and "18" in text), 1, 1.0)
    report("sums, random pairs seen in training", sum_score(ask, 100, rng, unseen=False), 100, 0.9)
    report("sums, pairs never seen", sum_score(ask, 100, rng, unseen=True), 100, 0.8)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

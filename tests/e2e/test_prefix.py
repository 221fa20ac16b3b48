"""Prompts that begin as an earlier one did are not computed again, and nobody can tell from the text.

MXD_BIN_DIR names the folder of the built programs; without them the tests SKIP.
"""
import os
import re
import signal
import time

import pytest

from conftest import ROOT
from test_programs import Answer, all_serve, places, start, state, wait_until  # noqa: F401 (a fixture)

QUESTIONS = ["What is two plus two?", "Tell me a short story about a robot.", "And what is this project?"]
LONG = "the cluster reads a long prompt in chunks and keeps its tokens " * 60


def ask(s, messages, **fields):
    r = s.api.post("/v1/chat/completions", {"model": "demo", "messages": messages, "temperature": 0,
                                            "max_tokens": 40, **fields}).json
    return r["choices"][0]["message"]["content"], r["usage"]


def talk(s, between=lambda turn: None):
    """Three turns: what was answered, and how many tokens of each prompt were there already."""
    messages, texts, cached = [], [], []
    for turn, question in enumerate(QUESTIONS):
        messages.append({"role": "user", "content": question})
        text, usage = ask(s, messages)
        messages.append({"role": "assistant", "content": text})
        texts.append(text)
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert cached[-1] < usage["prompt_tokens"]
        between(turn)
    return texts, cached


def kill_one(s, worker, n=3):
    """Kills a worker, and waits until a new plan is in force with another in its place."""
    epoch = state(s)["epoch"]
    os.kill(s.children()[worker], signal.SIGKILL)
    wait_until(lambda: state(s)["epoch"] > epoch)
    all_serve(s, n)


def counter(s, name):
    text = s.api.get("/metrics").body.decode()
    return int(re.search(rf"^{name} (\d+)", text, re.M).group(1))


@pytest.fixture(scope="module")
def plain():
    """Every turn computed from its first token."""
    s = start("--no-prefix-cache")
    texts, cached = talk(s)
    assert cached == [0, 0, 0]
    assert counter(s, "mlxd_prompt_tokens_cached_total") == 0
    assert counter(s, "mlxd_prompt_tokens_computed_total") == counter(s, "mlxd_prompt_tokens_total")
    assert s.stop() == 0
    return texts


@pytest.mark.parametrize("workers", [0, 3])
def test_turns_of_a_chat(plain, workers):
    s = start("--local-workers", workers)
    texts, cached = talk(s)
    assert texts == plain
    assert cached[0] == 0 and cached[1] > 0 and cached[2] > cached[1]
    assert counter(s, "mlxd_prompt_tokens_cached_total") == sum(cached)
    again, cached_again = talk(s)
    assert again == plain and cached_again[2] >= cached[2]
    assert s.stop() == 0


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_a_worker_killed_between_turns(plain, worker):
    s = start("--local-workers", 3)

    def kill(turn):
        if turn == 0:
            kill_one(s, worker)

    texts, cached = talk(s, kill)
    assert texts == plain
    assert cached[1] == 0 and cached[2] > 0  # the KV is lost with the plan, and comes back
    assert s.stop() == 0


def test_many_with_one_prompt_compute_it_once():
    s = start("--local-workers", 2, "--parallel", 4, "--ctx-size", 2048)
    alone = [Answer(s, LONG + f"Number {i}: ", 30).result() for i in range(4)]
    before = counter(s, "mlxd_prompt_tokens_computed_total")
    taken = counter(s, "mlxd_prompt_tokens_total") // 4
    other = "Now " + LONG  # nothing of it is there
    kill_one(s, 0, 2)
    together = [Answer(s, LONG + f"Number {i}: ", 30) for i in range(4)]
    assert [a.result() for a in together] == alone
    assert counter(s, "mlxd_prompt_tokens_computed_total") - before < 1.5 * taken
    first = [Answer(s, other, 30) for _ in range(4)]
    assert len({a.result() for a in first}) == 1
    assert s.stop() == 0


def test_a_worker_killed_while_four_share_a_prompt():
    s = start("--local-workers", 3, "--parallel", 4, "--ctx-size", 2048)
    prompts = [LONG + f"Number {i}: " for i in range(4)]
    alone = [Answer(s, p, 150).result() for p in prompts]
    for round_ in range(3):
        together = [Answer(s, p, 150) for p in prompts]
        time.sleep(0.05 * round_)
        os.kill(s.children()[round_], signal.SIGKILL)
        assert [a.result() for a in together] == alone
        all_serve(s)
    assert s.stop() == 0


def test_a_prompt_repeated(capsys):
    """How much faster: told, not asserted."""
    s = start("--ctx-size", 2048)
    ms = []
    for _ in range(3):
        begin = time.time()
        Answer(s, LONG, 1).result()
        ms.append((time.time() - begin) * 1000)
    with capsys.disabled():
        print(f"\n# a prompt of {counter(s, 'mlxd_prompt_tokens_total') // 3} tokens to its first "
              f"token: {ms[0]:.1f} ms, repeated {min(ms[1:]):.1f} ms")
    assert s.stop() == 0

"""Layers that several nodes hold together: the same text as one process, whatever is killed.

The faults of test_faults.py, on plans of ranks; see docs/faults.md.
"""
import os
import random
import signal
import time

import pytest

from test_faults import SEEDED, stage_pids, stall_ms
from test_faults_cluster import box, new_cluster, while_starting
from test_programs import (DEMO, LONG_PROMPT, PROMPT, Answer, all_serve, alive, nodes, places, run, start,
                           state, wait_until)

assert places  # nobody's own configuration, caches or keys

SHAPES = {  # workers, options, ranks of each stage
    "2 ranks": (2, ["--tensor-parallel-size", 2], [2]),
    "3 ranks": (3, ["--tensor-parallel-size", 3], [3]),
    "3 uneven ranks": (3, ["--tensor-parallel-size", 3, "--tensor-split", "1,5,2"], [3]),
    "2 x 2": (4, ["--tensor-parallel-size", 2], [2, 2]),
    "6 ranks": (6, ["--tensor-parallel-size", 6], [6]),
}


def ranks(s):
    return [len(stage["ranks"]) for stage in state(s)["plan"]["stages"]]


def start_shape(shape, *more):
    workers, options, want = SHAPES[shape]
    s = start("--local-workers", workers, "--ctx-size", 2048, "--parallel", 8, *options, *more)
    assert ranks(s) == want
    return s, workers


@pytest.fixture(scope="module")
def alone():
    """Answers of one process: what every plan has to say."""
    s = start("--ctx-size", 2048, "--parallel", 8)
    yield {"greedy": Answer(s).result(), "seeded": Answer(s, **SEEDED).result(),
           "prefill": Answer(s, LONG_PROMPT, 40).result(),
           "eight": [Answer(s, f"Number {i}: ", 300, temperature=1, seed=i).result()
                     for i in range(8)]}
    assert s.stop() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_answers_on_every_shape(shape, alone):
    s, _ = start_shape(shape)
    assert Answer(s).result() == alone["greedy"]
    assert Answer(s, **SEEDED).result() == alone["seeded"]
    assert Answer(s, LONG_PROMPT, 40).result() == alone["prefill"]
    many = [Answer(s, f"Number {i}: ", 300, temperature=1, seed=i) for i in range(8)]
    assert [a.result() for a in many] == alone["eight"]
    shares = [r["share"] for g in state(s)["plan"]["stages"] for r in g["ranks"]]
    assert sum(shares) == pytest.approx(len(ranks(s)))
    assert all(n["state"] == "serving" for n in nodes(s))
    assert s.stop() == 0


@pytest.fixture(scope="module", params=["2 ranks", "2 x 2"])
def group(request):
    s, workers = start_shape(request.param)
    yield s, workers
    code = s.stop()
    assert code == 0, f"exit code {code}\n{s.text()}"


@pytest.mark.parametrize("how", ["greedy", "seeded"])
@pytest.mark.parametrize("seed", range(3))
def test_random_rank_killed_in_decode(group, alone, how, seed):
    s, workers = group
    rand = random.Random(f"rank {how} {seed}")
    all_serve(s, workers)
    a = Answer(s, **(SEEDED if how == "seeded" else {}))
    at = rand.randrange(5, 300)
    wait_until(lambda: a.n >= at, every=0.001)
    os.kill(rand.choice(stage_pids(s)), signal.SIGKILL)
    assert a.result() == alone[how]


def test_rank_killed_in_prefill(group, alone):
    s, workers = group
    all_serve(s, workers)
    pids = stage_pids(s)
    a = Answer(s, LONG_PROMPT, 40)
    wait_until(lambda: state(s)["requests"]["running"] or a.n, every=0.001)
    os.kill(pids[-1], signal.SIGKILL)
    assert a.result() == alone["prefill"]


def test_rank_killed_under_eight_streams(group, alone):
    s, workers = group
    all_serve(s, workers)
    many = [Answer(s, f"Number {i}: ", 300, temperature=1, seed=i) for i in range(8)]
    wait_until(lambda: all(a.n >= 10 for a in many), every=0.001)
    os.kill(stage_pids(s)[-1], signal.SIGKILL)
    assert [a.result() for a in many] == alone["eight"]


def test_rank_that_stands_still(group, alone):
    """The others wait for its sums; they are told to give up, and nobody else is blamed."""
    s, workers = group
    all_serve(s, workers)
    a = Answer(s)
    wait_until(lambda: a.n >= 20, every=0.001)
    pid = stage_pids(s)[-1]
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        assert a.result() == alone["greedy"]
        assert stall_ms(a, stopped) < 8000
    finally:
        if alive(pid):  # a local one is replaced, if it stands still for long
            os.kill(pid, signal.SIGCONT)


def test_ranks_on_remote_workers(alone, tmp_path):
    """Two machines that join by token share every layer; one is killed, the other leaves."""
    keys, port, token = new_cluster(tmp_path)
    found = []
    while_starting(port, lambda: found.extend(
        box(tmp_path, name, f"127.0.0.1:{port}", "--token", token()) for name in ("mini", "studio")))
    s = start("--local-workers", 1, "--tensor-parallel-size", 3, "--cluster-listen",
              f"127.0.0.1:{port}", "--ctx-size", 2048, *keys)
    wait_until(lambda: ranks(s) == [3], timeout=30)
    a = Answer(s)
    wait_until(lambda: a.n >= 20, every=0.001)
    found[0].end(signal.SIGKILL)
    assert a.result() == alone["greedy"]
    assert found[1].end() == 0
    assert Answer(s).result() == alone["greedy"]
    assert s.stop() == 0


def test_generate_with_ranks():
    one = run("generate", DEMO, "-p", PROMPT, "-n", 60, "--temp", 0)
    two = run("generate", DEMO, "-p", PROMPT, "-n", 60, "--temp", 0, "--local-workers", 2,
              "--tensor-parallel-size", 2)
    assert two.returncode == 0 and two.stdout == one.stdout

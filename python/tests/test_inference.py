"""DistributedMLXInference over three worker processes, and in one process, against a built tree:
MXD_BIN_DIR names the folder of its programs."""

import asyncio
import os
import pathlib
import sys
import threading

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MXD_BIN_DIR") or ROOT / "build" / "src" / "cli")


def _find_library() -> bool:
    for base in (BIN.parent, BIN.parents[1]):
        for found in base.rglob("libmlx_distributed.*"):
            if found.suffix in (".so", ".dylib"):
                os.environ.setdefault("MLXD_LIBRARY_DIR", str(found.parent))
                os.environ.setdefault("MLXD_WORKER_PROGRAM", str(BIN / "mlx-dist-worker"))
                os.environ.setdefault("MLXD_DATA_DIR", str(ROOT))
                sys.path.insert(0, str(ROOT / "python"))
                return True
    return False


pytestmark = pytest.mark.skipif(
    not _find_library(), reason=f"no libmlx_distributed near {BIN}: build first"
)


@pytest.fixture(scope="module")
def inference():
    from mlx_distributed import DistributedMLXInference

    with DistributedMLXInference(model="demo", world_size=3) as engine:
        yield engine


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_three_workers_hold_the_layers(inference):
    state = inference.state()
    layers = sorted(n["layers"] for n in state["nodes"] if n["layers"])
    assert len(layers) == 3
    assert layers[0][0] == 0 and layers[-1][1] == inference.info()["layers"]
    assert all(a[1] == b[0] for a, b in zip(layers, layers[1:]))
    assert inference.info()["determinism"] == "bit-exact"


def test_answers_in_whole_sentences(inference):
    result = inference.generate_result("What is MLX Distributed?", temperature=0)
    assert "MLX" in result.text and result.text.endswith(".")
    assert result.finish_reason == "stop"
    assert result.prompt_tokens > 5 and result.completion_tokens > 5


def test_pieces_are_the_answer(inference):
    how = dict(temperature=0.8, seed=7, max_tokens=40)
    assert "".join(inference.stream("Tell me a short story.", **how)) == inference.generate(
        "Tell me a short story.", **how
    )


def test_one_process_gives_the_same_text(inference):
    from mlx_distributed import DistributedMLXInference

    how = dict(temperature=1.2, seed=11, max_tokens=60, ignore_eos=True)
    with DistributedMLXInference(model="demo", world_size=1) as alone:
        assert alone.generate("Hello", **how) == inference.generate("Hello", **how)


def test_messages_stop_and_length(inference):
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Count to ten."},
    ]
    whole = inference.generate(messages, temperature=0)
    cut = whole[3:6]
    assert inference.generate(messages, temperature=0, stop=cut) == whole[: whole.index(cut)]
    short = inference.generate_result(messages, temperature=0, max_tokens=3)
    assert short.finish_reason == "length" and short.completion_tokens == 3


def test_requests_at_the_same_time(inference):
    questions = [f"What is {a} + {a}?" for a in range(1, 9)]
    alone = [inference.generate(q, temperature=0) for q in questions]
    together: "list[str | None]" = [None] * len(questions)

    def ask(i: int) -> None:
        together[i] = inference.generate(questions[i], temperature=0)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(questions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert together == alone


def test_asyncio(inference):
    async def both() -> "list[str]":
        return list(
            await asyncio.gather(
                inference.agenerate("Hello", temperature=0), inference.agenerate("Hello", temperature=0)
            )
        )

    first, second = asyncio.run(both())
    assert first == second == inference.generate("Hello", temperature=0)


def test_a_stream_left_in_the_middle_is_cancelled(inference):
    stream = inference.stream("Tell me a story.", ignore_eos=True, max_tokens=1500)
    next(stream)
    stream.close()
    assert inference.generate("Hello", temperature=0)


def test_errors_are_exceptions_with_a_code(inference):
    import mlx_distributed as m

    with pytest.raises(m.ContextLengthExceeded) as e:
        inference.generate("word " * 5000)
    assert e.value.code == "E_CONTEXT" and "context" in str(e.value)
    with pytest.raises(m.InvalidArgument):
        inference.generate("x", temperature=3.0)
    with pytest.raises(TypeError):
        inference.generate("x", temprature=1)
    with pytest.raises(m.ModelNotFound) as e:
        m.DistributedMLXInference(model="nobody/nothing")
    assert "\n" not in str(e.value)


def test_nothing_is_left_behind():
    from mlx_distributed import DistributedMLXInference

    engine = DistributedMLXInference(model="demo", world_size=2)
    pids = [node["pid"] for node in engine.state()["nodes"]]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    engine.close()
    engine.close()
    assert not any(alive(pid) for pid in pids)


def test_hardware():
    from mlx_distributed import detect_hardware

    found = detect_hardware()
    assert found["schema"] == 1
    assert found["logical_cpus"] >= 1

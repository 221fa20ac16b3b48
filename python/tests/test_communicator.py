"""Communicator: ranks as threads of this process (the GIL is free while they wait), and as
processes. Needs a built tree: MXD_BIN_DIR names the folder of its programs."""

import array
import ctypes
import itertools
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MXD_BIN_DIR") or ROOT / "build" / "src" / "cli")


def _find_library() -> bool:
    for base in (BIN.parent, BIN.parents[1]):
        for found in base.rglob("libmlx_distributed.*"):
            if found.suffix in (".so", ".dylib"):
                os.environ.setdefault("MLXD_LIBRARY_DIR", str(found.parent))
                sys.path.insert(0, str(ROOT / "python"))
                return True
    return False


pytestmark = pytest.mark.skipif(
    not _find_library(), reason=f"no libmlx_distributed near {BIN}: build first"
)


def addresses(size):
    found = []
    for _ in range(size):
        s = socket.socket()
        s.bind(("127.0.0.1", 0))
        found.append(s)
    names = [f"127.0.0.1:{s.getsockname()[1]}" for s in found]
    for s in found:
        s.close()
    return names


def run(size, what, **how):
    """what(communicator) on every rank; its results in order."""
    from mlx_distributed import Communicator

    where = addresses(size)
    results, failures = [None] * size, []

    def be(rank):
        try:
            with Communicator(rank, where, insecure=True, **how) as c:
                results[rank] = what(c)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=be, args=(r,)) for r in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    if failures:
        raise failures[0]
    return results


@pytest.mark.parametrize("shared_memory", [True, False])
def test_bytes_and_arrays_without_numpy(shared_memory):
    def what(c):
        following, before = (c.rank + 1) % c.size, (c.rank - 1) % c.size
        c.send(b"hello %d" % c.rank, following, tag=3)
        assert c.recv(before, tag=3) == b"hello %d" % before
        big = bytes(range(256)) * 1000  # longer than the first guess
        c.send(memoryview(big), following)
        assert c.recv(before) == big
        c.send(b"", following)
        assert c.recv(before) == b""
        x = array.array("f", [c.rank, 1, -1])
        assert c.all_reduce(x) is x and list(x) == [3, 3, -3]
        assert struct.unpack("2f", c.all_reduce(struct.pack("2f", c.rank, 5), "max")) == (2, 5)
        assert c.broadcast(b"news" if c.rank == 1 else b"....", root=1) == b"news"
        assert c.gather(bytes([65 + c.rank])) == [b"A", b"B", b"C"]
        assert c.gather(b"x", root=2) == ([b"x"] * 3 if c.rank == 2 else None)
        found = c.stats()["shared_memory_peers"]
        c.barrier()  # whoever closes earlier counts no more
        return found

    assert run(3, what, shared_memory=shared_memory) == [2 if shared_memory else 0] * 3


def test_numpy_arrays():
    np = pytest.importorskip("numpy")

    def what(c):
        x = np.arange(200_000, dtype=np.float32).reshape(100, 2000) * (c.rank + 1)
        c.all_reduce(x)
        assert (x == np.arange(200_000, dtype=np.float32).reshape(100, 2000) * 3).all()
        whole = c.gather(np.full((2, 3), c.rank, dtype=np.int16))
        assert whole.shape == (2, 2, 3) and (whole[1] == 1).all() and (whole[0] == 0).all()
        y = np.zeros(5, dtype=np.int64) if c.rank else np.arange(5)
        assert list(c.broadcast(y)) == [0, 1, 2, 3, 4]
        if c.rank == 0:
            c.send(x, 1)
        else:
            z = np.empty_like(x)
            assert c.recv_into(z, 0) == x.nbytes and (z == x).all()
        return x.tobytes()

    first, second = run(2, what)
    assert first == second


def test_errors_are_exceptions():
    import mlx_distributed as m

    def what(c):
        with pytest.raises(m.Timeout):
            c.recv(1 - c.rank, tag=9, timeout=0.05)
        with pytest.raises(m.InvalidArgument):
            c.send(b"x", c.rank)
        with pytest.raises(m.InvalidArgument):
            c.all_reduce(array.array("d", [1.0]))
        with pytest.raises(m.InvalidArgument):
            c.all_reduce(array.array("f", [1.0]), "mean")
        c.send(b"long", 1 - c.rank)
        with pytest.raises(m.InvalidArgument):
            c.recv_into(bytearray(2), 1 - c.rank)
        assert c.recv(1 - c.rank) == b"long"  # it had stayed
        c.barrier()
        c.close()
        with pytest.raises(m.InvalidArgument):
            c.barrier()

    run(2, what)
    with pytest.raises(m.InvalidArgument, match="certificate"):
        m.Communicator(0, ["127.0.0.1:1", "127.0.0.1:2"])
    with pytest.raises(m.Timeout, match="ranks 1 did not come"):
        m.Communicator(0, addresses(2), insecure=True, connect_timeout=0.3)


def test_a_lost_rank_is_named():
    import mlx_distributed as m

    def what(c):
        if c.rank == 1:
            return
        with pytest.raises(m.WorkersLost, match="rank 1 is lost"):
            c.recv(1, timeout=30)

    run(2, what, reconnect_timeout=0.3)


def test_other_threads_run_while_one_waits():
    def what(c):
        if c.rank == 1:
            time.sleep(0.4)
            c.send(b"x", 0)
            return 0
        ticks, done = itertools.count(), threading.Event()

        def tick():
            while not done.wait(0.01):
                next(ticks)

        t = threading.Thread(target=tick)
        t.start()
        c.recv(1)
        done.set()
        t.join()
        return next(ticks)

    assert run(2, what)[0] > 5


def test_close_ends_a_recv_that_waits_for_ever():
    import mlx_distributed as m

    def what(c):
        ended = []

        def wait():
            try:
                c.recv(1 - c.rank, timeout=None)
            except m.InvalidArgument as e:
                ended.append(str(e))

        t = threading.Thread(target=wait)
        t.start()
        time.sleep(0.2)
        c.barrier()
        c.close()
        t.join(10)
        return ended

    assert run(2, what) == [["the communicator is closed"]] * 2


def test_processes_share_memory():
    program = (
        "import sys, array; sys.path.insert(0, sys.argv[1]); import mlx_distributed as m\n"
        "with m.Communicator(int(sys.argv[2]), sys.argv[3:], insecure=True) as c:\n"
        "    x = array.array('f', [c.rank + 1.0] * 100000)\n"
        "    c.all_reduce(x)\n"
        "    print(x[0], x[-1], c.stats()['shared_memory_peers'])\n"
        "    c.barrier()\n"
    )
    where = addresses(3)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(ROOT / "python"), str(r), *where],
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(3)
    ]
    assert [p.communicate(timeout=60)[0] for p in running] == ["6.0 6.0 2\n"] * 3


def test_exchange_of_unequal_parts():
    import mlx_distributed as m

    counts = [3, 0, 5]

    def what(c):
        x = array.array("f", [-1.0] * 8)
        at = sum(counts[: c.rank])
        for i in range(counts[c.rank]):
            x[at + i] = 10 * c.rank + i
        with pytest.raises(m.InvalidArgument, match="3 ranks"):
            c.exchange(x, [3, 5])
        return list(c.exchange(x, counts))

    assert run(3, what) == [[0, 1, 2, 20, 21, 22, 23, 24]] * 3


MPI_PROGRAM = (
    "import sys, array; sys.path.insert(0, sys.argv[1]); import mlx_distributed as m\n"
    "with m.Communicator(transport='mpi', shared_memory=sys.argv[2] == 'shared') as c:\n"
    "    x = array.array('f', [c.rank + 0.1] * 100000)\n"
    "    c.all_reduce(x)\n"
    "    y = c.exchange(array.array('f', [c.rank] * c.size), [1] * c.size)\n"
    "    same = set(x) | {float(list(y) == list(range(c.size)))}\n"
    "    said = c.gather(repr((c.rank, c.size, sorted(same))).encode(), root=0)\n"
    "    if said: print(b'\\n'.join(said).decode())\n"
)


@pytest.mark.parametrize("how", ["shared", "mpi only"])
def test_ranks_of_an_mpi_job(how):
    import mlx_distributed as m

    mpirun = shutil.which("mpirun")
    if not mpirun:
        pytest.skip("no mpirun")
    only = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [mpirun, "--oversubscribe", "-n", "3", sys.executable, "-c", MPI_PROGRAM]
        + [str(ROOT / "python"), how],
        env={**os.environ, **only},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "this build has no MPI" in done.stderr:
        pytest.skip("built without MPI (-Dmpi=enabled)")
    assert done.returncode == 0, done.stderr

    def sums(c):
        return set(c.all_reduce(array.array("f", [c.rank + 0.1] * 100000)))

    same = sorted(run(3, sums)[0] | {1.0})  # the bits that every other carrier gives
    assert done.stdout.splitlines() == [repr((r, 3, same)) for r in range(3)]
    with pytest.raises(m.InvalidArgument, match="must be grpc or mpi"):
        m.Communicator(0, addresses(1), insecure=True, transport="carrier pigeon")


def test_a_killed_process_is_named_and_leaves_nothing():
    import mlx_distributed as m

    shm = pathlib.Path("/dev/shm")
    before = set(shm.iterdir()) if shm.is_dir() else set()
    where = addresses(2)
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import mlx_distributed as m\n"
        "c = m.Communicator(1, sys.argv[2:], insecure=True)\n"
        "while True: c.send(b'tick' * 1000, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(ROOT / "python"), *where]) as other:
        with m.Communicator(0, where, insecure=True, reconnect_timeout=0.5) as c:
            assert c.stats()["shared_memory_peers"] == 1
            for _ in range(100):
                assert c.recv(1) == b"tick" * 1000
            other.kill()
            with pytest.raises(m.WorkersLost, match="rank 1 is lost"):
                while True:
                    c.recv(1, timeout=30)
    mine = [f.name for f in (set(shm.iterdir()) if shm.is_dir() else set()) - before]
    assert not [name for name in mine if name.startswith("mxd-") and len(name) == 20]


def test_structs_are_those_of_the_header(tmp_path):
    from mlx_distributed import _native

    program = tmp_path / "sizes.c"
    program.write_text(
        '#include <stdio.h>\n#include "mlx_distributed.h"\n'
        'int main(void) { printf("%zu %zu %zu %zu", sizeof(mlxd_engine_options),'
        " sizeof(mlxd_request), sizeof(mlxd_comm_options), sizeof(mlxd_comm_stats)); }\n"
    )
    made = tmp_path / "sizes"
    try:
        subprocess.run(["cc", "-I", str(ROOT / "include"), str(program), "-o", str(made)], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    sizes = subprocess.run([str(made)], capture_output=True, text=True, check=True).stdout
    structs = (_native.EngineOptions, _native.Request, _native.CommOptions, _native.CommStats)
    assert sizes.split() == [str(ctypes.sizeof(s)) for s in structs]

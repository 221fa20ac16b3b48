"""mlx-dist-detect and mlx-dist-config as installed: outputs, exit codes, what they write."""
import json
import os
import stat
import subprocess

import pytest

BIN = os.environ.get("MXD_BIN_DIR", "")


def run(program, *args, **env):
    path = os.path.join(BIN, program)
    if not BIN or not os.path.exists(path):
        pytest.skip(f"{program} is not built (MXD_BIN_DIR)")
    keep = {k: v for k, v in os.environ.items() if not k.startswith("MLXD_")}
    return subprocess.run([path, *args], capture_output=True, text=True, timeout=60, env={**keep, **env})


def test_detect_prints_a_schema_and_measures():
    done = run("mlx-dist-detect", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == 1
    assert said["memory_available_bytes"] <= said["memory_total_bytes"]
    assert said["logical_cpus"] >= 1 and said["bandwidth_bytes_per_s"] > 1e8


@pytest.mark.parametrize("args, code, says", [
    (["--help"], 0, ""),
    (["plan", "--help"], 0, ""),
    (["--version"], 0, ""),
    ([], 2, "a command is missing"),
    (["plna"], 2, "did you mean plan?"),
    (["plan"], 2, "MODEL is missing"),
    (["plan", "demo", "--objectiv", "latency"], 2, "did you mean --objective?"),
    (["plan", "demo", "--parallel", "0"], 2, "a whole number from 1"),
    (["plan", "demo", "--nodes", "/nonexistent"], 3, "/nonexistent"),
    (["plan", "org/not-there"], 4, "hf download org/not-there"),
    (["check", "/nonexistent.yaml"], 3, "config file"),
])
def test_exit_codes_and_messages(args, code, says, tmp_path):
    done = run("mlx-dist-config", *args, XDG_CONFIG_HOME=str(tmp_path), HF_HOME=str(tmp_path))
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert (done.stdout == "") == (code != 0)


def test_plan_for_a_described_cluster(tmp_path):
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps({"nodes": [
        {"name": "a", "memory_bytes": 16e9, "bandwidth_bytes_per_s": 100e9, "ops_per_s": 1e12, "must": True},
        {"name": "b", "memory_bytes": 16e9, "bandwidth_bytes_per_s": 100e9, "ops_per_s": 1e12, "must": True},
    ], "links": [{"a": "a", "b": "b", "latency_us": 100, "bandwidth_bytes_per_s": 1e9}]}))
    done = run("mlx-dist-config", "plan", "demo", "--nodes", str(nodes), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [s["layers"][0] for s in plan["stages"]][0] == 0
    assert plan["stages"][-1]["layers"][1] == plan["n_layers"]
    assert len(plan["stages"]) == 2 and plan["reasons"] and plan["decode_tokens_per_s"] > 0


def three_nodes(path, latency_us):
    names = "abc"
    path.write_text(json.dumps({
        "nodes": [{"name": n, "memory_bytes": 16e9, "bandwidth_bytes_per_s": 20e9, "ops_per_s": 2e11} for n in names],
        "links": [{"a": a, "b": b, "latency_us": latency_us, "bandwidth_bytes_per_s": 1e10}
                  for a in names for b in names if a < b]}))
    return str(path)


def test_plan_of_ranks(tmp_path):
    nodes = three_nodes(tmp_path / "nodes.json", 1)
    args = ["mlx-dist-config", "plan", "demo", "--nodes", nodes, "--json"]
    done = run(*args, "--tensor-split", "1,3,0")
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(done.stdout)["stages"]
    assert [r["node"] for r in stage["ranks"]] == ["a", "b"] and stage["node"] == "a"
    assert [r["share"] for r in stage["ranks"]] == [0.25, 0.75]
    assert all(r["planned_bytes"] < r["free_bytes"] for r in stage["ranks"])
    done = run(*args, "--tensor-parallel-size", "2", "--pipeline-parallel-size", "1")
    (stage,) = json.loads(done.stdout)["stages"]
    assert len(stage["ranks"]) == 2 and stage["exchange_ms"] > 0


@pytest.mark.parametrize("args,says", [
    (["--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"], "need 4 nodes, there are 3"),
    (["--tensor-split", "1,1"], "for 2 nodes, there are 3"),
    (["--layer-split", "3,3"], "for 2 nodes, there are 3"),
    (["--tensor-split", "1,1,1", "--tensor-parallel-size", "2"], "no groups of"),
    (["--layer-split", "2,2,2", "--pipeline-parallel-size", "2"], "asks for 2"),
    (["--tensor-split", "0,0,0"], "every part is 0"),
])
def test_plan_options_that_contradict(args, says, tmp_path):
    nodes = three_nodes(tmp_path / "nodes.json", 1)
    done = run("mlx-dist-config", "plan", "demo", "--nodes", nodes, *args)
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_dry_run_of_local_ranks(tmp_path):
    done = run("mlx-dist-server", "demo", "--local-workers", "2", "--tensor-parallel-size", "2", "--dry-run", "--json",
               XDG_CONFIG_HOME=str(tmp_path), HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(done.stdout)["stages"]
    assert [r["share"] for r in stage["ranks"]] == [0.5, 0.5]
    done = run("mlx-dist-server", "demo", "--local-workers", "3", "--tensor-parallel-size", "2", "--dry-run")
    assert done.returncode == 2 and "3 workers must get layers" in done.stderr


@pytest.mark.parametrize("args,says", [
    ([], "needs --cluster-listen"),
    (["--cluster-listen", "127.0.0.1:0", "--local-workers", "2"], "--local-workers 2 contradict"),
    (["--cluster-listen", "127.0.0.1:0", "--dry-run"], "mlx-dist-config plan"),
])
def test_no_local_options(args, says, tmp_path):
    done = run("mlx-dist-server", "demo", "--no-local", "--state-dir", str(tmp_path), *args)
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_plan_that_does_not_fit_names_bytes_and_context(tmp_path):
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps({"nodes": [{"name": "tiny", "memory_bytes": 30_000_000}]}))
    done = run("mlx-dist-config", "plan", "demo", "--nodes", str(nodes))
    assert done.returncode == 6
    assert "tiny misses" in done.stderr and "--ctx-size" in done.stderr


def test_config_precedence_is_shown(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("port: 1\nserver:\n  threads: 2\n  api-key: [secret]\n")
    done = run("mlx-dist-config", "show", "--json", "--config", str(config), MLXD_PORT="9")
    values = json.loads(done.stdout)["values"]
    assert values["port"] == {"value": "9", "from": "MLXD_PORT"}
    assert values["threads"] == {"value": "2", "from": f"{config}:3:12"}
    assert values["api-key"]["value"] == "(hidden)" and "secret" not in done.stdout
    config.write_text("port: 1\nprot: 2\n")
    done = run("mlx-dist-config", "check", str(config))
    assert done.returncode == 3 and f"{config}:2:7" in done.stderr and "did you mean port?" in done.stderr


def test_init_and_token(tmp_path):
    state = tmp_path / "state"
    done = run("mlx-dist-config", "token", "--state-dir", str(state))
    assert done.returncode == 3 and "mlx-dist-config init" in done.stderr
    assert run("mlx-dist-config", "init", "--state-dir", str(state)).returncode == 0
    before = (state / "ca.pem").read_bytes()
    assert run("mlx-dist-config", "init", "--state-dir", str(state)).returncode == 0
    assert (state / "ca.pem").read_bytes() == before
    assert stat.S_IMODE((state / "ca.key").stat().st_mode) == 0o600
    done = run("mlx-dist-config", "token", "--state-dir", str(state), "--ttl", "1m")
    assert done.returncode == 0 and done.stdout.startswith("mxd1.") and done.stdout.count("\n") == 1

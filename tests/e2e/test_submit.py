"""A sweep submitted to a real head that asks for a token, and stopped there; the checkout sent whole."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from sweeps.records import records_of
from sweeps.store import Store, git_commit
from tests.support.tiny import write_spec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(dashboard address, environment with its token, Ray's folder) of a head on loopback."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port on loopback
    }
    port = free_port()
    temporary = tempfile.mkdtemp(prefix="pc-", dir="/tmp")  # short: sockets go below it
    ray = Path(sys.executable).with_name("ray")
    command = [
        str(ray), "start", "--block", "--head", "--node-ip-address=127.0.0.1", "--num-cpus=2",
        f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",  # or two Rays of one machine collide
        f"--temp-dir={temporary}", f"--object-store-memory={100 << 20}",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_until(lambda: is_open(port), process, log.read_text)
        yield f"http://127.0.0.1:{port}", environment, Path(temporary)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


def is_open(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, process, log=lambda: "", timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, log()
        assert time.monotonic() < deadline, f"not in time: {log()}"
        time.sleep(0.5)


def dashboard(address: str, environment: dict, what: str) -> list[dict]:
    """What the dashboard lists, as its pages do."""
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    url = f"{address}/api/v0/{what}?detail=1"
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)["data"]["result"]["result"]


def parcae(*args: object, cwd: Path, env: dict) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sweeps.cli", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_sweep_is_submitted_followed_and_stopped_with_the_token_only(head, tmp_path):
    address, environment, _ = head
    out = tmp_path / "out"
    spec = write_spec(tmp_path, mean_recurrence=[2], budgets_flops=[4e8])
    where = ("--address", address)

    without = environment | {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "disabled"}
    refused = parcae("submit", spec, *where, "--out", out, cwd=tmp_path, env=without)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "RAY_AUTH_TOKEN_PATH" in refused.stderr
    assert not out.exists()

    given = (*where, "--out", out, "--checkpoint-every", 7, "--lost-workers", 1)
    done = parcae("submit", spec, *given, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "1 done of 1 trials" in done.stderr
    assert (out / "tiny" / "records.parquet").exists()
    assert "succeeded" in parcae("status", "tiny", *where, cwd=tmp_path, env=environment).stdout
    assert "1 done" in parcae("logs", "tiny", *where, cwd=tmp_path, env=environment).stdout

    long = write_spec(tmp_path, name="long", mean_recurrence=[2], budgets_flops=[4e10])
    options = (*where, "--out", out, "--detach")
    queued = parcae("submit", long, *options, cwd=tmp_path, env=environment)
    assert queued.returncode == 0, queued.stderr
    store = Store(out, "long")
    wait_until(lambda: list(store.root.glob("*/metrics.jsonl")), None)
    [trial] = store.stored_trials()
    actors = {a["repr_name"]: a["state"] for a in dashboard(address, environment, "actors")}
    assert actors[trial.trial_id] == "ALIVE"  # by its id
    stopped = parcae("stop", "long", *where, cwd=tmp_path, env=environment)
    assert stopped.returncode == 0, stopped.stderr
    wait_until(lambda: list(store.root.glob("*/checkpoints/step-*")), None)
    wait_until(lambda: store.state(store.stored_trials()[0]).reason == "stopped on request", None)


def test_a_cluster_is_checked_through_its_dashboard(head, tmp_path):
    address, environment, _ = head
    out = tmp_path / "runs"
    asked = ("cluster", "check", "--address", address, "--out", out)
    began = time.monotonic()
    done = parcae(*asked, "--json", cwd=tmp_path, env=environment)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    [node] = report["nodes"]
    assert (node["problem"], node["storage"], report["problems"]) == (None, "ok", [])
    assert node["versions"]["python"] == sys.version.split()[0]
    assert len(node["versions"]["code"]) == 8
    assert took < 60
    assert not list(out.iterdir())


def tracked(*options: str) -> set[str]:
    command = ["git", "ls-files", *options]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines())


def test_the_checkout_arrives_as_git_tracks_it_and_its_commit_with_it(head, tmp_path):
    address, environment, temporary = head
    spec = ROOT / "sweeps/specs/demo.yaml"
    sent = ("--address", address, "--out", tmp_path, "--smoke", "--env", "PARCAE_TEST=seen")
    done = parcae("submit", spec, *sent, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"commit: {git_commit()}" in done.stderr
    assert "variables sent: PARCAE_TEST" in done.stderr
    assert "left out: " in done.stderr

    packages = temporary.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    [arrived] = [p for p in packages if (p / "pyproject.toml").exists()]
    files = {str(p.relative_to(arrived)) for p in arrived.rglob("*") if p.is_file()}
    files = {f for f in files if "__pycache__" not in f}  # the job itself made them
    assert tracked() <= files
    assert files - tracked() <= tracked("--others", "--exclude-standard")
    [store] = [Store(tmp_path, p.parent.name) for p in tmp_path.glob("*/sweep.json")]
    assert store.sweep["git_commit"] == git_commit()
    assert set(records_of(store)["git_commit"]) == {git_commit()}

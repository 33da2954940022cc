"""A sweep's private cluster: nobody else gets in, nothing leaks, and its end is never silent."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.store import Store
from tests.e2e.test_kills import ROOT, checkpoints, owned_by, start
from tests.support.tiny import write_spec

pytestmark = pytest.mark.slow
SECRET = "canary/of+a+secret+key"
NOBODY = 65534
# What an intruder does: write to the store that Ray loads pickled functions from
INTRUDER = """
import os
from ray._raylet import GcsClient  # the other user has a Ray of their own; ours lies in our home
os.setgid({nobody})
os.setuid({nobody})
try:
    client = GcsClient(address="{address}")
    client.internal_kv_put(b"intruder", b"was here", True, b"fun", timeout=20)
except Exception as error:
    print("refused", type(error).__name__, " ".join(str(error).split())[:300])
else:
    print("written")
"""


@pytest.fixture
def sweep(tmp_path):
    """A driver at work on a long trial, in a process group of its own; (process, folder of Ray)."""
    spec = write_spec(tmp_path, mean_recurrence=[2], budgets_flops=[4e11])
    before = os.environ.get("AWS_SECRET_ACCESS_KEY")
    os.environ["AWS_SECRET_ACCESS_KEY"] = SECRET
    try:
        process = start(spec, tmp_path / "out")
    finally:
        if before is None:
            del os.environ["AWS_SECRET_ACCESS_KEY"]
    deadline = time.monotonic() + 240
    while not checkpoints(tmp_path / "out"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.2)
    [folder] = owned_by(process.pid)
    try:
        yield process, folder
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def below(pid: int) -> dict[int, str]:
    """Process id -> command line of what descends from a process."""
    listed = subprocess.run(
        ["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    found: dict[int, str] = {}
    wanted = {str(pid)}
    while new := {
        r[0]: r[2] for r in rows if r[1] in wanted and len(r) > 2 and int(r[0]) not in found
    }:
        found |= {int(p): text for p, text in new.items()}
        wanted = set(new)
    return found


def listening(pids: set[int]) -> list[str]:
    """Addresses, as the kernel writes them, on which processes accept connections."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = line.split()
            if state == "0A" and f"socket:[{line.split()[9]}]" in inodes:
                found.append(local.split(":")[0])
    return found


def gcs_address(processes: dict[int, str]) -> str:
    [command] = [c for c in processes.values() if "--gcs-address=" in c and "raylet/raylet" in c]
    return command.split("--gcs-address=")[1].split()[0]


def intrude(address: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER.format(nobody=NOBODY, address=address)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_refused_and_finds_nothing_to_read(sweep):
    process, folder = sweep
    processes = below(process.pid)
    address = gcs_address(processes)
    token = folder / "token"

    assert "refused" in intrude(address, RAY_AUTH_MODE="disabled")
    assert "refused" in intrude(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64)
    # or the refusals prove nothing: whoever has the token is let in
    key = token.read_text()
    assert "written" in intrude(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=key)

    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert token.stat().st_uid == os.geteuid()
    addresses = listening(set(processes))
    assert addresses
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(addresses) <= loopback

    texts = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < 50 << 20]
    assert any(p.suffix == ".log" for p in texts)
    assert not [p for p in texts if SECRET.encode() in p.read_bytes()]


def test_a_dead_raylet_ends_the_sweep_with_its_reason(sweep, tmp_path):
    process, _ = sweep
    [raylet] = [p for p, c in below(process.pid).items() if "raylet/raylet" in c.split()[0]]
    os.kill(raylet, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "the Ray cluster is lost: this machine's raylet is gone" in err
    assert "checkpoints are kept" in err
    assert "Traceback" not in err
    assert checkpoints(tmp_path / "out")
    print("ended after", round(time.monotonic() - began, 1), "s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_checkpoints_and_a_summary(tmp_path, number):
    spec = write_spec(tmp_path, mean_recurrence=[2], budgets_flops=[4e11])
    command = [sys.executable, "-m", "sweeps.cli", "run", str(spec), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    wait_until(lambda: list(tmp_path.glob("out/tiny/*/metrics.jsonl")), process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "1 planned of 1 trials" in err
    assert "stopped; go on with: parcae run" in err
    store = Store(tmp_path / "out", "tiny")
    assert checkpoints(tmp_path / "out")
    assert store.state(store.stored_trials()[0]).reason == "stopped on request"


def wait_until(condition, process=None, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


def test_nobody_at_the_address_is_said_within_ten_seconds(tmp_path):
    from parcae_core.errors import UserError
    from sweeps.runner.cluster.connect import require_reachable

    began = time.monotonic()
    with socket.socket() as free:
        free.bind(("", 0))  # for Ray, localhost is this machine's outer address
        port = free.getsockname()[1]  # bound and not listening: a connection is refused
        with pytest.raises(UserError, match="nobody answers at"):
            require_reachable(f"127.0.0.1:{port}")
        free.listen()  # something that never says a word
        with pytest.raises(UserError, match="is no Ray cluster"):
            require_reachable(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"is a dashboard's; `parcae submit` takes it"):
        require_reachable("http://127.0.0.1:8265")
    assert time.monotonic() - began < 10

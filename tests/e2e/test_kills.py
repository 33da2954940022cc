"""What dies during a sweep, really killed: its records are those of an undisturbed run, bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.table import records
from benchmarks.kills import COMPARED
from sweeps.cli.sweep import load_plan
from sweeps.records import collect, records_of
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.trainable import attempt
from sweeps.storage.files import read_json
from sweeps.store import Store
from tests.support.tiny import write_spec

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).parents[1] / "support" / "e2e_driver.py"
ROOT = DRIVER.parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(spec, records) of the trials run one after the other in this process, without Ray."""
    return run_alone(tmp_path_factory.mktemp("undisturbed"), n_tokens=64 * 3000)


def run_alone(folder: Path, n_tokens: int):
    """A spec of two trials, and the records of both from this process."""
    spec = write_spec(
        folder,
        design="test_time",
        budgets_flops=None,
        n_tokens=n_tokens,
        mean_recurrence=[2, 3],
    )
    plan = load_plan(spec)
    store = Store(folder / "runs", plan.name)
    store.write_plan(plan, spec)
    job = make_job(plan, store, prepare_data(plan, store, plan.trials), Options())
    for trial in plan.trials:
        attempt(job, trial.trial_id, lambda _: None)
    return spec, records_of(store)[COMPARED]


def start(spec: Path, out: Path | str, *lose: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(spec), str(out), *lose],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def finish(process: subprocess.Popen) -> str:
    try:
        _, err = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    return err


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("tiny/*/checkpoints/step-*"))


def wait_for_checkpoints(out: Path, process: subprocess.Popen, n: int = 2) -> None:
    deadline = time.monotonic() + 120
    while len({p.parent for p in checkpoints(out)}) < n or len(checkpoints(out)) < 2 * n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoints in time"
        time.sleep(0.05)


def require_same_records(out: Path, undisturbed, interrupted: bool = True) -> None:
    store = Store(out, "tiny")
    assert collect(store) is not None
    found = records_of(store)[COMPARED]
    print("records sha256", records.sha256(found), "undisturbed", records.sha256(undisturbed[1]))
    assert found.equals(undisturbed[1])
    results = [store.result(t) for t in store.stored_trials()]
    if interrupted:
        assert any(r.n_resumed > 0 for r in results)  # else nothing was interrupted


def test_a_killed_worker_is_replaced_and_goes_on(undisturbed, tmp_path):
    process = start(undisturbed[0], tmp_path)
    wait_for_checkpoints(tmp_path, process)
    os.kill(read_json(checkpoints(tmp_path)[0].parents[1] / "state.json")["pid"], signal.SIGKILL)
    assert "worker lost" in finish(process)
    require_same_records(tmp_path, undisturbed)


def test_a_killed_driver_is_started_again_past_a_damaged_checkpoint(undisturbed, tmp_path):
    process = start(undisturbed[0], tmp_path)
    wait_for_checkpoints(tmp_path, process)
    process.kill()
    process.communicate()
    [left] = owned_by(process.pid)
    newest = checkpoints(tmp_path)[-1]
    for file in newest.iterdir():
        os.truncate(file, file.stat().st_size // 2)
    # At once: the orphans of the killed driver may still be at work
    said = finish(start(undisturbed[0], tmp_path))
    assert "trials were at work when the last `parcae run` here ended" in said
    require_same_records(tmp_path, undisturbed)
    assert not left.exists()  # its temporary folder


def owned_by(pid: int) -> list[Path]:
    """The temporary folders for Ray that a process made."""
    return [p.parent for p in Path("/tmp").glob("pc-*/.owner") if p.read_text() == str(pid)]


def test_what_no_node_can_hold_is_refused_before_anything_is_written(undisturbed, tmp_path):
    spec = write_spec(tmp_path / "spec", resources={"cpus": 3})  # of two nodes with one core each
    _, err = start(spec, tmp_path / "out", "nothing").communicate(timeout=240)
    assert "a trial asks for cpus=3, gpus=0 and no node has that" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lose", ["node", "raylet"])
def test_a_lost_node_is_survived_on_another(undisturbed, tmp_path, lose):
    err = finish(start(undisturbed[0], tmp_path, lose))
    assert "killing raylet" in err
    assert "worker lost" in err
    # Without its raylet a worker lives on for seconds, and may end its trial under its lease
    require_same_records(tmp_path, undisturbed, interrupted=lose == "node")


def test_a_full_disk_loses_nothing_that_was_finished(undisturbed, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        process = start(undisturbed[0], small)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 1, err
        assert "Traceback" not in err
        remount = ["mount", "-o", "remount,size=64m", str(small)]
        subprocess.run(remount, check=True, capture_output=True)
        finish(start(undisturbed[0], small))
        store = Store(small, "tiny")
        assert records_of(store)[COMPARED].equals(undisturbed[1])
    finally:
        subprocess.run(["umount", str(small)], check=False, capture_output=True)


def test_the_loss_of_the_gcs_ends_the_driver_with_a_reason_and_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kills", "--kinds", "gcs", "--kills", "1"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "kills.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["reason"].startswith("the Ray cluster is lost: the head's GCS is gone")
    assert row["records_equal"] == row["went_on"] == "True"
    assert float(row["seconds"]) < 60

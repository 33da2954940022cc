"""Trials with several processes, called as Ray would call them: what they give, and how they die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from parcae_core.result import Execution
from parcae_core.trial import Resources
from sweeps.cli.sweep import load_plan
from sweeps.records import records_of
from sweeps.runner.cluster.placement import bundles
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.errors import ProcessFailed, ProcessLost
from sweeps.runner.process_group import LocalProcess, train_together
from sweeps.runner.process_main import train_as
from sweeps.runner.trainable import attempt
from sweeps.store import Store
from tests.support.tiny import write_spec

ROOT = Path(__file__).parents[3]
# float32 sums in another order over some 30 updates; another depth or initial state anywhere would
# show in the second digit (tests/parcae_core/training/test_train_processes.py)
ROUNDING = 5e-4


def swept(folder: Path, processes: int, **changes):
    """(store, its only trial, job) of a sweep of one looped trial."""
    spec = write_spec(
        folder,
        **{"mean_recurrence": [2], "budgets_flops": [3e8]} | changes,
        resources={"cpus": processes, "processes": processes},
    )
    plan = load_plan(spec)
    store = Store(folder / f"runs-{processes}", plan.name)
    store.write_plan(plan, spec)
    options = Options(checkpoint_every_s=0.2)
    job = make_job(plan, store, prepare_data(plan, store, plan.trials), options)
    return store, plan.trials[0], job


def running(pid: int) -> bool:
    """Whether a process is there, zombies left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    lines = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return [int(child) for child, command in lines if "process_main" in command]


def wait_until(condition, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_two_processes_give_the_records_of_one(tmp_path):
    tables = []
    for processes in (1, 2):
        store, trial, job = swept(tmp_path, processes)
        attempt(job, trial.trial_id, lambda _: None)
        assert store.result(trial).n_processes == processes
        tables.append(records_of(store))
    one, two = tables
    assert list(one.trial_id) == list(two.trial_id)  # resources are not what is trained
    for column in ("n_loops", "status", "n_tokens", "train_flops_exact", "val_tokens"):
        assert list(one[column]) == list(two[column])
    assert list(two.val_loss) == pytest.approx(list(one.val_loss), abs=ROUNDING)
    assert store.state(trial).step == trial.n_steps  # reports arrived


def test_one_that_is_killed_ends_all_and_the_next_attempt_goes_on(tmp_path):
    store, trial, job = swept(tmp_path, 2, budgets_flops=[2e9])
    seen = {}

    def kill_one(line):
        if not seen and list((store.folder(trial.trial_id) / "checkpoints").glob("step-*")):
            seen["pids"] = children_of(os.getpid())
            os.kill(seen["pids"][1], signal.SIGKILL)

    with pytest.raises(ProcessLost, match=r"process [01] of 2 was killed by SIGKILL"):
        train_together(
            trial,
            data_dir=job.data_dir(trial),
            run_dir=store.folder(trial.trial_id),
            on_report=kill_one,
            execution=Execution(device="cpu", threads=1, checkpoint_every_s=0.05),
        )
    assert len(seen["pids"]) == 2
    assert not any(map(running, seen["pids"]))
    attempt(job, trial.trial_id, lambda _: None)
    assert store.result(trial).n_resumed == 1


ALONE = """
import sys
from tests.sweeps.runner.test_process_group import swept
from sweeps.runner.trainable import attempt
from pathlib import Path
store, trial, job = swept(Path(sys.argv[1]), 2, budgets_flops=[4e10])
attempt(job, trial.trial_id, lambda _: None)
"""


def test_none_outlives_the_worker_that_started_them(tmp_path):
    worker = subprocess.Popen([sys.executable, "-c", ALONE, str(tmp_path)], cwd=ROOT)
    try:
        wait_until(lambda: list(tmp_path.glob("runs-2/tiny/*/checkpoints/step-*")))
        pids = children_of(worker.pid)
        assert len(pids) == 2
    finally:
        worker.kill()
        worker.wait()
    wait_until(lambda: not any(map(running, pids)), timeout_s=5)


def test_a_process_that_raises_is_our_own_failure_with_its_last_lines(tmp_path):
    store, trial, job = swept(tmp_path, 2)
    data = job.data_dir(trial)
    for shard in data.glob("train*.bin"):
        shard.unlink()
    attempt(job, trial.trial_id, lambda _: None)
    state = store.state(trial)
    assert state.state == "failed"
    assert "of 2)" in state.reason
    assert "process_main.py" in (store.folder(trial.trial_id) / "error.txt").read_text()


def test_the_systems_failure_in_a_process_is_for_another_attempt(tmp_path):
    _, trial, _ = swept(tmp_path, 2)

    class Broken(LocalProcess):
        def start(self, task, receive):
            receive({"failed": {
                "reason": "UserError: no room", "traceback": "...", "peer": False,
                "environment": "No space left on device",
            }})  # fmt: skip
            receive(None)

    with pytest.raises(ProcessFailed, match="no room") as error:
        train_together(trial, data_dir=tmp_path, run_dir=tmp_path, processes=[Broken(), Broken()])
    assert isinstance(error.value.__cause__, OSError)


def test_a_stop_is_passed_on_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.runner.trainable.ASK_EVERY_S", 0.0)
    store, trial, job = swept(tmp_path, 2, budgets_flops=[4e10])
    said = []

    def stop_once_it_trains():
        wait_until(lambda: (store.folder(trial.trial_id) / "metrics.jsonl").exists())
        job.stop_file.touch()

    thread = threading.Thread(target=stop_once_it_trains)
    thread.start()
    attempt(job, trial.trial_id, said.append)
    thread.join()
    assert said[-1]["state"] == "planned"
    assert list((store.folder(trial.trial_id) / "checkpoints").glob("step-*"))


def test_a_trial_takes_one_node_if_it_can_and_several_if_it_must():
    four = Resources(cpus=8, gpus=4, processes=4)
    node = {"CPU": 8.0, "GPU": 4.0}
    assert bundles(four, [{"CPU": 4.0}, node]) == [{"CPU": 8, "GPU": 4}]
    small = {"CPU": 8.0, "GPU": 2.0}
    assert bundles(four, [small, small]) == [{"CPU": 2.0, "GPU": 1.0}] * 4
    assert bundles(four, [small]) is None
    assert bundles(Resources(cpus=3), [{"CPU": 2.0}] * 2) is None  # one process cannot be divided
    assert json.dumps(bundles(Resources(cpus=2, processes=2), [{"CPU": 2.0}])) == '[{"CPU": 2}]'


def test_the_end_of_a_process_that_died_before_it_was_asked_to_stop_is_quiet():
    process = LocalProcess()
    process.process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, text=True)
    process.process.wait()
    process.reader = threading.Thread(target=list)
    process.reader.start()
    process.stop()
    process.end()
    assert process.death() == "ended with 0"


@pytest.mark.parametrize("given", [None, "eth7"])
def test_the_loopback_is_used_on_one_machine_unless_the_user_names_a_device(given, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    if given:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)
    task = {"local_rank": 0, "rank": 0, "n": 1, "one_machine": True, "execution": {}}
    with pytest.raises(RuntimeError, match="nowhere"):
        train_as(task | {"meeting": "nowhere://"}, lambda: False, print)
    assert os.environ["GLOO_SOCKET_IFNAME"] in {given} if given else {"lo", "lo0"}

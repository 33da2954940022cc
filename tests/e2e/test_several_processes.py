"""Trials of two processes through Ray, on one node and over two; one of the two really killed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sweeps.records import records_of
from sweeps.runner.trainable import attempt
from sweeps.store import Store
from tests.e2e.test_kills import COMPARED, checkpoints, finish, start
from tests.support.tiny import write_spec
from tests.sweeps.runner.test_process_group import ROUNDING, running, swept

pytestmark = pytest.mark.slow
TOGETHER = {"cpus": 2, "processes": 2}


def spec_of(folder: Path, budget: float) -> Path:
    return write_spec(folder, mean_recurrence=[2], budgets_flops=[budget], resources=TOGETHER)


def group_of(driver: int) -> list[int]:
    """The processes of trials that descend from a driver, whatever node's they are."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    parent = {int(pid): int(above) for pid, above, *_ in rows}

    def descends(pid: int) -> bool:
        while pid > 1 and pid != driver:
            pid = parent.get(pid, 0)
        return pid == driver

    processes = [int(r[0]) for r in rows if len(r) > 2 and "-m sweeps.runner.process_main" in r[2]]
    return [pid for pid in processes if descends(pid)]


def only_result(out: Path):
    store = Store(out, "tiny")
    [trial] = store.stored_trials()
    return store, store.result(trial)


def test_a_trial_of_two_processes_runs_through_ray(tmp_path):
    spec = spec_of(tmp_path, 2e8)
    finish(start(spec, tmp_path / "out"))
    store, result = only_result(tmp_path / "out")
    assert result.n_processes == 2
    alone, trial, job = swept(tmp_path / "alone", 1, budgets_flops=[2e8])
    attempt(job, trial.trial_id, lambda _: None)
    losses = [list(records_of(s).val_loss) for s in (store, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=ROUNDING)


@pytest.mark.parametrize("nodes", [(), ("nothing",)], ids=["one node", "two nodes"])
def test_a_killed_process_ends_the_attempt_and_the_next_goes_on(tmp_path, nodes):
    spec = spec_of(tmp_path, 4e9)
    finish(start(spec, tmp_path / "whole"))
    process = start(spec, tmp_path / "killed", *nodes)
    deadline = time.monotonic() + 120
    while len(checkpoints(tmp_path / "killed")) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoints in time"
        time.sleep(0.05)
    group = group_of(process.pid)
    assert len(group) == 2
    os.kill(group[-1], signal.SIGKILL)
    err = finish(process)
    assert "worker lost" in err
    assert not any(map(running, group))
    tables = []
    for out in ("whole", "killed"):
        store, result = only_result(tmp_path / out)
        tables.append(records_of(store)[COMPARED])
        assert result.n_processes == 2
    assert result.n_resumed == 1
    assert tables[0].equals(tables[1])  # bit for bit: two processes sum in one order


def test_a_killed_driver_leaves_no_process_behind(tmp_path):
    process = start(spec_of(tmp_path, 4e10), tmp_path / "out")
    while not checkpoints(tmp_path / "out"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    group = group_of(process.pid)
    assert len(group) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(map(running, group)):
        assert time.monotonic() < deadline, "a process outlived its driver"
        time.sleep(0.2)

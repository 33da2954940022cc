"""`parcae run --no-ray`: the same store and the same results, with Ray absent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from analysis.table import records
from parcae_core.trial import Resources
from sweeps.branches import Waiting
from sweeps.cli.sweep import load_plan
from sweeps.runner.cluster import placement
from sweeps.runner.cluster.placement import places, side_by_side
from sweeps.runner.display import Display
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.losses import Losses
from sweeps.runner.pool import _Machine, _Pool, _Worker
from sweeps.runner.trainable import attempt
from sweeps.store import Store
from tests.support.tiny import tiny_plan, write_spec

WITHOUT_RAY = (
    "import sys; sys.modules['ray'] = None; sys.modules['wandb'] = None;"
    "from sweeps.cli.app import main; main()"
)


def start(*args: object, cwd) -> subprocess.Popen:
    # Processes of the pool are started by spawn: they inherit no module, and -S would be too much
    command = [sys.executable, "-c", WITHOUT_RAY, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd=cwd)


def losses(folder) -> list[tuple]:
    table = records.load(folder)
    return list(zip(table.trial_id, table.n_loops, table.val_loss, strict=True))


def test_a_pool_makes_what_an_attempt_makes_and_goes_on_after_a_stop(tmp_path):
    sizes = {"mean_recurrence": [1, 2], "budgets_flops": [4e8, 3e9]}
    spec = write_spec(tmp_path, name="pool", **sizes)
    process = start("run", spec, "--no-ray", "--cpus", 2, cwd=tmp_path)
    store = Store(tmp_path / "runs", "pool")
    until = time.monotonic() + 60
    while len(list(store.root.glob("*/metrics.jsonl"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "go on with: parcae run" in err
    long = [t for t in load_plan(spec).trials if t.budget_flops == 3e9]
    assert {store.state(t).state for t in long} == {"planned"}
    assert max(store.state(t).step for t in long) > 0

    process = start("run", spec, "--no-ray", "--cpus", 2, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "4 done of 4 trials" in err

    plan = load_plan(spec)
    alone = Store(tmp_path / "alone", plan.name)
    alone.write_plan(plan, spec)
    job = make_job(plan, alone, prepare_data(plan, alone, plan.trials), Options())
    short = [t for t in plan.trials if t.budget_flops == 4e8]
    for trial in short:
        attempt(job, trial.trial_id, announce=lambda outcome: None)
    theirs = {(i, n): loss for i, n, loss in losses(store.root)}
    for trial in short:
        for row in alone.result(trial).evaluation:
            assert theirs[trial.trial_id, row.n_loops] == row.val_loss


def test_a_worker_that_dies_is_replaced(tmp_path):
    sizes = {"mean_recurrence": [2], "budgets_flops": [3e9]}
    spec = write_spec(tmp_path, name="killed", **sizes)
    process = start("run", spec, "--no-ray", "--cpus", 1, cwd=tmp_path)
    store = Store(tmp_path / "runs", "killed")
    [trial] = load_plan(spec).trials
    until = time.monotonic() + 60
    while not store.state(trial).step and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(int(worker_of(store, trial)), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "its process was killed by SIGKILL" in err
    assert "starting again from its last checkpoint" in err
    assert store.report(trial.trial_id).lost_workers == 1
    assert store.state(trial).state == "done"
    assert store.state(trial).attempts == 2


def worker_of(store, trial) -> int:
    from sweeps.storage.files import read_json

    return read_json(store.folder(trial.trial_id) / "state.json")["pid"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker ends with its trial")
def test_a_killed_driver_leaves_no_worker_behind(tmp_path):
    spec = write_spec(tmp_path, name="orphans", mean_recurrence=[2], budgets_flops=[4e10])
    process = start("run", spec, "--no-ray", "--cpus", 1, cwd=tmp_path)
    store = Store(tmp_path / "runs", "orphans")
    until = time.monotonic() + 60
    while not list(store.root.glob("*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    [trial] = store.stored_trials()
    worker = store.report(trial.trial_id).pid
    process.kill()
    process.communicate()
    until = time.monotonic() + 5
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (Resources(cpus=2), [(), (), None]),
        (Resources(cpus=1, gpus=1), [(0,), (1,), None]),
        (Resources(cpus=1, gpus=0.5), [(0,), (0,), (1,), (1,)]),
        (Resources(cpus=1, gpus=2, processes=2), [(0, 1), None]),
    ],
)
def test_a_machine_holds_what_it_has(wanted, taken):
    trial = tiny_plan(resources={"cpus": wanted.cpus, "gpus": wanted.gpus}).trials[0]
    machine = _Machine(4, {0: 1.0, 1: 1.0})
    assert [machine.take(trial) for _ in taken] == taken
    machine.give_back(trial, taken[0])
    assert machine.take(trial) == taken[0]


@pytest.mark.parametrize(
    ("cpus", "gpus", "n"),
    [*((0.01, 1 / n, 2 * n) for n in (2, 3, 5, 6, 10, 20)), (0.1, 0, 160), (1, 0.4, 4), (1, 2, 1)],
)
def test_fractions_of_a_machine_are_counted_whole(cpus, gpus, n):
    trial = tiny_plan(resources={"cpus": cpus, "gpus": gpus}).trials[0]
    assert side_by_side([trial], 16, 2) == n
    machine = _Machine(16, {0: 1.0, 1: 1.0})
    assert [machine.take(trial) is not None for _ in range(n + 1)] == [True] * n + [False]


def test_places_grow_with_a_cluster_and_hold_what_makes_it_grow(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    trials = tiny_plan(resources={"cpus": 2}).trials
    there = {"memory": 1.0}  # a head that holds no trials
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(placement, "LAUNCHER_FILE", tmp_path / "none")
    assert places(trials) == 0
    assert places(trials, {"CPU": 8.0}) == 4
    there["CPU"] = 8.0
    assert (places(trials), places(trials, {"CPU": 8.0})) == (4, 8)
    (tmp_path / "none").write_text(
        "available_node_types: {a: {max_workers: 3, resources: {CPU: 16}}, b: {max_workers: 0}}"
    )
    assert places(trials) == 12


def test_workers_that_a_second_signal_ends_are_not_lost_ones(tmp_path):
    """Killed while the pool waits for one of them."""
    plan = tiny_plan()
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, write_spec(tmp_path))
    display = Display(store, plan.trials)
    losses, waiting = Losses(store, plan.trials, 3), Waiting(store, [])
    pool = _Pool(None, waiting, _Machine(0), losses, display)
    context = multiprocessing.get_context("fork")
    for trial in plan.trials[:2]:
        ours, theirs = context.Pipe()
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        theirs.close()
        pool.workers.append(_Worker(process, ours, (), trial))
    workers = list(pool.workers)

    def second(number, frame):
        pool.end()

    before = signal.signal(signal.SIGALRM, second)
    try:
        # each end of a pipe that `fork` left in the other worker closes with it
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        pool.run([signal.SIGINT])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [w.process.exitcode for w in workers] == [-signal.SIGKILL] * 2
    assert [store.report(t.trial_id) for t in plan.trials[:2]] == [None, None]
    # and one that is heard of before, and gone by then
    workers[0].trial = plan.trials[0]
    pool._end_of_trial(workers[0])
    assert not losses.counted


def test_ray_and_a_pool_exclude_each_other(tmp_path):
    process = start("run", "x.yaml", "--no-ray", "--address", "auto", cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--no-ray runs on this machine" in err

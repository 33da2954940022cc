"""A real sweep through Ray, from the command to the records, and again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.table import records
from benchmarks.orchestration import no_op
from parcae_core.trial import Resources
from sweeps.cli.sweep import load_plan
from sweeps.design.estimate import longest_first
from sweeps.records import collect
from sweeps.runner.driver import Options, make_job, prepare_data, run
from sweeps.runner.trainable import attempt
from sweeps.store import Store
from tests.support.tiny import write_spec


def start(*args: object, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "sweeps.cli", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )


def parcae(*args: object, cwd: Path) -> tuple[int, str, str]:
    process = start(*args, cwd=cwd)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def losses(folder: Path) -> list[tuple]:
    """What two executions of a sweep must agree on, to the last bit."""
    table = records.load(folder)
    return list(zip(table.trial_id, table.n_loops, table.val_loss, strict=True))


def test_a_sweep_runs_and_repeats_as_nothing(tmp_path):
    spec = write_spec(tmp_path, mean_recurrence=[1, 2], budgets_flops=[4e8], seeds=[0])
    code, out, err = parcae("run", spec, "--cpus", 1, cwd=tmp_path)  # one worker, used again
    assert code == 0, err
    folder = tmp_path / "runs" / "tiny"
    assert out == f"{folder / 'records.parquet'}\n"
    assert "2 done of 2 trials" in err
    first = losses(folder)
    assert len(first) == 4  # one depth of the transformer, three of the loop
    # A worker that is used again leaves no trace: the other order, in this process, is the same
    assert first == alone(spec, tmp_path / "alone")

    began = time.monotonic()
    code, _, err = parcae("run", spec, cwd=tmp_path)
    assert code == 0, err
    assert time.monotonic() - began < 10  # no Ray was started
    assert losses(folder) == first

    code, out, _ = parcae("status", "tiny", "--json", cwd=tmp_path)
    assert json.loads(out)["counts"] == {"done": 2}


@pytest.mark.slow
def test_a_signal_stops_trials_half_way_with_checkpoints(tmp_path):
    long = write_spec(tmp_path, name="long", mean_recurrence=[2], budgets_flops=[2e10, 2.2e10])
    process = start("run", long, "--cpus", 2, cwd=tmp_path)
    store = Store(tmp_path / "runs", "long")
    wait_until(lambda: len(list(store.root.glob("*/metrics.jsonl"))) == 2, process)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert f"go on with: parcae run {long}" in err
    assert {s.state for s in states(store)} == {"planned"}
    assert len(list(store.root.glob("*/checkpoints/step-*"))) == 2
    assert not list(store.root.glob(".stop*"))


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_stops_as_sigterm_does(tmp_path):
    """A terminal sends SIGINT to the whole foreground group, Ray's processes included."""
    long = write_spec(tmp_path, name="long", mean_recurrence=[2], budgets_flops=[4e10])
    command = [sys.executable, "-m", "sweeps.cli", "run", str(long), "--cpus", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    store = Store(tmp_path / "runs", "long")
    wait_until(lambda: list(store.root.glob("*/metrics.jsonl")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert f"go on with: parcae run {long}" in err
    assert [s.reason for s in states(store)] == ["stopped on request"]
    assert list(store.root.glob("*/checkpoints/step-*"))


def noted(trial, *, run_dir, **given):
    """Sleeps instead of training, and says when it was started."""
    (run_dir / "started").write_text(str(time.time()))
    time.sleep(0.3)
    return no_op(trial, **given)


@pytest.mark.slow
def test_trials_start_strictly_longest_first(tmp_path):
    spec = write_spec(
        tmp_path, mean_recurrence=[2, 4, 3], budgets_flops=[4e8, 3.2e9, 1.6e9], min_steps=1
    )
    plan = load_plan(spec)
    # Those in the middle ask for more than is free while a small one runs: it may not overtake
    wide = {t.trial_id for t in longest_first(plan.trials)[2:5]}
    trials = tuple(
        replace(t, resources=Resources(cpus=2 if t.trial_id in wide else 1)) for t in plan.trials
    )
    store = Store(tmp_path / "runs", plan.name)
    options = Options(cpus=2, train=noted)
    assert run(replace(plan, trials=trials), store, spec, options=options).complete
    started = sorted(
        trials, key=lambda t: float((store.folder(t.trial_id) / "started").read_text())
    )
    assert [t.trial_id for t in started] == [t.trial_id for t in longest_first(trials)]


def alone(spec: Path, out: Path) -> list[tuple]:
    plan = load_plan(spec)
    store = Store(out, plan.name)
    store.write_plan(plan, spec)
    job = make_job(plan, store, prepare_data(plan, store, plan.trials), Options())
    for trial in reversed(longest_first(plan.trials)):
        attempt(job, trial.trial_id, lambda _: None)
    collect(store)
    return losses(store.root)


def states(store: Store) -> list:
    return [store.state(t) for t in store.stored_trials()]


def wait_until(condition, process: subprocess.Popen, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the sweep did not get that far in time"
        time.sleep(0.2)

"""Attempts at real trials, called as Ray would call them."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from parcae_core.accounting.flops import FLOPS_RULES, train_flops_per_token
from parcae_core.errors import OutOfMemory
from parcae_core.result import Interrupted
from parcae_core.training.metrics import read_metrics
from parcae_core.training.train import train
from sweeps.cli.sweep import load_plan
from sweeps.cli.tables.status import status_data
from sweeps.records import collect, records_of
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.trainable import attempt
from sweeps.storage.base import LeaseBusy, LeaseLost, lease
from sweeps.storage.files import read_json, write_json
from sweeps.storage.local import LocalStorage
from sweeps.store import Store
from tests.support.tiny import write_spec


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(plan, spec path, data folders) of a sweep of four trials."""
    folder = tmp_path_factory.mktemp("tiny")
    spec = write_spec(folder)
    plan = load_plan(spec)
    store = Store(folder / "runs", plan.name)
    return plan, spec, prepare_data(plan, store, plan.trials)


@pytest.fixture
def sweep(prepared, tmp_path):
    """(store, plan, make_job) in a fresh folder."""
    plan, spec, data_dirs = prepared
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    return store, plan, lambda **options: make_job(plan, store, data_dirs, Options(**options))


HERE = LocalStorage(Path("runs"), "tiny")  # it moves nothing, wherever the folder is


def run(job, trial) -> list[dict]:
    reports = []
    attempt(job, trial.trial_id, reports.append)
    return reports


def fail_with(error: Exception):
    def broken(trial, **_):
        raise error

    return broken


def test_a_trial_runs_to_a_result_that_counts(sweep):
    store, plan, make_job = sweep
    trial = plan.trials[1]
    assert run(make_job(), trial)[-1] == {"state": "done", "step": trial.n_steps}
    assert store.state(trial).state == "done"
    said = read_json(store.folder(trial.trial_id) / "state.json")
    assert said["attempts"] == 1
    assert said["spec_sha256"] == plan.spec.sha256
    assert run(make_job(), trial) == [{"state": "finished"}]  # a second attempt does nothing


def test_a_curriculum_trains_to_a_result_with_the_flops_of_its_ramp(tmp_path):
    depth = {"kind": "curriculum", "ramp_share": 0.5}
    spec = write_spec(tmp_path, mean_recurrence=[4], budgets_flops=[3e8], depth=depth)
    plan = load_plan(spec)
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    trial = plan.trials[0]
    job = make_job(plan, store, prepare_data(plan, store, plan.trials), Options())
    run(job, trial)
    assert store.state(trial).state == "done"
    result = store.result(trial)
    # What was drawn, against what is expected of it: a constant depth would be a quarter off
    assert result.train_flops_sampled == pytest.approx(result.train_flops["exact"], rel=0.1)
    lines = read_metrics(store.files(trial.trial_id).metrics)
    for line in lines:
        for rule in FLOPS_RULES:
            steps = [
                train_flops_per_token(trial.model, trial.depth.at(i), trial.context, rule).total
                for i in range(line["step"])
            ]
            assert line[f"flops/{rule}"] == pytest.approx(sum(steps) * trial.batch_tokens)
    table = records_of(store)
    assert table.depth_scheme.iloc[0] == "curriculum, linear over 0.5 of the steps"


def test_records_follow_from_the_folders_alone(sweep):
    store, plan, make_job = sweep
    assert collect(store) is None
    for trial in plan.trials[:2]:
        run(make_job(), trial)
    failing = fail_with(ValueError("bad luck"))
    run(make_job(train=failing), plan.trials[2])
    table = records_of(store)
    by_trial = {t: rows for t, rows in table.groupby("trial_id")}
    one, two, failed = (by_trial[t.trial_id] for t in plan.trials[:3])
    assert list(one.n_loops) == [1]
    assert list(two.n_loops) == [1, 2, 3]
    assert one.architecture.iloc[0] == "transformer"
    assert one.n_params_core.iloc[0] == 0
    assert two.n_params_core.iloc[0] > 0
    assert list(failed.status) == ["failed"]
    assert failed.status_reason.iloc[0] == "ValueError: bad luck"
    assert two.n_tokens.iloc[0] == plan.trials[1].n_tokens
    assert two.spec_sha256.iloc[0] == plan.spec.sha256
    assert collect(store).name == "records.parquet"


# A Ray worker whose driver is gone: its main thread returns while the trial's own is in a step
ENDING = """
import sys, threading, time
from pathlib import Path
from parcae_core.training.metrics import read_metrics
from parcae_core.training.train import train
from sweeps.cli.sweep import load_plan
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.errors import process_ending
from sweeps.runner.trainable import attempt
from sweeps.store import Store

plan = load_plan(Path(sys.argv[1]))
store, training = Store(sys.argv[2], plan.name), threading.Event()

def until_the_end(trial, *, on_report, **rest):
    def told(line):
        on_report(line)
        training.set()
        while not process_ending():
            time.sleep(0.01)
    return train(trial, on_report=told, **rest)

job = make_job(plan, store, prepare_data(plan, store, plan.trials), Options(train=until_the_end))
threading.Thread(target=attempt, args=(job, plan.trials[1].trial_id, print)).start()
training.wait()
"""


def test_a_worker_that_ends_under_its_trial_does_not_make_it_fail(prepared, sweep):
    _, spec, _ = prepared
    store, plan, _ = sweep
    command = [sys.executable, "-c", ENDING, str(spec), str(store.root.parent)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "cannot schedule new futures after shutdown" in ended.stderr
    trial = plan.trials[1]
    assert store.report(trial.trial_id).state == "running"  # as a killed process leaves it
    assert not store.files(trial.trial_id).error.exists()
    assert store.state(trial).state != "failed"


def test_our_own_failure_is_recorded_with_its_last_lines_and_not_raised(sweep):
    store, plan, make_job = sweep
    trial = plan.trials[0]
    reports = run(make_job(train=fail_with(ValueError("no such thing"))), trial)
    assert reports[-1]["state"] == "failed"
    assert store.state(trial).reason == "ValueError: no such thing"
    assert "no such thing" in (store.folder(trial.trial_id) / "error.txt").read_text()
    [shown] = [t for t in status_data(store)["trials"] if t["trial_id"] == trial.trial_id]
    assert shown["error"][-1] == "ValueError: no such thing"
    assert "raise error" in shown["error"][-2]
    attempts = store.report(trial.trial_id).attempts
    store.forget_failure(trial.trial_id)
    assert store.state(trial).state == "planned"
    assert not store.files(trial.trial_id).error.exists()
    assert store.report(trial.trial_id).attempts == attempts


def test_a_failing_disk_is_raised_for_another_attempt(sweep):
    store, plan, make_job = sweep
    trial = plan.trials[0]
    error = RuntimeError("cannot save")
    error.__cause__ = OSError(28, "No space left on device")
    with pytest.raises(RuntimeError):
        run(make_job(train=fail_with(error)), trial)
    assert store.state(trial).state == "planned"
    assert "No space left" in store.state(trial).reason


def test_a_training_that_did_not_fit_is_raised_for_another_attempt_and_keeps_its_advice(sweep):
    store, plan, make_job = sweep
    trial = plan.trials[0]
    job = make_job(train=fail_with(OutOfMemory("out of memory; use a smaller model")))
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            run(job, trial)
        assert store.state(trial).state == "planned"
        assert store.state(trial).reason == "out of memory; use a smaller model"


def test_a_stop_leaves_a_checkpoint_and_the_next_attempt_ends_as_if_undisturbed(sweep, monkeypatch):
    store, plan, make_job = sweep
    trial = plan.trials[3]
    monkeypatch.setattr("sweeps.runner.trainable.ASK_EVERY_S", 0.0)
    job = make_job()

    def stop_at_40(trial, **given):
        def on_report(line):
            if line["step"] == 40:
                job.stop_file.touch()

        return train(trial, **(given | {"on_report": on_report}))

    stopped = make_job(train=stop_at_40)
    object.__setattr__(stopped, "session", job.session)
    assert run(stopped, trial)[-1]["state"] == "planned"
    assert store.state(trial).reason == "stopped on request"
    assert list((store.folder(trial.trial_id) / "checkpoints").iterdir())
    assert run(job, trial) == [{"state": "planned"}]  # the same `run` starts nothing more
    assert run(make_job(), trial)[-1]["state"] == "done"  # the next one does
    resumed = store.result(trial)
    assert resumed.n_resumed == 1

    other = Store(store.out, "undisturbed")
    other.write_plan(plan, write_spec(store.out))
    job = make_job()
    object.__setattr__(job, "sweep", "undisturbed")
    run(job, trial)
    assert other.result(trial).evaluation == resumed.evaluation


def test_diverging_is_a_result(sweep):
    store, plan, make_job = sweep
    trial = plan.trials[1]

    def diverge(trial, **given):
        result = train(trial, **given)
        changes = {
            "status": "diverged",
            "reason": "step 3: loss is nan",
            "evaluation": (),
            "step": 3,
        }
        return type(result)(**{f: getattr(result, f) for f in result.__slots__} | changes)

    run(make_job(train=diverge), trial)
    assert store.state(trial).state == "diverged"
    row = records_of(store).iloc[0]
    assert (row.status, row.diverged_step) == ("diverged", 3)
    assert row.status_reason == "step 3: loss is nan"


def test_a_later_attempt_takes_the_folder_and_the_earlier_one_stops(tmp_path):
    with lease(tmp_path, HERE, wait_s=0) as first:
        assert first.held()
        with (
            pytest.raises(LeaseBusy, match="still runs after 0 s"),
            lease(tmp_path, HERE, wait_s=0),
        ):
            pass
        assert not first.held()
        with pytest.raises(LeaseLost):
            first.require()
    with lease(tmp_path, HERE, wait_s=0) as third:
        assert third.content["generation"] == 3


def test_the_lease_waits_for_an_orphan_to_let_go(tmp_path):
    got = threading.Event()

    def orphan():
        with lease(tmp_path, HERE, wait_s=0) as held:
            got.set()
            while held.held():
                got.wait(0.01)

    thread = threading.Thread(target=orphan)
    thread.start()
    assert got.wait(5)
    with lease(tmp_path, HERE, wait_s=5) as mine:
        assert mine.held()
    thread.join()


def test_an_orphan_writes_nothing_more(sweep, monkeypatch):
    store, plan, make_job = sweep
    trial = plan.trials[0]
    monkeypatch.setattr("sweeps.runner.trainable.ASK_EVERY_S", 0.0)

    def usurped(trial, *, run_dir, execution, **given):
        write_json(Path(run_dir) / "lease.json", {"owner": "another", "generation": 9})
        if execution.stop_requested():
            raise Interrupted
        raise AssertionError("the lost lease went unnoticed")

    with pytest.raises(LeaseLost):
        run(make_job(train=usurped), trial)
    said = json.loads((store.folder(trial.trial_id) / "state.json").read_text())
    assert said["state"] == "running"  # the words of the attempt's start, untouched
    assert not (store.folder(trial.trial_id) / "result.json").exists()


def test_compile_in_a_spec_reaches_the_trainer_and_is_no_other_trial(tmp_path):
    found = {}
    for name in ("plain", "compiled"):
        spec = write_spec(tmp_path / name, compile=name == "compiled")
        plan = load_plan(spec)
        store = Store(tmp_path / name / "runs", plan.name)
        store.write_plan(plan, spec)
        seen = []

        def stop(trial, *, execution, seen=seen, **_):
            seen.append(execution)
            raise Interrupted("seen")

        options = Options(train=stop)
        job = make_job(plan, store, prepare_data(plan, store, plan.trials), options)
        run(job, plan.trials[0])
        found[name] = (plan.trial_ids, seen[0].compile, seen[0].cuda_graphs)
    assert found["compiled"] == (found["plain"][0], True, False)  # no graphs without a GPU
    assert found["plain"][1:] == (False, False)

"""Trunks in a sweep: attempts called as Ray would call them, and whole pools."""

import threading
import time

import pandas as pd
import pytest

from parcae_core.checkpoints.native import newest_checkpoint
from parcae_core.training.train import train
from sweeps.branches import Waiting, hand_over_ended
from sweeps.cli.sweep import load_plan
from sweeps.cli.tables.status import status_data
from sweeps.records import records_of
from sweeps.reports import StateReport
from sweeps.runner.driver import Options, make_job, prepare_data
from sweeps.runner.driver import run as run_sweep
from sweeps.runner.trainable import attempt
from sweeps.store import Store
from tests.support.tiny import write_spec
from tests.sweeps.test_store import good_result, put

BUDGETS = {"budgets_flops": [4e7, 8e7, 1.6e8], "mean_recurrence": [2]}
SEPARATE = {"optim": {"weight_decay_falls": "cooldown"}}
# Columns that say when and from where, not what came out
OF_THE_RUN = ["wall_s", "tokens_per_s", "spec_sha256", "sweep", "parent_trial_id", "shared_steps"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(plan with trunks, spec path, data folders, records of separate runs)."""
    folder = tmp_path_factory.mktemp("trunks")
    spec = write_spec(folder, name="trunks", trunks=True, **BUDGETS)
    alone_spec = write_spec(folder, name="alone", **SEPARATE, **BUDGETS)
    plan, alone = load_plan(spec), load_plan(alone_spec)
    store = Store(folder / "runs", alone.name)
    data_dirs = prepare_data(alone, store, alone.trials)
    store.write_plan(alone, alone_spec)
    job = make_job(alone, store, data_dirs, Options())
    for trial in alone.trials:
        attempt(job, trial.trial_id, lambda _: None)
    return plan, spec, data_dirs, records_of(store)


@pytest.fixture
def sweep(prepared, tmp_path):
    """(store, trials, attempt at one of them) of a fresh sweep with trunks."""
    plan, spec, data_dirs, _ = prepared
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)

    def attempt_at(trial, **options):
        job = make_job(plan, store, data_dirs, Options(**options))
        attempt(job, trial.trial_id, lambda _: None)

    return store, plan.trials, attempt_at


def same(table, alone) -> None:
    """Two tables of records tell of the same runs."""
    shown = [t.drop(columns=[c for c in OF_THE_RUN if c in t]) for t in (table, alone)]
    pd.testing.assert_frame_equal(*shown, check_exact=True)


def test_records_of_trunks_are_those_of_separate_runs(sweep, prepared):
    store, trials, attempt_at = sweep
    waiting = Waiting(store, reversed(trials))
    for wanted in trials:
        waiting.asked_anew()
        assert waiting.ready() is wanted  # a trunk before its branches, whatever the order given
        waiting.trials.remove(wanted)
        attempt_at(wanted)
    assert waiting.ready() is None
    assert not waiting
    table = records_of(store)
    same(table, prepared[3])
    made = table.drop_duplicates("trial_id").set_index("trial_id")
    for trial in trials:
        assert made.shared_steps[trial.trial_id] == trial.shared_steps
    # what was handed over is not kept; the end of the trunk is, for a longer trial to come
    kept = [p.parent.parent.name for p in store.root.glob("*/branches/step-*")]
    assert kept == [trials[-1].trial_id]
    data = status_data(store)
    own = sum(t.own_flops("paper") for t in trials)
    assert data["made_flops_paper"]["own"] == pytest.approx(own)
    assert data["made_flops_paper"]["separate"] == pytest.approx(
        table.drop_duplicates("trial_id").train_flops_paper.sum()
    )
    assert own < 0.8 * data["made_flops_paper"]["separate"]


def test_the_metrics_of_a_branch_begin_at_the_first_step(sweep):
    store, trials, attempt_at = sweep
    for trial in trials[:2]:
        attempt_at(trial)
    lines = pd.read_json(store.files(trials[1].trial_id).metrics, lines=True)
    assert lines.step.iloc[0] == 1
    assert lines.step.iloc[-1] == trials[1].n_steps
    assert lines.step.is_monotonic_increasing


def test_a_branch_may_start_while_its_trunk_still_trains(sweep):
    store, (trunk, branch, _), attempt_at = sweep
    seen = []

    def slow(trial, **given):
        def on_report(line):
            report(line)
            if line["step"] > branch.shared_steps and not seen:
                until = time.monotonic() + 20
                waiting = Waiting(store, [branch])
                while waiting.ready() is None and time.monotonic() < until:
                    waiting.asked_anew()
                    time.sleep(0.02)
                seen.append((waiting.ready(), store.state(trunk).state))

        report = given["on_report"]
        return train(trial, **(given | {"on_report": on_report}))

    attempt_at(trunk, train=slow)
    assert seen == [(branch, "running")]
    assert store.state(branch).step == branch.shared_steps
    assert store.state(branch).state == "planned"


def test_a_trunk_that_is_lost_hands_over_in_its_next_attempt(sweep, prepared):
    store, trials, attempt_at = sweep
    trunk, branch, _ = trials

    def dies(trial, **given):
        def on_report(line):
            if line["step"] == branch.shared_steps + 1:
                raise OSError("the node is gone")

        return train(trial, **(given | {"on_report": on_report}))

    with pytest.raises(OSError, match="node is gone"):
        attempt_at(trunk, train=dies)
    for trial in trials:
        attempt_at(trial)
    assert store.result(branch).shared_steps == branch.shared_steps
    same(records_of(store), prepared[3])


def test_a_branch_runs_from_step_0_when_its_trunk_ended_without_a_checkpoint(sweep, prepared):
    store, trials, attempt_at = sweep

    def fails(trial, **_):
        raise ValueError("bad luck")

    attempt_at(trials[0], train=fails)
    said = []
    waiting = Waiting(store, trials[1:], said.append)
    assert waiting.ready() is trials[1]
    assert "left no checkpoint at step" in said[0]
    assert "it runs from step 0" in said[0]
    for trial in trials[1:]:
        attempt_at(trial)
    assert [store.result(t).shared_steps for t in trials[1:]] == [0, trials[2].shared_steps]
    table = records_of(store)
    alone = prepared[3]
    same(*(t[t.trial_id != trials[0].trial_id].reset_index(drop=True) for t in (table, alone)))


def test_a_branch_waits_for_a_trunk_that_is_at_work(sweep):
    store, (trunk, branch, _), _ = sweep
    StateReport(state="running", step=1).write(store.files(trunk.trial_id).state)
    assert Waiting(store, [branch]).ready() is None


def test_a_failed_branch_that_is_tried_again_goes_on_from_its_own_checkpoint(sweep):
    store, (trunk, branch, _), _ = sweep
    put(store, trunk, good_result(trunk))
    failed = StateReport(state="failed", step=9, checkpoint_step=9, attempts=1, reason="broken")
    failed.write(store.files(branch.trial_id).state)
    store.forget_failure(branch.trial_id)
    said = []
    assert Waiting(store, [branch], said.append).ready() is branch
    assert said == []
    assert (store.state(branch).step, store.state(branch).reason) == (9, None)


def test_a_branch_that_is_at_work_already_is_left_alone(sweep):
    from parcae_core.data.io import file_lock

    store, (trunk, branch, _), attempt_at = sweep
    files = store.files(branch.trial_id)
    with file_lock(files.worker):
        attempt_at(trunk)
    assert store.state(trunk).state == "done"
    assert not files.checkpoints.exists()


def test_a_longer_trial_that_is_added_later_goes_on_from_the_end_of_the_trunk(
    prepared, sweep, tmp_path
):
    store, trials, attempt_at = sweep
    for trial in trials:
        attempt_at(trial)
    longer = BUDGETS | {"budgets_flops": [*BUDGETS["budgets_flops"], 2.4e8]}
    spec = write_spec(
        tmp_path, name="trunks", trunks=True, data=prepared[0].spec.data.model_dump(), **longer
    )
    plan = load_plan(spec)
    added = plan.trials[-1]
    assert added.parent.trial_id == trials[-1].trial_id
    store.write_plan(plan, spec)
    hand_over_ended(store, [added])
    assert Waiting(store, [added]).ready() is added
    attempt(make_job(plan, store, prepared[2], Options()), added.trial_id, lambda _: None)
    assert store.result(added).shared_steps == trials[-1].constant_steps
    kept = [p.parent.parent.name for p in store.root.glob("*/branches/step-*")]
    assert kept == [added.trial_id]


def test_tune_is_given_a_branch_once_it_can_begin_and_none_of_a_trunk_that_was_given_up(sweep):
    from sweeps.runner.progress import InOrder

    store, (trunk, branch, _), attempt_at = sweep
    order = InOrder(Waiting(store, [branch, trunk]))
    assert order.suggest("tune-1") == {"trial_id": trunk.trial_id}
    assert order.suggest("tune-2") is None
    attempt_at(trunk)
    order.on_trial_complete("tune-1")
    assert order.suggest("tune-2") == {"trial_id": branch.trial_id}
    order.on_trial_complete("tune-2", error=True)
    assert order.suggest("tune-3") == "FINISHED"

    for trial in (trunk, branch):  # as if nothing had been made, nor handed over
        StateReport(state="planned").write(store.files(trial.trial_id).state)
        store.files(trial.trial_id).result.unlink(missing_ok=True)
    waiting, told = Waiting(store, [trunk, branch]), []
    waiting.give_up = told.append
    given_up = InOrder(waiting)
    given_up.suggest("tune-1")
    given_up.on_trial_complete("tune-1", error=True)
    assert given_up.suggest("tune-2") == "FINISHED"
    assert told == [trunk]


@pytest.mark.slow
def test_a_trunk_of_two_processes_hands_over_too(prepared, tmp_path):
    changes = {"resources": {"cpus": 2, "processes": 2}, "data": prepared[0].spec.data.model_dump()}
    spec = write_spec(tmp_path, name="trunks", trunks=True, **BUDGETS, **changes)
    plan = load_plan(spec)
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    trunk, branch, _ = plan.trials
    attempt(make_job(plan, store, prepared[2], Options()), trunk.trial_id, lambda _: None)
    assert store.result(trunk).n_processes == 2
    assert Waiting(store, [branch]).ready() is branch
    begun = newest_checkpoint(store.files(branch.trial_id).checkpoints, branch)
    assert begun.step == begun.progress["shared_steps"] == branch.shared_steps


@pytest.mark.slow
def test_a_pool_runs_trunks_and_leaves_what_separate_runs_leave(prepared, tmp_path, capsys):
    plan, spec, _, alone = prepared
    store = Store(tmp_path / "runs", plan.name)
    outcome = run_sweep(plan, store, spec, options=Options(ray=False, cpus=2))
    assert outcome.complete, capsys.readouterr().err
    table = records_of(store)
    same(table, alone)
    assert sorted(table.shared_steps.unique()) == sorted({t.shared_steps for t in plan.trials})


@pytest.mark.slow
def test_a_pool_leaves_branches_of_a_trunk_that_it_gave_up(prepared, tmp_path, capsys):
    plan, spec, _, _ = prepared
    store = Store(tmp_path / "runs", plan.name)
    options = Options(ray=False, cpus=2, lost_workers=0, train=_dies)
    outcome = run_sweep(plan, store, spec, options=options)
    assert set(outcome.states.values()) == {"planned"}
    err = capsys.readouterr().err
    assert err.count("not started; its trunk") == 2
    assert threading.active_count() < 20


def _dies(trial, **_):
    raise OSError("no room")

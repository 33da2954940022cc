import json
import re
import time

import pytest

from parcae_core.data.io import write_synced
from parcae_core.errors import UserError
from sweeps.records import records_of
from sweeps.reports import StateReport
from sweeps.siblings import reuse_siblings
from sweeps.storage.files import read_json, without_seal
from sweeps.store import STALE_S, Store, open_sweep
from tests.support.tiny import tiny_plan, write_spec


def good_result(trial) -> dict:
    rows = [
        {"n_loops": n, "val_loss": 2.0 + 1 / n, "val_bpb": 3.0, "n_tokens": 64}
        for n in trial.evaluation.loops
    ]
    return {
        "status": "done", "trial_id": trial.trial_id, "step": trial.n_steps, "reason": None,
        "evaluation": rows, "final_train_loss": 2.5, "n_tokens": trial.n_tokens,
        "train_flops": trial.cost.train_flops, "train_flops_sampled": 1.0, "core_sequence_steps": 1,
        "core_sequence_steps_ideal": 1, "data_epochs": 0.5, "train_s": 2.0, "wall_s": 3.0,
        "tokens_per_s": 100.0, "data_wait_share": 0.0, "micro_batch_sequences": 1,
        "n_out_of_memory": 0, "n_resumed": 0, "n_processes": 1, "threads": 1, "device": "cpu",
        "torch_version": "x", "precision": "float32",
    }  # fmt: skip


def report(store, trial, **content) -> None:
    """What a worker leaves in state.json."""
    StateReport(**content).write(store.files(trial.trial_id).state)


@pytest.fixture
def planned(tmp_path):
    """A store with a written plan: (store, plan, spec path)."""
    spec = write_spec(tmp_path)
    plan = tiny_plan()
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    return store, plan, spec


def put(store, trial, result):
    (store.folder(trial.trial_id) / "result.json").write_text(json.dumps(result))


def test_a_fresh_plan_is_planned_and_reads_back(planned):
    store, plan, _ = planned
    assert store.stored_trials() == list(plan.trials)
    assert {store.state(t).state for t in plan.trials} == {"planned"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": 3}, "step 3 of 86"),
        ({"evaluation": []}, r"evaluated at \[\]"),
        ({"evaluation": [{"n_loops": 1, "val_loss": float("nan")}]}, "validation losses are"),
        ({"evaluation": None}, "no evaluation"),
        ({"trial_id": "x"}, "of trial x"),
        ({"status": "ok"}, "status is 'ok'"),
        ({"status": "diverged"}, "without a reason"),
    ],
)
def test_done_is_never_believed_without_the_evidence(planned, change, problem):
    store, plan, _ = planned
    trial = plan.trials[0]
    put(store, trial, good_result(trial) | change)
    state = store.state(trial)
    assert state.state == "planned"
    assert "result.json is not accepted" in state.reason
    assert re.search(problem, state.reason)


def test_a_valid_result_counts_and_a_torn_one_does_not(planned):
    store, plan, _ = planned
    done, diverged, torn, _ = plan.trials
    put(store, done, good_result(done))
    put(store, diverged, good_result(diverged) | {"status": "diverged", "reason": "nan", "step": 3})
    put(store, torn, good_result(torn))
    path = store.folder(torn.trial_id) / "result.json"
    path.write_text(path.read_text()[:100])
    assert [store.state(t).state for t in plan.trials] == ["done", "diverged", "planned", "planned"]
    assert "not accepted" in store.state(torn).reason


def test_a_diverged_or_failed_run_is_recorded_with_what_it_spent(planned):
    store, plan, _ = planned
    done, diverged, at_once, failed = plan.trials
    put(store, done, good_result(done))
    for trial, step in ((diverged, 3), (at_once, 0)):
        lost = {"status": "diverged", "reason": f"step {step}: the loss is nan", "step": step}
        put(store, trial, good_result(trial) | lost | {"evaluation": []})
    report(store, failed, state="failed", reason="no memory", step=5)
    table = records_of(store).groupby("trial_id").first()
    for trial, steps in ((done, done.n_steps), (diverged, 3), (at_once, 0), (failed, 5)):
        row = table.loc[trial.trial_id]
        assert row.n_tokens == steps * trial.batch_tokens
        for rule, flops in trial.cost.train_flops.items():
            assert row[f"train_flops_{rule}"] == flops * (steps / trial.n_steps)
        assert (row.n_steps, row.budget_flops) == (trial.n_steps, trial.budget_flops)


def test_folders_written_before_costs_were_stored_still_load(planned):
    store, plan, _ = planned
    trial = plan.trials[0]
    path = store.folder(trial.trial_id) / "trial.json"
    data = without_seal(read_json(path))  # which folders of then did not have either
    cost = data.pop("cost")
    assert cost["train_flops"]["paper"] == trial.train_flops("paper")
    path.write_text(json.dumps(data))
    assert store.trial(trial.trial_id).cost == trial.cost


def test_running_is_believed_only_while_the_worker_speaks(planned, monkeypatch):
    store, plan, _ = planned
    trial = plan.trials[0]
    report(store, trial, state="running", step=7)
    assert store.state(trial).state == "running"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + STALE_S + 1)
    assert store.state(trial).state == "planned"
    assert "went silent at step 7" in store.state(trial).reason


def test_a_changed_spec_over_finished_trials_needs_extend(planned, tmp_path):
    store, plan, spec = planned
    longer = tiny_plan(budgets_flops=[4e8, 1.6e9])
    store.check(longer, spec, extend=False)  # nothing is finished yet: no loss
    put(store, plan.trials[0], good_result(plan.trials[0]))
    with pytest.raises(UserError) as error:
        store.check(longer, spec, extend=False)
    assert str(error.value) == (
        f"{store.root} was planned from spec {plan.spec.sha256[:8]}, but {spec} is now "
        f"{longer.spec.sha256[:8]}: 2 trials new, 2 gone. Pass --extend to keep the 1 finished and "
        "run the 2 new, or give the changed spec another name."
    )
    store.check(longer, spec, extend=True)
    store.write_plan(longer, spec)
    assert len(store.stored_trials()) == 6
    assert store.stored_trials()[:4] == list(longer.trials)
    store.check(tiny_plan(budgets_flops=[4e8, 1.6e9], min_steps=7), spec, extend=False)


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    plan = tiny_plan()
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file", "tiny").check(plan, write_spec(tmp_path), extend=False)
    Store(tmp_path / "runs", "tiny").check(plan, tmp_path / "tiny.yaml", extend=False)
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_sibling_sweeps_result_is_reused_and_damage_is_not(planned):
    store, plan, spec = planned
    first, second, *_ = plan.trials
    put(store, first, good_result(first))
    put(store, second, good_result(second) | {"step": 1})
    other = Store(store.out, "other")
    other.write_plan(plan, spec)
    assert reuse_siblings(other, list(plan.trials)) == {first.trial_id: "tiny"}
    assert other.state(first).state == "done"
    assert read_json(other.folder(first.trial_id) / "state.json")["reused_from"] == "tiny"


def test_one_driver_at_a_time(planned):
    store, *_ = planned
    busy = pytest.raises(UserError, match=r"another `parcae run` is at work here \(process \d+")
    with store.storage.lock(), busy, store.storage.lock():
        pass
    with store.storage.lock():
        pass


def test_sweeps_are_found_by_folder_name_and_spec(planned, tmp_path):
    store, _, spec = planned
    assert open_sweep(store.root).root == store.root
    assert open_sweep("tiny", store.out).root == store.root
    assert open_sweep(spec, store.out).root == store.root
    with pytest.raises(UserError, match="no sweep at"):
        open_sweep("nope", store.out)


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.json"
    write_synced(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_synced(path, "\ud800")
    assert path.read_text() == "old"

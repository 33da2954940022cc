"""`scheduler: asha`: who is compared with whom, what is decided, and what a stopped trial leaves."""

import pickle
from types import SimpleNamespace

import pytest

from parcae_core.errors import UserError
from sweeps.cli.sweep import load_plan
from sweeps.design.spec import parse_spec
from sweeps.records import records_of
from sweeps.reports import StateReport
from sweeps.runner.driver import Options, make_job, prepare_data, run
from sweeps.runner.halving import Halving
from sweeps.runner.rungs import loss_at, rungs_of
from sweeps.runner.trainable import attempt
from sweeps.siblings import reuse_siblings
from sweeps.storage.files import read_json
from sweeps.store import Store
from tests.support.tiny import spec_dict, tiny_plan, write_spec

RATES = [1e-3, 4e-3, 8e-3, 1.6e-2]
STABILITY = {
    "design": "stability",
    "budgets_flops": None,
    "n_tokens": 64 * 18,
    "mean_recurrence": 2,
    "learning_rates": RATES,
    "variants": {"ours": {}, "rdm": {"injection": "concat"}},
    "scheduler": "asha",
}


@pytest.fixture
def planned(tmp_path):
    """(store, trials, Tune's view of them) of four rates for each of two variants."""
    plan = tiny_plan(**STABILITY)
    store = Store(tmp_path, plan.name)
    store.write_plan(plan, write_spec(tmp_path / "spec"))
    views = {
        t.trial_id: SimpleNamespace(trial_id=f"tune-{i}", config={"trial_id": t.trial_id})
        for i, t in enumerate(plan.trials)
    }
    return store, plan.trials, views


def tell(halving: Halving, trial, view, losses: list[float]) -> None:
    """The losses of a trial at its rungs, until it is to end."""
    halving.on_trial_add(None, view)
    for step, loss in zip(rungs_of(trial), losses, strict=False):
        said = {"step": step, "loss": loss}
        assert halving.on_trial_result(None, view, said) == "CONTINUE"  # the trial ends itself


def halt(store: Store, trial) -> dict | None:
    return read_json(store.files(trial.trial_id).halt)


def test_trials_are_compared_with_other_rates_of_their_own_model_alone(planned):
    store, trials, views = planned
    halving = Halving(store, list(trials))
    ours, rdm = trials[:4], trials[4:]
    assert len({t.model.injection for t in ours}) == 1
    for trial, loss in zip(ours, (2.0, 3.0, 1.0, 2.5), strict=True):
        tell(halving, trial, views[trial.trial_id], [loss])
    for trial in rdm[:2]:  # worse than all of ours, and the first of their own
        tell(halving, trial, views[trial.trial_id], [9.0])
    # ASHA does not wait: the first goes on whatever follows
    assert [halt(store, t) is not None for t in trials[:6]] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    said = halt(store, ours[1])
    assert (said["step"], said["loss"]) == (2, 3.0)
    assert said["reason"].startswith("step 2 of 18: asha stopped it, its loss 3.0000 is not among")
    pickle.dumps(halving)  # as Tune does with its scheduler


def test_a_second_start_knows_what_trials_have_shown_before(planned):
    store, trials, views = planned
    done = store.files(trials[0].trial_id)
    (done.checkpoints / "step-00000006").mkdir(parents=True)
    done.metrics.write_text('{"step": 2, "train/loss": 2.0}\n{"step": 6, "train/loss": 1.5}\n')
    halving = Halving(store, list(trials[1:4]))
    tell(halving, trials[1], views[trials[1].trial_id], [1.0, 1.8])  # good early, worse later
    tell(halving, trials[2], views[trials[2].trial_id], [2.1])
    assert halt(store, trials[1])["step"] == 6
    assert halt(store, trials[2])["step"] == 2


def test_a_second_start_in_an_object_store_knows_it_from_the_reports(object_store, tmp_path):
    plan = tiny_plan(**STABILITY)
    first = Store(object_store, plan.name)
    first.write_plan(plan, write_spec(tmp_path, **STABILITY))
    for trial, loss in zip(plan.trials, (2.0, 3.0), strict=False):
        files = first.files(trial.trial_id)
        files.metrics.write_text(f'{{"step": 2, "train/loss": {loss}}}\n')
        StateReport(state="planned", step=3, checkpoint_step=3).write(files.state)
        first.storage.push(files.metrics, files.state)
    again = Store(object_store, plan.name)
    again.refresh()
    halving, third = Halving(again, list(plan.trials[:3])), plan.trials[2]
    view = SimpleNamespace(trial_id="tune-2", config={"trial_id": third.trial_id})
    tell(halving, third, view, [2.5])
    assert halt(again, third)["step"] == 2


def test_the_loss_at_a_rung_is_a_mean_over_the_last_tenth_of_the_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {s}, "train/loss": {s / 10}}}\n' for s in range(80, 121, 5)]
    path.write_text("".join(lines))
    assert loss_at(path, 98) == (100, pytest.approx(9.5))  # 90, 95, 100
    assert loss_at(path, 121) is None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asha")
    spec = write_spec(folder, **(STABILITY | {"variants": {"ours": {}}}))
    plan = load_plan(spec)
    data_dirs = prepare_data(plan, Store(folder / "runs", plan.name), plan.trials)
    return spec, plan, data_dirs


def test_a_stopped_trial_is_a_result_and_goes_on_where_nothing_stops_it(prepared, tmp_path):
    spec, plan, data_dirs = prepared
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, spec)
    job = make_job(plan, store, data_dirs, Options())
    one, two = plan.trials[:2]
    halving, said = Halving(store, list(plan.trials)), []

    def announce(trial):
        view = SimpleNamespace(trial_id=trial.trial_id, config={"trial_id": trial.trial_id})
        halving.on_trial_add(None, view)
        return lambda word: (said.append(word), halving.on_trial_result(None, view, word))

    attempt(job, two.trial_id, announce(two))
    assert [w["state"] for w in said] == ["running", "running", "done"]
    said.clear()
    attempt(job, one.trial_id, announce(one))  # a lower rate learns less in two steps
    assert [w["state"] for w in said] == ["running", "stopped"]
    state = store.state(one)
    assert (state.state, state.step) == ("stopped", 2)
    assert state.reason == halt(store, one)["reason"]
    [row] = records_of(store).query("status == 'stopped'").to_dict("records")
    assert (row["trial_id"], row["n_tokens"]) == (one.trial_id, 2 * one.batch_tokens)
    assert row["status_reason"] == state.reason
    attempt(job, one.trial_id, announce(one))
    assert said[-1] == {"state": "finished"}  # it is not taken up again by itself

    elsewhere = Store(tmp_path / "runs", "other")
    elsewhere.write_plan(plan, spec)
    assert reuse_siblings(elsewhere, [one, two]) == {two.trial_id: plan.name}

    store.take_up_stopped(plan.trials)
    assert store.state(one).state == "planned"
    attempt(make_job(plan, store, data_dirs, Options()), one.trial_id, lambda word: None)
    result = store.result(one)
    assert (result.status, result.n_resumed) == ("done", 1)


def test_only_designs_with_learning_rates_to_compare_may_stop_trials(prepared, tmp_path):
    with pytest.raises(UserError, match="scheduler: asha ends trials that look worse than others"):
        parse_spec(spec_dict(scheduler="asha"), "isoflop.yaml")
    grid = {"design": "grid", "budgets_flops": None, "mean_recurrence": None, "scheduler": "asha"}
    base = {"n_tokens": 1000, "mean_recurrence": 2}
    parse_spec(spec_dict(**grid, base=base, axes={"optim.lr": RATES}), "grid.yaml")
    with pytest.raises(UserError, match=r"or in a grid over optim\.lr"):
        parse_spec(spec_dict(**grid, base=base, axes={"context": [8, 16]}), "grid.yaml")
    plain = parse_spec(spec_dict(), "x").sha256
    assert parse_spec(spec_dict(scheduler="fifo"), "x").sha256 == plain  # old sweeps keep theirs
    spec, plan, _ = prepared
    with pytest.raises(UserError, match="asha is Ray Tune's, and --no-ray runs without"):
        run(plan, Store(tmp_path, plan.name), spec, options=Options(ray=False))
    assert not list(tmp_path.iterdir())

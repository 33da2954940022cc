"""What an adaptive sweep runs next: real stores and results, losses of a law in place of training."""

import json

import numpy as np
import pytest

from analysis.design.optimum import LAW
from parcae_core.errors import UserError
from sweeps.decisions import decisions, half_of, table_of
from sweeps.design.adaptive import chosen, is_adaptive
from sweeps.design.forecasting import off_curve
from sweeps.design.smoke import shrink
from sweeps.history import decisions_of
from sweeps.runner import driver
from sweeps.runner.adaptive import Choosing
from sweeps.storage.files import DECISIONS
from sweeps.store import Store, open_sweep
from tests.support.tiny import spec_dict, tiny_plan, write_spec
from tests.sweeps.test_store import good_result, put, report

KEYS = {
    "design": "adaptive",
    "budgets_flops": [4e8, 8e8, 1.6e9],
    "mean_recurrence": [2, 4, 8, 16],
    "seeds": [0, 1],
    "total_flops": 1.2e10,
    "prior": "E=1,X=300,x=0.5,Y=60,y=0.5",
    "noise": 0.005,
    "min_steps": 2,
    "evaluation": {"loops": [1], "n_sequences": 4},
}


@pytest.fixture
def adaptive(tmp_path):
    plan = tiny_plan(**KEYS)
    store = Store(tmp_path / "runs", plan.name)
    store.write_plan(plan, write_spec(tmp_path, **KEYS))
    return store, plan


def finish(store, trial, factor: float = 1.0) -> None:
    """A result with the law's loss at the trial's setting, times a factor."""
    values = {"E": 1.0, "X": 330.0, "x": 0.5, "Y": 55.0, "y": 0.5}
    columns = {
        "n_params_unrolled": np.array([trial.cost.n_params_unrolled]),
        "n_tokens": np.array([trial.n_tokens]),
    }
    rng = np.random.default_rng([trial.mean_recurrence, trial.n_steps, trial.seed])
    loss = float(LAW.predict(values, columns)[0] * np.exp(0.005 * rng.standard_normal())) * factor
    result = good_result(trial)
    for row in result["evaluation"]:
        row["val_loss"] = loss
    put(store, trial, result)


def go_on(waiting, store, n: int, factor=lambda trial: 1.0) -> list[str]:
    """Run the next n trials one after the other."""
    names = []
    for _ in range(n):
        trial = waiting.ready()
        if trial is None:
            break
        waiting.trials.remove(trial)
        finish(store, trial, factor(trial))
        waiting.asked_anew()
        names.append(trial.trial_id)
    return names


def planned(store, plan) -> list:
    return [t for t in plan.trials if store.state(t).state == "planned"]


def choosing(store, plan, slots=1) -> Choosing:
    return Choosing(store, planned(store, plan), plan=plan, slots=lambda: slots)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A whole sweep: (store, plan, spec, trial ids in the order of the choices)."""
    folder = tmp_path_factory.mktemp("ended")
    plan, spec = tiny_plan(**KEYS), write_spec(folder, **KEYS)
    store = Store(folder / "runs", plan.name)
    store.write_plan(plan, spec)
    return store, plan, spec, go_on(choosing(store, plan), store, 100)


def test_a_whole_sweep_writes_why_each_trial_was_chosen(ended):
    store, plan, _, names = ended
    lines = decisions(store.root)
    assert [line.get("trial_id") for line in lines] == [*names, None]
    assert lines[-1]["stop"] == "the FLOPs are spent"
    spent = sum(line["budget_flops"] for line in lines[:-1])
    assert 1.2e10 - 4e8 < spent <= 1.2e10
    assert lines[0]["reason"] == "bracket"
    low, high = lines[-1]["estimate"]["low"], lines[-1]["estimate"]["high"]
    assert low < lines[-1]["estimate"]["value"] < high
    assert {t.trial_id for t in chosen(store.root, plan, planned(store, plan))} == set(names)


@pytest.mark.parametrize("killed", [False, True])
def test_a_finished_sweep_says_so_and_starts_nothing(ended, killed, monkeypatch, capsys):
    """Also one that was killed before it could write that it had ended."""
    store, plan, spec, names = ended
    whole = (store.root / DECISIONS).read_text()
    if killed:
        (store.root / DECISIONS).write_text("".join(whole.splitlines(keepends=True)[:-1]))
    monkeypatch.setattr(driver, "schedule", lambda *_: pytest.fail("Ray was started"))
    outcome = driver.run(plan, store, spec)
    assert outcome.complete
    assert list(outcome.states) == [t.trial_id for t in plan.trials if t.trial_id in names]
    [line] = [x for x in capsys.readouterr().err.splitlines() if "finished" in x]
    assert line.startswith("tiny is finished: the FLOPs are spent; gamma_mu ")
    assert (store.root / DECISIONS).read_text() == whole


def test_more_flops_or_a_trial_to_repeat_open_a_finished_sweep_again(ended):
    store, plan, _, names = ended
    left = planned(store, plan)
    assert Choosing(store, left, plan=plan).at_end() == "the FLOPs are spent"
    more = tiny_plan(**KEYS | {"total_flops": 1.4e10})
    assert Choosing(store, left, plan=more).at_end() == ""
    result = store.files(names[0]).result
    before = result.read_text()
    result.unlink()
    assert Choosing(store, planned(store, plan), plan=plan).at_end() == ""
    result.write_text(before)


def test_results_of_another_sweep_are_known_and_cost_nothing(adaptive):
    store, plan = adaptive
    theirs = [t for t in plan.trials if t.seed == 0 and t.budget_flops == 4e8]
    for trial in theirs:
        finish(store, trial)
        report(store, trial, state="done", reused_from="other")
    go_on(choosing(store, plan), store, 100)
    lines = decisions(store.root)
    mine = {line["trial_id"] for line in lines[:-1]}
    assert mine.isdisjoint(t.trial_id for t in theirs)
    assert 1.2e10 - 4e8 < sum(line["budget_flops"] for line in lines[:-1]) <= 1.2e10
    assert lines[-1]["estimate"]["n_runs"] == len(mine) + len(theirs)


def test_what_was_trained_here_is_paid_for_although_its_decisions_are_lost(adaptive):
    store, plan = adaptive
    before = go_on(choosing(store, plan), store, 3)
    (store.root / DECISIONS).unlink()
    said = []
    again = Choosing(store, planned(store, plan), said.append, plan=plan)
    assert said == [
        "3 results of tiny are of no decision in design.jsonl; their FLOPs count as spent"
    ]
    assert again.planner.total_flops == 1.2e10
    assert go_on(again, store, 1)[0] not in before


def test_an_object_store_keeps_the_decisions(ended, object_store):
    """The second start has another working copy, as on another machine."""
    _, plan, spec, names = ended

    def go_on_there(n: int) -> list[str]:
        store = Store(object_store, plan.name)
        store.refresh()
        waiting, done = choosing(store, plan), []
        while len(done) < n and (trial := waiting.ready()) is not None:
            waiting.trials.remove(trial)
            finish(store, trial)
            store.storage.push(store.files(trial.trial_id).result)
            waiting.asked_anew()
            done.append(trial.trial_id)
        return done

    Store(object_store, plan.name).write_plan(plan, spec)
    assert go_on_there(3) + go_on_there(2) == names[:5]
    seen = open_sweep(f"{object_store}/tiny")
    assert [line["n"] for line in decisions(seen.root)] == [1, 2, 3, 4, 5]


def test_after_a_kill_the_next_choice_is_the_same(ended, adaptive):
    _, _, _, names = ended
    store, plan = adaptive
    go_on(choosing(store, plan), store, 11)
    due = choosing(store, plan).ready().trial_id  # decided, and killed before it started
    again = choosing(store, plan)
    assert again.ready().trial_id == due
    assert names[:11] + go_on(again, store, 100) == names


def test_its_decisions_are_read_with_what_all_candidates_would_tell(ended):
    store, _, _, names = ended
    found = decisions_of(store)
    assert [r["trial_id"] for r in found.rows] == [*names, None]
    assert (found.target, found.ended) == ("gamma_mu", "the FLOPs are spent")
    last = decisions(store.root)[-1]["estimate"]
    assert found.known[-1]["half"] == half_of(last) == (last["high"] - last["low"]) / 2
    flops, half = found.at_once
    assert flops == 4 * (4e8 + 8e8 + 1.6e9)
    assert 0 < half < 1
    assert half_of({"target": "mu@1e20", "low": 2.0, "high": 8.0}) == pytest.approx(np.log(2))


def test_loops_that_a_recurrence_fit_leaves_out_are_said():
    [words] = off_curve(tiny_plan(**KEYS).trials)
    assert words.startswith("mean_recurrence 2: with gradient through one loop alone")
    deeper = KEYS | {"depth": {"mean_backprop_depth": 2}}
    assert off_curve(tiny_plan(**deeper).trials) == []
    looped = tiny_plan(**KEYS | {"mean_recurrence": [3, 4, 8]})
    assert off_curve(looped.trials) == []


def test_a_run_that_no_law_fits_is_said_and_nothing_beyond_it_is_run(adaptive):
    """At the smallest budget 8 and 16 loops have hardly learnt to loop: 30 % above the law."""
    store, plan = adaptive

    def lost(trial):
        return trial.budget_flops == 4e8 and trial.mean_recurrence >= 8

    for trial in plan.trials:
        if trial.seed == 0 and (trial.budget_flops, trial.mean_recurrence) != (4e8, 16):
            finish(store, trial, 1.3 if lost(trial) else 1.0)
    said: list[str] = []
    waiting = Choosing(store, planned(store, plan), said.append, plan=plan)
    go_on(waiting, store, 2)
    lines = decisions(store.root)
    for line in lines:
        [run] = line["left_out"]
        assert (run["budget_flops"], run["mean_recurrence"]) == (4e8, 8)
        assert run["loss"] / run["expected"] == pytest.approx(1.3, abs=0.02)
        assert run["p"] < 1e-6
        assert (line["budget_flops"], line["mean_recurrence"]) not in ((4e8, 8), (4e8, 16))
    [sentence] = [x for x in said if x.startswith("left out of the fit: 8 loops at 4e+08 FLOPs")]
    assert table_of(lines)[0]["left_out"] == [sentence]


def test_no_decision_before_a_slot_is_free(adaptive):
    store, plan = adaptive
    waiting = choosing(store, plan, slots=2)
    first, second = [], []
    for at_work in (first, second):
        at_work.append(waiting.ready())
        waiting.trials.remove(at_work[0])
    assert waiting.ready() is None
    assert len(decisions(store.root)) == 2
    assert (
        len(chosen(store.root, plan, planned(store, plan))) == 3
    )  # with one that says: it goes on
    finish(store, first[0])
    waiting.asked_anew()
    assert waiting.ready().trial_id not in (first[0].trial_id, second[0].trial_id)


def test_a_line_that_a_kill_cut_short_is_no_decision(adaptive):
    store, plan = adaptive
    go_on(choosing(store, plan), store, 2)
    path = store.root / "design.jsonl"
    path.write_text(path.read_text() + '{"n": 3, "tri')
    assert len(decisions(store.root)) == 2


def test_decisions_of_a_plan_before_extend_are_none_of_this_one(adaptive):
    store, plan = adaptive
    line = {"n": 1, "trial_id": "0" * 12, "estimate": None, "reason": "replica"}
    (store.root / DECISIONS).write_text(json.dumps(line) + "\n")
    assert choosing(store, plan).ready().trial_id in plan.trial_ids


def test_smoke_runs_its_few_trials_as_they_are():
    plan = tiny_plan(**KEYS)
    assert is_adaptive(plan)
    assert not is_adaptive(shrink(plan))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "gamma_N"}, "the training law has no such quantity"),
        ({"total_flops": 1e8}, "total_flops: 1e+08 buys nothing"),
        ({"reach": 1}, "reach is 1; it must be a factor above 1"),
        ({"mean_recurrence": [1, 2, 4]}, "1 is no looped model"),
        ({"budgets_flops": [4e8]}, "at least 2 budgets_flops"),
        ({"trunks": True}, "has no trunks and no scheduler"),
    ],
)
def test_a_spec_that_cannot_be_adaptive_is_refused(changes, words):
    with pytest.raises(UserError, match=words.replace("+", r"\+")):
        tiny_plan(**KEYS | changes)


def test_candidates_with_too_few_steps_are_none():
    steps = {(t.budget_flops, t.mean_recurrence): t.n_steps for t in tiny_plan(**KEYS).trials}
    least = steps[4e8, 16] + 1
    kept = tiny_plan(**KEYS | {"min_steps": least}).trials
    expected = [cell for cell, n in steps.items() if n >= least]
    assert [(t.budget_flops, t.mean_recurrence) for t in kept[::2]] == expected
    assert (4e8, 16) not in expected
    with pytest.raises(UserError, match="min_steps is 100000"):
        tiny_plan(**KEYS | {"min_steps": 100_000})


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("E=1,X=1,x=0.5,Y=60,y=0.5", "an exponent needs two"),
        ("paper:140", "prior paper:140: no such published law; did you mean 'paper:140m'"),
        ("E=1,X=300", "Y is missing"),
        ("runs/none", "runs/none"),
    ],
)
def test_a_prior_that_is_none_is_refused_before_anything_is_written(tmp_path, prior, words):
    keys = KEYS | {"prior": prior}
    store = Store(tmp_path / "runs", "tiny")
    with pytest.raises(UserError, match=f"^tiny.yaml: .*{words}"):
        driver.run(tiny_plan(**keys), store, write_spec(tmp_path, **keys))
    assert not store.root.exists()


def test_the_hash_of_a_list_is_that_of_before_trials_had_seeds():
    keys = {"design": "list", "budgets_flops": None, "mean_recurrence": None}
    spec = {"trials": [{"mean_recurrence": 2, "budget_flops": 4e8}]}
    plain = tiny_plan(**keys, **spec).spec
    assert "seeds" not in json.dumps(plain.model_dump(exclude_none=True)["trials"])
    own = tiny_plan(**keys, trials=[{"mean_recurrence": 2, "budget_flops": 4e8, "seeds": [3, 5]}])
    assert [t.seed for t in own.trials] == [3, 5]
    assert plain.sha256 != own.spec.sha256
    assert spec_dict()["name"] == "tiny"


def test_a_trial_that_was_given_up_holds_no_place_and_the_end_says_so(adaptive):
    store, _ = adaptive
    plan = tiny_plan(**KEYS | {"total_flops": 3e9})
    said = []
    waiting = Choosing(store, planned(store, plan), said.append, plan=plan)
    lost = waiting.ready()
    waiting.trials.remove(lost)
    assert waiting.ready() is None  # its place is taken
    waiting.give_up(lost)
    waiting.asked_anew()
    made = go_on(waiting, store, 100)
    assert not waiting
    spent = sum(t.budget_flops for t in plan.trials if t.trial_id in [*made, lost.trial_id])
    assert 3e9 - 4e8 < spent <= 3e9
    assert said[-1].startswith(
        "tiny stops here: the FLOPs are spent, and 1 of the trials that it chose"
    )
    assert lost.trial_id in said[-1]
    again = choosing(store, plan)  # the next `parcae run`
    assert again.at_end() == ""
    assert again.ready().trial_id == lost.trial_id
    assert go_on(again, store, 100) == [lost.trial_id]
    assert decisions(store.root)[-1]["stop"] == "the FLOPs are spent"


def test_a_place_that_is_added_is_decided_for(adaptive):
    store, plan = adaptive
    places = [0]
    waiting = Choosing(store, planned(store, plan), plan=plan, slots=lambda: places[0])
    waiting.trials.remove(waiting.ready())  # a cluster without places grows for what waits
    assert waiting.ready() is None
    places[0] = 2
    assert waiting.ready() is not None

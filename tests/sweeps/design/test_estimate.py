import math

import pytest

from parcae_core.accounting.flops import eval_flops_per_token
from sweeps.cli.tables.plan import plan_data
from sweeps.design.estimate import (
    duration,
    longest_first,
    makespan,
    rate_of,
    validation_flops,
)
from sweeps.store import Store
from tests.support.tiny import SPEC, tiny_plan, write_spec
from tests.sweeps.test_store import good_result, put


def test_the_longest_starts_first_and_no_slot_waits():
    trials = tiny_plan().trials
    flops = [t.train_flops("exact") for t in longest_first(trials)]
    assert flops == sorted(flops, reverse=True)
    assert makespan([4, 3, 2, 2, 1], slots=2) == 6
    assert makespan([], slots=3) == 0
    assert makespan([5, 1], slots=8) == 5


def test_times_are_measured_when_something_is_finished_and_say_what_they_rest_on(tmp_path):
    plan = tiny_plan()
    store = Store(tmp_path, plan.name)
    assert rate_of(plan.trials, None).source.startswith("assumed")
    store.write_plan(plan, write_spec(tmp_path / "spec"))
    assert rate_of(plan.trials, store.result).source.startswith("assumed")
    trial = plan.trials[1]
    put(store, trial, good_result(trial))  # says 2 s
    rate = rate_of(plan.trials, store.result)
    assert rate.source == "measured: median of 1 finished trials of this sweep"
    assert rate.seconds(trial) == pytest.approx(2.0)
    assert rate_of(plan.trials, store.result, 5e9).source.startswith("given")
    data = plan_data(plan, store, cpus=2)
    assert data["totals"]["finished"] == 1
    assert data["totals"]["left_s"] < sum(t["estimated_s"] for t in data["trials"])


def test_an_unknown_gpu_has_no_time_until_one_is_given(tmp_path):
    plan = tiny_plan(resources={"cpus": 1, "gpus": 1})
    store = Store(tmp_path, plan.name)
    assert rate_of(plan.trials, None).seconds(plan.trials[0]) is None
    data = plan_data(plan, store, cpus=8, gpus=2, flops_per_s=1e6, price_per_gpu_hour=3.0)
    seconds = [t["estimated_s"] for t in data["trials"]]
    assert data["totals"]["gpu_hours"] == pytest.approx(sum(seconds) / 3600)
    assert data["totals"]["price"] == pytest.approx(3 * sum(seconds) / 3600)
    assert data["totals"]["makespan_s"] < sum(seconds)
    assert plan_data(plan, store, cpus=8, gpus=0, flops_per_s=1e6)["totals"]["makespan_s"] is None
    alone = plan_data(plan, store, gpus=64, flops_per_s=1e6)[
        "totals"
    ]  # their cores are taken to be there
    assert (alone["cpus"], alone["makespan_s"]) == (64, max(seconds))


def test_validation_on_the_way_takes_time_and_no_training_flops():
    plain = tiny_plan(budgets_flops=[8e8], mean_recurrence=[2])
    [trial] = plain.trials
    [measuring] = tiny_plan(
        budgets_flops=[8e8], mean_recurrence=[2], evaluation=SPEC["evaluation"] | {"every": "25%"}
    ).trials
    assert measuring.train_flops("exact") == trial.train_flops("exact")
    points = math.ceil(trial.n_steps / measuring.evaluation.every)
    assert points in (4, 5)
    tokens = points * 4 * 16  # sequences of 16 tokens
    more = rate_of([measuring], None, 1e6).seconds(measuring)
    more -= rate_of([trial], None, 1e6).seconds(trial)
    assert more == pytest.approx(tokens * eval_flops_per_token(trial.model, 2, 16) / 1e6)


def test_a_branch_measures_only_what_its_trunk_has_not():
    plan = tiny_plan(
        trunks=True, mean_recurrence=[2], evaluation=SPEC["evaluation"] | {"every": 10}
    )
    short, long = sorted(plan.trials, key=lambda t: t.n_steps)
    assert long.parent is not None
    share = validation_flops(long) / validation_flops(long, separate=True)
    points = math.ceil(long.n_steps / 10)
    assert share == pytest.approx((points - long.shared_steps // 10) / points)
    totals = plan_data(plan, Store("nowhere", plan.name), cpus=2)["totals"]
    made = validation_flops(short) + validation_flops(long)
    assert totals["validation_flops"] == pytest.approx(made)


def test_durations_are_said_in_the_unit_that_suits_them():
    assert [duration(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]

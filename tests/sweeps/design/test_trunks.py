"""What trunks share: the planner's tree, its FLOPs, and what cannot be shared."""

import pytest

from parcae_core.errors import UserError
from sweeps.cli.tables.plan import plan_data
from sweeps.design.estimate import longest_first
from sweeps.design.smoke import shrink
from sweeps.design.trunks import branches_of
from sweeps.store import Store
from tests.support.tiny import tiny_plan

DOUBLING = [1e10 * 2**i for i in range(6)]


def planned(cooldown=0.5, budgets=DOUBLING, **changes):
    optim = {"cooldown_share": cooldown}
    return tiny_plan(budgets_flops=list(budgets), optim=optim, trunks=True, **changes).trials


@pytest.mark.parametrize(
    ("cooldown", "n_budgets", "saved"),
    # of a trunk of k budgets by factors of 2, of 2^k - 1 in all: each but the last is repeated at the
    # constant rate by the next one, which is (1 - cooldown) (2^(k-1) - 1)
    [(0.5, 2, 1 / 6), (0.5, 6, 31 / 126), (0.2, 6, 0.8 * 31 / 63)],
)
def test_budgets_by_factors_of_two_save_what_arithmetic_says(cooldown, n_budgets, saved):
    trials = planned(cooldown, DOUBLING[:n_budgets])
    separate = sum(t.train_flops("paper") for t in trials)
    made = sum(t.own_flops("paper") for t in trials)
    assert 1 - made / separate == pytest.approx(saved, rel=2e-3)


def test_each_budget_begins_from_the_next_smaller_one_of_its_kind():
    trials = planned(budgets=[4e9, 1e9, 2e9], seeds=[0, 1])
    by_id = {t.trial_id: t for t in trials}
    roots = [t for t in trials if t.parent is None]
    assert [(t.budget_flops, t.seed) for t in roots] == [(1e9, 0), (1e9, 1)] * 2
    for trial in trials:
        if trial.parent is not None:
            trunk = by_id[trial.parent.trial_id]
            assert trunk.budget_flops == trial.budget_flops / 2
            assert (trunk.seed, trunk.mean_recurrence) == (trial.seed, trial.mean_recurrence)
            assert trial.parent.step == trunk.n_steps - trunk.n_steps // 2
    assert sum(len(b) for b in branches_of(trials).values()) == len(trials) - len(roots)
    assert branches_of(tiny_plan().trials) == {}


def test_what_is_trained_does_not_depend_on_trunks():
    optim = {"weight_decay_falls": "cooldown"}
    separate = tiny_plan(optim=optim)
    assert [t.trial_id for t in planned(budgets=[4e8, 8e8])] == list(separate.trial_ids)
    assert not set(separate.trial_ids) & set(tiny_plan().trial_ids)  # the published schedule


def test_a_trunk_starts_before_shorter_trials_without_branches():
    trials = planned(budgets=[1e9, 8e9], mean_recurrence=[1, 2])
    order = longest_first(trials)
    assert order[0].parent is None or order[1].parent is None
    for trial in order:
        if trial.parent is not None:
            trunk = next(t for t in order if t.trial_id == trial.parent.trial_id)
            lone = [t for t in order if t.train_flops("exact") < trial.train_flops("exact")]
            assert all(
                order.index(trunk) < order.index(t)
                for t in lone
                if t.parent is None
                and t.mean_recurrence != trunk.mean_recurrence
                and t.train_flops("exact") < trunk.train_flops("exact")
            )


def test_the_plan_says_what_is_made_and_what_separate_runs_would_make(tmp_path):
    plan = tiny_plan(budgets_flops=[4e8, 8e8], trunks=True)
    data = plan_data(plan, Store(tmp_path, plan.name), cpus=1, flops_per_s=1e9)
    totals = data["totals"]
    assert totals["own_flops_paper"] < 0.85 * totals["train_flops_paper"]
    first, branch = (t for t in data["trials"] if t["mean_recurrence"] == 2)
    assert (branch["parent"], first["parent"]) == (first["trial_id"], None)
    share = 1 - branch["shared_steps"] / branch["n_steps"]
    assert branch["own_flops"]["exact"] == pytest.approx(share * branch["train_flops"]["exact"])
    assert branch["estimated_s"] == branch["own_flops"]["exact"] / 1e9
    assert totals["left_s"] == pytest.approx(totals["own_flops_exact"] / 1e9)


def test_no_branch_is_expected_to_end_before_its_trunk_and_it_could(tmp_path):
    plan = tiny_plan(budgets_flops=[4e8, 8e8], mean_recurrence=[2], trunks=True)
    data = plan_data(plan, Store(tmp_path, plan.name), cpus=8, flops_per_s=1e9)
    longest = max(t["train_flops"]["exact"] for t in data["trials"])
    assert data["totals"]["makespan_s"] == longest / 1e9


def test_a_smoke_run_has_trunks_too():
    plan = shrink(tiny_plan(budgets_flops=[4e9, 8e9], mean_recurrence=[2, 3], trunks=True))
    shared = [t for t in plan.trials if t.parent]
    assert shared
    assert {t.parent.trial_id for t in shared} <= set(plan.trial_ids)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets_flops": [4e8]}, "no two trials differ in length alone"),
        ({"optim": {"cooldown_share": 1}}, "optim.cooldown_share is 1"),
        ({"optim": {"weight_decay_falls": "run"}}, "need optim.weight_decay_falls: cooldown"),
        ({"depth": {"kind": "curriculum", "ramp_steps": 4}}, "kind: curriculum do; leave one"),
        (
            {
                "design": "stability",
                "scheduler": "asha",
                "budgets_flops": None,
                "n_tokens": 1e5,
                "mean_recurrence": 2,
                "learning_rates": [1e-3],
                "variants": {"rdm": {}},
            },
            "asha ends some before",
        ),
        ({"trunks": "yes"}, "trunks is 'yes'; it must be true or false"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_sentence(changes, words):
    with pytest.raises(UserError, match=words) as refused:
        tiny_plan(**({"trunks": True} | changes))
    assert len(str(refused.value).splitlines()) == 1


def test_specs_without_trunks_keep_their_hash():
    plan = tiny_plan()
    assert plan.spec.sha256 == tiny_plan(trunks=False).spec.sha256
    assert plan.spec.sha256 != tiny_plan(trunks=True).spec.sha256
    assert "weight_decay_falls" not in str(plan.spec.model_dump(mode="json"))

"""The shipped specs mean exactly what their comments say."""

import itertools
from pathlib import Path

import pytest

from parcae_core.trial import DataConfig
from sweeps.design.corpora import resolve_data
from sweeps.design.plan import plan
from sweeps.design.spec import load_spec

SPECS = Path(__file__).parents[3] / "sweeps" / "specs"


def trials(name: str):
    path = SPECS / f"{name}.yaml"
    spec = load_spec(path)
    if spec.data.tokenizer == "characters" or spec.design == "grid":  # no text, or several corpora
        return plan(spec, resolve_data(spec, str(path)), where=str(path)).trials
    vocabulary = 259 if spec.data.tokenizer == "bytes" else int(spec.data.tokenizer[4:])
    data = DataConfig(
        corpus=spec.data.corpus,
        fingerprint="f" * 64,
        tokenizer=spec.data.tokenizer,
        vocab_size=vocabulary,
    )
    return plan(spec, data, where=str(path)).trials


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_spec_is_planned_under_its_own_name(path):
    assert trials(path.stem)
    assert load_spec(path).name == path.stem


@pytest.mark.parametrize(
    ("name", "budgets", "n_params", "n_baseline"),
    [
        ("paper-140m-isoflop", [1e18, 2e18, 4e18, 8e18, 16e18, 64e18], 144_323_136, 143_141_184),
        ("paper-370m-isoflop", [32e18, 64e18, 128e18], 388_003_328, 385_903_104),
    ],
)
def test_isoflop_specs_are_the_papers_trials(name, budgets, n_params, n_baseline):
    planned = trials(name)
    looped = [t for t in planned if t.depth is not None]
    assert [(t.budget_flops, t.mean_recurrence) for t in looped] == [
        (c, mu) for c in budgets for mu in (2, 4, 6, 8, 10, 12)
    ]
    assert {t.cost.n_params for t in looped} == {n_params}
    baselines = [t for t in planned if t.depth is None]
    assert [t.budget_flops for t in baselines] == budgets
    assert {t.cost.n_params for t in baselines} == {n_baseline}
    assert {t.batch_tokens for t in planned} == {524_288}
    assert {t.depth.mean_backprop_depth / t.depth.mean_recurrence for t in looped} == {0.5}
    for t in looped:  # the unified law's runs are these, read out at its depths
        assert {1, 2, 4, 6, 8, 10, 12, 16, 20, 24} == set(t.evaluation.loops)


def test_the_test_time_spec_holds_tokens_fixed():
    planned = trials("paper-140m-test-time")
    assert [t.mean_recurrence for t in planned] == [2, 4, 6, 8, 10, 12]
    assert {t.n_tokens for t in planned} == {21_362 * 524_288}  # whole steps of 11.2e9
    assert {t.evaluation.loops for t in planned} == {tuple(range(1, 25))}
    held_out = trials("paper-370m-held-out")
    assert [(t.mean_recurrence, t.n_tokens) for t in held_out] == [(8, 56_457 * 524_288)]


def test_the_stability_spec_compares_three_ways_at_five_rates():
    planned = trials("paper-stability")
    assert len(planned) == 15
    assert {(t.mean_recurrence, t.mean_backprop_depth) for t in planned} == {(16, 8)}
    # RDM-100M is the concatenation with norms on the residual sums
    assert {t.cost.n_params for t in planned if t.model.residual_norm} == {114_242_560}


def test_the_iso_depth_spec_keeps_depth_equal():
    depths = {
        t.model.n_prelude + t.mean_recurrence * t.model.n_core + t.model.n_coda
        for t in trials("iso-depth")
    }
    assert depths == {12}


def test_the_demo_is_two_seeds_of_the_careful_sweep_and_fits_its_minutes():
    planned = trials("demo")
    assert {t.trial_id for t in planned} < {t.trial_id for t in trials("state-reveals")}
    assert len({t.budget_flops for t in planned}) >= 5
    assert {t.mean_recurrence for t in planned} > {1}
    # 8 minutes on two quiet cores; small steps leave about 12 of the 17 GFLOP/s that a core makes
    assert sum(t.train_flops("exact") for t in planned) < 2 * 480 * 1.2e10


def test_the_law_for_one_gpu_fits_its_sitting_and_reads_out_every_depth():
    planned = trials("gpu-law")
    budgets = sorted({t.budget_flops for t in planned})
    assert len(budgets) == 5
    assert all(2 <= b / a <= 3 for a, b in itertools.pairwise(budgets))
    assert {t.mean_recurrence for t in planned} == {1, 2, 3, 4, 6, 8, 12}
    assert 2.5e17 < sum(t.train_flops("exact") for t in planned) < 3e17
    looped = [t for t in planned if t.depth is not None]
    assert {t.evaluation.loops for t in looped} == {tuple(range(1, 25))}
    [first] = trials("gpu-law-first")
    assert (first.budget_flops, first.mean_recurrence) == (budgets[-1], 4)
    assert first.trial_id in {t.trial_id for t in planned}  # its result is taken over


def test_the_stability_spec_for_one_gpu_crosses_rates_and_injections():
    planned = trials("gpu-stability")
    assert {t.model.injection for t in planned} == {"diagonal", "concat", "add"}
    assert len(planned) == 3 * len({t.optim.muon_lr for t in planned}) == 18
    assert sum(t.train_flops("exact") for t in planned) < 3e16

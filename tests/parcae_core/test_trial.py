"""A trial's identity: what is trained, and nothing else. Config rules refuse what cannot run."""

import dataclasses
import json

import numpy as np
import pytest

from parcae_core.accounting.flops import FLOPS_RULES, train_flops_per_token
from parcae_core.config import ModelConfig
from parcae_core.depth import CurriculumDepth, PoissonDepth
from parcae_core.presets import preset
from parcae_core.trial import (
    DataConfig,
    EvalConfig,
    OptimConfig,
    Parent,
    Resources,
    Trial,
    planned_to_dict,
    trial_from_dict,
    trial_to_dict,
)


def make(**changes) -> Trial:
    base = {
        "preset": "nano",
        "model": preset("nano"),
        "depth": PoissonDepth(mean_recurrence=4, mean_backprop_depth=2),
        "data": DataConfig(
            corpus="python-stdlib", fingerprint="f" * 64, tokenizer="bytes", vocab_size=259
        ),
        "optim": OptimConfig(),
        "evaluation": EvalConfig(loops=(1, 2, 4), n_sequences=16),
        "n_steps": 100,
        "batch_sequences": 8,
        "context": 128,
        "seed": 0,
        "data_seed": 0,
    }
    return Trial(**(base | changes))


@pytest.mark.parametrize("parent", [None, Parent(trial_id="0" * 12, step=50)])
def test_json_round_trip_keeps_the_identity(parent):
    trial = make(parent=parent)
    again = trial_from_dict(json.loads(json.dumps(trial_to_dict(trial))))
    assert again == trial
    assert again.trial_id == trial.trial_id


def test_the_cost_is_stored_with_the_trial_and_changes_no_identity():
    trial = make(resources=Resources(gpus=1), precision="bfloat16")
    stored = json.loads(json.dumps(planned_to_dict(trial), sort_keys=True))
    again = trial_from_dict(stored)
    assert again._cost == trial.cost
    assert list(again.cost.train_flops) == ["paper", "code", "exact"]
    assert again.trial_id == make(precision="bfloat16").trial_id
    # read and not counted again, unless another version counted it
    stored["cost"]["n_params"] += 1
    assert trial_from_dict(stored).cost.n_params == trial.cost.n_params + 1
    stored["cost"]["version"] = 0
    assert trial_from_dict(stored).cost == trial.cost
    del stored["cost"]
    assert trial_from_dict(stored).cost == trial.cost


def test_a_changed_trial_does_not_keep_the_cost_of_the_old():
    trial = make()
    assert trial.cost.train_flops["paper"] > 0
    longer = dataclasses.replace(trial, n_steps=2 * trial.n_steps)
    assert longer.train_flops("paper") == 2 * trial.train_flops("paper")


def test_labels_budget_and_resources_are_not_part_of_the_identity():
    trial = make()
    same = make(
        preset="mine",
        budget_flops=1e12,
        budget_rule="code",
        resources=Resources(cpus=2, gpus=1),
        parent=Parent(trial_id="0" * 12, step=20),
        data=dataclasses.replace(trial.data, corpus="elsewhere"),
    )
    assert same.trial_id == trial.trial_id


def test_ids_are_those_of_before_trunks():
    # of the same trial at ff13214
    assert make().trial_id == "abe20c4fe161"


def test_a_branch_counts_its_own_steps_and_what_a_separate_run_costs():
    branch = make(parent=Parent(trial_id="0" * 12, step=30))
    assert branch.train_flops("paper") == make().train_flops("paper")
    assert branch.own_flops("paper") == pytest.approx(0.7 * branch.train_flops("paper"), rel=1e-12)
    assert make().own_flops("exact") == make().train_flops("exact")


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_a_curriculum_has_spent_what_its_first_steps_cost(shape):
    depth = CurriculumDepth(
        mean_recurrence=24, mean_backprop_depth=1, ramp_steps=30, n_steps=40, shape=shape
    )
    trial = make(depth=depth, n_steps=40)
    for rule in FLOPS_RULES:
        per_step = [
            train_flops_per_token(trial.model, depth.at(i), trial.context, rule).total
            for i in range(40)
        ]
        spent = [trial.spent(k)[rule] for k in range(41)]
        by_step = np.cumsum([0.0, *per_step]) * trial.batch_tokens
        assert spent == pytest.approx(by_step, rel=1e-12)
        assert spent[0] == 0
        assert spent[40] == trial.train_flops(rule)
    branch = dataclasses.replace(trial, parent=Parent(trial_id="0" * 12, step=20))
    assert branch.own_flops("exact") > 0.6 * branch.train_flops("exact")


def test_any_other_scheme_has_spent_its_share_of_the_steps_to_the_digit():
    trial = make()
    for k in range(trial.n_steps + 1):
        share = k / trial.n_steps
        assert trial.spent(k) == {r: f * share for r, f in trial.cost.train_flops.items()}


def test_a_curriculum_of_another_length_or_a_longer_ramp_is_refused():
    for ramp, n_steps in ((30, 41), (41, 40)):
        depth = CurriculumDepth(
            mean_recurrence=4, mean_backprop_depth=1, ramp_steps=ramp, n_steps=n_steps
        )
        with pytest.raises(ValueError, match=f"ramp_steps={ramp} of n_steps={n_steps}"):
            make(depth=depth, n_steps=40)


CHANGES = {
    "model": preset("nano").replace(d_ff=96),
    "depth": PoissonDepth(mean_recurrence=4, mean_backprop_depth=3),
    "data": DataConfig(corpus="c", fingerprint="e" * 64, tokenizer="bytes", vocab_size=259),
    "optim": OptimConfig(muon_lr=1e-3),
    "evaluation": EvalConfig(loops=(1, 2), n_sequences=16),
    "n_steps": 101,
    "batch_sequences": 9,
    "context": 64,
    "seed": 1,
    "data_seed": 1,
    "precision": "bfloat16",
}


@pytest.mark.parametrize("field", CHANGES)
def test_everything_that_is_trained_is_part_of_the_identity(field):
    assert make(**{field: CHANGES[field]}).trial_id != make().trial_id


def test_every_field_of_a_trial_is_covered_here():
    labels = {"preset", "budget_flops", "budget_rule", "resources", "parent", "_cost", "_trial_id"}
    assert {f.name for f in dataclasses.fields(Trial)} == set(CHANGES) | labels


def test_planned_flops_are_tokens_times_the_rule():
    trial = make()
    assert trial.n_tokens == 100 * 8 * 128
    flops = trial.cost.train_flops
    assert set(flops) == {"paper", "code", "exact"}
    # 1/1/1 layers of width 32, context 128: written out by hand for the paper's rule
    layers = 2 * (12 * 32**2 + 2 * 32 + 2 * 32)  # prelude and coda: matrices, norms, gates
    once = layers + 2 * 32**2 + 4 * 32  # B and C; a_log, dt_bias, two norms
    core = 12 * 32**2 + 2 * 32
    attention = 4 * 32 * 128
    per_token = 6 * (once + 264 * 32) + (2 * 4 + 4 * 2) * core + (6 + 4 + 2 * 2) * attention
    assert flops["paper"] == per_token * trial.n_tokens


@pytest.mark.parametrize(
    ("make_bad", "words"),
    [
        (lambda: make(n_steps=0), "n_steps is 0"),
        (lambda: make(context=256), "longer than the model's 128"),
        (lambda: make(parent=Parent(trial_id="0" * 12, step=51)), "after 1 to 50 of its 100 steps"),
        (lambda: make(depth=None), "a looped model needs one"),
        (
            lambda: make(
                data=DataConfig(corpus="c", fingerprint="f", tokenizer="bpe-512", vocab_size=512)
            ),
            "512 ids",
        ),
        (lambda: Parent(trial_id="../" * 4, step=1), "must be 12 hexadecimal digits"),
        (lambda: EvalConfig(loops=(2, 1), n_sequences=1), "rising numbers"),
        (lambda: EvalConfig(loops=(0, 1), n_sequences=1), "rising numbers"),
        (lambda: OptimConfig(cooldown_share=1.5), "cooldown_share is 1.5"),
        (lambda: OptimConfig(muon_lr=0.0), "muon_lr is 0"),
        (lambda: Resources(gpus=1.5), "only whole GPUs"),
        (lambda: preset("170m"), "unknown preset '170m'"),
        (lambda: preset("nano").replace(n_head=3), "whole, even head width"),
        (lambda: preset("nano").replace(injection="add", d_state=64), "injection='add'"),
        (lambda: preset("nano").replace(injection="none", d_state=64), "needs a looped state"),
        (lambda: preset("nano").replace(readout=False, d_state=64), "keep the readout"),
        (lambda: preset("nano").replace(injection="diag"), "must be one of diagonal"),
        (lambda: preset("nano").replace(n_kv_head=3), "must divide n_head"),
        (lambda: preset("nano").replace(d_model=16), "value_gate_width"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(make_bad, words):
    with pytest.raises(ValueError, match=words):
        make_bad()


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().n_steps = 3
    assert isinstance(preset("nano"), ModelConfig)

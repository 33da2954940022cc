from typing import get_args

import pytest
import yaml

from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.depth import CurriculumDepth, DepthKind, DepthScheme, FixedDepth, PoissonDepth
from parcae_core.errors import UserError
from parcae_core.trial import trial_from_dict, trial_to_dict
from sweeps.design.corpora import resolve_data
from sweeps.design.plan import plan
from sweeps.design.smoke import shrink
from sweeps.design.spec import load_spec, parse_spec
from sweeps.records import planned_columns
from sweeps.runner.trainable import data_key
from tests.support.tiny import DATA, SPEC, spec_dict, tiny_plan, write_spec

SIZED = {"budgets_flops": None, "n_tokens": 6400}


def problems(**changes) -> list[str]:
    with pytest.raises(UserError) as error:
        tiny_plan(**changes)
    return str(error.value).splitlines()


def test_isoflop_buys_whole_steps_that_fit_the_budget():
    trials = tiny_plan().trials
    assert [(t.budget_flops, t.mean_recurrence) for t in trials] == [
        (4e8, 1), (4e8, 2), (8e8, 1), (8e8, 2),
    ]  # fmt: skip
    for t in trials:
        one_step = t.train_flops("paper") / t.n_steps
        assert t.train_flops("paper") <= t.budget_flops < t.train_flops("paper") + one_step


def test_recurrence_one_is_the_transformer_unless_asked_otherwise():
    one = tiny_plan(mean_recurrence=[1]).trials[0]
    assert one.model.is_transformer
    assert one.depth is None
    assert one.evaluation.loops == (1,)
    looped = tiny_plan(mean_recurrence=[1], recurrence_one="parcae").trials[0]
    assert looped.depth == FixedDepth(mean_recurrence=1, mean_backprop_depth=1)


def test_keys_that_only_a_loop_has_do_not_reach_the_transformer():
    model = {"d_model": 32, "injection": "concat", "readout": False, "prelude_norm": False}
    one, two = tiny_plan(model=model, budgets_flops=[1e10]).trials
    assert one.model.injection == "none"
    assert two.model.injection == "concat"


def test_the_depth_rule_and_the_trials_own_depth_in_the_evaluation():
    t = tiny_plan(mean_recurrence=[5], depth={"split": "additive"}).trials[0]
    assert t.depth == PoissonDepth(mean_recurrence=5, mean_backprop_depth=3, split="additive")
    assert t.evaluation.loops == (1, 2, 3, 5)
    full = tiny_plan(mean_recurrence=[5], depth={"mean_backprop_depth": "mu"}).trials[0]
    assert full.mean_backprop_depth == 5


RAMP = {"kind": "curriculum", "ramp_share": 0.5}


@pytest.mark.parametrize("scheme", get_args(DepthScheme))
def test_a_spec_can_ask_for_every_scheme_there_is(scheme):
    assert scheme.kind in get_args(DepthKind)
    ramp = {"ramp_share": 0.5} if scheme is CurriculumDepth else {}
    planned = tiny_plan(mean_recurrence=[4], depth={"kind": scheme.kind} | ramp)
    assert {type(t.depth) for t in planned.trials} == {scheme}


@pytest.mark.parametrize("rule", ["paper", "code", "exact"])
@pytest.mark.parametrize(
    "ramp", [{"ramp_share": 0.5}, {"ramp_share": 1.0, "ramp_shape": "1-sqrt"}, {"ramp_steps": 30}]
)
def test_a_curriculum_buys_the_steps_that_its_shallow_beginning_pays_for(rule, ramp):
    plain = tiny_plan(mean_recurrence=[8], budgets_flops=[4e9], budget_rule=rule).trials[0]
    depth = {"kind": "curriculum"} | ramp
    grown = tiny_plan(
        mean_recurrence=[8], budgets_flops=[4e9], budget_rule=rule, depth=depth
    ).trials[0]
    assert isinstance(grown.depth, CurriculumDepth)
    assert grown.depth.n_steps == grown.n_steps > plain.n_steps
    assert grown.train_flops(rule) <= grown.budget_flops
    assert grown.train_flops(rule) > grown.budget_flops * (1 - 1.5 / grown.n_steps)
    assert grown.trial_id != plain.trial_id
    share = ramp.get("ramp_share")
    expected = ramp["ramp_steps"] if share is None else round(share * grown.n_steps)
    assert grown.depth.ramp_steps == expected


def test_a_curriculum_that_does_nothing_or_does_not_fit_is_refused():
    [message] = problems(mean_recurrence=[4], depth=RAMP | {"mean_backprop_depth": "mu"})
    assert "there are no steps without gradient that could grow" in message
    long = {"kind": "curriculum", "ramp_steps": 10**6}
    [message] = problems(mean_recurrence=[4], budgets_flops=[4e9], depth=long)
    assert "depth.ramp_steps is 1000000, and 4e9 FLOPs buy fewer steps" in message
    [message] = problems(mean_recurrence=[4], depth=long, design="test_time", **SIZED)
    assert (
        "depth.ramp_steps is 1000000 and the training at mean_recurrence=4 has 100 steps" in message
    )
    one = tiny_plan(mean_recurrence=[1], recurrence_one="parcae", depth=RAMP).trials[0]
    assert one.depth == FixedDepth(mean_recurrence=1, mean_backprop_depth=1)


@pytest.mark.parametrize("budget", [6e8, 8e8, 1.2e9])
def test_a_ramp_that_the_budget_does_not_pay_for_is_refused(budget):
    ramp = {"kind": "curriculum", "ramp_steps": 200, "mean_backprop_depth": 1}
    looped = {
        "mean_recurrence": [16],
        "depth": ramp,
        "evaluation": {"loops": [1], "n_sequences": 4},
    }
    [problem] = problems(budgets_flops=[budget], **looped)
    assert "depth.ramp_steps is 200" in problem
    assert "buy fewer steps" in problem
    trial = tiny_plan(budgets_flops=[4e9], **looped).trials[0]
    assert trial.n_steps > 200
    assert 0.99 * 4e9 < trial.train_flops("paper") <= 4e9


def test_a_smoke_of_a_curriculum_keeps_its_shape():
    plan_ = tiny_plan(mean_recurrence=[4, 8], budgets_flops=[4e9], depth=RAMP)
    for trial in shrink(plan_).trials:
        assert trial.depth.n_steps == trial.n_steps
        assert trial.depth.ramp_steps == pytest.approx(trial.n_steps / 2, abs=1)


@pytest.mark.parametrize(
    ("every", "steps"), [("10%", 9), ("2.5 %", 2), ("0.1%", 1), (30, 30), ("1e2", 100)]
)
def test_validation_on_the_way_is_a_whole_number_of_steps(every, steps):
    measuring = {"evaluation": SPEC["evaluation"] | {"every": every}}
    trial = tiny_plan(**measuring).trials[0]
    assert (trial.n_steps, trial.evaluation.every) == (86, steps)
    small = shrink(tiny_plan(**measuring)).trials[0]
    assert small.n_steps == 8
    assert small.evaluation.every == max(1, round(steps * 8 / 86))
    assert tiny_plan(**measuring).spec.sha256 != tiny_plan().spec.sha256
    assert "every" not in str(
        tiny_plan().spec.model_dump(mode="json")
    )  # old sweeps keep their hash


def test_seeds_repeat_trials_and_labels_do_not_change_them():
    seeds = tiny_plan(seeds=[0, 7]).trials
    assert len(seeds) == 8
    assert len({t.trial_id for t in seeds}) == 8
    other = tiny_plan(name="other", resources={"cpus": 2}, wandb={"project": "p"}, min_steps=6)
    assert other.trial_ids == tiny_plan().trial_ids


def test_processes_follow_from_gpus_and_have_to_share_the_batch():
    several = tiny_plan(resources={"gpus": 4})
    assert {t.resources.processes for t in several.trials} == {4}
    assert several.trial_ids == tiny_plan().trial_ids
    half = tiny_plan(resources={"gpus": 0.5}).trials[0].resources
    assert (half.processes, half.threads) == (1, 1)
    [message] = problems(resources={"gpus": 3})
    assert message == (
        "tiny.yaml: batch_sequences=4 does not divide among 3 processes; make it a multiple of that, "
        "or change resources.processes"
    )


def test_gradient_through_more_loops_than_run_is_refused():
    assert problems(mean_recurrence=[2, 8], depth={"mean_backprop_depth": 4}) == [
        "tiny.yaml: depth.mean_backprop_depth is 4 at mean_recurrence=2; gradient flows through at "
        "most mean_recurrence steps. Lower it, or use 'ceil(mu/2)' as the paper does."
    ]


def test_a_budget_that_buys_too_few_steps_is_refused_and_the_advice_suffices():
    messages = problems(min_steps=100)
    assert len(messages) == 2
    assert messages[0] == (
        "tiny.yaml: 4e8 FLOPs buy 86 steps at mean_recurrence=1 (batch_tokens=64); min_steps is "
        "100. Raise the budget to 4.7e8 or lower batch_sequences."
    )
    assert (
        tiny_plan(min_steps=100, budgets_flops=[4.7e8], mean_recurrence=[1]).trials[0].n_steps
        >= 100
    )


def test_what_the_model_refuses_names_the_file():
    [message] = problems(model={"d_model": 15})
    assert message.startswith("tiny.yaml: ")
    assert "head" in message
    [message] = problems(model={"vocab_size": 100, "d_model": 32}, budgets_flops=[1e10])
    assert "the tokenizer has 259 ids and the model only 100" in message
    [message] = problems(preset=None)
    assert "without a preset the model needs" in message


def test_the_same_training_twice_is_refused():
    assert "two entries mean the same training" in problems(budgets_flops=[4e8, 4e8])[0]


def test_fixed_tokens_for_test_time():
    trials = tiny_plan(design="test_time", **SIZED).trials
    assert [(t.n_tokens, t.budget_flops) for t in trials] == [(6400, None)] * 2
    [message] = problems(design="test_time", **(SIZED | {"n_tokens": 64}))
    assert "64 tokens are 1 steps of batch_tokens=64; min_steps is 5" in message


def test_stability_crosses_variants_with_learning_rates():
    variants = {"parcae": {}, "rdm": {"injection": "concat", "readout": False}}
    changes = SIZED | {"mean_recurrence": 4, "learning_rates": ["2e-4", 4e-4], "variants": variants}
    trials = tiny_plan(design="stability", **changes).trials
    assert [(t.preset, t.model.injection, t.optim.muon_lr) for t in trials] == [
        ("nano/parcae", "diagonal", 2e-4),
        ("nano/parcae", "diagonal", 4e-4),
        ("nano/rdm", "concat", 2e-4),
        ("nano/rdm", "concat", 4e-4),
    ]
    assert all(t.optim.adamw_lr == t.optim.muon_lr for t in trials)


def test_iso_depth_keeps_the_unrolled_depth():
    changes = {
        "mean_recurrence": [1, 2, 4],
        "unrolled_core_layers": 4,
        "widths": [16, 32],
        "head_width": 8,
        "budgets_flops": [1e10],
        "model": {"value_gate_width": 4, "context": 16},
        "depth": {"kind": "fixed"},
    }
    trials = tiny_plan(design="iso_depth", **changes).trials
    assert [(t.model.d_model, t.mean_recurrence, t.model.n_core) for t in trials] == [
        (16, 1, 4), (16, 2, 2), (16, 4, 1), (32, 1, 4), (32, 2, 2), (32, 4, 1),
    ]  # fmt: skip
    assert {t.model.d_model // t.model.n_head for t in trials} == {8}
    [message] = problems(design="iso_depth", **(changes | {"mean_recurrence": [3]}))
    assert "3 does not divide unrolled_core_layers=4" in message


def test_grid_and_list_vary_what_they_name():
    axes = {"mean_recurrence": [2, 4], "optim.muon_lr": ["4e-3", 8e-3], "model.d_ff": [32]}
    changes = {"budgets_flops": None, "mean_recurrence": None, "base": {"n_tokens": 6400}}
    grid = tiny_plan(design="grid", axes=axes, **changes).trials
    assert [(t.mean_recurrence, t.optim.muon_lr) for t in grid] == [
        (2, 4e-3), (2, 8e-3), (4, 4e-3), (4, 8e-3),
    ]  # fmt: skip
    trials = [{"mean_recurrence": 2}, {"mean_recurrence": 2, "budget_flops": "1e9"}]
    listed = tiny_plan(design="list", trials=trials, **changes).trials
    assert [(t.n_tokens, t.budget_flops) for t in listed] == [
        (6400, None),
        (listed[1].n_tokens, 1e9),
    ]


def test_a_grid_names_a_wrong_axis_and_a_list_a_missing_length():
    changes = {"budgets_flops": None, "mean_recurrence": None}
    [message] = problems(design="grid", axes={"optim.muon_rate": [1]}, **changes)
    assert message == "tiny.yaml: axes: unknown key 'muon_rate' in optim; did you mean 'muon_lr'?"
    found = problems(design="list", trials=[{"mean_recurrence": 2}, {"n_tokens": 1000}], **changes)
    assert [m.split(": ", 1)[1] for m in found] == [
        "trial 1 has neither budget_flops nor n_tokens; give one.",
        "trial 2 has no mean_recurrence; give it here or in base.",
    ]


def test_a_thousand_trials_are_planned_quickly():
    import time

    began = time.process_time()
    spec = parse_spec(spec_dict(mean_recurrence=list(range(1, 101)), budgets_flops=[
        1e10 * (i + 1) for i in range(10)
    ]), "big.yaml")  # fmt: skip
    planned = plan(spec, DATA)
    assert len(planned.trial_ids) == 1000
    assert time.process_time() - began < 3.0  # the bar of the whole command, on two cores


def test_windows_give_each_budget_its_own_loops():
    trials = tiny_plan(mean_recurrence={4e8: [1, 2], 8e8: [2, 3, 4]}).trials
    found = [(t.budget_flops, t.mean_recurrence) for t in trials]
    assert found == [(4e8, 1), (4e8, 2), (8e8, 2), (8e8, 3), (8e8, 4)]


def test_a_generated_corpus_brings_a_vocabulary_as_small_as_it_is():
    spec = parse_spec(spec_dict(data={"corpus": {"name": "state-reveals"}}), "s.yaml")
    trial = plan(spec, resolve_data(spec, "s.yaml")).trials[0]
    assert (trial.model.vocab_size, trial.data.vocab_size) == (12, 12)
    assert trial.data.corpus == "state-reveals"


def test_a_grid_varies_corpus_depth_context_and_rate(tmp_path):
    axes = {
        "data.corpus": ["state-reveals", {"name": "state-reveals", "actions": 8}],
        "depth": [{"mean_backprop_depth": "mu"}, {"kind": "fixed"}],
        "context": [8, 16],
        "optim.lr": [8e-3, 1.6e-2],
    }
    base = {"n_tokens": 1000, "mean_recurrence": 4}
    changes = {"budgets_flops": None, "mean_recurrence": None, "base": base, "axes": axes}
    data = {"data": {"corpus": "state-reveals"}, "depth": {"per": "batch"}}
    spec = parse_spec(spec_dict(design="grid", **changes, **data), "s.yaml")
    trials = plan(spec, resolve_data(spec, "s.yaml")).trials
    assert len(trials) == 16
    assert {(t.data.corpus, t.model.vocab_size) for t in trials} == {
        ("state-reveals", 12),
        ("state-reveals(actions=8)", 16),
    }
    assert {t.context for t in trials} == {8, 16}
    assert {t.optim.adamw_lr for t in trials} == {8e-3, 1.6e-2}
    poisson = [t.depth for t in trials if t.depth.kind == "poisson"]
    assert {(d.per, d.mean_backprop_depth) for d in poisson} == {("batch", 4)}
    assert len(poisson) == 8


def test_a_corpus_path_starts_at_the_spec(tmp_path, monkeypatch):
    spec_path = write_spec(tmp_path / "specs", data={"corpus": "text", "val_share": 0.25})
    monkeypatch.chdir(tmp_path)
    spec = load_spec(spec_path)
    [corpus] = resolve_data(spec, str(spec_path)).values()
    data = corpus.config
    source = resolve(str(tmp_path / "specs" / "text"), val_share=0.25)
    assert data.fingerprint == source.fingerprint
    assert data.corpus == "text"


def test_a_prepared_folder_brings_its_tokenizer_and_context_and_contradictions_are_told(tmp_path):
    write_spec(tmp_path)
    text = resolve(str(tmp_path / "text"))
    folder = prepare(text, "bpe-300", 9, tmp_path / "data")
    changes = {"model": SPEC["model"] | {"vocab_size": 300, "context": 8}, "budgets_flops": [4e9]}

    def planned(tokenizer=None, **more):
        data = {"corpus": str(folder)} | ({"tokenizer": tokenizer} if tokenizer else {})
        spec = parse_spec(spec_dict(data=data, **(changes | more)), "s.yaml")
        return plan(spec, resolve_data(spec, "s.yaml"), "s.yaml")

    for given in (planned(), planned("bpe-300"), planned(context=8)):
        trial = given.trials[0]
        assert (trial.data.tokenizer, trial.data.vocab_size, trial.context) == ("bpe-300", 300, 8)
    [corpus] = planned().corpora
    rows = corpus.manifest.splits["train"].rows
    assert corpus.train_tokens(8, tmp_path) == (8 * rows, f"counted in {folder.name}")
    assert prepare(corpus.source, corpus.tokenizer, 9, tmp_path) == folder
    with pytest.raises(
        UserError, match=r"prepared with tokenizer 'bpe-300', and the spec says 'bytes'"
    ):
        planned("bytes")
    with pytest.raises(UserError, match=r"context is 4, and .* rows of 8 tokens"):
        planned(context=4)


def test_rows_packed_in_another_way_make_other_trials_and_the_default_keeps_its_ids(tmp_path):
    text = resolve(str(write_spec(tmp_path).parent / "text"))
    cut, crop = (prepare(text, "bytes", 17, tmp_path, long_documents=x) for x in ("cut", "crop"))

    def planned(corpus):
        spec = parse_spec(spec_dict(data={"corpus": str(corpus)}), "s.yaml")
        return plan(spec, resolve_data(spec, "s.yaml"), "s.yaml")

    as_text, as_cut, as_crop = map(planned, (tmp_path / "text", cut, crop))
    assert as_text.trial_ids == as_cut.trial_ids
    assert not {*as_cut.trial_ids} & {*as_crop.trial_ids}
    ours, theirs = as_cut.trials[0], as_crop.trials[0]
    assert data_key(ours) != data_key(theirs)  # a sweep may read both
    assert planned_columns(theirs)["data_fingerprint"] == f"{text.fingerprint}-crop"
    # without a folder of its own, the text is counted in the one that holds what would be prepared
    rows = as_cut.corpora[0].manifest.splits["train"].rows
    assert as_text.corpora[0].train_tokens(16, tmp_path) == (16 * rows, f"counted in {cut.name}")
    # a trial.json of before, which says nothing of packing
    stored = trial_to_dict(ours)
    del stored["data"]["packing"]
    assert trial_from_dict(stored) == ours


def test_a_budget_may_be_written_as_any_number_of_yaml(tmp_path):
    path = write_spec(tmp_path)
    own = yaml.safe_dump(spec_dict(mean_recurrence={4e8: [1, 2], 8e8: [2]}))
    assert "400000000.0:" in own  # a float, where 4e8 is text
    path.write_text(own)
    assert list(load_spec(path).mean_recurrence) == [4e8, 8e8]
    path.write_text(own.replace("400000000.0:", "400000000:"))
    assert list(load_spec(path).mean_recurrence) == [4e8, 8e8]


def test_a_trials_own_depth_that_does_not_fit_the_specs_is_a_sentence():
    trial = {"mean_recurrence": 2, "budget_flops": 4e8, "depth": {"kind": "poisson"}}
    keys = {"design": "list", "budgets_flops": None, "mean_recurrence": None, "trials": [trial]}
    depth = {"kind": "curriculum", "ramp_share": 0.5}
    [said] = problems(depth=depth, **keys)
    assert said.endswith("ramp_share belongs to kind: curriculum, and kind is poisson.")

from pathlib import Path

import pytest

from parcae_core.errors import UserError
from sweeps.design.spec import load_spec, parse_spec
from tests.support.tiny import spec_dict


def problems(**changes) -> list[str]:
    with pytest.raises(UserError) as error:
        parse_spec(spec_dict(**changes), "s.yaml")
    return str(error.value).splitlines()


def read(text: str, folder: Path):
    path = folder / "s.yaml"
    path.write_text(text)
    return load_spec(path)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    spec = read(
        "name: a\ndesign: test_time\nn_tokens: 11.2e9\nmean_recurrence: [2]\npreset: nano\n"
        "batch_sequences: 1e1\ndata: {corpus: c}\noptim: {muon_lr: 8e-3}\n",
        tmp_path,
    )
    assert spec.n_tokens == 11_200_000_000
    assert spec.batch_sequences == 10
    assert spec.optim.muon_lr == 0.008


def test_spelling_of_numbers_order_and_comments_do_not_change_the_hash():
    a = parse_spec(spec_dict(budgets_flops=["1e18"]), "a")
    b = parse_spec(dict(reversed(spec_dict(budgets_flops=[10**18]).items())), "b")
    assert a.sha256 == b.sha256
    assert a.sha256 != parse_spec(spec_dict(budgets_flops=[2e18]), "c").sha256


def test_an_unknown_key_is_refused_with_the_nearest_one():
    assert problems(budgets_flops=None, budget_flops=[1e18]) == [
        "s.yaml: unknown key 'budget_flops'; did you mean 'budgets_flops'?"
    ]
    assert problems(data={"corpus": "c", "tokeniser": "bytes"}) == [
        "s.yaml: unknown key 'tokeniser' in data; did you mean 'tokenizer'?"
    ]
    [message] = problems(model={"n_layerz": 3})
    assert message.startswith("s.yaml: unknown key 'n_layerz' in model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "nanoo"}, "preset is 'nanoo'; it must be one of nano, micro"),
        ({"mean_recurrence": [1, 0]}, "mean_recurrence[1] is 0; mean_recurrence must be a list"),
        ({"mean_recurrence": 4}, "mean_recurrence is 4; it must be a list"),
        ({"budgets_flops": ["1e18x"]}, "budgets_flops[0] is '1e18x'; budgets_flops must be a list"),
        ({"budgets_flops": [True]}, "budgets_flops[0] is True"),
        ({"budgets_flops": [float("nan")]}, "budgets_flops[0] is nan"),
        (
            {"batch_sequences": 2.5},
            "batch_sequences is 2.5; it must be sequences per optimiser step",
        ),
        ({"name": "../x"}, "name is '../x'; it must be a folder name"),
        (
            {"model": {"injection": "concatt"}},
            "model.injection is 'concatt'; it must be one of diag",
        ),
        ({"depth": {"mean_backprop_depth": "half"}}, "depth.mean_backprop_depth is 'half'"),
        ({"depth": {"kind": "curriculum"}}, "depth: a curriculum needs one of ramp_steps and ramp"),
        (
            {"depth": {"kind": "curriculum", "ramp_steps": 3, "ramp_share": 0.5}},
            "depth: a curriculum needs one of ramp_steps and ramp_share; 2 are given",
        ),
        (
            {"depth": {"kind": "curriculum", "ramp_steps": 3, "per": "batch"}},
            "depth: a curriculum draws per: sequence with split: truncate; leave both out",
        ),
        ({"depth": {"ramp_steps": 3}}, "depth: ramp_steps belongs to kind: curriculum, and kind"),
        ({"depth": {"ramp_shape": "1-sqrt"}}, "depth: ramp_shape belongs to kind: curriculum"),
        ({"depth": {"kind": "curriculum", "ramp_share": 2}}, "depth.ramp_share is 2; it must be a"),
        ({"data": None}, "data is missing; give a mapping with corpus and tokenizer"),
        (
            {"resources": {"gpus": -1}},
            "resources.gpus is -1; it must be GPUs a trial reserves: 0, a",
        ),
        (
            {"resources": {"gpus": 1.5}},
            "resources: gpus=1.5: above 1 only whole GPUs can be placed",
        ),
        (
            {"resources": {"gpus": 2, "processes": 3}},
            "resources: processes=3 with gpus=2: each proc",
        ),
        ({"resources": {"processes": 2}}, "resources: cpus=1 are too few for processes=2; reserve"),
        (
            {"resources": {"processes": 0}},
            "resources.processes is 0; it must be a number of process",
        ),
        *(
            (
                {"evaluation": {"every": every}},
                f"evaluation.every is {every!r}; it must be a share of the steps such as 10%, or a number",
            )
            for every in ("0%", "101%", "ten%", "ten", 0, 2.5, True, [10])
        ),
        ({"wandb": 3}, "wandb is 3; it must be a mapping"),
        ({"design": "isoflops"}, "design is 'isoflops'; it must be one of isoflop, test_time"),
        ({"design": None}, "design is missing; give one of isoflop"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_needed(changes, message):
    assert len(problems(**changes)) == 1
    assert problems(**changes)[0].startswith(f"s.yaml: {message}")


def test_all_problems_are_reported_at_once():
    found = problems(preset="x", batch_sequences=0, seed=3)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; a spec is a mapping"),
        ("- 1\n- 2\n", "the file is a list; a spec is a mapping"),
        ("a: 1\na: 2\n", "line 2: 'a' is given twice"),
        ("a: {b: 1\n", "line 2: not readable as YAML"),
        ("a: &x [1]\nb: *x\n", "line 2: YAML aliases"),
        ("a: !!bool maybe\n", "line 1: 'maybe' is no bool"),
        ("a: 1\nb: !!int ''\n", "line 2: '' is no int"),
        ("true: 2\n", "line 1: a key is True; keys are text"),
        ("a: !!python/object:os.system {}\n", "line 1: not readable as YAML"),
    ],
)
def test_what_is_no_mapping_is_refused_with_the_place(text, message, tmp_path):
    with pytest.raises(UserError) as error:
        read(text, tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 's.yaml'}: {message}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="give the path of a spec file"):
        load_spec(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_spec(tmp_path / "s.yaml")


def test_a_generated_corpus_is_its_parameters_however_it_is_written():
    said = {"corpus": {"name": "state-reveals", "actions": 8, "zipf": "1"}}
    spec = parse_spec(spec_dict(data=said), "s.yaml")
    assert spec.data.corpus == "state-reveals(actions=8, zipf=1)"
    assert spec.data.tokenizer == "characters"
    same = parse_spec(spec_dict(data={"corpus": spec.data.corpus}), "s.yaml")
    assert same.sha256 == spec.sha256
    assert problems(data={"corpus": {"name": "state-reveals", "action": 8}}) == [
        "s.yaml: data: state-reveals: unknown parameter 'action'; did you mean 'actions'? (it has "
        "states, actions, zipf, tail, longest_gap, seed, rules_seed)"
    ]
    assert problems(data={"corpus": {"actions": 8}}) == [
        "s.yaml: data: corpus.name is None; the generated corpus is state-reveals."
    ]


def test_one_rate_of_learning_is_for_both_optimisers():
    spec = parse_spec(spec_dict(optim={"lr": "1.6e-2"}), "s.yaml")
    assert (spec.optim.muon_lr, spec.optim.adamw_lr) == (0.016, 0.016)
    assert (
        spec.sha256 == parse_spec(spec_dict(optim={"muon_lr": 0.016, "adamw_lr": 0.016}), "").sha256
    )
    assert problems(optim={"lr": 0.016, "adamw_lr": 0.008}) == [
        "s.yaml: optim: lr sets the rate of both optimisers; leave adamw_lr out."
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_recurrence": {"4e8": [2]}}, "8e+08 FLOPs are missing from mean_recurrence"),
        (
            {"mean_recurrence": {"4e8": [2], "8e8": [2], "1e9": [4]}},
            "1e+09 FLOPs are missing from budgets_flops",
        ),
        ({"mean_recurrence": {"4e8": [2], "8e8": 4}}, "mean_recurrence.8e8 is 4"),
        ({"mean_recurrence": "auto"}, "auto knows the optimum of the presets 140m and 370m alone"),
        (
            {"prior": {"mean_recurrence": 8, "budget_flops": 4e11, "exponent": 1}},
            "prior belongs to mean_recurrence: auto",
        ),
        ({"data": {"corpus": "c", "val_share": 1}}, "data.val_share is 1"),
    ],
)
def test_a_window_that_does_not_fit_is_named(changes, message):
    [problem] = problems(**changes)
    assert message in problem


def test_a_prior_places_the_window_of_a_budget():
    prior = {"mean_recurrence": 8, "budget_flops": 4e11, "exponent": 1.1, "factor": 2.5}
    changes = {"mean_recurrence": "auto", "prior": prior, "budgets_flops": [2e11, 4e11, 1.6e12]}
    spec = parse_spec(spec_dict(**changes), "s.yaml")
    windows = [spec.window(c) for c in spec.budgets_flops]
    # 8 * 2^-1.1 = 3.7, 8, 8 * 4^1.1 = 36.8; 2.5 times below and above, and 1 for comparison
    assert windows == [[1, 3, 4, 6, 8], [1, 4, 6, 8, 12, 16], [1, 16, 24, 32, 48, 64]]
    published = {"mean_recurrence": "auto", "preset": "140m", "budgets_flops": [8e18]}
    assert parse_spec(spec_dict(**published), "s.yaml").window(8e18) == [1, 3, 4, 6, 8, 12]

"""`parcae design` and the forecast of `parcae plan`, as users call them."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.laws import library
from sweeps.cli.sweep import load_plan
from tests.support.tiny import write_spec
from tests.sweeps.cli.test_cli import in_process

PRIOR = "E=1,X=300,x=0.5,Y=60,y=0.5"
KEYS = {
    "budgets_flops": [4e8, 8e8, 1.6e9],
    "mean_recurrence": [2, 4, 8],
    "min_steps": 2,
    "evaluation": {"loops": [1], "n_sequences": 4},
}


def test_a_spec_for_a_budget_that_can_be_run(tmp_path, monkeypatch, capsys):
    like, out = write_spec(tmp_path, **KEYS), tmp_path / "specs" / "best.yaml"
    out.parent.mkdir()
    args = ("design", "--flops", "6e9", "--like", like, "--prior", PRIOR, "--noise", "0.005")
    code, said, _ = in_process(monkeypatch, capsys, *args, "--out", out, "--json")
    assert code == 0
    found = json.loads(said)
    assert 5.6e9 < found["flops"] <= 6e9
    assert found["grid_runs"] == 9
    plan = load_plan(out)
    assert len(plan.trials) == found["runs"]
    assert sum(t.budget_flops for t in plan.trials) == pytest.approx(found["flops"])
    code, _, error = in_process(monkeypatch, capsys, *args, "--out", out)
    assert code == 2
    assert "is there already" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--target": "phi"}, "the training law has no such quantity"),
        ({"--flops": "1e8"}, "buys nothing: the cheapest run costs 4e+08"),
        ({"--flops": "inf"}, "--flops is inf; a finite number is needed"),
        ({"--prior": "nonsense"}, "--prior nonsense is neither paper:140m nor parameters"),
        ({"--prior": "E=1"}, "X is missing"),
        ({"--prior": "paper:14m"}, "did you mean 'paper:140m'"),
        ({"--largest": "1e8"}, "no setting is left within the limits"),
        ({"--noise": "2"}, "a share of the loss above 0 and below 1"),
        ({"--like": "none.yaml"}, "no such file"),
    ],
)
def test_a_budget_that_makes_no_spec_is_one_sentence(tmp_path, monkeypatch, capsys, changes, words):
    given = {"--flops": "6e9", "--like": write_spec(tmp_path, **KEYS), "--prior": PRIOR}
    options = [x for pair in (given | changes).items() for x in pair]
    out = tmp_path / "best.yaml"
    code, _, error = in_process(monkeypatch, capsys, "design", *options, "--out", out)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_rows_of_a_pool_by_the_contract(tmp_path, monkeypatch, capsys):
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e10, 6)))
    values = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
    loss = library.get("chinchilla").predict(values, {"n_params": n, "n_tokens": d})
    frame = pd.DataFrame({"N": n, "D": d, "flops": 6 * n * d, "loss": loss})
    frame.to_csv(tmp_path / "pool.csv", index=False)
    args = ("design", "--pool", tmp_path / "pool.csv", "--law", "chinchilla", "--cost", "flops")
    code, said, _ = in_process(monkeypatch, capsys, *args, "--share", "0.1", "--json")
    found = json.loads(said)
    assert code == 0
    assert found["spent"] == pytest.approx(frame.flops.iloc[found["chosen"]].sum())
    assert found["spent"] <= 0.1 * found["of"] == pytest.approx(0.1 * frame.flops.sum())
    code, _, error = in_process(monkeypatch, capsys, *args[:-2], "--share", "0.1")
    assert (code, error.count("--cost is missing")) == (2, 1)


def test_a_plan_says_what_it_will_tell(tmp_path, monkeypatch, capsys):
    spec = write_spec(tmp_path, **KEYS | {"mean_recurrence": [2, 4, 8, 16]})
    args = ("plan", spec, "--prior", PRIOR, "--noise", "0.001", "--at", "1e10")
    code, said, _ = in_process(monkeypatch, capsys, *args, "--json")
    assert code == 0
    found = json.loads(said)["forecast"]
    assert [f["name"] for f in found["intervals"]] == ["gamma_mu", "gamma_D", "mu@1e+10"]
    for f in found["intervals"]:
        assert f["low"] < f["value"] < f["high"]
    code, said, _ = in_process(monkeypatch, capsys, *args)
    assert "mu* at 1e10 FLOPs" in said
    assert "12 looped runs" in said

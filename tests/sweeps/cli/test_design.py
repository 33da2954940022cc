"""`parcae design` and the forecast of `parcae plan`, as users call them."""

import json
from importlib.resources import files

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
    assert (
        f"--target gamma_mu --noise 0.005\n# this design: {found['runs']} runs" in out.read_text()
    )
    plan = load_plan(out)
    assert len(plan.trials) == found["runs"]
    shown = ("plan", out, "--prior", PRIOR, "--noise", "0.005", "--json")
    forecast = json.loads(in_process(monkeypatch, capsys, *shown)[1])["forecast"]
    assert forecast["budgets_flops"] == found["budgets_flops"] == KEYS["budgets_flops"]
    assert forecast["intervals"][0]["value"] == pytest.approx(found["design"]["value"])
    assert sum(t.budget_flops for t in plan.trials) == pytest.approx(found["flops"])
    code, _, error = in_process(monkeypatch, capsys, *args, "--out", out)
    assert code == 2
    assert "is there already" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--target": "phi"}, "the training law has no such quantity"),
        ({"--flops": "1e8"}, "buys nothing: the cheapest run costs 4e+08"),
        (
            {"--flops": "1e9"},
            "buys no more than 2 of the runs that determine gamma_mu; raise it to",
        ),
        ({"--target": "mu@1e40"}, "mu@1e40: by this prior no number of loops between 0.37 and 256"),
        ({"--prior": "E=1,X=2,x=3,Y=4,y=5"}, "at 0 of 3 budgets; an exponent needs two"),
        ({"--law": "chinchilla"}, "design --flops: --law belongs to the other way to choose"),
        ({"--seed": "0"}, "design --flops: --seed belongs to the other way to choose"),
        ({"--out": "-.yaml"}, "--out -.yaml: the sweep is named after it"),
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
    out = tmp_path / "best.yaml"
    options = [x for pair in ({"--out": out} | given | changes).items() for x in pair]
    code, _, error = in_process(monkeypatch, capsys, "design", *options)
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
    odd = in_process(monkeypatch, capsys, *args, "--share", "0.1", "--memory", "1")
    assert (odd[0], odd[2].count("design --pool: --memory belongs to the other way")) == (2, 1)


def test_a_spec_of_another_design_with_trunks_and_flops_without_end(tmp_path, monkeypatch, capsys):
    keys = KEYS | {"design": "adaptive", "mean_recurrence": [3, 4, 8], "seeds": [0, 1]}
    own = {"total_flops": 1e10, "reach": 3, "prior": PRIOR, "noise": 0.01, "half_width": 0.1}
    like, out = write_spec(tmp_path, **keys, **own), tmp_path / "\u00fcn\u00ef.yaml"
    args = ("design", "--prior", PRIOR, "--json", "--like")
    code, said, error = in_process(
        monkeypatch, capsys, *args, like, "--flops", "1e30", "--out", out
    )
    assert (code, error) == (0, "")
    found = json.loads(said)
    assert found["spec"]["name"] == "n-"
    # eight seeds of each of eight numbers of loops; with 2, one loop alone would have a gradient
    assert found["flops"] == 8 * 8 * sum(KEYS["budgets_flops"])
    assert {t["mean_recurrence"] for t in found["spec"]["trials"]} == {3, 4, 6, 8, 12, 16, 24, 32}
    keys = KEYS | {"trunks": True, "optim": {"cooldown_share": 0.2}}
    like = write_spec(tmp_path, **keys)
    said = in_process(
        monkeypatch, capsys, *args, like, "--flops", "4e9", "--out", tmp_path / "b.yaml"
    )[1]
    assert "the design counts separate runs, and with trunks they cost" in said


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
    f = found["intervals"][0]
    first = f"{f['value']:.4g}  [{f['simulated_low']:.4g}, {f['simulated_high']:.4g}] to expect"
    assert first in said
    assert "exponents over 3 budgets from 4e8 to 1.6e9 FLOPs" in said
    assert "mean_recurrence 2: with gradient through one loop alone" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prior", PRIOR, "--at", "-1"), "--at is -1; FLOPs above 0 are needed"),
        (("--prior", PRIOR, "--at", "1e-5"), "mu@1e-05: by this prior no number of loops"),
        (("--prior", PRIOR, "--at", "1e40"), "mu@1e+40: by this prior no number of loops"),
        (("--prior", "E=1,X=2,x=3,Y=4,y=5"), "at 0 of 3 budgets; an exponent needs two"),
        (("--at", "1e10"), "plan: --at says something about --prior, which is not given"),
        (("--noise", "0.1"), "plan: --noise says something about --prior"),
    ],
)
def test_a_forecast_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, capsys, options, words):
    code, _, error = in_process(monkeypatch, capsys, "plan", write_spec(tmp_path, **KEYS), *options)
    assert (code, error.count("\n")) == (2, 1)
    assert words in error


def test_the_first_example_of_the_help_works_before_the_data_is_there(
    tmp_path, monkeypatch, capsys
):
    like = files("sweeps") / "specs" / "paper-140m-isoflop.yaml"
    args = (
        "--flops",
        "5e19",
        "--like",
        like,
        "--prior",
        "paper:140m",
        "--out",
        tmp_path / "a.yaml",
    )
    code, said, _ = in_process(monkeypatch, capsys, "design", *args)
    assert code == 0
    # the grid's linearised interval misleads: 250 sets fitted one by one gave about [0.56, 1.75]
    assert "gamma_mu 0.9789  [0.5634, 1.753] to expect (simulated), [0.03833, 1.919] by" in said
    assert "the spec's grid: gamma_mu: expect the simulated interval" in said

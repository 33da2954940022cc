"""Relative quality, from the paper's own figures (arXiv:2604.12946)."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from typer.testing import CliRunner

from analysis import comparison
from analysis.comparison import compare, relative_quality
from analysis.errors import InputError
from sweeps.cli.app import build_app

SIZES = [143_141_184, 385_903_104, 773_375_040, 1_333_868_544]
LOOPED = [144_323_136, 388_003_328, 776_655_680, 1_338_591_744]
PPL = [21.48, 15.79, 13.08, 11.95]
PPL_LOOPED = [19.06, 14.49, 12.49, 11.42]


@pytest.fixture
def tables(tmp_path):
    paths = []
    for name, sizes, ppl in (("plain", SIZES, PPL), ("looped", LOOPED, PPL_LOOPED)):
        path = tmp_path / f"{name}.csv"
        pd.DataFrame({"N": sizes, "perplexity": ppl, "loss": np.log(ppl)}).to_csv(path, index=False)
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("metric", ["perplexity", "loss"])
def test_the_papers_perplexities_give_39_46_and_51_per_cent(tables, metric):
    plain, looped = tables
    found = compare(looped, plain, metric)
    assert [round(100 * q["relative_quality"], 1) for q in found.quality] == [38.8, 45.6, 51.1]
    assert "N = 1.339e+09" in found.notes[0]  # nothing larger than the largest


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_the_interval_holds_the_truth_as_often_as_it_says(n_seeds):
    """docs/laws.md has these shares, and those of a normal quantile instead of Student's t."""
    rng = np.random.default_rng(1)
    held, by_normal = 0, 0
    for _ in range(1_500):
        seeds = [mean + 0.01 * rng.standard_normal(n_seeds) for mean in (3.2, 3.0, 2.8)]
        means = [group.mean() for group in seeds]
        variances, dof = comparison._scatter(seeds)
        _, low, high = relative_quality(*means, variances, dof)
        held += low <= 0.5 <= high
        _, low, high = relative_quality(*means, variances)
        by_normal += low <= 0.5 <= high
    # two standard errors of a share each; by a normal quantile it is that of t within 1.96
    assert held / 1_500 == pytest.approx(0.95, abs=0.012)
    by_theory = 1 - 2 * student.sf(1.96, 3 * (n_seeds - 1))  # 0.855, 0.902, 0.926
    assert by_normal / 1_500 == pytest.approx(by_theory, abs=0.018)


def test_core_scores_give_another_number_than_the_loss():
    value, low, high = relative_quality(22.4, 25.07, 25.45)
    assert value == pytest.approx(0.875, abs=5e-4)
    assert low is None
    assert high is None


def test_seeds_give_an_interval(tables, tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for path in tables:
        frame = pd.read_csv(path)
        many = pd.concat(
            [
                frame.assign(seed=s, loss=frame.loss + 0.003 * rng.standard_normal(4))
                for s in range(5)
            ]
        )
        many.to_csv(path, index=False)
        paths.append(path)
    quality = compare(paths[1], paths[0]).quality[0]
    assert quality["ci_low"] < 0.388 < quality["ci_high"]
    assert quality["ci_high"] - quality["ci_low"] < 0.1
    app = build_app("laws", "figures")
    done = CliRunner().invoke(app, ["compare", paths[1], paths[0]], env={"COLUMNS": "80"})
    assert f"[{quality['ci_low']:.3g}, {quality['ci_high']:.3g}]" in done.output
    table = [line for line in done.output.splitlines() if "note:" not in line]
    assert max(map(len, table)) <= 80


def saved(folder, **tables):
    paths = []
    for name, columns in tables.items():
        paths.append(str(folder / f"{name}.csv"))
        pd.DataFrame(columns).to_csv(paths[-1], index=False)
    return paths


def test_the_loss_is_the_one_at_the_training_depth(tmp_path):
    looped = {
        "run": "a",
        "N": 1e8,
        "mu": 4,
        "T": [1, 2, 4, 8],
        "C": 6e18,
        "loss": [5, 3.5, 3.0, 2.99],
    }
    plain = {"N": [1e8, 2e8], "C": [6e18, 2.4e19], "loss": [3.2, 2.8]}
    found = compare(*saved(tmp_path, looped=looped, plain=plain))
    assert found.quality[0]["relative_quality"] == pytest.approx(0.5)
    assert len(found.speed) == 1
    assert any("3 rows left out: evaluated at another number of loops" in n for n in found.notes)


def test_every_mu_and_budget_is_compared_by_itself(tmp_path):
    looped = {
        "N": 1e8,
        "mu": [4, 4, 8, 8],
        "budget": [1e18, 1e19] * 2,
        "loss": [3.6, 3.0, 3.7, 3.05],
    }
    plain = {"N": [1e8, 1e8, 2e8, 2e8], "budget": [1e18, 1e19] * 2, "loss": [3.55, 3.2, 3.65, 2.8]}
    paths = saved(tmp_path, looped=looped, plain=plain)
    found = {(q["mean_recurrence"], q["budget_flops"]): q for q in compare(*paths).quality}
    assert found[4, 1e19]["relative_quality"] == pytest.approx(0.5)
    assert found[8, 1e19]["relative_quality"] == pytest.approx(0.375)
    assert found[4, 1e18]["relative_quality"] == pytest.approx(0.5)
    assert all(q["ci_low"] is None for q in found.values())  # budgets are no seeds
    del looped["budget"]
    lengths = {**looped, "D": [4e8, 4e9, 2e8, 2e9]}
    with pytest.raises(
        InputError, match=r"mu = 4\) have D 4e\+08 to 4e\+09; only seeds are averaged"
    ):
        compare(*saved(tmp_path, looped=lengths, plain=plain))


@pytest.mark.parametrize(
    ("label", "metric", "refused"),
    [
        ("tokenizer", "loss", True),
        ("dataset", "loss", True),
        ("flops_rule", "loss", True),
        ("tokenizer", "core", False),  # a score is of no tokens
    ],
)
def test_what_one_table_may_not_mix_two_may_not_either(tmp_path, label, metric, refused):
    looped = {"N": [1e8], "C": 1e18, "loss": 3.0, "core": 0.3, label: "a"}
    plain = {"N": [1e8, 2e8], "C": 1e18, "loss": [3.2, 2.8], "core": [0.2, 0.4], label: "b"}
    paths = saved(tmp_path, looped=looped, plain=plain)
    if not refused:
        assert compare(*paths, metric).quality[0]["relative_quality"] == pytest.approx(0.5)
        return
    with pytest.raises(InputError, match=f"has {label} a and .* has {label} b"):
        compare(*paths, metric)


def test_speed_up_is_the_compute_saved_at_equal_loss(tmp_path):
    c = np.geomspace(1e18, 1e21, 7)
    loss = 1.8 + 200 * c**-0.12
    pd.DataFrame({"N": SIZES[0], "C": c, "loss": loss}).assign(N=np.geomspace(1e8, 1e9, 7)).to_csv(
        tmp_path / "p.csv"
    )
    pd.DataFrame({"N": [1e8], "C": [c[3] / 2.5], "loss": [loss[3]]}).to_csv(tmp_path / "l.csv")
    app = build_app("laws", "figures")
    result = CliRunner().invoke(
        app, ["compare", str(tmp_path / "l.csv"), str(tmp_path / "p.csv"), "--json"]
    )
    assert json.loads(result.stdout)["speed_up"][0]["speed_up"] == pytest.approx(2.5, rel=1e-6)


def test_sizes_that_bracket_nothing_are_told(tmp_path):
    frame = pd.DataFrame({"N": [1e8, 1.07e8, 2e8], "D": 2e9, "loss": [3.0, 3.1, 2.8]})
    looped = pd.DataFrame({"N": [1e8, 1.99e8], "D": [2e9, 4e9], "loss": [2.9, 2.7]})
    paths = [str(tmp_path / f"{name}.csv") for name in ("looped", "plain")]
    looped.to_csv(paths[0], index=False)
    frame.to_csv(paths[1], index=False)
    found = compare(*paths)
    [quality] = found.quality  # towards 2e8, and not towards what is 7 % larger
    assert quality["large"] == 2e8
    assert quality["relative_quality"] == pytest.approx(0.5)
    assert "has no Transformer of 1.2 times its size or more" in found.notes[0]
    frame.assign(loss=[3.0, 2.9, 3.05], D=1e9).to_csv(paths[1], index=False)
    notes = compare(*paths).notes
    assert "the larger Transformer has no lower loss" in notes[1]
    assert "1 of 1 models: trained on other tokens" in notes[2]
    assert "N = 1e+08: 2e+09 against 1e+09" in notes[2]


def test_equal_sizes_have_nothing_between_them():
    with pytest.raises(InputError, match="nothing between them"):
        relative_quality(3.0, 2.9, 3.0)

"""Relative quality, from the paper's own figures (arXiv:2604.12946)."""

import json

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from analysis.comparison import compare, relative_quality
from analysis.errors import InputError
from sweeps.cli.laws import register

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
    assert "1.339e+09 parameters" in found.notes[0]  # nothing larger than the largest


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


def test_speed_up_is_the_compute_saved_at_equal_loss(tmp_path):
    c = np.geomspace(1e18, 1e21, 7)
    loss = 1.8 + 200 * c**-0.12
    pd.DataFrame({"N": SIZES[0], "C": c, "loss": loss}).assign(N=np.geomspace(1e8, 1e9, 7)).to_csv(
        tmp_path / "p.csv"
    )
    pd.DataFrame({"N": [1e8], "C": [c[3] / 2.5], "loss": [loss[3]]}).to_csv(tmp_path / "l.csv")
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(
        app, ["compare", str(tmp_path / "l.csv"), str(tmp_path / "p.csv"), "--json"]
    )
    assert json.loads(result.stdout)["speed_up"][0]["speed_up"] == pytest.approx(2.5, rel=1e-6)


def test_equal_sizes_have_nothing_between_them():
    with pytest.raises(InputError, match="nothing between them"):
        relative_quality(3.0, 2.9, 3.0)

"""Published numbers, recomputed at full precision elsewhere (shared/data/README.md).

The files are other people's and are not part of the project: they are looked for beside the
checkout, and a test that needs one skips where it is absent.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.fitting import fit, intervals
from analysis.isoflop.power_law import fit_line
from analysis.laws import library
from analysis.table import load
from analysis.table.columns import parse_columns

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
COLUMNS = 'N="Model Size",C="Training FLOP",loss=loss'


def need(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not in ../shared/data; it is not this project's to bundle")
    return path


@pytest.fixture(scope="module")
def chinchilla():
    """(columns, losses) of the 240 rows with loss below the 5th highest."""
    table = load.load(need("chinchilla_245.csv"), parse_columns(COLUMNS))
    table = api._without_highest(table, 5)
    columns, losses, _ = fit.observations(table, library.get("chinchilla"))
    assert len(losses) == 240
    return columns, losses


def search(columns, losses, loss="huber", delta=1e-3, n_starts=100, seed=0):
    scaled = fit.scale(library.get("chinchilla"), columns, losses, loss, delta)
    best = fit.search(scaled, n_starts, np.random.default_rng(seed))
    return scaled, best, {k: float(v[0]) for k, v in scaled.values(best.theta[None]).items()}


def agrees(values, **certified):
    for name, text in certified.items():
        assert values[name] == pytest.approx(float(text), abs=0.51 * _last_place(text)), name


def _last_place(text: str) -> float:
    return 10.0 ** -len(text.partition(".")[2])


def test_chinchilla_optimum_from_every_start(chinchilla):
    _, best, values = search(*chinchilla)
    assert best.objective == pytest.approx(0.00101827401780, abs=1e-13)
    assert best.n_agree == 100
    certified = {
        "A": 477.8259,
        "B": 2143.4173,
        "E": 1.8172181,
        "alpha": 0.3473105,
        "beta": 0.3671724,
    }
    assert values == pytest.approx(certified, rel=1.5e-7)
    assert values["beta"] / (values["alpha"] + values["beta"]) == pytest.approx(0.5138995, abs=5e-8)


def test_all_245_rows():
    table = load.load(need("chinchilla_245.csv"), parse_columns(COLUMNS))
    columns, losses, _ = fit.observations(table, library.get("chinchilla"))
    _, best, values = search(columns, losses, n_starts=20)
    assert best.objective == pytest.approx(0.00182601052307, abs=1e-13)
    agrees(values, A="495.726", B="12845.61", E="1.8913385", alpha="0.3493129", beta="0.4530493")


def test_least_absolute_deviations_are_the_limit_of_small_delta(chinchilla):
    *_, values = search(*chinchilla, delta=1e-9, n_starts=8)
    certified = {"A": 482.0057, "B": 2085.434, "E": 1.816864, "alpha": 0.347813, "beta": 0.365854}
    for name, value in certified.items():
        # delta = 1e-9 is not 0, and the limit moves A by 6e-4 per 1e-8
        assert values[name] == pytest.approx(value, rel=1.5e-6), name


def test_least_squares_on_the_loss_of_the_217_rows_below_1e21(chinchilla):
    columns, losses = chinchilla
    small = 6 * columns["n_params"] * columns["n_tokens"] < 1e21
    assert small.sum() == 217
    units = {
        "n_params": columns["n_params"][small] / 1e6,
        "n_tokens": columns["n_tokens"][small] / 1e9,
    }
    _, best, values = search(units, losses[small], loss="lsq", n_starts=20)
    assert 2 * best.objective == pytest.approx(0.062414, abs=5e-7)
    agrees(values, E="1.9051", A="4.0005", B="1.0509", alpha="0.3511", beta="0.4587")


def test_bootstrap_standard_errors(chinchilla):
    scaled, best, _ = search(*chinchilla, n_starts=8)
    counts = intervals.case_counts(240, 1000, np.random.default_rng(0))
    draws, finished = intervals.refits(scaled, best.theta, counts)
    assert finished.all()
    errors = {k: float(v.std()) for k, v in scaled.values(draws).items()}
    certified = {"A": 124.49, "B": 1293.17, "E": 0.02566, "alpha": 0.01540, "beta": 0.02059}
    # Monte Carlo: 2.2 % for a normal law's error from 1,000 draws; A's and B's are skewed, and over
    # four seeds ours vary from 118 to 124 and from 1258 to 1454
    tolerance = {"A": 0.1, "B": 0.2, "E": 0.07, "alpha": 0.07, "beta": 0.07}
    for name, value in certified.items():
        assert errors[name] == pytest.approx(value, rel=tolerance[name]), name


@pytest.mark.parametrize(("delta", "n_rows"), [(1e-4, 240), (1e-3, 24), (1e-4, 24)])
def test_starts_agree_where_single_paths_stall(chinchilla, delta, n_rows):
    columns, losses = chinchilla
    rows = np.random.default_rng(0).choice(240, n_rows, replace=False)
    part = {k: v[rows] for k, v in columns.items()}
    _, best, _ = search(part, losses[rows], delta=delta)
    assert best.n_agree == 100


def test_mean_reduction_and_loose_tolerances_would_have_stopped_early(chinchilla):
    """The known trap: at beta/(alpha+beta) = 0.450 the objective is 0.0011084, which is not ours."""
    _, best, values = search(*chinchilla, n_starts=4)
    assert best.objective < 0.0011084 * 0.95
    assert abs(values["beta"] / (values["alpha"] + values["beta"]) - 0.450) > 0.05


def test_porian_exponents_plain_and_weighted():
    pairs = pd.read_csv(need("porian_optimal_pairs.csv"))
    published = pd.read_csv(need("porian_fit_results.csv"))
    keys = ["dataset", "hparams", "warmup", "decay", "param_count", "val"]
    merged = {k: g for k, g in pairs.groupby(keys, dropna=False)}
    assert len(published) == len(merged) == 15
    for _, row in published.iterrows():
        group = next(g for k, g in merged.items() if _same(k, row[keys]))
        group = group[group.n.notna()]  # budgets whose optimum they did not find
        plain = fit_line(group.flops, group.n).gamma
        assert plain == pytest.approx(row["basic.n_exponent"], abs=5e-6)
        weighted = fit_line(group.flops, group.n, weights=1 / group.n_star_std**2).gamma
        assert weighted == pytest.approx(row["weighted.n_exponent"], abs=5e-6)


def _same(key, row) -> bool:
    return all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in zip(key, row, strict=True))


def test_bundled_points_are_the_digitised_file():
    theirs = pd.read_csv(need("parcae140m_isoflop_digitised.csv"))
    ours = load.load("bundled:parcae-140m").frame
    np.testing.assert_array_equal(ours.val_loss, theirs.loss)
    np.testing.assert_array_equal(ours.n_tokens, theirs.D_est)


def test_plotted_minima_give_the_published_exponent():
    minima = pd.read_csv(need("parcae140m_optimal_mu_digitised.csv"))
    assert round(fit_line(minima.flops, minima.mu_opt).gamma, 3) == 0.404

"""Laws that a user types: read safely, differentiated exactly, fitted like the built-in ones."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import api
from analysis.errors import InputError
from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions
from analysis.laws import expression, formula, library
from sweeps.cli.app import build_app

NAMES = {
    "N": "n_params",
    "D": "n_tokens",
    "C": "train_flops",
    "T": "n_loops",
    "mu": "mean_recurrence",
}


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    return {
        "n_params": rng.uniform(1e7, 1e9, 60),
        "n_tokens": rng.uniform(1e8, 1e11, 60),
        "train_flops": rng.uniform(1e17, 1e20, 60),
        "n_loops": rng.uniform(1, 12, 60),
        "mean_recurrence": rng.uniform(1, 12, 60),
    }


FORMULAS = {
    "E + A*N**-alpha + B*D**-beta": "terms",
    "E + A*N**-a + B/D**a": "terms",
    "E + A*(N/1e6)**-alpha": "terms",
    "E + X*N**-x + Z*exp(-z*T*mu**-gamma)": "terms",
    "((N_c/N)**(a/b) + D_c/D)**b": "gradient",
    "E + A*N**-alpha*D**-beta": "gradient",
    "exp(a3*N**g + b3) + exp(a2*N**b + b2)*D**-exp(a1*N**a + b1)": "gradient",
    "E - A*log(N) + B*tanh(k*T) + max(A2*sqrt(D), 1)": "gradient",
}


@pytest.mark.parametrize(("text", "shape"), FORMULAS.items())
def test_derivatives_of_any_formula_equal_finite_differences(text, shape, columns):
    law = formula.law(text, NAMES, data=columns)
    assert bool(law.terms) == (shape == "terms")
    rng = np.random.default_rng(1)
    values = {p.name: float(rng.uniform(0.05, 0.3)) for p in law.params}
    scale = {p.name: p.start[0] if p.log_start else 1.0 for p in law.params}
    values = {k: v * scale[k] for k, v in values.items()}
    _, slopes = law.with_slopes(values, columns)
    for name, value in values.items():
        step = 1e-6 * value
        high, low = (law.predict(values | {name: value + s}, columns) for s in (step, -step))
        slope = (high - low) / (2 * step)
        noise = 4e-16 * np.abs(high).max() / step + 1e-7 * np.abs(slope).max()
        np.testing.assert_allclose(slopes[name], slope, rtol=1e-5, atol=noise)


def test_nothing_is_evaluated(tmp_path):
    for text in (
        "__import__('os').system('true') + N",
        "N.real + A",
        "[A for A in N]",
        "A if N else B",
        "A*N**-a; B",
    ):
        with pytest.raises(InputError, match=r"not allowed|not a formula|unknown|is not the name"):
            formula.law(text, NAMES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("E + A*sinh(N)", "function 'sinh' is unknown"),
        ("E + A*exp", "exp is a function and stands here as a name"),
        ("E + A", "none of E, A is a column"),
        ("N*D", "every name is a column"),
        ("E + A*N**-", "not a formula"),
        ("E + F + A*N**-a", "E and F always act together"),
        ("E + a*b*N**-c", "a and b always act together"),
        ("E + A*N**-a + 0*k", "no column determines k"),
        ("E + A*loss", "is what the law gives"),
        (
            "E + A*N**-a + B*los**-b",
            r"los is no column of the table; did you mean 'loss'\? Columns here: N, D,",
        ),
        ("log(loss) = E + A*N**-a", "log stands left of =.*loss = exp"),
    ],
)
def test_bad_formulas_are_named(text, words):
    with pytest.raises(InputError, match=words):
        formula.law(text, NAMES | {"loss": "val_loss"})


def test_a_rate_may_be_of_any_unit(columns):
    data = {c: columns[c] for c in ("n_params", "n_tokens")}
    law = formula.law("E + A*exp(-k*N) + B*D**-b", NAMES, data=data)
    truth = {"E": 1.8, "A": 1.5, "k": 3e-9, "B": 1500.0, "b": 0.36}
    found = fit(Dataset.of(data, law.predict(truth, data)), law, FitOptions(interval="none"))
    assert found.params == pytest.approx(truth, rel=1e-5)


def test_a_law_below_zero_gives_no_warning(columns):
    data = {c: columns[c] for c in ("n_params", "n_tokens")}
    law = formula.law("E - b*N - c*D", NAMES, data=data)
    y = 3 - 1e-9 * data["n_params"] - 1e-12 * data["n_tokens"]
    found = fit(Dataset.of(data, y), law, FitOptions(interval="none", n_starts=4))
    assert np.isfinite(found.search.objective)  # warnings are errors here


def test_names_and_formulas_are_told_apart():
    assert not any(map(expression.is_formula, (*library.LAWS, *library.OTHER_LAWS)))
    assert all(map(expression.is_formula, FORMULAS))


def test_kaplans_law_gives_its_parameters_back(columns):
    law = library.get("kaplan")
    truth = {"N_c": 8.8e13, "alpha_N": 0.076, "alpha_D": 0.095, "D_c": 5.4e13}
    data = {c: columns[c] for c in law.columns}
    found = fit(Dataset.of(data, law.predict(truth, data)), law, FitOptions(interval="none"))
    assert found.params == pytest.approx(truth, rel=1e-3)


def test_intervals_do_not_depend_on_the_unit_of_a_scale():
    rng = np.random.default_rng(3)
    x, noise = 10 ** rng.uniform(-2, 2, 60), np.exp(0.003 * rng.normal(size=60))
    own = []
    for unit in (
        1.0,
        1e13,
        1e-9,
    ):  # log-lsq: by Huber's the search ends 2e-4 above the optimum at 1e13
        data = {"x": unit * x}
        law = formula.law("E + A/(1 + x/s)", {"x": "x"}, data=data)
        y = law.predict({"E": 1.8, "A": 1.2, "s": unit}, data) * noise
        found = fit(
            Dataset.of(data, y), law, FitOptions(interval="linear", loss="log-lsq", n_starts=4)
        )
        assert found.result.valid
        [s] = [p for p in found.result.params if p.name == "s"]
        own.append(np.array([s.ci_low, s.value, s.ci_high]) / unit)
    assert own[0][0] < 1 < own[0][2]
    np.testing.assert_allclose(own[1:], [own[0]] * 2, rtol=1e-5)


def test_kaplans_law_has_its_profile_interval():
    law, rng = library.get("kaplan"), np.random.default_rng(0)
    truth = {"N_c": 8.8e13, "alpha_N": 0.076, "alpha_D": 0.095, "D_c": 5.4e13}
    data = {"n_params": 10 ** rng.uniform(7, 9.5, 40), "n_tokens": 10 ** rng.uniform(9, 11, 40)}
    y = law.predict(truth, data) * np.exp(0.003 * rng.normal(size=40))
    found = fit(Dataset.of(data, y), law, FitOptions(interval="profile", loss="log-lsq"))
    assert found.result.valid
    for p in found.result.params:
        assert p.ci_low < truth[p.name] < p.ci_high < 4 * p.ci_low
    spread = np.sqrt(np.diag(found.curvature.covariance))
    drawn = [np.std(d) for d in found.student_draws(4000).values()]
    np.testing.assert_allclose(drawn, spread, rtol=0.1)


def test_repeated_data_are_worth_less(columns):
    law = library.get("repeated")
    truth = {"E": 1.8, "A": 400.0, "alpha": 0.34, "B": 1500.0, "R": 15.4, "beta": 0.36}
    data = {"n_params": columns["n_params"], "unique_tokens": columns["n_tokens"] / 20}
    data["n_tokens"] = data["unique_tokens"] * np.random.default_rng(2).choice(
        [1, 2, 5, 10, 40], 60
    )
    found = fit(Dataset.of(data, law.predict(truth, data)), law, FitOptions(interval="none"))
    assert found.params == pytest.approx(truth, rel=1e-4)


def test_a_fixed_or_tied_parameter_is_not_fitted(columns):
    data = {c: columns[c] for c in ("n_params", "n_tokens")}
    law = formula.law("E + A*N**-alpha + B*D**-beta", NAMES)
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.34}
    y = law.predict(truth, data)
    options = FitOptions(interval="none")
    held = fit(Dataset.of(data, y), law.fixing(E=1.7), options)
    assert held.params == pytest.approx({k: v for k, v in truth.items() if k != "E"}, rel=1e-6)
    tied = fit(Dataset.of(data, y), law.tying(alpha="beta"), options)
    assert tied.params == pytest.approx({k: v for k, v in truth.items() if k != "beta"}, rel=1e-6)
    bounded = fit(Dataset.of(data, y), law.bounding(alpha=(0.0, 0.3)), options)
    assert bounded.params["alpha"] == 0.3
    assert any("alpha lies at the bound 0.3" in p for p in bounded.problems)


def test_rows_below_the_law_can_be_made_dear(columns):
    data = {c: columns[c] for c in ("n_params", "n_tokens")}
    law = formula.law("E + A*N**-alpha + B*D**-beta", NAMES)
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.37}
    luck = np.abs(np.random.default_rng(4).standard_normal(60)) * 0.02  # undertuned: never better
    y = law.predict(truth, data) * np.exp(luck)
    share = [
        (
            fit(Dataset.of(data, y), law, FitOptions(interval="none", undertuned=u)).log_residuals
            < 0
        ).mean()
        for u in (1.0, 10.0)
    ]
    assert share[0] == pytest.approx(0.5, abs=0.1)
    assert share[1] == pytest.approx(1 / 11, abs=0.07)  # the median becomes the 1/11 quantile


@pytest.fixture
def app():
    return build_app("laws", "figures")


@pytest.fixture
def table(columns, tmp_path):
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.34}
    y = library.get("chinchilla").predict(truth, columns)
    y *= np.exp(0.002 * np.random.default_rng(5).standard_normal(60))
    frame = pd.DataFrame(
        {"N": columns["n_params"], "D": columns["n_tokens"], "loss": y, "extra": columns["n_loops"]}
    )
    frame.to_csv(tmp_path / "runs.csv", index=False)
    return str(tmp_path / "runs.csv")


def said(app, *words, code=0):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def test_the_same_law_by_formula_by_name_and_tied(app, table):
    common = ("--interval", "none", "--json")
    typed = said(app, "fit", table, "--law", "E + A*N**-a + B*D**-a", *common)
    named = said(app, "fit", table, "--law", "chinchilla", "--tie", "alpha=beta", *common)
    values = [{p["name"]: p["value"] for p in r["params"]} for r in (typed, named)]
    assert list(values[0].values()) == pytest.approx(list(values[1].values()), rel=1e-6)
    assert list(values[1]) == ["E", "A", "alpha", "B"]


def test_a_formula_may_use_a_column_of_the_file(app, table):
    frame = pd.read_csv(table)
    frame.assign(loss=frame.loss + 0.03 * frame.extra).to_csv(table, index=False)
    law = "E + A*N**-a + B*D**-a + k*extra"
    found = said(app, "fit", table, "--law", law, "--interval", "none", "--json")
    assert [p["name"] for p in found["params"]] == ["E", "A", "a", "B", "k"]
    assert found["params"][4]["value"] == pytest.approx(0.03, rel=0.03)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--fix", "N=3"), "no parameter 'N'"),
        (("--fix", "E=1,E=2"), "E is given twice"),
        (("--tie", "alpha"), "cannot be read; write it like alpha=beta"),
        (("--fix", "E=one"), "cannot be read; write it like gamma=1"),
        (("--bound", "alpha=3:1"), "cannot be read; write it like alpha=0:3"),
    ],
)
def test_options_that_name_no_parameter_are_refused(app, table, option, words):
    result = CliRunner().invoke(app, ["fit", table, "--law", "chinchilla", *option])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_every_verb_takes_the_options_of_fit(app, table):
    law = (
        "--law",
        "chinchilla",
        "--tie",
        "alpha=beta",
        "--interval",
        "none",
        "--json",
        "--resamples",
        "50",
    )
    at = said(app, "predict", table, "--at", "N=100M,D=10 billion", *law)
    assert at["question"] == "val_loss at n_params = 1e+08, n_tokens = 1e+10"
    assert [p["name"] for p in at["fit"]["params"]] == ["E", "A", "alpha", "B"]
    best = said(app, "optimal", table, "--budget", "1e20", *law)
    a = best["fit"]["params"]
    e = {p["name"]: p["value"] for p in a}
    n, d = best["values"][0], best["values"][1]
    assert (n["name"], d["name"]) == ("N*", "D*")
    # closed form of Hoffmann et al.: N* = (A/B)^(1/(2 alpha)) (C/6)^(1/2) for equal exponents
    assert n["value"] == pytest.approx(
        (e["A"] / e["B"]) ** (0.5 / e["alpha"]) * (1e20 / 6) ** 0.5, rel=1e-4
    )
    assert n["ci_low"] < n["value"] < n["ci_high"]
    assert n["value"] * d["value"] * 6 == pytest.approx(1e20)
    judged = said(app, "judge", table, *law)
    held = judged["errors on the largest held out"]
    assert [h["held_out"][:1] for h in held] == ["N", "D"]
    assert max(h["mean_abs_error"] for h in held) < 0.02
    assert api.parse_setting("N=1e8") == {"n_params": 1e8}


def test_the_tied_law_of_five_published_models(app, tmp_path):
    """Gadre et al. (arXiv:2403.08540), c4_original: N, D and loss on C4's validation set."""
    rows = """N,D,loss
411616256,8232325120,3.0417367343404416
78914048,1578280960,3.800284412392762
153677376,3073547520,3.4326457499105776
10569312,211386240,5.220676313056785
10569312,3382179840,4.506403529656214
"""
    path = tmp_path / "gadre.csv"
    path.write_text(rows)
    words = ("--tie", "alpha=beta", "--loss", "lsq", "--interval", "none", "--json")
    found = said(app, "fit", str(path), "--law", "chinchilla", *words)
    value = {p["name"]: p["value"] for p in found["params"]}
    assert value["alpha"] == pytest.approx(0.24247, abs=5e-6)
    assert value["E"] == pytest.approx(1.50826, abs=5e-6)
    assert value["A"] == pytest.approx(113.693, abs=5e-4)
    # published in C = 6 N D and M = D / N: b = B 6^(alpha / 2)
    assert value["B"] * 6 ** (value["alpha"] / 2) == pytest.approx(189.516, abs=1e-3)

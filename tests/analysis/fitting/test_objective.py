from dataclasses import replace

import numpy as np
import pytest

from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import fit
from analysis.fitting.objective import build, huber
from analysis.fitting.options import FitOptions
from analysis.laws import formula, library
from analysis.laws.law import Law, LawParam


@pytest.fixture
def columns():
    rng = np.random.default_rng(3)
    n = 40
    mu = rng.choice([1.0, 2.0, 4.0, 8.0], n)
    return {
        "n_params": rng.uniform(1e7, 1e9, n),
        "n_params_once": rng.uniform(1e7, 1e8, n),
        "n_params_core": rng.uniform(1e7, 1e8, n),
        "n_params_unrolled": rng.uniform(1e7, 1e9, n),
        "n_tokens": rng.uniform(1e8, 1e11, n),
        "train_flops": rng.uniform(1e17, 1e20, n),
        "mean_recurrence": mu,
        "unique_tokens": rng.uniform(1e8, 1e10, n),
        "val_loss": rng.uniform(2.0, 4.0, n),
        "n_loops": rng.choice([1.0, 2.0, 3.0, 6.0, 12.0], n),
    }


def built(law, columns, y, **options):
    data = Dataset.of({c: columns[c] for c in law.columns}, y)
    return build(law, data, FitOptions(**options))


def somewhere(objective, rng):
    """A theta inside the box, with every term worth something."""
    theta = rng.uniform(0.2, 1.0, len(objective.lower))
    return np.clip(theta, objective.lower, objective.upper)


@pytest.mark.parametrize("loss", ["huber", "lsq"])
@pytest.mark.parametrize("name", list(library.LAWS))
def test_the_jacobian_equals_finite_differences(name, loss, columns):
    rng = np.random.default_rng(0)
    objective = built(library.get(name), columns, rng.uniform(2.0, 4.0, 40), loss=loss)
    theta = somewhere(objective, rng)
    _, jacobian = objective.residuals_and_jacobian(theta)
    for i in range(len(theta)):
        step = np.zeros(len(theta))
        step[i] = 1e-6
        slope = (objective.residuals(theta + step) - objective.residuals(theta - step)) / 2e-6
        np.testing.assert_allclose(jacobian[:, i], slope, atol=1e-7 * (1 + np.abs(slope).max()))


def test_huber_is_quadratic_inside_and_linear_outside():
    r = np.array([-3.0, -0.5, 0.0, 1.0, 5.0])
    np.testing.assert_allclose(huber(r, 1.0), [2.5, 0.125, 0.0, 0.5, 4.5])
    np.testing.assert_allclose(huber(r, np.inf), r * r / 2)


def test_scipys_huber_cost_is_the_sum_of_huber_terms(columns):
    y = np.random.default_rng(0).uniform(2.0, 4.0, 40)
    objective = built(library.get("chinchilla"), columns, y, delta=0.05)
    found = objective.minimise(somewhere(objective, np.random.default_rng(1)))
    assert found.cost == pytest.approx(huber(objective.residuals(found.x), 0.05).sum(), rel=1e-12)


def test_predict_of_the_law_equals_the_objective_at_the_same_parameters(columns):
    for name in library.LAWS:
        law = library.get(name)
        objective = built(law, columns, np.full(40, 3.0))
        theta = somewhere(objective, np.random.default_rng(1))
        direct = law.predict(objective.natural(theta), objective.columns)
        np.testing.assert_allclose(direct, objective.parts(theta)[0], rtol=1e-9)


def test_integer_weights_are_repeated_rows(columns):
    law = library.get("chinchilla")
    rng = np.random.default_rng(5)
    truth = {"E": 1.8, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37}
    y = law.predict(truth, columns) * np.exp(0.01 * rng.standard_normal(40))
    counts = rng.multinomial(40, np.full(40, 1 / 40))
    objective = built(law, columns, y)
    start = fit(Dataset.of({c: columns[c] for c in law.columns}, y), law).theta
    weighted = objective.weighted(counts).descend(start)
    repeated = objective.rows(np.repeat(np.arange(40), counts)).descend(start)
    assert weighted.cost == pytest.approx(repeated.cost, rel=1e-9)


def test_the_box_is_respected_and_a_bound_is_named():
    law = library.get("frontier")
    flops = np.geomspace(1e17, 1e20, 20)
    y = 2.0 + 3.0 * (flops / 1e17) ** -3.5  # steeper than the bound of 3
    found = fit(Dataset.of({"train_flops": flops}, y), law, FitOptions(loss="log-lsq"))
    assert found.params["a"] == 3.0
    assert any("a lies at the bound 3" in p for p in found.problems)
    assert found.params["L_inf"] == pytest.approx(2.0, rel=1e-2)


def test_two_terms_may_share_an_exponent(columns):
    """Each term has its own spread; the exponent is one, and the optimum the true one."""
    law = library.get("chinchilla")
    tied = Law(
        name="tied",
        formula="L = E + A N^-a + B D^-a",
        columns=law.columns,
        terms=(
            law.terms[0],
            *(
                type(t)(coefficient=t.coefficient, exponent="a", variable=t.variable)
                for t in law.terms[1:]
            ),
        ),
        params=(
            *(p for p in law.params if p.kind == "coefficient"),
            LawParam(name="a", kind="exponent", meaning="both", bounds=(0.0, 3.0)),
        ),
        source="Gadre et al. (arXiv:2403.08540)",
    )
    truth = {"E": 1.8, "A": 400.0, "B": 1500.0, "a": 0.35}
    y = tied.predict(truth, columns)
    found = fit(Dataset.of({c: columns[c] for c in law.columns}, y), tied)
    assert found.params == pytest.approx(truth, rel=1e-6)
    # without terms the same law is fitted through its gradient
    again = fit(
        Dataset.of({c: columns[c] for c in law.columns}, y),
        replace(tied, terms=(), gradient=tied.with_slopes),
    )
    assert again.search.objective < 1e-12
    assert again.params["a"] == pytest.approx(0.35, rel=1e-5)
    assert again.params["A"] == pytest.approx(400.0, rel=1e-4)


def test_the_last_steps_never_leave_for_where_nothing_moves_the_objective():
    """From k = 2.2 a Gauss-Newton step ends at tanh = -1, where the slope is 0 and the misfit large."""
    x = np.linspace(0.5, 3.0, 20)
    law = formula.law("2 + tanh(k*N)", {"N": "n_params"})
    objective = built(law, {"n_params": x}, 2 + np.tanh(0.3 * x), loss="log-lsq")
    start = np.array([2.2])
    before = objective.value(start)
    moved, _ = objective._newton(start)
    assert objective.value(moved) <= before

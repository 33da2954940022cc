import numpy as np
import pytest

from analysis.fitting import fit, newton, objective
from analysis.laws import library


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
        "n_loops": rng.choice([1.0, 2.0, 3.0, 6.0, 12.0], n),
    }


@pytest.mark.parametrize("loss", ["huber", "log-lsq", "lsq"])
@pytest.mark.parametrize("name", list(library.LAWS))
def test_gradient_and_hessian_equal_finite_differences(name, loss, columns):
    law = library.get(name)
    rng = np.random.default_rng(0)
    y = rng.uniform(2.0, 4.0, 40)
    scaled = fit.scale(law, {c: columns[c] for c in law.columns}, y, loss, delta=0.3)
    theta = fit.starts(scaled, 3, rng)
    weights = rng.uniform(0.5, 2.0, (3, 40))
    _, gradient, hessian = objective.derivatives(scaled.problem, theta, weights)
    for i in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[i] = 1e-5
        up, down = theta + step, theta - step
        values = [objective.objective(scaled.problem, t, weights) for t in (up, down)]
        slopes = [objective.derivatives(scaled.problem, t, weights)[1] for t in (up, down)]
        scale = np.abs(gradient).max() + 1e-3
        np.testing.assert_allclose(
            gradient[:, i], (values[0] - values[1]) / 2e-5, atol=1e-5 * scale
        )
        # a residual that crosses delta within the step bends the difference, hence the looser bound
        np.testing.assert_allclose(
            hessian[:, i], (slopes[0] - slopes[1]) / 2e-5, atol=2e-3 * np.abs(hessian).max()
        )


def test_huber_is_quadratic_inside_and_linear_outside():
    r = np.array([-3.0, -0.5, 0.0, 1.0, 5.0])
    np.testing.assert_allclose(objective.huber(r, 1.0), [2.5, 0.125, 0.0, 0.5, 4.5])
    np.testing.assert_allclose(objective.huber(r, np.inf), r * r / 2)


def test_predict_of_the_law_equals_the_solver_at_the_same_parameters(columns):
    for name in library.LAWS:
        law = library.get(name)
        scaled = fit.scale(law, {c: columns[c] for c in law.columns}, np.full(40, 3.0))
        theta = fit.starts(scaled, 1, np.random.default_rng(1))
        values = {k: float(v[0]) for k, v in scaled.values(theta).items()}
        direct = law.predict(values, {c: columns[c] for c in law.columns})
        np.testing.assert_allclose(
            np.log(direct), objective.predict(scaled.problem, theta)[0], rtol=1e-9
        )


def test_integer_weights_are_repeated_rows(columns):
    law = library.get("chinchilla")
    rng = np.random.default_rng(5)
    data = {c: columns[c] for c in law.columns}
    truth = {"E": 1.8, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37}
    y = law.predict(truth, data) * np.exp(0.01 * rng.standard_normal(40))
    counts = rng.multinomial(40, np.full(40, 1 / 40))
    weighted = fit.scale(law, data, y)
    start = fit.starts(weighted, 4, rng)
    a = newton.continued(weighted.problem, start, np.tile(counts, (4, 1)).astype(float))
    index = np.repeat(np.arange(40), counts)
    repeated = fit.scale(law, {k: v[index] for k, v in data.items()}, y[index])
    b = newton.continued(repeated.problem, fit.starts(repeated, 4, rng))
    assert a.objective.min() == pytest.approx(b.objective.min(), rel=1e-9)


def test_box_is_respected_and_a_held_parameter_still_lets_the_others_move(columns):
    law = library.get("frontier")
    c = {"train_flops": np.geomspace(1e17, 1e20, 20)}
    y = 2.0 + 3.0 * (c["train_flops"] / 1e17) ** -3.5  # steeper than the bound of 3
    scaled = fit.scale(law, c, y, "log-lsq")
    found = fit.search(scaled, 8, np.random.default_rng(0))
    assert np.all(found.theta <= scaled.problem.upper)
    assert "a" in fit.at_bounds(scaled, found.theta)
    assert scaled.values(found.theta[None])["L_inf"][0] == pytest.approx(2.0, rel=1e-2)

"""How often 95 % intervals hold the truth, on data simulated from known laws.

    python benchmarks/interval_coverage.py --sets 1000 --out benchmarks/interval_coverage.csv

Everything here is simulated: the coefficients are the paper's (arXiv:2604.12946, 140M), the runs its
36 isoFLOP settings, the noise 0.2 % per run. `tests/analysis/test_coverage.py` reads the CSV, and
its slow test repeats a part of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import fit, isoflop, laws, uncertainty
from analysis.power import fit_line
from analysis.sources import Table

TRUTH = {"E": 2.662, "X": 522733.307, "x": 0.771, "Y": 25420.102, "y": 0.525}
BUDGETS = np.array([1e18, 2e18, 4e18, 8e18, 16e18, 64e18])
DEPTHS = np.array([2.0, 4.0, 6.0, 8.0, 10.0, 12.0])
NOISE = 2e-3
GAMMA = 0.4
Case = tuple[str, str, str, bool]  # law, interval, parameter, inside


def settings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, mu, D) of the 36 runs; FLOPs per token affine in mu, near Appendix D at 140M."""
    c, mu = np.repeat(BUDGETS, len(DEPTHS)), np.tile(DEPTHS, len(BUDGETS))
    return c, mu, c / (3.963e8 + 8.179e7 * mu)


def training(
    seed: int, methods=(("log-lsq", "profile"), ("huber", "profile"), ("huber", "bootstrap"))
) -> Iterator[Case]:
    """The training law under several losses and interval methods."""
    law = laws.get("training")
    _, mu, tokens = settings()
    columns = {"n_params_unrolled": 144_323_136 + (mu - 1) * 14_159_040, "n_tokens": tokens}
    rng = np.random.default_rng([seed, 0])
    y = law.predict(TRUTH, columns) * np.exp(NOISE * rng.standard_normal(len(mu)))
    for loss, kind in methods:
        scaled = fit.scale(law, columns, y, loss)
        best = fit.search(scaled, 4, np.random.default_rng(0))
        found = uncertainty.intervals(scaled, best, None, kind, 200, 0.95, rng)
        for name, true in TRUTH.items():
            low, high = found.low.get(name), found.high.get(name)
            inside = (low is None or low <= true) and (high is None or true <= high)
            yield f"training ({loss})", kind, name, inside


def recurrence(seed: int) -> Iterator[Case]:
    """Parabolas with an exact power law of the minimum; all minima enclosed by a wide grid."""
    c = np.repeat(BUDGETS, 7)
    mu = np.tile([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], len(BUDGETS))
    best = np.log(4.0) + GAMMA * np.log(c / 4e18)
    rng = np.random.default_rng([seed, 1])
    loss = (3 + 0.05 * (np.log(mu) - best) ** 2) * np.exp(NOISE * rng.standard_normal(len(c)))
    frame = pd.DataFrame(
        {
            "budget_flops": c,
            "mean_recurrence": mu,
            "n_tokens": c / (4e8 + 8e7 * mu),
            "val_loss": loss,
        }
    )
    found = isoflop.fit_recurrence(Table(frame=frame, source="-", kind="points", origin="-"))
    gamma = found.result["gamma_mu"]
    yield (
        "recurrence",
        "Student t",
        "gamma_mu",
        gamma.value is not None and gamma.ci_low <= GAMMA <= gamma.ci_high,
    )
    for p in found.parabolas:
        if p.axis == "mean_recurrence" and p.budget_flops == 4e18:
            low, high = p.ci_low or 0.0, p.ci_high or np.inf
            yield "recurrence", "Fieller", "optimum", low <= 4.0 <= high


def test_time(seed: int) -> Iterator[Case]:
    """One run's curve with independent noise per point, which real curves do not have."""
    loops = np.array([1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24], dtype=float)
    truth = {"L_inf": 2.9, "Z": 0.8, "z": 0.45}
    law = laws.get("test-time")
    rng = np.random.default_rng([seed, 2])
    y = law.predict(truth, {"n_loops": loops}) * np.exp(3e-4 * rng.standard_normal(len(loops)))
    scaled = fit.scale(law, {"n_loops": loops}, y, "log-lsq")
    best = fit.search(scaled, 4, np.random.default_rng(0))
    found = uncertainty.linear(scaled, best.theta, 0.95)
    for name, true in truth.items():
        yield "test-time", "linear", name, found.low[name] <= true <= found.high[name]


def power(seed: int) -> Iterator[Case]:
    """A power law through six points."""
    rng = np.random.default_rng([seed, 3])
    low, high = fit_line(
        BUDGETS, BUDGETS**GAMMA * np.exp(0.1 * rng.standard_normal(6))
    ).gamma_interval
    yield "power", "Student t", "gamma", low <= GAMMA <= high


test_time.__test__ = False
CASES: tuple[Callable[[int], Iterator[Case]], ...] = (training, recurrence, test_time, power)


def coverage(n_sets: int, cases=CASES) -> pd.DataFrame:
    """Share of data sets whose interval holds the truth, per law, method and parameter."""
    rows = [row for seed in range(n_sets) for case in cases for row in case(seed)]
    frame = pd.DataFrame(rows, columns=["law", "interval", "parameter", "inside"])
    keys = ["law", "interval", "parameter"]
    return frame.groupby(keys, sort=False).inside.agg(coverage="mean", sets="size").reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    table = coverage(arguments.sets)
    print(table.to_string(index=False))
    if arguments.out is not None:
        table.to_csv(arguments.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()

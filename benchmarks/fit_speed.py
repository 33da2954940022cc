"""How long fits take, beside a plain 500-start L-BFGS of the same objective.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.fit_speed [--csv FILE] [--record]

Seconds are of CPU (rows before 2026-11-25: of the clock). Data: 240 simulated points of a Chinchilla law (seed 0, 1 % noise); with --csv the points of a file
with columns "Model Size", "Training FLOP", "loss" less its five highest losses. Free of torch.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import minimize
from scipy.special import logsumexp

from analysis import api
from analysis.fitting import intervals, profile
from analysis.fitting.dataset import Dataset, prepare
from analysis.fitting.fit import fit
from analysis.fitting.objective import build, huber
from analysis.fitting.options import FitOptions
from analysis.fitting.result import FitResult
from analysis.fitting.search import Search, search
from analysis.laws import library
from analysis.table import load
from benchmarks.common import commit, quantiles

RESULTS = Path(__file__).parent / "results" / "fit_speed.csv"
CHINCHILLA_COLUMNS = {"n_params": "Model Size", "train_flops": "Training FLOP", "val_loss": "loss"}
CHINCHILLA = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
UNIFIED = {
    "E": 2.66,
    "X": 5.2e5,
    "x": 0.77,
    "Y": 2.5e4,
    "y": 0.525,
    "Z": 1.2,
    "z": 6.0,
    "gamma": 1.0,
}


def chinchilla(path: Path | None) -> tuple[Dataset, str]:
    """The points, and what they are called."""
    law = library.get("chinchilla")
    if path is not None:
        table = replace(load.load(path, CHINCHILLA_COLUMNS), drop_highest=5)
        return prepare(table, law), path.name
    rng = np.random.default_rng(0)
    columns = {
        "n_params": 10 ** rng.uniform(7.7, 10.2, 240),
        "n_tokens": 10 ** rng.uniform(9, 11.5, 240),
    }
    y = law.predict(CHINCHILLA, columns) * np.exp(0.01 * rng.standard_normal(240))
    return Dataset.of(columns, y), "simulated"


def unified() -> Dataset:
    """540 points: 54 runs x 10 numbers of loops."""
    rng = np.random.default_rng(0)
    budget, mu = np.repeat(np.geomspace(1e18, 64e18, 9), 6), np.tile([2.0, 4, 6, 8, 10, 12], 9)
    loops = np.array([1.0, 2, 4, 6, 8, 10, 12, 16, 20, 24])
    columns = {
        "n_params_unrolled": np.repeat(144_323_136 + (mu - 1) * 14_159_040, 10),
        "n_tokens": np.repeat(budget / (3.963e8 + 8.179e7 * mu), 10),
        "mean_recurrence": np.repeat(mu, 10),
        "n_loops": np.tile(loops, 54),
    }
    law = library.get("unified")
    y = law.predict(UNIFIED, columns) * np.exp(2e-3 * rng.standard_normal(540))
    return Dataset.of(columns, y, runs=np.repeat(np.arange(54), 10))


def training() -> Dataset:
    """The 36 runs of the paper's grid with 0.2 % noise, as benchmarks/interval_coverage.py draws them."""
    budget, mu = (
        np.repeat([1e18, 2e18, 4e18, 8e18, 16e18, 64e18], 6),
        np.tile([2.0, 4, 6, 8, 10, 12], 6),
    )
    columns = {
        "n_params_unrolled": 144_323_136 + (mu - 1) * 14_159_040,
        "n_tokens": budget / (3.963e8 + 8.179e7 * mu),
    }
    noise = np.exp(2e-3 * np.random.default_rng([0, 0]).standard_normal(36))
    return Dataset.of(columns, library.get("training").predict(UNIFIED, columns) * noise)


def million() -> Dataset:
    """1,000,000 points of the Chinchilla law, 1 % noise."""
    rng, n = np.random.default_rng(0), 1_000_000
    columns = {"n_params": 10 ** rng.uniform(7, 10, n), "n_tokens": 10 ** rng.uniform(8, 12, n)}
    y = library.get("chinchilla").predict(CHINCHILLA, columns) * np.exp(
        0.01 * rng.standard_normal(n)
    )
    return Dataset.of(columns, y)


def nano() -> FitResult:
    """As `parcae fit bundled:nano-isoflop --law unified`."""
    return api.fit_source("bundled:nano-isoflop", "unified")


def plain_lbfgs(data: Dataset, n_starts: int) -> tuple[float, int]:
    """Uncentred log-sum-exp parameters, analytic gradient, SciPy's defaults: (best F, starts within 1e-6)."""
    log_n, log_d = np.log(data.columns["n_params"]), np.log(data.columns["n_tokens"])
    log_y, delta = np.log(data.target), 1e-3

    def both(theta):
        e, a, alpha, b, beta = theta
        u = np.stack([np.full(len(log_y), e), a - alpha * log_n, b - beta * log_d])
        log_loss = logsumexp(u, axis=0)
        share = np.exp(u - log_loss)
        r = log_loss - log_y
        slope = share * np.clip(r, -delta, delta)
        gradient = [
            slope[0].sum(),
            slope[1].sum(),
            -(slope[1] @ log_n),
            slope[2].sum(),
            -(slope[2] @ log_d),
        ]
        return huber(r, delta).sum(), np.array(gradient)

    rng = np.random.default_rng(0)
    found = []
    for _ in range(n_starts):
        start = rng.uniform([-1, 0, 0, 0, 0], [1, 25, 2, 25, 2])
        found.append(minimize(both, start, jac=True, method="L-BFGS-B").fun)
    found = np.array(found)
    return float(found.min()), int((found <= found.min() * (1 + 1e-6)).sum())


def timed(work: Callable[[], object], repeats: int) -> tuple[list[float], object]:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        out = work()
        seconds.append(time.process_time() - start)
    return seconds, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    parser.add_argument("--baseline-starts", type=int, default=500)
    arguments = parser.parse_args()
    data, label = chinchilla(arguments.csv)
    laws = {n: library.get(n) for n in ("chinchilla", "training", "unified")}
    objective = build(laws["chinchilla"], data, FitOptions())
    rng = np.random.default_rng
    best = search(objective, 16, rng(0))
    counts = intervals.counts(data, 1000, rng(0))
    uni = build(laws["unified"], unified(), FitOptions())
    runs = training()
    run_objective = build(laws["training"], runs, FitOptions())
    run_best = search(run_objective, 16, rng(0))
    jobs = {
        "chinchilla, 8 starts": (lambda: search(objective, 8, rng(1)), 9),
        "chinchilla, 16 starts": (lambda: search(objective, 16, rng(1)), 9),
        "chinchilla, 100 starts": (lambda: search(objective, 100, rng(1)), 3),
        "chinchilla, 1000 bootstrap refits": (
            lambda: intervals.refits(objective, best.theta, counts),
            3,
        ),
        "chinchilla, 5 profiles": (lambda: profile.intervals(objective, best, data, 0.95)[0], 3),
        "training, 36 runs, 5 profiles": (
            lambda: profile.intervals(run_objective, run_best, runs, 0.95)[0],
            3,
        ),
        "unified, 540 points, 16 starts": (lambda: search(uni, 16, rng(1)), 3),
        "fit --law unified, bundled nano records": (nano, 1),
        "chinchilla, 1000000 rows, default interval": (
            lambda: fit(million(), laws["chinchilla"]).result,
            1,
        ),
        f"baseline L-BFGS, {arguments.baseline_starts} starts": (
            lambda: plain_lbfgs(data, arguments.baseline_starts),
            1,
        ),
    }
    for name, (work, repeats) in jobs.items():
        seconds, out = timed(work, repeats)
        given = name.startswith(("chinchilla", "baseline")) and "1000000" not in name
        row = _row(name, label if given else "simulated", seconds, _said(out))
        print(f"{name:<36} {row['median_s']:>9} s   {row['outcome']}", flush=True)
        if arguments.record:
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)


def _said(out) -> str:
    if isinstance(out, FitResult):
        return f"F = {out.objective:.14g}, {out.interval_method}"
    if isinstance(out, Search):
        return f"F = {out.objective:.14g}, {out.n_agree} of {out.n_starts} starts agree"
    if isinstance(out, tuple) and isinstance(out[0], float):
        return f"F = {out[0]:.14g}, {out[1]} starts agree"
    if isinstance(out, tuple):
        return f"{int(out[1].sum())} of {len(out[1])} converged"
    return f"{len(out.low)} parameters"


def _row(name, data, seconds, outcome) -> dict:
    median, low, high = quantiles(seconds) if len(seconds) > 1 else seconds * 3
    return {
        "job": name,
        "data": data,
        "median_s": f"{median:.4f}",
        "q20_s": f"{low:.4f}",
        "q80_s": f"{high:.4f}",
        "repeats": len(seconds),
        "outcome": outcome,
        "date": date.today().isoformat(),
        "commit": commit(),
        "cpu": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


if __name__ == "__main__":
    main()

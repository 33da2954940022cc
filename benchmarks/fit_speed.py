"""How long fits take, beside a plain 500-start L-BFGS of the same objective.

    OPENBLAS_NUM_THREADS=1 python benchmarks/fit_speed.py [--csv FILE] [--record]

Data: 240 simulated points of a Chinchilla law (seed 0, 1 % noise); with --csv the points of a file
with columns "Model Size", "Training FLOP", "loss" less its five highest losses. Free of torch.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import minimize

from analysis import api
from analysis.fitting import fit, intervals, objective, profile
from analysis.laws import library
from analysis.table import load

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


def chinchilla(path: Path | None):
    """(columns, losses, label)."""
    law = library.get("chinchilla")
    if path is not None:
        table = api._without_highest(load.load(path, CHINCHILLA_COLUMNS), 5)
        columns, y, _ = fit.observations(table, law)
        return columns, y, path.name
    rng = np.random.default_rng(0)
    columns = {
        "n_params": 10 ** rng.uniform(7.7, 10.2, 240),
        "n_tokens": 10 ** rng.uniform(9, 11.5, 240),
    }
    return (
        columns,
        law.predict(CHINCHILLA, columns) * np.exp(0.01 * rng.standard_normal(240)),
        "simulated",
    )


def unified():
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
    return columns, law.predict(UNIFIED, columns) * np.exp(2e-3 * rng.standard_normal(540))


def plain_lbfgs(columns, y, n_starts: int) -> tuple[float, int]:
    """Uncentred log-sum-exp parameters, analytic gradient, SciPy's defaults: (best F, starts within 1e-6)."""
    log_n, log_d, log_y = np.log(columns["n_params"]), np.log(columns["n_tokens"]), np.log(y)
    problem = objective.Problem(
        terms=(
            objective.Term(c=0, x=np.zeros(len(y))),
            objective.Term(c=1, k=2, x=log_n),
            objective.Term(c=3, k=4, x=log_d),
        ),
        y=log_y,
        lower=np.full(5, -np.inf),
        upper=np.full(5, np.inf),
    )
    weights = np.ones((1, len(y)))

    def both(theta):
        value, gradient, _ = objective.derivatives(problem, theta[None], weights)
        return value[0], gradient[0]

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
        start = time.perf_counter()
        out = work()
        seconds.append(time.perf_counter() - start)
    return seconds, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    parser.add_argument("--baseline-starts", type=int, default=500)
    arguments = parser.parse_args()
    columns, y, label = chinchilla(arguments.csv)
    scaled = fit.scale(library.get("chinchilla"), columns, y)
    best = fit.search(scaled, 16, np.random.default_rng(0))
    counts = intervals.case_counts(len(y), 1000, np.random.default_rng(0))
    uni_columns, uni_y = unified()
    uni = fit.scale(library.get("unified"), uni_columns, uni_y)
    rng = np.random.default_rng
    jobs = {
        "chinchilla, 16 starts": (lambda: fit.search(scaled, 16, rng(1)), 9),
        "chinchilla, 100 starts": (lambda: fit.search(scaled, 100, rng(1)), 3),
        "chinchilla, 1000 bootstrap refits": (
            lambda: intervals.refits(scaled, best.theta, counts),
            3,
        ),
        "chinchilla, 5 profiles": (lambda: profile.profile_intervals(scaled, best.theta, 0.95), 3),
        "unified, 540 points, 16 starts": (lambda: fit.search(uni, 16, rng(1)), 3),
        f"baseline L-BFGS, {arguments.baseline_starts} starts": (
            lambda: plain_lbfgs(columns, y, arguments.baseline_starts),
            1,
        ),
    }
    rows = []
    for name, (work, repeats) in jobs.items():
        seconds, out = timed(work, repeats)
        rows.append(
            _row(name, label if "unified" not in name else "simulated", seconds, _said(out))
        )
        print(f"{name:<36} {rows[-1]['median_s']:>9} s   {rows[-1]['outcome']}")
    if arguments.record:
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)


def _said(out) -> str:
    if isinstance(out, fit.Search):
        return f"F = {out.objective:.14g}, {out.n_agree} of {out.n_starts} starts agree"
    if isinstance(out, tuple) and isinstance(out[0], float):
        return f"F = {out[0]:.14g}, {out[1]} starts agree"
    if isinstance(out, tuple):
        return f"{int(out[1].sum())} of {len(out[1])} converged"
    return f"{len(out.low)} parameters"


def _row(name, data, seconds, outcome) -> dict:
    cuts = (
        statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else seconds * 4
    )
    commit = subprocess.run(
        [
            "git",
            "-C",
            str(Path(__file__).parent),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=9",
            "--exclude=*",
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "job": name,
        "data": data,
        "median_s": f"{statistics.median(seconds):.4f}",
        "q20_s": f"{cuts[0]:.4f}",
        "q80_s": f"{cuts[3]:.4f}",
        "repeats": len(seconds),
        "outcome": outcome,
        "date": date.today().isoformat(),
        "commit": commit or "unknown",
        "cpu": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


if __name__ == "__main__":
    main()

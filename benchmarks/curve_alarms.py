"""How often the judgement of test-time curves (analysis/misfit.py) refuses a curve that is clean.

    python -m benchmarks.curve_alarms --sets 125

Simulated: L_inf + Z exp(-z T) with independent noise of 0.01 to 2 % on the loss, 6 to 24 numbers of
loops up to 32, z from 0.1 to 1; `--sets` curves of each of 6 x 7 kinds. docs/laws.md has the numbers.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions
from analysis.laws import library
from analysis.misfit import misfit

NOISE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2)
POINTS = (6, 8, 10, 12, 16, 20, 24)
LAW = library.get("test-time")


def refused(noise: float, points: int, seed: int) -> str:
    """The sentence against one clean curve; empty when it stands."""
    rng = np.random.default_rng([seed, points, round(1e4 * noise)])
    loops = np.unique(np.geomspace(1, 32, 2 * points).round())
    loops = loops[np.linspace(0, len(loops) - 1, min(points, len(loops))).round().astype(int)]
    truth = {"L_inf": 2.9, "Z": 0.6, "z": rng.uniform(0.1, 1.0)}
    loss = LAW.predict(truth, {"n_loops": loops}) * np.exp(noise * rng.standard_normal(len(loops)))
    options = FitOptions(loss="log-lsq", interval="none", n_starts=4)
    found = fit(Dataset.of({"n_loops": loops}, loss), LAW, options)
    return misfit(LAW, found.params, loops, loss)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=125, help="curves of each kind")
    sets = parser.parse_args().sets
    rows = [
        (noise, points, bool(words), words[:15])
        for noise in NOISE
        for points in POINTS
        for words in (refused(noise, points, seed) for seed in range(sets))
    ]
    table = pd.DataFrame(rows, columns=["noise", "points", "refused", "why"])
    print(table.groupby("noise").refused.agg(["mean", "sum", "size"]).to_string())
    print(table.groupby("points").refused.agg(["mean", "sum", "size"]).to_string())
    print(table[table.refused].why.value_counts().to_string())
    print(f"{table.refused.mean():.2%} of {len(table)} clean curves are refused")


if __name__ == "__main__":
    main()

"""Adaptive sweeps against the standard grid, simulated from the paper's laws.

    python -m benchmarks.design_sweeps --law paper:140m --noise 0.002 --share 0.2 --repetitions 100

The truth is the published training law (arXiv:2604.12946) at the preset's own parameters and FLOPs per token;
the grid is the paper's, mu 2 to 12 at each of its budgets. Both are fitted alike (log least squares) and give
the same two numbers: the 95 % interval of gamma_mu (over the grid's budgets whose optimum lies at one loop or
more), and whether it holds the truth. The adaptive sweep may spend `--share` of the grid's FLOPs, on the same
budgets (at 370M also on 8e18 and 1.6e19 FLOPs) and on up to 64 loops, which the optimum of this law at the
largest budget needs. Who plans believes a law whose every parameter is off by 3 % (one standard deviation).
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from analysis.design.adaptive import Estimate, Grid, Planner
from analysis.design.optimum import LAW, Size, draws_of, enclosed
from analysis.design.priors import PUBLISHED, Prior, read
from benchmarks.common import RESULTS, commit
from benchmarks.design import write_row
from parcae_core.accounting.flops import train_flops_per_token
from parcae_core.accounting.params import count_params
from parcae_core.depth import PoissonDepth, default_backprop_depth
from parcae_core.presets import preset
from sweeps.design.spec import REACH

BUDGETS = {
    "paper:140m": (1e18, 2e18, 4e18, 8e18, 16e18, 64e18),
    "paper:370m": (3.2e19, 6.4e19, 1.28e20),
}
# cheaper budgets that an adaptive sweep may use too: the 370M grid starts at a sixth of what it spends in all
CHEAPER = {"paper:140m": (), "paper:370m": (8e18, 16e18)}
GRID_DEPTHS = (2, 4, 6, 8, 10, 12)
DEPTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BATCH = 8  # slots of the cluster


def size_of(law: str) -> Size:
    """Parameters and FLOPs per token (paper's rule) of the law's preset."""
    model = preset(law.removeprefix("paper:"))
    counts = count_params(model)
    depths = np.array([2, 4, 8, 16, 32])  # even: mu_bwd is mu / 2
    cost = [
        train_flops_per_token(
            model,
            PoissonDepth(
                mean_recurrence=int(m), mean_backprop_depth=default_backprop_depth(int(m))
            ),
            model.context,
            "paper",
        ).total
        for m in depths
    ]
    slope, base = np.polyfit(depths, cost, 1)
    return Size(
        n_params=counts.total,
        n_params_core=counts.core,
        flops_at_zero=base,
        flops_per_loop=slope,
    )


def sweep(planner: Planner, truth: np.ndarray, noise: float, seed: int) -> Estimate:
    """One simulated adaptive sweep, to its end."""
    rng, done = np.random.default_rng([seed, 7]), []
    while new := planner.next(done, [], _BATCH)[0]:
        done += [(d.row, truth[d.row] * np.exp(noise * rng.standard_normal())) for d in new]
    return estimated(planner, done)


def grid_estimate(planner: Planner, noise: float, seed: int) -> Estimate:
    """The standard grid on the same truth."""
    rng = np.random.default_rng([seed, 8])
    truth = LAW.predict(planner.prior.values, planner.grid.columns)
    noisy = [loss * np.exp(noise * rng.standard_normal()) for loss in truth]
    return estimated(planner, list(enumerate(noisy)))


def estimated(planner: Planner, done: list[tuple[int, float]]) -> Estimate:
    """gamma_mu by these runs; open where they show no optimum at any budget."""
    flops = float(planner.grid.budget_flops[[row for row, _ in done]].sum())
    return planner.estimate(done) or Estimate(np.nan, -np.inf, np.inf, len(done), flops)


def row(law: str, noise: float, share: float, repetitions: int) -> dict:
    """Median half widths, coverage and FLOPs of both."""
    size, prior = size_of(law), read(law, noise)
    budgets = np.array(BUDGETS[law])
    standard = Grid.of(size, budgets, GRID_DEPTHS)
    free = Grid.of(size, [*CHEAPER[law], *budgets], DEPTHS)
    over = enclosed(prior.values, size, budgets)
    values = {n: np.array([v]) for n, v in PUBLISHED[law].items()}
    gamma = float(draws_of(("gamma_mu",), values, size, over)[0, 0])
    total = float(standard.budget_flops.sum())
    truth = LAW.predict(prior.values, free.columns)

    def planner(grid: Grid, seed: int, wrong: Prior) -> Planner:
        return Planner(
            grid=grid,
            prior=wrong,
            target="gamma_mu",
            total_flops=share * total,
            reach=REACH,
            budgets=over,
            seed=seed,
        )

    ours, theirs = [], []
    for seed in range(repetitions):
        rng = np.random.default_rng([seed, 9])
        off = {n: v * np.exp(0.03 * rng.standard_normal()) for n, v in prior.values.items()}
        wrong = Prior(values=off, noise=noise, source="", noise_source="")
        ours.append(sweep(planner(free, seed, wrong), truth, noise, seed))
        theirs.append(grid_estimate(planner(standard, seed, prior), noise, seed))

    def holds(found: list[Estimate]) -> float:
        return float(np.mean([e.low <= gamma <= e.high for e in found]))

    return {
        "law": law,
        "noise": noise,
        "share": share,
        "gamma_mu": round(gamma, 4),
        "half_grid": round(float(np.median([e.half for e in theirs])), 4),
        "half_adaptive": round(float(np.median([e.half for e in ours])), 4),
        "open_grid": float(np.mean([np.isinf(e.half) for e in theirs])),
        "open_adaptive": float(np.mean([np.isinf(e.half) for e in ours])),
        "no_wider": round(
            float(np.mean([a.half <= b.half for a, b in zip(ours, theirs, strict=True)])), 4
        ),
        "coverage_grid": holds(theirs),
        "coverage_adaptive": holds(ours),
        "runs_grid": len(standard.budget_flops),
        "runs_adaptive": float(np.mean([e.n_runs for e in ours])),
        "flops_adaptive": round(float(np.mean([e.flops for e in ours])) / total, 4),
        "repetitions": repetitions,
        "date": date.today().isoformat(),
        "commit": commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--law", choices=BUDGETS, default="paper:140m")
    parser.add_argument("--noise", type=float, default=0.002, help="of one run's log loss")
    parser.add_argument("--share", type=float, default=0.2, help="of the grid's FLOPs")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "design_sweeps.csv")
    given = parser.parse_args()
    found = row(given.law, given.noise, given.share, given.repetitions)
    write_row(given.out, found, ("law", "noise", "share"))
    print(found)


if __name__ == "__main__":
    main()

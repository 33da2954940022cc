"""How often 95 % intervals hold the truth, on data simulated from known laws.

    python benchmarks/interval_coverage.py --sets 1000 --jobs 2 --out benchmarks/interval_coverage.csv
    python benchmarks/interval_coverage.py --draw benchmarks/interval_coverage.csv --figures docs/figures

Everything here is simulated: the coefficients are the paper's (arXiv:2604.12946, 140M; iso-depth:
arXiv:2604.21106; Chinchilla: arXiv:2404.10102), the runs its 36 isoFLOP settings, the noise 0.2 %
per run. `tests/analysis/fitting/test_coverage.py` reads the CSV, and its slow test repeats a part of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import Fit, default_interval, fit
from analysis.fitting.options import FitOptions
from analysis.fitting.search import project
from analysis.isoflop import parabolas
from analysis.isoflop.power_law import fit_line
from analysis.laws import library
from analysis.table.load import Table

TRUTH = {"E": 2.662, "X": 522733.307, "x": 0.771, "Y": 25420.102, "y": 0.525}
UNIFIED = TRUTH | {"Z": 1.2, "z": 6.0, "gamma": 1.0}
CHINCHILLA = {"E": 1.8172, "A": 477.83, "alpha": 0.34731, "B": 2143.4, "beta": 0.36717}
ISO_DEPTH = {"E": 1.57, "A": 30.0, "alpha": 0.199, "B": 6000.0, "beta": 0.369, "phi": 0.459}
BUDGETS = np.array([1e18, 2e18, 4e18, 8e18, 16e18, 64e18])
DEPTHS = np.array([2.0, 4.0, 6.0, 8.0, 10.0, 12.0])
LOOPS = np.array([1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0])
NOISE = 2e-3
GAMMA = 0.4
KEYS = ["law", "interval", "parameter"]
Case = tuple[str, str, str, bool]  # KEYS, inside
CHUNK = 25  # sets after which the table is written


def settings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, mu, D) of the 36 runs; FLOPs per token affine in mu, near Appendix D at 140M."""
    c, mu = np.repeat(BUDGETS, len(DEPTHS)), np.tile(DEPTHS, len(BUDGETS))
    return c, mu, c / (3.963e8 + 8.179e7 * mu)


def training(seed: int) -> Iterator[Case]:
    """The training law."""
    yield from _parametric("training", TRUTH, *_training_set(seed)[:2])


def least_squares(seed: int) -> Iterator[Case]:
    """The same by least squares on the log loss."""
    yield from _parametric("training", TRUTH, *_training_set(seed)[:2], loss="log-lsq")


def undertuned(seed: int) -> Iterator[Case]:
    """The same with one run in ten worse by 1 to 10 %, as a bad learning rate or a near divergence leaves it."""
    columns, y, rng = _training_set(seed)
    bad = rng.choice(len(y), round(len(y) / 10), replace=False)
    y[bad] *= 1 + rng.uniform(0.01, 0.1, len(bad))
    yield from _parametric("training", TRUTH, columns, y, label="training, 10 % undertuned (huber)")


def _training_set(seed: int):
    _, mu, tokens = settings()
    columns = {"n_params_unrolled": 144_323_136 + (mu - 1) * 14_159_040, "n_tokens": tokens}
    rng = np.random.default_rng([seed, 0])
    return columns, library.get("training").predict(TRUTH, columns) * _luck(rng, len(mu)), rng


def chinchilla(seed: int) -> Iterator[Case]:
    """The Chinchilla law on 60 models and budgets, as small a study as is still published."""
    rng = np.random.default_rng([seed, 4])
    columns = {
        "n_params": 10 ** rng.uniform(7.7, 10.2, 60),
        "n_tokens": 10 ** rng.uniform(9, 11.5, 60),
    }
    y = library.get("chinchilla").predict(CHINCHILLA, columns) * _luck(rng, 60)
    yield from _parametric("chinchilla", CHINCHILLA, columns, y)


def iso_depth(seed: int) -> Iterator[Case]:
    """r in {1, 2, 4, 8} x six widths x four budgets at equal unrolled depth."""
    rng = np.random.default_rng([seed, 5])
    r, width, budget = (
        g.ravel()
        for g in np.meshgrid(
            [1.0, 2.0, 4.0, 8.0],
            [256.0, 384.0, 512.0, 640.0, 768.0, 1024.0],
            [1e18, 4e18, 16e18, 64e18],
            indexing="ij",
        )
    )
    block = 12 * width**2
    columns = {
        "n_params_once": 4 * block + 32_768 * width,
        "n_params_core": 8 / r * block,
        "mean_recurrence": r,
        "n_tokens": budget / (6 * (12 * block + 32_768 * width)),
    }
    y = library.get("iso-depth").predict(ISO_DEPTH, columns) * _luck(rng, len(r))
    cells = np.unique(np.stack([r, budget]), axis=1, return_inverse=True)[1]
    yield from _parametric("iso-depth", ISO_DEPTH, columns, y, runs=cells)


def unified(seed: int) -> Iterator[Case]:
    """The unified law: 36 runs read out at ten numbers of loops; a run's luck is in all of them."""
    rng = np.random.default_rng([seed, 6])
    _, mu, tokens = (np.repeat(v, len(LOOPS)) for v in settings())
    columns = {
        "n_params_unrolled": 144_323_136 + (mu - 1) * 14_159_040,
        "n_tokens": tokens,
        "mean_recurrence": mu,
        "n_loops": np.tile(LOOPS, len(BUDGETS) * len(DEPTHS)),
    }
    luck = np.repeat(_luck(rng, len(BUDGETS) * len(DEPTHS)), len(LOOPS))
    own = np.exp(0.1 * NOISE * rng.standard_normal(len(mu)))
    y = library.get("unified").predict(UNIFIED, columns) * luck * own
    runs = np.repeat(np.arange(len(y) // len(LOOPS)), len(LOOPS))
    yield from _parametric("unified", UNIFIED, columns, y, runs=runs)


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
    found = parabolas.fit_recurrence(Table(frame=frame, source="-", kind="points", origin="-"))
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
    law = library.get("test-time")
    rng = np.random.default_rng([seed, 2])
    y = law.predict(truth, {"n_loops": loops}) * np.exp(3e-4 * rng.standard_normal(len(loops)))
    options = FitOptions(loss="log-lsq", interval="linear", n_starts=4)
    found = fit(Dataset.of({"n_loops": loops}, y), law, options)
    for name, true in truth.items():
        yield "test-time", "linear", name, _within(found, name, true)


def power(seed: int) -> Iterator[Case]:
    """A power law through six points."""
    rng = np.random.default_rng([seed, 3])
    low, high = fit_line(
        BUDGETS, BUDGETS**GAMMA * np.exp(0.1 * rng.standard_normal(6))
    ).gamma_interval
    yield "power", "Student t", "gamma", low <= GAMMA <= high


test_time.__test__ = False
CASES: dict[str, Callable[[int], Iterator[Case]]] = {
    f.__name__: f
    for f in (
        recurrence,
        test_time,
        power,
        training,
        least_squares,
        undertuned,
        chinchilla,
        iso_depth,
        unified,
    )
}


def _luck(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(NOISE * rng.standard_normal(n))


def _parametric(name, truth, columns, y, loss="huber", runs=None, label=None) -> Iterator[Case]:
    """The default interval of each parameter."""
    data, law = Dataset.of(columns, y, runs), library.get(name)
    kind = default_interval(law, data)
    # of the 1,000 resamples of the default 200 are drawn, as the authors of iso-depth's law did
    given = None if kind == "block" else "none"
    found = fit(data, law, FitOptions(loss=loss, n_starts=2, n_resamples=200, interval=given))
    for p, true in truth.items():
        inside = _within(found, p, true) if kind == "block" else _profile_holds(found, p, true)
        yield label or f"{name} ({loss})", kind, p, inside


def _within(found: Fit, name: str, true: float) -> bool:
    low, high = found.intervals.low[name], found.intervals.high[name]
    return (low is None or low <= true) and (high is None or true <= high)


def _profile_holds(found: Fit, name: str, true: float) -> bool:
    """Whether a refit with the parameter held at its true value is no worse than chance allows.

    That is what lying inside a profile's interval means; its two ends cost a dozen refits more.
    """
    objective, shape, index = found.objective, found.curvature, found.law.names.index(name)
    held = objective.holding(index)
    is_coefficient = found.law.params[index].kind == "coefficient"
    start = found.theta.copy()
    start[index] = true * (1.0 if is_coefficient else objective.scale_of(index))
    allowed = float(stdtrit(shape.dof[index], 0.975)) ** 2 / (2 * shape.deviance[index])

    def inside(begin) -> bool:
        refit = held.minimise(begin, tolerance=1e-8, ftol=1e-6)
        return refit.cost <= found.search.objective + allowed

    return inside(start) or inside(project(held, start).x)


def coverage(n_sets: int, cases=tuple(CASES), jobs: int = 1, first: int = 0) -> pd.DataFrame:
    """Share of data sets whose interval holds the truth, per law, method and parameter.

    Args:
        first: the seed of the first set, to go on from an earlier table.

    Returns:
        law, interval, parameter, coverage, its Monte Carlo 95 % interval (Wilson), sets.
    """
    tasks = [(case, seed) for case in cases for seed in range(first, first + n_sets)]
    if jobs == 1:
        rows = [row for task in tasks for row in _one_set(task)]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            rows = [row for part in pool.map(_one_set, tasks, chunksize=5) for row in part]
    return tabulated(rows)


def tabulated(rows: list[Case]) -> pd.DataFrame:
    """Cases counted."""
    frame = pd.DataFrame(rows, columns=["law", "interval", "parameter", "inside"])
    found = frame.groupby(KEYS, sort=False).inside.agg(["sum", "size"]).reset_index()
    return _shares(found.rename(columns={"sum": "inside", "size": "sets"}))


def merged(table: pd.DataFrame | None, part: pd.DataFrame, fresh: bool) -> pd.DataFrame:
    """A table with the counts of `part` in place of its own, or added to them."""
    if table is None:
        return part
    if fresh:
        return pd.concat([table[~table.law.isin(part.law)], part], ignore_index=True)
    both = pd.concat([table, part])
    both["inside"] = (both.coverage * both.sets).round()
    return _shares(both.groupby(KEYS, sort=False)[["inside", "sets"]].sum().reset_index())


def _shares(counts: pd.DataFrame) -> pd.DataFrame:
    share = counts.inside / counts.sets
    low, high = wilson(share, counts.sets)
    return counts[KEYS].assign(coverage=share, low=low, high=high, sets=counts.sets).round(4)


def wilson(share, n):
    """95 % interval of a binomial share. Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209."""
    z2 = 1.959964**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return middle - half, middle + half


def _one_set(task: tuple[str, int]) -> list[Case]:
    case, seed = task
    return list(CASES[case](seed))


def draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    """The figure of a coverage table: PNG, PDF, CSV."""
    from analysis.figures import drawing as figures

    drawing = figures.new(
        "interval_coverage",
        f"Share of {table.sets.min()} to {table.sets.max()} simulated data sets whose 95 % interval "
        "holds the true value, by law and method, with its Monte Carlo 95 % interval; shaded: "
        "93 to 97 %.",
    )
    ax = drawing.axes[0]
    groups = list(table.groupby(["law", "interval"], sort=False))
    names, at = [], 0
    for i, ((law, interval), rows) in enumerate(groups):
        color = figures.CYCLE[i % len(figures.CYCLE)]
        x = np.arange(at, at + len(rows))
        pen = drawing.pen(ax, "coverage", color, figures.MARKERS[i % len(figures.MARKERS)])
        pen.points(f"{law}, {interval}", x, rows.coverage, label=f"{law}, {interval}")
        pen.bar(f"{law}, {interval}", x, rows.low, rows.high)
        names += list(rows.parameter)
        at += len(rows)
    ends = np.array([-0.5, at - 0.5])
    pen = drawing.pen(ax, "coverage")
    pen.band("93 to 97 %", ends, [0.93, 0.93], [0.97, 0.97])
    pen.line("95 %", ends, [0.95, 0.95], kind="reference")
    ax.set(xlabel="parameter", ylabel="coverage of 95 % intervals", xlim=ends)
    ax.set_xticks(range(at), names, fontsize=6, rotation=60)
    ax.grid(axis="x", visible=False)
    drawing.figure.set_size_inches(9.0, 4.4)  # before the legend, which takes the columns that fit
    drawing.legend(ax, columns=4)
    return drawing.save(folder, ("png", "pdf"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=1000, help="simulated data sets per law")
    parser.add_argument("--laws", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--first", type=int, default=0, help="go on after so many sets of --out")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="CSV, written as sets are done; other laws stay")
    parser.add_argument("--draw", type=Path, help="draw this table instead of simulating")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    arguments = parser.parse_args()
    if arguments.draw is not None:
        print(*draw(pd.read_csv(arguments.draw), arguments.figures), sep="\n")
        return
    out = arguments.out
    table = pd.read_csv(out) if out is not None and out.exists() else None
    for law in arguments.laws:
        for first in range(arguments.first, arguments.sets, CHUNK):
            n = min(CHUNK, arguments.sets - first)
            table = merged(table, coverage(n, (law,), arguments.jobs, first), first == 0)
            print(f"{law}: {first + n} of {arguments.sets} sets", file=sys.stderr, flush=True)
            if out is not None:
                table.to_csv(out, index=False, lineterminator="\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()

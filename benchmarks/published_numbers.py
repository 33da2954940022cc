"""Published numbers beside ours, refitted: the table of docs/published.md.

    python -m benchmarks.published_numbers ../shared/data --out docs/published.md

The folder holds other people's data (shared/data/README.md says whose), which are not part of this
project. `tests/analysis/fitting/test_certified.py` asserts the same numbers to their last digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.fitting import intervals
from analysis.fitting.dataset import Dataset, prepare
from analysis.fitting.fit import Fit, fit
from analysis.fitting.options import FitOptions
from analysis.isoflop import parabolas
from analysis.isoflop.power_law import fit_line
from analysis.laws import library
from analysis.table import load
from benchmarks.fit_speed import CHINCHILLA_COLUMNS

LAW = library.get("chinchilla")
Row = tuple[str, str, str, float]  # what, quantity, published, ours
HEADER = """# Published numbers, refitted

Written by `python -m benchmarks.published_numbers ../shared/data --out docs/published.md`. "Certified" numbers
were computed independently at full precision; the others are printed in the papers named.

| data and fit | quantity | published or certified | ours |
|---|---|---|---|
"""
FOOTER = """
Least absolute deviations: the certified A and B differ from ours in the seventh digit. At delta = {delta:g}
the five smallest residuals are at most {largest:.1e}, as at a corner of that objective they must be.
{path}. The certified values lie between the last two and are not the limit's.
"""


def rows(folder: Path) -> Iterator[Row]:
    """Every comparison the folder's files allow."""
    yield from _chinchilla(folder / "chinchilla_245.csv")
    yield from _porian(folder)
    yield from _parcae(folder)


def _chinchilla(path: Path) -> Iterator[Row]:
    every = load.load(path, CHINCHILLA_COLUMNS)
    table = replace(every, drop_highest=5)
    data = prepare(table, LAW)
    what = "Chinchilla (arXiv:2404.10102), 240 points, Huber 1e-3, certified"
    found = _fitted(data)
    values = found.params
    yield what, "objective", "0.00101827401780", found.search.objective
    for name, text in {
        "A": "477.8259",
        "B": "2143.4173",
        "E": "1.8172181",
        "alpha": "0.3473105",
        "beta": "0.3671724",
    }.items():
        yield what, name, text, values[name]
    yield (
        what,
        "beta/(alpha+beta)",
        "0.5138995",
        values["beta"] / (values["alpha"] + values["beta"]),
    )
    yield what, "starts of 100 that agree", "100", found.search.n_agree

    limit = _fitted(data, delta=1e-12).params
    what = "the same, least absolute deviations (delta 1e-12)"
    for name, text in {"A": "482.0057", "B": "2085.434", "E": "1.816864"}.items():
        yield what, name, text, limit[name]
    for name, text in {"alpha": "0.347813", "beta": "0.365854"}.items():
        yield what, name, text, limit[name]

    counts = intervals.counts(data, 4000, np.random.default_rng(0))
    draws, _ = intervals.refits(found.objective, found.theta, counts)
    what = "the same, standard errors of 4,000 bootstrap resamples (another random stream)"
    spread = {k: float(v.std()) for k, v in intervals.by_name(found.objective, draws).items()}
    for name, text in {
        "A": "124.49",
        "B": "1293.17",
        "E": "0.02566",
        "alpha": "0.01540",
        "beta": "0.02059",
    }.items():
        yield what, name, text, spread[name]

    found = _fitted(prepare(every, LAW))
    values = found.params
    what = "all 245 points, certified"
    yield what, "objective", "0.00182601052307", found.search.objective
    for name, text in {"A": "495.726", "B": "12845.61", "E": "1.8913385"}.items():
        yield what, name, text, values[name]

    columns = data.columns
    small = 6 * columns["n_params"] * columns["n_tokens"] < 1e21
    units = {
        "n_params": columns["n_params"][small] / 1e6,
        "n_tokens": columns["n_tokens"][small] / 1e9,
    }
    found = _fitted(Dataset.of(units, data.target[small]), loss="lsq")
    values = found.params
    what = f"the {int(small.sum())} points below 1e21 FLOPs, least squares on the loss"
    yield what, "sum of squares", "0.062414", 2 * found.search.objective
    for name, text in {"E": "1.9051", "A": "4.0005", "B": "1.0509"}.items():
        yield what, name, text, values[name]
    yield what, "alpha", "0.3511", values["alpha"]
    yield what, "beta", "0.4587", values["beta"]


def _porian(folder: Path) -> Iterator[Row]:
    pairs = pd.read_csv(folder / "porian_optimal_pairs.csv")
    published = pd.read_csv(folder / "porian_fit_results.csv")
    keys = ["dataset", "hparams", "warmup", "decay", "param_count", "val"]
    groups = {tuple(map(str, k)): g for k, g in pairs.groupby(keys, dropna=False)}
    worst = 0.0
    for _, row in published.iterrows():
        group = groups[tuple(map(str, row[keys]))]
        group = group[group.n.notna()]
        plain = fit_line(group.flops, group.n).gamma
        weighted = fit_line(group.flops, group.n, weights=1 / group.n_star_std**2).gamma
        worst = max(
            worst,
            abs(plain - row["basic.n_exponent"]),
            abs(weighted - row["weighted.n_exponent"]),
        )
    what = f"Porian et al. (arXiv:2406.19146), {2 * len(published)} exponents of N*"
    yield what, "largest difference", "0", worst


def _parcae(folder: Path) -> Iterator[Row]:
    found = parabolas.fit_recurrence(load.load("bundled:parcae-140m")).result
    what = "Parcae (arXiv:2604.12946), 140M isoFLOP points read from its figure"
    yield what, "gamma_mu", "0.40", found["gamma_mu"].value
    yield what, "gamma_D", "0.78", found["gamma_D"].value
    minima = pd.read_csv(folder / "parcae140m_optimal_mu_digitised.csv")
    yield (
        "the same, minima as plotted",
        "gamma_mu",
        "0.40",
        fit_line(minima.flops, minima.mu_opt).gamma,
    )


def _fitted(data: Dataset, **options) -> Fit:
    return fit(data, LAW, FitOptions(n_starts=100, interval="none", **options))


def least_absolute(folder: Path) -> str:
    """How A and B go to their limit as delta falls, in words."""
    table = replace(load.load(folder / "chinchilla_245.csv", CHINCHILLA_COLUMNS), drop_highest=5)
    data = prepare(table, LAW)
    steps = []
    for delta in (1e-12, 1e-9, 1e-8):
        found = _fitted(data, delta=delta)
        values = found.params
        steps.append(f"At delta {delta:g}: A {values['A']:.4f}, B {values['B']:.4f}")
        if delta == 1e-12:
            largest = np.sort(np.abs(found.log_residuals))[4]
    return FOOTER.format(delta=1e-12, largest=largest, path="; ".join(steps))


def as_markdown(found: list[Row], footer: str) -> str:
    lines = [
        f"| {what} | {name} | {text} | {_digits(value, text)} |"
        for what, name, text, value in found
    ]
    return HEADER + "\n".join(lines) + "\n" + footer


def _digits(value: float, like: str) -> str:
    """As many decimals as the number it is compared with."""
    decimals = len(like.partition(".")[2])
    return f"{value:.{decimals}f}" if decimals else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = as_markdown(list(rows(arguments.folder)), least_absolute(arguments.folder))
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

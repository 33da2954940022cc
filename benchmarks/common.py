"""Shared by the benchmarks: interleaved timing, quantiles, provenance, rows appended to a CSV."""

from __future__ import annotations

import csv
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from parcae_core.accounting.hardware import cpu_device
from sweeps.design import benchmark_rates as rates

RESULTS = Path(__file__).parent / "results"


def interleaved(
    variants: dict[str, Callable[[int], None]], *, steps: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each variant at each step, run in turn so that noise on the machine hits all.

    Each variant is called with the step's number and must do the same work for the same number.
    The order rotates from step to step.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step in range(-warmup, steps):
        turn = step % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            variants[name](max(step, 0))
            synchronise()
            if step >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile."""
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), cuts[0], cuts[3]


def provenance() -> dict[str, str]:
    """What a row needs to be read later: date, commit, device, versions."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else cpu_device(torch.get_num_threads())
    return {
        "date": date.today().isoformat(),
        "commit": commit or "unknown",
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def append_rows(name: str, rows: list[dict]) -> Path:
    """Append rows to benchmarks/results/<name>.csv, and what plans read of them to the rates table.

    A changed set of columns is an error.
    """
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    columns = list(rows[0])
    if path.exists():
        with path.open(newline="") as file:
            found = next(csv.reader(file))
        if found != columns:
            raise SystemExit(f"{path}: has columns {found}, these rows have {columns}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
    rates.append(rate_rows(name, rows))
    return path


def rate_rows(name: str, rows: list[dict]) -> list[rates.Row]:
    """Those of a file's rows that `parcae plan` rests on: our training steps, and packed trials."""
    if name == "speed":
        whole = ("train step + optimizer", "ours")
        rows = [row for row in rows if (row["what"], row["variant"]) == whole]
    elif name != "packing":
        return []
    return [
        rates.Row(
            what="step" if name == "speed" else "trials",
            device=row["device"],
            preset=row["preset"],
            n_params=int(row["n_params"]),
            precision=row["precision"],
            concurrent=int(row.get("concurrent", 1)),
            flops_per_s=float(row["flops_per_s"]),
            source=f"{name}.csv, commit {row['commit']}",
        )
        for row in rows
    ]

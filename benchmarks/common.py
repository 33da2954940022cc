"""Shared by the benchmarks: interleaved timing, quantiles, provenance, rows appended to a CSV."""

from __future__ import annotations

import csv
import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from parcae_core.accounting.hardware import cpu_device

if TYPE_CHECKING:
    from sweeps.design.benchmark_rates import Row

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
    import torch  # not loaded for what never asks for it

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile."""
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), cuts[0], cuts[3]


def commit() -> str:
    """The commit that rows name: PARCAE_COMMIT where it is given, else git's; "unknown" for neither."""
    return os.environ.get("PARCAE_COMMIT") or _described()


@functools.cache  # asked once: a benchmark's own rows make the checkout dirty
def _described() -> str:
    root = str(Path(__file__).parents[1])
    git = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict[str, str]:
    """What a row needs to be read later: date, commit, device, versions."""
    import torch

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else cpu_device(torch.get_num_threads())
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def append_rows(name: str, rows: list[dict], results: Path = RESULTS) -> Path:
    """Append rows to <results>/<name>.csv, on the disk when this returns.

    Rows of benchmarks/results also go to the table that plans read rates from.

    Raises:
        SystemExit: if the file has other columns, or the rows name no commit.
    """
    if any(row["commit"] == "unknown" for row in rows):
        raise SystemExit(
            f"{name}: no git here, so the rows would name no commit; set PARCAE_COMMIT to it"
        )
    path = results / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
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
    if results == RESULTS:
        from sweeps.design import benchmark_rates  # reads specs, which a rented machine cannot

        benchmark_rates.append(rate_rows(name, rows))
    return path


def rate_rows(name: str, rows: list[dict]) -> list[Row]:
    """Those of a file's rows that `parcae plan` rests on: our training steps, and packed trials."""
    if name == "speed":
        whole = ("train step + optimizer", "ours")
        rows = [row for row in rows if (row["what"], row["variant"]) == whole]
    elif name != "packing":
        return []
    from sweeps.design.benchmark_rates import Row

    return [
        Row(
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

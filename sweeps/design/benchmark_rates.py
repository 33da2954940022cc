"""What committed benchmark rows say about a trial on a device: its rate, and how many fit side by side.

The rows lie beside this file, in rates.csv, where `python -m benchmarks.speed --record` and `python -m
benchmarks.packing --record` append to them. A row counts for a trial of the same preset (parameters
within 5 %, so that a sweep's Transformers go by their looped siblings), precision and device. Where a
measurement was repeated, the last row holds.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from analysis.table.checks import SAME_SIZE
from parcae_core.accounting.hardware import cpu_device, local_gpu
from parcae_core.trial import Trial
from sweeps.design.plan import Plan

RATES = Path(__file__).with_name("rates.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured rate of training."""

    what: Literal["step", "trials"]  # a training step alone, or whole trials side by side
    device: str
    preset: str
    n_params: int
    precision: str
    concurrent: int  # trials at a time; 1 for a step
    flops_per_s: float  # exact rule; of all concurrent trials together
    source: str  # file of benchmarks/results and commit

    def fits(self, trial: Trial, device: str) -> bool:
        near = abs(self.n_params - trial.cost.n_params) <= SAME_SIZE * trial.cost.n_params
        same = self.preset == trial.preset.split("/")[0] and self.precision == trial.precision
        # whole words, from one of the name on: the 2 of "cpu, 2 threads" is no name
        named = re.match(rf"([^,]*\W)?(?=\w){re.escape(device)}(?!\w)", self.device, re.IGNORECASE)
        return near and same and named is not None

    @property
    def origin(self) -> str:
        """Whose rate it is, and where from."""
        return f"{self.device}: {self.source}"


def device_of(trial: Trial, named: str | None) -> str | None:
    """The device to look rows up for: the one named, else this machine's."""
    if named is not None:
        return named
    return local_gpu() if trial.resources.gpus else cpu_device(max(1, int(trial.resources.cpus)))


def measured_rate(trial: Trial, device: str) -> tuple[float, str] | None:
    """FLOP/s of one trial on its share of the device, by the exact rule, and where that is from."""
    share = trial.resources.gpus or 1.0
    if share < 1:
        side_by_side = round(1 / share)
        packed = [r for r in _rows("trials", trial, device) if r.concurrent == side_by_side]
        if packed:
            return packed[-1].flops_per_s / side_by_side, packed[-1].origin
    alone = _rows("step", trial, device)
    if not alone:
        return None
    # until it is measured, a part of the device is taken to do that part of its work
    scaled = "" if share == 1 else f", taken {share:g} times"
    return alone[-1].flops_per_s * share, alone[-1].origin + scaled


def best_share(trial: Trial, device: str) -> tuple[float, str] | None:
    """The fraction of the device at which concurrent trials trained most tokens together."""
    best = {r.concurrent: r for r in _rows("trials", trial, device)}
    if not best:
        return None
    row = max(best.values(), key=lambda r: r.flops_per_s)
    return 1 / row.concurrent, row.origin


def with_measured_shares(plan: Plan, named: str | None = None) -> tuple[Plan, list[str]]:
    """The plan with each trial's share of a GPU as measured, where it was, and a line on each.

    Only trials that ask for one GPU or a part of it, in specs that do not say `share: given`.
    """
    if plan.spec.resources.share == "given":
        return plan, []
    trials, lines = [], []
    for trial in plan.trials:
        trials.append(trial)
        gpus = trial.resources.gpus
        if not 0 < gpus <= 1:
            continue
        device = device_of(trial, named)
        if found := device and best_share(trial, device):
            share, source = found
            trials[-1] = replace(trial, resources=replace(trial.resources, gpus=share))
            said = f"{share:g} of {trial.preset} measured best on {source}"
        else:
            where = device or "an unnamed device; name it with --device"
            said = f"{gpus:g} of {trial.preset} as the spec says; not yet measured on {where}"
        lines.append(f"GPU share {said}")
    return replace(plan, trials=tuple(trials)), list(dict.fromkeys(lines))


def append(rows: Iterable[Row], path: Path = RATES) -> None:
    """Add measured rows to the table."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(asdict(row) | {"flops_per_s": f"{row.flops_per_s:.5g}"} for row in rows)


def _rows(what: str, trial: Trial, device: str) -> list[Row]:
    return [r for r in read(RATES) if r.what == what and r.fits(trial, device)]


@cache
def read(path: Path) -> tuple[Row, ...]:
    """Every row of the table, in its order."""
    with path.open(newline="") as file:
        return tuple(TypeAdapter(tuple[Row, ...]).validate_python(list(csv.DictReader(file))))

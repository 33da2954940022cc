"""What committed benchmark rows say about a trial on a device: its rate, and how many fit side by side.

Rows come from `python -m benchmarks.speed --record` and `python -m benchmarks.packing --record`, and
older ones from benchmarks/core_step. A row counts for a trial of the same preset (parameters within
5 %, so that a sweep's Transformers go by their looped siblings), precision and device. Where a
measurement was repeated, the last row holds. An installation without the benchmarks has no rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from parcae_core.accounting.flops import train_flops_per_token
from parcae_core.accounting.hardware import cpu_device, local_gpu
from parcae_core.accounting.params import count_params
from parcae_core.depth import PoissonDepth
from parcae_core.presets import PRESETS, preset
from parcae_core.trial import Trial
from sweeps.design.plan import Plan

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
SAME_SIZE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured rate of training."""

    device: str
    preset: str
    n_params: int
    precision: str
    flops_per_s: float  # exact rule; of all concurrent trials together
    concurrent: int  # 1: a training step alone on the device
    source: str  # file and commit

    def fits(self, trial: Trial, device: str) -> bool:
        near = abs(self.n_params - trial.cost.n_params) <= SAME_SIZE * trial.cost.n_params
        same = self.preset == trial.preset.split("/")[0] and self.precision == trial.precision
        return near and same and device.lower() in self.device.lower()


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
        packed = [r for r in _packing_rows(RESULTS) if r.concurrent == side_by_side]
        if row := _last(packed, trial, device):
            return row.flops_per_s / side_by_side, row.source
    row = _last(_speed_rows(RESULTS), trial, device)
    if row is None:
        return None
    # until it is measured, a part of the device is taken to do that part of its work
    scaled = "" if share == 1 else f", taken {share:g} times"
    return row.flops_per_s * share, row.source + scaled


def best_share(trial: Trial, device: str) -> tuple[float, str] | None:
    """The fraction of the device at which concurrent trials trained most tokens together."""
    best = {r.concurrent: r for r in _packing_rows(RESULTS) if r.fits(trial, device)}
    if not best:
        return None
    row = max(best.values(), key=lambda r: r.flops_per_s)
    return 1 / row.concurrent, row.source


def with_measured_shares(plan: Plan, named: str | None = None) -> tuple[Plan, list[str]]:
    """The plan with each trial's share of a GPU as measured, where it was, and a line on each.

    Only trials that ask for one GPU or a part of it, in specs that do not say `share: given`.
    """
    if plan.spec.resources.share == "given":
        return plan, []
    trials, lines = [], []
    for trial in plan.trials:
        gpus = trial.resources.gpus
        device = device_of(trial, named) if 0 < gpus <= 1 else None
        found = best_share(trial, device) if device else None
        if found is not None:
            share, source = found
            trials.append(replace(trial, resources=replace(trial.resources, gpus=share)))
            lines.append(
                f"GPU share {share:g} of {trial.preset} measured best on {device} ({source})"
            )
            continue
        trials.append(trial)
        if 0 < gpus <= 1:
            where = device or "an unnamed device; name it with --device"
            lines.append(
                f"GPU share {gpus:g} of {trial.preset} as the spec says; not yet measured on {where}"
            )
    return replace(plan, trials=tuple(trials)), list(dict.fromkeys(lines))


def _last(rows: list[Row], trial: Trial, device: str) -> Row | None:
    return next((row for row in reversed(rows) if row.fits(trial, device)), None)


@cache
def _speed_rows(results: Path) -> list[Row]:
    rows = list(_core_step_rows(results))
    for r in _read(results / "speed.csv"):
        if r["what"] == "train step + optimizer" and r["variant"] == "ours":
            rows.append(_row(r, 1, "speed.csv"))
    return rows


@cache
def _packing_rows(results: Path) -> list[Row]:
    return [_row(r, int(r["concurrent"]), "packing.csv") for r in _read(results / "packing.csv")]


def _row(r: dict[str, str], concurrent: int, file: str) -> Row:
    return Row(
        device=r["device"],
        preset=r["preset"],
        n_params=int(r["n_params"]),
        precision=r["precision"],
        flops_per_s=float(r["flops_per_s"]),
        concurrent=concurrent,
        source=f"{file}, commit {r['commit']}",
    )


def _core_step_rows(results: Path) -> Iterator[Row]:
    """Steps without an optimiser, which name tokens/s and no FLOP/s."""
    for r in _read(results / "core_step.csv"):
        if r["what"] != "train step" or r["variant"] != "ours" or r["preset"] not in PRESETS:
            continue
        seq_len = int(r["seq_len"])
        model = preset(r["preset"]).replace(context=seq_len)
        depth = PoissonDepth(
            mean_recurrence=int(r["mean_recurrence"]),
            mean_backprop_depth=int(r["mean_backprop_depth"]),
        )
        per_token = train_flops_per_token(model, depth, seq_len, "exact").total
        yield Row(
            device=r["device"],
            preset=r["preset"],
            n_params=count_params(model).total,
            precision="float32",
            flops_per_s=per_token * float(r["tokens_per_s"]),
            concurrent=1,
            source=f"core_step.csv, commit {r['commit']}, no optimiser",
        )


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))

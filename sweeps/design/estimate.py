"""How long trials will take. In this order: a rate that was given, what this sweep has finished,
committed benchmark rows for the device and preset, a stated assumption; otherwise it is unknown."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from parcae_core.accounting.flops import eval_flops_per_token
from parcae_core.accounting.hardware import peak_flops_per_s
from parcae_core.errors import UserError
from parcae_core.result import TrainResult
from parcae_core.trial import Trial
from sweeps.design.benchmark_rates import device_of, measured_rate
from sweeps.design.plan import short

# Exact-rule FLOP/s of one CPU core training `nano` in float32; see docs/cluster.md for other devices
ASSUMED_FLOPS_PER_CPU = 1.2e10  # 0.8e10 beside other work, 1.4e10 alone (docs/log.md)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Exact-rule FLOP/s of one trial, and where the number comes from."""

    # None: nothing is known of the device; the median where trials differ
    flops_per_s: float | None
    source: str
    by_trial: dict[str, float] = field(default_factory=dict)  # where presets differ, by trial_id

    def seconds(self, trial: Trial, *, separate: bool = False) -> float | None:
        """Estimated time of the steps that a trial makes itself; `separate`: of all its steps."""
        rate = self.by_trial.get(trial.trial_id, self.flops_per_s)
        flops = trial.train_flops("exact") if separate else trial.own_flops("exact")
        flops += validation_flops(trial, separate=separate)
        return None if rate is None else flops / rate


def validation_flops(trial: Trial, *, separate: bool = False) -> float:
    """FLOPs (exact) of the validation losses on the way; they are no training FLOPs."""
    wanted, shared = trial.evaluation, 0 if separate else trial.shared_steps
    if wanted.every is None:
        return 0.0
    times = math.ceil(trial.n_steps / wanted.every) - shared // wanted.every
    per_token = eval_flops_per_token(trial.model, trial.mean_recurrence, trial.context)
    return times * wanted.n_sequences * trial.context * per_token


def rate_of(
    trials: Sequence[Trial],
    result_of: Callable[[Trial], TrainResult | None] | None,
    assumed_flops_per_s: float | None = None,
    *,
    device: str | None = None,
    mfu: float | None = None,
) -> Rate:
    """The rate to plan with, from the best source there is; see the module's docstring.

    Args:
        result_of: of a trial that has ended, what it reached: `Store.result`.
        assumed_flops_per_s: of one trial, as the user knows it.
        device: whose benchmark rows and peak count; None: this machine's.
        mfu: share of the device's published peak to assume where nothing was measured.

    Raises:
        UserError: for an `mfu` of a device whose peak is not known here.
    """
    if assumed_flops_per_s is not None:
        return Rate(
            flops_per_s=assumed_flops_per_s,
            source=f"given: {short(assumed_flops_per_s)} FLOP/s a trial",
        )
    measured = []
    for trial in trials:
        result = result_of(trial) if result_of is not None else None
        if result is not None and result.status == "done":
            measured.append(trial.train_flops("exact") / result.train_s)
    if measured:
        return Rate(
            flops_per_s=median(measured),
            source=f"measured: median of {len(measured)} finished trials of this sweep",
        )
    return _from_rows(trials, device) or _assumed(trials, device, mfu)


def _from_rows(trials: Sequence[Trial], named: str | None) -> Rate | None:
    """The rate that benchmark rows give, if they cover every trial."""
    by_trial, sources = {}, []
    for trial in trials:
        device = device_of(trial, named)
        found = None if device is None else measured_rate(trial, device)
        if found is None:
            return None
        by_trial[trial.trial_id] = found[0]
        sources.append(found[1])
    return Rate(
        flops_per_s=median(by_trial.values()),
        source=f"from benchmark rows for {'; '.join(dict.fromkeys(sources))}",
        by_trial=by_trial,
    )


def _assumed(trials: Sequence[Trial], named: str | None, mfu: float | None) -> Rate:
    if mfu is not None:
        device = (
            device_of(max(trials, key=lambda t: t.resources.gpus), named) or "an unnamed device"
        )
        peak = peak_flops_per_s(device, trials[0].precision)
        if peak is None:
            raise UserError(
                f"--mfu {mfu:g}: no published peak is known for {device} in {trials[0].precision}; "
                "name a known one, such as --device 'NVIDIA H100', or give --flops-per-s."
            )
        shares = {t.trial_id: t.resources.gpus or 1.0 for t in trials}
        return Rate(
            flops_per_s=mfu * peak * median(shares.values()),
            source=f"assumed: {mfu:.0%} of the published peak of {device}, {short(peak)} FLOP/s",
            by_trial={i: mfu * peak * share for i, share in shares.items()},
        )
    if any(t.resources.gpus for t in trials):
        return Rate(
            flops_per_s=None,
            source="unknown for this GPU and preset; give --flops-per-s, or --device and --mfu",
        )
    cpus = max(t.resources.cpus for t in trials)
    return Rate(
        flops_per_s=ASSUMED_FLOPS_PER_CPU * cpus,
        source=f"assumed: {short(ASSUMED_FLOPS_PER_CPU)} FLOP/s per CPU core",
    )


def longest_first(trials: Sequence[Trial]) -> list[Trial]:
    """Order in which to start: the longest may not be left for the end, nor its trunk."""
    flops = {t.trial_id: t.train_flops("exact") for t in trials}
    until = dict(flops)  # the last of its branches ends
    for trial in sorted(trials, key=lambda t: flops[t.trial_id], reverse=True):  # branches first
        if trial.parent is not None and trial.parent.trial_id in until:
            trunk = trial.parent.trial_id
            until[trunk] = max(until[trunk], until[trial.trial_id])
    return sorted(trials, key=lambda t: until[t.trial_id], reverse=True)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Wall time of runs started in the given order, each on the slot that is free first."""
    free = [0.0] * max(1, min(slots, len(seconds)))
    for s in seconds:
        heapq.heapreplace(free, free[0] + s)
    return max(free)


def duration(seconds: float) -> str:
    """A span of time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"

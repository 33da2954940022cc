"""How long trials will take: from what this sweep has measured, else from a stated assumption."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from parcae_core.trial import Trial
from sweeps.store import Store

# Exact-rule FLOP/s of one CPU core training `nano` in float32; see docs/cluster.md for other devices
ASSUMED_FLOPS_PER_CPU = 2.5e10


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Exact-rule FLOP/s of one trial, and where the number comes from."""

    flops_per_s: float | None  # None: nothing is known of the device
    source: str

    def seconds(self, trial: Trial) -> float | None:
        """Estimated training time of a trial."""
        return None if self.flops_per_s is None else exact_flops(trial) / self.flops_per_s


@cache
def exact_flops(trial: Trial) -> float:
    """FLOPs of the matrix products of a whole training."""
    return trial.train_flops("exact")


def rate_of(
    trials: Sequence[Trial], store: Store | None, assumed_flops_per_s: float | None = None
) -> Rate:
    """The rate to plan with: a given one, the median of what this sweep finished, or an assumption."""
    if assumed_flops_per_s is not None:
        return Rate(
            flops_per_s=assumed_flops_per_s,
            source=f"given: {assumed_flops_per_s:.3g} FLOP/s a trial",
        )
    measured = []
    for trial in trials if store is not None else ():
        result = store.result(trial)
        if result is not None and result["status"] == "done":
            measured.append(exact_flops(trial) / result["train_s"])
    if measured:
        return Rate(
            flops_per_s=median(measured),
            source=f"measured: median of {len(measured)} finished trials of this sweep",
        )
    if any(t.resources.gpus for t in trials):
        return Rate(flops_per_s=None, source="unknown for this GPU; give --flops-per-s")
    cpus = max(t.resources.cpus for t in trials)
    return Rate(
        flops_per_s=ASSUMED_FLOPS_PER_CPU * cpus,
        source=f"assumed: {ASSUMED_FLOPS_PER_CPU:.2g} FLOP/s per CPU core",
    )


def longest_first(trials: Sequence[Trial]) -> list[Trial]:
    """Order in which to start: the longest may not be left for the end."""
    return sorted(trials, key=exact_flops, reverse=True)


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Wall time of runs started in the given order, each on the slot that is free first."""
    free = [0.0] * max(1, slots)
    for s in seconds:
        heapq.heapreplace(free, free[0] + s)
    return max(free)


def duration(seconds: float) -> str:
    """A span of time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

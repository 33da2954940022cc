"""design.jsonl in an adaptive sweep's folder: its decisions, in order, each with what was known then. Light to import.

What was decided stays decided, so a sweep that was killed first finishes that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parcae_core.errors import UserError
from parcae_core.plain import build, parse_json
from sweeps.storage.files import DECISIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class _Estimate:
    """What was known of the target."""

    target: str
    value: float
    low: float | None  # None: the runs do not set this end
    high: float | None
    n_runs: int
    flops: float

    def __post_init__(self) -> None:
        if "@" in self.target and any(e is not None and e <= 0 for e in (self.low, self.high)):
            raise ValueError(f"{self.target} has an interval from {self.low} to {self.high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _LeftOut:
    """A run that is no part of the fit."""

    mean_recurrence: int
    budget_flops: float
    loss: float
    expected: float  # by the law of the others
    p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """One decision; the last of a finished sweep says why it stopped, and chooses no trial."""

    estimate: _Estimate | None  # None: the law was not determined yet
    left_out: tuple[_LeftOut, ...] = ()
    n: int = 0
    trial_id: str | None = None
    mean_recurrence: int | None = None
    budget_flops: float | None = None
    seed: int | None = None
    reason: str | None = None
    stop: str | None = None

    def __post_init__(self) -> None:
        if (self.trial_id is None) == (self.stop is None):
            raise ValueError("a line has either a trial_id or a stop")


def decisions(folder: Path) -> list[dict[str, Any]]:
    """The lines of design.jsonl; a last line that a kill cut short is none.

    Raises:
        UserError: if another line cannot be read, or holds what no decision does.
    """
    path = folder / DECISIONS
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")  # what follows the last end is cut short, or nothing
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    out = []
    for i, line in enumerate(lines, start=1):
        where = f"{path}: line {i}"
        try:
            out.append(parse_json(line, where))
            build(_Line, out[-1], "it")
        except ValueError as error:
            if i == len(lines):
                break
            said = str(error) if isinstance(error, UserError) else f"{where}: {error}"
            raise UserError(f"{said}; remove the line and start `parcae run` again.") from None
    return out


def end_of(lines: Sequence[dict[str, Any]]) -> str:
    """Why the design has ended, or "" while it goes on."""
    return lines[-1].get("stop", "") if lines else ""


def estimate_data(target: str, found: Any) -> dict[str, Any]:
    """An `analysis.design.adaptive.Estimate` as plain data: exp of a logarithm, None for an end that the runs do
    not set."""
    turn = math.exp if "@" in target else float
    return {
        "target": target,
        "value": turn(found.value),
        "low": turn(found.low) if math.isfinite(found.low) else None,
        "high": turn(found.high) if math.isfinite(found.high) else None,
        "n_runs": found.n_runs,
        "flops": found.flops,
    }


def half_of(estimate: dict[str, Any]) -> float | None:
    """Half the 95 % interval of an estimate: of the logarithm, where that is what a design narrows (mu@C, loss@C)."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return None
    if "@" in estimate["target"]:
        low, high = math.log(low), math.log(high)
    return (high - low) / 2


def left_out_words(line: dict[str, Any]) -> list[str]:
    """A sentence for each run that is no part of the fit that a decision rests on."""
    return [
        f"left out of the fit: {run['mean_recurrence']} loops at {run['budget_flops']:.3g} FLOPs have a loss of "
        f"{run['loss']:.4g}, and the law of the others says {run['expected']:.4g} (p {run['p']:.1g}); no setting "
        "with as many loops and no more tokens is run"
        for run in line.get("left_out", ())
    ]


def table_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per decision, the last of a finished sweep its end; None where the law was not determined yet."""
    out = []
    for line in lines:
        named = ("trial_id", "budget_flops", "mean_recurrence", "seed")
        row = {name: line.get(name) for name in named} | {"reason": line.get("reason", "end")}
        now = line["estimate"] or {}
        row |= {name: now.get(name) for name in ("n_runs", "flops", "value", "low", "high")}
        half = half_of(now) if now else None
        out.append(row | {"half": half, "left_out": left_out_words(line)})
    return out


def words(estimate: dict[str, Any]) -> str:
    """An estimate, said: gamma_mu 0.871 [0.7, 1.04]."""
    low, high = ("open" if e is None else f"{e:.4g}" for e in (estimate["low"], estimate["high"]))
    return f"{estimate['target']} {estimate['value']:.4g} [{low}, {high}]"

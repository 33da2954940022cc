"""How an adaptive sweep came to its answer: each choice with its reason, and the interval that it left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.errors import InputError
from analysis.figures import drawing as figures
from analysis.figures import ticks, words
from analysis.figures.drawing import CYCLE, Drawing


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """The choices of an adaptive sweep, in order."""

    source: str
    target: str  # gamma_mu, gamma_D, mu@C or loss@C
    rows: tuple[dict[str, Any], ...]  # reason, n_runs, flops, value, low, high, half, and the trial
    ended: str = ""  # why no more is chosen; "" while the sweep goes on
    wanted: float | None = None  # half the interval at which it ends
    # FLOPs of every candidate run once, and `half` expected
    at_once: tuple[float, float] | None = None

    @property
    def known(self) -> list[dict[str, Any]]:
        """One row for each interval with two ends, in order of FLOPs: decisions made together share theirs."""
        by_runs = {r["n_runs"]: r for r in self.rows if r["half"] is not None}
        return [by_runs[n] for n in sorted(by_runs)]

    def headline(self) -> str:
        """One sentence: the target, on what, and whether more is to come."""
        end = f"finished: {self.ended}" if self.ended else "the sweep goes on"
        if not self.rows or self.rows[-1]["value"] is None:
            return f"Adaptive sweep: {self.target} is not determined yet; {end}."
        now = self.rows[-1]
        low, high = ("open" if now[e] is None else f"{now[e]:.3g}" for e in ("low", "high"))
        return (
            f"Adaptive sweep: {words.parameter(self.target)} = {now['value']:.3g} [{low}, {high}] by "
            f"{now['n_runs']} runs of {now['flops']:.3g} FLOPs; {end}."
            + "".join(f" {said[0].upper()}{said[1:]}." for said in now.get("left_out", ()))
        )

    def table(self) -> list[dict[str, Any]]:
        """For a page: the trial, why it was chosen, and what was known then."""
        names = {
            "trial_id": "trial",
            "budget_flops": "budget (FLOPs)",
            "mean_recurrence": "mu_rec",
            "seed": "seed",
            "reason": "because",
            "n_runs": "runs known",
            "flops": "FLOPs known",
            "low": f"{self.target} from",
            "high": "to",
        }
        return [{new: row[old] for old, new in names.items()} for row in self.rows]


def interval(found: Decisions, ax=None) -> Drawing:
    """Half the 95 % interval of the target against the FLOPs of the runs that it rests on.

    Raises:
        InputError: fewer than two intervals.
    """
    known = found.known
    if len(known) < 2:
        raise InputError(
            f"{found.source}: {len(known)} intervals of {found.target} so far; two are needed to draw how it shrinks."
        )
    name = words.parameter(found.target.partition("@")[0])
    if "@" in found.target:  # what narrows is the logarithm's
        name = f"log {found.target}"
    caption = (
        f"Half the 95 % interval of {name} at each choice of this adaptive sweep, against the FLOPs of the runs "
        f"that had ended. Rows: {found.source}."
    )
    if found.at_once is not None:
        caption += (
            f" Dashed: what the prior expects of all candidates, each run once ({found.at_once[0]:.3g} FLOPs), and "
            "of as many FLOPs laid out alike."
        )
    drawing = figures.new("interval", caption, ax=ax)
    [panel] = drawing.axes
    panel.set(xscale="log", yscale="log", xlabel="FLOPs of the runs that ended")
    panel.set_ylabel(f"half the 95 % interval of {name}")
    flops = np.array([r["flops"] for r in known])
    halves = [r["half"] for r in known]
    pen = drawing.pen(panel, color=CYCLE[0])
    pen.line("this sweep", flops, halves, kind="measured")
    pen.points("this sweep", flops, halves, label="this sweep")
    if found.at_once is not None:
        total, half = found.at_once
        along = np.geomspace(flops.min(), max(flops.max(), total), 60)
        label = "all candidates at once, by the prior"
        pen = drawing.pen(panel, marker="s")
        pen.line(label, along, half * np.sqrt(total / along), dashed=True, label=label)
        pen.points(label, [total], [half], filled=False)
    if found.wanted is not None:
        label = f"where it ends, {found.wanted:g}"
        drawing.pen(panel, color=CYCLE[1]).mark(label, found.wanted, label=label)
    ticks.power(panel, "x")
    ticks.of_values(panel, "y", [m * 10.0**e for e in range(-6, 4) for m in (1, 2, 5)])
    if found.at_once is not None or found.wanted is not None:
        drawing.legend(panel, columns=2)
    return drawing

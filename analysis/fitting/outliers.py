"""Rows that a law fitted to the others does not describe: named, with what to do; and laws that describe none.

Huber's function bounds what such a row does to the parameters, so nothing else would show it. But it is a run
recorded wrongly, or one of a kind that the law does not know, and which of the two decides what the fit means.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.fitting.dataset import Dataset
from analysis.fitting.objective import Objective
from analysis.fitting.options import FitOptions
from analysis.table.columns import info

FAR = 25.0  # spreads; published tables that are fitted whole have no row beyond 17
_ALONG = 4.0  # times that, where a run has several rows: along its curve a law is off by more in some places
_FEW = 6  # degrees of freedom; of fewer the spread itself is not known
_SMALL = 1e-3  # a log residual below is no matter, however well the others are met
_SUSPECT = 4.0  # spreads, of a fit by squares: such a fit follows its outliers
_SHOWN = 3
_WORSE = 1.5  # a law with a floor is never worse than that floor alone


def sentences(objective: Objective, theta: np.ndarray, data: Dataset) -> list[str]:
    """What speaks against rows far off a fit; nothing where undertuned rows are expected to be."""
    if objective.undertuned != 1.0 or len(data) - len(theta) < _FEW:
        return []
    fitted = objective.parts(theta)[0]
    if not (fitted > 0).all():
        return []
    off, apart = np.abs(np.log(fitted / data.target)), np.log(data.target)
    of_constant = float(np.median(np.abs(apart - np.median(apart))))
    if np.median(off) > _WORSE * of_constant:
        return [
            f"the law is farther from these rows than one number for all of them is (median of the log residuals "
            f"{np.median(off):.3g} and {of_constant:.3g}): its form is not theirs, and its parameters mean nothing"
        ]
    spreads = _in_spreads(off, len(theta))
    if np.isinf(objective.delta) and spreads.max() > _SUSPECT:
        robust = replace(objective, raw=False, delta=FitOptions().delta)
        fitted = objective.parts(robust.descend(theta).x)[0]
        spreads = _in_spreads(np.log(fitted / data.target), len(theta))
    far = np.flatnonzero(spreads > FAR * (_ALONG if data.clustered else 1.0))
    if not len(far):
        return []
    far = far[np.argsort(-spreads[far], kind="stable")]
    letter = info(objective.law.target)[0]
    named = [
        f"{_name(data, i)} ({letter} {data.target[i]:.5g} where the law gives {fitted[i]:.5g}, "
        f"{spreads[i]:.0f} times the spread of the residuals)"
        for i in far[:_SHOWN]
    ]
    more = f" and {len(far) - _SHOWN} more" if len(far) > _SHOWN else ""
    leave = " ".join(
        dict.fromkeys(_filter(objective.law.target, data, far, i) for i in far[:_SHOWN])
    )
    return [
        f"{', '.join(named)}{more}: recorded wrongly, or of a kind that the law does not know; correct it, or "
        f"leave it out with {leave}"
    ]


def _in_spreads(r: np.ndarray, n_params: int) -> np.ndarray:
    """Residuals over their spread, the median of those that the parameters do not meet by themselves."""
    size = np.abs(r)
    spread = 1.4826 * float(np.median(np.sort(size)[n_params:]))
    return np.where(size > _SMALL, size / max(spread, 1e-12), 0.0)


def _name(data: Dataset, i: int) -> str:
    frame = data.table.frame
    return f"run {frame.trial_id.iloc[i]}" if "trial_id" in frame else f"row {i + 1}"


def _filter(target: str, data: Dataset, far: np.ndarray, i: int) -> str:
    """The `--where` that leaves a row out: by its run where all of it is far off, else by its value."""
    frame = data.table.frame
    if "trial_id" in frame:
        name = frame.trial_id.iloc[i]
        if set(np.flatnonzero(frame.trial_id == name)) <= set(far):
            return f'--where "{data.table.called("trial_id")}!={name}"'
    return f'--where "{target}!={float(data.target[i])!r}"'

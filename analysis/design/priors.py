"""What is believed before a sweep: a training law and the noise of one run, and where both come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.design.optimum import LAW
from analysis.errors import InputError, nearest
from analysis.fitting.dataset import prepare, replica_noise

STATED_NOISE = 2e-3  # of log loss, where nothing else says it
# Source: Parcae (arXiv:2604.12946), training law, A and B by our names X and Y
PUBLISHED: dict[str, dict[str, float]] = {
    "paper:140m": {"E": 2.662, "X": 522733.307, "x": 0.771, "Y": 25420.102, "y": 0.525},
    "paper:370m": {"E": 2.439, "X": 832134.346, "x": 0.775, "Y": 6386.865, "y": 0.448},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """Values of the training law by name, and the standard deviation of one run's log loss."""

    values: Mapping[str, float]
    noise: float
    source: str
    noise_source: str


def read(text: str, noise: float | None = None) -> Prior:
    """A prior from what `--prior` says: a published law, parameters, or records to fit.

    Args:
        text: "paper:140m", "E=2.66,X=5.2e5,x=0.77,Y=2.5e4,y=0.525", or a source such as
            "bundled:nano-isoflop", a sweep's folder or a file.
        noise: standard deviation of one run's log loss; None: of replicas or residuals, else 0.2 %.

    Raises:
        InputError: no law of that name, a parameter missing, or records that hold no valid law.
    """
    if noise is not None and not 0 < noise < 1:
        raise InputError(
            f"--noise is {noise:g}; a share of the loss above 0 and below 1 is needed."
        )
    if not text.strip():
        raise InputError(
            f"--prior is empty; it takes {', '.join(PUBLISHED)}, parameters like E=2.66,X=5e5,..., or records."
        )
    stated = "as stated" if noise is not None else f"assumed, {STATED_NOISE:.1%} of the loss"
    if text in PUBLISHED or text.startswith("paper:"):
        if text not in PUBLISHED:
            raise InputError(
                f"--prior {text}: no such published law{nearest(text, tuple(PUBLISHED))}; it takes "
                f"{', '.join(PUBLISHED)}, parameters like E=2.66,X=5e5,x=0.77,Y=2.5e4,y=0.53, or records."
            )
        values, source = PUBLISHED[text], f"{text} (arXiv:2604.12946)"
    elif "=" in text:
        values, source = _given(text), "as given"
    else:
        return _fitted(text, noise)
    return Prior(values=values, noise=noise or STATED_NOISE, source=source, noise_source=stated)


def _given(text: str) -> dict[str, float]:
    values = {}
    for part in text.split(","):
        name, _, value = (x.strip() for x in part.partition("="))
        if name in values:
            raise InputError(f"--prior: {name} is given twice; give each parameter once.")
        try:
            values[name] = float(value)
        except ValueError:
            raise InputError(
                f"--prior: {part.strip()!r} is no parameter; write NAME=NUMBER."
            ) from None
    missing, odd = set(LAW.names) - set(values), set(values) - set(LAW.names)
    if missing or odd:
        fault = f"{min(odd)} is no parameter" if odd else f"{min(missing)} is missing"
        raise InputError(
            f"--prior: {fault}; the training law {LAW.formula} takes {', '.join(LAW.names)}."
        )
    bad = [n for n, v in values.items() if not 0 < v < np.inf]
    if bad:
        raise InputError(f"--prior: {bad[0]} is {values[bad[0]]:g}; a number above 0 is needed.")
    return values


def _fitted(text: str, noise: float | None) -> Prior:
    """The training law fitted to records, and the noise that they show."""
    from analysis import api
    from analysis.fitting.fit import fit
    from analysis.fitting.options import FitOptions
    from analysis.isoflop.parabolas import without_shallow
    from analysis.table import load

    try:
        table = without_shallow(load.at_training_depth(api.load(text)))
        data = prepare(table, LAW)
    except InputError as error:
        raise InputError(
            f"--prior {text} is neither paper:140m nor parameters like E=2.66,X=5e5,x=0.77,Y=2.5e4,y=0.53, and as "
            f"records it cannot be used: {error}"
        ) from None
    found = fit(data, LAW, FitOptions(interval="none"))
    if found.problems:
        raise InputError(
            f"--prior {text}: the training law fitted to it is not valid: {found.problems[0]}. Give "
            "paper:140m, other records, or parameters."
        )
    if noise is not None:
        return Prior(values=found.params, noise=noise, source=text, noise_source="as stated")
    own, words = noise_of(data, found.log_residuals)
    return Prior(values=found.params, noise=own, source=text, noise_source=words)


def noise_of(data, residuals: np.ndarray) -> tuple[float, str]:
    """Standard deviation of one run's log loss: of replicas where there are any, else of residuals."""
    noise, dof = replica_noise(data.table.frame, LAW)
    if dof:
        return noise, f"of replicas ({dof} degrees of freedom)"
    dof = max(len(residuals) - len(LAW.params), 1)
    return float(np.sqrt(residuals @ residuals / dof)), "of the residuals of the prior's own fit"

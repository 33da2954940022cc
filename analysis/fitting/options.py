"""How a law is fitted: every option, its default and its check, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from analysis.errors import InputError, nearest

Loss = Literal["huber", "log-lsq", "lsq"]
Interval = Literal["profile", "bootstrap", "block", "linear", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """Options of `analysis.fitting.fit.fit`; a value that cannot be is an InputError."""

    loss: Loss = "huber"
    delta: float = 1e-3  # Huber's threshold on log-loss residuals
    undertuned: float = 1.0  # weight of rows that the law lies above: no run should beat its law
    n_starts: int = 16
    interval: Interval | None = None  # None: what `default_interval` says
    n_resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("loss", get_args(Loss)), ("interval", get_args(Interval))):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InputError(
                    f"--{name} {value!r} is unknown{nearest(value, allowed)}; it must be one of "
                    f"{', '.join(allowed)}."
                )
        for name in ("delta", "undertuned", "n_starts", "n_resamples"):
            if not getattr(self, name) > 0:
                option = name.removeprefix("n_")
                raise InputError(f"--{option} is {getattr(self, name)}; it must be above 0.")
        if not self.undertuned < 1e6:
            raise InputError(f"--undertuned is {self.undertuned}; it must be below 1e6, like 10.")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must be at least 0.")
        if not 0 < self.confidence < 1:
            raise InputError(
                f"confidence is {self.confidence}; it must lie between 0 and 1, like 0.95."
            )

    @property
    def objective_name(self) -> str:
        words = {
            "huber": f"sum of Huber(log loss residual), delta={self.delta:g}",
            "log-lsq": "half the sum of squared log loss residuals",
            "lsq": "half the sum of squared loss residuals (nats^2)",
        }[self.loss]
        once = f"; rows below the law count {self.undertuned:g} times"
        return words + (once if self.undertuned != 1 else "")

"""How many times the core is looped for each training sequence, and how many of those carry gradient.

A scheme is one object that the sampler, the FLOP count and the records all read, so that they
cannot disagree. Free of torch. Draws are a pure function of (seed, step, sequence index): they do
not depend on the machine, the number of processes or what was drawn before, and because every
scheme maps the *same* uniform numbers through its own quantile function, trials of a sweep share
their randomness (common random numbers).
Source: Parcae (arXiv:2604.12946), "Training algorithm".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from parcae_core import seeds
from parcae_core.config import as_dict
from parcae_core.plain import build

DepthKind = Literal["poisson", "fixed", "curriculum"]  # what a spec's depth.kind may say
MAX_LOOPS = 1_000  # the distributions are tables of about this length; far above any training


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthDraw:
    """Loop steps per sequence, int64 arrays of shape (n_sequences,)."""

    no_grad: np.ndarray
    grad: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.no_grad + self.grad


@dataclass(frozen=True, kw_only=True, slots=True)
class _Depth(ABC):
    """What every scheme has and answers; a curriculum's means are over the whole training."""

    mean_recurrence: int  # of a curriculum the target
    mean_backprop_depth: int
    kind: ClassVar[DepthKind]

    def __post_init__(self) -> None:
        mu, mu_bwd = self.mean_recurrence, self.mean_backprop_depth
        if not 1 <= mu <= MAX_LOOPS:
            raise ValueError(f"mean_recurrence is {mu}; it must be >= 1 and <= {MAX_LOOPS}")
        if not 1 <= mu_bwd <= mu:
            raise ValueError(
                f"mean_backprop_depth is {mu_bwd}; it must lie between 1 and mean_recurrence={mu} "
                "(the paper uses ceil(mean_recurrence / 2))"
            )

    @property
    def label(self) -> str:
        """The records' `depth_scheme`."""
        return self.kind

    def until(self, n_steps: int) -> Self:
        """The scheme with the means of its first `n_steps` steps, at least one."""
        return self

    def declared(self) -> tuple[float, float]:
        """(mu_rec, mu_bwd) as the published FLOP rules use them."""
        return self.mean_recurrence, self.mean_backprop_depth

    @abstractmethod
    def mean(self) -> float:
        """Expected loop steps of a sequence."""

    @abstractmethod
    def mean_grad(self) -> float:
        """Expected loop steps that carry gradient."""

    def mean_no_grad(self) -> float:
        """Expected loop steps without gradient."""
        return self.mean() - self.mean_grad()

    @abstractmethod
    def sample(self, n_sequences: int, *, seed: int, step: int) -> DepthDraw:
        """Depths of one global batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedDepth(_Depth):
    """The same depth for every sequence."""

    kind: ClassVar[DepthKind] = "fixed"

    def mean(self) -> float:
        return float(self.mean_recurrence)

    def mean_grad(self) -> float:
        return float(self.mean_backprop_depth)

    def sample(self, n_sequences: int, *, seed: int, step: int) -> DepthDraw:
        grad = np.full(n_sequences, self.mean_backprop_depth, dtype=np.int64)
        return DepthDraw(no_grad=self.mean_recurrence - grad, grad=grad)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoissonDepth(_Depth):
    """Depth T = max(1, Poisson(mu_rec)), the last mu_bwd of them with gradient.

    `per="sequence"` draws for each sequence (the paper); `per="batch"` once for the whole batch.
    `split="truncate"`: gradient in the last min(T, mu_bwd) steps (the paper). `split="additive"`:
    the older scheme, n ~ Poisson(mu_rec - mu_bwd) steps without gradient, then always mu_bwd.

    The declared mu_rec is not the mean: truncation at 1 makes it mu + exp(-mu). `mean()` is exact.
    """

    per: Literal["sequence", "batch"] = "sequence"
    split: Literal["truncate", "additive"] = "truncate"
    kind: ClassVar[DepthKind] = "poisson"

    def __post_init__(self) -> None:
        _Depth.__post_init__(self)  # no `super()` in a class with slots, which is made twice
        for name, known in (("per", ("sequence", "batch")), ("split", ("truncate", "additive"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {known}")

    @property
    def label(self) -> str:
        return f"poisson per {self.per}, {self.split}"

    def mean(self) -> float:
        """Expected loop steps of a sequence: mu + exp(-mu), or mu for the additive split."""
        if self.split == "additive":
            return float(self.mean_recurrence)
        return self.mean_recurrence + math.exp(-self.mean_recurrence)

    def mean_grad(self) -> float:
        """Expected loop steps that carry gradient, E[min(T, mu_bwd)] when truncating."""
        k = self.mean_backprop_depth
        if self.split == "additive":
            return float(k)
        # E[min(T, k)] = sum over t < k of P(T > t); T >= 1 always
        tail = 1.0 - _poisson_cdf(self.mean_recurrence)
        return 1.0 + float(tail[1:k].sum())

    def sample(self, n_sequences: int, *, seed: int, step: int) -> DepthDraw:
        u = depth_uniforms(n_sequences, seed=seed, step=step)
        if self.per == "batch":
            u = np.full_like(u, u[0])
        k = self.mean_backprop_depth
        if self.split == "additive":
            no_grad = _poisson_quantile(u, self.mean_recurrence - k)
            return DepthDraw(no_grad=no_grad, grad=np.full_like(no_grad, k))
        total = np.maximum(_poisson_quantile(u, self.mean_recurrence), 1)
        grad = np.minimum(total, k)
        return DepthDraw(no_grad=total - grad, grad=grad)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumDepth(_Depth):
    """Poisson depth whose steps without gradient grow over the first `ramp_steps` steps.

    At step s of the ramp, mu_rec = mu_bwd + ceil(progress * (target mu_rec - mu_bwd)) with
    progress = s / ramp_steps ("linear") or 1 - sqrt(1 - s / ramp_steps) ("1-sqrt"). Means are
    averages over the training's `n_steps`, so that FLOPs count the shallow beginning too.
    Source: REFERENCE.md; the published schedules, target "forward".
    """

    ramp_steps: int
    n_steps: int
    shape: Literal["linear", "1-sqrt"] = "linear"
    kind: ClassVar[DepthKind] = "curriculum"

    def __post_init__(self) -> None:
        _Depth.__post_init__(self)
        if self.shape not in ("linear", "1-sqrt"):
            raise ValueError(f"shape is {self.shape!r}; it must be linear or 1-sqrt")
        for name in ("ramp_steps", "n_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1")

    @property
    def label(self) -> str:
        return f"curriculum, {self.shape} over {self.ramp_steps / self.n_steps:.3g} of the steps"

    def until(self, n_steps: int) -> Self:
        return replace(self, n_steps=max(1, n_steps))

    def at(self, step: int) -> PoissonDepth:
        """The scheme in force at a step (0-based)."""
        return self._grown_by(self._growth(step))

    def _grown_by(self, steps: int) -> PoissonDepth:
        return PoissonDepth(
            mean_recurrence=self.mean_backprop_depth + steps,
            mean_backprop_depth=self.mean_backprop_depth,
        )

    def _growth(self, step: int) -> int:
        """Loop steps without gradient, declared, at a step."""
        share = min(step / self.ramp_steps, 1.0)
        progress = share if self.shape == "linear" else 1 - math.sqrt(1 - share)
        return math.ceil(progress * (self.mean_recurrence - self.mean_backprop_depth))

    def declared(self) -> tuple[float, float]:
        """(mu_rec, mu_bwd) as the published FLOP rules use them, averaged over the training."""
        return self._average(lambda scheme: scheme.mean_recurrence), self.mean_backprop_depth

    def mean(self) -> float:
        return self._average(PoissonDepth.mean)

    def mean_grad(self) -> float:
        return self._average(PoissonDepth.mean_grad)

    def sample(self, n_sequences: int, *, seed: int, step: int) -> DepthDraw:
        return self.at(step).sample(n_sequences, seed=seed, step=step)

    def _average(self, value: Callable[[PoissonDepth], float]) -> float:
        steps, most = range(self.n_steps), self.mean_recurrence - self.mean_backprop_depth
        # steps that have grown by at most 0, 1, ...
        ends = [bisect_right(steps, grown, key=self._growth) for grown in range(most + 1)]
        counts = np.diff(ends, prepend=0)
        total = sum(int(n) * value(self._grown_by(g)) for g, n in enumerate(counts) if n)
        return total / self.n_steps


DepthScheme = FixedDepth | PoissonDepth | CurriculumDepth
_SCHEMES: dict[str, type] = {c.kind: c for c in get_args(DepthScheme)}


def default_backprop_depth(mean_recurrence: int) -> int:
    """mu_bwd = ceil(mu_rec / 2). Source: Parcae (arXiv:2604.12946), "Training algorithm"."""
    return math.ceil(mean_recurrence / 2)


def depth_to_dict(scheme: DepthScheme) -> dict[str, Any]:
    return {"kind": scheme.kind, **as_dict(scheme)}


def depth_from_dict(data: dict[str, Any]) -> DepthScheme:
    """Inverse of `depth_to_dict`.

    Raises:
        ValueError: if the kind is unknown, or a value is not of its type.
    """
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in _SCHEMES:
        raise ValueError(f"depth: kind is {kind!r:.60}; it must be one of {', '.join(_SCHEMES)}")
    return build(_SCHEMES[kind], {k: v for k, v in data.items() if k != "kind"}, "depth")


def depth_uniforms(n_sequences: int, *, seed: int, step: int) -> np.ndarray:
    """Uniform numbers in [0, 1) that every scheme shares, (n_sequences,) float64."""
    bits = np.random.Philox(np.random.SeedSequence((seed, seeds.DEPTHS, step)))
    return np.random.Generator(bits).random(n_sequences)


@cache
def _poisson_cdf(mu: int) -> np.ndarray:
    """P(X <= t) for t = 0..t_max with all but 1e-16 of the mass; its last entry is 1."""
    t_max = int(mu + 12 * math.sqrt(mu) + 24)
    t = np.arange(t_max + 1)
    log_pmf = t * math.log(mu) - mu - np.array([math.lgamma(i + 1) for i in t])
    cdf = np.minimum(np.cumsum(np.exp(log_pmf)), 1.0)
    cdf[-1] = 1.0
    return cdf


def _poisson_quantile(u: np.ndarray, mu: int) -> np.ndarray:
    if mu == 0:
        return np.zeros(u.shape, dtype=np.int64)
    return np.searchsorted(_poisson_cdf(mu), u, side="right").astype(np.int64)

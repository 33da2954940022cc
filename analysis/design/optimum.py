"""The best number of loops by a training law, and how it moves with compute and with the law's parameters.

Along a budget C the loss is L(N(mu), C / f(mu)), f the FLOPs per token. u = log mu* is where its slope
vanishes, so du/dq = -L_uq / L_uu by the implicit function theorem, q the law's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.errors import InputError
from analysis.laws import library

LAW = library.get("training")
HIGHEST = 256.0  # loops beyond which no optimum is looked for
_STEP = 1e-3  # of u, for slopes of exact slopes
_ROUNDING = 1e-8  # of the loss: ten times what rounding leaves of a second difference over _STEP
_GRID = np.linspace(-1.0, np.log(HIGHEST), 200)  # below one loop too: a slope needs no whole loops


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What loops cost at one model size: parameters and FLOPs per token, both affine in mu."""

    n_params: float
    n_params_core: float
    flops_at_zero: float  # per token, without any loop
    flops_per_loop: float

    def flops_per_token(self, mu):
        return self.flops_at_zero + self.flops_per_loop * np.asarray(mu, dtype=float)

    def columns(self, mu, budget) -> dict[str, np.ndarray]:
        """What the training law reads of a run that spends `budget` FLOPs at mean recurrence `mu`."""
        mu, budget = np.broadcast_arrays(np.asarray(mu, float), np.asarray(budget, float))
        return {
            "n_params_unrolled": self.n_params + (mu - 1) * self.n_params_core,
            "n_tokens": budget / self.flops_per_token(mu),
        }


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that follows from the law, and its derivative by each parameter (P,)."""

    name: str
    value: float
    slopes: np.ndarray
    log: bool = False  # value is the logarithm of what the name says


def log_optima(values: Mapping[str, np.ndarray], size: Size, budgets) -> np.ndarray:
    """u = log mu* (S, B) at each budget, for S sets of parameters, each value (S,).

    Where the law has no minimum, u is an end of the range.
    """
    budgets = np.asarray(budgets, dtype=float)
    across = {n: np.asarray(v, dtype=float)[:, None] for n, v in values.items()}
    grid = LAW.predict(across, _flat(size, _GRID[None, :], budgets[:, None]))
    lowest = grid.reshape(len(grid), len(budgets), -1).argmin(axis=2)
    inside = (lowest > 0) & (lowest < len(_GRID) - 1)
    u, each = _GRID[lowest], np.broadcast_to(budgets, lowest.shape)
    flat = {n: np.broadcast_to(v, lowest.shape).ravel() for n, v in across.items()}
    for _ in range(5):  # Newton, from within a grid step
        low, mid, high = (
            LAW.predict(flat, _flat(size, u + s, each)).reshape(u.shape) for s in _around()
        )
        slope, bend = (high - low) / (2 * _STEP), (high - 2 * mid + low) / _STEP**2
        bent = bend > _ROUNDING * mid
        step = np.where(bent, -slope / np.where(bent, bend, 1.0), 0.0)
        u = np.where(inside, np.clip(u + np.clip(step, -0.1, 0.1), _GRID[0], _GRID[-1]), u)
    return u


def log_optimum(values: Mapping[str, float], size: Size, budgets) -> tuple[np.ndarray, np.ndarray]:
    """u = log mu* (B,) at each budget, and du/dq (B, P), q natural parameters in the law's order.

    Where the law has no minimum, or none above rounding, the slopes are 0.
    """
    budgets = np.asarray(budgets, dtype=float)
    u = log_optima({n: np.array([v]) for n, v in values.items()}, size, budgets)[0]
    ends = [LAW.with_slopes(values, _flat(size, u + s, budgets)) for s in _around()]
    bend = (ends[2][0] - 2 * ends[1][0] + ends[0][0]) / _STEP**2
    across = np.stack([(ends[2][1][n] - ends[0][1][n]) / (2 * _STEP) for n in LAW.names], axis=1)
    safe = (bend > _ROUNDING * ends[1][0]) & (u > _GRID[0]) & (u < _GRID[-1])
    return u, np.where(safe[:, None], -across / np.where(safe, bend, 1.0)[:, None], 0.0)


def draws_of(names: tuple[str, ...], values: Mapping[str, np.ndarray], size: Size, budgets):
    """The values of `quantities`, without slopes, for S sets of parameters: (S, Q)."""
    budgets = np.unique(np.asarray(budgets, dtype=float))
    z = np.log(budgets) - np.log(budgets).mean()
    u = log_optima(values, size, budgets)
    out = []
    for kind, at in map(parse_target, names):
        if kind == "gamma_mu":
            out.append(u @ z / (z @ z))
        elif kind == "gamma_D":
            out.append((np.log(budgets) - np.log(size.flops_per_token(np.exp(u)))) @ z / (z @ z))
        else:
            there = log_optima(values, size, np.array([at]))[:, 0]
            loss = LAW.predict(values, _flat(size, there, np.full(len(there), at)))
            out.append(there if kind == "mu" else np.log(loss))
    return np.stack(out, axis=1)


def _around() -> tuple[float, float, float]:
    return -_STEP, 0.0, _STEP


def _flat(size: Size, u, budgets) -> dict[str, np.ndarray]:
    return {k: v.ravel() for k, v in size.columns(np.exp(u), budgets).items()}


def enclosed(values: Mapping[str, float], size: Size, budgets) -> np.ndarray:
    """The budgets whose optimum lies at one loop or more, where an exponent of mu* means something.

    Raises:
        InputError: fewer than two.
    """
    budgets = np.unique(np.asarray(budgets, dtype=float))
    u, slopes = log_optimum(values, size, budgets)
    kept = budgets[(u >= 0) & (u < _GRID[-2]) & slopes.any(axis=1)]
    if len(kept) < 2:
        raise InputError(
            f"by this prior the best number of loops lies at one loop or more, and below {HIGHEST:g}, at "
            f"{len(kept)} of {len(budgets)} budgets; an exponent needs two. Use other budgets or another prior."
        )
    return kept


def quantities(
    names: tuple[str, ...], values: Mapping[str, float], size: Size, budgets
) -> list[Quantity]:
    """gamma_mu, gamma_D, mu@C and loss@C by a training law.

    Args:
        budgets: over which the exponents are taken: log mu* is regressed on log C. See `enclosed`.

    Raises:
        InputError: a name that is none of these.
    """
    budgets = np.unique(np.asarray(budgets, dtype=float))
    targets = [parse_target(name) for name in names]
    extra = [at for _, at in targets if at is not None]
    u, slopes = log_optimum(values, size, np.concatenate([budgets, extra]))
    n = len(budgets)
    out = []
    for name, (kind, at) in zip(names, targets, strict=True):
        if at is None:
            out.append(_exponent(kind, u[:n], slopes[:n], size, budgets))
        else:
            i = n + extra.index(at)
            out.append(_at(kind, name, at, u[i : i + 1], slopes[i], values, size))
    return out


def believed(
    names: tuple[str, ...], values: Mapping[str, float], size: Size, budgets
) -> list[Quantity]:
    """`quantities` by a prior.

    Raises:
        InputError: also where the prior has no optimum that something is asked of.
    """
    for name, at in ((name, parse_target(name)[1]) for name in names):
        if at is not None and not log_optimum(values, size, [at])[1].any():
            raise InputError(
                f"{name}: by this prior no number of loops between {np.exp(_GRID[0]):.2g} and {HIGHEST:g} is best "
                "there. Ask for it at other FLOPs, or give another prior."
            )
    return quantities(names, values, size, budgets)


def is_set(name: str, end: float) -> bool:
    """Whether an interval's end (of mu@C: of log mu*) lies within the range that is searched."""
    return not name.startswith("mu@") or bool(_GRID[0] < end < _GRID[-1])


def parse_target(name: str) -> tuple[str, float | None]:
    """("gamma_mu", None), ("gamma_D", None), ("mu", C) or ("loss", C).

    Raises:
        InputError: anything else.
    """
    kind, sign, at = name.partition("@")
    wanted = "gamma_mu, gamma_D, mu@C or loss@C, C in FLOPs like mu@1e20"
    if not sign and kind in ("gamma_mu", "gamma_D"):
        return kind, None
    if sign and kind in ("mu", "loss"):
        try:
            budget = float(at)
        except ValueError:
            budget = 0.0
        if not 0 < budget < np.inf:
            raise InputError(f"--target {name}: {at!r} is no budget; it takes {wanted}.")
        return kind, budget
    raise InputError(f"--target {name}: the training law has no such quantity; it takes {wanted}.")


def _exponent(kind: str, u, slopes, size: Size, budgets) -> Quantity:
    if kind == "gamma_D":  # log D* = log C - log f(mu*)
        mu = np.exp(u)
        share = size.flops_per_loop * mu / size.flops_per_token(mu)
        u, slopes = np.log(budgets) - np.log(size.flops_per_token(mu)), -share[:, None] * slopes
    z = np.log(budgets) - np.log(budgets).mean()
    weights = z / (z @ z)
    return Quantity(kind, float(weights @ u), weights @ slopes)


def _at(kind: str, name: str, budget: float, u, slopes, values, size: Size) -> Quantity:
    if kind == "mu":
        return Quantity(name, float(u[0]), slopes, log=True)
    # at the optimum the loss does not feel where the optimum is
    value, by = LAW.with_slopes(values, _flat(size, u, np.array([budget])))
    own = np.array([by[n][0] for n in LAW.names])
    return Quantity(name, float(np.log(value[0])), own / value[0], log=True)

"""A law on data as `scipy.optimize.least_squares` minimises it.

Per observation i and term j, with x standardised and coefficients in their own units:

    L_i = sum_j c_j exp(-k_j z_ij)     z = (x - anchor) / spread; c, k, s are entries of theta
    r_i = log L_i - log y_i            or L_i - y_i for loss "lsq"
    F = sum_i w_i h(r_i)               h Huber's function, or r^2/2

SciPy's own `loss="huber", f_scale=delta` is exactly the SUM of Huber terms. Coefficients and not
their logarithms are searched: a term that the data do not need then reaches 0 in a step.

Letters: n observations, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import OptimizeResult, least_squares

from analysis.fitting.dataset import Dataset
from analysis.fitting.options import FitOptions
from analysis.laws.law import Law, LawTerm

_TINY = 1e-300
_LEAST = 1e-30  # of a measurement
_FAR = 1e30
_STEEP = 300.0  # of an exponential: a step of the search may ask for more than floats hold
_FLAT = 1e-6  # cosine of the slopes' angle with the Jacobian, at what is an optimum for a next threshold


@dataclass(frozen=True, kw_only=True, slots=True)
class _Term:
    """One summand: indices into theta, and its variable standardised."""

    term: LawTerm
    c: int
    k: int | None = None
    s: int | None = None
    anchor: float = 0.0  # x where the coefficient is measured
    spread: float = 1.0  # of the exponent, one for all terms that share it
    z: np.ndarray | None = None  # (n,) when it has no shape parameter


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is minimised over theta in [lower, upper]; `held` entries stay where they are."""

    law: Law
    columns: dict[str, np.ndarray]
    terms: tuple[_Term, ...]
    y: np.ndarray  # (n,) the target
    lower: np.ndarray  # (P,)
    upper: np.ndarray
    raw: bool  # residuals of the target itself, not of its logarithm
    delta: float  # np.inf for least squares
    weights: np.ndarray | None = None  # (n,)
    undertuned: float = 1.0  # further weight of rows that the law lies above
    held: int | None = None

    # -- the law at theta

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted target (n,) and its Jacobian (n, P)."""
        if not self.terms:
            return self._by_gradient(theta)
        n = len(self.y)
        total = np.zeros(n)
        jacobian = np.zeros((len(theta), n))  # rows are contiguous
        for t in self.terms:
            c = theta[t.c]
            if t.k is None:
                total += c
                jacobian[t.c] += 1.0
                continue
            z, dz = self.variable(t, theta)
            basis = np.exp(np.minimum(-theta[t.k] * z, _STEEP))
            part = c * basis
            total += part
            jacobian[t.c] += basis
            jacobian[t.k] -= part * z
            if t.s is not None:
                jacobian[t.s] -= part * (theta[t.k] * dz)
        return total, jacobian.T

    def variable(self, t: _Term, theta):
        """A term's z and its derivative by the shape, or None where it has none."""
        if t.z is not None:
            return t.z, None
        assert t.term.shaped is not None, "a term has a variable or one with a shape"
        x, dx = t.term.shaped(self.columns, theta[t.s])
        return (x - t.anchor) / t.spread, dx / t.spread

    def _by_gradient(self, theta):
        """A law that gives no terms; where it is no number it is far from every measurement."""
        value, slopes = self.law.with_slopes(
            dict(zip(self.law.names, theta, strict=True)), self.columns
        )
        jacobian = np.stack([slopes[n] for n in self.law.names], axis=1)
        value = np.nan_to_num(value, nan=_FAR, posinf=_FAR, neginf=-_FAR)
        return np.clip(value, -_FAR, _FAR), np.clip(np.nan_to_num(jacobian), -_FAR, _FAR)

    def residuals_and_jacobian(self, theta) -> tuple[np.ndarray, np.ndarray]:
        """r (n,) and dr/dtheta (n, P)."""
        total, jacobian = self.parts(theta)
        if self.raw:
            return total - self.y, jacobian
        total = np.maximum(total, _TINY)
        slope_of = np.maximum(total, _LEAST * self.y)  # a law below 0 must not overflow
        return np.log(total / self.y), jacobian / slope_of[:, None]

    def residuals(self, theta) -> np.ndarray:
        return self.residuals_and_jacobian(theta)[0]

    def value(self, theta) -> float:
        """F."""
        r = self.residuals(theta)
        terms, weights = huber(r, self.delta), self.row_weights(r)
        return float(terms.sum() if weights is None else weights @ terms)

    def row_weights(self, r: np.ndarray) -> np.ndarray | None:
        """Of each row's Huber term, (n,); a row that the law lies above is `undertuned` times as dear."""
        if self.undertuned == 1.0:
            return self.weights
        one_sided = np.where(r > 0, self.undertuned, 1.0)
        return one_sided if self.weights is None else self.weights * one_sided

    # -- the paper's parameters

    def natural(self, theta: np.ndarray) -> dict[str, float]:
        """Parameters by name, as the law prints them."""
        out = np.array(theta, dtype=float)
        for t in self.terms:
            if t.k is not None:
                out[t.k] = theta[t.k] / t.spread
                out[t.c] = theta[t.c] * np.exp(min(out[t.k] * t.anchor, 700.0))
        return dict(zip(self.law.names, map(float, out), strict=True))

    def log_jacobian(self, theta: np.ndarray) -> np.ndarray:
        """d q / d theta (P, P), q the natural parameters, coefficients above 0 by their logarithms."""
        out = np.eye(len(theta))
        for i, p in enumerate(self.law.params):
            if p.kind == "coefficient" and theta[i] > 0:
                out[i, i] = 1 / theta[i]
        for t in self.terms:
            out[t.c, t.c] = 1 / theta[t.c] if theta[t.c] > 0 else 1.0
            if t.k is not None:
                out[t.k, t.k] = 1 / t.spread
                out[t.c, t.k] = t.anchor / t.spread
        return out

    # -- minimising

    def minimise(
        self,
        start,
        *,
        delta: float | None = None,
        tolerance: float = 1e-15,
        ftol: float | None = None,
        gtol: float | None = None,
        max_nfev: int = 200,
    ) -> OptimizeResult:
        """`least_squares` from a start; `x` is the whole theta, `cost` is F.

        Args:
            ftol: of F alone, relative; `tolerance` where it is not given.
            gtol: of F's gradient, absolute; likewise.
        """
        delta = self.delta if delta is None else delta
        free = np.arange(len(start)) != self.held
        lower, upper = self.lower[free], self.upper[free]
        theta = np.array(start, dtype=float)
        memory: dict = {}

        def both(part):
            if memory.get("key") is None or not np.array_equal(memory["key"], part):
                theta[free] = part
                memory["key"] = part.copy()
                memory["at"] = self.residuals_and_jacobian(theta)
            return memory["at"]

        found = least_squares(
            lambda part: both(part)[0],
            np.clip(theta[free], lower, upper),
            lambda part: both(part)[1][:, free],
            bounds=(lower, upper),
            x_scale=1.0 if self.terms else "jac",  # terms are standardised
            loss=self._loss(delta, memory),
            f_scale=1.0 if np.isinf(delta) else delta,
            ftol=tolerance if ftol is None else ftol,
            xtol=tolerance,
            gtol=tolerance if gtol is None else gtol,
            max_nfev=max_nfev if self.terms else 3 * max_nfev,
        )
        theta[free] = found.x
        found.x = theta
        return found

    def _loss(self, delta, memory):
        """SciPy's word for Huber or squares; with weights the same functions, each row's times its weight.

        SciPy asks for the loss of squares right after the residuals that `memory` still holds with signs.
        """
        if self.weights is None and self.undertuned == 1.0:
            return "linear" if np.isinf(delta) else "huber"

        def weighted(z):
            w = self.row_weights(memory["at"][0])
            if np.isinf(delta):
                return w * np.stack([z, np.ones(len(z)), np.zeros(len(z))])
            root = np.sqrt(np.maximum(z, 1.0))
            slope = 1 / root
            bend = -0.5 * (z > 1) * slope**3
            return w * np.stack([np.minimum(z, 1.0) + 2 * (root - 1), slope, bend])

        return weighted

    def descend(
        self, start, *, tolerance: float = 1e-15, widest: float | None = None
    ) -> OptimizeResult:
        """Minimise through falling Huber thresholds, each from where the last ended.

        Near delta = 0 the surface is a polytope's and single paths stall on its edges; a wide
        quadratic zone first leads them to the right face.

        Args:
            widest: residual that the zones begin below; the largest of all without it.
        """
        theta = np.asarray(start, dtype=float)
        if np.isfinite(self.delta):
            wide = 0.3 * float(np.abs(self.residuals(theta)).max() if widest is None else widest)
            while wide > 1.5 * self.delta:
                near, angle = replace(self, delta=wide)._newton(theta)
                if angle > _FLAT:
                    near = self.minimise(theta, delta=wide, tolerance=1e-6, max_nfev=50).x
                narrow = max(0.3 * wide, self.delta)
                theta, wide = self._onward(near, wide, narrow), narrow
        found = self.minimise(self._newton(theta)[0], tolerance=tolerance)
        # F ends at rounding when theta is known to its root, 1e-8; certified values have more digits
        found.x = self._newton(found.x)[0]
        found.cost = self.value(found.x)
        return found

    def _newton(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """Gauss-Newton steps for as long as they shrink the gradient and do not raise F.

        Returns:
            theta, and the largest cosine of an angle between the slopes and a column of the Jacobian, which
            is 0 at an optimum; inf where a parameter at a bound would leave it.
        """
        best, least, angle = theta, np.inf, np.inf
        highest = None
        for _ in range(6):
            r, jacobian = self.residuals_and_jacobian(theta)
            w = self.row_weights(r)
            w = np.ones(len(r)) if w is None else w
            cost = w @ huber(r, self.delta)
            # far away, where nothing moves F, slopes vanish too
            highest = cost * (1 + 1e-9) + 1e-300 if highest is None else highest
            if cost > highest:
                break
            slopes = w * np.clip(r, -self.delta, self.delta)
            gradient = jacobian.T @ slopes
            low, high = theta <= self.lower, theta >= self.upper
            free = ~(low | high)
            if self.held is not None:
                free[self.held] = False
            size = np.abs(gradient[free]).max(initial=0.0)
            if not size < least:
                break
            best, least = theta, size
            rows = jacobian[:, free]
            norms = np.linalg.norm(rows, axis=0) * np.linalg.norm(slopes) + 1e-300
            leaves = (low & (gradient < 0)) | (high & (gradient > 0))
            angle = np.inf if leaves.any() else np.abs(gradient[free] / norms).max(initial=0.0)
            near = (w * (np.abs(r) <= self.delta))[:, None]
            step = np.linalg.lstsq(rows.T @ (near * rows), -gradient[free])[0]
            theta = theta.copy()
            theta[free] = np.clip(theta[free] + step, self.lower[free], self.upper[free])
        return best, float(angle)

    def _onward(self, theta: np.ndarray, wide: float, narrow: float) -> np.ndarray:
        """Follow the optimum to a smaller threshold, with the quadratic zone held fixed.

        At the optimum the residuals inside the zone scale with the threshold, so at the smaller one
        all would start outside it, where Huber's function has no curvature to steer by.
        """
        r, jacobian = self.residuals_and_jacobian(theta)
        inside, free = np.abs(r) <= wide, np.arange(len(theta)) != self.held
        step = np.zeros(len(theta))
        rows = jacobian[np.ix_(inside, free)]
        step[free] = np.linalg.lstsq(rows, -(1 - narrow / wide) * r[inside])[0]
        moved = np.clip(theta + step, self.lower, self.upper)
        at = replace(self, delta=narrow)
        return moved if at.value(moved) < at.value(theta) else theta

    # -- variants

    def weighted(self, weights: np.ndarray) -> Objective:
        """Each row's term times its weight."""
        return replace(self, weights=np.asarray(weights, dtype=float))

    def rows(self, which: np.ndarray) -> Objective:
        """The same law on some of the rows."""
        return replace(
            self,
            columns={k: v[which] for k, v in self.columns.items()},
            terms=tuple(t if t.z is None else replace(t, z=t.z[which]) for t in self.terms),
            y=self.y[which],
            weights=None if self.weights is None else self.weights[which],
        )

    def holding(self, index: int) -> Objective:
        """Parameter `index` held; a coefficient then is theta[index] as the law prints it.

        Measuring its term at x = 0 costs conditioning, which does no harm to what is held.
        """
        terms = tuple(
            replace(t, anchor=0.0, z=None if t.z is None else t.z + t.anchor / t.spread)
            if t.c == index and t.k is not None
            else t
            for t in self.terms
        )
        return replace(self, terms=terms, held=index)

    def scale_of(self, index: int) -> float:
        """theta[index] per natural unit, of an exponent or a shape."""
        return next((t.spread for t in self.terms if t.k == index), 1.0)


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    """r^2/2 up to delta, delta (|r| - delta/2) beyond."""
    size = np.abs(r)
    if np.isinf(delta):
        return 0.5 * r * r
    return np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def build(law: Law, data: Dataset, options: FitOptions) -> Objective:
    """Standardise every term's variable and set the box."""
    index = {p.name: i for i, p in enumerate(law.params)}
    lower, upper = (np.array([p.bounds[side] for p in law.params], float) for side in (0, 1))
    used = [t.coefficient for t in law.terms]
    spreads: dict[str, float] = {}
    terms = []
    for term in law.terms:
        c = index[term.coefficient]
        if term.exponent is None:
            terms.append(_Term(term=term, c=c))
            continue
        middle = {p.name: float(np.mean(p.start)) for p in law.params}
        x = term.x(data.columns, None if term.shape is None else middle[term.shape])
        spread = spreads.setdefault(term.exponent, float(x.std()) or 1.0)
        # a coefficient of two terms has one value, so both measure it at x = 0
        anchor = _anchor(x) if used.count(term.coefficient) == 1 else 0.0
        terms.append(
            _Term(
                term=term,
                c=c,
                k=index[term.exponent],
                s=None if term.shape is None else index[term.shape],
                anchor=anchor,
                spread=spread,
                z=(x - anchor) / spread if term.shape is None else None,
            )
        )
    for name, spread in spreads.items():
        lower[index[name]] *= spread
        upper[index[name]] *= spread
    return Objective(
        law=law,
        columns=data.columns,
        terms=tuple(terms),
        y=data.target,
        lower=lower,
        upper=upper,
        raw=options.loss == "lsq",
        delta=options.delta if options.loss == "huber" else np.inf,
        undertuned=options.undertuned,
    )


def _anchor(x: np.ndarray) -> float:
    """Where a term's coefficient is measured.

    The mean, for conditioning; but an exponential in T is astronomically small at the mean of T,
    so a variable that spans more than a logarithm ever does is anchored where the term is largest.
    """
    wide = x.max() - x.min() > 0.5 * abs(x.max()) and x.min() >= 0
    return float(x.min() if wide else x.mean())

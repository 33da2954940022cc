"""The registry of laws. Adding one is an entry of `LAWS` and a test (docs/laws.md)."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import numpy as np

from analysis.errors import InputError, nearest
from analysis.laws import formula
from analysis.laws.law import Law, LawParam
from analysis.table.columns import LETTERS

_PARCAE = "Parcae (arXiv:2604.12946)"


def _law(name: str, text: str, params: tuple[LawParam, ...], source: str, **fields: Any) -> Law:
    """A law by its formula in the letters of the papers.

    Args:
        params: in the order that they are printed, with meanings, bounds and starts.
        fields: of `Law`; `formula` is how it is printed, where not as it is written here.
    """
    own = {p.name for p in params}  # x and y are exponents here
    columns = {letter: column for letter, column in LETTERS.items() if letter not in own}
    return formula.law(text, columns, name=name, params=params, source=source, **fields)


def _coefficient(name: str, meaning: str, unit: str = "nats per token") -> LawParam:
    return LawParam(name=name, kind="coefficient", meaning=meaning, unit=unit)


def _exponent(name: str, of: str, high: float = 3.0, start=(0.1, 1.0)) -> LawParam:
    return LawParam(
        name=name, kind="exponent", meaning=f"exponent of {of}", bounds=(0.0, high), start=start
    )


def _shape(name: str, meaning: str, bounds, start=(0.1, 1.0), log_start=False) -> LawParam:
    return LawParam(
        name=name, kind="shape", meaning=meaning, bounds=bounds, start=start, log_start=log_start
    )


def _rate(start: tuple[float, float], high: float) -> LawParam:
    return LawParam(
        name="z",
        kind="exponent",
        meaning="how fast more loops stop paying",
        bounds=(0.0, high),
        start=start,
        unit="per loop",
    )


def _floor(of: str) -> LawParam:
    return _coefficient("L_inf", f"loss with endless {of}")


def _two_powers(a: str, alpha: str, of: str, b: str, beta: str, high=3.0) -> tuple[LawParam, ...]:
    """A floor, and a power law of parameters and of tokens."""
    return (
        _coefficient("E", "loss with endless parameters and tokens"),
        _coefficient(a, "scale of the parameters' term"),
        _exponent(alpha, of, high),
        _coefficient(b, "scale of the tokens' term"),
        _exponent(beta, "tokens", high),
    )


_TRAINING = _two_powers("X", "x", "N(mu)", "Y", "y")
_CHINCHILLA = _two_powers("A", "alpha", "parameters", "B", "beta")
_REMOVED = _coefficient("Z", "loss that loops remove")
_FORMS = f"{_PARCAE}, comparison of test-time forms"
_SCALE: dict[str, Any] = {"bounds": (1e-6, np.inf), "start": (1e8, 1e16), "log_start": True}

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        _law(
            "training",
            "E + X*N_mu**-x + Y*D**-y",
            _TRAINING,
            f"{_PARCAE}, training law",
            formula="L(mu, D) = E + X N(mu)^-x + Y D^-y",
        ),
        _law(
            "unified",
            "E + X*N_mu**-x + Y*D**-y + Z*exp(-z*mu**-gamma*T)",
            (
                *_TRAINING,
                _coefficient("Z", "loss that loops can still remove"),
                _rate((0.5, 8.0), 100.0),
                _shape("gamma", "how the loops needed grow with mu", (-2.0, 4.0), (0.5, 1.5)),
            ),
            f"{_PARCAE}, unified law",
            formula="L(T | mu, D) = E + X N(mu)^-x + Y D^-y + Z exp(-z T mu^-gamma)",
        ),
        _law(
            "chinchilla",
            "E + A*N**-alpha + B*D**-beta",
            _CHINCHILLA,
            "Hoffmann et al. (arXiv:2203.15556), approach 3",
            formula="L(N, D) = E + A N^-alpha + B D^-beta",
        ),
        _law(
            "frontier",
            "L_inf + A*C**-a",
            (
                _floor("compute"),
                _coefficient("A", "scale of the compute term"),
                _exponent("a", "FLOPs", start=(0.02, 0.5)),
            ),
            "Hoffmann et al. (arXiv:2203.15556), compute frontier",
            formula="L(C) = L_inf + A C^-a",
            frontier=True,
        ),
        _law(
            "iso-depth",
            "E + A*(N_once + N_rec*mu**phi)**-alpha + B*D**-beta",
            (
                *_two_powers("A", "alpha", "parameters", "B", "beta", high=2.5),
                _shape(
                    "phi",
                    "what one recurrence is worth: 1 a layer of its own, 0 nothing",
                    (-3.0, 3.0),
                    (-0.5, 1.5),
                ),
            ),
            "Schwethelm, Rueckert, Kaissis (arXiv:2604.21106)",
            formula="L = E + A (N_once + r^phi N_rec)^-alpha + B D^-beta",
            cells=("budget_flops", "mean_recurrence"),
        ),
        _law(
            "test-time",
            "L_inf + Z*exp(-z*T)",
            (_floor("loops"), _REMOVED, _rate((0.05, 3.0), 50.0)),
            f"{_PARCAE}, test-time law",
            formula="L(T) = L_inf + Z exp(-z T)",
            per_run=True,
        ),
        _law(
            "test-time-shifted-power",
            "L_inf + Z*(1 + T)**-z",
            (_floor("loops"), _REMOVED, _exponent("z", "1 + T", 50.0, (0.2, 5.0))),
            _FORMS,
            formula="L(T) = L_inf + Z (1 + T)^-z",
            per_run=True,
        ),
        _law(
            "test-time-power-floor",
            "L_inf + Z*T**-z",
            (_floor("loops"), _REMOVED, _exponent("z", "T", 50.0, (0.2, 5.0))),
            _FORMS,
            formula="L(T) = L_inf + Z T^-z",
            per_run=True,
        ),
        _law(
            "test-time-power",
            "Z*T**-z",
            (_coefficient("Z", "loss after one loop"), _exponent("z", "T", 50.0, (0.01, 1.0))),
            _FORMS,
            formula="L(T) = Z T^-z",
            per_run=True,
        ),
        _law(
            "kaplan",
            "((N_c/N)**(alpha_N/alpha_D) + D_c/D)**alpha_D",
            (
                _shape("N_c", "scale of parameters", **_SCALE),
                _shape("alpha_N", "exponent of parameters", (1e-3, 3.0)),
                _shape("alpha_D", "exponent of tokens", (1e-3, 3.0)),
                _shape("D_c", "scale of tokens", **_SCALE),
            ),
            "Kaplan et al. (arXiv:2001.08361), equation 1.5",
        ),
        _law(
            "repeated",
            "E + A*N**-alpha + B*(min(U, D) + min(U, D)*R*(1 - exp(-max(D/U - 1, 0)/R)))**-beta",
            (
                *_CHINCHILLA[:4],
                _shape(
                    "R",
                    "repetitions after which data are worth 1/e less",
                    (1e-3, 1e4),
                    (1.0, 50.0),
                    log_start=True,
                ),
                _CHINCHILLA[4],
            ),
            "Muennighoff et al. (arXiv:2305.16264), repeated tokens; parameters are not discounted",
        ),
        _law(
            "params-only",
            "L_inf + A*N**-alpha",
            (_floor("parameters"), *_CHINCHILLA[1:3]),
            "Kaplan et al. (arXiv:2001.08361), L(N), with a floor",
        ),
        _law(
            "data-only",
            "L_inf + B*D**-beta",
            (_floor("tokens"), *_CHINCHILLA[3:]),
            "Kaplan et al. (arXiv:2001.08361), L(D), with a floor",
        ),
        _law(
            "accuracy",
            "y = low + high*sigmoid(k*(middle - loss))",
            (
                _coefficient("low", "accuracy of chance", "1"),
                _coefficient("high", "accuracy above chance of a perfect loss", "1"),
                _shape("k", "steepness", (0.0, 100.0), (0.3, 10.0)),
                _shape("middle", "loss half-way", (0.0, 20.0), (0.5, 5.0)),
            ),
            "Grattafiori et al. (arXiv:2407.21783), loss to accuracy",
        ),
    )
}
TEST_TIME_FORMS = tuple(name for name in LAWS if name.startswith("test-time"))
# fitted in closed form by their own modules, through the same command
OTHER_LAWS = {
    "recurrence": "mu* = k_mu C^gamma_mu and D* = k_D C^gamma_D (analysis.isoflop.parabolas)",
    "isoflop": "N* = k_N C^gamma_N, or over another axis by --over (analysis.isoflop.parabolas)",
    "power": "y = k C^gamma (analysis.isoflop.power_law)",
}


def _installed(name: str) -> Law | None:
    """A law that an installed package offers under the entry point group `parcae.laws`."""
    for entry in entry_points(group="parcae.laws", name=name):
        law = entry.load()
        law = law() if not isinstance(law, Law) and callable(law) else law
        if not isinstance(law, Law):
            raise InputError(
                f"law {name!r}: entry point {entry.value} gives a {type(law).__name__}; an analysis.laws.law.Law, or "
                "a function that returns one, is needed."
            )
        return law
    return None


def get(name: str) -> Law:
    """A law of the registry, or one that an installed package offers."""
    if name not in LAWS and (found := _installed(name)) is not None:
        return found
    if name in OTHER_LAWS:
        cure = "ask `parcae optimal` for them"
        if name == "power":
            cure = 'write it as a formula, --law "y = k*x**gamma"'
        raise InputError(
            f"law {name!r} is a line through optima or points and gives no value at a setting here; {cure}, or "
            f"name a law of the loss: {', '.join(LAWS)}."
        )
    if name not in LAWS:
        known = (*LAWS, *OTHER_LAWS)
        raise InputError(
            f"law {name!r} is unknown{nearest(name, known) or '.'} Known: {', '.join(known)}, and formulas of "
            "parameters and columns, like E + A*N**-alpha."
        )
    return LAWS[name]

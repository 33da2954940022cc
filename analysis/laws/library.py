"""The registry of laws. Adding one is an entry of `LAWS` and a test (docs/laws.md)."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import numpy as np

from analysis.errors import InputError, nearest
from analysis.laws import formula
from analysis.laws.law import Columns, Law, LawParam, LawTerm, Variable
from analysis.table.columns import LETTERS


def _log(column: str) -> Variable:
    return lambda columns: np.log(np.asarray(columns[column], dtype=float))


def _loops(columns: Columns) -> np.ndarray:
    return np.asarray(columns["n_loops"], dtype=float)


def _loops_over_mu(columns: Columns, gamma: float):
    """x = T mu^-gamma and its derivative by gamma."""
    log_mu = np.log(np.asarray(columns["mean_recurrence"], dtype=float))
    x = _loops(columns) * np.exp(-gamma * log_mu)
    return x, -log_mu * x


def _log_iso_depth(columns: Columns, phi: float):
    """x = log(N_once + r^phi N_rec) and its derivative by phi."""
    once = np.asarray(columns["n_params_once"], dtype=float)
    core = np.asarray(columns["n_params_core"], dtype=float)
    log_r = np.log(np.asarray(columns["mean_recurrence"], dtype=float))
    looped = core * np.exp(phi * log_r)
    total = once + looped
    return np.log(total), log_r * looped / total


def _coefficient(name: str, meaning: str, unit: str = "nats per token") -> LawParam:
    return LawParam(name=name, kind="coefficient", meaning=meaning, unit=unit)


def _exponent(name: str, of: str, high: float = 3.0, start=(0.1, 1.0)) -> LawParam:
    return LawParam(
        name=name, kind="exponent", meaning=f"exponent of {of}", bounds=(0.0, high), start=start
    )


def _rate(name: str, start: tuple[float, float], high: float) -> LawParam:
    return LawParam(
        name=name,
        kind="exponent",
        meaning="how fast more loops stop paying",
        bounds=(0.0, high),
        start=start,
        unit="per loop",
    )


_E = LawTerm(coefficient="E")
_TRAINING_TERMS = (
    _E,
    LawTerm(coefficient="X", exponent="x", variable=_log("n_params_unrolled")),
    LawTerm(coefficient="Y", exponent="y", variable=_log("n_tokens")),
)
_TRAINING_PARAMS = (
    _coefficient("E", "loss with endless parameters and tokens"),
    _coefficient("X", "scale of the parameters' term"),
    _exponent("x", "N(mu)"),
    _coefficient("Y", "scale of the tokens' term"),
    _exponent("y", "tokens"),
)
_FLOOR = LawTerm(coefficient="L_inf")
_PARCAE = "Parcae (arXiv:2604.12946)"

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            name="training",
            formula="L(mu, D) = E + X N(mu)^-x + Y D^-y",
            columns=("n_params_unrolled", "n_tokens"),
            terms=_TRAINING_TERMS,
            params=_TRAINING_PARAMS,
            source=f"{_PARCAE}, training law",
        ),
        Law(
            name="unified",
            formula="L(T | mu, D) = E + X N(mu)^-x + Y D^-y + Z exp(-z T mu^-gamma)",
            columns=("n_params_unrolled", "n_tokens", "mean_recurrence", "n_loops"),
            terms=(
                *_TRAINING_TERMS,
                LawTerm(coefficient="Z", exponent="z", shape="gamma", shaped=_loops_over_mu),
            ),
            params=(
                *_TRAINING_PARAMS,
                _coefficient("Z", "loss that loops can still remove"),
                _rate("z", (0.5, 8.0), 100.0),
                LawParam(
                    name="gamma",
                    kind="shape",
                    meaning="how the loops needed grow with mu",
                    bounds=(-2.0, 4.0),
                    start=(0.5, 1.5),
                ),
            ),
            source=f"{_PARCAE}, unified law",
        ),
        Law(
            name="chinchilla",
            formula="L(N, D) = E + A N^-alpha + B D^-beta",
            columns=("n_params", "n_tokens"),
            terms=(
                _E,
                LawTerm(coefficient="A", exponent="alpha", variable=_log("n_params")),
                LawTerm(coefficient="B", exponent="beta", variable=_log("n_tokens")),
            ),
            params=(
                _coefficient("E", "loss with endless parameters and tokens"),
                _coefficient("A", "scale of the parameters' term"),
                _exponent("alpha", "parameters"),
                _coefficient("B", "scale of the tokens' term"),
                _exponent("beta", "tokens"),
            ),
            source="Hoffmann et al. (arXiv:2203.15556), approach 3",
        ),
        Law(
            name="frontier",
            formula="L(C) = L_inf + A C^-a",
            columns=("train_flops",),
            terms=(
                _FLOOR,
                LawTerm(coefficient="A", exponent="a", variable=_log("train_flops")),
            ),
            params=(
                _coefficient("L_inf", "loss with endless compute"),
                _coefficient("A", "scale of the compute term"),
                _exponent("a", "FLOPs", start=(0.02, 0.5)),
            ),
            source="Hoffmann et al. (arXiv:2203.15556), compute frontier",
            frontier=True,
        ),
        Law(
            name="iso-depth",
            formula="L = E + A (N_once + r^phi N_rec)^-alpha + B D^-beta",
            columns=("n_params_once", "n_params_core", "mean_recurrence", "n_tokens"),
            terms=(
                _E,
                LawTerm(coefficient="A", exponent="alpha", shape="phi", shaped=_log_iso_depth),
                LawTerm(coefficient="B", exponent="beta", variable=_log("n_tokens")),
            ),
            params=(
                _coefficient("E", "loss with endless parameters and tokens"),
                _coefficient("A", "scale of the parameters' term"),
                _exponent("alpha", "parameters", high=2.5),
                _coefficient("B", "scale of the tokens' term"),
                _exponent("beta", "tokens", high=2.5),
                LawParam(
                    name="phi",
                    kind="shape",
                    meaning="what one recurrence is worth: 1 a layer of its own, 0 nothing",
                    bounds=(-3.0, 3.0),
                    start=(-0.5, 1.5),
                ),
            ),
            source="Schwethelm, Rueckert, Kaissis (arXiv:2604.21106)",
            cells=("budget_flops", "mean_recurrence"),
        ),
        Law(
            name="test-time",
            formula="L(T) = L_inf + Z exp(-z T)",
            columns=("n_loops",),
            terms=(_FLOOR, LawTerm(coefficient="Z", exponent="z", variable=_loops)),
            params=(
                _coefficient("L_inf", "loss with endless loops"),
                _coefficient("Z", "loss that loops remove"),
                _rate("z", (0.05, 3.0), 50.0),
            ),
            source=f"{_PARCAE}, test-time law",
            per_run=True,
        ),
        Law(
            name="test-time-shifted-power",
            formula="L(T) = L_inf + Z (1 + T)^-z",
            columns=("n_loops",),
            terms=(
                _FLOOR,
                LawTerm(coefficient="Z", exponent="z", variable=lambda c: np.log1p(_loops(c))),
            ),
            params=(
                _coefficient("L_inf", "loss with endless loops"),
                _coefficient("Z", "loss that loops remove"),
                _exponent("z", "1 + T", 50.0, (0.2, 5.0)),
            ),
            source=f"{_PARCAE}, comparison of test-time forms",
            per_run=True,
        ),
        Law(
            name="test-time-power-floor",
            formula="L(T) = L_inf + Z T^-z",
            columns=("n_loops",),
            terms=(_FLOOR, LawTerm(coefficient="Z", exponent="z", variable=_log("n_loops"))),
            params=(
                _coefficient("L_inf", "loss with endless loops"),
                _coefficient("Z", "loss that loops remove"),
                _exponent("z", "T", 50.0, (0.2, 5.0)),
            ),
            source=f"{_PARCAE}, comparison of test-time forms",
            per_run=True,
        ),
        Law(
            name="test-time-power",
            formula="L(T) = Z T^-z",
            columns=("n_loops",),
            terms=(LawTerm(coefficient="Z", exponent="z", variable=_log("n_loops")),),
            params=(
                _coefficient("Z", "loss after one loop"),
                _exponent("z", "T", 50.0, (0.01, 1.0)),
            ),
            source=f"{_PARCAE}, comparison of test-time forms",
            per_run=True,
        ),
    )
}
_SCALE: dict[str, Any] = {"bounds": (1e-6, np.inf), "log_start": True}
# laws given as formulas, whose parameters have meanings and starts of their own
_TYPED: tuple[tuple[str, str, tuple[LawParam, ...], dict[str, Any]], ...] = (
    (
        "kaplan",
        "((N_c/N)**(alpha_N/alpha_D) + D_c/D)**alpha_D",
        (
            LawParam(
                name="N_c", kind="shape", meaning="scale of parameters", start=(1e8, 1e16), **_SCALE
            ),
            LawParam(
                name="alpha_N", kind="shape", meaning="exponent of parameters", bounds=(1e-3, 3.0)
            ),
            LawParam(
                name="alpha_D", kind="shape", meaning="exponent of tokens", bounds=(1e-3, 3.0)
            ),
            LawParam(
                name="D_c", kind="shape", meaning="scale of tokens", start=(1e8, 1e16), **_SCALE
            ),
        ),
        {"source": "Kaplan et al. (arXiv:2001.08361), equation 1.5"},
    ),
    (
        "repeated",
        "E + A*N**-alpha + B*(min(U, D) + min(U, D)*R*(1 - exp(-max(D/U - 1, 0)/R)))**-beta",
        (
            _coefficient("E", "loss with endless parameters and tokens"),
            _coefficient("A", "scale of the parameters' term"),
            _exponent("alpha", "parameters"),
            _coefficient("B", "scale of the tokens' term"),
            LawParam(
                name="R",
                kind="shape",
                meaning="repetitions after which data are worth 1/e less",
                bounds=(1e-3, 1e4),
                start=(1.0, 50.0),
                log_start=True,
            ),
            _exponent("beta", "tokens"),
        ),
        {
            "source": "Muennighoff et al. (arXiv:2305.16264), repeated tokens; parameters are not discounted"
        },
    ),
    (
        "params-only",
        "L_inf + A*N**-alpha",
        (
            _coefficient("L_inf", "loss with endless parameters"),
            _coefficient("A", "scale of the parameters' term"),
            _exponent("alpha", "parameters"),
        ),
        {"source": "Kaplan et al. (arXiv:2001.08361), L(N), with a floor"},
    ),
    (
        "data-only",
        "L_inf + B*D**-beta",
        (
            _coefficient("L_inf", "loss with endless tokens"),
            _coefficient("B", "scale of the tokens' term"),
            _exponent("beta", "tokens"),
        ),
        {"source": "Kaplan et al. (arXiv:2001.08361), L(D), with a floor"},
    ),
    (
        "accuracy",
        "y = low + high*sigmoid(k*(middle - loss))",
        (
            LawParam(name="low", kind="coefficient", meaning="accuracy of chance"),
            LawParam(
                name="high", kind="coefficient", meaning="accuracy above chance of a perfect loss"
            ),
            LawParam(
                name="k", kind="shape", meaning="steepness", bounds=(0.0, 100.0), start=(0.3, 10.0)
            ),
            LawParam(
                name="middle",
                kind="shape",
                meaning="loss half-way",
                bounds=(0.0, 20.0),
                start=(0.5, 5.0),
            ),
        ),
        {"source": "Grattafiori et al. (arXiv:2407.21783), loss to accuracy"},
    ),
)
LAWS |= {
    name: formula.law(text, LETTERS, name=name, params={p.name: p for p in params}, **fields)
    for name, text, params, fields in _TYPED
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
    """A law of the registry, or one that an installed package offers.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    if name not in LAWS and (found := _installed(name)) is not None:
        return found
    if name not in LAWS:
        if name in OTHER_LAWS:
            raise InputError(
                f"law {name!r} is no formula of a row's columns; this takes one of {', '.join(LAWS)}, or a formula."
            )
        known = (*LAWS, *OTHER_LAWS)
        raise InputError(
            f"law {name!r} is unknown{nearest(name, known) or '.'} Known: {', '.join(known)}."
        )
    return LAWS[name]

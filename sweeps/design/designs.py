"""What each design varies: a spec becomes cells, and `plan` makes one trial per cell and seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from parcae_core.errors import UserError
from sweeps.design.sections import Count, DepthSection, ModelOverrides, OptimOverrides, Variation
from sweeps.design.spec import (
    AdaptiveSpec,
    GridSpec,
    IsoDepthSpec,
    IsoflopSpec,
    ListSpec,
    StabilitySpec,
    SweepSpec,
    TestTimeSpec,
)
from sweeps.design.validation import MAX_TRIALS, given, sentences


class Cell(Variation):
    """One point of a design; exactly one of budget_flops and n_tokens is given. What is None is the spec's."""

    mean_recurrence: Count
    variant: str | None = None  # added to the preset's label


def cells(spec: SweepSpec, where: str) -> list[Cell]:
    """The cells of a spec, in the order they are written.

    Raises:
        UserError: if a grid's axis or a list's trial does not make sense, or a cell has no length;
            or there are more trials than anybody means.
    """
    if (n_trials := _n_trials(spec)) > MAX_TRIALS:
        raise UserError(
            f"{where}: {n_trials} trials; a spec has at most {MAX_TRIALS}. Shorten its lists."
        )
    match spec:
        case IsoflopSpec():
            return [
                Cell(mean_recurrence=mu, budget_flops=c)
                for c in spec.budgets_flops
                for mu in spec.window(c)
            ]
        case TestTimeSpec():
            return [Cell(mean_recurrence=mu, n_tokens=spec.n_tokens) for mu in spec.mean_recurrence]
        case StabilitySpec():
            return list(_stability(spec))
        case IsoDepthSpec():
            return list(_iso_depth(spec))
        case AdaptiveSpec():
            return [
                Cell(mean_recurrence=mu, budget_flops=c)
                for c in sorted(set(spec.budgets_flops))
                for mu in sorted(set(spec.mean_recurrence))
            ]
        case GridSpec():
            return _checked(spec, _grid(spec, where), where)
        case ListSpec():
            trials = [_merged(spec.base, v) for v in spec.trials]
            return _checked(spec, trials, where)


def _n_trials(spec: SweepSpec) -> int:
    """Cells times seeds, without making any."""
    match spec:
        case IsoflopSpec():
            n_cells = sum(len(spec.window(c)) for c in spec.budgets_flops)
        case TestTimeSpec():
            n_cells = len(spec.mean_recurrence)
        case StabilitySpec():
            n_cells = len(spec.variants) * len(spec.learning_rates)
        case IsoDepthSpec():
            n_cells = len(spec.budgets_flops) * len(spec.widths) * len(spec.mean_recurrence)
        case AdaptiveSpec():
            n_cells = len(set(spec.budgets_flops)) * len(set(spec.mean_recurrence))
        case GridSpec():
            n_cells = math.prod(map(len, spec.axes.values()))
        case ListSpec():
            n_cells = len(spec.trials)
    return n_cells * len(spec.seeds)


def _stability(spec: StabilitySpec) -> Iterator[Cell]:
    for (label, model), rate in itertools.product(spec.variants.items(), spec.learning_rates):
        yield Cell(
            mean_recurrence=spec.mean_recurrence,
            n_tokens=spec.n_tokens,
            model=model,
            optim=OptimOverrides.model_validate({"lr": rate}),
            variant=label,
        )


def _iso_depth(spec: IsoDepthSpec) -> Iterator[Cell]:
    for budget, width, loops in itertools.product(
        spec.budgets_flops, spec.widths, spec.mean_recurrence
    ):
        model = {
            "d_model": width,
            "d_ff": 4 * width,
            "n_head": width // spec.head_width,
            "n_core": spec.unrolled_core_layers // loops,
        }
        yield Cell(
            mean_recurrence=loops,
            budget_flops=budget,
            model=ModelOverrides(**model),
            variant=f"w{width}",
        )


def _grid(spec: GridSpec, where: str) -> list[Variation]:
    out = []
    for values in itertools.product(*spec.axes.values()):
        nested: dict[str, Any] = {}
        for key, value in zip(spec.axes, values, strict=True):
            section, _, leaf = key.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[leaf] = value
        try:
            out.append(_merged(spec.base, Variation.model_validate(nested)))
        except ValidationError as error:
            raise UserError("\n".join(sentences(error, Variation, f"{where}: axes"))) from None
    return out


def _merged(base: Variation, over: Variation) -> Variation:
    merged = dict(base) | {k: v for k, v in over if v is not None}
    if over.budget_flops is not None or over.n_tokens is not None:
        merged |= {"budget_flops": over.budget_flops, "n_tokens": over.n_tokens}
    for section in ("model", "optim"):
        merged[section] = given(getattr(base, section)) | given(getattr(over, section))
    return Variation(**merged)


def _checked(spec: SweepSpec, variations: list[Variation], where: str) -> list[Cell]:
    problems = []
    for i, v in enumerate(variations, start=1):
        if v.mean_recurrence is None:
            problems.append(f"{where}: trial {i} has no mean_recurrence; give it here or in base.")
        if v.budget_flops is None and v.n_tokens is None:
            problems.append(f"{where}: trial {i} has neither budget_flops nor n_tokens; give one.")
    if problems:
        raise UserError("\n".join(problems))
    return [Cell(**dict(v) | {"depth": _depth(spec, v.depth)}) for v in variations]


def _depth(spec: SweepSpec, own: DepthSection | None) -> DepthSection | None:
    """A trial's own keys over the spec's."""
    if own is None:
        return None
    try:
        return DepthSection(**(spec.depth.model_dump() | own.model_dump(exclude_unset=True)))
    except ValidationError as error:
        where = f"{spec.name}: depth of a trial, over the spec's own"
        raise UserError("\n".join(sentences(error, DepthSection, where))) from None

"""spec -> trials. Pure: no file, no network, no Ray, no torch; the same spec and corpora give the same trials."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, assert_never

from parcae_core.accounting.flops import train_flops_per_token
from parcae_core.config import ModelConfig
from parcae_core.data.tokenizer import CHARACTERS
from parcae_core.depth import CurriculumDepth, DepthScheme, FixedDepth, PoissonDepth
from parcae_core.errors import UserError
from parcae_core.presets import preset
from parcae_core.trial import DataConfig, EvalConfig, OptimConfig, Trial
from sweeps.design.corpora import Corpora, Corpus
from sweeps.design.designs import Cell, cells
from sweeps.design.sections import DepthSection
from sweeps.design.spec import SweepSpec
from sweeps.design.trunks import with_trunks
from sweeps.design.validation import given

# Fields of the model that only a loop has; a Transformer baseline drops them
_LOOP_ONLY = ("injection", "prelude_norm", "readout", "d_state", "core_n_head", "core_d_ff")


class TooShort(UserError):
    """A cell whose budget or tokens buy fewer than min_steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The trials of one spec, in its order."""

    name: str
    spec: SweepSpec
    where: str  # the spec file, for messages
    trials: tuple[Trial, ...]
    corpora: tuple[Corpus, ...] = ()  # that they read; none where only their ids were given
    changes: tuple[str, ...] = ()  # to the file, by --set

    @property
    def trial_ids(self) -> tuple[str, ...]:
        return tuple(t.trial_id for t in self.trials)


def plan(spec: SweepSpec, data: Corpora | DataConfig, where: str = "plan") -> Plan:
    """Resolve every cell of a spec for every seed.

    Args:
        data: of each corpus, from `resolve_data`; or the one that all trials read.
        where: named in messages; the spec's path.

    Raises:
        UserError: with every problem found, one per line.
    """
    trials: dict[str, Trial] = {}
    problems: list[str] = []
    too_short: list[str] = []
    for cell in cells(spec, where):
        for seed in cell.seeds or spec.seeds:
            try:
                trial = _trial(spec, cell, seed, *_read(spec, cell, data))
            except TooShort as error:
                too_short.append(f"{where}: {error}")
                break
            except ValueError as error:  # UserError too
                problems.append(f"{where}: {error}")
                break  # the other seeds fail alike
            if trial.trial_id in trials:
                problems.append(
                    f"{where}: two entries mean the same training ({describe(trial)}, seed {seed}); "
                    "remove one."
                )
            trials[trial.trial_id] = trial
    # of an adaptive sweep's candidates, those that cannot be trained are left out
    if spec.design != "adaptive" or not trials:
        problems += too_short
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    planned = tuple(trials.values())
    if spec.trunks:
        planned = with_trunks(planned)
        if not any(t.parent for t in planned):
            raise UserError(
                f"{where}: trunks: true, and no two trials differ in length alone; give several lengths "
                "of the same training, or leave trunks out."
            )
    corpora = () if isinstance(data, DataConfig) else tuple(data.values())
    return Plan(name=spec.name, spec=spec, where=where, trials=planned, corpora=corpora)


def _read(spec: SweepSpec, cell: Cell, data: Corpora | DataConfig) -> tuple[DataConfig, int | None]:
    """(what a cell reads, the context that it is prepared for).

    Raises:
        UserError: if the spec asks for another context than the folder has.
    """
    if isinstance(data, DataConfig):
        return data, None
    corpus = data[cell.data or spec.data]
    asked = cell.context or spec.context
    if corpus.context is not None and asked not in (None, corpus.context):
        raise UserError(
            f"context is {asked}, and {corpus.config.corpus} was prepared with rows of {corpus.context} "
            f"tokens; leave context out, or prepare the corpus again with --context {asked}."
        )
    return corpus.config, corpus.context


def describe(trial: Trial) -> str:
    """A few words that tell trials of one sweep apart, for tables and progress."""
    size = (
        f"{short(trial.n_tokens)} tokens"
        if trial.budget_flops is None
        else f"{short(trial.budget_flops)} FLOPs"
    )
    return f"{trial.preset}, mean_recurrence={trial.mean_recurrence}, {size}"


def _trial(
    spec: SweepSpec, cell: Cell, seed: int, data: DataConfig, prepared_context: int | None
) -> Trial:
    as_transformer = cell.mean_recurrence == 1 and spec.recurrence_one == "transformer"
    model = _model(spec, given(cell.model), data, transformer=as_transformer)
    if model.is_transformer and cell.mean_recurrence != 1:
        raise UserError(
            f"model.injection is 'none' at mean_recurrence={cell.mean_recurrence}; a model without "
            "a loop has mean_recurrence 1."
        )
    context = cell.context or spec.context or prepared_context or model.context
    batch = cell.batch_sequences or spec.batch_sequences
    loops = [1] if model.is_transformer else {*spec.evaluation.loops, cell.mean_recurrence}
    # of trunks no update may depend on a run's length before its cool-down
    schedule = {"weight_decay_falls": "cooldown"} if spec.trunks else {}
    n_steps = _steps(spec, cell, model, context, batch)
    return Trial(
        preset="/".join(filter(None, (spec.preset or "custom", cell.variant))),
        model=model,
        depth=None if model.is_transformer else _depth(spec, cell, n_steps),
        data=data,
        optim=OptimConfig(**(schedule | given(spec.optim) | given(cell.optim))),
        evaluation=EvalConfig(
            loops=tuple(sorted(loops)),
            n_sequences=spec.evaluation.n_sequences,
            every=spec.evaluation.steps(n_steps),
        ),
        n_steps=n_steps,
        batch_sequences=batch,
        context=context,
        seed=seed,
        data_seed=spec.data_seed,
        precision=spec.precision,
        budget_flops=cell.budget_flops,
        budget_rule=spec.budget_rule,
        resources=replace(spec.resources.resolve(), compile=spec.compile),
    )


def _model(
    spec: SweepSpec, variation: dict[str, Any], data: DataConfig, *, transformer: bool
) -> ModelConfig:
    changes = given(spec.model) | variation
    if data.tokenizer == CHARACTERS:  # a preset's vocabulary is for text
        changes = {"vocab_size": data.vocab_size} | changes
    if transformer:
        changes = {k: v for k, v in changes.items() if k not in _LOOP_ONLY}
    if spec.preset is not None:
        return preset(spec.preset, transformer=transformer).replace(**changes)
    if transformer:
        changes |= {"injection": "none", "prelude_norm": False}
    try:
        return ModelConfig(**changes)
    except TypeError as error:  # a field without a default is missing
        names = str(error).split("argument", 1)[-1].lstrip("s:").strip()
        raise UserError(f"model: without a preset the model needs {names} as well.") from None


def _depth(spec: SweepSpec, cell: Cell, n_steps: int) -> DepthScheme:
    """The scheme of a cell; `n_steps` matters to a curriculum alone."""
    mu = cell.mean_recurrence
    section = cell.depth or spec.depth
    mu_bwd = cell.mean_backprop_depth or section.backprop_depth(mu)
    if mu_bwd > mu:
        raise UserError(
            f"depth.mean_backprop_depth is {mu_bwd} at mean_recurrence={mu}; gradient flows through "
            "at most mean_recurrence steps. Lower it, or use 'ceil(mu/2)' as the paper does."
        )
    if mu == 1 or section.kind == "fixed":
        # Poisson(1) cut at 1 has a mean of 1.37 loops: "once" has to be fixed
        return FixedDepth(mean_recurrence=mu, mean_backprop_depth=mu_bwd)
    if section.kind == "curriculum":
        return _curriculum(section, mu, mu_bwd, n_steps)
    if section.kind == "poisson":
        return PoissonDepth(
            mean_recurrence=mu,
            mean_backprop_depth=mu_bwd,
            per=section.per,
            split=section.split,
        )
    assert_never(section.kind)


def _curriculum(section: DepthSection, mu: int, mu_bwd: int, n_steps: int) -> CurriculumDepth:
    if mu_bwd == mu:
        raise UserError(
            f"depth.kind is curriculum and mean_backprop_depth is {mu_bwd} at mean_recurrence={mu}: "
            "there are no steps without gradient that could grow. Lower mean_backprop_depth."
        )
    ramp_steps = section.ramp(n_steps)
    if ramp_steps > n_steps:
        raise UserError(
            f"depth.ramp_steps is {ramp_steps} and the training at mean_recurrence={mu} has {n_steps} "
            "steps; lower it, or give ramp_share instead."
        )
    return CurriculumDepth(
        mean_recurrence=mu,
        mean_backprop_depth=mu_bwd,
        ramp_steps=ramp_steps,
        n_steps=n_steps,
        shape=section.ramp_shape,
    )


def _steps(spec: SweepSpec, cell: Cell, model: ModelConfig, context: int, batch: int) -> int:
    batch_tokens = batch * context
    if cell.n_tokens is not None:
        steps = cell.n_tokens // batch_tokens
        if steps < spec.min_steps:
            raise TooShort(
                f"{short(cell.n_tokens)} tokens are {steps} steps of batch_tokens={batch_tokens}; "
                f"min_steps is {spec.min_steps}. Raise n_tokens to {short(spec.min_steps * batch_tokens)} "
                "or lower batch_sequences."
            )
        return steps
    assert cell.budget_flops is not None, "a cell has tokens or a budget"
    steps, per_step = _bought(spec, cell, cell.budget_flops, model, context, batch_tokens)
    if steps < spec.min_steps:
        raise TooShort(
            f"{short(cell.budget_flops)} FLOPs buy {steps} steps at mean_recurrence="
            f"{cell.mean_recurrence} (batch_tokens={batch_tokens}); min_steps is {spec.min_steps}. "
            f"Raise the budget to {_rounded_up(spec.min_steps * per_step)} or lower batch_sequences."
        )
    return steps


def _bought(
    spec: SweepSpec,
    cell: Cell,
    budget_flops: float,
    model: ModelConfig,
    context: int,
    batch_tokens: int,
) -> tuple[int, float]:
    """(steps that the budget buys, FLOPs of a step at full depth)."""

    def per_step(depth: DepthScheme | None) -> float:
        count = train_flops_per_token(model, depth, context, spec.budget_rule)
        return count.total * batch_tokens

    def scheme(n_steps: int) -> DepthScheme | None:
        return None if model.is_transformer else _depth(spec, cell, n_steps)

    # A ramp of one step is next to none, so this is the full depth for a curriculum too
    section = cell.depth or spec.depth
    plain = section.kind != "curriculum" or cell.mean_recurrence == 1 or model.is_transformer
    if plain:
        cost = per_step(scheme(1))
        return math.floor(budget_flops / cost), cost
    mu_bwd = cell.mean_backprop_depth or section.backprop_depth(cell.mean_recurrence)
    full, shallow = (
        per_step(PoissonDepth(mean_recurrence=mu, mean_backprop_depth=min(mu, mu_bwd)))
        for mu in (cell.mean_recurrence, mu_bwd)
    )
    # What a step costs on average depends on how many there are. The whole costs more with every
    # step, and lies between all of them shallow and all of them at full depth
    fewest = max(math.floor(budget_flops / full), section.ramp_steps or 1)
    most = math.floor(budget_flops / shallow)
    if per_step(scheme(fewest)) * fewest > budget_flops:
        if section.ramp_steps:
            raise UserError(
                f"depth.ramp_steps is {section.ramp_steps}, and {short(budget_flops)} FLOPs buy fewer steps "
                f"than that at mean_recurrence={cell.mean_recurrence}; lower it, raise the budget, or give "
                "ramp_share instead."
            )
        return fewest - 1, full
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if per_step(scheme(middle)) * middle <= budget_flops:
            fewest = middle
        else:
            most = middle - 1
    return most, full


def _rounded_up(flops: float) -> str:
    """Two digits, never below `flops`, so that following the message is enough."""
    unit = 10.0 ** (math.floor(math.log10(flops)) - 1)
    return short(float(f"{math.ceil(flops / unit) * unit:.1e}"))


def short(number: float) -> str:
    """Four digits, as people write them: 1e18 and not 1e+18."""
    mantissa, _, exponent = f"{number:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa

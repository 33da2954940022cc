"""`--smoke`: the same design in miniature, to see that a spec runs from end to end."""

from __future__ import annotations

from dataclasses import replace

from parcae_core.config import ModelConfig
from parcae_core.depth import CurriculumDepth
from parcae_core.trial import EvalConfig, Resources, Trial
from sweeps.design.plan import Plan
from sweeps.design.trunks import with_trunks

MAX_TRIALS = 6
STEPS = 8
CONTEXT = 32
BATCH_SEQUENCES = 4
EVALUATION_SEQUENCES = 4


def shrink(plan: Plan) -> Plan:
    """A few tiny trials that keep what makes the design's trials differ, under `<name>-smoke`.

    Kept: injection, norms, depth scheme, optimiser, number of loops, seeds. Shrunk: widths, layers,
    context, batch, steps, evaluation. The result says nothing about any law.
    """
    trials: dict[str, Trial] = {}
    # Ends of the list first: the extremes of the design are what breaks
    order = sorted(range(len(plan.trials)), key=lambda i: min(i, len(plan.trials) - 1 - i))
    for index in order:
        trial = _tiny(plan.trials[index], index)
        if len(trials) < MAX_TRIALS:
            trials.setdefault(trial.trial_id, trial)
    name = f"{plan.name[: 64 - len('-smoke')]}-smoke"
    tiny = tuple(trials.values())
    return replace(plan, name=name, trials=with_trunks(tiny) if plan.spec.trunks else tiny)


def _tiny(trial: Trial, index: int) -> Trial:
    loops, every = trial.evaluation.loops, trial.evaluation.every
    n_steps = min(trial.n_steps, STEPS + index)  # an isoFLOP design's steps differ too
    depth = trial.depth
    if isinstance(depth, CurriculumDepth):
        ramp = max(1, round(depth.ramp_steps / depth.n_steps * n_steps))
        depth = replace(depth, n_steps=n_steps, ramp_steps=ramp)
    return replace(
        trial,
        depth=depth,
        preset=f"{trial.preset}-smoke",
        model=_tiny_model(trial.model),
        evaluation=EvalConfig(
            loops=tuple(n for n in loops if n <= trial.mean_recurrence)[-3:],
            n_sequences=min(EVALUATION_SEQUENCES, trial.evaluation.n_sequences),
            every=None if every is None else max(1, round(every / trial.n_steps * n_steps)),
        ),
        n_steps=n_steps,
        batch_sequences=min(trial.batch_sequences, BATCH_SEQUENCES),
        context=min(trial.context, CONTEXT),
        precision="float32",
        resources=Resources(cpus=1, gpus=0),
        parent=None,
    )


def _tiny_model(model: ModelConfig) -> ModelConfig:
    shared = {"d_model": 32, "n_head": 2, "n_kv_head": None, "d_ff": 64, "core_d_ff": None}
    layers = {n: min(getattr(model, n), 1) for n in ("n_prelude", "n_core", "n_coda")}
    narrow = {"d_state": None if model.d_state is None else 64, "core_n_head": None}
    if model.is_transformer or not model.readout or model.injection == "add":
        narrow = {"d_state": None, "core_n_head": None}
    return model.replace(**shared, **layers, **narrow, context=min(model.context, CONTEXT))

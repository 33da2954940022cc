"""Trial folders -> the records table, by the contract of analysis.records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import records
from parcae_core.depth import CurriculumDepth, DepthScheme, PoissonDepth
from parcae_core.params import count_params
from parcae_core.trial import Trial, planned_flops
from sweeps.files import read_json
from sweeps.store import Store

if TYPE_CHECKING:
    import pandas as pd


def collect(store: Store) -> Path | None:
    """Write records.parquet of every trial that ended; may be repeated, also while others run.

    Returns:
        The file here, or None when no trial has ended yet.
    """
    table = records_of(store)
    if table is None:
        return None
    path = records.save(table, store.root / records.FILE_NAME)
    store.backing.publish(path)
    return path


def records_of(store: Store) -> pd.DataFrame | None:
    """The table of every trial in the folder that is done, diverged or failed; None if none is."""
    import pandas as pd

    sweep = store.sweep or {}
    rows: list[dict[str, Any]] = []
    for trial in store.stored_trials():
        state = store.state(trial)
        if state.state in records.STATUSES:
            common = _common(store, sweep, trial) | {
                "status": state.state,
                "status_reason": None if state.state == "done" else state.reason,
            }
            rows += [common | row for row in _evaluated(store, trial)]
    if not rows:
        return None
    return records.validate(pd.DataFrame(rows), where=str(store.root))


def _common(store: Store, sweep: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """What all rows of a trial share; FLOPs, steps and tokens are those of the planned training."""
    model, counts = trial.model, count_params(trial.model)
    looped = trial.depth is not None
    core = counts.core if looped else 0
    flops = planned_flops(trial)
    said = read_json(store.folder(trial.trial_id) / "state.json") or {}
    result = store.result(trial) or {}
    diverged = result.get("status") == "diverged"
    return {
        "trial_id": trial.trial_id,
        "sweep": store.name,
        "preset": trial.preset,
        "architecture": "parcae" if looped else "transformer",
        "injection": model.injection if looped else None,
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "n_params": counts.total,
        "n_params_core": core,
        "n_params_unrolled": counts.total + (trial.mean_recurrence - 1) * core,
        "n_params_once": counts.total - core,
        "mean_recurrence": trial.mean_recurrence,
        "mean_backprop_depth": trial.mean_backprop_depth,
        "depth_scheme": _depth_scheme(trial.depth),
        "budget_flops": trial.budget_flops,
        "flops_rule": trial.budget_rule,
        "train_flops_paper": flops["paper"],
        "train_flops_code": flops["code"],
        "train_flops_exact": flops["exact"],
        "n_tokens": trial.n_tokens,
        "n_steps": trial.n_steps,
        "batch_tokens": trial.batch_tokens,
        "context": trial.context,
        "seed": trial.seed,
        "data_seed": trial.data_seed,
        "data_fingerprint": trial.data.fingerprint,
        "tokenizer": trial.data.tokenizer,
        "vocab_size": trial.data.vocab_size,
        "data_epochs": result.get("data_epochs", 0.0),
        "muon_lr": trial.optim.muon_lr,
        "adamw_lr": trial.optim.adamw_lr,
        "diverged_step": result.get("step") if diverged else None,
        "wall_s": result.get("train_s"),
        "tokens_per_s": result.get("tokens_per_s"),
        "device": result.get("device", "unknown"),
        "torch_version": result.get("torch_version", "unknown"),
        "git_commit": said.get("git_commit") or sweep.get("git_commit"),
        "spec_sha256": said.get("spec_sha256") or sweep.get("spec_sha256"),
    }


def _depth_scheme(depth: DepthScheme | None) -> str | None:
    if isinstance(depth, PoissonDepth):
        return f"poisson per {depth.per}, {depth.split}"
    if isinstance(depth, CurriculumDepth):
        return f"curriculum, {depth.shape} over {depth.ramp_steps / depth.n_steps:.3g} of the steps"
    return None if depth is None else depth.kind


def _evaluated(store: Store, trial: Trial) -> list[dict[str, Any]]:
    """One row per evaluation; a single empty one, at mean_recurrence, when there is none."""
    result = store.result(trial) or {}
    rows = result.get("evaluation") or []
    if not rows:
        return [
            {"n_loops": trial.mean_recurrence, "val_loss": None, "val_bpb": None, "val_tokens": 0}
        ]
    return [
        {
            "n_loops": r["n_loops"],
            "val_loss": r["val_loss"],
            "val_bpb": r["val_bpb"],
            "val_tokens": r["n_tokens"],
        }
        for r in rows
    ]

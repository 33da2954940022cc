"""What a branch begins from: a checkpoint that its trunk kept, and the metrics until there."""

from __future__ import annotations

import json
from pathlib import Path

from parcae_core.checkpoints.native import begin_branch as begin_from
from parcae_core.data.io import write_synced
from parcae_core.training.metrics import read_metrics
from parcae_core.trial import Trial


def begin_branch(trunk_dir: Path, branch: Trial, run_dir: Path) -> Path:
    """Make a run folder in which training goes on from the trunk; returns the checkpoint in it.

    Args:
        trunk_dir: run folder of `branch.parent`, which kept its checkpoint of that step.
        run_dir: of the branch, without a checkpoint.

    Raises:
        DamagedCheckpoint: if the checkpoint's index is not as it was written.
        ValueError: if trunk and branch make different updates before that step.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = [
        x for x in read_metrics(trunk_dir / "metrics.jsonl") if x["step"] <= branch.shared_steps
    ]
    write_synced(run_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    # last: with it the folder counts
    kept = trunk_dir / "branches" / f"step-{branch.shared_steps:09d}"
    return begin_from(kept, branch, run_dir / "checkpoints")

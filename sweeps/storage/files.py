"""The names of a trial's files, and small files of JSON that are either whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parcae_core.data.io import write_synced

SMALL = ("trial.json", "state.json", "result.json", "error.txt")  # what a view of a sweep holds


class TrialFiles:
    """Every file name of a trial's folder. Those of a checkpoint are parcae_core.checkpoints.native's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.small = self.trial, self.state, self.result, self.error = [folder / n for n in SMALL]
        self.metrics = folder / "metrics.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.wandb = folder / "wandb"
        self.mirror = self.wandb / "mirror.json"  # which outcome the run folders in it hold
        self.lease = folder / "lease.json"  # whose the folder is
        self.worker = folder / ".worker"  # locked by the process that trains here
        self.outgoing = folder / ".outgoing"  # the checkpoint that is on its way to a store


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON, whole or not at all; refuses NaN, which is no JSON."""
    write_synced(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; None when there is no file or it does not hold one.

    A damaged file reads as absent: the caller then derives the state without it and, for a
    result, trains again. `sweeps.store` tells the user.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None

"""The names of a trial's files, and small files of JSON that are either whole or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from parcae_core import plain
from parcae_core.data.io import write_synced
from parcae_core.errors import UserError
from parcae_core.plain import is_plain_name

SEAL = "sha256"  # key of the checksum in trial.json and result.json
DECISIONS = "design.jsonl"  # of a sweep whose runs are chosen one by one
SCORES = "scores.json"  # of a trial, on tasks of lm-evaluation-harness
SMALL = ("trial.json", "state.json", "result.json", "error.txt")  # what a view of a sweep holds


class TrialFiles:
    """Every file name of a trial's folder. Those of a checkpoint are parcae_core.checkpoints.native's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.small = self.trial, self.state, self.result, self.error = [folder / n for n in SMALL]
        self.metrics = folder / "metrics.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.branches = folder / "branches"  # checkpoints that other trials begin from
        self.wandb = folder / "wandb"
        self.mirror = self.wandb / "mirror.json"  # which outcome the run folders in it hold
        self.halt = folder / "halt.json"  # why a scheduler wants the trial to end here
        self.lease = folder / "lease.json"  # whose the folder is
        self.worker = folder / ".worker"  # locked by the process that trains here
        self.outgoing = folder / ".outgoing"  # the checkpoint that is on its way to a store

    def newest_step(self) -> int:
        """Of the newest checkpoint here; 0 without one."""
        steps = (p.name.removeprefix("step-") for p in self.checkpoints.glob("step-*"))
        return max((int(s) for s in steps if s.isdecimal()), default=0)


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON, whole or not at all; refuses NaN, which is no JSON."""
    write_synced(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; None when there is no file or it does not hold one.

    A damaged file reads as absent: the caller then derives the state without it and, for a
    result, trains again. `problem_of` says what is wrong.
    """
    try:
        return plain.read_json(path)
    except UserError:
        return None


def parsed(content: bytes) -> dict[str, Any]:
    """The mapping that an object of a store holds; empty of a damaged one."""
    try:
        return plain.parse_json(content, "object")
    except UserError:
        return {}


def problem_of(path: Path) -> str:
    """What is wrong with a file of JSON that is there: a sentence that names it, or ""."""
    if not path.exists():
        return ""
    try:
        data = plain.read_json(path)
    except UserError as error:
        return str(error)
    if SEAL in data and data[SEAL] != _checksum(data):  # files of older versions carry none
        return f"{path}: its checksum is not that of what was written"
    return ""


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """The data with a checksum of itself, by which a changed digit shows."""
    return data | {SEAL: _checksum(data)}


def without_seal(data: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != SEAL}


def _checksum(data: dict[str, Any]) -> str:
    text = json.dumps(without_seal(data), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def require_plain_name(name: Any, where: str) -> str:
    """A name that may be joined to a folder's: one part, not `..`, not absolute.

    Raises:
        UserError: naming it and where it stands.
    """
    if not is_plain_name(name):
        raise UserError(
            f"{where}: {name!r:.80} is not the name of a file or folder in it; remove it, it was not "
            "written by this program"
        )
    return name

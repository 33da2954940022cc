"""Checkpoints that are whole or absent.

    run_dir/checkpoints/step-000001000/
        weights.safetensors      the model's parameters by name
        optimizer.safetensors    the optimiser's state by name
        checkpoint.json          step, trial, progress, sha256 and size of the two files

A checkpoint is written under a temporary name, flushed to disk and renamed; the last two are kept.
Those that other trials begin from lie in run_dir/branches/ until they have been handed over.
What fails its checks is reported and the one before it is used. The optimiser's state is tensors
with names, so it is safetensors as well: nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from parcae_core.accounting.params import count_params
from parcae_core.data.io import Locked, file_lock, file_sha256, sync, whole_folder, write_synced
from parcae_core.errors import UserError
from parcae_core.model.parcae import Parcae, build_model
from parcae_core.plain import build, read_json
from parcae_core.trial import Trial, trial_from_dict, trial_to_dict

log = logging.getLogger(__name__)

_FORMAT = 1
_KEEP = 2
_WEIGHTS, _OPTIMIZER, _INDEX = "weights.safetensors", "optimizer.safetensors", "checkpoint.json"
_TENSOR_FILES = (_WEIGHTS, _OPTIMIZER)


class DamagedCheckpoint(Exception):
    """A checkpoint folder whose content is not what was written."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What the index says of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back, on the CPU."""

    path: Path
    step: int
    trial: Trial
    progress: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


@contextlib.contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process; the lock goes with the process, however it dies.

    Raises:
        UserError: if another one trains in it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(run_dir / ".lock"))
        except Locked:
            raise UserError(
                f"{run_dir}: another process is training in this folder; wait for it to end, "
                "stop it, or choose another folder"
            ) from None
        yield


def save_checkpoint(
    folder: Path,
    *,
    trial: Trial,
    step: int,
    progress: dict[str, Any],
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
) -> Path:
    """Write a checkpoint, drop all but the last two, and return its folder.

    Raises:
        UserError: if the disk has no room for it; earlier checkpoints stay as they are.
    """
    final = folder / f"step-{step:09d}"
    temporary = folder / f".writing-{step:09d}"
    needed = sum(t.numel() * t.element_size() for t in (*weights.values(), *optimizer.values()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(f"{_mb(needed)} are needed and {_mb(free)} are free")
        with whole_folder(final, temporary):
            with ThreadPoolExecutor(2) as pool:  # hashing one file while the other is written
                written = {
                    name: pool.submit(write_tensors, temporary / name, tensors)
                    for name, tensors in ((_WEIGHTS, weights), (_OPTIMIZER, optimizer))
                }
            files = {name: w.result() for name, w in written.items()}
            _write_index(temporary, trial, step, progress, files)
            sync(temporary)
            if final.exists():  # the same step again, after falling back from a damaged one
                final.rename(folder / f".old-{step:09d}")
        for old in _checkpoints(folder)[:-_KEEP]:
            shutil.rmtree(old)
        _remove_leftovers(folder)
    except OSError as error:
        raise UserError(
            f"{final}: the checkpoint cannot be written ({error}). Earlier checkpoints are intact; "
            "make room or choose another folder, and start the run again"
        ) from error
    return final


def keep_checkpoint(path: Path, folder: Path) -> Path:
    """A checkpoint again, in another folder, where none is dropped; returns it there."""
    final = folder / path.name
    if not final.exists():
        temporary = folder / f".writing-{path.name}"
        with whole_folder(final, temporary):
            shutil.copytree(path, temporary, copy_function=_link, dirs_exist_ok=True)
    return final


def begin_branch(kept: Path, trial: Trial, folder: Path) -> Path:
    """Turn a trunk's checkpoint into the one that a branch begins from; returns its folder.

    Args:
        kept: of a trial that makes the same updates up to that step.
        trial: the branch.
        folder: the checkpoints of the branch, none so far.

    Raises:
        DamagedCheckpoint: if its index is not as it was written.
        ValueError: if the two make different updates before that step.
    """
    index = _read_index(kept)
    trunk, step = trial_from_dict(index["trial"]), index["step"]
    if trunk.trunk() != trial.trunk() or step > min(trunk.constant_steps, trial.constant_steps):
        raise ValueError(
            f"{kept}: trial {trial.trial_id} makes other updates in its first {step} steps than trial "
            f"{trunk.trial_id}; it cannot begin from here"
        )
    final, temporary = folder / kept.name, folder / f".writing-{step:09d}"
    progress = index["progress"] | {"shared_steps": step}
    with whole_folder(final, temporary):
        for name in _TENSOR_FILES:
            _link(kept / name, temporary / name)
        _write_index(temporary, trial, step, progress, index["files"])
    return final


def newest_checkpoint(folder: Path, trial: Trial | None = None) -> Checkpoint | None:
    """The last whole checkpoint, or None when there is none.

    Args:
        trial: the one it must belong to; None takes any.

    A damaged one is reported as a warning and the one before it is used; with none left the run
    starts over, which costs time and changes no result.

    Raises:
        UserError: if a checkpoint belongs to another trial.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            index = _read_index(path)
            if trial is not None and index.get("trial_id") != trial.trial_id:
                raise UserError(
                    f"{path}: this checkpoint is of trial {index.get('trial_id')} and this run is trial "
                    f"{trial.trial_id}; give each trial its own folder"
                )
            return read_checkpoint(path)
        except DamagedCheckpoint as damage:
            log.warning("%s is damaged (%s); trying the checkpoint before it", path, damage)
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        DamagedCheckpoint: if a file is missing, cut short or changed.
    """
    index = _read_index(path)
    try:
        written = {name: build(_Written, index["files"][name], name) for name in _TENSOR_FILES}
        trial, step, progress = trial_from_dict(index["trial"]), index["step"], index["progress"]
        if type(step) is not int or not isinstance(progress, dict):
            raise ValueError("step must be a whole number and progress an object")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{_INDEX} holds what no version wrote ({error})") from error
    for name, expected in written.items():
        file = path / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if file.stat().st_size != expected.bytes:
            raise DamagedCheckpoint(
                f"{name} has {file.stat().st_size} bytes, {expected.bytes} were written"
            )
        if file_sha256(file) != expected.sha256:
            raise DamagedCheckpoint(f"the sha256 of {name} is not the one that was written")
    try:
        weights, optimizer = (safetensors.torch.load_file(path / n) for n in _TENSOR_FILES)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch has not
        raise DamagedCheckpoint(f"its tensors cannot be read ({error!r})") from error
    return Checkpoint(
        path=path, step=step, trial=trial, progress=progress, weights=weights, optimizer=optimizer
    )


def load_weights(found: Checkpoint) -> Parcae:
    """The model of a checkpoint, on the CPU.

    Raises:
        DamagedCheckpoint: if its weights are not those of its trial's model, or not finite.
    """
    config, weights = found.trial.model, found.weights
    # By number first: what a configuration claims is only built once the file holds as much
    needed, held = count_params(config).total, sum(t.numel() for t in weights.values())
    if needed != held:
        raise DamagedCheckpoint(f"it holds {held} parameters, and its trial's model has {needed}")
    for name, tensor in weights.items():
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise DamagedCheckpoint(f"{name} holds what is no finite number")
    model = build_model(config, seed=found.trial.seed)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise DamagedCheckpoint(" ".join(str(error).split())[:300]) from None
    return model


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = read_json(path / _INDEX)
    except UserError as error:
        raise DamagedCheckpoint(str(error)) from error
    if index.pop("sha256", None) != _sha256_of_json(index):
        raise DamagedCheckpoint(f"{_INDEX} is not as it was written")
    if index.get("format") != _FORMAT:
        raise UserError(
            f"{path}: checkpoint format {index.get('format')!r:.40}, this version reads {_FORMAT}; "
            "finish the run with the version that began it, or remove the folder to start over"
        )
    return index


def _write_index(
    folder: Path, trial: Trial, step: int, progress: dict[str, Any], files: dict[str, Any]
) -> None:
    body = {
        "format": _FORMAT,
        "step": step,
        "trial_id": trial.trial_id,
        "trial": trial_to_dict(trial),
        "progress": progress,
        "files": files,
    }
    index = json.dumps(body | {"sha256": _sha256_of_json(body)}, indent=1)
    write_synced(folder / _INDEX, index.encode())


def _link(source: str | Path, target: str | Path) -> None:
    """A second name of a file that nobody changes; a copy where a file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders by rising step."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _remove_leftovers(folder: Path) -> None:
    for pattern in (".writing-*", ".old-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write a file of safetensors, to the disk; what an index says of it.

    Raises:
        OSError: if the disk has no room.
    """
    plain = {n: t.detach().contiguous() for n, t in tensors.items()}
    try:
        safetensors.torch.save_file(plain, path, metadata)
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(str(error)) from error
    sha256 = file_sha256(path)
    sync(path)
    return {"sha256": sha256, "bytes": path.stat().st_size}


def _sha256_of_json(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"

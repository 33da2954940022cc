"""Opening and closing one W&B run, the same way for trials and sweeps.

Only the modules sweeps/wandb_*.py import wandb, and each inside the function that needs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.storage.files import read_json, write_json

if TYPE_CHECKING:
    import wandb

MARKER = "mirror.json"  # beside the run folders: which outcome has been written, and how


def open_run(
    folder: Path,
    *,
    run_id: str,
    project: str,
    group: str,
    job_type: str,
    mode: str,
    tags: Sequence[str],
    config: dict[str, Any],
    init_timeout_s: float = 30.0,
    finish_timeout_s: float = 30.0,
) -> wandb.Run:
    """A W&B run whose files lie under folder/wandb; an online run of the same id goes on.

    Raises:
        Exception: whatever W&B raises. `finish` of the run raises TimeoutError when the data could
            not be sent in time.
    """
    # Its settings and keys stay where the user has them; nothing is printed over our progress
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb.init(
        project=project,
        group=group,
        job_type=job_type,
        id=run_id,
        name=run_id,
        tags=[t[:64] for t in tags],  # W&B takes no longer ones
        config=config,
        dir=str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="finish_previous",
        settings=wandb.Settings(
            init_timeout=init_timeout_s,
            finish_timeout=finish_timeout_s,
            finish_timeout_raises=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_save_requirements=False,
            silent=True,
        ),
    )


def forget_runs() -> None:
    """After a failed init; without this a second init of the same id says that the run is in use."""
    import wandb

    wandb.teardown()


def digest(data: Any) -> str:
    """Hash of what a run would hold, to tell whether it has been written."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def written(folder: Path) -> dict[str, Any]:
    """What the marker in a folder says: "of" (a digest), "mode" and "id"; empty without one."""
    return read_json(folder / "wandb" / MARKER) or {}


def mark(folder: Path, **said: str) -> None:
    """Record that a run is complete, on the server or in its offline folder."""
    write_json(folder / "wandb" / MARKER, said)


def drop_unsent(folder: Path, run_id: str) -> None:
    """Remove offline runs of this id that nobody has sent: what is written next replaces them.

    W&B cannot go on with an offline run; two folders of one id would be sent as two parts.
    """
    for old in folder.glob(f"wandb/offline-run-*-{run_id}"):
        if not list(old.glob("*.wandb.synced")):
            shutil.rmtree(old)

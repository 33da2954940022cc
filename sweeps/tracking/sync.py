"""`parcae sync`: offline runs to the server that W&B is set up for. Safe to repeat."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from sweeps import child
from sweeps.tracking.trial_run import written

SYNC_TIMEOUT_S = 120.0  # of one run; `wandb sync` alone would try for ever


def unsynced(root: Path) -> list[Path]:
    """Offline run folders of a sweep and its trials that no `sync` has sent yet, oldest first.

    Only complete ones: a worker may be writing its own at this moment.
    """
    found = [p for where in ("*/wandb", "wandb") for p in root.glob(f"{where}/offline-run-*")]
    whole = [p for p in found if p.is_dir() and written(p.parents[1])]
    return sorted(
        (p for p in whole if not list(p.glob("*.wandb.synced"))),
        key=lambda p: p.name,  # starts with the time
    )


def key_problem() -> str | None:
    """Why nothing can be sent from here, in words; asked before the first run is tried."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file or wandb.api.api_key:
        return None
    return (
        f"no API key for {settings.base_url}: run `wandb login`, or set WANDB_API_KEY (and "
        "WANDB_BASE_URL for a server of your own)"
    )


def sync(folder: Path) -> str | None:
    """Send one offline run; what went wrong, or None."""
    code, text = child.output_of(
        *("wandb", "sync", "--yes", str(folder.absolute())),
        timeout_s=SYNC_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    if code is None:
        return f"the server did not take it within {SYNC_TIMEOUT_S:.0f} s"
    if code == 0 and list(folder.glob("*.wandb.synced")):
        return None
    lines = [line.removeprefix("wandb: ") for line in text.strip().splitlines()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no reason given"])[-1]

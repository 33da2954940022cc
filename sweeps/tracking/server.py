"""The W&B server: where runs go, and sending it those that were written offline. Safe to repeat."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parcae_core.errors import UserError
from sweeps import child
from sweeps.design.sections import WandbSection
from sweeps.tracking.trial_run import written

SYNC_TIMEOUT_S = 120.0  # of one run; `wandb sync` alone would try for ever
# W&B's older words for two of them still work there
_MODES = {m: m for m in ("online", "offline", "disabled")} | {"dryrun": "offline", "run": "online"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Mode and project of a sweep's runs."""

    mode: str
    project: str  # PROJECT, or ENTITY/PROJECT
    from_variables: tuple[str, ...]  # what W&B's variables decided, for the user

    def sentence(self) -> str | None:
        """What was taken from the environment; None if nothing was."""
        if not self.from_variables or self.mode == "disabled":
            return None
        return f"W&B {self.mode}, project {self.project}: by {', '.join(self.from_variables)}"


def target(
    section: WandbSection, mode: str | None = None, environment: Mapping[str, str] | None = None
) -> Target:
    """Where runs go: the command line comes first, then the spec, then the variables.

    Args:
        mode: of the command line.

    Raises:
        UserError: for a WANDB_MODE that is none.
    """
    environment = os.environ if environment is None else environment
    used = []

    def variable(name: str) -> str | None:
        value = environment.get(name) or None
        if value is not None:
            used.append(name)
        return value

    given = section.model_fields_set
    if mode is None:
        mode = section.mode if "mode" in given else variable("WANDB_MODE") or section.mode
        if mode not in _MODES:
            raise UserError(f"WANDB_MODE is {mode!r}; it must be online, offline or disabled.")
        mode = _MODES[mode]
    project = section.project
    if "project" not in given:
        project = variable("WANDB_PROJECT") or project
    entity = section.entity or variable("WANDB_ENTITY")
    return Target(
        mode=mode,
        project=f"{entity}/{project}" if entity else project,
        from_variables=tuple(used),
    )


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

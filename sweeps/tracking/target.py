"""Where W&B runs go: what the spec says, else W&B's own variables, else the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from parcae_core.errors import UserError
from sweeps.design.sections import WandbSection

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
    """Resolve where runs go; the command line comes first, then the spec, then the variables.

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

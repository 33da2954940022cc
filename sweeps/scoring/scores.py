"""scores.json of a trial: what its model scores on tasks, by number of loops, and its columns of records."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from parcae_core.errors import UserError
from parcae_core.plain import build, read_json
from sweeps.storage.files import SCORES, problem_of, sealed, without_seal, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number of a task."""

    task: str  # with "-<n>shot" where the number of examples was chosen
    metric: str  # with its filter, where it has one
    value: float
    stderr: float | None  # None where the harness knows none

    @property
    def column(self) -> str:
        """Its name in the records."""
        return "score_" + re.sub(r"\W+", "_", f"{self.task}_{self.metric}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Of one model."""

    by_loops: dict[str, list[Score]]  # number of loops -> scores
    step: int  # of the checkpoint that was scored
    harness: str  # the version of lm_eval

    def merged(self, newer: Scores) -> Scores:
        """These and the newer ones, which replace those of the same task, metric and loops.

        Scores of another checkpoint are not of this model, and are dropped.
        """
        if self.step != newer.step:
            return newer
        rows = {k: {s.column: s for s in v} for k, v in self.by_loops.items()}
        for loops, found in newer.by_loops.items():
            rows.setdefault(loops, {}).update({s.column: s for s in found})
        return Scores(
            by_loops={k: list(v.values()) for k, v in rows.items()},
            step=newer.step,
            harness=newer.harness,
        )

    def columns(self, n_loops: int) -> dict[str, float | None]:
        """column of the records -> value at a number of loops; every column, None where not scored."""
        every = dict.fromkeys(s.column for rows in self.by_loops.values() for s in rows)
        return every | {s.column: s.value for s in self.by_loops.get(str(n_loops), ())}

    def write(self, folder: Path) -> None:
        """Replace the file."""
        write_json(folder / SCORES, sealed(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Scores | None:
        """The scores in a trial's folder; None if there are none.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / SCORES
        if not path.exists():
            return None
        try:
            if problem := problem_of(path):
                raise UserError(problem)
            return build(cls, without_seal(read_json(path)), SCORES)
        except ValueError as error:
            raise UserError(
                f"{path}: {error}; remove it and score the model again with `parcae score`"
            ) from error

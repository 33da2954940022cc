"""All that one of W&B's run files holds; the product reads only what the records table needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.tracking import reader


@dataclass
class RunFile:
    run_id: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None  # None: the file ends before the run does


def only_file(folder: Path) -> Path:
    """The one run file below a folder."""
    [path] = reader.run_files(folder)
    return path


def read(path: Path) -> RunFile:
    from wandb.proto import wandb_internal_pb2 as pb

    known = reader.read_file(path)
    out = RunFile(config=known.config, summary=known.summary)
    for raw in reader.records(path):
        record = pb.Record.FromString(raw)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                out.run_id, out.group, out.job_type = run.run_id, run.run_group, run.job_type
                out.tags = tuple(run.tags)
            case "history":
                row: dict[str, Any] = {}
                reader.update(row, record.history.item)
                out.history.append(row)
            case "exit":
                out.exit_code = record.exit.exit_code
    return out

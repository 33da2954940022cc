"""W&B's run files (.wandb), read without a server.

7-byte header ":W&B", u16 magic, u8 version; then 32 KiB blocks of chunks: crc32 (little-endian), u16
length, u8 type (1 whole, 2 first, 3 middle, 4 last). Each record is a protobuf of wandb's own.

Source: the format as wandb 0.31 writes it (the leveldb log of its transaction log), and its tests
against `wandb leet inspect`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32_768
HEADER, CHUNK = 7, 7  # bytes


@dataclass(kw_only=True, slots=True)
class RunFile:
    """What one file, or several of one run, say."""

    run_id: str
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    started: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None  # None: the file ends before the run does


def run_files(folder: Path) -> list[Path]:
    """Every run file under a folder, at any depth; W&B's link to its latest run is not followed."""
    found = {p.resolve() for p in folder.rglob("*.wandb") if p.is_file()}
    return sorted(found)


def read_all(paths: list[Path]) -> list[RunFile]:
    """The runs in some files.

    Raises:
        ValueError: for a file that is none of W&B's.
    """
    return joined(map(read_file, paths))


def joined(parts: Iterable[RunFile]) -> list[RunFile]:
    """One entry a run, its files joined in order of their start: the later one's word counts."""
    runs: dict[str, RunFile] = {}
    for part in sorted(parts, key=lambda r: r.started):
        if not part.run_id:
            continue  # killed before the first record reached the disk
        known = runs.setdefault(part.run_id, part)
        if known is part:
            continue
        runs[part.run_id] = RunFile(
            run_id=part.run_id,
            group=part.group,
            job_type=part.job_type,
            tags=part.tags,
            started=known.started,
            config=known.config | part.config,
            summary=known.summary | part.summary,
            history=_all_steps(known.history, part.history),
            exit_code=part.exit_code,
        )
    return list(runs.values())


def read_file(path: Path) -> RunFile:
    """One run file; what follows a record that a kill cut short is left out."""
    from wandb.proto import wandb_internal_pb2 as pb

    out = RunFile(run_id="")
    for raw in records(path):
        record = pb.Record.FromString(raw)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                out.run_id, out.group, out.job_type = run.run_id, run.run_group, run.job_type
                out.tags = tuple(run.tags)
                out.started = run.start_time.seconds + run.start_time.nanos / 1e9
                _update(out.config, run.config.update)
            case "config":
                _update(out.config, record.config.update)
            case "history":
                row: dict[str, Any] = {}
                _update(row, record.history.item)
                out.history.append(row)
            case "summary":
                _update(out.summary, record.summary.update)
            case "exit":
                out.exit_code = record.exit.exit_code
    return out


def records(path: Path) -> Iterator[bytes]:
    """The records of a file; stops at a tail that a kill cut short.

    Raises:
        ValueError: if the header is not W&B's.
    """
    data = path.read_bytes()
    if data and data[:4] != b":W&B":
        raise ValueError(f"{path} does not start like a W&B run file")
    at, parts = HEADER, b""
    while at + CHUNK <= len(data):
        left = BLOCK - at % BLOCK
        if left < CHUNK:
            at += left
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + CHUNK])
        if length == 0 and kind == 0:
            at += left
            continue
        chunk = data[at + CHUNK : at + CHUNK + length]
        if len(chunk) < length or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != crc:
            return
        at += CHUNK + length
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            yield parts


def _update(into: dict[str, Any], items: Any) -> None:
    """Set values under their keys; a nested key names the way down."""
    for item in items:
        *way, last = [item.key] if item.key else list(item.nested_key)
        place = into
        for name in way:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)


def _all_steps(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    steps = {row.get("_step"): row for row in (*first, *second)}
    return [steps[s] for s in sorted(steps, key=lambda s: (s is None, s))]

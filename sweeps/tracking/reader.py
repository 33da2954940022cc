"""W&B as a source of records: a project on the server, or the folders of its runs.

Both give the table that the store gives, since a trial's run carries what the table needs: config
"record" is known at its start, summary "record" at its end. W&B and pandas load when a source of
these kinds is read: the command line imports this module at its start.

A run file (.wandb) is read without a server: a 7-byte header ":W&B", u16 magic, u8 version; then
32 KiB blocks of chunks: crc32 (little-endian), u16 length, u8 type (1 whole, 2 first, 3 middle,
4 last). Each record is a protobuf of wandb's own.

Source: the format as wandb 0.31 writes it (the leveldb log of its transaction log), and its tests
against `wandb leet inspect`.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.fitting.result import Dropped
from analysis.table import load

SERVER, FILES = "wandb", "wandb-files"
_FORM = "wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/GROUP"
BLOCK = 32_768
HEADER, CHUNK = 7, 7  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What matters of a run, from wherever it was read."""

    run_id: str = ""
    job_type: str = ""
    state: str = "running"
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0  # of a run file


def register() -> None:
    """Let `analysis.table.load` read these kinds."""
    load.register(
        SERVER,
        load.Reader(claims=lambda text: text.startswith(f"{SERVER}:"), read=read_server),
    )
    load.register(FILES, load.Reader(claims=_holds_run_folders, read=read_files))


def read_files(text: str) -> load.Found:
    """The runs under a folder, as W&B writes them offline and online.

    Raises:
        InputError: no such folder, no run in it, or a file that is none of W&B's.
    """
    folder = Path(text.removeprefix(f"{FILES}:"))
    paths = run_files(folder) if folder.is_dir() else []
    if not paths:
        raise InputError(
            f"{text}: no .wandb file in that folder; `parcae run` leaves them in the wandb folder "
            "of every trial, unless W&B is disabled."
        )
    try:
        runs = joined(map(read_file, paths))
    except ValueError as error:
        raise InputError(f"{text}: {error}; leave it out.") from error
    return found(runs, text)


def read_server(text: str) -> load.Found:
    """The runs of a project, or of one group in it, through W&B's public API.

    Raises:
        InputError: a malformed name, no key, no answer, or no such project.
    """
    parts = text.removeprefix(f"{SERVER}:").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(f"{text}: {_FORM} is needed; a sweep's group is its name.")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    try:
        api = wandb.Api()  # a request may take WANDB_HTTP_TIMEOUT seconds
        runs = api.runs(
            "/".join(parts[:2]),
            filters={"group": parts[2]} if len(parts) == 3 else None,
            lazy=False,  # one request a page in place of one a run
        )
        read = [
            Run(
                run_id=run.id,
                job_type=run.job_type or "",
                state=run.state,
                config=run.config,
                summary=run.summary_metrics,
            )
            for run in runs
        ]
        return found(read, text)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{text}: {_explained(error, parts)}") from error


def found(runs: Iterable[Run], where: str) -> load.Found:
    """The records of runs, and what was left out with reasons; of runs none of which is ours, their own columns.

    Raises:
        InputError: if no run holds any.
    """
    import pandas as pd

    runs = list(runs)
    rows: list[dict[str, Any]] = []
    lost: dict[str, int] = {}
    seen: set[str] = set()
    planned: set[str] = set()
    for run in runs:
        if run.job_type == "sweep":
            trials = run.config.get("trials")
            planned |= (
                {t for t in trials if isinstance(t, str)} if isinstance(trials, list) else set()
            )
            continue
        reason = _reason_to_drop(run, seen)
        if reason is not None:
            lost[reason] = lost.get(reason, 0) + 1
            continue
        seen.add(run.config["record"]["trial_id"])
        outcome = dict(run.summary["record"])
        evaluation = outcome.pop("evaluation", None) or []
        rows += [run.config["record"] | outcome | row for row in evaluation]
    others = [run for run in runs if run.summary and "record" not in run.config]
    if not rows and others and len(others) == len(runs):  # a project of other people's
        own = [
            {"run": r.run_id, "State": r.state} | _flat(r.config) | _flat(r.summary) for r in others
        ]
        return load.Found(frame=pd.DataFrame(own), where=where, own=True)
    if not rows:
        why = "; ".join(f"{n} runs: {reason}" for reason, n in lost.items()) or "it holds no run"
        raise InputError(f"{where}: no run there holds records ({why}).")
    absent = len(planned - seen)
    notes = [f"{absent} trials that the sweep planned are not among the runs"] if absent else []
    return load.Found(
        frame=pd.DataFrame(rows),
        where=where,
        dropped=tuple(Dropped(reason=r, n_rows=n) for r, n in lost.items()),
        notes=tuple(notes),
    )


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Numbers and words of a config or a summary, nested names joined by /; W&B's own are left out."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("_"):
            continue
        if isinstance(value, dict):
            out |= _flat(value, f"{above}{key}/")
        elif isinstance(value, (int, float, str)):
            out[f"{above}{key}"] = value
    return out


def _reason_to_drop(run: Run, seen: set[str]) -> str | None:
    record = run.config.get("record")
    if not isinstance(record, dict) or not isinstance(record.get("trial_id"), str):
        return "a W&B run that this toolkit did not write"
    if not isinstance(run.summary.get("record"), dict):
        return f"a W&B run without a result: its trial has not ended ({run.state})"
    rows = run.summary["record"].get("evaluation") or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return "a W&B run whose evaluation is damaged"
    if record["trial_id"] in seen:
        return "a W&B run of a trial that another run has too"
    return None


def _explained(error: Exception, parts: list[str]) -> str:
    import wandb

    said = " ".join(str(error).split())
    address = wandb.setup().settings.base_url
    if isinstance(error, wandb.errors.UsageError):
        return f"no API key for {address}: run `wandb login` or set WANDB_API_KEY ({said})."
    if "Could not find project" in said or "not found" in said.lower():
        return f"{address} has no project {parts[1]!r} of {parts[0]!r} that your key may read."
    return (
        f"{address} did not answer as W&B does ({said[:300]}). Check the network, WANDB_BASE_URL and "
        "the key, or read the run folders instead: parcae fit wandb-files:runs/NAME."
    )


def _holds_run_folders(text: str) -> bool:
    """A folder of W&B runs: one of them, a `wandb` folder, or trials' folders without their sweep."""
    if text.startswith(f"{FILES}:"):
        return True
    folder = Path(text)
    if not folder.is_dir() or (folder / "sweep.json").exists():
        return False  # a sweep's own records are the truth; wandb-files: asks for the mirror
    if (folder / "records.parquet").exists() or any(folder.glob("*/sweep.json")):
        return False
    patterns = ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb", "*/wandb/*run-*/*.wandb")
    return any(next(folder.glob(p), None) is not None for p in patterns)


# ---- run files -----------------------------------------------------------------------------------


def run_files(folder: Path) -> list[Path]:
    """Every run file under a folder, at any depth; W&B's link to its latest run is not followed."""
    return sorted({p.resolve() for p in folder.rglob("*.wandb") if p.is_file()})


def joined(parts: Iterable[Run]) -> list[Run]:
    """One entry a run, its files joined in order of their start: the later one's word counts."""
    runs: dict[str, Run] = {}
    for part in sorted(parts, key=lambda r: r.started):
        if part.run_id:  # else killed before the first record reached the disk
            known = runs.get(part.run_id, part)
            config, summary = known.config | part.config, known.summary | part.summary
            runs[part.run_id] = replace(part, config=config, summary=summary)
    return list(runs.values())


def read_file(path: Path) -> Run:
    """One run file; what follows a record that a kill cut short is left out.

    Raises:
        ValueError: if the file is none of W&B's.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as pb

    out = Run()
    for raw in records(path):
        try:
            record = pb.Record.FromString(raw)
        except DecodeError as error:
            raise ValueError(f"{path} holds what is no record of W&B's ({error})") from None
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                started = run.start_time.seconds + run.start_time.nanos / 1e9
                out = replace(out, run_id=run.run_id, job_type=run.job_type, started=started)
                update(out.config, run.config.update)
            case "config":
                update(out.config, record.config.update)
            case "summary":
                update(out.summary, record.summary.update)
            case "exit":
                out = replace(out, state="ended")
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


def update(into: dict[str, Any], items: Any) -> None:
    """Set values under their keys; a nested key names the way down.

    Raises:
        ValueError: for a value that is no JSON, or a way through one that has no keys.
    """
    for item in items:
        *way, last = [item.key] if item.key else list(item.nested_key) or [""]
        place = into
        for name in way:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(
                    f"W&B's key {'.'.join(item.nested_key)[:80]!r} leads through a value"
                )
        try:
            place[last] = json.loads(item.value_json)
        except RecursionError:
            raise ValueError(f"the value of W&B's key {last[:80]!r} is nested too deep") from None

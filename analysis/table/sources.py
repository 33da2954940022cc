"""Which rows a source names: a file, a pipe, several files, a folder, a URL.

-                     the table on standard input
"runs/*.csv"          every file that matches, one table
folder                records.parquet, a Trainer's states, TensorBoard's events, or all its tables
s3://bucket/x.csv     through fsspec
"""

from __future__ import annotations

import atexit
import glob
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from analysis.errors import InputError
from analysis.table import exports, files
from analysis.table.files import Raw

FOLDER_HOLDS = "records.parquet"


def read(source: str | Path) -> Raw:
    """The rows that a source names, unchecked; `where` of the answer is its name in messages."""
    text = str(source)
    if text == "-":
        return _piped()
    if "://" in text:
        return files.read(_download(text))
    path = Path(text)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return files.read(path)
    if glob.has_magic(text):
        found = sorted(map(Path, glob.glob(text, recursive=True)))
        if not found:
            raise InputError(f"{text}: no file matches; give a folder, or a {files.KINDS} file.")
        return together([read(p) for p in found], text)
    raise InputError(
        f"{text}: no such file or folder; give a sweep folder, or a {files.KINDS} file."
    )


def _piped() -> Raw:
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise InputError("-: nothing came on standard input; pipe a table into it, or name a file.")
    return files.parsed(data, *files.sniffed(data), "standard input")


def _folder(folder: Path) -> Raw:
    """What a folder holds, by what is most telling."""
    records = folder / FOLDER_HOLDS
    if records.is_file():
        _refuse_stale(records)
        return files.read(records)
    if (folder / "sweep.json").is_file():  # its plan is no table of runs
        raise InputError(
            f"{folder}: the sweep's folder holds no {FOLDER_HOLDS}; a finished `parcae run` writes it there, "
            f"and so does: parcae collect {folder}"
        )
    if states := exports.trainer_states(folder):
        parts = [_of_run(files.read(p), exports.run_of(p)) for p in states]
        return together(parts, str(folder), "a row per run and step")
    if next(folder.rglob(exports.EVENTS), None):
        notes = ("a row per run and step",)
        return Raw(exports.tensorboard(folder), notes=notes, where=str(folder))
    tables = sorted(p for p in folder.iterdir() if p.is_file() and files.suffix(p)[0])
    if tables:
        return together([files.read(p) for p in tables], str(folder))
    raise InputError(
        f"{folder}: the folder holds no {FOLDER_HOLDS} and no table; a finished `parcae run` or "
        "`parcae collect` writes it there. Give a sweep folder, or one of tables."
    )


def _of_run(raw: Raw, run: str) -> Raw:
    return Raw(raw.frame if "run" in raw.frame else raw.frame.assign(run=run), where=raw.where)


def _refuse_stale(records: Path) -> None:
    """A sweep's table that results came after: the command collects them itself, this door cannot."""
    written = records.stat().st_mtime
    later = [p for p in records.parent.glob("*/result.json") if p.stat().st_mtime > written]
    if later:
        raise InputError(
            f"{records}: {len(later)} results came after it was written; collect them first: "
            f"parcae collect {records.parent}"
        )


def together(parts: Sequence[Raw], where: str, words: str = "") -> Raw:
    """One table of several with the same columns; a column `file` says where each row came from."""
    import pandas as pd

    first = parts[0]
    if len(parts) == 1:
        return first
    if not words:  # logs of runs have what each logged
        for other in parts[1:]:
            _refuse_others(first, other, where)
    frames, names = [p.frame for p in parts], [Path(p.where).name for p in parts]
    if not {"run", "sweep", "file"} & set(first.frame):
        frames = [f.assign(file=name) for f, name in zip(frames, names, strict=True)]
    more = ", ..." if len(parts) > 6 else ""
    words = words or f"{len(parts)} tables as one: {', '.join(names[:6])}{more}"
    notes = tuple(dict.fromkeys([*(n for p in parts for n in p.notes), words]))
    return Raw(pd.concat(frames, ignore_index=True), first.decimal_comma, notes, where)


def _refuse_others(first: Raw, other: Raw, where: str) -> None:
    lacks = [c for c in first.frame if c not in other.frame]
    more = [c for c in other.frame if c not in first.frame]
    if lacks or more:
        which = f"lacks {lacks[0]!r}" if lacks else f"has {more[0]!r} more"
        raise InputError(
            f"{where}: the tables do not have the same columns: {other.where} {which} than {first.where}. "
            "Give one of them, or a pattern in quotes that matches those that belong together."
        )
    if first.decimal_comma != other.decimal_comma:
        raise InputError(
            f"{where}: {first.where} and {other.where} are separated differently, so a comma may mean two "
            "things; save them alike."
        )


def _download(url: str) -> Path:
    """A copy of a records file behind a URL, removed when the process ends."""
    import fsspec

    name = url.rpartition("/")[2]
    target = url if files.suffix(Path(name))[0] else f"{url.rstrip('/')}/{FOLDER_HOLDS}"
    folder = Path(tempfile.mkdtemp(prefix="parcae-records-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / target.rpartition("/")[2]
    try:
        with fsspec.open(target, "rb") as file:
            path.write_bytes(file.read())
    except (OSError, ImportError, ValueError) as error:
        raise InputError(
            f"{target}: cannot be read ({error}); give the URL of a sweep's folder that "
            "`parcae collect` has been run on, or of a .parquet or .csv file."
        ) from error
    return path

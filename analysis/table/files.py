"""A file as it stands: which container, encoding and separator, and which shape its rows have.

Every cell of a text file stays text here; `analysis.table.numbers` reads the numbers, once it is known
which columns are quantities. Nothing is guessed that the file does not show.
"""

from __future__ import annotations

import atexit
import csv
import io
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

FOLDER_HOLDS = "records.parquet"
_TEXT = (".csv", ".tsv", ".tab", ".txt")
_JSON = (".jsonl", ".ndjson", ".json")
_PACKED = (".gz", ".bz2", ".xz")
KINDS = ".parquet, .csv, .tsv, .txt, .jsonl or .json, the text files also as .gz, .bz2 or .xz"
_SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 50  # lines that the separator is read from


@dataclass(frozen=True, slots=True)
class Raw:
    """The rows of a file under its own column names."""

    frame: pd.DataFrame
    decimal_comma: bool = False  # the file separates its cells by ";", as where a comma is decimal
    notes: tuple[str, ...] = ()


def find(source: str | Path) -> Path:
    """The file that a source names: itself, or records.parquet in a sweep folder or URL.

    Raises:
        InputError: nothing is there, or a folder without records.
    """
    if "://" in str(source):
        return _download(str(source))
    path = Path(source)
    if path.is_dir():
        inside = path / FOLDER_HOLDS
        if inside.is_file():
            return inside
        tables = sorted(p for p in path.iterdir() if p.is_file() and _suffix(p)[0])
        held = ", ".join(shlex.quote(str(p)) for p in tables[:5])
        raise InputError(
            f"{path}: the folder holds no {FOLDER_HOLDS}; a finished `parcae run` or `parcae collect` "
            f"writes it there. Give {f'one of its files: {held}' if held else 'a sweep folder or a file'}."
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; give a sweep folder, or a {KINDS} file.")
    return path


def read(path: Path) -> Raw:
    """The rows of a file, unchecked.

    Raises:
        InputError: a container that is not known, or content that does not parse.
    """
    suffix, packing = _suffix(path)
    try:
        if suffix == ".parquet":
            import pandas as pd

            return Raw(pd.read_parquet(path))
        if suffix in _TEXT:
            return _reshaped(_separated(_text(path, packing), path))
        if suffix in _JSON:
            return Raw(_json(_text(path, packing), path))
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail in any step of pyarrow, pandas or zlib
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as {suffix[1:]} ({said}); write it again."
        ) from error
    raise InputError(
        f"{path}: the suffix is {path.suffix!r}; {KINDS} is needed. Save the table as .csv."
    )


def _suffix(path: Path) -> tuple[str, str]:
    """(kind, packing), both lower case and empty when unknown."""
    endings = [s.lower() for s in path.suffixes]
    packing = endings.pop() if endings and endings[-1] in _PACKED else ""
    kind = endings[-1] if endings else ""
    if kind == ".parquet" and not packing:
        return kind, ""
    return (kind, packing) if kind in _TEXT + _JSON else ("", packing)


def _text(path: Path, packing: str) -> str:
    """The decoded text: by its byte-order mark, as UTF-8, as UTF-16 without a mark, else Windows'."""
    import bz2
    import gzip
    import lzma

    openers: dict[str, Callable[..., Any]] = {
        "": open,
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
    }
    try:
        with openers[packing](path, "rb") as file:
            data = file.read()
    except lzma.LZMAError as error:
        raise ValueError(error) from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if data[1:40:2].count(0) > 8:  # Latin letters in UTF-16 have a zero in every second byte
        return data.decode("utf-16-le")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _separated(text: str, path: Path) -> Raw:
    import pandas as pd

    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: the file is empty; a header and rows are needed.")
    sample = [line for line in lines[first : first + _SAMPLE] if line.strip()]
    separator = _separator(sample)
    rows = list(csv.reader(sample, delimiter=separator, skipinitialspace=True))
    header, body = [name.strip(" \t\u00a0") for name in rows[0]], rows[1:]
    for i, row in enumerate(body):
        if len(row) > len(header) and any(row[len(header) :]):
            raise InputError(
                f"{path}: line {first + i + 2} has {len(row)} cells and the header {len(header)}; every "
                "line needs as many. A cell that holds a comma needs quotes."
            )
    names = _unique(header)
    frame = pd.read_csv(
        io.StringIO(text),
        sep=separator,
        header=None,
        names=range(max(len(header), *(len(r) for r in rows))),
        skiprows=first + 1,
        dtype=str,
        index_col=False,
        skipinitialspace=True,
        skip_blank_lines=True,
    )
    frame = frame.iloc[:, : len(names)].set_axis(names, axis=1)
    return Raw(_without_twins(frame), decimal_comma=separator == ";")


def _separator(sample: list[str]) -> str:
    """The one that cuts every line into as many cells, and into most; a comma when none does."""

    def score(separator: str) -> tuple[bool, int]:
        counts = [len(row) for row in csv.reader(sample, delimiter=separator)]
        return len(set(counts)) == 1 and counts[0] > 1, counts[0]

    best = max(_SEPARATORS, key=score)
    return best if score(best)[1] > 1 else ","


def _unique(header: list[str]) -> list[str]:
    """Names told apart: a repeated one gets its number, `loss#2`; an empty one its place."""
    named = [name or f"unnamed {i + 1}" for i, name in enumerate(header)]
    seen: dict[str, int] = {}
    out = []
    for name in named:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if named.count(name) == 1 else f"{name}#{seen[name]}")
    return out


def _without_twins(frame: pd.DataFrame) -> pd.DataFrame:
    """Repeated columns with the same cells are one column."""
    for name in [c for c in frame.columns if c.endswith("#1")]:
        plain = name[:-2]
        twins = [c for c in frame.columns if c.rpartition("#")[0] == plain]
        if all(frame[c].equals(frame[name]) for c in twins):
            frame = frame.drop(columns=twins[1:]).rename(columns={name: plain})
    return frame


def _json(text: str, path: Path) -> pd.DataFrame:
    """Records as a list, one a line, columns by name, or a Trainer's log."""
    import pandas as pd

    if not text.strip():
        raise InputError(f"{path}: the file is empty; rows are needed.")
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(data, dict) and isinstance(data.get("log_history"), list):
        data = data["log_history"]
    if isinstance(data, dict) and data and all(isinstance(v, (list, dict)) for v in data.values()):
        return pd.DataFrame(data)
    rows = [data] if isinstance(data, dict) else data
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise InputError(
            f"{path}: holds no rows; a list of objects is needed, or one object a line, like "
            '{"N": 1e8, "D": 1e9, "loss": 3.1}.'
        )
    return pd.json_normalize(rows, sep="/")


def _reshaped(raw: Raw) -> Raw:
    """Two exports that hold no row per run are turned: TensorBoard's long one, W&B's wide one."""
    import pandas as pd

    frame = raw.frame
    lower = {c.lower(): c for c in frame.columns}
    if {"tag", "step", "value"} <= set(lower):
        tag, value = lower["tag"], lower["value"]
        index = [lower[c] for c in ("run", "step") if c in lower]
        wide = frame.pivot_table(index=index, columns=tag, values=value, aggfunc="last", sort=False)
        wide = wide.rename_axis(columns=None).reset_index()
        note = f"a column per {tag!r}, a row per {' and '.join(index)}"
        return Raw(wide, raw.decimal_comma, (note,))
    charted = [c for c in frame.columns if {f"{c}__MIN", f"{c}__MAX"} <= set(frame.columns)]
    if not charted:
        return raw
    spread = {f"{c}{end}" for c in charted for end in ("__MIN", "__MAX")}
    index = [c for c in frame.columns if c not in spread and c not in charted]
    parts = []
    for column in charted:
        run, _, metric = column.rpartition(" - ")
        part = frame[[*index, column]].rename(columns={column: metric}).dropna(subset=[metric])
        parts.append(part.assign(run=run))
    by = ["run", *index]
    long = pd.concat(parts).groupby(by, sort=False, dropna=False).first().reset_index()
    return Raw(long, raw.decimal_comma, (f"a row per run and {' and '.join(index)}",))


def _download(url: str) -> Path:
    """A copy of a records file behind a URL, removed when the process ends."""
    import fsspec

    name = url.rpartition("/")[2]
    target = url if _suffix(Path(name))[0] else f"{url.rstrip('/')}/{FOLDER_HOLDS}"
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

"""A file as it stands: which container, encoding and separator, and which shape its rows have.

Every cell of a text file stays text here; `analysis.table.numbers` reads the numbers, once it is known
which columns are quantities. Nothing is guessed that the file does not show.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.table import exports

if TYPE_CHECKING:
    import pandas as pd

_TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat")
_JSON = (".jsonl", ".ndjson", ".json")
_BINARY = (".parquet", ".xlsx")
_PACKED = (".gz", ".bz2", ".xz")
KINDS = (
    ".parquet, .csv, .tsv, .txt, .jsonl, .json or .xlsx, the text files also as .gz, .bz2 or .xz"
)
_SEPARATORS = (",", ";", "\t", "|")
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)
_SAMPLE = 50  # lines that the separator is read from


@dataclass(frozen=True, slots=True)
class Raw:
    """The rows of a file under its own column names."""

    frame: pd.DataFrame
    decimal_comma: bool = False  # the file separates its cells by ";", as where a comma is decimal
    notes: tuple[str, ...] = ()
    where: str = ""  # the source as messages name it


def read(path: Path) -> Raw:
    """The rows of a file, unchecked."""
    kind, packing = suffix(path)
    if not kind:
        raise InputError(
            f"{path}: the suffix is {path.suffix!r}; {KINDS} is needed. Save the table as .csv."
        )
    return parsed(path.read_bytes(), kind, packing, str(path))


def parsed(data: bytes, kind: str, packing: str, where: str) -> Raw:
    """The rows in the bytes of a file; `where` names it in messages."""
    import pandas as pd

    try:
        data = _unpacked(data, packing)
        if kind == ".parquet":
            frame = pd.read_parquet(io.BytesIO(data))
            frame.select_dtypes(exclude="number").to_numpy()  # here text that is no UTF-8 shows
            return of_frame(frame, where)
        if kind == ".xlsx":
            return of_frame(_sheet(data, where), where)
        text = _decoded(data)
        if kind in _JSON:
            return of_frame(_json(text, where), where)
        return of_frame(*_separated(text, where))
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail in any step of pyarrow, pandas or zlib
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{where}: cannot be read as {kind[1:]} ({said}); write it again."
        ) from error


def of_frame(frame: pd.DataFrame, where: str, decimal_comma: bool = False) -> Raw:
    """The rows of a DataFrame: names of its index are columns, names are texts, told apart; exports are turned."""
    named = [n for n in frame.index.names if n is not None and n not in frame.columns]
    frame = frame.reset_index(named).reset_index(drop=True)
    frame = frame.set_axis(_unique([_name(c) for c in frame.columns]), axis=1)
    frame, note = exports.reshaped(_without_twins(frame))
    return Raw(frame, decimal_comma, (note,) if note else (), where)


def _name(column) -> str:
    """A column's name; of one in levels, those that are not empty: loss/mean."""
    levels = column if isinstance(column, tuple) else (column,)
    return "/".join(text for level in levels if (text := str(level).strip()))


def suffix(path: Path) -> tuple[str, str]:
    """(kind, packing), both lower case and empty when unknown."""
    endings = [s.lower() for s in path.suffixes]
    packing = endings.pop() if endings and endings[-1] in _PACKED else ""
    kind = endings[-1] if endings else ""
    if kind in _BINARY and not packing:
        return kind, ""
    return (kind, packing) if kind in _TEXT + _JSON else ("", packing)


def sniffed(data: bytes) -> tuple[str, str]:
    """(kind, packing) of bytes without a name, as a pipe gives them."""
    packing = next((p for mark, p in _MAGIC.items() if data.startswith(mark)), "")
    start = _unpacked(data, packing)[:4096] if packing else data[:4096]
    if start.startswith(b"PAR1"):
        return ".parquet", packing
    if start.startswith(b"PK"):
        return ".xlsx", packing
    is_json = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
    return ".json" if is_json else ".csv", packing


_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}


def _unpacked(data: bytes, packing: str) -> bytes:
    if not packing:
        return data
    try:
        return {".gz": gzip, ".bz2": bz2, ".xz": lzma}[packing].decompress(data)
    except lzma.LZMAError as error:
        raise ValueError(error) from error


def _decoded(data: bytes) -> str:
    """The text: by its byte-order mark, as UTF-8, as UTF-16 without a mark, else Windows'."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if data[1:40:2].count(0) > 8:  # Latin letters in UTF-16 have a zero in every second byte
        return data.decode("utf-16-le")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _sheet(data: bytes, where: str) -> pd.DataFrame:
    """The first sheet of a workbook, its cells as they are."""
    import pandas as pd

    try:
        import openpyxl  # noqa: F401 - pandas reads through it
    except ImportError as error:
        raise InputError(
            f"{where}: a workbook is read by openpyxl, which is not installed: pip install 'parcae-scaling[xlsx]', or "
            "save the sheet as .csv."
        ) from error
    frame = pd.read_excel(io.BytesIO(data), dtype=object, engine="openpyxl")
    if frame.empty and not len(frame.columns):
        raise InputError(f"{where}: the first sheet is empty; a header and rows are needed.")
    return frame.dropna(how="all")


def _separated(text: str, path: str) -> tuple[pd.DataFrame, str, bool]:
    """Rows, the file, and whether ";" separates their cells, as where a comma is decimal."""
    import pandas as pd

    lines = text.splitlines()
    if not text.strip():
        raise InputError(f"{path}: the file is empty; a header and rows are needed.")
    first = _header(lines)
    if len(lines) > first + 1 and _is_header_of_numbers(lines[first], lines[first + 1]):
        lines[first] = lines[first].lstrip("# ")
    if _is_ruled(lines[first:]):
        lines = [line.strip().strip("|") for line in lines if not _RULE.fullmatch(line)]
        text = "\n".join(lines)
    sample = [line for line in lines[first : first + _SAMPLE] if line.strip()]
    separator = _separator(sample)
    if separator == " ":  # one or more
        text = "\n".join(" ".join(line.split()) for line in lines)
        sample = [" ".join(line.split()) for line in sample]
    rows = list(csv.reader(sample, delimiter=separator, skipinitialspace=True))
    header, body = [name.strip(" \t\u00a0") for name in rows[0]], rows[1:]
    for i, row in enumerate(body):
        if len(row) > len(header) and any(row[len(header) :]):
            raise InputError(
                f"{path}: line {first + i + 2} has {len(row)} cells and the header {len(header)}; every "
                "line needs as many. A cell that holds a comma needs quotes."
            )
    if all(map(_NUMBER.fullmatch, header)):
        raise InputError(
            f"{path}: the first line holds numbers ({', '.join(header[:4])}) and no names; a header is needed, "
            "like N,D,loss. Add one as the first line."
        )
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
    frame = frame.iloc[:, : len(header)].set_axis(header, axis=1)
    return frame.dropna(how="all"), path, separator == ";"


_RULE = re.compile(r"\s*\|?[\s:|-]*-[\s:|-]*")  # |---|:--:| of a table in Markdown


def _is_ruled(lines: list[str]) -> bool:
    return len(lines) > 1 and "|" in lines[0] and _RULE.fullmatch(lines[1]) is not None


def _header(lines: list[str]) -> int:
    """The line that names the columns: below a title, remarks, or the separator that Excel wants said."""
    filled = [i for i, line in enumerate(lines) if line.strip()]
    for here, after in pairwise(filled):
        cells = [[_n_cells(lines[i], s) for i in (here, after)] for s in _SEPARATORS]
        is_title = all(n == 1 for n, _ in cells) and any(n > 1 for _, n in cells)
        above_rows = any(n == m > 1 for n, m in cells) and bool(re.search(r"\d", lines[after]))
        above_rows = above_rows or _is_header_of_numbers(lines[here], lines[after])
        is_remark = lines[here].startswith("#") and not above_rows
        if not (is_title or is_remark or lines[here].lower().startswith("sep=")):
            return here
    return filled[-1]


def _n_cells(line: str, separator: str) -> int:
    return len(next(csv.reader([line], delimiter=separator)))


def _is_header_of_numbers(line: str, after: str) -> bool:
    """Whether `# N D loss` stands above as many numbers, as numpy's savetxt writes it."""
    row = after.split()
    return len(row) == len(line.lstrip("# ").split()) > 1 and all(map(_NUMBER.fullmatch, row))


def _separator(sample: list[str]) -> str:
    """The one that cuts every line into as many cells, and into most; a comma when none does."""

    def score(separator: str) -> tuple[bool, int]:
        counts = [len(row) for row in csv.reader(sample, delimiter=separator)]
        return len(set(counts)) == 1 and counts[0] > 1, counts[0]

    best = max(_SEPARATORS, key=score)
    if score(best)[1] > 1:
        return best
    counts = {len(line.split()) for line in sample}
    return " " if len(counts) == 1 and counts != {1} else ","


def _unique(header: list[str]) -> list[str]:
    """Names told apart: a repeated one gets its number, `loss#2`; an empty one its place."""
    named = [name or f"unnamed {i + 1}" for i, name in enumerate(header)]
    return [
        name if named.count(name) == 1 else f"{name}#{named[: i + 1].count(name)}"
        for i, name in enumerate(named)
    ]


def _without_twins(frame: pd.DataFrame) -> pd.DataFrame:
    """Repeated columns with the same cells are one column."""
    for name in [c for c in frame.columns if c.endswith("#1")]:
        plain = name[:-2]
        twins = [c for c in frame.columns if c.rpartition("#")[0] == plain]
        if all(frame[c].equals(frame[name]) for c in twins):
            frame = frame.drop(columns=twins[1:]).rename(columns={name: plain})
    return frame


def _json(text: str, path: str) -> pd.DataFrame:
    """Records as a list, one a line, columns by name, or a Trainer's log."""
    import pandas as pd

    if not text.strip():
        raise InputError(f"{path}: the file is empty; rows are needed.")
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(data, dict) and isinstance(data.get("log_history"), list):
        return exports.trainer_log(data)
    if isinstance(data, dict):
        data = _rows_of(data)
    if isinstance(data, dict) and data and all(isinstance(v, (list, dict)) for v in data.values()):
        return pd.DataFrame(data)
    rows = [data] if isinstance(data, dict) else data
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise InputError(
            f"{path}: holds no rows; a list of objects is needed, or one object a line, like "
            '{"N": 1e8, "D": 1e9, "loss": 3.1}.'
        )
    return pd.json_normalize(rows, sep="/")


def _rows_of(data: dict) -> dict | list:
    """The rows in an object that wraps them: pandas' "split", a list beside other keys, a run by its name."""
    if isinstance(data.get("columns"), list) and isinstance(data.get("data"), list):
        return [dict(zip(map(str, data["columns"]), row, strict=True)) for row in data["data"]]
    lists = [v for v in data.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) == 1:
        return lists[0]
    runs = data if all(isinstance(v, dict) for v in data.values()) else {}
    if runs and not any(str(key).isdigit() for run in runs.values() for key in run):
        return [{"run": name} | run for name, run in runs.items()]
    return data

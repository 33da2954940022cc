"""A user's corpus: text files, JSONL or Parquet shards, in a folder or behind an fsspec URL (s3://, hf://).

Documents come in a fixed order: text files by the sha256 of their path, shards by name and row
within. Hostile documents (empty, binary, not UTF-8) are left out and counted; a file that breaks
its own format, or lacks the text column, is an error, because then the corpus is not what its
owner thinks.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

from parcae_core.data.corpus import Source, Split, split_by_text
from parcae_core.errors import UserError

TEXT_SUFFIXES = frozenset([
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".py", ".c", ".h", ".cc", ".cpp", ".hpp",
    ".rs", ".go", ".java", ".js", ".ts", ".sh", ".sql",
])  # fmt: skip
TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# Above this a plan would spend its time reading; the text is then read once, by `prepare`.
READ_AT_ONCE_BYTES = 256 << 20
# Read whole, and four bytes a character in memory where one of them is rare
MAX_DOCUMENT_BYTES = 128 << 20
PARQUET_BATCH_ROWS = 1024
# What changes when a remote file is rewritten; each scheme has another (blob_id: the hub's)
_MARKS = ("ETag", "LastModified", "mtime", "blob_id")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        path: POSIX, below the corpus; the name for a corpus of one file.
        mark: changes when the file is rewritten (modification time, or an object store's ETag).
        location: what opens it.
    """

    path: str
    size: int
    mark: str
    location: str


class FileSource(Source):
    """Documents in files; Parquet and JSONL shards, if there are any, are the whole corpus.

    Text files beside shards (a data set's README) are not part of it.
    """

    def __init__(
        self, place: str, *, text_column: str, val_share: float, follow_links: bool = False
    ) -> None:
        self.place = place.rstrip("/") or "/"
        name = os.fsencode(PurePosixPath(self.place).name)  # on disk it may be any bytes
        super().__init__(name.decode("utf-8", "replace") or "corpus")
        self._text_column = text_column
        self._val_share = val_share
        self._files = (
            _RemoteFiles(self.place)
            if "://" in place
            else _LocalFiles(self.place, follow_links=follow_links)
        )
        self.entries = self._select()
        self.total_bytes = sum(e.size for e in self.entries)
        is_local = isinstance(self._files, _LocalFiles)
        self.is_quick = is_local and self.total_bytes <= READ_AT_ONCE_BYTES

    @property
    def work_key(self) -> str:
        rule = [self._text_column, self._val_share]
        files = [[e.path, e.size, e.mark] for e in self.entries]
        return hashlib.sha256(json.dumps([self.place, rule, files]).encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """See `Source`.

        Raises:
            UserError: for a remote corpus, or one too large to be read at every plan.
        """
        if not self.is_quick:
            raise UserError(
                f"corpus {self.place!r}: {len(self.entries)} files, {self.total_bytes / 1e6:,.0f} "
                f"MB; a plan reads the text of local corpora up to {READ_AT_ONCE_BYTES >> 20} MiB "
                "only. Prepare it once with `parcae data prepare` and name the folder it prints"
            )
        return super().fingerprint

    def check_unchanged(self) -> None:
        """Raise UserError if a file was added, removed or rewritten since the source was opened."""
        now = {(e.path, e.size, e.mark) for e in self._select()}
        then = {(e.path, e.size, e.mark) for e in self.entries}
        if changed := sorted(path for path, _, _ in now ^ then):
            raise UserError(
                f"corpus {self.place!r}: {changed[0]} changed while it was read; prepare it again "
                "when nothing writes to it"
            )

    def stream(self) -> Iterator[tuple[Split, str]]:
        self.skipped.clear()
        yield from split_by_text(self._clean(self._read_all()), self._val_share)

    def _select(self) -> list[Entry]:
        found = [e for e in self._files.listing() if "/." not in f"/{e.path}"]  # hidden
        tables = [e for e in found if e.path.endswith(TABLE_SUFFIXES)]
        texts = [e for e in found if PurePosixPath(e.path).suffix in TEXT_SUFFIXES]
        if not tables and not texts:
            raise UserError(
                f"corpus {self.place!r}: no file of text there. Looked for "
                f"{', '.join(TABLE_SUFFIXES)} and {', '.join(sorted(TEXT_SUFFIXES))}"
            )
        # os.fsencode gives back the bytes of a name that is not UTF-8
        texts.sort(key=lambda e: hashlib.sha256(os.fsencode(e.path)).digest())
        return sorted(tables, key=lambda e: e.path) or texts

    def _clean(self, texts: Iterable[str | None]) -> Iterator[str]:
        for text in texts:
            if not text or text.isspace():
                self.skipped["empty"] += 1
            elif "\0" in text:
                self.skipped["binary (NUL)"] += 1
            elif not _is_unicode(text):
                self.skipped["not UTF-8"] += 1
            else:
                yield text

    def _read_all(self) -> Iterator[str | None]:
        for entry in self.entries:
            try:
                with self._files.open(entry) as file:
                    yield from self._read(file, entry)
            except UserError:
                raise
            except Exception as error:  # each scheme's client has errors of its own
                raise UserError(
                    f"{entry.location}: reading it failed ({error}); see that it is still there, "
                    "and run the same command again"
                ) from error

    def _read(self, file: BinaryIO, entry: Entry) -> Iterator[str | None]:
        if entry.path.endswith(".parquet"):
            return self._parquet(file, entry.location)
        if entry.path.endswith((".jsonl", ".jsonl.gz")):
            return self._jsonl(file, entry.location)
        return self._text(file, entry)

    def _text(self, file: BinaryIO, entry: Entry) -> Iterator[str]:
        if entry.size > MAX_DOCUMENT_BYTES:
            raise UserError(
                f"{entry.location}: {entry.size} bytes in one text file, which is one document; "
                f"{MAX_DOCUMENT_BYTES} are the most. Split it into documents (files or JSONL lines)"
            )
        if (text := self._decode(file.read())) is not None:
            yield text

    def _decode(self, data: bytes) -> str | None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.skipped["not UTF-8"] += 1
            return None

    def _jsonl(self, file: BinaryIO, where: str) -> Iterator[str | None]:
        lines = gzip.GzipFile(fileobj=file) if where.endswith(".gz") else file
        for number, line in enumerate(_lines(lines, where), start=1):
            if not line.strip() or (decoded := self._decode(line)) is None:
                continue
            try:
                row = json.loads(decoded)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{where}: line {number} is not JSON ({error}); is the file cut off?"
                ) from error
            keys = list(row)[:20] if isinstance(row, dict) else type(row).__name__
            if not isinstance(row, dict) or self._text_column not in row:
                raise self._no_column(f"{where}: line {number}", keys)
            text = row[self._text_column]
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"{where}: line {number}: {self._text_column!r} is {text!r:.40}; text needed"
                )
            yield text

    def _parquet(self, file: BinaryIO, where: str) -> Iterator[str | None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = self._text_column
        try:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            if column not in names:
                raise self._no_column(where, names)
            kind = table.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{where}: column {column!r} holds {kind}; string needed")
            for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=[column]):
                # As bytes: pyarrow does not check that a string column is UTF-8.
                for raw in batch.column(0).cast(pa.large_binary()).to_pylist():
                    text = None if raw is None else self._decode(raw)
                    if raw is None or text is not None:
                        yield text
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{where}: cannot read it as Parquet ({error}); fetch it again"
            ) from error

    def _no_column(self, where: str, found: Any) -> UserError:
        return UserError(
            f"{where}: no field {self._text_column!r}; found {found}. Name the text's field with "
            "--text-column"
        )


class _LocalFiles:
    """Regular files in a folder; links that lead out of it are refused unless asked for."""

    def __init__(self, place: str, *, follow_links: bool) -> None:
        self._root, self._follow_links = Path(place), follow_links
        self._real_root = self._root.resolve()
        if self._real_root.is_relative_to("/proc") or self._real_root.is_relative_to("/sys"):
            raise UserError(
                f"corpus {place!r}: these are not files but the state of this machine, which changes "
                "while it is read; give a folder of text"
            )

    def listing(self) -> list[Entry]:
        if self._root.is_file():
            return [self._entry(self._root, self._root.name)]
        if not self._root.is_dir():
            raise UserError(f"corpus {str(self._root)!r}: neither a file nor a folder")
        return [
            self._entry(path, path.relative_to(self._root).as_posix())
            for path in self._walk()
            if path.is_file()
        ]

    def _walk(self) -> Iterator[Path]:
        """Every file that counts; a folder that links lead to twice is read once."""
        seen: set[Path] = set()
        for folder, below, names in os.walk(
            self._root, onerror=self._unreadable, followlinks=self._follow_links
        ):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in (*below, *names):
                path = Path(folder, name)
                if path.is_symlink() and _counts(path):
                    self._check_link(path)
            if self._follow_links:
                below[:] = [name for name in below if _is_new(Path(folder, name), seen)]
            yield from (path for name in names if _counts(path := Path(folder, name)))

    def _check_link(self, path: Path) -> None:
        target = path.resolve()
        if not self._follow_links and not target.is_relative_to(self._real_root):
            raise UserError(
                f"{path}: a link to {target}, outside of the corpus folder; remove it, or read what it "
                "leads to with `parcae data prepare --follow-links`"
            )

    def _entry(self, path: Path, name: str) -> Entry:
        try:
            stat = path.stat()
        except OSError as error:
            self._unreadable(error)
        return Entry(name, stat.st_size, str(stat.st_mtime_ns), str(path))

    def _unreadable(self, error: OSError) -> NoReturn:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); see to its permissions, or give a "
            "folder that holds nothing but the corpus"
        ) from error

    def open(self, entry: Entry) -> BinaryIO:
        return Path(entry.location).open("rb")


class _RemoteFiles:
    def __init__(self, url: str) -> None:
        # Needed for URLs only, and each scheme brings its own client.
        try:
            import fsspec

            # A cached client would answer with the credentials and listing of an earlier one.
            self._fs, self._root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"corpus {url!r}: cannot open this kind of URL ({error}); install the fsspec "
                "backend of its scheme, for s3:// `pip install 'parcae-scaling[s3]'`, for hf:// that "
                "of [hf]"
            ) from error
        self._url = url

    def listing(self) -> list[Entry]:
        try:
            self._fs.invalidate_cache()
            found = self._fs.find(self._root, detail=True)
        except Exception as error:  # each scheme's client has errors of its own
            raise UserError(
                f"corpus {self._url!r}: cannot list it ({error}); check the address and the "
                "credentials"
            ) from error
        if not found:
            raise UserError(f"corpus {self._url!r}: nothing is there; check the address")
        base = self._root.rstrip("/")
        return [
            Entry(
                path.removeprefix(base).lstrip("/") or PurePosixPath(path).name,
                info["size"],
                str(next((v for k in _MARKS if (v := info.get(k))), None)),
                path,
            )
            for path, info in found.items()
        ]

    def open(self, entry: Entry) -> BinaryIO:
        return self._fs.open(entry.location, "rb")


def _counts(path: Path) -> bool:
    """Whether a name is that of a document, or of a folder: others are not looked at."""
    if path.name.startswith("."):
        return False
    return path.name.endswith(TABLE_SUFFIXES) or path.suffix in TEXT_SUFFIXES or path.is_dir()


def _is_new(folder: Path, seen: set[Path]) -> bool:
    real = folder.resolve()
    is_new = real not in seen
    seen.add(real)
    return is_new


def _lines(file: BinaryIO, where: str) -> Iterator[bytes]:
    """Lines, none of them longer than a document may be."""
    # fsspec's own readline knows no limit
    lines = file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(file, 1 << 20)
    try:
        while line := lines.readline(MAX_DOCUMENT_BYTES + 1):
            if len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
                raise UserError(
                    f"{where}: a line has more than {MAX_DOCUMENT_BYTES} bytes, and a line is one "
                    "document. Split it into documents, one on each line"
                )
            yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{where}: damaged gzip ({error}); fetch it again") from error
    finally:
        if lines is not file and not file.closed:
            lines.detach()  # else its end would close the file, which is not its own


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON can smuggle in lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

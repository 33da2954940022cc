"""Where text comes from: a built-in corpus, a folder of files, or a folder `prepare` wrote.

Free of torch and quick, because every plan resolves its corpus. A source yields its documents in
one fixed order, each already in its split; its fingerprint is a function of that text alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from parcae_core.data.python_source import BUILTIN_ROOTS, python_documents
from parcae_core.errors import UserError

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

DEFAULT_VAL_SHARE = 1 / 12
# Below this many documents a share may select none by chance; above it the chance is under 1e-7
# at the default share, and holding the documents back costs nothing.
GUARANTEE_UP_TO = 200


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `id` names it within its corpus (a path, or a file and row)."""

    id: str
    text: str


class Fingerprint:
    """sha256 over the documents in corpus order, train and val interleaved as they come.

    Each document adds 33 bytes: `t` or `v` for its split, then the sha256 of its UTF-8 text. Names
    do not enter, so a moved or renamed corpus keeps its fingerprint as long as order, split and
    text are the same.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, split: Split, text: str) -> None:
        self.add_digest(split, hashlib.sha256(text.encode()).digest())

    def add_digest(self, split: Split, digest: bytes) -> None:
        self._sha.update(split[:1].encode() + digest)

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


class Source(ABC):
    """Documents in a fixed order with a fixed split.

    Attributes:
        name: a label for people; not part of any identity.
        is_quick: whether the whole text may be read just to know its fingerprint.
        total_bytes: size on disk of what `stream` reads, for progress; None if unknown.
        skipped: reason -> files or documents left out, counted by the latest full pass.
    """

    name: str
    is_quick: bool = True
    total_bytes: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter()

    @abstractmethod
    def stream(self) -> Iterator[tuple[Split, Document]]:
        """Every document with its split, in corpus order; the same at each call."""

    @property
    def work_key(self) -> str:
        """Identifies unfinished work on this source across processes; cheap to compute."""
        return self.fingerprint

    def check_unchanged(self) -> None:  # noqa: B027 - most sources cannot change
        """Raise UserError if the files were changed since the source was opened."""

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; see `Fingerprint`."""
        fingerprint = Fingerprint()
        for split, document in self.stream():
            fingerprint.add(split, document.text)
        return fingerprint.hexdigest()

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of one split, in corpus order."""
        return (document for s, document in self.stream() if s == split)


def resolve(
    corpus: str, *, text_column: str = "text", val_share: float = DEFAULT_VAL_SHARE
) -> Source:
    """The source behind the name or place a spec gives.

    Args:
        corpus: `python-stdlib`, `python-env`, a folder (or one file) of text, JSONL or Parquet, an
            fsspec URL of one (`s3://bucket/folder`), or a folder that `prepare` wrote.
        text_column: field holding the text in JSONL and Parquet files.
        val_share: share of a user's documents held out for validation, by hash of their text. The
            built-in corpora have their own rule.

    Raises:
        UserError: if nothing is there, or what is there holds no text files.
    """
    if not 0 < val_share < 1:
        raise UserError(f"val_share is {val_share}; it must lie strictly between 0 and 1")
    if corpus in BUILTIN_ROOTS:
        return PythonSource(corpus)
    if "://" not in corpus and (Path(corpus) / "manifest.json").is_file():
        return PreparedSource(Path(corpus))
    if "://" not in corpus and not Path(corpus).exists():
        raise UserError(_not_found(corpus))
    # Imported here: built-in corpora need none of the file formats.
    from parcae_core.data.file_source import FileSource

    return FileSource(corpus, text_column=text_column, val_share=val_share)


def _not_found(corpus: str) -> str:
    near = difflib.get_close_matches(corpus, BUILTIN_ROOTS, n=1)
    if near:
        return f"corpus {corpus!r}: no such built-in corpus or folder; did you mean {near[0]!r}?"
    return (
        f"corpus {corpus!r}: no such folder. Needed: one of {', '.join(BUILTIN_ROOTS)}, a folder "
        "with text, .jsonl or .parquet files, or a folder written by `parcae data prepare`; "
        f"relative paths start at {Path.cwd()}"
    )


def split_by_text(
    documents: Iterable[Document], val_share: float
) -> Iterator[tuple[Split, Document]]:
    """Assign splits by the hash of the text, so that two copies never straddle the split.

    A document is validation when the first 8 bytes of the sha256 of its text, as a big-endian
    fraction of 2^64, lie below `val_share`. If a corpus of at least two and fewer than
    `GUARANTEE_UP_TO` documents has none, the one with the lowest hash is validation.
    """
    held: list[tuple[int, Document]] = []
    threshold = int(val_share * 2**64)

    def label(key: int, document: Document) -> tuple[Split, Document]:
        return ("val" if key < threshold else "train", document)

    iterator = iter(documents)
    for document in iterator:
        held.append((hash64(document.text.encode()), document))
        if len(held) == GUARANTEE_UP_TO:
            break
    else:
        lowest = min((key for key, _ in held), default=0)
        if len({key for key, _ in held}) > 1:
            threshold = max(threshold, lowest + 1)
    for key, document in held:
        yield label(key, document)
    for document in iterator:
        yield label(hash64(document.text.encode()), document)


def hash64(data: bytes) -> int:
    """The first 8 bytes of the sha256, big-endian."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


class PythonSource(Source):
    """Python source that is already on the machine; see `python_source`."""

    @cached_property
    def _documents(self) -> list[tuple[str, str]]:
        # Kept: the de-duplication needs every text anyway, and 7 MB are cheap.
        self.skipped.clear()
        return python_documents(self.name, self.skipped)

    def stream(self) -> Iterator[tuple[Split, Document]]:
        for path, text in self._documents:
            is_val = hash64(f"val:{path}".encode()) * 12 < 2**64
            yield "val" if is_val else "train", Document(path, text)


class PreparedSource(Source):
    """A folder `prepare` wrote: its fingerprint is that of the text it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            source = json.loads((path / "manifest.json").read_text())["source"]
            super().__init__(source["name"])
            self._fingerprint: str = source["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path / 'manifest.json'}: not a manifest of prepared data ({error!r}). Prepare "
                "the corpus again with `parcae data prepare`"
            ) from error

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def stream(self) -> Iterator[tuple[Split, Document]]:
        raise UserError(
            f"{self.path}: prepared data holds token rows, not the documents of {self.name}. Name "
            "the original corpus to prepare it in another way"
        )

"""The source behind a name: built in, generated, a folder of files, or one `prepare` wrote."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from parcae_core.data.corpus import DEFAULT_VAL_SHARE, Source, Split, hash64
from parcae_core.data.file_source import FileSource
from parcae_core.data.manifest import read_manifest
from parcae_core.data.python_source import BUILTIN_ROOTS, python_documents
from parcae_core.data.state_reveals import NAME as STATE_REVEALS
from parcae_core.data.state_reveals import StateReveals
from parcae_core.errors import UserError

_BUILTIN = (*BUILTIN_ROOTS, STATE_REVEALS)


def resolve(
    corpus: str,
    *,
    text_column: str = "text",
    val_share: float = DEFAULT_VAL_SHARE,
    follow_links: bool = False,
) -> Source:
    """The source behind the name or place a spec gives.

    Args:
        corpus: `python-stdlib`, `python-env`, `state-reveals`, a folder (or one file) of text, JSONL or Parquet, an
            fsspec URL of one (`s3://bucket/folder`), or a folder that `prepare` wrote.
        text_column: field holding the text in JSONL and Parquet files.
        val_share: share of a user's documents held out for validation, by hash of their text. The
            built-in corpora have their own rule.
        follow_links: read what links in the folder lead to outside of it; refused otherwise.

    Raises:
        UserError: if nothing is there, or what is there holds no text files.
    """
    if not 0 < val_share < 1:
        raise UserError(f"val_share is {val_share}; it must lie strictly between 0 and 1")
    if not corpus:  # which would be the whole machine to a path
        raise UserError("the corpus has no name; give a folder of text or a built-in corpus")
    if corpus in BUILTIN_ROOTS:
        return PythonSource(corpus)
    corpus = os.path.expanduser(corpus)
    if corpus.partition("(")[0] == STATE_REVEALS:
        return GeneratedSource(StateReveals.named(corpus))
    if "://" not in corpus and _exists(f"{corpus}/manifest.json"):
        return PreparedSource(Path(corpus))
    if missing(corpus):
        raise UserError(_not_found(corpus))
    return FileSource(
        corpus, text_column=text_column, val_share=val_share, follow_links=follow_links
    )


def missing(corpus: str) -> bool:
    """Whether a corpus is a local folder that is not there.

    Raises:
        UserError: if it looks like a built-in corpus's name, misspelt.
    """
    if corpus in BUILTIN_ROOTS or corpus.partition("(")[0] == STATE_REVEALS or "://" in corpus:
        return False
    if _exists(corpus):
        return False
    if difflib.get_close_matches(corpus, _BUILTIN, n=1):
        raise UserError(_not_found(corpus))
    return True


def _exists(corpus: str) -> bool:
    try:
        return Path(os.path.expanduser(corpus)).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _not_found(corpus: str) -> str:
    near = difflib.get_close_matches(corpus, _BUILTIN, n=1)
    if near:
        return f"corpus {corpus!r}: no such built-in corpus or folder; did you mean {near[0]!r}?"
    return (
        f"corpus {corpus!r}: no such folder. Needed: one of {', '.join(_BUILTIN)}, a folder "
        "with text, .jsonl or .parquet files, or a folder written by `parcae data prepare`; "
        f"relative paths start at {Path.cwd()}"
    )


class PythonSource(Source):
    """Python source that is already on the machine; see `python_source`."""

    @cached_property
    def _documents(self) -> list[tuple[str, str]]:
        # Kept: the de-duplication needs every text anyway, and 7 MB are cheap.
        self.skipped.clear()
        return python_documents(self.name, self.skipped)

    def stream(self) -> Iterator[tuple[Split, str]]:
        for path, text in self._documents:
            is_val = hash64(f"val:{path}".encode()) * 12 < 2**64
            yield "val" if is_val else "train", text


class GeneratedSource(Source):
    """A corpus that is drawn while it is read; see `state_reveals`."""

    def __init__(self, generator: StateReveals) -> None:
        super().__init__(generator.label)
        self.generator = generator
        self.alphabet = generator.alphabet

    @property
    def fingerprint(self) -> str:
        return self.generator.fingerprint

    def stream(self) -> Iterator[tuple[Split, str]]:
        raise UserError(
            f"{self.name}: a generated corpus has rows without end and no documents; name it as "
            "corpus, with tokenizer: characters"
        )


class PreparedSource(Source):
    """A folder `prepare` wrote: its fingerprint is that of the text it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        super().__init__(self.manifest.source.name)
        self.alphabet = self.manifest.tokenizer.alphabet

    @property
    def fingerprint(self) -> str:
        return self.manifest.source.fingerprint

    def stream(self) -> Iterator[tuple[Split, str]]:
        raise UserError(
            f"{self.path}: prepared data holds token rows, not the documents of {self.name}. Name "
            "the original corpus to prepare it in another way"
        )

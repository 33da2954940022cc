"""Files behind a URL (s3://, gs://, ...) through fsspec: whole or absent, and asked for again.

Object stores show an object once it is complete, which is all the atomicity that is needed here.
They also answer 503 when they are busy, time out and come back; so every request is repeated with
growing pauses until its patience is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from parcae_core.errors import UserError

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 15.0
PATIENCE_S = 60.0
AT_ONCE = 8  # requests side by side
SMALL_BYTES = 8 << 20  # what is larger is sent from its file, in parts

# These do not pass by waiting
_FINAL = (FileNotFoundError, PermissionError, ImportError, ValueError)


class Unreachable(OSError):
    """The object store did not answer within the patience; another attempt may find it well."""


def is_url(text: str | Path) -> bool:
    """Whether a path is meant as a URL; `Path` folds its two slashes into one."""
    head, colon, rest = str(text).partition(":/")
    return bool(colon) and head.isalnum() and len(head) > 1 and bool(rest)


def insist(call: Callable[[], T], where: str, patience_s: float | None = None) -> T:
    """Call until it succeeds.

    Raises:
        Unreachable: if it still fails after `patience_s` (PATIENCE_S if None).
        FileNotFoundError, PermissionError: at once.
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    deadline, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return call()
        except _FINAL:
            raise
        except Exception as error:  # each backend has exceptions of its own
            if time.monotonic() + pause > deadline:
                text = f"{where}: no answer within {patience_s:.0f} s ({error})"
                raise Unreachable(text) from error
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


class Objects:
    """The objects below a URL, by their path from there."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            # Another process may have written since the last listing
            files, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.url}: cannot be opened ({error}).") from error
        return files, root.rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    def listing(self, below: str = "") -> dict[str, str]:
        """name -> a mark that changes with its content, of every object below a folder."""
        files, root = self._opened
        place = self._at(below) if below else root
        try:
            found = insist(lambda: files.find(place, detail=True), f"{self.url}/{below}")
        except FileNotFoundError:
            return {}
        return {
            path[len(root) :].strip("/"): str(
                [info.get(k) for k in ("ETag", "etag", "mtime", "updated", "size", "created")]
            )
            for path, info in found.items()
        }

    def folders(self) -> list[str]:
        """Names of the folders directly below."""
        files, root = self._opened
        try:
            found = insist(lambda: files.ls(root, detail=True), self.url)
        except FileNotFoundError:
            return []
        return sorted(f["name"].rpartition("/")[2] for f in found if f["type"] == "directory")

    def read(self, name: str, patience_s: float | None = None) -> bytes | None:
        """An object's content; None if there is none."""
        files, where = self._opened[0], f"{self.url}/{name}"
        try:
            return insist(lambda: files.cat_file(self._at(name)), where, patience_s)
        except FileNotFoundError:
            return None

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Those of the objects that exist."""
        names = list(names)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = pool.map(self.read, names)
            return {n: c for n, c in zip(names, contents, strict=True) if c is not None}

    def download(self, name: str, path: Path) -> None:
        """Write an object into a file."""
        files, where = self._opened[0], f"{self.url}/{name}"
        insist(lambda: files.get_file(self._at(name), str(path)), where)

    def write(self, name: str, data: bytes, patience_s: float | None = None) -> None:
        """Replace an object."""
        files, where = self._opened[0], f"{self.url}/{name}"
        insist(lambda: files.pipe_file(self._at(name), data), where, patience_s)

    def upload(self, path: Path, name: str, patience_s: float | None = None) -> None:
        """Replace an object by a file's content."""
        if path.stat().st_size <= SMALL_BYTES:
            return self.write(name, path.read_bytes(), patience_s)
        files, where = self._opened[0], f"{self.url}/{name}"
        insist(lambda: files.put_file(str(path), self._at(name)), where, patience_s)

    def remove(self, names: Iterable[str], patience_s: float | None = None) -> None:
        """Remove objects, one after the other; absent ones are fine."""
        files = self._opened[0]
        for name in names:
            try:
                insist(lambda n=name: files.rm_file(self._at(n)), f"{self.url}/{name}", patience_s)
            except FileNotFoundError:
                continue

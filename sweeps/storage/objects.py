"""Files behind a URL (s3://, gs://, ...) through fsspec: whole or absent, and asked for again.

Object stores show an object once it is complete, which is all the atomicity that is needed here.
They also answer 503 when they are busy, time out and come back; `Retrying` has the same verbs and
repeats every request with growing pauses until its patience is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from parcae_core.errors import UserError
from parcae_core.plain import is_plain_name

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 15.0
PATIENCE_S = 60.0
SMALL_BYTES = 8 << 20  # what is larger is sent from its file, in parts

# These do not pass by waiting
_FINAL = (FileNotFoundError, PermissionError, ImportError, ValueError)


class Unreachable(OSError):
    """The object store did not answer within the patience; another attempt may find it well."""


def is_url(text: str | Path) -> bool:
    """Whether a path is meant as a URL; `Path` folds its two slashes into one."""
    head, colon, _ = str(text).partition(":/")
    return bool(colon) and head.isalnum() and len(head) > 1


class Objects:
    """The objects below a URL, by their path from there. A verb is one request."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # a local sweep does without

        try:
            # Another process may have written since the last listing
            files, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.url}: cannot be opened ({error}).") from error
        return files, root.rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._opened[1]}/{name}".rstrip("/")

    def list(self, below: str = "") -> dict[str, str]:
        """name -> a mark that changes with its content, of every object below a folder."""
        files, root = self._opened
        try:
            found = files.find(self._at(below), detail=True)
        except FileNotFoundError:
            return {}
        marks = ("ETag", "etag", "mtime", "updated", "size", "created")
        return {
            self._safe(path[len(root) :].removeprefix("/")): str([info.get(k) for k in marks])
            for path, info in found.items()
        }

    def _safe(self, name: str) -> str:
        """A name that stays below the folder here that it is joined to.

        Raises:
            UserError: for one with `..`, an absolute or an empty part.
        """
        for part in name.split("/"):
            if not is_plain_name(part):
                raise UserError(
                    f"{self.url}: it holds the object {name!r:.200}, whose name leads out of a folder; "
                    "nothing is read from there. Remove that object, it was not written by this program"
                )
        return name

    def folders(self) -> Sequence[str]:
        """Names of the folders directly below."""
        files, root = self._opened
        try:
            found = files.ls(root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(f["name"].rpartition("/")[2] for f in found if f["type"] == "directory")

    def pull(self, name: str) -> bytes | None:
        """An object's content; None if there is none."""
        try:
            return self._opened[0].cat_file(self._at(name))
        except FileNotFoundError:
            return None

    def pull_file(self, name: str, path: Path) -> None:
        """Write an object into a file; FileNotFoundError if there is none."""
        self._opened[0].get_file(self._at(name), str(path))

    def push(self, name: str, content: bytes | Path) -> None:
        """Replace an object by bytes or by a file's content."""
        files = self._opened[0]
        if isinstance(content, Path) and content.stat().st_size > SMALL_BYTES:
            return files.put_file(str(content), self._at(name))
        data = content.read_bytes() if isinstance(content, Path) else content
        return files.pipe_file(self._at(name), data)

    def delete(self, name: str) -> None:
        """Remove an object; an absent one is fine."""
        try:
            self._opened[0].rm_file(self._at(name))
        except FileNotFoundError:
            return


class Retrying:
    """`Objects` whose verbs are repeated until they succeed.

    A verb raises Unreachable if it still fails after `patience_s` (PATIENCE_S if None), and what
    does not pass by waiting, such as PermissionError, at once.
    """

    def __init__(self, objects: Objects, patience_s: float | None = None) -> None:
        self.objects, self.url, self.patience_s = objects, objects.url, patience_s

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return partial(self._insist, getattr(self.objects, verb))

    def _insist(self, call: Callable[..., Any], *args: Any) -> Any:
        patience_s = PATIENCE_S if self.patience_s is None else self.patience_s
        deadline, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
        while True:
            try:
                return call(*args)
            except _FINAL:
                raise
            except Exception as error:  # each file system of fsspec has exceptions of its own
                if time.monotonic() + pause > deadline:
                    where = "/".join([self.url, *map(str, args[:1])])
                    text = f"{where}: no answer within {patience_s:.0f} s ({error})"
                    raise Unreachable(text) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

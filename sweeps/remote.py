"""Sweep folders behind a URL (s3://, gs://, ...): read what records need, write the table back."""

from __future__ import annotations

import fnmatch
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from parcae_core.errors import UserError
from sweeps.store import Store

T = TypeVar("T")

TRIES = 5  # object stores answer 503 when they are busy
NEEDED = ("sweep.json", "*/trial.json", "*/state.json", "*/result.json")


def is_url(text: str | Path) -> bool:
    """Whether a path is meant as a URL; `Path` folds its two slashes into one."""
    head, colon, rest = str(text).partition(":/")
    return bool(colon) and head.isalnum() and len(head) > 1 and bool(rest)


@contextmanager
def fetched(url: str) -> Iterator[Store]:
    """A local copy of the small files of a sweep folder, removed afterwards.

    Raises:
        UserError: if the place cannot be read or holds no sweep.
    """
    files, root = _open(url)
    paths = _insist(lambda: files.find(root), url)
    with tempfile.TemporaryDirectory(prefix="parcae-") as folder:
        store = Store(folder, root.rstrip("/").rpartition("/")[2])
        for path in paths:
            inside = path[len(root) :].strip("/")
            if not any(fnmatch.fnmatchcase(inside, n) for n in NEEDED):
                continue
            local = store.root / inside
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(_insist(lambda path=path: files.cat_file(path), f"{url}/{inside}"))
        if store.sweep is None:
            raise UserError(f"{url}: no sweep there; give the folder that holds sweep.json.")
        yield store


def put(path: Path, url: str) -> str:
    """Write a file into the folder at a URL; object stores show it whole or not at all.

    Returns:
        The URL of the file.
    """
    files, root = _open(url)
    target, data = f"{root.rstrip('/')}/{path.name}", path.read_bytes()
    _insist(lambda: files.pipe_file(target, data), url)
    return f"{url.rstrip('/')}/{path.name}"


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        # Another worker may have written since the last listing
        return url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: cannot be opened ({error}).") from error


def _insist(call: Callable[[], T], where: str) -> T:
    """Try a few times, with growing pauses; absence is final at once."""
    for attempt in range(TRIES):
        try:
            return call()
        except FileNotFoundError as error:
            raise UserError(f"{where}: nothing is there.") from error
        except Exception as error:  # each backend has exceptions of its own
            if attempt + 1 == TRIES:
                raise UserError(f"{where}: no answer after {TRIES} tries ({error}).") from error
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")

"""Prepared data on its way to the nodes that train: through an object store, under the hash of its manifest."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from parcae_core.data.io import file_lock
from sweeps.storage.base import Storage
from sweeps.storage.objects import Objects, Retrying, Unreachable
from sweeps.storage.tempdir import private_folder


def push_data(storage: Storage, folder: Path) -> str:
    """Let all nodes have a prepared folder; how they ask `pull_data` for it."""
    if storage.objects is None:
        return str(folder.absolute())  # workers of a running cluster work in folders of their own
    manifest = (folder / "manifest.json").read_bytes()
    shared = f"{folder.name}-{hashlib.sha256(manifest).hexdigest()[:12]}"
    there = _objects(storage, shared)
    if there.pull("manifest.json") != manifest:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "manifest.json":
                there.push(path.relative_to(folder).as_posix(), path)
        there.push("manifest.json", manifest)  # last: with it the folder counts
    link = _root_here(storage) / shared
    if not link.exists():
        with suppress(FileExistsError):
            link.symlink_to(folder.absolute())
    return shared


def pull_data(storage: Storage, shared: str) -> Path:
    """A prepared folder on this node."""
    if storage.objects is None:
        return Path(shared)
    root = _root_here(storage)
    folder, partial = root / shared, root / f".{shared}.partial"
    # One download for all trials of this node
    with file_lock(root / f".{shared}.lock", wait_s=-1):
        if not (folder / "manifest.json").is_file():
            if folder.is_symlink():  # to a folder that was prepared here and is gone
                folder.unlink()
            shutil.rmtree(partial, ignore_errors=True)
            there = _objects(storage, shared)
            for name in there.list():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                there.pull_file(name, partial / name)
            if not (partial / "manifest.json").is_file():
                raise Unreachable(f"{there.url}: the prepared data is not there, or not whole")
            partial.rename(folder)
    return folder


def _objects(storage: Storage, shared: str) -> Retrying:
    return Retrying(Objects(f"{storage.place}/_data/{shared}"))


def _root_here(storage: Storage) -> Path:
    private_folder(storage.data_root.parent)
    storage.data_root.mkdir(exist_ok=True)
    return storage.data_root

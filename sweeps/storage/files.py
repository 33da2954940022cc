"""Small files that are either whole or absent, whatever happens to the process or the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from parcae_core.errors import UserError


def write_atomic(path: Path, text: str) -> None:
    """Write under a temporary name, flush to the disk, rename. Readers see the old or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    """`write_atomic` of indented JSON; refuses NaN, which is no JSON."""
    write_atomic(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; None when there is no file or it does not hold one.

    A damaged file reads as absent: whoever asks then derives the state without it and, for a
    result, trains again. `sweeps.store` says so to the user.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def require_writable(folder: Path) -> None:
    """Prove that a folder can be made and written in, and leave things as they were.

    Raises:
        UserError: with the system's reason.
    """
    probe = folder / f".probe.{os.getpid()}"
    made = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give another folder with --out."
        ) from error
    finally:
        for new in made:  # innermost first
            if new.is_dir():
                new.rmdir()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; a few file systems cannot sync folders and need not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)

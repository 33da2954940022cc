"""A folder that every node sees at the same path: what is written there counts at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from parcae_core.data.io import Locked, file_lock
from sweeps.storage.base import busy, this_process


class LocalStorage:
    """`sweeps.storage.base.Storage` of a shared folder; nothing has to be moved."""

    objects = None

    def __init__(self, out: Path, sweep: str) -> None:
        # a shell leaves the ~ of --out=~/runs as it is
        out = Path(os.path.expanduser(out)).absolute()
        self.place, self.data_root = str(out), out / "_data"
        self.root = self.work_root = out / sweep

    def list(self, below: str = "") -> dict[str, str]:
        files = (p for p in (self.root / below).rglob("*") if p.is_file())
        return {p.relative_to(self.root).as_posix(): str(p.stat().st_mtime_ns) for p in files}

    def pull(self, paths: Iterable[Path] | None = None) -> None:
        pass

    def push(self, *paths: Path) -> None:
        pass

    def delete(self, *paths: Path) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """It goes with the process, however that ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / ".driver"
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(path))
            except Locked:
                raise busy(str(self.root), path.read_text(errors="replace").strip()[:200]) from None
            path.write_text(this_process())
            yield

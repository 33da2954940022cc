"""A folder that every node sees at the same path: what is written there counts at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from parcae_core.data.io import Locked, file_lock
from sweeps.storage.base import busy, this_process

if TYPE_CHECKING:
    from parcae_core.trial import Trial
    from sweeps.storage.base import Lease


class LocalStorage:
    """`sweeps.storage.base.Storage` of a shared folder; nothing has to be moved."""

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

    def siblings(self) -> Sequence[str]:
        found = sorted(p.parent.name for p in self.root.parent.glob("*/sweep.json"))
        return [name for name in found if name != self.root.name]

    @contextmanager
    def pushing(self, trial: Trial, held: Lease, follow: tuple[Path, ...]) -> Iterator[None]:
        yield

    def pull_checkpoint(self, trial: Trial, checkpoint: str | None) -> None:
        pass

    def push_data(self, folder: Path) -> str:
        return str(folder.absolute())  # workers of a running cluster work in folders of their own

    def pull_data(self, shared: str) -> Path:
        return Path(shared)

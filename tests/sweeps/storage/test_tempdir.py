"""Temporary folders of killed processes are removed by the next; those of living ones are not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from sweeps.storage.tempdir import OwnedFolder

ROOT = Path(__file__).parents[3]
OWNER = """
import sys, time
from sweeps.storage.tempdir import OwnedFolder
folder = OwnedFolder("pc-", sys.argv[1])
(folder.path / "session").write_text("x")
print(folder.path, flush=True)
time.sleep(60)
"""


def owner(base: Path) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(base)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return process, Path(process.stdout.readline().strip())


def test_only_folders_whose_owner_is_gone_are_removed(tmp_path):
    dead, stale = owner(tmp_path)
    alive, kept = owner(tmp_path)
    foreign = tmp_path / "pc-foreign"
    foreign.mkdir()
    other_kind = tmp_path / "view-1"
    other_kind.mkdir()
    (other_kind / ".owner").touch()
    try:
        os.kill(dead.pid, signal.SIGKILL)
        dead.communicate()
        assert stale.exists()
        with OwnedFolder("pc-", str(tmp_path)) as mine:
            assert not stale.exists()
            assert (kept / "session").exists()
            assert foreign.exists()
            assert other_kind.exists()
            # Nobody of this process takes it for stale either
            OwnedFolder("pc-", str(tmp_path)).close()
            assert mine.exists()
        assert not mine.exists()
    finally:
        alive.kill()
        alive.communicate()

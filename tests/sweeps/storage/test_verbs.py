"""The verbs of a storage without a server, and who holds a trial's folder after a kill."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from parcae_core.errors import UserError
from sweeps.runner.errors import environment
from sweeps.runner.signals import stop_on_signals
from sweeps.storage import bucket, uploads
from sweeps.storage.base import LeaseBusy, lease, require_writable
from sweeps.storage.bucket import ObjectStorage
from sweeps.storage.data import push_data
from sweeps.storage.local import LocalStorage
from sweeps.storage.objects import Objects, Unreachable
from tests.support.tiny import tiny_plan

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from sweeps.storage.base import lease
from sweeps.storage.local import LocalStorage
out = Path(sys.argv[1])
with lease(out / "tiny" / "trial", LocalStorage(out, "tiny"), wait_s=0) as held:
    child = subprocess.Popen(["sleep", "600"], pass_fds=(held.lock,))
    print(child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def files(object_store):
    """What the empty object store in this process's memory holds."""
    import fsspec

    return fsspec.filesystem("memory")


def test_a_view_follows_what_the_store_holds(files):
    storage = ObjectStorage("memory://runs", "tiny", working=False)
    for name in ("sweep.json", "t/state.json", "t/metrics.jsonl", "t/wandb/x.wandb"):
        files.pipe_file(f"/runs/tiny/{name}", b"\xff{}")
    assert sorted(storage.list("t")) == ["t/metrics.jsonl", "t/state.json", "t/wandb/x.wandb"]
    storage.pull()
    trial = storage.root / "t"
    assert [p.name for p in trial.iterdir()] == ["state.json"]  # the small files only
    storage.pull(storage.root / name for name in storage.list("t/wandb"))
    assert (trial / "wandb" / "x.wandb").read_bytes() == b"\xff{}"
    files.rm_file("/runs/tiny/t/state.json")
    storage.pull()
    assert not (trial / "state.json").exists()
    for name in ("error.txt", "result.json"):
        (trial / name).write_text("only here")
    storage.pull([trial / "error.txt", trial / "result.json"])
    # A result that the store would not take still counts
    assert [(trial / n).exists() for n in ("error.txt", "result.json")] == [False, True]
    storage.push(trial / "result.json")
    assert files.cat_file("/runs/tiny/t/result.json") == b"only here"
    storage.delete(trial / "result.json")
    assert not files.exists("/runs/tiny/t/result.json")


def test_a_store_that_takes_nothing_is_refused_in_words_and_left_as_it_was(files, monkeypatch):
    storage = ObjectStorage("memory://runs", "tiny", working=False)
    require_writable(storage)

    def denied(*_: object) -> None:
        raise PermissionError("denied")

    monkeypatch.setattr(Objects, "push", denied)
    with pytest.raises(UserError, match=r"memory://runs/tiny: cannot be written \(denied\)"):
        require_writable(storage)
    assert not storage.root.exists()
    assert storage.list() == {}


def test_a_killed_workers_folder_is_held_while_a_process_of_its_lives(tmp_path):
    folder, storage = tmp_path / "tiny" / "trial", LocalStorage(tmp_path, "tiny")
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    with holder.stdout:
        child = int(holder.stdout.readline())
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with pytest.raises(LeaseBusy, match="still runs"), lease(folder, storage, wait_s=0.2):
        pass
    os.kill(child, signal.SIGKILL)
    with lease(folder, storage, wait_s=5) as mine:
        assert mine.orphan
        assert mine.content["generation"] == 3


def test_a_driver_that_was_taken_over_stops_and_leaves_the_others_lock(files, monkeypatch, capsys):
    monkeypatch.setattr(bucket, "DRIVER_RENEWS_S", 0.1)
    storage, theirs = ObjectStorage("memory://runs", "tiny", working=False), b'{"owner": "other"}'
    stopped = threading.Event()
    with stop_on_signals(stopped.set), storage.lock():
        files.pipe_file("/runs/tiny/.driver", theirs)  # as after a long suspension
        assert stopped.wait(5)
    assert files.cat_file("/runs/tiny/.driver") == theirs
    assert "memory://runs/tiny: another `parcae run` took it over" in capsys.readouterr().err


def test_prepared_data_is_known_to_workers_in_other_folders(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    shared = push_data(LocalStorage(Path("runs"), "tiny"), Path("data"))
    assert shared == str(tmp_path / "data")


def test_a_checkpoint_that_does_not_come_is_no_fresh_start(object_store, monkeypatch):
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.1)
    storage, trial = ObjectStorage(object_store, "tiny", working=True), tiny_plan().trials[0]
    with pytest.raises(Unreachable, match="has no whole checkpoint step-000000100 after") as error:
        uploads.pull_checkpoint(storage, trial, wanted="step-000000100")
    assert environment(error.value) is error.value  # so the trial is planned again

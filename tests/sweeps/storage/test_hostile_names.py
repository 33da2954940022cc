"""Names and folders that come from others: objects that lead out, temporary folders of other users."""

import os

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from parcae_core.errors import UserError
from parcae_core.plain import is_plain_name
from sweeps.storage.bucket import ObjectStorage
from sweeps.storage.data import pull_data
from sweeps.storage.tempdir import OwnedFolder, private_folder, remove_stale


@pytest.fixture
def bucket():
    """A store in memory; what is put in by name is not normalised, as in S3."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def put(bucket, name: str, content: bytes = b"x") -> None:
    bucket.store[name] = MemoryFile(bucket, name, content)


@pytest.mark.parametrize(
    "name",
    [
        "../evil/trial.json",
        "a/../../../evil.json",
        "a//trial.json",
        "./sweep.json",
        "a/b\0c",
        "a\\b",
    ],
)
def test_an_object_whose_name_leads_out_is_refused_by_name(bucket, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    put(bucket, "/runs/tiny/sweep.json", b"{}")
    put(bucket, f"/runs/tiny/{name}")
    storage = ObjectStorage("memory://runs", "tiny", working=False)
    for look in (storage.pull, storage.list):
        with pytest.raises(UserError, match="whose name leads out of a folder") as error:
            look()
        assert repr(name) in str(error.value)
    assert not list(tmp_path.rglob("*evil*"))
    storage._view.close()


def test_prepared_data_with_such_an_object_is_refused_too(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    put(bucket, "/runs/_data/shared/manifest.json", b"{}")
    put(bucket, "/runs/_data/shared/../../../../evil.bin")
    storage = ObjectStorage("memory://runs", "tiny", working=True)
    with pytest.raises(UserError, match="whose name leads out"):
        pull_data(storage, "shared")
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path.parent / "evil.bin").exists()


def test_names_that_may_be_joined():
    assert [
        n
        for n in ("a", "..", ".", "", "/a", "a/b", "a\\b", "a\0", 7, ".hidden")
        if is_plain_name(n)
    ] == [
        "a",
        ".hidden",
    ]


def test_a_working_folder_is_of_this_user_alone(tmp_path):
    made = private_folder(tmp_path / "work")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)  # as older versions made it
    assert private_folder(made).stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(UserError, match="belongs to another user or is a link"):
        private_folder(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder(tmp_path / "file")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder of another user")
def test_folders_of_other_users_are_neither_used_nor_touched(tmp_path):
    theirs = tmp_path / "view-theirs"
    theirs.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (theirs / ".owner").symlink_to(victim)
    os.chown(theirs, 12_345, 12_345)
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder(theirs)
    remove_stale("view-", str(tmp_path))
    with OwnedFolder("view-", str(tmp_path)) as mine:
        assert mine.stat().st_mode & 0o777 == 0o700
    assert theirs.exists()
    assert victim.read_text() == "precious"

"""What the sweeps' tests share."""

import tempfile

import pytest


@pytest.fixture
def object_store(monkeypatch, tmp_path) -> str:
    """The URL of an empty object store in this process's memory; folders of this node are in tmp_path."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/runs"

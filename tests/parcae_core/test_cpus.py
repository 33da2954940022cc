"""Cores by affinity and by a container's limit."""

import os
from pathlib import Path

import pytest

from parcae_core.cpus import usable_cpus


def write(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """(mount of control groups, /proc/self/cgroup) that hold these."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "cgroup", root / "self"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cgroup/cpu.max": "max 100000\n"}, 64),
        ({"cgroup/cpu.max": "350000 100000\n"}, 3),  # whole ones, as Ray counts
        ({"cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"self": "0::/pod/box\n", "cgroup/pod/cpu.max": "200000 100000\n"}, 2),
        ({"self": "0::/../..\n", "cgroup/cpu.max": "500000 100000\n"}, 5),
        ({"cgroup/cpu/cpu.cfs_quota_us": "400000", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_containers_limit_counts(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert usable_cpus(*write(tmp_path, files)) == cores


def test_without_an_affinity_all_cores_count(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cpus(*write(tmp_path, {})) == 8
    assert usable_cpus(*write(tmp_path, {"cgroup/cpu.max": "300000 100000"})) == 3


def test_it_is_never_more_than_the_affinity():
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))

"""How many cores a process may use: affinity, and a container's limit."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


def usable_cpus(cgroups: Path = _CGROUPS, process: Path = _SELF) -> int:
    """Cores that this process may use, at least 1.

    Args:
        cgroups: where the control groups are mounted.
        process: the file that says which of them this process is in.

    Returns:
        The cores of its affinity (all, where that is unknown, as on macOS), or the whole ones of its
        container's limit if those are fewer.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(int(limit) for limit in _limits(cgroups, process))]))


def _limits(cgroups: Path, process: Path) -> list[float]:
    """CPU limits of the groups that this process is in, in cores.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst.
    """
    found = []
    for folder in _groups(cgroups, process):
        quota, period = _words(folder / "cpu.max") or ("max", "1")
        found.append((quota, period))
    version_1 = cgroups / "cpu"
    quota, period = (_words(version_1 / f"cpu.cfs_{n}_us") for n in ("quota", "period"))
    if quota and period:
        found.append((quota[0], period[0]))
    # "max", and -1 in version 1, mean that there is no limit
    return [int(q) / int(p) for q, p in found if q.isdigit() and int(q) > 0]


def _groups(cgroups: Path, process: Path) -> list[Path]:
    """The root of version 2, which in a container is its own group, and this process's groups."""
    line = next((w for w in _words(process) if w.startswith("0::/")), "0::/")
    own = line.removeprefix("0::/")
    parts = [p for p in own.split("/") if p not in ("", "..")]
    return [cgroups.joinpath(*parts[:n]) for n in range(len(parts) + 1)]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []

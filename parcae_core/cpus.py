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
    own = next((w for w in _words(process) if w.startswith("0::/")), "0::/").removeprefix("0::/")
    parts = [p for p in own.split("/") if p not in ("", "..")]
    # the root of version 2, which in a container is its own group, and this process's groups
    groups = [cgroups.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
    found = [_words(group / "cpu.max") for group in groups]
    found.append([w for n in ("quota", "period") for w in _words(cgroups / f"cpu/cpu.cfs_{n}_us")])
    # "max", and -1 in version 1, mean that there is no limit
    limited = [w for w in found if len(w) == 2 and w[0].isdigit() and int(w[0]) > 0]
    return [int(quota) / int(period) for quota, period in limited]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []

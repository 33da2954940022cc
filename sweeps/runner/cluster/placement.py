"""What a trial asks a cluster for, and whether its nodes can hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parcae_core.cpus import usable_cpus
from parcae_core.errors import UserError
from parcae_core.trial import Resources, Trial

LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml").expanduser()  # `ray up` leaves it on the head


def gpus_here(trials: Sequence[Trial]) -> int:
    """GPUs of this machine, as torch counts them; 0 when no trial wants one."""
    if not any(t.resources.gpus for t in trials):
        return 0
    import torch

    return torch.cuda.device_count()


def require_local(trials: Sequence[Trial], cpus: int | None) -> None:
    """Refuse what this machine cannot hold, before anything is written or started.

    Raises:
        UserError: with what is asked for and what there is.
    """
    have_cpus, have_gpus = cpus or usable_cpus(), gpus_here(trials)
    for wanted in {t.resources for t in trials}:
        if wanted.cpus > have_cpus or wanted.gpus > have_gpus:
            raise UserError(
                f"resources: a trial asks for cpus={wanted.cpus:g}, gpus={wanted.gpus:g} and this "
                f"machine offers {have_cpus} CPU and {have_gpus} GPU. Lower resources in the spec, "
                "raise --cpus, or give --address of a cluster that has them."
            )


def bundles(wanted: Resources, nodes: Sequence[dict[str, float]]) -> list[dict[str, float]] | None:
    """What a trial asks Ray for: one bundle on one node if some node can hold it all, else one for
    each of its processes; None if the nodes cannot hold it either way.

    Args:
        nodes: resources of each node that there is or may be.
    """
    whole = _bundle(wanted.cpus, wanted.gpus)
    if any(_times(whole, node) for node in nodes):
        return [whole]
    n = wanted.processes
    part = _bundle(wanted.cpus / n, wanted.gpus / n)
    fits = n > 1 and sum(_times(part, node) for node in nodes) >= n
    return [dict(part) for _ in range(n)] if fits else None


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _times(bundle: dict[str, float], node: dict[str, float]) -> int:
    """How often a bundle fits on an empty node."""
    return min(fit(amount, node.get(name, 0), name) for name, amount in bundle.items())


def fit(amount: float, there: float, name: str) -> int:
    """How often an amount of CPU or GPU is there."""
    if name == "GPU" and amount < 1:  # no share lies on two of them
        return int(there) * int(1 / amount + 1e-9)
    return int(there / amount + 1e-9)  # 1 // 0.2 is 4


def side_by_side(trials: Sequence[Trial], cpus: float, gpus: float) -> int:
    """Trials that run at a time on so many CPUs and GPUs, by the largest request."""
    most = _bundle(max(t.resources.cpus for t in trials), max(t.resources.gpus for t in trials))
    return _times(most, {"CPU": cpus, "GPU": gpus})


def places(trials: Sequence[Trial], can_add: dict[str, float] | None = None) -> int:
    """Trials that the cluster as it is now runs side by side, and one more node that it may add.

    That node's places are counted because a cluster grows only for trials that wait; where it cannot
    grow any more, so many are chosen before their place is free.
    """
    import ray

    nodes = [ray.cluster_resources(), *([can_add] if can_add else _addable(LAUNCHER_FILE))]
    at_a_time = [side_by_side(trials, n.get("CPU", 0), n.get("GPU", 0)) for n in nodes]
    return at_a_time[0] + max(at_a_time[1:], default=0)


def require_placeable(
    trials: Sequence[Trial], can_add: dict[str, float] | None = None
) -> dict[Resources, list[dict[str, float]]]:
    """Refuse what the nodes cannot hold; Ray would wait for it for ever.

    Args:
        can_add: resources of the largest node that the cluster may still add. A cluster started by
            Ray's launcher tells its node types itself, when asked on its head.

    Returns:
        The bundles of each kind of request.

    Raises:
        UserError: with the request and the nodes.
    """
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    nodes += _addable(LAUNCHER_FILE)
    # How many of them it may add is not known; enough for one trial, or it would not be said
    nodes += [can_add] * max(t.resources.processes for t in trials) if can_add else []
    found = {}
    for wanted in {t.resources for t in trials}:
        found[wanted] = bundles(wanted, nodes)
        if found[wanted] is None:
            n = wanted.processes
            several = f", nor have several for its {n} processes" if n > 1 else ""
            have = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
            raise UserError(
                f"resources: a trial asks for cpus={wanted.cpus:g}, gpus={wanted.gpus:g} and no node "
                f"has that{several} (nodes: {have}). Lower resources in the spec; or, if "
                "the cluster adds nodes when asked, say what they have: --node-cpus 8 --node-gpus 1."
            )
    return found


def _addable(launcher_file: Path) -> list[dict[str, float]]:
    """Resources of the nodes that the launcher's configuration allows, beside the head."""
    if not launcher_file.is_file():
        return []
    import yaml

    config = yaml.safe_load(launcher_file.read_text()) or {}
    types = config.get("available_node_types") or {}
    return [
        t.get("resources") or {} for t in types.values() for _ in range(t.get("max_workers", 0))
    ]

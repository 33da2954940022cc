"""A Ray cluster to run on: a private one on this machine, or one that is there already."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parcae_core.cpus import usable_cpus
from parcae_core.errors import UserError
from parcae_core.trial import Resources, Trial
from sweeps.storage.tempdir import OwnedFolder

# Ray puts sockets under its folder, and a socket's path may have 107 bytes; Ray's own part of it
# is about 70
MAX_TEMP_PATH = 36
OBJECT_STORE_BYTES = 100 << 20  # nothing of size goes through it; Ray's default is 30 % of memory

LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml").expanduser()  # `ray up` leaves it on the head

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a spec keep their meaning
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: no output of Tune's own
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # strictly in order: longest first
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no second copy of the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops with a checkpoint
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_LOCAL = {
    # Despite its name: on Linux too, Ray then binds every port to loopback instead of to all
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Said outright, or Ray 2.60 writes a token file into the home folder and warns
    "RAY_AUTH_MODE": "disabled",
}


@contextmanager
def ray_cluster(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Connect, or start a private cluster on loopback, and leave nothing behind.

    Args:
        address: of a running cluster ("auto", host:port); None starts a private one.
        cpus: cores the private one offers; None: all that this process may use.

    Raises:
        UserError: if the cluster cannot be reached.
    """
    local = address is None
    wanted = _ENVIRONMENT | (_LOCAL if local else {})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    # A cluster that happens to run on this machine is not what a private one means
    address_before = os.environ.pop("RAY_ADDRESS", None) if local else None
    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `progress` says it in one line
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    temporary: OwnedFolder | None = None
    try:
        if local:
            temporary = OwnedFolder("pc-", _short_base())
            ray.init(
                address="local",
                num_cpus=cpus or usable_cpus(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(temporary.path),
                **common,
            )
        else:
            try:
                ray.init(address=address, **common)
            except (ConnectionError, RuntimeError) as error:
                raise UserError(
                    f"--address {address}: no connection to a Ray cluster ({error}). Check the "
                    "address and, where the cluster asks for one, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
                ) from error
        yield
    finally:
        ray.shutdown()
        if temporary is not None:
            temporary.close()
        for name, value in (before | {"RAY_ADDRESS": address_before}).items():
            if value is not None:
                os.environ[name] = value
            elif name in wanted:
                os.environ.pop(name, None)


def require_local(trials: Sequence[Trial], cpus: int | None) -> None:
    """Refuse what this machine cannot hold, before anything is written or started.

    Raises:
        UserError: with what is asked for and what there is.
    """
    have_cpus, have_gpus = cpus or usable_cpus(), 0
    if any(t.resources.gpus for t in trials):
        import torch

        have_gpus = torch.cuda.device_count()
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
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in bundle.items())


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
            have = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
            raise UserError(
                f"resources: a trial asks for cpus={wanted.cpus:g}, gpus={wanted.gpus:g} and no node "
                f"has that{_nor_several(wanted)} (nodes: {have}). Lower resources in the spec; or, if "
                "the cluster adds nodes when asked, say what they have: --node-cpus 8 --node-gpus 1."
            )
    return found


def _nor_several(wanted: Resources) -> str:
    if wanted.processes == 1:
        return ""
    return f", nor have several for its {wanted.processes} processes"


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


def _short_base() -> str:
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(base) <= MAX_TEMP_PATH - len("/pc-12345678"):
            return base
    raise UserError(
        f"the folder for temporary files ({tempfile.gettempdir()}) has too long a path for Ray's "
        "sockets; set TMPDIR to a shorter one."
    )

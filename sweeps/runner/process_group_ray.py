"""The processes of a trial whose placement group reaches over several nodes: one bundle each.

Tune runs the trial itself in the first bundle, which is the first process's; the others are
children of small actors in theirs. An actor ends with the worker that owns it, and its child with it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sweeps.runner.process_group import LocalProcess, Process

Join = Callable[[], dict[str, Any]]  # what a task says differently on that node


def processes_over_nodes(n: int, keep_open: Sequence[int], join: Join) -> list[Process] | None:
    """One process per bundle of this trial's placement group; None if it has a single one.

    Args:
        join: called on every other node before its process starts.
    """
    group = ray.util.get_current_placement_group() if ray.is_initialized() else None
    if group is None or group.bundle_count == 1:
        return None
    first = LocalProcess(keep_open)
    first.address = ray.util.get_node_ip_address()
    return [first, *(RemoteProcess(group, bundle, join) for bundle in range(1, n))]


class RemoteProcess:
    """A process of the group in another bundle."""

    def __init__(self, group: Any, bundle: int, join: Join) -> None:
        wanted = group.bundle_specs[bundle]
        self.join = join
        self.actor = _Host.options(
            num_cpus=wanted.get("CPU", 0),
            num_gpus=wanted.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=bundle
            ),
        ).remote()
        self.address = ray.get(self.actor.address.remote())
        self._death = "is gone"

    def start(self, task: dict[str, Any], receive: Callable[[dict[str, Any] | None], None]) -> None:
        message = self.actor.run.remote(task, self.join)

        def wait() -> None:
            try:
                receive(ray.get(message))
            except Exception as error:  # noqa: BLE001 - its node or its actor is gone, or arriving failed
                self._death = f"on {self.address} is gone: {str(error).strip().splitlines()[-1]}"
            receive(None)

        threading.Thread(target=wait, daemon=True).start()

    def stop(self) -> None:
        """The first process is told, and tells the others."""

    def end(self) -> None:
        ray.kill(self.actor)

    def death(self) -> str:
        return self._death


@ray.remote
class _Host:
    """Holds a bundle for the process that trains in it."""

    def address(self) -> str:
        return ray.util.get_node_ip_address()

    def run(self, task: dict[str, Any], join: Join) -> dict[str, Any]:
        """Start the process and wait for its last message."""
        messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        child, last = LocalProcess(), None
        try:
            child.start(task | join(), messages.put)
            while (message := messages.get()) is not None:
                last = message
            return last or {"lost": child.death()}
        finally:
            child.end()

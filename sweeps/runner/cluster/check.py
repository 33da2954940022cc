"""`parcae cluster check`: what every node of a running cluster has, and whether it is the same.

The functions that run on the nodes are sent by value and import what they ask about themselves: a node
without this project is a finding and no error.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

ANSWER_S = 40.0  # of all nodes together, for each of the two rounds at most
# What has to be the same everywhere: a trial moves between nodes
ALIKE = ("python", "ray", "torch", "wandb", "triton", "liger_kernel", "code")


@dataclass(kw_only=True, slots=True)
class Node:
    """One node and what it answered."""

    name: str
    cpus: float  # that it offers to Ray
    gpus: float
    versions: dict[str, str | None] = field(default_factory=dict)  # None: not installed
    devices: list[str] = field(default_factory=list)  # GPUs, by nvidia-smi
    torch_gpus: int | None = None  # None: not asked, for there is no GPU
    storage: str = "not asked"
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `parcae cluster check` found; it is good when there is no problem."""

    nodes: list[Node]
    problems: list[str]
    seconds: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Report:
        data = json.loads(text)
        return cls(**data | {"nodes": [Node(**n) for n in data["nodes"]]})


def check(out: str | None) -> Report:
    """Ask every node of the cluster that this process is connected to.

    Args:
        out: the place for sweeps; every node writes a small file there and reads all others'.
    """
    import ray

    began = time.monotonic()
    alive = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
    nodes = {i: _node(n) for i, n in alive.items()}
    for i, found in _on_each(list(nodes), _facts, {}).items():
        if isinstance(found, str):
            nodes[i].problem = found
        else:
            nodes[i] = replace(nodes[i], **found)
    if out is not None:
        folder = f"{out.rstrip('/')}/.check-{uuid.uuid4().hex[:8]}"
        names = [i[:12] for i in nodes]
        written = _on_each(list(nodes), _write, {i: (folder, i[:12]) for i in nodes})
        read = _on_each(list(nodes), _read, {i: (folder, names) for i in nodes})
        for i, node in nodes.items():
            node.storage = _storage(written[i], read[i], {n[:12]: nodes[n].name for n in nodes})
        _on_each(list(nodes)[:1], _remove, dict.fromkeys(nodes, (folder,)))
    found = sorted(nodes.values(), key=lambda n: n.name)
    return Report(nodes=found, problems=problems(found), seconds=time.monotonic() - began)


def problems(nodes: list[Node]) -> list[str]:
    """Whatever would make trials fail or differ, a sentence each."""
    said = [f"{n.name}: {n.problem}" for n in nodes if n.problem is not None]
    answered = [n for n in nodes if n.problem is None]
    for what in ALIKE:
        having = defaultdict(list)
        for node in answered:
            having[node.versions.get(what)].append(node.name)
        if len(having) > 1:
            each = "; ".join(f"{v or 'none'} on {', '.join(n)}" for v, n in having.items())
            said.append(
                f"{what} differs: {each}. Install the same on every node (constraints.txt)."
            )
        elif having and next(iter(having)) is None and what in ("torch", "code"):
            name = "this project" if what == "code" else what
            said.append(f"no node has {name}; install it as the set-up lines of cluster.yaml do.")
    for node in answered:
        if node.gpus and node.torch_gpus is not None and node.torch_gpus < node.gpus:
            said.append(
                f"{node.name}: offers {node.gpus:g} GPU and torch sees {node.torch_gpus}; torch's CUDA "
                f"build needs a newer driver, or it is the CPU build ({node.versions.get('torch')})."
            )
        elif node.gpus and not node.devices:
            said.append(f"{node.name}: offers {node.gpus:g} GPU and nvidia-smi finds none.")
        if node.storage not in ("ok", "not asked"):
            said.append(f"{node.name}: {node.storage}")
    return said


def _node(node: dict[str, Any]) -> Node:
    resources = node["Resources"]
    return Node(
        name=f"{node['NodeManagerHostname']}:{node['NodeManagerPort']}",
        cpus=resources.get("CPU", 0),
        gpus=resources.get("GPU", 0),
    )


def _storage(written: str | None, read: Any, names: dict[str, str]) -> str:
    if written is not None:
        return f"cannot write in --out: {written}"
    if isinstance(read, str):
        return f"cannot read in --out: {read}"
    unread = [f"{names[n]} ({why})" for n, why in read.items()]
    return f"does not see in --out what was written by {', '.join(unread)}" if unread else "ok"


def _on_each(
    nodes: list[str], function: Callable[..., Any], arguments: dict[str, tuple]
) -> dict[str, Any]:
    """What a function returns on every node; a text where it failed or did not answer in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    with _by_value():
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        asked = {
            i: task.options(scheduling_strategy=On(i, soft=False)).remote(*arguments.get(i, ()))
            for i in nodes
        }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    answers: dict[str, Any] = {}
    for i, reference in asked.items():
        try:
            answers[i] = ray.get(reference, timeout=0.1)
        except ray.exceptions.GetTimeoutError:
            answers[i] = f"no answer in {ANSWER_S:.0f} s"
        except ray.exceptions.RayError as error:
            answers[i] = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
    return answers


@contextmanager
def _by_value() -> Iterator[None]:
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


# ---- on a node ------------------------------------------------------------------------------------


def _facts() -> dict[str, Any]:
    """Versions, a hash of this project's code, and the GPUs."""
    import hashlib
    import os
    import platform
    import subprocess
    import sys
    from importlib import metadata, util
    from pathlib import Path

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    def said(*command: str) -> list[str]:
        visible = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}  # Ray hides
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=30, check=True, env=visible
            )
        except (OSError, subprocess.SubprocessError):
            return []
        return done.stdout.split("\n")[:-1]

    digest, files = hashlib.sha256(), []
    for package in ("parcae_core", "sweeps", "analysis"):
        place = util.find_spec(package)
        for root in place.submodule_search_locations if place else ():
            files += [(f.relative_to(Path(root).parent), f) for f in Path(root).rglob("*.py")]
    for name, file in sorted(files):
        digest.update(f"{name}\0".encode() + file.read_bytes())
    names = ("ray", "torch", "wandb", "triton", "liger_kernel")
    query = "--query-gpu=name,driver_version,memory.total"
    devices = said("nvidia-smi", query, "--format=csv,noheader")
    seen = []
    if devices:
        seen = said(sys.executable, "-c", "import torch; print(torch.cuda.device_count())") or ["0"]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in names},
            "code": digest.hexdigest()[:8] if files else None,
        },
        "devices": devices,
        "torch_gpus": int(seen[0]) if seen else None,
    }


def _write(folder: str, name: str) -> str | None:
    """Write this node's file; what went wrong, or None."""
    try:
        from fsspec.core import url_to_fs

        files, root = url_to_fs(folder)
        files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/{name}", name.encode())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{type(error).__name__}: {error}"
    return None


def _read(folder: str, names: list[str]) -> dict[str, str]:
    """Nodes whose file is not here as they wrote it -> why."""
    from fsspec.core import url_to_fs

    files, root = url_to_fs(folder, use_listings_cache=False)
    missing = {}
    for name in names:
        try:
            if files.cat_file(f"{root}/{name}") != name.encode():
                missing[name] = "other content"
        except Exception as error:  # noqa: BLE001 - as above
            missing[name] = type(error).__name__
    return missing


def _remove(folder: str) -> None:
    from fsspec.core import url_to_fs

    files, root = url_to_fs(folder)
    files.rm(root, recursive=True)

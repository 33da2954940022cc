"""A driver process for the kill tests: `run` with short intervals, on its own or on a cluster.

python driver.py SPEC OUT           a private cluster; OUT may be a URL
python driver.py SPEC OUT node      two worker nodes; the first trial's node is lost
python driver.py SPEC OUT raylet    the same, but only its raylet dies and the worker lives on
python driver.py SPEC OUT nothing   two worker nodes of one core each; nothing is lost
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from sweeps.child import children
from sweeps.cli.sweep import load_plan
from sweeps.runner.driver import Options, Outcome, run
from sweeps.storage.base import Polling
from sweeps.storage.objects import is_url
from sweeps.storage.uploads import checkpoints_in
from sweeps.store import Store

CHECKPOINT_EVERY_S = 0.5


def main(spec: Path, out: str, lose: str | None) -> int:
    plan = load_plan(spec)
    store = Store(out, plan.name)
    options = {"checkpoint_every_s": CHECKPOINT_EVERY_S, "lease_wait_s": 30.0}
    if lose is None:
        outcome = run(plan, store, spec, options=Options(cpus=2, **options))
    else:
        outcome = on_a_cluster(plan, store, spec, lose, options)
    print(sorted(outcome.states.values()))
    return 0 if outcome.complete else 1


def on_a_cluster(plan, store: Store, spec: Path, lose: str, options: dict) -> Outcome:
    # Every port on loopback, as in sweeps.runner.cluster.connect
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    if lose != "nothing":
        threading.Thread(target=lose_a_node, args=(store, lose), daemon=True).start()
    try:
        return run(plan, store, spec, options=Options(address=cluster.address, **options))
    finally:
        cluster.shutdown()


def lose_a_node(store: Store, what: str) -> None:
    """Kill the raylet above the first trial that has a checkpoint; with "node", all below it."""
    from benchmarks.kills import parent_of  # it loads torch

    while (worker := first_with_a_checkpoint(Store(store.storage.place, store.name))) is None:
        time.sleep(0.1)
    raylet = parent_of(worker)
    below = children(raylet) if what == "node" else []
    print(f"killing raylet {raylet} and {len(below)} below it", file=sys.stderr, flush=True)
    for pid in (raylet, *below):
        os.kill(pid, signal.SIGKILL)


def first_with_a_checkpoint(store: Store) -> int | None:
    """The worker of a trial that has one which the other nodes see."""
    Polling(store.storage).pull(now=True)
    for trial in store.stored_trials():
        if is_url(store.storage.place):
            found = checkpoints_in(store.storage.objects, trial.trial_id)
        else:
            found = list(store.files(trial.trial_id).checkpoints.glob("step-*"))
        if found and (report := store.report(trial.trial_id)) is not None:
            return report.pid
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], (sys.argv[3:] or [None])[0]))

"""Results that another sweep in the same place already has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parcae_core.data.io import write_synced
from parcae_core.plain import is_plain_name
from parcae_core.trial import Trial
from sweeps.reports import StateReport
from sweeps.storage.objects import Objects, Retrying
from sweeps.store import Store


def reuse_siblings(store: Store, trials: Sequence[Trial]) -> dict[str, str]:
    """Copy results that a sibling sweep has, unless it stopped them early.

    Returns:
        trial_id -> name of the sweep it came from.
    """
    taken: dict[str, str] = {}
    for name in siblings(store) if trials else ():
        sibling = Store(store.storage.place, name)
        left = [t for t in trials if t.trial_id not in taken]
        sibling.storage.pull(sibling.files(t.trial_id).result for t in left)
        for trial in left:
            result = sibling.result(trial)
            if result is not None and result.status != "stopped":
                _take(store, sibling, trial.trial_id)
                taken[trial.trial_id] = name
    return taken


def siblings(store: Store) -> list[str]:
    """Names of the other sweeps beside this one."""
    if store.storage.objects is None:
        found = [p.parent.name for p in store.out.glob("*/sweep.json")]
    else:
        found = Retrying(Objects(store.storage.place)).folders()
        found = [n for n in found if is_plain_name(n) and not n.startswith((".", "_"))]
    return sorted(name for name in found if name != store.name)


def _take(store: Store, sibling: Store, trial_id: str) -> None:
    theirs, ours = sibling.files(trial_id), store.files(trial_id)
    sibling.storage.pull([theirs.state, theirs.metrics])
    report = sibling.report(trial_id) or StateReport(state="done")
    replace(report, reused_from=sibling.name).write(ours.state)
    pairs = ((theirs.metrics, ours.metrics), (theirs.result, ours.result))
    copied = [(there, here) for there, here in pairs if there.exists()]
    for there, here in copied:  # the result last: it counts
        write_synced(here, there.read_bytes())
    store.storage.push(ours.state, *(here for _, here in copied))

"""Trunks: trials that differ in length alone make their common beginning once.

The rate is constant until the cool-down, so the shortest trial of a kind is the beginning of the
next one, that of the one after it, and so on:

    0 ------- b1 ------- b2 ------- b3        constant rate, each piece once
               \\          \\          \\
                n1         n2         n3      a cool-down of each trial's own

Trial i makes the updates from b(i-1) to n(i), its parent those before. What a trial is, and comes
to, does not depend on it: `trial_id` and every loss are those of a separate run.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from parcae_core.trial import Parent, Trial


def with_trunks(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The same trials in the same order; each that can begin from a shorter one has it as parent."""
    kinds: defaultdict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        kinds[json.dumps(trial.trunk(), sort_keys=True)].append(trial)
    parents = {}
    for kind in kinds.values():
        kind.sort(key=lambda t: t.n_steps)
        for shorter, longer in itertools.pairwise(kind):
            if shorter.constant_steps > 0:
                step = shorter.constant_steps
                parents[longer.trial_id] = Parent(trial_id=shorter.trial_id, step=step)
    return tuple(replace(t, parent=parents.get(t.trial_id)) for t in trials)


def branches_of(trials: Iterable[Trial]) -> dict[str, tuple[str, ...]]:
    """trial_ids of the branches that begin from each trial; empty for a sweep without trunks."""
    trials = list(trials)
    found: dict[str, tuple[str, ...]] = {}
    if any(t.parent for t in trials):
        found = {t.trial_id: () for t in trials}
    for trial in trials:
        if trial.parent is not None:
            found[trial.parent.trial_id] += (trial.trial_id,)
    return found

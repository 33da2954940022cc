"""`parcae run`: everything that is planned and not finished, through a fresh Ray Tune run.

Tuner.restore is not used: it silently ignores a changed list of trials. The store says what is
left, so a killed driver, a new spec and a second start are all the same case.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parcae_core.errors import UserError
from parcae_core.trial import Resources, Trial
from sweeps.branches import Waiting, hand_over_ended
from sweeps.design.adaptive import chosen, is_adaptive, planner_of
from sweeps.design.estimate import longest_first
from sweeps.design.forecasting import off_curve
from sweeps.design.plan import Plan
from sweeps.design.trunks import branches_of
from sweeps.reports import FINISHED, State
from sweeps.runner.adaptive import Choosing
from sweeps.runner.cluster.connect import must_send_aws_keys, ray_cluster
from sweeps.runner.cluster.placement import gpus_here, places, require_local, require_placeable
from sweeps.runner.pool import run_pool
from sweeps.runner.signals import ClusterLost, stop_on_signals, watched_cluster
from sweeps.runner.trainable import Job, Options, data_key, run_trial
from sweeps.siblings import reuse_siblings
from sweeps.storage.base import Polling
from sweeps.storage.data import push_data
from sweeps.storage.tempdir import OwnedFolder
from sweeps.store import Store, git_commit
from sweeps.tracking.server import target
from sweeps.tracking.sweep_run import mirror_sweep
from sweeps.waiting import say, waiting

GCS_PATIENCE_S = 30.0  # of a cluster that may start it again; Ray ends its drivers after 60 s
MOST_AT_ONCE = 1000  # trials that run or wait for their place on the cluster
WORKERS_END_S = 15.0  # for those that outlive their raylet to write a checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a `run` leaves."""

    states: dict[str, State]  # by trial_id, of the plan
    reused: dict[str, str]  # trial_id -> sibling sweep
    stopped: bool  # on a signal

    def count(self, *states: State) -> int:
        return sum(s in states for s in self.states.values())

    @property
    def complete(self) -> bool:
        """Every planned trial ended in a result."""
        return all(s in FINISHED for s in self.states.values())


def run(
    plan: Plan, store: Store, spec_path: Path, *, extend: bool = False, options: Options = Options()
) -> Outcome:
    """Run what is missing.

    Raises:
        UserError: before anything is started or written, if the folder cannot take the plan.
    """
    wandb = target(plan.spec.wandb, options.wandb_mode)
    if (sentence := wandb.sentence()) is not None:
        say(sentence)
    early = plan.spec.scheduler == "asha"
    if early and not options.ray:
        raise UserError(
            f"{spec_path}: scheduler: asha is Ray Tune's, and --no-ray runs without; leave one out."
        )
    if is_adaptive(plan):
        planner_of(plan)  # a prior that is none is refused before anything is written
        for sentence in off_curve(plan.trials):
            say(sentence)
    store.check(plan, spec_path, extend=extend)
    if options.address is None:
        require_local(plan.trials, options.cpus)
    elif (left := _left(plan, store)) and not _at_end(plan, store, left):
        with ray_cluster(options.address):  # before anything is written
            require_placeable(left, options.can_add)
    with store.storage.lock():
        store.write_plan(plan, spec_path)
        _say_orphans(plan, store)
        if not early:
            store.take_up_stopped(plan.trials)
        reused = reuse_siblings(
            store, [t for t in plan.trials if store.state(t).state not in FINISHED]
        )
        for trial_id, sibling in reused.items():
            say(f"{trial_id}: the same trial is finished in {sibling}; its result is reused")
        left = _left(plan, store)
        if why := _at_end(plan, store, left):
            Choosing(store, left, say, plan=plan).end(why)
            left = []
        stopped = False
        hand_over_ended(store, left)
        if left:
            data_dirs = prepare_data(plan, store, left)
            job = make_job(plan, store, data_dirs, options)
            waits = partial(Choosing, plan=plan) if is_adaptive(plan) else Waiting
            run_all = schedule if options.ray else run_pool
            stopped = run_all(job, longest_first(left), store, waits)
            store.refresh()
        wanted = plan.trials
        if is_adaptive(plan):
            wanted = chosen(store.root, plan, _left(plan, store))
        states = {t.trial_id: store.state(t).state for t in wanted}
        if not stopped:  # who stops a sweep does not wait for its figures
            for problem in mirror_sweep(
                store,
                project=wandb.project,
                mode=wandb.mode,
            ):
                say(problem)
    # "running" can only be the word of a worker that is gone
    states = {i: "planned" if s == "running" else s for i, s in states.items()}
    return Outcome(states=states, reused=reused, stopped=stopped)


def _say_orphans(plan: Plan, store: Store) -> None:
    """Nobody else schedules here, so who is said to be at work was left behind."""
    reports = [store.report(t.trial_id) for t in plan.trials]
    if n := sum(r is not None and r.state == "running" for r in reports):
        say(
            f"{n} trials were at work when the last `parcae run` here ended (it was killed, or its machine or "
            "cluster was lost); they go on from their last checkpoints"
        )


def _left(plan: Plan, store: Store) -> list[Trial]:
    return [t for t in plan.trials if store.state(t).state not in (*FINISHED, "failed")]


def _at_end(plan: Plan, store: Store, left: list[Trial]) -> str:
    """Why an adaptive sweep is finished although candidates are left; "" for any other."""
    return Choosing(store, left, plan=plan).at_end() if left and is_adaptive(plan) else ""


def prepare_data(plan: Plan, store: Store, trials: Sequence[Trial]) -> dict[str, str]:
    """Tokenise each corpus once for every length of row; finished folders are reused.

    Returns:
        `data_key` of a trial -> how a worker's store asks for its folder.
    """
    from parcae_core.data.prepare import prepare

    corpora = {c.config: c for c in plan.corpora}
    folders = {}
    for trial in trials:
        if data_key(trial) in folders:
            continue
        corpus = corpora[trial.data]
        with waiting(f"preparing {trial.data.corpus}"):
            path = prepare(
                corpus.source, corpus.tokenizer, trial.context + 1, store.storage.data_root
            )
        folders[data_key(trial)] = push_data(store.storage, path)
    return folders


def make_job(plan: Plan, store: Store, data_dirs: dict[str, str], options: Options) -> Job:
    """What the workers of one `run` need to know."""
    wandb = target(plan.spec.wandb, options.wandb_mode)
    return Job(
        out=store.storage.place,
        sweep=store.name,
        session=uuid.uuid4().hex[:12],
        data_dirs=data_dirs,
        spec_sha256=plan.spec.sha256,
        git_commit=git_commit(),
        wandb_mode=wandb.mode,
        wandb_project=wandb.project,
        early_stopping=plan.spec.scheduler == "asha",
        options=options,
        branches=branches_of(plan.trials),
    )


def schedule(
    job: Job, trials: list[Trial], store: Store, waits: Callable[..., Waiting] = Waiting
) -> bool:
    """Run the trials in the given order on a cluster; True if a signal ended it.

    Args:
        waits: what holds them until they start; see `sweeps.runner.adaptive`.
    """
    options = job.options
    private = options.address is None
    send_aws_keys = not private and must_send_aws_keys(store.storage.place)
    gpus = gpus_here(trials) if private else None
    with ExitStack() as cluster:
        with waiting("starting Ray"):
            cluster.enter_context(
                ray_cluster(options.address, options.cpus, gpus, send_aws_keys=send_aws_keys)
            )
        bundles = require_placeable(trials, options.can_add)
        request_stop = partial(store.request_stop, job.session)
        # Tune wants a place for its own bookkeeping, which nobody reads again
        tempdir = OwnedFolder("parcae-tune-")
        try:
            with (
                stop_on_signals(request_stop) as stopped,
                watched_cluster(request_stop, gcs_patience_s=0 if private else GCS_PATIENCE_S),
            ):
                _fit(job, trials, bundles, store, waits, str(tempdir.path), stopped)
        except ClusterLost as lost:
            say(f"{lost}; checkpoints are kept")
            _wait_for_workers(store, trials)
            return True
        finally:
            store.forget_stop(job.session)
            tempdir.close()
    return bool(stopped)


def _fit(
    job: Job,
    trials: list[Trial],
    bundles: dict[Resources, list[dict[str, float]]],
    store: Store,
    waits: Callable[..., Waiting],
    tempdir: str,
    stopped: list[int],
) -> None:
    """Hand the trials to Tune and wait for the last to end."""
    from ray import tune

    from sweeps.runner.halving import Halving
    from sweeps.runner.progress import Progress, StopWhenIdle

    options, by_id = job.options, {t.trial_id: t for t in trials}
    reuse = options.address is None  # a private cluster has no dashboard that would name a worker
    progress = Progress(store, trials, lost_workers=options.lost_workers)
    with progress.display:
        if waits is not Waiting:
            waits = partial(waits, slots=partial(places, trials, options.can_add))
            progress.display.open_ended = True
        param_space, in_order = _in_order(waits(store, trials, progress.say))
        tune.Tuner(
            tune.with_resources(
                run_trial if reuse else _named(),
                # PACK: as few nodes as possible, and each bundle whole
                lambda c: tune.PlacementGroupFactory(
                    bundles[by_id[c["trial_id"]].resources], strategy="PACK"
                ),
            ),
            param_space={"job": job} | param_space,
            tune_config=tune.TuneConfig(
                **in_order,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
                # Sound because `train` builds everything from the trial and leaves no state
                # behind, which a test checks; saves about 1.5 s of imports a trial
                reuse_actors=reuse,
                scheduler=Halving(store, trials) if job.early_stopping else None,
            ),
            run_config=tune.RunConfig(
                name=job.session,
                storage_path=tempdir,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=options.lost_workers),
                stop=StopWhenIdle(stopped, progress),
                callbacks=[progress],
            ),
        ).fit()


def _in_order(waiting: Waiting) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trials in their order, as param_space and tune_config take them: Tune's own grid, which takes all at
    once, unless a branch has to wait."""
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter

    from sweeps.runner.progress import InOrder

    trials = waiting.trials
    if not any(t.parent for t in trials) and not isinstance(waiting, Choosing):
        return {"trial_id": tune.grid_search([t.trial_id for t in trials])}, {}
    n = len(trials)
    # without a limit of its own, Tune lets one trial at a time wait for its place
    in_order = ConcurrencyLimiter(InOrder(waiting), max_concurrent=min(n, MOST_AT_ONCE))
    return {}, {"num_samples": n, "search_alg": in_order}


def _named() -> type:
    """`run_trial` for an actor of its own, which Ray's dashboard shows under the trial's id."""
    from ray.tune.trainable.function_trainable import wrap_function

    class OneTrial(wrap_function(run_trial)):
        def __repr__(self) -> str:
            return self.config["trial_id"]

    return OneTrial


def _wait_for_workers(store: Store, trials: list[Trial]) -> None:
    """Until those that outlive their raylet have ended, or their time is over."""
    deadline = time.monotonic() + WORKERS_END_S
    while time.monotonic() < deadline:
        Polling(store.storage).pull(now=True)
        if not any(store.state(t).state == "running" for t in trials):
            return
        time.sleep(0.2)


def _trial_id(trial) -> str:
    return trial.config["trial_id"]

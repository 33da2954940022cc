"""A sweep as one W&B run: figures, fitted laws, every problem, counts of states, the records table.

Written at the end of `parcae run` by a process of its own with a deadline, after the trials' runs that
a killed worker left unwritten. It is a view of the folder: nothing depends on it, it can be left
out, and writing the same content again is skipped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps import child
from sweeps.records import records_of
from sweeps.reports import ENDED, FINISHED
from sweeps.store import Store
from sweeps.tracking.trial_run import (
    digest,
    drop_unsent,
    forget_runs,
    mark,
    mirror,
    open_run,
    written,
)

if TYPE_CHECKING:
    import pandas as pd
    import wandb

    from analysis.fitting.result import FitResult
    from analysis.report.study import Study

DEADLINE_S = 90.0  # of the process; beyond it, it is ended and the sweep's result stands
STUDY_DEADLINE_S = 45  # of the fits and figures in it
INIT_TIMEOUT_S = 5.0
FINISH_TIMEOUT_S = 15.0


def mirror_sweep(
    store: Store, *, project: str, mode: str, deadline_s: float = DEADLINE_S
) -> list[str]:
    """Have the sweep's run written, offline if the server does not take it.

    Returns:
        What went wrong, in sentences. Nothing is raised: the mirror is not the result.
    """
    if mode == "disabled":
        return []
    command = ("sweeps.tracking.sweep_run", str(store.root), project, mode)
    try:
        with pushed(store):
            code, text = child.output_of(*command, timeout_s=deadline_s)
    except OSError as error:  # an object store that does not answer
        return [f"W&B: {error}; what is not written yet waits for the next `parcae run`"]
    if code is None:
        return [f"W&B: the sweep's run was not written within {deadline_s:g} s"]
    try:
        return list(json.loads(text))
    except ValueError:
        return ["W&B: the sweep's run was not written: its process died"]


@contextmanager
def pushed(store: Store) -> Iterator[None]:
    """Push what is written of W&B runs within this block.

    The folder here then knows which runs are written, and has the metrics of those that are not.
    """
    storage = store.storage
    storage.pull(store.root / name for name in storage.list("wandb"))
    for trial in store.stored_trials():
        files = store.files(trial.trial_id)
        if store.state(trial).state in ENDED:
            storage.pull([files.mirror])
            if not written(files.folder):
                storage.pull([files.metrics])
    before = _run_files(store.root)
    yield
    after = _run_files(store.root)
    storage.delete(*(before.keys() - after.keys()))
    storage.push(*sorted(p for p, when in after.items() if before.get(p) != when))


def _run_files(root: Path) -> dict[Path, int]:
    found = (p for where in ("wandb", "*/wandb") for p in root.glob(f"{where}/**/*"))
    return {p: p.stat().st_mtime_ns for p in found if p.is_file() and not p.is_symlink()}


def sweep_run_id(store: Store) -> str:
    """Of the folder and its spec: a changed spec is another run, a repeated one the same."""
    spec = (store.sweep or {}).get("spec_sha256", "none")[:12]
    return "-".join(filter(None, (store.name, store.folder_id, spec)))


def write(store: Store, *, project: str, mode: str) -> list[str]:
    """Write what is missing of the trials' runs, then the sweep's; problems in sentences."""
    if store.sweep is None:
        return [f"W&B: {store.root} holds no sweep"]
    problems = write_missing(store, project=project)
    table = records_of(store)
    content = {
        "id": sweep_run_id(store),
        "counts": counts_of(store),
        "records": None if table is None else table.to_csv(index=False),
    }
    if written(store.root).get("of") == digest(content):
        return problems
    study, refusal = (None, "no trial has ended yet") if table is None else study_of(table, store)
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            _write(store, table, study, refusal, project, attempt, digest(content))
            return problems
        except Exception as error:  # noqa: BLE001 - an online run that fails is written offline
            problems.append(f"W&B {attempt}: {type(error).__name__}: {error}")
            forget_runs()
    return problems


def write_missing(store: Store, *, project: str) -> list[str]:
    """Write the runs of ended trials that have none yet: their worker died, or never ran here."""
    ended = [t for t in store.stored_trials() if store.state(t).state in ENDED]
    return [p for t in ended if (p := mirror(store, t, project=project)) is not None]


def study_of(table: pd.DataFrame, store: Store) -> tuple[Study | None, str]:
    """The fits of a sweep, or why there are none; a fit that takes too long is such a reason."""
    from analysis.errors import InputError
    from analysis.report.study import study
    from analysis.table import load

    try:
        with _deadline(STUDY_DEADLINE_S):
            return study(load.from_records(table, str(store.root))), ""
    except (InputError, TimeoutError) as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - a failing fit does not fail a sweep
        return None, f"{type(error).__name__}: {error}"


def counts_of(store: Store) -> dict[str, int]:
    """How many trials are in which state."""
    return dict(Counter(store.state(t).state for t in store.stored_trials()))


def law_rows(results: tuple[FitResult, ...]) -> list[dict[str, Any]]:
    """One row per fitted number."""
    return [
        {
            "law": r.law,
            "parameter": p.name,
            "value": p.value,
            "ci_low": p.ci_low,
            "ci_high": p.ci_high,
            "unit": p.unit,
            "valid": r.valid,
            "intervals": f"{r.confidence:.0%}, {r.interval_method}",
        }
        for r in results
        for p in r.params
    ]


def law_summary(results: tuple[FitResult, ...]) -> dict[str, Any]:
    """The same as numbers of the run's summary, where W&B can compare sweeps by them."""
    out: dict[str, Any] = {}
    for r in results:
        out[f"law/{r.law}/valid"] = r.valid
        for p in r.params:
            values = {"": p.value, "_low": p.ci_low, "_high": p.ci_high}
            out |= {f"law/{r.law}/{p.name}{k}": v for k, v in values.items() if v is not None}
    return out


def problem_rows(study: Study | None, refusal: str) -> list[dict[str, str]]:
    """Every problem and refusal, a sentence each."""
    if study is None:
        return [{"law": "all", "problem": refusal}]
    rows = [{"law": r.law, "problem": p} for r in study.results for p in r.problems]
    return rows + [{"law": law, "problem": why} for law, why in study.refusals.items()]


def _write(
    store: Store,
    table: pd.DataFrame | None,
    study: Study | None,
    refusal: str,
    project: str,
    mode: str,
    content: str,
) -> None:
    sweep, run_id = store.sweep or {}, sweep_run_id(store)
    drop_unsent(store.root, run_id)
    run = open_run(
        store,
        store.root,
        run_id=run_id,
        project=project,
        job_type="sweep",
        mode=mode,
        config=sweep | {"spec": _spec_text(store)},
        init_timeout_s=INIT_TIMEOUT_S,
        finish_timeout_s=FINISH_TIMEOUT_S,
    )
    results = () if study is None else study.results
    with tempfile.TemporaryDirectory(prefix="parcae-figures-") as folder:
        shown = {} if study is None else _figures(study, Path(folder))
        run.log(shown | _tables(table, results, problem_rows(study, refusal)))
        run.summary.update({f"trials/{s}": n for s, n in counts_of(store).items()})
        run.summary.update({"trials/total": len(sweep.get("trials", []))} | law_summary(results))
        complete = all(store.state(t).state in FINISHED for t in store.stored_trials())
        run.finish(exit_code=0 if complete else 1)  # it reads the figures until here
    mark(store.root, of=content, mode=mode, id=run_id)


def _figures(study: Study, folder: Path) -> dict[str, wandb.Image]:
    import wandb

    try:
        with _deadline(STUDY_DEADLINE_S):
            return {
                f"figures/{d.name}": wandb.Image(str(d.save(folder)[0]), caption=d.caption)
                for d in study.drawings()
            }
    except Exception as error:  # noqa: BLE001 - the laws are worth sending without figures
        study.refusals["figures"] = f"{type(error).__name__}: {error}"
        return {}


def _tables(
    table: pd.DataFrame | None, results: tuple[FitResult, ...], problems: list[dict[str, str]]
) -> dict[str, wandb.Table]:
    rows = {"laws": law_rows(results), "problems": problems}
    if table is not None:
        rows["records"] = json.loads(table.to_json(orient="records", double_precision=15))
    return {name: _table(found) for name, found in rows.items() if found}


def _table(rows: list[dict[str, Any]]) -> wandb.Table:
    import wandb

    columns = list(rows[0])
    # A column of numbers may hold nulls, and whole numbers beside others
    return wandb.Table(
        columns=columns, data=[[r[c] for c in columns] for r in rows], allow_mixed_types=True
    )


def _spec_text(store: Store) -> str:
    try:
        return (store.root / "spec.yaml").read_text(encoding="utf-8")
    except OSError:
        return ""


@contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    """TimeoutError out of whatever runs too long; in a process of our own signals are free."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"the fits took longer than {seconds} s; `parcae fit` has no such limit")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main(root: str, project: str, mode: str) -> None:
    """The process: prints its problems as one line of JSON."""
    driver = child.private_stdout()
    folder = None
    try:
        folder = child.own_tempdir()
        problems = write(Store(Path(root).parent, Path(root).name), project=project, mode=mode)
    except Exception as error:  # noqa: BLE001 - said in a line; the sweep's result stands
        problems = [f"W&B: the sweep's run was not written: {type(error).__name__}: {error}"]
    print(json.dumps(problems), file=driver, flush=True)
    if folder is not None:
        folder.close()
    os._exit(0)  # W&B's own clean-up at exit may wait for the server again


if __name__ == "__main__":
    main(*sys.argv[1:])

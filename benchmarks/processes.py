"""Trials as plain processes on one device: no Ray, no specs, nothing a rented machine lacks.

python -m benchmarks.processes TASK.json      trains one trial; its folder gets result.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks import forked
from parcae_core.data.manifest import read_manifest
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.data.tokenizer import CHARACTERS
from parcae_core.depth import PoissonDepth, default_backprop_depth
from parcae_core.device import keep_to_share
from parcae_core.presets import preset
from parcae_core.result import Execution, Interrupted
from parcae_core.training.train import train
from parcae_core.trial import (
    DataConfig,
    EvalConfig,
    OptimConfig,
    Trial,
    planned_to_dict,
    trial_from_dict,
)

TIMES_FILE = "times.jsonl"
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Task:
    """One trial, where its data and its folder are, and how it runs."""

    trial: Trial
    data_dir: Path
    run_dir: Path
    share: float = 1.0  # of the GPU
    threads: int = 1
    every_step: bool = False  # leave the wall time of every step
    stop_after_s: float | None = None  # from the first step; a checkpoint then, and no result
    cuda_graphs: bool = False

    def write(self) -> Path:
        """The file that the process is started with; trial.json lies beside it, as in a sweep."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        planned = planned_to_dict(self.trial)
        (self.run_dir / "trial.json").write_text(json.dumps(planned))
        path = self.run_dir / "task.json"
        paths = {"data_dir": str(self.data_dir), "run_dir": str(self.run_dir)}
        rest = {k: v for k, v in vars(self).items() if k != "trial"}
        path.write_text(json.dumps({"trial": planned} | rest | paths))
        return path

    @classmethod
    def read(cls, path: Path) -> Task:
        data = json.loads(path.read_text())
        paths = {name: Path(data[name]) for name in ("data_dir", "run_dir")}
        return cls(**(data | paths | {"trial": trial_from_dict(data["trial"])}))


def prepared(
    corpus: str, tokenizer: str | None, context: int, root: Path
) -> tuple[DataConfig, Path]:
    """The rows of a corpus for a context, and how a trial names them."""
    source = resolve(corpus)
    own = "bytes" if source.alphabet is None else CHARACTERS
    folder = prepare(source, tokenizer or own, context + 1, root)
    made = read_manifest(folder)
    return DataConfig(
        corpus=corpus,
        fingerprint=source.fingerprint,
        tokenizer=made.tokenizer.name,
        vocab_size=made.tokenizer.vocab_size,
    ), folder


def looped_trial(
    name: str,
    data: DataConfig,
    *,
    mean_recurrence: int,
    context: int,
    batch_sequences: int,
    n_steps: int = 1,
    budget_flops: float | None = None,
    loops: Sequence[int] = (1,),
    n_sequences: int = 1,
    seed: int = 0,
    vocab_size: int | None = None,
) -> Trial:
    """A trial as `parcae plan` makes them; with a budget, as long as it buys by the paper's rule.

    mean_recurrence 1 is the fixed-depth Transformer of the same layers.
    """
    looped = mean_recurrence > 1
    model = preset(name, transformer=not looped).replace(context=context)
    if vocab_size is not None:
        model = model.replace(vocab_size=vocab_size)
    depth = PoissonDepth(
        mean_recurrence=mean_recurrence,
        mean_backprop_depth=default_backprop_depth(mean_recurrence),
    )
    trial = Trial(
        preset=name, model=model, depth=depth if looped else None, data=data, optim=OptimConfig(),
        evaluation=EvalConfig(loops=tuple(loops) if looped else (1,), n_sequences=n_sequences),
        n_steps=n_steps, batch_sequences=batch_sequences, context=context, seed=seed, data_seed=0,
        precision="bfloat16" if torch.cuda.is_available() else "float32", budget_flops=budget_flops,
    )  # fmt: skip
    if budget_flops is None:
        return trial
    return replace(trial, n_steps=max(1, int(budget_flops / trial.train_flops("paper"))))


def side_by_side(
    tasks: Sequence[Task], at_once: int, *, deadline: float | None = None
) -> dict[str, int | None]:
    """Run every task, `at_once` at a time, in their order.

    Args:
        deadline: of time.monotonic(); what runs then is ended and nothing further starts.

    Returns:
        trial_id -> exit status; None for those that the deadline met.
    """
    waiting, codes = list(tasks), dict.fromkeys((t.trial.trial_id for t in tasks), None)
    running: dict[str, BaseProcess] = {}
    try:
        while waiting or running:
            if deadline is not None and time.monotonic() > deadline:
                break
            while waiting and len(running) < at_once:
                task = waiting.pop(0)
                running[task.trial.trial_id] = _start(task)
            for trial_id, process in list(running.items()):
                if process.exitcode is not None:
                    codes[trial_id] = running.pop(trial_id).exitcode
            time.sleep(POLL_S)
    finally:
        for process in running.values():
            forked.end(process)
    return codes


def _start(task: Task) -> BaseProcess:
    path = task.write()
    return forked.start("benchmarks.processes", [str(path)], task.run_dir / "log.txt")


def read_times(folder: Path) -> list[tuple[float, int]]:
    """(wall time, updates made) after every step."""
    lines = (folder / TIMES_FILE).read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


def main(argv: Sequence[str]) -> None:
    task = Task.read(Path(argv[0]))
    on_gpu, began = torch.cuda.is_available(), []  # when the first step was made
    if on_gpu and task.share < 1:
        keep_to_share(task.share)
    execution = Execution(
        device="cuda" if on_gpu else "cpu",
        threads=task.threads,
        micro_batch_sequences="auto" if on_gpu else None,
        log_every_steps=1 if task.every_step else None,
        checkpoint_every_s=None,
        cuda_graphs=task.cuda_graphs and on_gpu,
        stop_requested=lambda: (
            task.stop_after_s is not None
            and bool(began)
            and time.monotonic() - began[0] > task.stop_after_s
        ),
    )
    with (task.run_dir / TIMES_FILE).open("w", buffering=1) as times:

        def on_report(line: dict[str, Any]) -> None:
            began.append(time.monotonic())
            times.write(json.dumps([time.time(), line["step"]]) + "\n")

        try:
            result = train(
                task.trial, data_dir=task.data_dir, run_dir=task.run_dir, on_report=on_report,
                execution=execution,
            )  # fmt: skip
        except Interrupted:
            return
    (task.run_dir / "result.json").write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(sys.argv[1:])

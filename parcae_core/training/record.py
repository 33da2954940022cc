"""What one attempt at a trial says of itself: a line of metrics every few steps, and its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from parcae_core.accounting.hardware import peak_flops_per_s
from parcae_core.depth import DepthDraw
from parcae_core.device import autocast, device_name
from parcae_core.kernels.attention import backends_taken
from parcae_core.kernels.dispatch import product_dtype
from parcae_core.model.parcae import Parcae
from parcae_core.result import EvalRow, Execution, Status, TrainResult
from parcae_core.training.distributed import Distributed
from parcae_core.training.gradient import BatchLoss
from parcae_core.training.metrics import Meter, MetricsLog
from parcae_core.trial import Trial

Report = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Progress:
    """How far a run is; what a checkpoint holds beside tensors."""

    micro_batch: int  # sequences per portion on this process, at most
    step: int = 0  # updates made
    loss: float | None = None  # of the last update's batch
    core_sequence_steps: int = 0
    core_sequence_steps_ideal: int = 0
    flops_sampled: float = 0.0
    train_s: float = 0.0
    data_wait_s: float = 0.0
    n_out_of_memory: int = 0
    n_resumed: int = 0
    shared_steps: int = 0  # of `step`: made by the trial whose checkpoint this one began from


class Record:
    """Metrics and result of one attempt; the first process of a group writes and reports.

    Attributes:
        every: steps between two lines.
        metrics: None on the other processes.
    """

    def __init__(
        self,
        trial: Trial,
        execution: Execution,
        path: Path,
        *,
        progress: Progress,
        model: Parcae,
        n_rows: int,
        group: Distributed,
        on_report: Report | None,
        started: float,
    ) -> None:
        """Args:
        path: of metrics.jsonl.
        progress: the run's own, which it goes on counting in.
        n_rows: of the training split.
        started: time.perf_counter() when the attempt began.
        """
        self.trial, self.progress, self.model, self.group = trial, progress, model, group
        self.n_rows, self.on_report, self.started = n_rows, on_report, started
        self.device, self.compiled = model.embedding.weight.device, execution.compile
        self.every = execution.log_every_steps or max(1, trial.n_steps // 200)
        self.meter = Meter()
        peak = execution.peak_flops_per_s
        if peak is None:
            peak = peak_flops_per_s(device_name(self.device), trial.precision)
        self.peak_flops_per_s = None if peak is None else peak * group.n
        self.metrics = None
        if group.is_first:
            self.metrics = MetricsLog(path, keep_until=progress.step, every=self.every)

    def sync(self) -> None:
        """Flush the lines to the disk."""
        if self.metrics is not None:
            self.metrics.sync()

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()

    def log(
        self,
        out: BatchLoss,
        grad_norm: float,
        draw: DepthDraw,
        epoch: int,
        rates: dict[str, float],
        measured: dict[str, float],
    ) -> None:
        """A line for the update that was made last.

        Args:
            rates: learning rates by group.
            measured: validation losses on the way.
        """
        if self.metrics is None:
            return
        progress, trial = self.progress, self.trial
        ideal = progress.core_sequence_steps_ideal
        line: dict[str, Any] = {
            "step": progress.step,
            "n_tokens": progress.step * trial.batch_tokens,
            "train/loss": out.loss,
            "train/grad_norm": grad_norm,
            **measured,
            **{f"optim/{group}_lr": rate for group, rate in rates.items()},
            **{f"flops/{rule}": flops for rule, flops in trial.spent(progress.step).items()},
            "flops/sampled": progress.flops_sampled,
            **self.meter.read(self.peak_flops_per_s),
            "perf/wall_s": progress.train_s,
            "data/epoch": epoch,
        }
        if trial.depth is not None:
            line |= {
                "depth/mean": float(draw.total.mean()),
                "depth/max": int(draw.total.max()),
                "depth/grad_mean": float(draw.grad.mean()),
                "depth/executed_over_ideal": progress.core_sequence_steps / ideal,
                **{f"stability/{name}": value for name, value in out.instruments.items()},
            }
        self.metrics.write(line)
        if self.on_report is not None:
            self.on_report(line)

    def result(
        self, status: Status, *, reason: str | None = None, evaluation: Sequence[EvalRow] = ()
    ) -> TrainResult:
        """What the run did until now."""
        progress, trial = self.progress, self.trial
        n_tokens = progress.step * trial.batch_tokens
        train_s, on_gpu = max(progress.train_s, 1e-9), self.device.type == "cuda"
        with autocast(self.device, trial.precision):
            dtype = product_dtype(self.model.embedding.weight)
        return TrainResult(
            status=status,
            trial_id=trial.trial_id,
            step=progress.step,
            reason=reason,
            evaluation=tuple(evaluation),
            final_train_loss=progress.loss,
            n_tokens=n_tokens,
            train_flops={str(rule): f for rule, f in trial.spent(progress.step).items()},
            train_flops_sampled=progress.flops_sampled,
            core_sequence_steps=progress.core_sequence_steps,
            core_sequence_steps_ideal=progress.core_sequence_steps_ideal,
            data_epochs=progress.step * trial.batch_sequences / self.n_rows,
            train_s=progress.train_s,
            wall_s=time.perf_counter() - self.started,
            tokens_per_s=n_tokens / train_s,
            data_wait_share=progress.data_wait_s / train_s,
            micro_batch_sequences=progress.micro_batch,
            n_out_of_memory=progress.n_out_of_memory,
            n_resumed=progress.n_resumed,
            shared_steps=progress.shared_steps,
            n_processes=self.group.n,
            notes=() if self.metrics is None else self.metrics.notes,
            val_history=self._history(),
            threads=torch.get_num_threads(),
            device=device_name(self.device),
            torch_version=torch.__version__,
            precision=trial.precision,
            peak_gpu_bytes=torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
            compiled=self.compiled,
            kernels=self.model.kernels.ops,
            cross_entropy=self.model.kernels.cross_entropy,
            attention=backends_taken(trial.model, self.device, dtype),
        )

    def _history(self) -> tuple[tuple[int, float], ...]:
        """Validation losses on the way, of all attempts, as the first process has logged them."""
        if self.trial.evaluation.every is None:
            return ()
        logged = () if self.metrics is None else self.metrics.column("val/loss")
        return cast(tuple[tuple[int, float], ...], self.group.from_first(logged))

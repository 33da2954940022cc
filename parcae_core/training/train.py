"""Training of one run: as many updates as planned, resumable, ending in a result.

    train(trial, data_dir=..., run_dir=...) -> TrainResult

Every random number is a function of (seed, step, sequence), so that a run that was killed and goes
on from its checkpoint is the same run: on a CPU with the same number of threads, bit for bit.
It knows nothing of who calls it. Under an initialised torch.distributed group the processes train
together, with equal shares of every batch.
Source: Parcae (arXiv:2604.12946), "Training algorithm".
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from parcae_core.checkpoints.native import (
    keep_checkpoint,
    newest_checkpoint,
    only_writer,
    save_checkpoint,
)
from parcae_core.data.prefetch import Prefetch
from parcae_core.data.reader import RowReader
from parcae_core.depth import DepthDraw
from parcae_core.device import autocast, resolve_device
from parcae_core.errors import OutOfMemory, UserError, is_out_of_memory
from parcae_core.kernels.attention import backend_order
from parcae_core.model.parcae import build_model
from parcae_core.result import EvalRow, Execution, Interrupted, TrainResult
from parcae_core.training.batching import StepFlops, depths_of_step, partition
from parcae_core.training.compile import compile_model
from parcae_core.training.distributed import Distributed
from parcae_core.training.evaluate import evaluate
from parcae_core.training.gradient import BatchLoss, all_reduce_gradient, local_gradient
from parcae_core.training.graphs import Graphs
from parcae_core.training.optim import Optimizer
from parcae_core.training.record import Progress, Record, Report
from parcae_core.trial import Trial

# Root-mean-square entry of the last state past which a run counts as diverged. h_0 starts below 1;
# beyond this the state has left every scale the norms after it can make use of.
STATE_NORM_BOUND = 1e4
# Evaluated together, at least, however small the micro-batch is
EVALUATED_TOKENS = 4_096
# Looked at in steps 0, 10, 20, ... whatever is logged, so that logging decides no run's fate.
STATE_CHECK_EVERY = 10


def train(
    trial: Trial,
    *,
    data_dir: Path,
    run_dir: Path,
    on_report: Report | None = None,
    execution: Execution = Execution(),  # noqa: B008 - frozen
) -> TrainResult:
    """Train one trial to its end, from its last checkpoint if it has one.

    Args:
        data_dir: a folder written by parcae_core.data.prepare, with rows of context + 1 ids.
        run_dir: gets metrics.jsonl and checkpoints/; the last checkpoint holds the final weights.
            branches/ holds those of `execution.keep_steps`.
        on_report: called with every line of the metrics.

    Returns:
        The result: done, with the validation losses, or diverged, with the step and the reason.

    Raises:
        UserError: for data that is not the trial's, a folder in use or of another trial, a full
            disk, a missing device, or memory that does not suffice for one micro-batch.
        Interrupted: when `execution.stop_requested` said so; a checkpoint has been written.
    """
    group = Distributed()
    with ExitStack() as stack:
        if group.is_first:
            stack.enter_context(only_writer(run_dir))
        return _Run(trial, data_dir, run_dir, on_report, execution, group, stack).to_the_end()


class _Run:
    """One attempt at a trial."""

    def __init__(
        self,
        trial: Trial,
        data_dir: Path,
        run_dir: Path,
        on_report: Report | None,
        execution: Execution,
        group: Distributed,
        stack: ExitStack,
    ) -> None:
        started = time.perf_counter()
        self.trial, self.execution, self.group = trial, execution, group
        self.checkpoints, self.branches = run_dir / "checkpoints", run_dir / "branches"
        if execution.threads is not None:
            torch.set_num_threads(execution.threads)
        self.device = resolve_device(execution.device, local_rank=group.local_rank)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where NCCL sends what has no device of its own
            torch.cuda.reset_peak_memory_stats(self.device)
        self.rows = open_rows(data_dir, "train", trial)
        self.validation = open_rows(data_dir, "val", trial)
        if trial.evaluation.n_sequences > self.validation.n_rows:
            raise UserError(
                f"{data_dir}: the validation split has {self.validation.n_rows} rows and "
                f"evaluation.n_sequences is {trial.evaluation.n_sequences}; lower it or use a "
                "larger corpus"
            )
        self.model = build_model(
            trial.model, seed=trial.seed, device=str(self.device), impl=execution.impl
        )
        stack.enter_context(backend_order(self.device))
        self.optimizer = Optimizer(self.model, trial.optim, n_steps=trial.n_steps)
        self.step_flops = StepFlops(trial)
        self.progress = self._restore_or_begin()
        if execution.compile:
            compile_model(self.model)
        if execution.cuda_graphs and self.device.type != "cuda":
            raise UserError(
                f"cuda_graphs=True on {self.device}; CUDA graphs need a CUDA device. Use "
                "device='cuda' or leave cuda_graphs off"
            )
        self.graphs = Graphs(self.model, trial) if execution.cuda_graphs else None
        self.prefetch = Prefetch(
            self.rows,
            trial.batch_sequences,
            last=trial.n_steps,
            pinned=self.device.type == "cuda",
        )
        stack.callback(self.prefetch.close)
        self.record = Record(
            trial,
            execution,
            run_dir / "metrics.jsonl",
            progress=self.progress,
            model=self.model,
            n_rows=self.rows.n_rows,
            group=group,
            on_report=on_report,
            started=started,
        )
        stack.callback(self.record.close)

    def to_the_end(self) -> TrainResult:
        trial, progress, execution = self.trial, self.progress, self.execution
        saved_at, saved_step = time.perf_counter(), progress.step
        while progress.step < trial.n_steps:
            if self._stop_requested():
                if progress.step > saved_step:
                    self._save()
                raise Interrupted(
                    f"stopped after {progress.step} of {trial.n_steps} steps",
                    self.record.result("stopped", reason="stopped on request"),
                )

            began = time.perf_counter()
            step = progress.step
            rows, epoch, wait_s = self.prefetch.get(step)
            draw = depths_of_step(trial, step)
            last = step + 1 == trial.n_steps
            measured = trial.is_measured(step + 1)
            logged = measured or last or step == 0 or (step + 1) % self.record.every == 0
            checked = last or step % STATE_CHECK_EVERY == 0
            out = self._gradient(rows, draw, instruments=logged or checked)
            grad_norm = self._clip()
            problem = _problem(out, grad_norm, check_state=checked)
            if problem is not None:
                return self.record.result("diverged", reason=f"step {step}: {problem}")
            self.optimizer.update(step)
            self.model.zero_grad(set_to_none=True)

            flops = self.step_flops(draw)
            seconds = time.perf_counter() - began
            progress.step += 1
            progress.loss = out.loss
            progress.core_sequence_steps += out.core_sequence_steps
            if trial.depth is not None:
                progress.core_sequence_steps_ideal += int(draw.total.sum())
            progress.flops_sampled += flops
            progress.train_s += seconds
            progress.data_wait_s += wait_s
            self.record.meter.add(tokens=trial.batch_tokens, flops=flops, wait_s=wait_s)
            losses = self._measure() if measured else {}
            if logged:
                rates = self.optimizer.learning_rates(step)
                self.record.log(out, grad_norm, draw, epoch, rates, losses)
            due = execution.checkpoint_every_s is not None and (
                time.perf_counter() - saved_at >= execution.checkpoint_every_s
            )
            every = execution.checkpoint_every_steps
            kept = progress.step in execution.keep_steps
            if last or due or kept or (every is not None and progress.step % every == 0):
                self._save()
                saved_at, saved_step = time.perf_counter(), progress.step
        return self._finish()

    # ---- one step ------------------------------------------------------------------------------

    def _gradient(self, rows: torch.Tensor, draw: DepthDraw, *, instruments: bool) -> BatchLoss:
        """Loss and gradient of a global batch; with micro_batch "auto", in portions that fit."""
        share = partition(draw, self.group.n)[self.group.rank]
        auto = self.execution.micro_batch_sequences == "auto"
        while True:
            failure = None
            try:
                local = local_gradient(
                    self.model,
                    self.trial,
                    rows=rows,
                    draw=draw,
                    share=share,
                    micro_batch=self.progress.micro_batch,
                    step=self.progress.step,
                    instruments=instruments,
                    graphs=self.graphs,
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # its frames hold the activations that did not fit; only the message may outlive it
                failure = str(error)
            if failure is not None and (not auto or self.progress.micro_batch == 1):
                raise OutOfMemory(
                    f"out of memory with micro_batch_sequences={self.progress.micro_batch} on "
                    f"{self.device} ({failure}); "
                    + ("use a smaller model or context" if auto else 'lower it or set it to "auto"')
                )
            # all processes halve together, so that they stay in step
            if not auto or not self.group.any(failure is not None, self.device):
                return all_reduce_gradient(self.model, local, self.group)
            self.model.zero_grad(set_to_none=True)
            if self.graphs is not None:
                self.graphs = Graphs(self.model, self.trial)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.progress.micro_batch = math.ceil(self.progress.micro_batch / 2)
            self.progress.n_out_of_memory += 1

    def _clip(self) -> float:
        """Scale the gradient to the clip norm if it is longer; its norm before that."""
        params = list(self.model.parameters())
        # a missing gradient is a bug of the model's, which the optimiser names
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(params, self.trial.optim.grad_clip, norm)
        return norm.item()

    def _stop_requested(self) -> bool:
        asked = self.execution.stop_requested
        return self.group.any(asked is not None and asked(), self.device)

    # ---- what is left behind -------------------------------------------------------------------

    def _restore_or_begin(self) -> Progress:
        wanted = self.execution.micro_batch_sequences
        share = self.trial.batch_sequences // self.group.n
        whole = share if wanted is None or wanted == "auto" else min(wanted, share)
        found = newest_checkpoint(self.checkpoints, self.trial)
        step = 0 if found is None else found.step
        if self.group.from_first(step) != step:
            raise UserError(
                f"{self.checkpoints}: process {self.group.rank} finds step {step} there and the "
                "first process another; all processes need the same run folder"
            )
        if found is None:
            return Progress(micro_batch=max(1, whole))
        self.model.load_state_dict(found.weights, strict=True)
        self.optimizer.load_state_tensors(found.optimizer, steps_made=step)
        progress = Progress(**found.progress)
        # a size found by "auto" stays found; otherwise this attempt's own setting holds
        progress.micro_batch = min(progress.micro_batch, whole) if wanted == "auto" else whole
        # else it only begins here, or the evaluation alone is left
        progress.n_resumed += progress.shared_steps < step < self.trial.n_steps
        self._keep(found.path, step)  # the attempt before may have died just before it did
        return progress

    def _save(self) -> None:
        if self.group.is_first:
            self.record.sync()
            saved = save_checkpoint(
                self.checkpoints,
                trial=self.trial,
                step=self.progress.step,
                progress=asdict(self.progress),
                weights=self.model.state_dict(),
                optimizer=self.optimizer.state_tensors(),
            )
            self._keep(saved, self.progress.step)

    def _keep(self, checkpoint: Path, step: int) -> None:
        if self.group.is_first and step in self.execution.keep_steps:
            keep_checkpoint(checkpoint, self.branches)

    def _measure(self) -> dict[str, float]:
        """Validation loss on the way; its time and FLOPs count in no rate and are not training's."""
        with self.record.meter.paused():
            [row] = self._evaluate((self.trial.mean_recurrence,))
        return {"val/loss": row.val_loss}

    def _finish(self) -> TrainResult:
        """Evaluate the final weights."""
        rows = self._evaluate(self.trial.evaluation.loops)
        wrong = [row for row in rows if not math.isfinite(row.val_loss)]
        if wrong:
            reason = f"validation loss after {wrong[0].n_loops} loops is {wrong[0].val_loss}"
            return self.record.result("diverged", reason=f"step {self.progress.step}: {reason}")
        return self.record.result("done", evaluation=rows)

    def _evaluate(self, loops: Sequence[int]) -> tuple[EvalRow, ...]:
        wanted = self.trial.evaluation
        # Without gradient a portion may be larger: tiny models spend their time between the products
        portion = max(self.progress.micro_batch, EVALUATED_TOKENS // self.trial.context)
        share = -(-wanted.n_sequences // self.group.n)
        with autocast(self.device, self.trial.precision):
            return evaluate(
                self.model,
                self.validation,
                loops=loops,
                n_sequences=wanted.n_sequences,
                batch_sequences=min(portion, share),
                seed=self.trial.seed,
                group=self.group,
            )


def open_rows(data_dir: Path, split: str, trial: Trial) -> RowReader:
    """The rows of one split, checked against the trial.

    Raises:
        UserError: if the rows have another length than the trial's context plus one.
    """
    reader = RowReader(data_dir, split, data_seed=trial.data_seed)
    if reader.row_tokens != trial.context + 1:
        raise UserError(
            f"{data_dir}: rows have {reader.row_tokens} ids and a context of {trial.context} needs "
            f"{trial.context + 1}; prepare the data for this context"
        )
    return reader


def _problem(out: BatchLoss, grad_norm: float, *, check_state: bool) -> str | None:
    """Why the update must not be made, or None."""
    if not math.isfinite(out.loss):
        return f"the loss is {out.loss}"
    if not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    norm = out.instruments.get("state_norm", 0.0)
    if check_state and not norm <= STATE_NORM_BOUND:
        return f"the state norm is {norm:.3g}, beyond {STATE_NORM_BOUND:.0e}"
    return None

"""How a run is executed and what it leaves. Free of torch, so that the store can check results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from parcae_core.config import check_fields
from parcae_core.plain import build

Status = Literal["done", "diverged", "stopped"]


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written and the next start goes on from it.

    Attributes:
        so_far: what the run did until then, should nobody go on with it.
    """

    def __init__(self, said: str, so_far: TrainResult | None = None) -> None:
        super().__init__(said)
        self.so_far = so_far


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Where and how a trial runs; nothing here changes what is trained, beyond rounding."""

    device: str = "auto"  # "auto": cuda when there is one, else cpu; what ran is in the result
    micro_batch_sequences: int | Literal["auto"] | None = None  # per process; None: whole share
    threads: int | None = None  # of torch's own pool; None: leave it as it is
    impl: Literal["auto", "torch", "triton"] = "auto"  # of the ops; "auto": triton on a GPU
    compile: bool = False  # torch.compile, in static shapes
    cuda_graphs: bool = False  # on CUDA: replay the whole step, compiled or not; unmeasured
    log_every_steps: int | None = None  # None: about 200 lines over the run
    checkpoint_every_s: float | None = 300.0  # None: not by time
    checkpoint_every_steps: int | None = None
    keep_steps: tuple[int, ...] = ()  # after these updates a checkpoint stays, in branches/
    peak_flops_per_s: float | None = None  # of one device; None: its data sheet's, where known
    stop_requested: Callable[[], bool] | None = None  # asked before every step

    def __post_init__(self) -> None:
        micro = self.micro_batch_sequences
        if not (micro is None or micro == "auto" or (isinstance(micro, int) and micro >= 1)):
            raise ValueError(
                f"micro_batch_sequences is {micro!r}; give a number >= 1, auto or none"
            )
        if self.impl not in ("auto", "torch", "triton"):
            raise ValueError(f"impl is {self.impl!r}; it must be auto, torch or triton")
        counts = ("threads", "log_every_steps", "checkpoint_every_steps")
        check_fields(self, counts, lambda v: v >= 1, "be >= 1")
        rates = ("checkpoint_every_s", "peak_flops_per_s")
        check_fields(self, rates, lambda v: v > 0, "be > 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRow:
    """Validation loss read out after `n_loops` steps."""

    n_loops: int
    val_loss: float  # nats per token, every token counted
    val_bpb: float  # bits per byte of text; special tokens count in neither bits nor bytes
    n_tokens: int
    # label of a corpus that has them (the gap a state ends) -> (tokens, nats per token); else None
    by_label: dict[str, tuple[int, float]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What one run did, as plain data.

    `train_flops` is by rule and of the steps made, equal to the plan for a finished run.
    `train_flops_sampled` is the exact rule with the depths that were drawn instead of their
    expectation.
    """

    status: Status
    trial_id: str
    step: int  # updates made
    reason: str | None  # why it diverged, or was stopped early
    evaluation: tuple[EvalRow, ...]  # empty unless done
    final_train_loss: float | None  # nats per token, batch of the last update
    n_tokens: int
    train_flops: dict[str, float]
    train_flops_sampled: float
    core_sequence_steps: int  # loop steps executed, summed over sequences
    core_sequence_steps_ideal: int  # the drawn depths, summed
    data_epochs: float  # sequences trained over rows of the training split; > 1: data repeated
    train_s: float  # inside the training loop: all attempts and shared steps, lost steps left out
    wall_s: float  # of this attempt, evaluation and checkpoints included
    tokens_per_s: float  # over train_s
    data_wait_share: float  # of train_s
    micro_batch_sequences: int  # largest in use at the end
    n_out_of_memory: int  # times the micro-batch was halved
    n_resumed: int
    n_processes: int
    threads: int
    device: str
    torch_version: str
    precision: str
    peak_gpu_bytes: int | None = None  # of this attempt on the first process; None on a CPU
    # what ran, of this attempt; None in results written before this was recorded
    compiled: bool | None = None
    kernels: str | None = None  # of the layers' ops: torch or triton
    cross_entropy: str | None = None  # torch or liger
    attention: str | None = None  # torch's backend: flash, cudnn, efficient, math
    notes: tuple[str, ...] = ()  # what was wrong with the folder that this attempt went on in
    shared_steps: int = 0  # of `step`: made by other trials, whose checkpoint it began from
    # (step, nats per token at mean_recurrence loops), where `evaluation.every` asks for it
    val_history: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if (self.status == "done") != (self.reason is None):
            raise ValueError(
                f"status {self.status} with reason {self.reason!r}: one without the other"
            )
        for row in self.evaluation:
            if not math.isfinite(row.val_loss):
                raise ValueError(f"validation loss after {row.n_loops} loops is {row.val_loss}")

    def loss_at(self, n_loops: int) -> float | None:
        """Validation loss after so many loops; None where it was not evaluated."""
        return next((row.val_loss for row in self.evaluation if row.n_loops == n_loops), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"evaluation": [asdict(row) for row in self.evaluation]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainResult:
        """Inverse of `to_dict`.

        Raises:
            ValueError: for an unknown or missing key, or a value that is not of its type.
        """
        return build(cls, data, "result")

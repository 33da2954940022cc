"""One fully resolved training run: what every later stage reads and nothing later re-derives.

Free of torch. `trial_id` is the hash of what is trained; where it runs, how often it reports and
what budget it was planned for are carried along but are not part of the identity, so that two
specs that mean the same training share one result.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from parcae_core.accounting.cost import TrialCost, flops_by_rule, trial_cost
from parcae_core.accounting.flops import FlopsRule
from parcae_core.config import ModelConfig, check_fields
from parcae_core.depth import (
    MAX_LOOPS,
    CurriculumDepth,
    DepthScheme,
    depth_from_dict,
    depth_to_dict,
)
from parcae_core.plain import build
from parcae_core.training.schedule import constant_steps

# Raise when the same fields come to mean another training (a changed optimiser, initialisation,
# data order): old results then no longer count as this trial's.
TRAINING_REVISION = 1
MAX_RESERVED = 1_000_000  # CPUs, GPUs or processes of a trial; more is a slip of the pen
MAX_STEPS = 100_000_000  # a curriculum's FLOPs are a sum over its steps


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which tokens a trial sees, by content and not by place."""

    corpus: str  # a built-in corpus or a folder; a label, not part of the identity
    fingerprint: str  # sha256 of the source text (see parcae_core.data.corpus)
    tokenizer: str  # "bytes" or "bpe-<vocab_size>"
    vocab_size: int  # ids the tokenizer uses; the model's may be rounded up
    packing: str = "cut"  # what became of documents longer than a row (see parcae_core.data.pack)

    @property
    def content(self) -> str:
        """What two trials have to share to have read the same rows: the text's hash, and its packing."""
        return self.fingerprint if self.packing == "cut" else f"{self.fingerprint}-{self.packing}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Muon for the layers' matrices, AdamW for the rest, clip, schedule.

    Source: Parcae (arXiv:2604.12946), "Training algorithm".
    """

    muon_lr: float = 8e-3
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.2  # cautious, decayed linearly to 0
    # over the whole run, as published, or with the rate in its cool-down, so that runs of several
    # lengths begin alike
    weight_decay_falls: Literal["run", "cooldown"] = "run"
    adamw_lr: float = 8e-3
    adamw_beta1: float = 0.8
    adamw_beta2: float = 0.95
    adamw_eps: float = 1e-10
    grad_clip: float = 1.0
    warmup_steps: int = 0
    cooldown_share: float = 0.5  # of the steps, linear to 0

    def __post_init__(self) -> None:
        positive = ("muon_lr", "adamw_lr", "adamw_eps", "grad_clip")
        check_fields(self, positive, lambda v: v > 0, "be > 0")
        decays = ("muon_momentum", "adamw_beta1", "adamw_beta2")
        check_fields(self, decays, lambda v: 0 <= v < 1, "lie in [0, 1)")
        check_fields(self, ("muon_weight_decay", "warmup_steps"), lambda v: v >= 0, "be >= 0")
        check_fields(self, ("cooldown_share",), lambda v: 0 <= v <= 1, "lie in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Validation loss at the end of training, read out after each of `loops` steps; and on its way."""

    loops: tuple[int, ...]
    n_sequences: int  # the same first rows of the validation split for every trial
    every: int | None = None  # steps between two losses at mean_recurrence loops on the way

    def __post_init__(self) -> None:
        if not self.loops or list(self.loops) != sorted(set(self.loops)) or self.loops[0] < 1:
            raise ValueError(
                f"loops is {list(self.loops)}; give rising numbers of loops, each >= 1"
            )
        if self.loops[-1] > MAX_LOOPS:
            raise ValueError(f"loops has {self.loops[-1]}; at most {MAX_LOOPS} are evaluated")
        check_fields(self, ("n_sequences", "every"), lambda v: v >= 1, "be >= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a trial reserves from the cluster, all its processes together; not part of its identity."""

    cpus: float = 1.0
    gpus: float = 0.0
    processes: int = 1  # that train it together, each with an equal share of every batch
    compile: bool = False  # torch.compile, and CUDA graphs on a GPU; changes rounding only

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus", "processes"):
            if getattr(self, name) > MAX_RESERVED:
                raise ValueError(f"{name}={getattr(self, name):g} must be <= {MAX_RESERVED}")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(f"cpus={self.cpus:g} must be > 0 and gpus={self.gpus:g} >= 0")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus={self.gpus:g}: above 1 only whole GPUs can be placed")
        if self.processes < 1:
            raise ValueError(f"processes={self.processes} must be >= 1")
        if self.gpus and self.processes != max(1, int(self.gpus)):
            raise ValueError(
                f"processes={self.processes} with gpus={self.gpus:g}: each process drives one GPU, so "
                f"leave processes out or set it to {max(1, int(self.gpus))}"
            )
        if not self.gpus and self.processes > 1 and self.cpus < self.processes:
            raise ValueError(
                f"cpus={self.cpus:g} are too few for processes={self.processes}; reserve at least one "
                "CPU core for each"
            )

    @property
    def threads(self) -> int:
        """Of each process."""
        return max(1, int(self.cpus / self.processes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """Where a branch leaves its trunk: the state of another trial after `step` updates.

    Both make the same updates up to there, so a branch ends where a separate run would, bit for bit
    on a CPU; it is no part of a trial's identity.
    """

    trial_id: str
    step: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{12}", self.trial_id):  # it names a folder
            raise ValueError(
                f"parent.trial_id is {self.trial_id!r:.40}; it must be 12 hexadecimal digits"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training run, resolved."""

    preset: str  # label of the model's shape, for tables
    model: ModelConfig
    depth: DepthScheme | None  # None for the fixed-depth Transformer
    data: DataConfig
    optim: OptimConfig
    evaluation: EvalConfig
    n_steps: int
    batch_sequences: int  # global batch
    context: int  # trained tokens per sequence
    seed: int  # initialisation, initial states, depths
    data_seed: int  # order of the rows
    precision: Literal["float32", "bfloat16"] = "float32"
    budget_flops: float | None = None  # what the spec asked for; None when it fixed tokens
    budget_rule: FlopsRule = "paper"
    resources: Resources = Resources()
    parent: Parent | None = None  # whose checkpoint it begins from; None: a run of its own
    # neither given nor compared nor carried over by `replace`: it follows from the fields above
    _cost: TrialCost | None = field(default=None, init=False, repr=False, compare=False)
    _trial_id: str | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = ("n_steps", "batch_sequences", "context")
        check_fields(self, counts, lambda v: v >= 1, "be >= 1")
        if self.n_steps > MAX_STEPS:
            raise ValueError(
                f"n_steps is {self.n_steps:.4g}; at most {MAX_STEPS} steps are made: raise batch_sequences "
                "or lower the budget"
            )
        if self.context > self.model.context:
            raise ValueError(
                f"context={self.context} is longer than the model's {self.model.context}; "
                "raise the model's context or shorten the sequences"
            )
        if self.data.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.data.vocab_size} ids and the model only "
                f"{self.model.vocab_size}; set the model's vocab_size to at least that"
            )
        if self.batch_sequences % self.resources.processes:
            raise ValueError(
                f"batch_sequences={self.batch_sequences} does not divide among "
                f"{self.resources.processes} processes; make it a multiple of that, or change "
                "resources.processes"
            )
        if self.model.is_transformer != (self.depth is None):
            raise ValueError("a Transformer has no depth scheme and a looped model needs one")
        if self.parent is not None and not 0 < self.parent.step <= self.constant_steps:
            raise ValueError(
                f"parent.step is {self.parent.step}; a branch leaves its trunk after 1 to "
                f"{self.constant_steps} of its {self.n_steps} steps, before its cool-down"
            )
        depth = self.depth
        if isinstance(depth, CurriculumDepth) and not (
            depth.ramp_steps <= depth.n_steps == self.n_steps
        ):
            raise ValueError(
                f"the depth curriculum grows over ramp_steps={depth.ramp_steps} of n_steps={depth.n_steps} "
                f"and the trial trains {self.n_steps}; n_steps must be that, and ramp_steps at most that"
            )

    @property
    def mean_recurrence(self) -> int:
        return 1 if self.depth is None else self.depth.mean_recurrence

    @property
    def mean_backprop_depth(self) -> int:
        return 1 if self.depth is None else self.depth.mean_backprop_depth

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.context

    @property
    def n_tokens(self) -> int:
        """Tokens trained on; equal to what a finished run reports as spent."""
        return self.n_steps * self.batch_tokens

    @property
    def constant_steps(self) -> int:
        """Updates before the cool-down."""
        return constant_steps(self.n_steps, self.optim.cooldown_share)

    def is_measured(self, step: int) -> bool:
        """Whether validation loss at mean_recurrence loops belongs to the metrics after `step` updates."""
        every = self.evaluation.every
        return every is not None and (step % every == 0 or step == self.n_steps)

    @property
    def shared_steps(self) -> int:
        """Updates that the plan lets another trial make."""
        return 0 if self.parent is None else self.parent.step

    @property
    def cost(self) -> TrialCost:
        """As trial.json has it; counted at the first call where nothing is stored."""
        cost = self._cost
        if cost is None:
            cost = trial_cost(
                self.model,
                self.depth,
                context=self.context,
                n_tokens=self.n_tokens,
                precision=self.precision,
                on_gpu=self.resources.gpus > 0,
            )
            object.__setattr__(self, "_cost", cost)
        return cost

    def train_flops(self, rule: FlopsRule) -> float:
        """FLOPs of the whole training under a counting rule, as if it were a run of its own."""
        return self.cost.train_flops[rule]

    def spent(self, steps: int) -> dict[FlopsRule, float]:
        """FLOPs by rule of the first `steps` updates; a curriculum's cost less than its later ones."""
        depth = self.depth and self.depth.until(steps)
        if depth != self.depth:
            n_tokens = steps * self.batch_tokens
            return flops_by_rule(self.model, depth, context=self.context, n_tokens=n_tokens)
        return {rule: f * (steps / self.n_steps) for rule, f in self.cost.train_flops.items()}

    def own_flops(self, rule: FlopsRule) -> float:
        """FLOPs of the updates that no other trial makes for it."""
        return self.train_flops(rule) - self.spent(self.shared_steps)[rule]

    def identity(self) -> dict[str, Any]:
        """The canonical form that `trial_id` hashes."""
        full = trial_to_dict(self)
        for label in ("preset", "budget_flops", "budget_rule", "resources", "parent"):
            del full[label]
        if self.optim.weight_decay_falls == "run":  # trials of before it was known keep their ids
            del full["optim"]["weight_decay_falls"]
        if self.evaluation.every is None:
            del full["evaluation"]["every"]
        del full["data"]["corpus"]
        if self.data.packing == "cut":
            del full["data"]["packing"]
        return full | {"training_revision": TRAINING_REVISION}

    def trunk(self) -> dict[str, Any]:
        """What trials have in common that make the same updates until the first of them cools down."""
        of_the_end = {"evaluation"}
        if self.optim.weight_decay_falls == "cooldown":  # else every update depends on the length
            of_the_end.add("n_steps")
        return {k: v for k, v in self.identity().items() if k not in of_the_end}

    @property
    def trial_id(self) -> str:
        """12 hexadecimal digits of sha256 over the canonical JSON of `identity()`."""
        found = self._trial_id
        if found is None:  # a plan asks each of its trials ten times
            text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
            found = hashlib.sha256(text.encode()).hexdigest()[:12]
            object.__setattr__(self, "_trial_id", found)
        return found


def trial_to_dict(trial: Trial) -> dict[str, Any]:
    """Plain data for JSON."""
    plain = {k: v for k, v in asdict(trial).items() if not k.startswith("_")}
    plain["depth"] = None if trial.depth is None else depth_to_dict(trial.depth)
    plain["evaluation"]["loops"] = list(trial.evaluation.loops)
    return plain


def planned_to_dict(trial: Trial) -> dict[str, Any]:
    """What trial.json holds: the trial and its cost."""
    return trial_to_dict(trial) | {"cost": trial.cost.to_dict()}


def trial_from_dict(data: dict[str, Any]) -> Trial:
    """Inverse of `trial_to_dict` and `planned_to_dict`.

    Raises:
        ValueError: for an unknown or missing key, or a value that is not of its type; only the cost
            may be absent.
    """
    plain = {k: v for k, v in data.items() if k not in ("cost", "sha256")}  # of trial.json
    if plain.get("depth") is not None:
        plain["depth"] = depth_from_dict(plain["depth"])
    trial = build(Trial, plain, "trial")
    object.__setattr__(trial, "_cost", TrialCost.from_dict(data.get("cost")))
    return trial

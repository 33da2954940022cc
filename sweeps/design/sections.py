"""The parts that specs of any design are made of: data, depth, evaluation, resources, one trial's keys, windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from parcae_core.config import ModelConfig
from parcae_core.data.corpus import DEFAULT_VAL_SHARE
from parcae_core.data.state_reveals import NAME as STATE_REVEALS
from parcae_core.data.state_reveals import StateReveals
from parcae_core.data.tokenizer import CHARACTERS
from parcae_core.depth import DepthKind, default_backprop_depth
from parcae_core.trial import OptimConfig, Resources
from sweeps.design.validation import Number, Section, Whole, overrides_of

Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Budgets = Annotated[list[Positive], Field(min_length=1)]
Loops = Annotated[list[Count], Field(min_length=1)]

BUDGETS = "a list of FLOPs above 0, such as [1e18, 2e18]"
LOOPS = "a list of whole numbers of loops, each >= 1, such as [1, 2, 4]"
TOKENS = "a number of tokens >= 1, such as 11.2e9"
RATE_AXES = ("optim.lr", "optim.muon_lr", "optim.adamw_lr")
RATE = "a list of learning rates above 0, such as [2e-4, 4e-4]"

if TYPE_CHECKING:  # their fields are made from the dataclasses' when this is imported
    ModelOverrides = Section
    _OptimKeys = Section
else:
    ModelOverrides = overrides_of(ModelConfig, "ModelOverrides")
    _OptimKeys = overrides_of(OptimConfig, "_OptimKeys")


class OptimOverrides(_OptimKeys):
    """Learning rates, clip and schedule; the schedule's own checks live in OptimConfig.

    `lr` is the rate of both optimisers.
    """

    @model_validator(mode="before")
    @classmethod
    def _both_rates(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "lr" not in data:
            return data
        rest = {k: v for k, v in data.items() if k != "lr"}
        if twice := {"muon_lr", "adamw_lr"} & rest.keys():
            raise ValueError(f"lr sets the rate of both optimisers; leave {min(twice)} out.")
        return rest | {"muon_lr": data["lr"], "adamw_lr": data["lr"]}

    _absent: ClassVar[tuple[str, ...]] = ("weight_decay_falls",)


class DataSection(Section):
    corpus: str = Field(
        min_length=1,
        description="a built-in corpus (python-stdlib), the path of a folder of text, or a generated "
        "corpus such as {name: state-reveals, actions: 4, longest_gap: 32}",
    )
    tokenizer: str = Field(
        "bytes",
        description="bytes, bpe-<vocabulary size>, a tokenizer.json or hf:owner/name; a generated corpus has its own characters",
    )
    val_share: Annotated[Number, Field(gt=0, lt=1)] = Field(
        DEFAULT_VAL_SHARE, description="a share of the documents above 0 and below 1"
    )

    @model_validator(mode="before")
    @classmethod
    def _normal(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        corpus = data.get("corpus")
        if isinstance(corpus, dict):
            params = {k: v for k, v in corpus.items() if k != "name"}
            if corpus.get("name") != STATE_REVEALS:
                raise ValueError(
                    f"corpus.name is {corpus.get('name')!r}; the generated corpus is {STATE_REVEALS}."
                )
            corpus = StateReveals.of(params).label
        generated = isinstance(corpus, str) and corpus.startswith(STATE_REVEALS)
        return ({"tokenizer": CHARACTERS} if generated else {}) | data | {"corpus": corpus}

    def place(self, folder: Path) -> str:
        """The corpus as `resolve` takes it: a path starts at the folder of the spec file."""
        inside = folder / self.corpus
        return str(inside) if "://" not in self.corpus and inside.exists() else self.corpus


class DepthSection(Section):
    """How loops are drawn in training; see parcae_core.depth."""

    kind: DepthKind = Field("poisson", description="poisson, fixed or curriculum")
    per: Literal["sequence", "batch"] = Field("sequence", description="sequence or batch")
    split: Literal["truncate", "additive"] = Field("truncate", description="truncate or additive")
    mean_backprop_depth: Literal["ceil(mu/2)", "mu"] | Count = Field(
        "ceil(mu/2)",
        description="'ceil(mu/2)' (the paper's), 'mu' (no truncation) or a number >= 1",
    )
    # Of a curriculum: how long the steps without gradient take to grow from none
    ramp_steps: Count | None = Field(None, description="a number of optimiser steps >= 1")
    ramp_share: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None, description="a share of the optimiser steps above 0, at most 1"
    )
    ramp_shape: Literal["linear", "1-sqrt"] = Field("linear", description="linear or 1-sqrt")

    @model_validator(mode="after")
    def _one_scheme(self) -> DepthSection:
        ramps = [n for n in ("ramp_steps", "ramp_share") if getattr(self, n) is not None]
        if self.kind != "curriculum":
            if ramps or self.ramp_shape != "linear":
                name = (ramps or ["ramp_shape"])[0]
                raise ValueError(f"{name} belongs to kind: curriculum, and kind is {self.kind}.")
            return self
        if len(ramps) != 1:
            raise ValueError(
                f"a curriculum needs one of ramp_steps and ramp_share; {len(ramps)} are given."
            )
        if (self.per, self.split) != ("sequence", "truncate"):
            raise ValueError(
                "a curriculum draws per: sequence with split: truncate; leave both out."
            )
        return self

    def ramp(self, n_steps: int) -> int:
        """Steps of a curriculum's ramp in a training of `n_steps`."""
        if self.ramp_steps is not None:
            return self.ramp_steps
        assert self.ramp_share is not None, "a curriculum has one of the two"
        return max(1, round(self.ramp_share * n_steps))

    def backprop_depth(self, mean_recurrence: int) -> int:
        """mu_bwd, the loop steps with gradient, for a declared mu_rec."""
        if self.mean_backprop_depth == "ceil(mu/2)":
            return default_backprop_depth(mean_recurrence)
        if self.mean_backprop_depth == "mu":
            return mean_recurrence
        return self.mean_backprop_depth


def _share(text: str) -> float:
    """10% as 0.1."""
    share = float(text.rstrip().removesuffix("%")) / 100
    if not 0 < share <= 1:
        raise ValueError("not above 0 % and at most 100 %")
    return share


def _percent(text: str) -> str:
    _share(text)
    return text


def _kind_of_interval(value: Any) -> str:
    return "str" if isinstance(value, str) and value.rstrip().endswith("%") else "int"


# Told apart as `Windows` are
Interval = Annotated[
    Annotated[str, AfterValidator(_percent), Tag("str")] | Annotated[Count, Tag("int")],
    Discriminator(_kind_of_interval),
]


class EvaluationSection(Section):
    loops: Loops = Field(
        default=[], description=LOOPS + "; a trial's own mean_recurrence is always added"
    )
    n_sequences: Count = Field(64, description="a number of validation sequences >= 1")
    every: Interval | None = Field(
        None, description="a share of the steps such as 10%, or a number of steps >= 1"
    )

    def steps(self, n_steps: int) -> int | None:
        """`every` in whole steps of a training of `n_steps`."""
        if isinstance(self.every, str):
            return max(1, round(_share(self.every) * n_steps))
        return self.every

    _absent: ClassVar[tuple[str, ...]] = ("every",)


class ResourcesSection(Section):
    cpus: Positive = Field(1.0, description="CPU cores a trial reserves, above 0")
    gpus: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="GPUs a trial reserves: 0, a fraction such as 0.5, or a whole number"
    )
    share: Literal["measured", "given"] = Field(
        "measured",
        description="measured (the part of a GPU that benchmarks found best for the preset and "
        "device, where they did; else gpus) or given (always gpus)",
    )
    processes: Count | None = Field(
        None,
        description="a number of processes >= 1 that train a trial together (default: one per GPU)",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> ResourcesSection:
        self.resolve()
        return self

    def resolve(self) -> Resources:
        """What every trial reserves."""
        processes = self.processes or max(1, int(self.gpus))
        return Resources(cpus=self.cpus, gpus=self.gpus, processes=processes)


class WandbSection(Section):
    mode: Literal["offline", "online", "disabled"] = Field(
        "offline", description="offline, online or disabled"
    )
    project: str = Field("parcae-scaling", min_length=1, description="a W&B project name")
    entity: str | None = Field(None, min_length=1, description="a W&B user or team")
    _absent: ClassVar[tuple[str, ...]] = ("entity",)


class Variation(Section):
    """What one trial of a `list`, or one axis of a `grid`, may set."""

    data: DataSection | None = Field(None, description="a mapping with corpus and tokenizer")
    context: Count | None = Field(None, description="tokens per sequence >= 1")
    depth: DepthSection | None = Field(None, description="a mapping: kind, per, split, ...")
    mean_recurrence: Count | None = Field(None, description="a whole number of loops >= 1")
    mean_backprop_depth: Count | None = Field(None, description="a whole number of loops >= 1")
    budget_flops: Positive | None = Field(None, description="FLOPs above 0, such as 1e18")
    n_tokens: Count | None = Field(None, description=TOKENS)
    batch_sequences: Count | None = Field(None, description="a number of sequences >= 1")
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None, description="a list of whole numbers >= 0 (default: the spec's)"
    )
    model: ModelOverrides = Field(ModelOverrides(), description="model keys to override")
    optim: OptimOverrides = Field(OptimOverrides(), description="optimiser keys to override")

    _absent: ClassVar[tuple[str, ...]] = ("seeds",)

    @model_validator(mode="after")
    def _one_size(self) -> Variation:
        if self.budget_flops is not None and self.n_tokens is not None:
            raise ValueError("budget_flops and n_tokens both fix the length of training; give one.")
        return self


class PriorSection(Section):
    """Where the best mean_recurrence is expected: mean_recurrence * (C / budget_flops)^exponent."""

    mean_recurrence: Positive = Field(description="loops that are best at budget_flops, above 0")
    budget_flops: Positive = Field(description="FLOPs above 0, such as 1e18")
    exponent: Number = Field(description="a number, such as the paper's 0.40")
    factor: Annotated[Number, Field(gt=1)] = Field(
        2.5, description="a number above 1: the window goes this far below and above"
    )

    def window(self, budget: float) -> list[int]:
        """Numbers of loops to try at a budget, and 1, the fixed-depth Transformer, beside them."""
        best = self.mean_recurrence * (budget / self.budget_flops) ** self.exponent
        inside = [n for n in LADDER if best / self.factor <= n <= best * self.factor]
        return sorted({1, *inside})


# Numbers of loops in steps of 1.3 to 1.5; 2 is left out: with mu_bwd = ceil(mu/2) it carries gradient
# through a single loop, and lies above its neighbours
LADDER = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# Of the paper's models: the fit of `parcae fit bundled:parcae-140m --law recurrence`
PUBLISHED = PriorSection(mean_recurrence=5.96, budget_flops=8e18, exponent=0.396)


def _kind_of_windows(value: Any) -> str:
    tags: dict[type, str] = {dict: "dict[]", list: "list[]"}
    return tags.get(type(value), "literal")


# Told apart by what is written, so that a wrong number is one problem and not one of each kind
Windows = Annotated[
    Annotated[Loops, Tag("list[]")]
    | Annotated[dict[Positive, Loops], Tag("dict[]")]
    | Annotated[Literal["auto"], Tag("literal")],
    Discriminator(_kind_of_windows),
]

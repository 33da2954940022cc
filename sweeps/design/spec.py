"""One YAML file -> a checked, immutable spec. `plan` turns it into trials; nothing else reads it.

Every design names what varies; the rest is common to its trials. The shipped files in
`sweeps/specs/` say in comments what each key does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

from analysis.errors import nearest
from parcae_core.accounting.flops import FlopsRule
from parcae_core.config import ModelConfig
from parcae_core.data.corpus import DEFAULT_VAL_SHARE
from parcae_core.data.state_reveals import NAME as STATE_REVEALS
from parcae_core.data.state_reveals import StateReveals
from parcae_core.data.tokenizer import CHARACTERS
from parcae_core.depth import default_backprop_depth
from parcae_core.errors import UserError
from parcae_core.presets import PRESETS
from parcae_core.trial import OptimConfig, Resources
from sweeps.design.validation import (
    Number,
    Section,
    Whole,
    overrides_of,
    read_mapping,
    read_text,
    sentences,
)

Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Budgets = Annotated[list[Positive], Field(min_length=1)]
Loops = Annotated[list[Count], Field(min_length=1)]

_BUDGETS = "a list of FLOPs above 0, such as [1e18, 2e18]"
_LOOPS = "a list of whole numbers of loops, each >= 1, such as [1, 2, 4]"
_TOKENS = "a number of tokens >= 1, such as 11.2e9"
_RATE_AXES = ("optim.lr", "optim.muon_lr", "optim.adamw_lr")
_RATE = "a list of learning rates above 0, such as [2e-4, 4e-4]"

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

    @model_serializer(mode="wrap")
    def _hashed_as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = dump(self)
        if data.get("weight_decay_falls") is None:  # specs keep the hash of before it was known
            data.pop("weight_decay_falls", None)
        return data


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

    @property
    def says_tokenizer(self) -> bool:
        """Whether the spec names one, so that a prepared folder's may contradict it."""
        return "tokenizer" in self.model_fields_set

    def place(self, where: str) -> str:
        """The corpus as `resolve` takes it: a path starts at the folder of the spec file `where`."""
        inside = Path(where).parent / self.corpus
        return str(inside) if "://" not in self.corpus and inside.exists() else self.corpus


class DepthSection(Section):
    """How loops are drawn in training; see parcae_core.depth."""

    kind: Literal["poisson", "fixed", "curriculum"] = Field(
        "poisson", description="poisson, fixed or curriculum"
    )
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


class EvaluationSection(Section):
    loops: Loops = Field(
        default=[], description=_LOOPS + "; a trial's own mean_recurrence is always added"
    )
    n_sequences: Count = Field(64, description="a number of validation sequences >= 1")


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


class Variation(Section):
    """What one trial of a `list`, or one axis of a `grid`, may set."""

    data: DataSection | None = Field(None, description="a mapping with corpus and tokenizer")
    context: Count | None = Field(None, description="tokens per sequence >= 1")
    depth: DepthSection | None = Field(None, description="a mapping: kind, per, split, ...")
    mean_recurrence: Count | None = Field(None, description="a whole number of loops >= 1")
    mean_backprop_depth: Count | None = Field(None, description="a whole number of loops >= 1")
    budget_flops: Positive | None = Field(None, description="FLOPs above 0, such as 1e18")
    n_tokens: Count | None = Field(None, description=_TOKENS)
    batch_sequences: Count | None = Field(None, description="a number of sequences >= 1")
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None, description="a list of whole numbers >= 0 (default: the spec's)"
    )
    model: ModelOverrides = Field(ModelOverrides(), description="model keys to override")
    optim: OptimOverrides = Field(OptimOverrides(), description="optimiser keys to override")

    @model_validator(mode="after")
    def _one_size(self) -> Variation:
        if self.budget_flops is not None and self.n_tokens is not None:
            raise ValueError("budget_flops and n_tokens both fix the length of training; give one.")
        return self


class _Common(Section):
    """The keys of every design."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        description="a folder name: a letter or digit, then at most 63 of a-z 0-9 . _ -"
    )
    preset: Literal[PRESETS] | None = Field(  # type: ignore[valid-type] # names known at run time
        None, description="one of " + ", ".join(PRESETS)
    )
    model: ModelOverrides = Field(ModelOverrides(), description="model keys to override")
    data: DataSection = Field(description="a mapping with corpus and tokenizer")
    context: Count | None = Field(
        None, description="tokens per sequence >= 1 (default: the model's)"
    )
    batch_sequences: Count = Field(description="sequences per optimiser step, >= 1")
    optim: OptimOverrides = Field(OptimOverrides(), description="optimiser keys to override")
    depth: DepthSection = Field(DepthSection(), description="a mapping: kind, per, split, ...")
    evaluation: EvaluationSection = Field(
        EvaluationSection(), description="a mapping with loops and n_sequences"
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        [0], description="a list of whole numbers >= 0; each repeats every trial"
    )
    data_seed: Seed = Field(0, description="a whole number >= 0")
    min_steps: Count = Field(100, description="a number of optimiser steps >= 1")
    recurrence_one: Literal["transformer", "parcae"] = Field(
        "transformer", description="transformer (as the paper counts) or parcae"
    )
    budget_rule: FlopsRule = Field("paper", description="paper, code or exact")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="float32 or bfloat16")
    compile: bool = Field(
        False,
        description="true or false: torch.compile in static shapes, on a GPU also replayed as graphs",
    )
    resources: ResourcesSection = Field(
        ResourcesSection(), description="a mapping: cpus, gpus, ..."
    )
    wandb: WandbSection = Field(WandbSection(), description="a mapping: mode, project, entity")
    trunks: bool = Field(
        False,
        description="true or false: trials that differ in length alone share their steps at the constant "
        "rate, and the weight decay falls in the cool-down",
    )
    scheduler: Literal["fifo", "asha"] = Field(
        "fifo",
        description="fifo (every trial to its end) or asha (learning rates that look worse end early)",
    )

    @model_validator(mode="after")
    def _compares_rates(self) -> _Common:
        if self.scheduler == "asha" and not self._has_rates():
            raise ValueError(
                "scheduler: asha ends trials that look worse than others with the same model and length "
                "at another learning rate. This design has none to compare, and needs every trial's "
                f"last loss; leave it out, or use it in stability, or in a grid over {_RATE_AXES[0]}."
            )
        return self

    def _has_rates(self) -> bool:
        """Whether trials differ in the learning rate alone."""
        return False

    @model_validator(mode="after")
    def _has_trunks(self) -> _Common:
        if not self.trunks:
            return self
        if self.scheduler == "asha":
            raise ValueError(
                "trunks need trials that reach their cool-down, and scheduler: asha ends some before; leave "
                "one of the two out."
            )
        if self.depth.kind == "curriculum":
            raise ValueError(
                "trunks share steps that do not depend on a run's length, and those of depth.kind: "
                "curriculum do; leave one of the two out."
            )
        if getattr(self.optim, "weight_decay_falls", None) == "run":
            raise ValueError(
                "trunks need optim.weight_decay_falls: cooldown, and it is run; leave it out."
            )
        if getattr(self.optim, "cooldown_share", None) == 1:
            raise ValueError(
                "trunks share the steps before the cool-down, and optim.cooldown_share is 1; lower it, "
                "or leave trunks out."
            )
        return self

    @property
    def sha256(self) -> str:
        """Hash of what the file says, comments, order and spelling of numbers aside."""
        data = self.model_dump(mode="json")
        if (
            data["wandb"]["entity"] is None
        ):  # so that specs keep the hash of before these were known
            del data["wandb"]["entity"]
        if not data["trunks"]:
            del data["trunks"]
        if data["scheduler"] == "fifo":
            del data["scheduler"]
        for variation in (data.get("base"), *(data.get("trials") or ())):
            if variation and variation["seeds"] is None:
                del variation["seeds"]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


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
_PUBLISHED = PriorSection(mean_recurrence=5.96, budget_flops=8e18, exponent=0.396)


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


class IsoflopSpec(_Common):
    """Every budget buys a training at every mean_recurrence; tokens follow from the budget.

    The best mean_recurrence moves with the budget, so a budget may have a window of its own: by a
    mapping, or by `auto`, around the optimum that a prior expects.
    """

    design: Literal["isoflop"] = Field(description="isoflop")
    budgets_flops: Budgets = Field(description=_BUDGETS)
    mean_recurrence: Windows = Field(
        description=_LOOPS + ", a mapping of each budget to such a list, or auto"
    )
    prior: PriorSection | None = Field(
        None, description="with auto: a mapping of mean_recurrence, budget_flops and exponent"
    )

    @model_validator(mode="after")
    def _windows_fit(self) -> IsoflopSpec:
        by_budget, budgets = self.mean_recurrence, set(self.budgets_flops)
        if isinstance(by_budget, dict) and by_budget.keys() != budgets:
            odd = min(by_budget.keys() ^ budgets)
            where = "budgets_flops" if odd in by_budget else "mean_recurrence"
            raise ValueError(
                f"{odd:g} FLOPs are missing from {where}; a mapping needs every budget, and no other."
            )
        if (by_budget == "auto") < (self.prior is not None):
            raise ValueError("prior belongs to mean_recurrence: auto.")
        if by_budget == "auto" and self.prior is None and self.preset not in ("140m", "370m"):
            raise ValueError(
                "mean_recurrence: auto knows the optimum of the presets 140m and 370m alone; add prior "
                "with mean_recurrence, budget_flops and exponent."
            )
        return self

    def window(self, budget: float) -> list[int]:
        """Numbers of loops to train at a budget."""
        if self.mean_recurrence == "auto":
            return (self.prior or _PUBLISHED).window(budget)
        if isinstance(self.mean_recurrence, dict):
            return self.mean_recurrence[budget]
        return self.mean_recurrence


class TestTimeSpec(_Common):
    """Every mean_recurrence trains on the same tokens; read out at many loops."""

    __test__ = False  # not a pytest class
    design: Literal["test_time"] = Field(description="test_time")
    n_tokens: Count = Field(description=_TOKENS)
    mean_recurrence: Loops = Field(description=_LOOPS)


class StabilitySpec(_Common):
    """Learning rates x model variants, to see which diverge."""

    design: Literal["stability"] = Field(description="stability")
    n_tokens: Count = Field(description=_TOKENS)
    mean_recurrence: Count = Field(description="a whole number of loops >= 1")
    learning_rates: Budgets = Field(description=_RATE)
    variants: Annotated[dict[str, ModelOverrides], Field(min_length=1)] = Field(
        description="a mapping of labels to model keys, such as {rdm: {injection: concat}}"
    )

    def _has_rates(self) -> bool:
        return True


class IsoDepthSpec(_Common):
    """Loops x widths at equal unrolled depth: a core of unrolled_core_layers / loops layers.

    Source: Schwethelm et al. (arXiv:2604.21106).
    """

    design: Literal["iso_depth"] = Field(description="iso_depth")
    budgets_flops: Budgets = Field(description=_BUDGETS)
    mean_recurrence: Loops = Field(description=_LOOPS)
    unrolled_core_layers: Count = Field(description="core layers times loops, >= 1")
    widths: Loops = Field(description="a list of widths d_model, such as [256, 512]")
    head_width: Count = Field(64, description="channels per head; divides every width")

    @model_validator(mode="after")
    def _divides(self) -> IsoDepthSpec:
        for loops in self.mean_recurrence:
            if self.unrolled_core_layers % loops:
                raise ValueError(
                    f"mean_recurrence: {loops} does not divide unrolled_core_layers="
                    f"{self.unrolled_core_layers}; equal depth needs a whole number of layers."
                )
        for width in self.widths:
            if width % self.head_width:
                raise ValueError(f"widths: {width} is no multiple of head_width={self.head_width}.")
        return self


class AdaptiveSpec(_Common):
    """Budgets x mean_recurrence are candidates; the next runs follow from the finished ones.

    Each of `seeds` is one replica that a setting may have. See analysis/design/adaptive.py.
    """

    design: Literal["adaptive"] = Field(description="adaptive")
    budgets_flops: Budgets = Field(description=_BUDGETS)
    mean_recurrence: Loops = Field(description="a list of whole numbers of loops, each >= 2")
    total_flops: Positive = Field(description="FLOPs above 0 that the sweep may spend, like 1e19")
    target: str = Field(
        "gamma_mu", description="gamma_mu, gamma_D, mu@C or loss@C, C in FLOPs like mu@1e20"
    )
    half_width: Positive | None = Field(
        None,
        description="a number above 0: half the 95 % interval at which the sweep stops",
    )
    prior: str = Field(
        min_length=1,
        description="paper:140m, paper:370m, parameters like E=2.7,X=5e5,x=0.8,Y=2e4,y=0.5, or records",
    )
    noise: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        None, description="the standard deviation of one run's log loss, like 0.002"
    )

    @model_validator(mode="after")
    def _can_plan(self) -> AdaptiveSpec:
        from analysis.design.optimum import parse_target  # it loads the laws

        parse_target(self.target)
        if self.trunks or self.scheduler != "fifo":
            raise ValueError("an adaptive sweep has no trunks and no scheduler; leave them out.")
        if min(self.mean_recurrence) < 2:
            raise ValueError("mean_recurrence: 1 is no looped model; give values of 2 or more.")
        if len(set(self.budgets_flops)) < 2 or len(set(self.mean_recurrence)) < 3:
            raise ValueError(
                "an adaptive sweep needs at least 2 budgets_flops and 3 values of mean_recurrence."
            )
        cheapest = min(self.budgets_flops)
        if self.total_flops < cheapest:
            raise ValueError(
                f"total_flops: {self.total_flops:g} buys nothing: the cheapest run costs {cheapest:g}."
            )
        return self


class GridSpec(_Common):
    """The Cartesian product of named axes over one base."""

    design: Literal["grid"] = Field(description="grid")
    base: Variation = Field(Variation(), description="a mapping of what all trials share")
    axes: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] = (
        Field(
            description="a mapping of dotted keys to lists, such as {optim.muon_lr: [4e-3, 8e-3]}"
        )
    )

    def _has_rates(self) -> bool:
        return not self.axes.keys().isdisjoint(_RATE_AXES)


class ListSpec(_Common):
    """Exactly the trials written down."""

    design: Literal["list"] = Field(description="list")
    base: Variation = Field(Variation(), description="a mapping of what all trials share")
    trials: Annotated[list[Variation], Field(min_length=1)] = Field(
        description="a list of mappings, one per trial"
    )


SweepSpec = (
    IsoflopSpec | TestTimeSpec | StabilitySpec | IsoDepthSpec | AdaptiveSpec | GridSpec | ListSpec
)
DESIGNS: dict[str, type[SweepSpec]] = {
    "isoflop": IsoflopSpec,
    "test_time": TestTimeSpec,
    "stability": StabilitySpec,
    "iso_depth": IsoDepthSpec,
    "adaptive": AdaptiveSpec,
    "grid": GridSpec,
    "list": ListSpec,
}


def load_spec(path: str | Path, changes: Sequence[str] = ()) -> SweepSpec:
    """Read and check a spec file.

    Args:
        changes: as `--set` gives them, such as "optim.lr=1e-2".

    Raises:
        UserError: with every problem of the file, one per line.
    """
    path = Path(path)
    return parse_spec(read_mapping(path, changes), where=str(path))


def spec_text(path: Path, changes: Sequence[str]) -> str:
    """What a sweep's folder keeps as its spec: the file as it is, or as `--set` changed it."""
    if not changes:
        return read_text(path)
    said = "".join(f" --set {change}" for change in changes).replace("\n", " ")
    return f"# {path}{said}\n" + yaml.safe_dump(read_mapping(path, changes), sort_keys=False)


def parse_spec(data: dict[str, Any], where: str) -> SweepSpec:
    """Check a mapping as a spec; `where` is named in messages.

    Raises:
        UserError: with every problem, one per line.
    """
    design = data.get("design")
    if not isinstance(design, str) or design not in DESIGNS:
        known = ", ".join(DESIGNS)
        if design is None:
            raise UserError(f"{where}: design is missing; give one of {known}.")
        raise UserError(
            f"{where}: design is {design!r}; it must be one of {known}{nearest(str(design), list(DESIGNS))}."
        )
    model = DESIGNS[design]
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(sentences(error, model, where))) from None

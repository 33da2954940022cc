"""`parcae params` and `parcae eval`: what a model holds and costs, and its test-time curve.

The command line imports this module at its start, so the verbs import what they need.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parcae_core.errors import UserError
from sweeps.cli.tables.columns import AsJson
from sweeps.waiting import say

if TYPE_CHECKING:
    from parcae_core.checkpoints.load import TrainedModel
    from parcae_core.config import ModelConfig
    from parcae_core.depth import PoissonDepth

ENDLESS_ROWS = 1_024  # read by default of a generated text, which has no end


def params(
    preset: Annotated[str | None, typer.Argument(help="One preset; all when left out.")] = None,
    mean_recurrence: Annotated[
        list[int] | None,
        typer.Option("--mean-recurrence", "-m", help="mu_rec to count for; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Parameters by component, N(mu) and FLOPs per token of the presets.

    Examples:

        parcae params

        parcae params 140m --mean-recurrence 4 --mean-recurrence 8 --json
    """
    from parcae_core.depth import MAX_LOOPS
    from parcae_core.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise UserError(f"params: unknown preset {preset!r}; the presets are {', '.join(PRESETS)}")
    depths = mean_recurrence or [1, 2, 4, 6, 8, 10, 12]
    if odd := [n for n in depths if not 1 <= n <= MAX_LOOPS]:
        raise UserError(f"params: --mean-recurrence is {odd[0]}; it must be from 1 to {MAX_LOOPS}")
    table = {name: describe(name, depths) for name in ([preset] if preset else PRESETS)}
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    else:
        _print(table)


def describe(preset_name: str, mean_recurrences: list[int]) -> dict[str, Any]:
    """Counts of a preset's Parcae and Transformer, as the JSON of `parcae params` has them."""
    from parcae_core.accounting.flops import FLOPS_RULES, train_flops_per_token
    from parcae_core.accounting.params import count_params
    from parcae_core.config import as_dict
    from parcae_core.depth import PoissonDepth, default_backprop_depth
    from parcae_core.presets import preset

    def flops(model: ModelConfig, depth: PoissonDepth | None) -> dict[str, float]:
        counted = (train_flops_per_token(model, depth, model.context, r) for r in FLOPS_RULES)
        return {rule: count.total for rule, count in zip(FLOPS_RULES, counted, strict=True)}

    out: dict[str, Any] = {}
    for kind in ("parcae", "transformer", "rdm")[: 3 if preset_name.startswith("rdm-") else 2]:
        model = preset(preset_name, **({} if kind == "parcae" else {kind: True}))
        counts = count_params(model)
        out[kind] = {"n_params": counts.total, "components": as_dict(counts)}
        if kind == "transformer":
            out[kind]["train_flops_per_token"] = flops(model, None)
            continue
        out[kind]["by_mean_recurrence"] = {}
        for mu in mean_recurrences:
            depth = PoissonDepth(mean_recurrence=mu, mean_backprop_depth=default_backprop_depth(mu))
            out[kind]["by_mean_recurrence"][str(mu)] = {
                "mean_backprop_depth": depth.mean_backprop_depth,
                "mean_depth": depth.mean(),
                "n_params_unrolled": counts.unrolled(mu),
                "train_flops_per_token": flops(model, depth),
            }
    return out


def _print(table: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, both in table.items():
        parcae = both["parcae"]
        counts = Table(title=f"{name}: parameters")
        counts.add_column("component")
        for kind in both:
            counts.add_column(kind, justify="right")
        for component in parcae["components"]:
            counts.add_row(component, *(f"{b['components'][component]:,}" for b in both.values()))
        counts.add_section()
        counts.add_row("total", *(f"{b['n_params']:,}" for b in both.values()))
        console.print(counts)
        flops = Table(title=f"{name}: N(mu) and training MFLOP per token at the preset's context")
        for column in ("mu_rec", "mu_bwd", "N(mu)", "paper", "code", "exact"):
            flops.add_column(column, justify="right")
        for mu, row in parcae["by_mean_recurrence"].items():
            n_params = f"{row['n_params_unrolled']:,.0f}"
            flops.add_row(mu, str(row["mean_backprop_depth"]), n_params, *_per_rule(row))
        flops.add_section()
        fixed = both["transformer"]
        flops.add_row("transformer", "", f"{fixed['n_params']:,}", *_per_rule(fixed))
        console.print(flops)


def _per_rule(row: dict[str, Any]) -> list[str]:
    """MFLOP per token."""
    return [f"{f / 1e6:,.4g}" for f in row["train_flops_per_token"].values()]


def eval(
    checkpoint: Annotated[
        Path, typer.Argument(help="A published checkpoint, one of ours, or a run's folder.")
    ],
    data: Annotated[Path, typer.Option(help="Prepared data, as `parcae data prepare` writes it.")],
    loops: Annotated[str, typer.Option(help="Numbers of loops: 1-24, or 1,2,4,8.")] = "1-24",
    n_sequences: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Validation rows to use; all of a text, {ENDLESS_ROWS} of a generated one."
        ),
    ] = None,
    batch_sequences: Annotated[int, typer.Option(min=1)] = 16,
    as_json: AsJson = False,
) -> None:
    """Validation loss of a model at every number of loops, in one pass.

    Examples:

        parcae eval runs/demo/4f19d16908e5 --data runs/_data/<id> --loops 1-12

        parcae eval parcae-140m/ --data data/fineweb --loops 1,2,4,8,16 --json
    """
    from parcae_core.data.reader import RowReader
    from parcae_core.training.evaluate import evaluate

    wanted = parse_loops(loops)
    trained = open_model(checkpoint)
    model = trained.model
    reader = RowReader(data, "val", data_seed=0)
    context, vocab_size = reader.row_tokens - 1, len(reader.token_bytes)
    if context > model.config.context or vocab_size > model.config.vocab_size:
        raise UserError(
            f"eval: {data} has rows of {context} tokens out of {vocab_size} ids; the model takes "
            f"{model.config.context} tokens out of {model.config.vocab_size}. Prepare the data "
            "with the model's tokenizer and context"
        )
    if n_sequences is not None and n_sequences > reader.n_rows:
        raise UserError(
            f"eval: --n-sequences is {n_sequences}; {data} has {reader.n_rows} validation rows"
        )
    if n_sequences is None:
        n_sequences = reader.n_rows
        if reader.generator is not None and n_sequences > ENDLESS_ROWS:
            n_sequences = ENDLESS_ROWS
            say(f"{data}: generated text; {n_sequences} rows are read, more with --n-sequences")
    if model.config.is_transformer and wanted != [1]:
        raise UserError(f"eval: {checkpoint} is a fixed-depth Transformer; pass --loops 1")
    say(f"{trained.origin}, trained at mean_recurrence {trained.mean_recurrence}")
    rows = evaluate(
        model,
        reader,
        loops=wanted,
        n_sequences=n_sequences,
        batch_sequences=batch_sequences,
        seed=trained.seed,
    )
    if odd := [row.n_loops for row in rows if not math.isfinite(row.val_loss + row.val_bpb)]:
        raise UserError(
            f"eval: {checkpoint} has no finite loss on {data} at {', '.join(map(str, odd[:5]))} loops; "
            "its weights make the states overflow, or the data has no bytes to count"
        )
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    typer.echo(f"{'loops':>5}  {'nats/token':>10}  {'bits/byte':>9}")
    for row in rows:
        mark = "  <- training depth" if row.n_loops == trained.mean_recurrence else ""
        typer.echo(f"{row.n_loops:>5}  {row.val_loss:>10.4f}  {row.val_bpb:>9.4f}{mark}")


def parse_loops(text: str) -> list[int]:
    """Numbers of loops from "1-24" or "1,2,4-6".

    Raises:
        UserError: anything else, or a number below 1 or above MAX_LOOPS.
    """
    from parcae_core.depth import MAX_LOOPS

    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if match is None:
            raise UserError(f"--loops {text!r}: {part!r} is not a number or a range like 1-24")
        low, high = int(match[1]), int(match[2] or match[1])
        if not 1 <= low <= high <= MAX_LOOPS:
            raise UserError(
                f"--loops {text!r}: {part!r} must rise, start at 1 or more and end at {MAX_LOOPS} or less"
            )
        found.update(range(low, high + 1))
    return sorted(found)


def open_model(path: Path) -> TrainedModel:
    """The model in a folder; of a run whose result was taken from another sweep, that sweep's."""
    from parcae_core.checkpoints.load import load_model
    from sweeps.reports import StateReport
    from sweeps.storage.files import TrialFiles, require_plain_name

    files = TrialFiles(path)
    report = None if files.checkpoints.exists() else StateReport.read(files.state)
    if report is not None and report.reused_from:
        sweep = require_plain_name(report.reused_from, str(files.state))
        path = path.resolve().parents[1] / sweep / path.resolve().name
    return load_model(path)

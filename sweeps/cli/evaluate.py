"""`parcae eval`: the test-time curve of a trained model. Light to import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="eval")(evaluate_model)


def evaluate_model(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A published checkpoint, one of ours, or a run's folder."),
    ],
    data: Annotated[
        Path, typer.Option("--data", help="Prepared data, as `parcae data prepare` writes it.")
    ],
    loops: Annotated[
        str, typer.Option("--loops", help="Numbers of loops: 1-24, or 1,2,4,8.")
    ] = "1-24",
    n_sequences: Annotated[
        int | None,
        typer.Option("--n-sequences", min=1, help="Validation rows to use; all by default."),
    ] = None,
    batch_sequences: Annotated[int, typer.Option("--batch-sequences", min=1)] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Validation loss of a model at every number of loops, in one pass.

    Examples:

        parcae eval runs/demo/4f19d16908e5 --data runs/_data/<id> --loops 1-12

        parcae eval parcae-140m/ --data data/fineweb --loops 1,2,4,8,16 --json
    """
    from dataclasses import asdict

    from parcae_core.checkpoints.load import load_model
    from parcae_core.data.reader import RowReader
    from parcae_core.errors import UserError
    from parcae_core.training.evaluate import evaluate

    wanted = parse_loops(loops)
    trained = load_model(checkpoint)
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
    if model.config.is_transformer and wanted != [1]:
        raise UserError(f"eval: {checkpoint} is a fixed-depth Transformer; pass --loops 1")
    typer.echo(f"{trained.origin}, trained at mean_recurrence {trained.mean_recurrence}", err=True)
    rows = evaluate(
        model,
        reader,
        loops=wanted,
        n_sequences=n_sequences or reader.n_rows,
        batch_sequences=batch_sequences,
        seed=trained.seed,
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
        UserError: anything else, or a number below 1.
    """
    from parcae_core.errors import UserError

    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--loops {text!r}: {part!r} is not a number or a range like 1-24")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high:
            raise UserError(f"--loops {text!r}: {part!r} must rise and start at 1 or more")
        found.update(range(low, high + 1))
    return sorted(found)

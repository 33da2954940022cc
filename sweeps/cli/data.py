"""`parcae data prepare` and `parcae data inspect`. Light to import."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.cli.tables.columns import AsJson

if TYPE_CHECKING:
    from parcae_core.data.manifest import Manifest


data = typer.Typer(
    help="Prepare a corpus once, and look at what was prepared.", no_args_is_help=True
)


@data.command(name="prepare")
def prepare_corpus(
    corpus: Annotated[
        str,
        typer.Argument(
            help="python-stdlib, python-env, state-reveals, a folder or file of text, .jsonl or "
            ".parquet, or a URL such as s3://bucket/folder or hf://datasets/owner/name."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of prepared folders.")] = Path("data"),
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="bytes (default), bpe-<vocab_size>, a tokenizer.json, or hf:owner/name of the hub; "
            "a generated corpus has its own characters."
        ),
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, help="Trained tokens per row; a row has one more.")
    ] = 128,
    text_column: Annotated[
        str, typer.Option(help="Field with the text, in JSONL and Parquet.")
    ] = "text",
    val_share: Annotated[
        float | None, typer.Option(help="Share of the documents held out; 1/12 by default.")
    ] = None,
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="Read what links lead to outside the corpus folder."),
    ] = False,
    long_documents: Annotated[
        str, typer.Option(help="cut them into rows, or crop what exceeds one row, as published.")
    ] = "cut",
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=1_024, help="Threads; all cores by default. Changes no byte."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tokenise and pack a corpus; prints the folder to name in a spec.

    Can be repeated: a finished folder is found again, and an interrupted preparation of a large
    or remote corpus goes on where it stopped.

    Examples:

        parcae data prepare my_texts/ --tokenizer bpe-4096 --context 512

        parcae data prepare s3://bucket/fineweb-edu/ --tokenizer bpe-32768 --context 2048 --val-share 0.001
    """
    from parcae_core.data.corpus import DEFAULT_VAL_SHARE
    from parcae_core.data.manifest import read_manifest
    from parcae_core.data.prepare import prepare
    from parcae_core.data.sources import resolve
    from parcae_core.data.tokenizer import CHARACTERS
    from parcae_core.errors import UserError

    if long_documents not in ("cut", "crop"):
        raise UserError(f"--long-documents is {long_documents!r}; needed 'cut' or 'crop'")
    share = DEFAULT_VAL_SHARE if val_share is None else val_share
    source = resolve(corpus, text_column=text_column, val_share=share, follow_links=follow_links)
    with _progress() as report:
        path = prepare(
            source,
            tokenizer or ("bytes" if source.alphabet is None else CHARACTERS),
            context + 1,
            out,
            long_documents=long_documents,
            workers=workers,
            progress=report,
        )
    _show(path, read_manifest(path), as_json)


@data.command(name="inspect")
def inspect_prepared(
    folder: Annotated[Path, typer.Argument(help="A folder written by `parcae data prepare`.")],
    n_rows: Annotated[
        int, typer.Option("--rows", min=0, max=10_000, help="Decoded rows to show.")
    ] = 3,
    split: Annotated[str, typer.Option(help="train or val.")] = "train",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file with its hash; reads it all.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Counts of a prepared folder, and a few of its rows as text."""
    from parcae_core.data.bpe import load_prepared_tokenizer
    from parcae_core.data.manifest import check_hashes
    from parcae_core.data.reader import RowReader
    from parcae_core.errors import UserError

    reader = RowReader(folder, split, data_seed=0)
    if verify:
        check_hashes(folder, reader.manifest)
    tokenizer = load_prepared_tokenizer(folder)
    if tokenizer.vocab_size != reader.manifest.tokenizer.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer.json has {tokenizer.vocab_size} ids and its manifest "
            f"{reader.manifest.tokenizer.vocab_size}; prepare the corpus again"
        )
    n_rows = min(n_rows, reader.n_rows)
    rows = reader.rows(0, n_rows) if n_rows else []
    decoded = [_decode(row, tokenizer) for row in rows]
    _show(folder, reader.manifest, as_json, {"split": split, "rows": decoded})


def _decode(row: Any, tokenizer: Any) -> str:
    """A row as text, each piece led by <|bos|>; a character cut in two shows as U+FFFD."""
    import numpy as np

    starts = np.flatnonzero(row == tokenizer.bos_id)
    pieces = np.split(row, starts)[1:]
    return "".join(
        "<|bos|>" + tokenizer.decode_bytes(p[1:]).decode("utf-8", "replace") for p in pieces
    )


def _show(
    path: Path, manifest: Manifest, as_json: bool, sample: dict[str, Any] | None = None
) -> None:
    if as_json:
        shown = {"path": str(path), "manifest": json.loads(manifest.to_json())}
        typer.echo(json.dumps(shown | ({"sample": sample} if sample else {})))
        return
    source = manifest.source
    typer.echo(path)
    typer.echo(f"  corpus     {source.name}, fingerprint {source.fingerprint}")
    tokenizer = manifest.tokenizer
    typer.echo(f"  tokenizer  {tokenizer.name}, {tokenizer.vocab_size:,} ids")
    typer.echo(f"  rows       {manifest.row_tokens} ids each, {manifest.dtype}")
    if (known := manifest.generated) is not None:
        typer.echo("  generated  rows without end, drawn while they are read")
        typer.echo(f"  floor      {known.floor:.4f} nats per token")
        reaches = sorted(known.loss_by_reach.items(), key=lambda pair: int(pair[0]))
        reach = ", ".join(f"{r}: {nats:.4f}" for r, nats in reaches)
        typer.echo(f"  by reach   {reach}")
    for name, s in manifest.splits.items() if known is None else ():
        typer.echo(
            f"  {name:<9}  {s.documents:,} documents, {s.text_bytes:,} bytes, {s.tokens:,} tokens, "
            f"{s.rows:,} rows, {s.cropped_share:.2%} cropped"
        )
    if source.skipped:
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in source.skipped.items())
        typer.echo(f"  left out   {left_out}")
    for number, text in enumerate(sample["rows"] if sample else []):
        typer.echo(f"\n{sample['split']} row {number}\n{text}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A line on stderr: stage, megabytes of text done, rate."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None, amount="")

        def report(stage: str, done: int, on_disk: int | None) -> None:
            amount = f"{done / 1e6:,.0f} MB of text" if done else ""
            if done and on_disk:
                amount += f" ({on_disk / 1e6:,.0f} MB on disk)"
            bar.update(task, description=stage, amount=amount)

        yield report

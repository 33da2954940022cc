"""`parcae sample`, `parcae export`, `parcae score`: read a trained model, hand it on, test it.

The command line imports this module at its start, so the verbs import what they need.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parcae_core.errors import UserError
from sweeps.cli.model import open_model, parse_loops
from sweeps.cli.tables.columns import AsJson
from sweeps.waiting import say, visible

if TYPE_CHECKING:
    from parcae_core.checkpoints.load import TrainedModel
    from parcae_core.generate import Sample
    from sweeps.scoring.scores import Score, Scores

Model = Annotated[
    Path, typer.Argument(help="A run's folder, one of its checkpoints, or a published checkpoint.")
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        help="A tokenizer.json, a prepared folder or hf:owner/name; by default what lies beside the run.",
    ),
]


def sample(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The beginning of a text.")],
    loops: Annotated[
        str | None, typer.Option(help="Numbers of loops, like 1,4,16; by default 1, mu and 2 mu.")
    ] = None,
    n_tokens: Annotated[int, typer.Option("--tokens", help="Most tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(help="Draw among the tokens that hold this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws; all columns share them.")] = 0,
    stop_below: Annotated[
        float | None,
        typer.Option(help="Leave a token's loop once its state changes by less, like 0.05."),
    ] = None,
    tokenizer: TokenizerOption = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text at several numbers of loops, side by side.

    Below the texts stands how much a token's state still changes in each loop, and with --stop-below
    how many loop steps were left out.

    Examples:

        parcae sample runs/demo/4f19d16908e5 "AcC" --loops 1,4,16

        parcae sample parcae-140m/ "The sea" --tokenizer tokenizer.json --loops 8 --stop-below 0.05
    """
    from parcae_core.checkpoints.text import load_tokenizer
    from parcae_core.generate import Sampling
    from parcae_core.generate import sample as continued

    sampling = Sampling(
        n_tokens=n_tokens, temperature=temperature, top_p=top_p, seed=seed, stop_below=stop_below
    )
    wanted = None if loops is None else parse_loops(loops)
    trained = open_model(model)
    columns = continued(
        trained.model,
        load_tokenizer(model, trained, tokenizer),
        prompt,
        loops=wanted or default_loops(trained),
        sampling=sampling,
        state_seed=trained.seed,
    )
    say(f"{trained.origin}, trained at mean_recurrence {trained.mean_recurrence}")
    if as_json:
        rows = [asdict(c) | {"saved": c.saved} for c in columns]
        typer.echo(json.dumps({"prompt": prompt, "columns": rows}, indent=2))
        return
    _print_samples(prompt, columns, sampling.stop_below)


def export(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="A new folder to write.")],
    form: Annotated[
        Literal["transformers", "parcae"],
        typer.Option(
            "--format", help="transformers, or parcae: the published implementation's checkpoint."
        ),
    ] = "transformers",
    loops: Annotated[
        int | None,
        typer.Option(help="num_loops of the generation config; by default those of training."),
    ] = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Write a model for transformers, or in the published format.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True), and AutoTokenizer likewise, load
    the folder; `model.generate(ids, num_loops=4)` runs it at another number of loops. To write it, neither
    transformers nor a network is needed.

    Examples:

        parcae export runs/demo/4f19d16908e5 my-model/

        parcae export runs/demo/4f19d16908e5 published/ --format parcae
    """
    from parcae_core.checkpoints.export import export_published, export_transformers
    from parcae_core.checkpoints.text import load_tokenizer

    if form == "parcae" and loops is not None:
        raise UserError("export: --loops goes with --format transformers; the other names none")
    trained = open_model(model)
    found = load_tokenizer(model, trained, tokenizer)
    if form == "parcae":
        export_published(trained, found, folder)
    else:
        n_loops = trained.mean_recurrence if loops is None else loops
        export_transformers(trained, found, folder, n_loops=n_loops)
    typer.echo(folder)


def score(
    models: Annotated[
        list[Path], typer.Argument(help="Runs' folders, checkpoints, or published checkpoints.")
    ],
    tasks: Annotated[
        str, typer.Option(help="Names, or YAML files, of the harness's tasks, with commas.")
    ],
    loops: Annotated[
        str | None, typer.Option(help="Numbers of loops; by default those of the run's evaluation.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(help="A folder with task files of your own.")
    ] = None,
    n_shot: Annotated[
        int | None,
        typer.Option(
            "--shots", min=0, help="Examples in each prompt; by default as the task says."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first documents of each task.")
    ] = None,
    tokenizer: TokenizerOption = None,
    as_json: AsJson = False,
) -> None:
    """Score models on tasks of lm-evaluation-harness at several numbers of loops.

    Log-likelihoods at all numbers of loops come from one pass. A run's scores are kept in its folder;
    `parcae collect` makes columns of the records of them, for compare and fit.

    Examples:

        parcae score runs/mine/* --tasks arc_easy,hellaswag

        parcae score runs/mine/4f19d16908e5 --tasks my_task.yaml --loops 1,4,16
    """
    from parcae_core.checkpoints.text import load_tokenizer
    from sweeps.scoring.harness import score as scored

    wanted = None if loops is None else parse_loops(loops)
    names = [t.strip() for t in tasks.split(",") if t.strip()]
    if not names:
        raise UserError("score: --tasks is empty; name at least one task")
    found = {}
    for path in models:
        trained = open_model(path)
        if wanted and trained.model.config.is_transformer and wanted != [1]:
            raise UserError(f"score: {path} is a fixed-depth Transformer; pass --loops 1")
        say(f"{path}: {trained.origin}")
        scores, notes = scored(
            trained,
            load_tokenizer(path, trained, tokenizer),
            names,
            loops=wanted
            or (trained.trial.evaluation.loops if trained.trial else default_loops(trained)),
            include=include,
            n_shot=n_shot,
            limit=limit,
        )
        for note in (*notes, *_keep(path, trained, scores)):
            say(f"  {note}")
        found[str(path)] = scores
    if as_json:
        typer.echo(json.dumps({p: asdict(s) for p, s in found.items()}, indent=2))
        return
    for name, scores in found.items():
        _print_scores(name, scores)


def _keep(path: Path, trained: TrainedModel, scores: Scores) -> list[str]:
    """Write a run's scores into its folder; what is to be said of it."""
    from sweeps.scoring.scores import Scores
    from sweeps.storage.files import TrialFiles

    if trained.trial is None or not TrialFiles(path).trial.is_file():
        return []
    before = Scores.read(path)
    (before.merged(scores) if before else scores).write(path)
    known = trained.trial.evaluation.loops
    lost = [t for t in map(int, scores.by_loops) if t not in known]
    if not lost:
        return []
    return [
        f"the run was not evaluated at {', '.join(map(str, lost))} loops, so the records have no row for "
        "these scores"
    ]


def _print_scores(name: str, scores: Scores) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for head in ("task", "metric"):
        table.add_column(head, overflow="fold")
    for loops in scores.by_loops:
        table.add_column(_loops(int(loops)), justify="right")
    found = [{(s.task, s.metric): s for s in rows} for rows in scores.by_loops.values()]
    for name in dict.fromkeys(key for column in found for key in column):
        table.add_row(*name, *(_score(column.get(name)) for column in found))
    Console().print(table)


def _score(score: Score | None) -> str:
    """With its standard error; empty where it was no number."""
    if score is None:
        return ""
    return f"{score.value:.4g}" + ("" if score.stderr is None else f" ±{score.stderr:.2g}")


def default_loops(trained: TrainedModel) -> list[int]:
    mu = trained.mean_recurrence
    return [1] if trained.model.config.is_transformer else sorted({1, mu, 2 * mu})


def _print_samples(prompt: str, columns: list[Sample], stop_below: float | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    texts = Table(show_lines=True)
    for c in columns:
        texts.add_column(_loops(c.n_loops), overflow="fold", ratio=1)
    texts.add_row(*(Text(visible(prompt), style="dim") + Text(visible(c.text)) for c in columns))
    console = Console()
    console.print(texts)
    deepest = columns[-1]
    if deepest.changes:
        console.print("change of the newest token's state, ||h_t - h_(t-1)|| / ||h_t||:")
        steps = [f"{t:>4}: {change:<6.2g}" for t, change in enumerate(deepest.changes, 1)]
        for i in range(0, len(steps), 6):
            console.print("".join(steps[i : i + 6]).rstrip(), highlight=False)
    if stop_below is not None:
        for c in columns:
            used = sum(c.loops_used) / len(c.loops_used)
            console.print(
                f"{_loops(c.n_loops)}: {used:.1f} used per token; stopping below {stop_below:g} saved "
                f"{c.saved:.0%}",
                highlight=False,
            )


def _loops(n: int) -> str:
    return f"{n} loop{'s' * (n > 1)}"

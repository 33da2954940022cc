"""The options that the verbs of laws and figures share, so that each means the same everywhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

Source = Annotated[
    str,
    typer.Argument(
        help="A sweep's name, folder or URL, also while it runs; a .csv, .tsv, .jsonl, .parquet or .xlsx file; - for a pipe; "
        'a pattern in quotes, "runs/*.csv"; a folder of tables, Trainer states or TensorBoard events; '
        "wandb:ENTITY/PROJECT; bundled:parcae-140m."
    ),
]
MaybeLaw = Annotated[
    str | None,
    typer.Option(
        help="recurrence, isoflop, test-time, training, chinchilla, ..., or a formula like "
        '"E + A*N**-alpha + B*D**-beta"; without it, the law that the table looks like.'
    ),
]
Laws = Annotated[
    list[str] | None,
    typer.Option(
        "--law", help="As for fit, also several; without it, every law that the columns allow."
    ),
]


def _reading(
    columns: Annotated[
        str | None,
        typer.Option(
            help='Which column is which, like N="Model Size",C="Training FLOP",loss=loss; without it, columns '
            "with common names are recognised."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help='Keep rows that meet it, like "mu>1" or "State=finished"; the file\'s own columns too.'
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Of the file's losses: nats, bits, ppl, or bpb=BYTES with bytes per token."
        ),
    ] = None,
    drop_highest: Annotated[
        int, typer.Option(help="Leave out rows with loss at or above the K-th highest.")
    ] = 0,
) -> None:
    """The options that mean the same in every verb that reads a table."""


def _fitting(
    fix: Annotated[str | None, typer.Option(help="Hold parameters, like E=1.7,gamma=1.")] = None,
    tie: Annotated[
        str | None, typer.Option(help="Parameters that take one value, like alpha=beta.")
    ] = None,
    bound: Annotated[
        str | None, typer.Option(help="Ranges of parameters, like alpha=0:3,E=1:.")
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="The axis of --law isoflop: N, D, mu or a column.")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="huber or log-lsq on log loss, or lsq on loss.")
    ] = "huber",
    delta: Annotated[float, typer.Option(help="Huber's threshold on log-loss residuals.")] = 1e-3,
    undertuned: Annotated[
        float,
        typer.Option(help="Weight of rows that the law lies above, like 10: no run beats it."),
    ] = 1.0,
    starts: Annotated[int, typer.Option(help="Random starts of the search.")] = 16,
    interval: Annotated[
        str | None, typer.Option(help="bootstrap, block, profile, linear or none.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of a bootstrap.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Of every interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of starts and resamples.")] = 0,
) -> None:
    """The options that mean the same in every verb that fits."""


_NAMED = {"starts": "n_starts", "resamples": "n_resamples"}  # as `FitOptions` calls them


def _with(*groups: Callable) -> Callable[[Callable], Callable]:
    """Give a verb the options of `groups`; it takes them as one `Choices`, its last argument.

    An option that the verb has of its own under the same name stays the verb's.
    """
    wanted = [p for g in groups for p in inspect.signature(g, eval_str=True).parameters.values()]

    def decorate(verb: Callable) -> Callable:
        signature = inspect.signature(verb, eval_str=True, locals={"Choices": object})
        own = list(signature.parameters.values())[:-1]
        taken = {p.name for p in own}
        shared = [p for p in wanted if p.name not in taken]

        @functools.wraps(verb)
        def run(**given: Any) -> Any:
            from analysis.choices import Choices

            rest = {_NAMED.get(p.name, p.name): given.pop(p.name) for p in shared}
            rest["where"] = tuple(rest["where"] or ())
            return verb(**given, choices=Choices.of(**rest))

        ordered = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *shared)]
        ordered.sort(key=lambda p: p.default is not p.empty)
        run.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]  # functions have none by their type
        run.__annotations__ = {p.name: p.annotation for p in ordered}  # what typer reads
        return run

    return decorate


reads, fits = _with(_reading), _with(_reading, _fitting)

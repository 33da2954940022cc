"""The command `parcae`: one verb per task, each in its own room and imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Annotated

import typer

from analysis.errors import InputError
from parcae_core.errors import UserError
from sweeps.tracking import reader
from sweeps.waiting import say, waiting

# What each extra brings; a missing one is named with the way to get it
_EXTRAS = {
    "filelock": "train",
    "torch": "train",
    "safetensors": "train",
    "tokenizers": "train",
    "rustbpe": "train",
    "tiktoken": "train",
    "s3fs": "s3",
    "huggingface_hub": "hf",
    "transformers": "hf",
    "lm_eval": "lm-eval",
    "ray": "sweep",
    "wandb": "sweep",
    "triton": "kernels",
}

_ROOMS = (
    "sweeps.cli.write",
    "sweeps.cli.sweep",
    "sweeps.cli.jobs",
    "sweeps.cli.cluster",
    "sweeps.cli.laws",
    "sweeps.cli.design",
    "sweeps.cli.data",
    "sweeps.cli.model",
    "sweeps.cli.trained",
    "sweeps.cli.demo",
)


@cache
def command() -> Callable[[], object]:
    """What `parcae` runs; made once, since its many options take a while."""
    return typer.main.get_command(build_app())


# They print lines or bars while they work
_SHOW_THEMSELVES = ("run", "demo", "data", "submit", "logs")


def build_app() -> typer.Typer:
    """The command with every room's verbs; the modules that hold them are cheap to import."""
    app = typer.Typer(
        name="parcae",
        help="Plan and run compute-budget sweeps of looped language models, and fit their scaling "
        "laws.\n\nA first look: parcae demo. Then: parcae plan SPEC, parcae run SPEC, parcae fit, "
        "parcae report.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    reader.register()  # analysis does not know this room
    for name in _ROOMS:
        importlib.import_module(name).register(app)
    return app


def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    verb = context.invoked_subcommand
    if verb not in _SHOW_THEMSELVES:
        context.with_resource(waiting(f"parcae {verb}"))


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"parcae-scaling {version('parcae-scaling')}")
        raise typer.Exit


def main() -> None:
    """Entry point: runs a verb; a user's mistake is one message on stderr and exit code 2.

    What the system refuses (a full disk, a missing permission) is one message and exit code 1.
    """
    try:
        _run()
    except OSError as error:
        _give_up_stdout()
        place = f"{error.filename}: " if error.filename else ""
        say(
            f"parcae: {place}{error.strerror or error or type(error).__name__}; the command did not "
            "finish. See to it and run it again: what was written before is whole"
        )
        sys.exit(1)
    except (UserError, InputError) as error:
        for line in str(error).splitlines():
            say(f"parcae: {line}")
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        say(
            f"parcae: this needs {package}, which is not installed: "
            f"pip install 'parcae-scaling[{_EXTRAS[package]}]'"
        )
        sys.exit(2)


def _run() -> None:
    try:
        command()()
    except SystemExit:
        sys.stdout.flush()  # a full disk shows here, while there is still a message to be given
        raise


def _give_up_stdout() -> None:
    """Else Python tries to write what is left once more, and prints a traceback of its own."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

"""The command `parcae`: one verb per task, each in its own room and imported when it is called."""

from __future__ import annotations

import errno
import importlib
import io
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Annotated, Any

import typer

from analysis.errors import InputError
from parcae_core.errors import UserError, is_out_of_memory
from parcae_core.plain import MAX_INT
from sweeps import source
from sweeps.tracking import reader
from sweeps.waiting import say, waiting

# What each extra brings; a missing one is named with the way to get it
_EXTRAS = {
    "train": ("filelock", "torch", "safetensors", "tokenizers", "rustbpe", "tiktoken"),
    "s3": ("s3fs",),
    "hf": ("huggingface_hub", "transformers"),
    "lm-eval": ("lm_eval",),
    "sweep": ("ray", "wandb"),
    "kernels": ("triton",),
}

# The rooms with their verbs, in the order of --help; each verb is a function of its name, or a group of verbs
_ROOMS = {
    "write": ("init", "spec"),
    "sweep": ("plan", "run"),
    "folder": ("status", "retry", "collect", "sync"),
    "jobs": ("submit", "logs", "stop", "cluster"),
    "laws": ("columns", "fit", "predict", "optimal", "loops", "judge", "compare"),
    "figures": ("plot", "curves", "report"),
    "design": ("design",),
    "data": ("data",),
    "model": ("params", "eval"),
    "trained": ("sample", "export", "score"),
    "demo": ("demo",),
}

# Of a path that a user gave; all else that the system refuses is no mistake of theirs
_NO_SUCH_PATH = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)


@cache
def command(verb: str = "") -> Callable[[], object]:
    """What `parcae` runs; made once, since its many options take a while.

    Args:
        verb: that will be run, where it is known: no other room than its own is needed.
    """
    made = typer.main.get_command(build_app(*(r for r, verbs in _ROOMS.items() if verb in verbs)))
    _limit_numbers(made)
    return made


def _limit_numbers(verb: Any) -> None:
    """Let every number of the command line be finite and of at most 64 bits, as those of files are."""
    for inner in getattr(verb, "commands", {}).values():
        _limit_numbers(inner)
    for parameter in verb.params:
        if parameter.callback is None:
            parameter.callback = _require_sensible


def _require_sensible(context: typer.Context, parameter: Any, value: Any) -> Any:
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{parameter.opts[0]} is {number}; a finite number is needed.")
        if isinstance(number, int) and abs(number) > MAX_INT:
            raise UserError(
                f"{parameter.opts[0]} is a number of {number.bit_length()} bits; at most 63 are needed."
            )
    return value


# They print lines or bars while they work
_SHOW_THEMSELVES = ("run", "demo", "data", "submit", "logs")


def build_app(*rooms: str) -> typer.Typer:
    """The command with the verbs of these rooms, by default of all; their modules are cheap to import."""
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
    source.register()
    for room in rooms or _ROOMS:
        module = importlib.import_module(f"sweeps.cli.{room}")
        for name in _ROOMS[room]:
            verb = getattr(module, name)
            if isinstance(verb, typer.Typer):
                app.add_typer(verb, name=name)
            else:
                app.command(name)(verb)
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

    What the system refuses (a full disk, a missing permission, memory) is one message and exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):  # the name of a file may hold any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _run()
    except OSError as error:
        _give_up_stdout()
        place = f"{error.filename}: " if error.filename else ""
        said = f"parcae: {place}{error.strerror or error or type(error).__name__}"
        if error.errno in _NO_SUCH_PATH:
            say(f"{said}; give another path")
            sys.exit(2)
        say(
            f"{said}; the command did not finish. See to it and run it again: what was written before is "
            "whole"
        )
        sys.exit(1)
    except UnicodeEncodeError as error:  # a name of other bytes, where a library takes text alone
        say(f"parcae: {error.object}: is not UTF-8 text; give the file or folder another name")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say(
            "parcae: this needs more memory than there is; ask for less at once (rows, sequences, "
            "processes), or run it on a larger machine"
        )
        sys.exit(1)
    except (UserError, InputError) as error:
        for line in str(error).splitlines():
            say(f"parcae: {line}")
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = next((extra for extra, brings in _EXTRAS.items() if package in brings), None)
        if extra is None:
            raise
        say(
            f"parcae: this needs {package}, which is not installed: "
            f"pip install 'parcae-scaling[{extra}]'"
        )
        sys.exit(2)


def _run() -> None:
    try:
        command(sys.argv[1] if len(sys.argv) > 1 else "")()
    except SystemExit:
        sys.stdout.flush()  # a full disk shows here, while there is still a message to be given
        raise


def _give_up_stdout() -> None:
    """Else Python tries to write what is left once more, and prints a traceback of its own."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

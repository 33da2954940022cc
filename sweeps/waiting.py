"""Lines on stderr, and a sign of life there for work of more than two seconds that has no display of its own."""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

AFTER_S = 2.0
EVERY_S = 30.0  # a line, where no terminal is


def visible(text: str) -> str:
    """Text that cannot steer the terminal it is printed on: files and models may come from anybody."""
    return "".join(
        c
        if c.isprintable() or c in "\n\t" or "\ud800" <= c <= "\udfff"
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def say(text: str) -> None:
    """A line on stderr; a terminal that has closed is no reason to fail."""
    with suppress(OSError):
        print(wrapped(visible(text), sys.stderr), file=sys.stderr, flush=True)


def wrapped(text: str, stream: TextIO) -> str:
    """Text for a stream: a terminal gets long lines broken between words, never within a number."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        line if len(line) <= width else _filled(line, width) for line in text.splitlines()
    )


def _filled(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is at work: a spinner and the time on a terminal, elsewhere a line per half minute."""
    done = threading.Event()
    thread = threading.Thread(target=_tell, args=(what, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _tell(what: str, done: threading.Event) -> None:
    began = time.monotonic()
    if done.wait(AFTER_S):
        return
    if sys.stderr.isatty():
        _spin(what, done)
        return
    while not done.wait(EVERY_S):
        print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _spin(what: str, done: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn(what, markup=False), TimeElapsedColumn()
    console = Console(file=sys.stderr)
    plain = {"redirect_stdout": False, "redirect_stderr": False}
    with Progress(*columns, console=console, transient=True, **plain) as bar, ExitStack() as above:
        bar.add_task("", total=None)
        # stderr is no terminal meanwhile: a second bar there would be drawn over this one
        above.enter_context(redirect_stderr(_above(console, sys.stderr, terminal=False)))
        if sys.stdout.isatty():  # into a pipe it goes as it is
            above.enter_context(redirect_stdout(_above(console, sys.stdout, terminal=True)))
        done.wait()


def _above(console: Console, stream: TextIO, *, terminal: bool) -> TextIO:
    """Takes what is printed and shows it above the spinner."""
    from rich.file_proxy import FileProxy

    class Above(FileProxy):
        # without the first two typer, with the third another console of rich would write to the stream
        # below, into the spinner's line
        encoding, errors = stream.encoding, stream.errors

        @property
        def rich_proxied_file(self) -> TextIO:
            raise AttributeError

        def isatty(self) -> bool:
            return terminal

    return Above(console, stream)

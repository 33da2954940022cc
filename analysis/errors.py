"""What `analysis` raises when the input, and not the code, is wrong."""

import difflib


class InputError(ValueError):
    """Something the user can fix.

    The message says where, what was found, what was needed and what to do; the command line
    prints it alone and exits with code 2. Whatever reads what a user gave may raise it; docstrings
    say when, where that is not plain.
    """


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for a misspelt name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

"""Errors a user can act on. The command line turns them into one message and exit code 2."""


class UserError(ValueError):
    """Bad input: the message says where, what was found, what was needed and what to do."""

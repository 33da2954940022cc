"""The command, without its entry point too (`python -m sweeps.cli`); Ctrl-C while its modules load is no traceback."""

import sys


def main() -> None:
    """Load the command and run it."""
    try:
        from sweeps.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

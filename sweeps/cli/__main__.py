"""python -m sweeps.cli: the command without its entry point."""

from sweeps.cli.app import main

main()

"""The command parcae: every verb, and the only importers of typer."""

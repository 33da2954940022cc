"""`parcae init` and `parcae spec`: a spec to begin with, and what every field of one means. Light to import."""

from __future__ import annotations

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer

from parcae_core.errors import UserError
from sweeps.waiting import say


def shipped() -> list[str]:
    """Names of the specs that come with the package."""
    return sorted(f.name[: -len(".yaml")] for f in (files("sweeps") / "specs").iterdir())


def _begun(incomplete: str) -> list[str]:
    return [name for name in shipped() if name.startswith(incomplete)]


def init(
    name: Annotated[str, typer.Argument(help="Of the sweep, and of the file NAME.yaml.")],
    source: Annotated[
        str,
        typer.Option("--from", help="A spec that comes with parcae.", autocompletion=_begun),
    ] = "demo",
    folder: Annotated[Path, typer.Option("--in", help="Where the file is written.")] = Path(),
) -> None:
    """Write a commented spec to begin with; change it, then `parcae plan` and `parcae run` it.

    Examples:

        parcae init pilot

        parcae init mine --from paper-140m-isoflop
    """
    from parcae_core.data.io import write_synced
    from sweeps.design.spec import parse_spec
    from sweeps.design.validation import parse_mapping

    if source not in shipped():
        from analysis.errors import nearest

        known = shipped()
        raise UserError(
            f"--from {source}: no such spec among {', '.join(known)}{nearest(source, known) or '.'}"
        )
    name = name.removesuffix(".yaml")
    path = folder / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path}: is there already; give another name, or remove it.")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it, or leave --in out.")
    text = (files("sweeps") / "specs" / f"{source}.yaml").read_text(encoding="utf-8")
    text = text.replace(f"sweeps/specs/{source}.yaml", shlex.quote(str(path)).replace("\n", " "))
    text = re.sub(r"^name: \S+", f"name: {name}", text, count=1, flags=re.MULTILINE)
    parse_spec(parse_mapping(text, str(path)), str(path))  # the name may not be one
    write_synced(path, text)
    typer.echo(path)
    named = shlex.quote(str(path))
    say(
        f"next: parcae plan {named}; then parcae run {named}. `parcae spec` says what each field means"
    )


def spec(
    design: Annotated[
        str | None, typer.Argument(help="One design, such as isoflop; all when left out.")
    ] = None,
    form: Annotated[
        Literal["text", "markdown", "json-schema"],
        typer.Option("--format", help="json-schema is for editors that check YAML."),
    ] = "text",
) -> None:
    """Every field of a spec with its type, default and meaning.

    Examples:

        parcae spec isoflop

        parcae spec --format json-schema > parcae-spec.json
    """
    from sweeps.design import fields

    if form == "json-schema":
        typer.echo(json.dumps(fields.schema(design), indent=1))
    else:
        typer.echo(markdown(design) if form == "markdown" else text(design))


def text(design: str | None = None) -> str:
    """The fields as lines."""
    from sweeps.design import fields

    lines = []
    for name, (doc, known) in fields.sections(design).items():
        lines.append(f"{name}: {doc}\n")
        for field in known:
            need = field.default if field.default == "required" else f"default: {field.default}"
            lines += [f"  {field.name}: {field.kind} ({need})", f"      {field.meaning}"]
        lines.append("")
    return "\n".join(lines)


def markdown(design: str | None = None) -> str:
    """The fields as tables."""
    from sweeps.design import fields

    lines = []
    for name, (doc, known) in fields.sections(design).items():
        lines += [f"## {name}", "", doc, ""]
        lines += ["| field | meaning | type | default |", "|---|---|---|---|"]
        for field in known:
            cells = (f"`{field.name}`", field.meaning, field.kind, field.default)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)

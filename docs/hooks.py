"""Pages made from the code when the site is built, and links that leave the folder."""

from __future__ import annotations

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

from sweeps.cli.app import command
from sweeps.cli.write import markdown

# Lines of a docstring that are commands; typer's pages keep them as paragraphs
_EXAMPLE = re.compile(r"^((?:[A-Z_]+=\S+ )?(?:parcae|ray) .*)$", re.MULTILINE)
# Lists of verbs with their help cut short; the page's own contents have them all
_CUT = re.compile(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n")
_OUTSIDE = re.compile(r"\]\(\.\./([^)]+)\)")


def commands() -> str:
    """Every verb's help."""
    group = command()
    assert isinstance(group, TyperGroup)
    context = group.make_context("parcae", [], resilient_parsing=True)
    text = get_docs_for_click(obj=group, ctx=context, name="parcae", title="Commands")
    return _EXAMPLE.sub(r"    \1", _CUT.sub("", text))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"commands.md": commands(), "spec.md": f"# Fields of a spec\n\n{markdown()}"}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What lies beside docs/ (README.md, benchmarks/) is no part of the site: its name stays."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(r"] (`\1`)", markdown)

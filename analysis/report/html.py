"""One self-contained HTML page: for each source its tables, figures, hashes and every problem.

Sources are told apart by who measured them: a reader must never take points from a paper's figure
for this sweep's. The page carries its day, so the same inputs give the same bytes on one day.
"""

from __future__ import annotations

import base64
import datetime
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.figures.drawing import Drawing
    from analysis.fitting.result import FitResult
    from analysis.report.study import Study

_LIBRARIES = ("numpy", "scipy", "pandas", "matplotlib", "parcae-scaling")


TOP = 2  # figures under a source's headline


@dataclass(frozen=True, slots=True)
class Part:
    """What one source brings to the page; it can be made in a process of its own."""

    section: dict[str, Any]
    lines: tuple[str, ...]  # for a terminal

    @classmethod
    def of(cls, source: str | Path | Study) -> Part:
        """Fit and draw all that a source allows."""
        from analysis.report import study  # pandas, SciPy, matplotlib: a page of parts needs none

        found = source if isinstance(source, study.Study) else study.load(source)
        return cls(_section(found), tuple(found.summaries()))


def write_report(
    sources: Iterable[str | Path | Study | Part], out: str | Path, day: str | None = None
) -> Path:
    """Fit and draw every source and write one HTML page.

    Args:
        sources: sweep folders, records files, `bundled:NAME`, studies, or parts already made.
        day: on the page; today without it.
    """
    html = render(list(sources), day or datetime.date.today().isoformat())
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(out)
    return out


def render(sources: Sequence[str | Path | Study | Part], day: str) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name must not print as nothing
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.j2").render(
        day=day,
        sections=[(s if isinstance(s, Part) else Part.of(s)).section for s in sources],
        versions={"Python": platform.python_version()}
        | {n: metadata.version(n) for n in _LIBRARIES},
    )


def number(x: Any) -> str:
    """Five significant digits; a dash for what could not be found."""
    if x is None or x != x:
        return "–"  # noqa: RUF001 - the typographic dash of a table
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return str(x)
    return f"{x:.5g}"


def _section(study: Study) -> dict[str, Any]:
    figures = [_figure(d) for d in study.drawings()]
    return {
        "headline": study.headline(),
        "notes": study.table.notes,
        "decisions": study.decisions and study.decisions.table(),
        "top": figures[:TOP],
        "source": study.table.source,
        "origin": study.table.origin,
        "kind": study.table.kind,
        "n_rows": len(study.table.frame),
        "sha256": study.table.sha256,
        "flops_rule": study.table.flops_rule,
        "dropped": study.table.dropped,
        "facts": _facts(study),
        "results": [_result(r) for r in study.results],
        "refusals": study.refusals,
        "judgements": study.judgements(),
        "figures": figures[TOP:],
    }


def _facts(study: Study) -> dict[str, str]:
    """What the rows say about themselves: corpus, tokenizer, device, commit."""
    frame = study.table.frame
    names = (
        "preset data_fingerprint tokenizer vocab_size context device torch_version git_commit "
        "spec_sha256"
    )
    return {
        n: ", ".join(str(v)[:16] for v in frame[n].dropna().unique()[:4])
        for n in names.split()
        if n in frame and frame[n].notna().any()
    }


def _result(result: FitResult) -> dict[str, Any]:
    hidden = {"centre", "a", "b"}  # what a figure needs and a reader does not
    return {
        "fit": result,
        "tables": {
            name: [{k: v for k, v in row.items() if k not in hidden} for row in rows]
            for name, rows in result.tables.items()
        },
        "show_params": result.law == "recurrence" or len(result.params) <= 12,
    }


def _figure(drawing: Drawing) -> dict[str, str]:
    return {
        "name": drawing.name,
        "caption": drawing.caption,
        "png": base64.b64encode(drawing.picture("png")).decode(),
    }

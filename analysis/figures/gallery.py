"""The figures of a source, chosen by name: to save, to look at in a notebook, to index."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError, nearest
from analysis.figures.drawing import FORMATS, Drawing, Look, looking

if TYPE_CHECKING:
    from analysis.report.study import Study


@dataclass(frozen=True, slots=True)
class Gallery:
    """Drawings in the order of the laws, and in words what could not be drawn."""

    drawings: tuple[Drawing, ...]
    refusals: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Drawing]:
        return iter(self.drawings)

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, name: str | int) -> Drawing:
        if isinstance(name, int):
            return self.drawings[name]
        for drawing in self.drawings:
            if drawing.name == name:
                return drawing
        raise KeyError(f"no figure {name!r} here; there are {', '.join(d.name for d in self)}")

    def save(self, folder: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
        """Every figure with its CSV and its caption."""
        for name in formats:
            if name not in FORMATS:
                raise InputError(
                    f"--format {name!r} is unknown{nearest(name, FORMATS)}; it must be one of {', '.join(FORMATS)}."
                )
        return [path for drawing in self for path in drawing.save(folder, formats)]

    def _repr_html_(self) -> str:
        figures = [
            f'<figure><img alt="{escape(d.name)}" src="data:image/png;base64,'
            f'{base64.b64encode(d.picture()).decode()}"><figcaption>{escape(d.caption)}</figcaption></figure>'
            for d in self
        ]
        return "".join(
            [*figures, *(f"<p>{escape(k)}: {escape(v)}</p>" for k, v in self.refusals.items())]
        )


def gallery(
    study: Study,
    only: str | Sequence[str] = (),
    look: Look | None = None,
    *,
    to: float | None = None,
    ax: Any = None,
) -> Gallery:
    """The figures that a study allows, arguments as for `api.plot_source`.

    Raises:
        InputError: a name that fits no figure, or no figure at all.
    """
    wanted = (only,) if isinstance(only, str) else tuple(only)
    with looking(look or Look()):
        drawings = study.drawings(wanted, to=to, ax=ax)
    if not drawings:
        why = "; ".join(f"{law}: {words}" for law, words in study.refusals.items())
        raise InputError(f"{study.table.source}: there is nothing to draw. {why}")
    return Gallery(tuple(drawings), dict(study.refusals))

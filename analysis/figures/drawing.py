"""One door for every figure: PNG to look at, PDF to print, CSV of exactly what is drawn, and its caption.

Made without pyplot: no global state, nothing to close, the same bytes from the same inputs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import get_registered_canvas_class
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from analysis.errors import InputError, nearest
from analysis.figures import layout

# Told apart by common colour-vision deficiencies (after Okabe and Ito), each at least 3:1 on white;
# black is kept for fits
CYCLE = ("#0072B2", "#C75000", "#00805E", "#B0508A", "#6F5FB5", "#8C6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # colour never carries a distinction alone
FIT = "#000000"
FORMATS = ("png", "pdf", "svg")
MU = "\u03bc"
_PANEL = 2.6  # inches: narrower, panels stand one below the other
STYLE: dict[RcKeyType, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 8,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "parcae",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a page or a journal asks of every figure."""

    width: float | None = None  # inches; None: what the panels need
    style: str | Path | None = None  # a matplotlib style, by name or file

    @property
    def rc(self) -> dict[RcKeyType, Any]:
        """`STYLE`, and over it what the style says."""
        if self.style is None:
            return STYLE
        from matplotlib import style

        name = str(self.style)
        if name in style.library:
            return {**STYLE, **style.library[name]}
        if not Path(name).is_file():
            known = tuple(style.available)
            raise InputError(
                f"--style {name}: no such file or style{nearest(name, known)}; give a .mplstyle file, or a "
                "name of matplotlib's like seaborn-v0_8-paper."
            )
        try:
            given = mpl.rc_params_from_file(name, use_default_template=False)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"--style {name}: is no matplotlib style ({error}).") from error
        return {**STYLE, **given}


_LOOK: ContextVar[Look] = ContextVar("look", default=Look())  # noqa: B039 - frozen


@contextmanager
def looking(look: Look) -> Iterator[None]:
    """Every figure begun inside has this look."""
    if look.width is not None and not 1 <= look.width <= 100:
        raise InputError(
            f"--width is {look.width}; inches between 1 and 100 are needed, like 3.25."
        )
    token = _LOOK.set(look)
    try:
        with mpl.rc_context(look.rc):
            yield
    finally:
        _LOOK.reset(token)


@dataclass
class Drawing:
    """A figure being drawn; every mark goes through it, so that the CSV is what the eye sees."""

    name: str
    caption: str
    figure: Figure
    axes: list[Axes]
    # panel, series, kind, and x, y, y_high of a mark's points
    rows: list[tuple[str, str, str, Sequence[np.ndarray]]] = field(default_factory=list)
    rc: dict[RcKeyType, Any] = field(default_factory=lambda: STYLE)
    whole: bool = True  # the figure is ours; else we draw in axes of the caller's
    _settled: bool = False

    def first_of_row(self, place: int) -> bool:
        """Whether a panel has none to its left, so that a shared y axis is named there."""
        spec = self.axes[place].get_subplotspec()
        return not self.whole or spec is None or spec.is_first_col()

    def pen(self, ax: Axes, panel: str = "", color: str = FIT, marker: str = "o") -> Pen:
        """What draws in one panel; `panel` is its name in the CSV."""
        return Pen(self, ax, panel, color, marker)

    def title(self, ax, text: str) -> None:
        """A panel's title in the figure's own style, whatever style rules where it is called."""
        ax.set_title(text, fontsize=self.rc.get("axes.titlesize", 8))

    def legend(self, axes, title: str | None = None, columns: int = 6, order=None) -> None:
        """The legend of one panel or several, below the whole figure, where it hides nothing.

        Args:
            order: key of a label by which the entries are sorted; None: as drawn.
        """
        axes = axes if isinstance(axes, list) else [axes]
        found: dict[str, Artist] = {}
        for ax in axes:
            handles, labels = ax.get_legend_handles_labels()
            found = dict(zip(labels, handles, strict=True)) | found
        if not found:
            return
        labels = sorted(found, key=order) if order is not None else list(found)
        handles = [found[label] for label in labels]
        with mpl.rc_context(self.rc):
            if not self.whole:
                axes[-1].legend(handles, labels, title=title)
                return
            longest = max(len(label) for label in labels)
            # letters of this size on a line
            fit = int(self.figure.get_figwidth() * 14 // (longest + 7))
            self.figure.legend(
                handles,
                labels,
                loc="lower center",
                ncols=max(1, min(len(labels), columns, fit)),
                title=title,
            )

    @property
    def drawn(self) -> pd.DataFrame:
        """panel, series, kind, x, y, y_high: one row per point of every mark, as drawn."""
        words, numbers = ("panel", "series", "kind"), ("x", "y", "y_high")
        count = [len(x) for *_, (x, _, _) in self.rows]
        table = {n: np.repeat([row[i] for row in self.rows], count) for i, n in enumerate(words)}
        columns = zip(*(row[-1] for row in self.rows), strict=True)
        return pd.DataFrame(
            table | {n: np.concatenate(c) for n, c in zip(numbers, columns, strict=True)}
        )

    def save(self, folder: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
        """Write NAME in each format, NAME.csv and NAME.txt, its caption; the bytes depend on the inputs only."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        out = []
        for suffix in formats:
            path = folder / f"{self.name}.{suffix}"
            path.write_bytes(self.picture(suffix))
            out.append(path)
        csv, caption = folder / f"{self.name}.csv", folder / f"{self.name}.txt"
        self.drawn.to_csv(csv, index=False, float_format="%.8g", lineterminator="\n")
        caption.write_text(self.caption + "\n", encoding="utf-8")
        return [*out, csv, caption]

    def picture(self, suffix: str = "png") -> bytes:
        """The figure as a file of that format."""
        bare: dict[str, dict[str, Any]] = {
            "png": {"Software": None},
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
            "svg": {"Date": None, "Creator": None},
        }
        buffer = io.BytesIO()
        with mpl.rc_context(self.rc):
            if not self.whole:
                self.figure.savefig(buffer, format=suffix, metadata=bare[suffix])
                return buffer.getvalue()
            if not self._settled:  # once for all formats
                layout.settle(self.figure, self.axes)
                self._settled = True
            if suffix == "png":
                self.figure.set_dpi(mpl.rcParams["savefig.dpi"])
                FigureCanvasAgg(self.figure).print_png(buffer, metadata=bare[suffix])
            else:
                canvas = get_registered_canvas_class(suffix)(self.figure)
                getattr(canvas, f"print_{suffix}")(buffer, metadata=bare[suffix])
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.picture()


@dataclass(frozen=True, slots=True)
class Pen:
    """Marks of one colour in one panel; each is noted, so that the CSV is what the eye sees."""

    drawing: Drawing
    ax: Axes
    panel: str
    color: str
    marker: str

    def points(self, series, x, y, *, filled=True, label=None, size=26, kind=None):
        """Measured points; hollow where they are outside the fit."""
        self.ax.scatter(
            x,
            y,
            s=size,
            marker=self.marker,
            facecolors=self.color if filled else "none",
            edgecolors=self.color,
            linewidths=1.0,
            label=label,
            zorder=3,
        )
        self._note(series, kind or ("points" if filled else "points outside the fit"), x, y)

    def line(self, series, x, y, *, dashed=False, label=None, width=1.2, kind=None):
        """A curve, fitted unless `kind` says otherwise; a dashed fit extrapolates."""
        style = "--" if dashed else "-"
        self.ax.plot(x, y, color=self.color, ls=style, lw=width, label=label, zorder=2)
        self._note(series, kind or ("extrapolation" if dashed else "fit"), x, y)

    def band(self, series, x, low, high):
        """An interval around a curve."""
        self.ax.fill_between(x, low, high, color=self.color, alpha=0.15, lw=0, zorder=1)
        self._note(series, "band", x, low, high)

    def contours(self, x, y, z, *, label: str):
        """Lines of equal z over a grid, labelled; every vertex is noted."""
        drawn = self.ax.contour(x, y, z, levels=12, colors=shades(14)[1:], linewidths=0.9)
        self.ax.clabel(drawn, fontsize=6, fmt="%.2f")
        for level, segments in zip(drawn.levels, drawn.allsegs, strict=True):
            for segment in segments:
                if len(segment):
                    self._note(f"{label} {level:.4g}", "fit", segment[:, 0], segment[:, 1])

    def bar(self, series, x, low, high):
        """An interval of one number, vertical."""
        self.ax.vlines(x, low, high, color=self.color, lw=1.0, zorder=2)
        self._note(series, "interval", x, low, high)

    def mark(self, series, y, span=None, label=None):
        """A thin dotted line at a height, over all of the panel or a `span` of x."""
        style = {"color": self.color, "lw": 0.8, "ls": ":", "label": label, "zorder": 1.5}
        if span is None:
            self.ax.axhline(y, **style)
        else:
            self.ax.plot(span, [y, y], **style)
        self._note(series, "mark", np.nan if span is None else span, y)

    def _note(self, series, kind, x, y, y_high=np.nan) -> None:
        marks = np.broadcast_arrays(np.atleast_1d(np.asarray(x, dtype=float)), y, y_high)
        self.drawing.rows.append((self.panel, series, kind, marks))


def new(
    name: str, caption: str, n_panels: int = 1, columns: int = 3, ax=None, **axes_kw
) -> Drawing:
    """An empty drawing of n_panels axes in rows of at most `columns`.

    Args:
        ax: axes of the caller's to draw in, one a panel, instead of a new figure.
    """
    look = _LOOK.get()
    if ax is not None:
        given = list(np.ravel(ax))
        if len(given) != n_panels:
            raise InputError(
                f"ax: figure {name} has {n_panels} panels and {len(given)} axes were given."
            )
        return Drawing(name, caption, given[0].figure, given, rc=look.rc, whole=False)
    if look.width is not None:
        columns = min(columns, max(1, int(look.width // _PANEL)))
    across = min(n_panels, columns)
    down = -(-n_panels // across)
    natural = (4.6 if n_panels == 1 else 3.5 * across, 3.4 if down == 1 else 2.8 * down)
    size = natural
    if look.width is not None:
        size = (look.width, max(natural[1] * look.width / natural[0], 2.5 * down))
    with mpl.rc_context(look.rc):
        figure = Figure(figsize=size)
        grid = figure.subplots(down, across, squeeze=False, **axes_kw)
    flat = list(grid.ravel())
    for spare in flat[n_panels:]:
        spare.remove()
    return Drawing(name=name, caption=caption, figure=figure, axes=flat[:n_panels], rc=look.rc)


def shades(n: int) -> list[str]:
    """n colours of a sequential map, the last the darkest: for an ordered quantity such as the budget.

    The palest has 3:1 on white.
    """
    colormap = mpl.colormaps["inferno"]
    ends = np.linspace(0.64, 0.06, n) if n > 1 else [0.3]
    return [mpl.colors.to_hex(colormap(v)) for v in ends]


def spans(low, high, to: float | None = None, n: int = 60, space=np.geomspace, start=np.inf):
    """(grid, whether it extrapolates): n points of a range, half as many from `start` and to `to` outside it."""
    yield space(low, high, n), False
    if start < low:
        yield space(start, low, n // 2), True
    if to is not None and to > high:
        yield space(high, to, n // 2), True


def flops(value: float) -> str:
    """A budget in a legend: 2e18."""
    return f"{value:.3g}".replace("e+", "e")

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
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backend_bases import get_registered_canvas_class
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.errors import InputError, nearest

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.typing import RcKeyType

# Told apart by common colour-vision deficiencies (after Okabe and Ito), each at least 3:1 on white;
# black is kept for fits
CYCLE = ("#0072B2", "#C75000", "#00805E", "#B0508A", "#6F5FB5", "#8C6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # colour never carries a distinction alone
FIT = "#000000"
FORMATS = ("png", "pdf", "svg")
MU = "\u03bc"
_PANEL = 2.6  # inches: narrower, panels stand one below the other
_EDGE = 9.0  # points beside what is written
_BETWEEN = 22.0  # points between panels: half a label of the x axis on either side
_LETTER = 0.54  # width of a letter over its size
_DIGIT = 0.64  # width of a digit, as a share of its font's size
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
        """`STYLE`, and over it what the style says.

        Raises:
            InputError: no such style, or a file that is none.
        """
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
    """Every figure begun inside has this look.

    Raises:
        InputError: a width or a style that cannot be.
    """
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

    def points(
        self, ax, panel, series, x, y, *, color, marker, filled=True, label=None, size=26, kind=None
    ):
        """Measured points; hollow where they are outside the fit."""
        ax.scatter(
            x,
            y,
            s=size,
            marker=marker,
            facecolors=color if filled else "none",
            edgecolors=color,
            linewidths=1.0,
            label=label,
            zorder=3,
        )
        self._note(panel, series, kind or ("points" if filled else "points outside the fit"), x, y)

    def line(
        self, ax, panel, series, x, y, *, color=FIT, dashed=False, label=None, width=1.2, kind=None
    ):
        """A curve, fitted unless `kind` says otherwise; a dashed fit extrapolates."""
        ax.plot(x, y, color=color, ls="--" if dashed else "-", lw=width, label=label, zorder=2)
        self._note(panel, series, kind or ("extrapolation" if dashed else "fit"), x, y)

    def band(self, ax, panel, series, x, low, high, *, color=FIT, label=None):
        """An interval around a curve."""
        ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0, label=label, zorder=1)
        self._note(panel, series, "band", x, low, high)

    def contours(self, ax, panel, x, y, z, *, label: str):
        """Lines of equal z over a grid, labelled; every vertex is noted."""
        drawn = ax.contour(x, y, z, levels=12, colors=shades(14)[1:], linewidths=0.9)
        ax.clabel(drawn, fontsize=6, fmt="%.2f")
        for level, segments in zip(drawn.levels, drawn.allsegs, strict=True):
            for segment in segments:
                if len(segment):
                    self._note(panel, f"{label} {level:.4g}", "fit", segment[:, 0], segment[:, 1])

    def bar(self, ax, panel, series, x, low, high, *, color):
        """An interval of one number, vertical."""
        ax.vlines(x, low, high, color=color, lw=1.0, zorder=2)
        self._note(panel, series, "interval", x, low, high)

    def title(self, ax, text: str) -> None:
        """A panel's title in the figure's own style, whatever style rules where it is called."""
        ax.set_title(text, fontsize=self.rc.get("axes.titlesize", 8))

    def mark(self, ax, panel, series, *, x=None, y=None, span=None, color=FIT, label=None):
        """A thin dotted line at a value of one axis, over all of the other or its `span`."""
        style = {"color": color, "lw": 0.8, "ls": ":", "label": label, "zorder": 1.5}
        if x is not None:
            ax.axvline(x, **style)
            self._note(panel, series, "mark", x, np.nan)
        elif span is None:
            ax.axhline(y, **style)
            self._note(panel, series, "mark", np.nan, y)
        else:
            ax.plot(span, [y, y], **style)
            self._note(panel, series, "mark", span, y)

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
            self._settle()
            if suffix == "png":
                self.figure.set_dpi(mpl.rcParams["savefig.dpi"])
                FigureCanvasAgg(self.figure).print_png(buffer, metadata=bare[suffix])
            else:
                canvas = get_registered_canvas_class(suffix)(self.figure)
                getattr(canvas, f"print_{suffix}")(buffer, metadata=bare[suffix])
        return buffer.getvalue()

    def _settle(self) -> None:
        """Lay the panels out above the legend, once for all formats.

        Room for labels follows from their letters: matplotlib's layouts measure everything that they
        draw, which takes as long as the drawing.
        """
        if self._settled:
            return
        self._settled = True
        width, height = 72 * self.figure.get_size_inches()
        places = [(ax, spec) for ax in self.axes if (spec := ax.get_subplotspec()) is not None]
        left, gap = (
            max((_beside(ax) for ax, spec in places if spec.is_first_col() == first), default=0.0)
            for first in (True, False)
        )
        gap = max(gap, _BETWEEN)
        below, above = max(map(_below, self.axes)), max(map(_above, self.axes))
        legends = [legend.get_window_extent().height for legend in self.figure.legends]
        foot = below + sum(legends) * height / self.figure.bbox.height
        foot = min(foot, 0.6 * height)  # a longer legend covers what it must
        down, across = places[0][1].get_gridspec().get_geometry()
        panel_width = (width - left - _EDGE - (across - 1) * gap) / across
        last = [_beyond(ax, panel_width) for ax, spec in places if spec.is_last_col()]
        right = max(_EDGE, *last)
        panel_width -= (right - _EDGE) / across
        panel_height = (height - foot - above - (down - 1) * (below + above)) / down
        if (lack := max(map(_along, self.axes)) - panel_height) > 0:  # a low figure grows
            panel_height += lack
            height += lack * down
            self.figure.set_figheight(height / 72)
        self.figure.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            bottom=foot / height,
            top=1 - above / height,
            wspace=gap / panel_width,
            hspace=(below + above) / panel_height,
        )

    def _repr_png_(self) -> bytes:
        return self.picture()

    def _note(self, panel, series, kind, x, y, y_high=np.nan) -> None:
        marks = np.broadcast_arrays(np.atleast_1d(np.asarray(x, dtype=float)), y, y_high)
        self.rows.append((panel, series, kind, marks))


def _beside(ax: Axes) -> float:
    """Points that the labels of the y axis need; a panel of another size may show one digit more."""
    shown, size = _labels(ax.yaxis)
    letters = max((len(text) + 1 for _, text in shown), default=0)
    ticks = _DIGIT * max(letters, 4) * size if shown else 0.0
    name = 1.5 * float(ax.yaxis.label.get_fontsize()) if ax.get_ylabel() else 0.0
    return ticks + name + _EDGE


def _along(ax: Axes) -> float:
    """Points that the name of the y axis is long."""
    label = ax.yaxis.label
    return _LETTER * len(label.get_text()) * float(label.get_fontsize())


def _below(ax: Axes) -> float:
    """Points that the labels of the x axis need."""
    shown, size = _labels(ax.xaxis)
    name = 1.5 * float(ax.xaxis.label.get_fontsize()) if ax.get_xlabel() else 0.0
    return 1.2 * size * bool(shown) + name + _EDGE


def _beyond(ax: Axes, width: float) -> float:
    """Points that the last label of the x axis needs beyond the end of a panel of that width."""
    shown, size = _labels(ax.xaxis)
    to_panel = ax.transScale + ax.transLimits
    ends = [(float(to_panel.transform((place, 1.0))[0]), text) for place, text in shown]
    inside = [(1 - share) * width for share, _ in ends]
    half = [_DIGIT * len(text) * size / 2 for _, text in ends]
    return max((h - i + 1 for h, i in zip(half, inside, strict=True) if i > -1), default=0.0)


def _labels(axis: Axis) -> tuple[list[tuple[float, str]], float]:
    """(place, text) of an axis' labels and their size; asked of the axis itself they would make every tick."""
    first = axis.get_major_ticks(1)[0].label1
    if not first.get_visible():
        return [], 0.0
    places = [float(place) for place in axis.get_majorticklocs()]
    texts = axis.get_major_formatter().format_ticks(places)
    return list(zip(places, texts, strict=True)), float(first.get_fontsize())


def _above(ax: Axes) -> float:
    """Points that a title needs."""
    return (1.5 * float(ax.title.get_fontsize()) if ax.get_title() else 0.0) + _EDGE


def new(
    name: str, caption: str, n_panels: int = 1, columns: int = 3, ax=None, **axes_kw
) -> Drawing:
    """An empty drawing of n_panels axes in rows of at most `columns`.

    Args:
        ax: axes of the caller's to draw in, one a panel, instead of a new figure.

    Raises:
        InputError: another number of axes than the figure has panels.
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


def contrast(color: str) -> float:
    """Of a colour on white, by WCAG's relative luminance: 1 to 21."""
    rgb = np.array(mpl.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)


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

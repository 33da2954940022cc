"""One door for every figure: PNG to look at, PDF to print, CSV of exactly what is drawn.

Made without pyplot: no global state, nothing to close, the same bytes from the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

# Okabe and Ito's set, safe for the common colour-vision deficiencies; black is kept for fits
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # colour never carries a distinction alone
FIT = "#000000"
STYLE: dict[RcKeyType, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "pdf.fonttype": 42,
}


@dataclass
class Drawing:
    """A figure being drawn; every mark goes through it, so that the CSV is what the eye sees."""

    name: str
    caption: str
    figure: Figure
    axes: list[Axes]
    rows: list[pd.DataFrame] = field(default_factory=list)

    def points(self, ax, panel, series, x, y, *, color, marker, filled=True, label=None, size=26):
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
        self._note(panel, series, "points" if filled else "points outside the fit", x, y)

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
        drawn = ax.contour(x, y, z, levels=12, cmap="viridis", linewidths=0.9)
        ax.clabel(drawn, fontsize=6, fmt="%.2f")
        for level, segments in zip(drawn.levels, drawn.allsegs, strict=True):
            for segment in segments:
                if len(segment):
                    self._note(panel, f"{label} {level:.4g}", "fit", segment[:, 0], segment[:, 1])

    def bar(self, ax, panel, series, x, low, high, *, color):
        """An interval of one number, vertical."""
        ax.vlines(x, low, high, color=color, lw=1.0, zorder=2)
        self._note(panel, series, "interval", x, low, high)

    def legend(self, axes, title: str | None = None, columns: int = 6, order=None) -> None:
        """The legend of one panel or several, below the whole figure, where it hides nothing.

        Args:
            order: key of a label by which the entries are sorted; None: as drawn.
        """
        found: dict[str, Artist] = {}
        for ax in axes if isinstance(axes, list) else [axes]:
            handles, labels = ax.get_legend_handles_labels()
            found = dict(zip(labels, handles, strict=True)) | found
        labels = sorted(found, key=order) if order is not None else list(found)
        handles = [found[label] for label in labels]
        with mpl.rc_context(STYLE):
            self.figure.legend(
                handles,
                labels,
                loc="outside lower center",
                ncols=min(len(labels), columns),
                title=title,
                title_fontsize=7.5,
            )

    @property
    def drawn(self) -> pd.DataFrame:
        """panel, series, kind, x, y, y_high: one row per point of every mark, as drawn."""
        return pd.concat(self.rows, ignore_index=True)

    def save(self, folder: str | Path) -> list[Path]:
        """Write NAME.png, NAME.pdf and NAME.csv; the bytes depend on the inputs only."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        png, pdf, csv = (folder / f"{self.name}.{suffix}" for suffix in ("png", "pdf", "csv"))
        with mpl.rc_context(STYLE):
            self.figure.savefig(png, metadata={"Software": None})
            bare = {"CreationDate": None, "Creator": None, "Producer": None}
            self.figure.savefig(pdf, metadata=bare)
        self.drawn.to_csv(csv, index=False, float_format="%.8g", lineterminator="\n")
        return [png, pdf, csv]

    def _note(self, panel, series, kind, x, y, y_high=np.nan) -> None:
        x, y, y_high = np.broadcast_arrays(np.atleast_1d(np.asarray(x, dtype=float)), y, y_high)
        self.rows.append(
            pd.DataFrame(
                {"panel": panel, "series": series, "kind": kind, "x": x, "y": y, "y_high": y_high}
            )
        )


def new(name: str, caption: str, n_panels: int = 1, columns: int = 3, **axes_kw) -> Drawing:
    """An empty drawing of n_panels axes in rows of at most `columns`."""
    width = min(n_panels, columns)
    height = -(-n_panels // width)
    size = (4.6 if n_panels == 1 else 3.5 * width, 3.4 if height == 1 else 2.8 * height)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(height, width, squeeze=False, **axes_kw)
    flat = list(grid.ravel())
    for spare in flat[n_panels:]:
        spare.remove()
    return Drawing(name=name, caption=caption, figure=figure, axes=flat[:n_panels])


def shades(n: int) -> list[str]:
    """n colours of a sequential map, for an ordered quantity such as the budget."""
    colormap = mpl.colormaps["viridis"]
    return [mpl.colors.to_hex(colormap(v)) for v in np.linspace(0.0, 0.88, n)]


def plain_ticks(ax, axis: str) -> None:
    """A log axis labelled 200k, 500k, 1M: few enough not to collide over less than two decades."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    target = ax.xaxis if axis == "x" else ax.yaxis
    target.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    target.set_major_formatter(EngFormatter(sep=""))
    target.set_minor_formatter(NullFormatter())


def log_ticks(ax, axis: str, values) -> None:
    """A log axis whose ticks are the values that were run."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    target = ax.xaxis if axis == "x" else ax.yaxis
    target.set_major_locator(FixedLocator(sorted(set(map(float, values)))))
    target.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    target.set_minor_locator(NullLocator())

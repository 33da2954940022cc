"""Room for a figure's labels, from their letters."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

_EDGE = 9.0  # points beside what is written
_BETWEEN = 22.0  # points between panels: half a label of the x axis on either side
_LETTER = 0.54  # width of a letter over its size
_DIGIT = 0.64  # width of a digit, as a share of its font's size


def settle(figure: Figure, axes: list[Axes]) -> None:
    """Lay the panels out above the legend, once for all formats.

    Room for labels follows from their letters: matplotlib's layouts measure everything that they
    draw, which takes as long as the drawing.
    """
    width, height = 72 * figure.get_size_inches()
    places = [(ax, spec) for ax in axes if (spec := ax.get_subplotspec()) is not None]
    left, gap = (
        max((_beside(ax) for ax, spec in places if spec.is_first_col() == first), default=0.0)
        for first in (True, False)
    )
    gap = max(gap, _BETWEEN)
    below, above = max(map(_below, axes)), max(map(_above, axes))
    legends = [legend.get_window_extent().height for legend in figure.legends]
    foot = below + sum(legends) * height / figure.bbox.height
    foot = min(foot, 0.6 * height)  # a longer legend covers what it must
    down, across = places[0][1].get_gridspec().get_geometry()
    panel_width = (width - left - _EDGE - (across - 1) * gap) / across
    last = [_beyond(ax, panel_width) for ax, spec in places if spec.is_last_col()]
    right = max(_EDGE, *last)
    panel_width -= (right - _EDGE) / across
    panel_height = (height - foot - above - (down - 1) * (below + above)) / down
    if (lack := max(map(_along, axes)) - panel_height) > 0:  # a low figure grows
        panel_height += lack
        height += lack * down
        figure.set_figheight(height / 72)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=foot / height,
        top=1 - above / height,
        wspace=gap / panel_width,
        hspace=(below + above) / panel_height,
    )


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

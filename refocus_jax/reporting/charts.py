"""Draws line charts as SVG for HTML pages and as PNG files."""

import html
import io
import itertools
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from refocus_jax.evaluation.tables import Chart, Line

# Colours that can be distinguished on light and dark backgrounds and with red-green colour blindness (after Okabe and
# Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
_INK = "#010203"  # replaced by the page's own text colour
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
_STYLE: dict[Any, Any] = {"font.size": 9, "font.family": "sans-serif", "axes.titlesize": 9}
_POINTS = 150  # the largest number of points of a drawn line; longer lines are summarised
_LEGEND_INSIDE = 3  # the largest number of names in a legend inside the chart; a longer legend is below the chart


def svg(chart: Chart, name: str = "chart") -> str:
    """Draws a chart as an `<svg>` element for a page.

    Text remains text, lines and text of the axes have the page's text colour, and the background is transparent. The
    element has no fixed width. The title is not drawn but is there for screen readers. The same chart gives the same
    bytes.

    Args:
      chart: The chart.
      name: The beginning of all ids in the element; it must be unique in a page.
    """
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, **dict.fromkeys(_INKED, _INK)}
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE | style):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        _draw(chart, titled=False).savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg"):].replace(_INK, "currentColor")
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0].replace(" \n", " ")), text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    return text.replace(">", f' role="img"><title>{html.escape(chart.title)}</title>', 1)


def png(chart: Chart) -> bytes:
    """Draws a chart as a PNG file on white."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        _draw(chart, titled=True).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _points(line: Line) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Returns x, y, low and high to draw; a long line becomes means of sections with their minima and maxima."""
    x, y = (np.asarray(values, float) for values in (line.x, line.y))
    low, high = (None if values is None else np.asarray(values, float) for values in (line.low, line.high))
    if len(x) > _POINTS:
        edges = np.linspace(0, len(x), _POINTS + 1).astype(int)
        parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
        low, high = y if low is None else low, y if high is None else high
        low, high = (np.array([reduce(v[part]) for part in parts]) for reduce, v in ((np.min, low), (np.max, high)))
        x, y = (np.array([v[part].mean() for part in parts]) for v in (x, y))
    return x, np.where(np.isfinite(y), y, np.nan), low, high


def _plain(text: str) -> str:
    """Escapes a text so that matplotlib does not read it as mathematics."""
    return text.replace("$", r"\$")


def _mark_decades(axis: Axis, low: float, high: float) -> None:
    """Labels powers of ten, and on a short axis also two and five times these."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw(chart: Chart, titled: bool) -> Figure:
    named = [line.name for line in chart.lines if line.name]
    columns = max(1, min(5, 58 // (max(map(len, named), default=0) + 6)))
    below = -(-len(named) // columns) if len(named) > _LEGEND_INSIDE else 0
    figure = Figure(figsize=(4.1, 2.8 + 0.2 * below), layout="constrained")
    axes = figure.add_subplot()
    for i, line in enumerate(chart.lines):
        place = i if line.color is None else line.color
        color = COLORS[place % len(COLORS)]
        style = "--" if line.dashed else "-" if place < len(COLORS) else "-."
        x, y, low, high = _points(line)
        marker = "o" if len(x) < 20 else None
        axes.plot(x, y, style, color=color, label=_plain(line.name), linewidth=1.4, marker=marker, markersize=3)
        if low is not None and high is not None:
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    drawn = axes.get_lines()
    if chart.log_x and any((np.asarray(line.get_xdata()) > 0).any() for line in drawn):
        axes.set_xscale("log")
    if chart.log_y and any((np.asarray(line.get_ydata()) > 0).any() for line in drawn):
        axes.set_yscale("log")
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if axis.get_scale() == "log":
            _mark_decades(axis, *getattr(axes, f"get_{name}lim")())
    if not chart.log_x:
        whole = all((np.asarray(line.get_xdata()) % 1 == 0).all() for line in drawn)  # such as steps and scales
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=whole, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set(xlabel=_plain(chart.x_label), ylabel=_plain(chart.y_label), title=_plain(chart.title) if titled else "")
    axes.grid(alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if below:
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=columns)
    elif named:
        axes.legend(frameon=False, fontsize=8)
    return figure

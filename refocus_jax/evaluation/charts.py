"""Tables and line charts as data that JSON can hold, and charts as SVG: what instruments say and reports show."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Told apart in light and dark, and by people who do not tell red from green (after Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
_INK = "#010203"  # stands for the page's own text colour, which an SVG inside the page takes on


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells: text, numbers or None, one per column. note: what the reader must know, in plain sentences."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns and a row of {len(row)}")


@dataclasses.dataclass(frozen=True)
class Line:
    """y over x; low and high, if given, bound an interval around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over a common axis."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    note: str = ""


def to_json(item: Table | Chart) -> dict[str, Any]:
    """Plain dicts and lists."""
    return dataclasses.asdict(item)


def chart_from_json(values: dict[str, Any]) -> Chart:
    """The inverse of `to_json` for charts; a table is `Table(**values)`."""
    return Chart(**{**values, "lines": [Line(**line) for line in values["lines"]]})


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element for a page: text is text, ink has the page's colour, the ground is transparent.

    The same chart gives the same bytes.
    """
    style = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 9, "font.family": "sans-serif",
             **{name: _INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color",
                                        "ytick.color", "grid.color")}}
    with matplotlib.rc_context(style):
        figure = _draw(chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg"):].replace(_INK, "currentColor")


def png(chart: Chart) -> bytes:
    """The chart as a PNG file on white."""
    buffer = io.BytesIO()
    _draw(chart).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _draw(chart: Chart) -> Figure:
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for i, line in enumerate(chart.lines):
        color = COLORS[i % len(COLORS)]
        style = "--" if line.dashed or i >= len(COLORS) else "-"
        marker = "o" if len(line.x) < 20 else None
        axes.plot(line.x, line.y, style, color=color, label=line.name, linewidth=1.4, marker=marker, markersize=3)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.2, linewidth=0)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if any(line.name for line in chart.lines):
        axes.legend(frameon=False, fontsize=8)
    return figure

"""Tables and line charts as plain data: what measuring returns, JSON holds and `reporting` draws."""

import dataclasses
from collections.abc import Sequence
from typing import Any


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
    """y over x; low and high, if given, bound an interval around it; None and what is not finite are gaps.

    color: a place in `COLORS`, for lines that belong together; default the line's own place. A line without a name is
    not in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    color: int | None = None


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over a common axis. log_x, log_y: logarithmic, if anything is positive."""

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


def text(table: Table) -> str:
    """The table in columns of text, under its title."""
    cells = [list(table.columns)] + [["-" if cell is None else str(cell) for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(
        row[1:], widths[1:], strict=True))]).rstrip() for row in cells]
    return "\n".join([table.title, *lines])

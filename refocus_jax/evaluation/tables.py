"""Tables and line charts as plain data: results that are stored as JSON and drawn by `reporting`."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      title: Title.
      columns: Names of the columns.
      rows: Rows of cells, one per column: text, numbers or None.
      note: Sentences that the reader needs to interpret the table.

    Raises:
      ValueError: If a row does not have as many cells as there are columns.
    """

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
    """A line of a chart; values that are None or not finite are gaps.

    Attributes:
      name: Name in the legend; a line with an empty name is not in the legend.
      x: Horizontal positions.
      y: Values.
      low: Lower ends of an interval around the values, if there is one.
      high: Upper ends of this interval.
      dashed: Whether the line is dashed.
      color: Index into `COLORS`, so that related lines can have the same colour; by default the index of the line.
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
    """Lines over a common axis.

    Attributes:
      title: Title.
      x_label: Label of the horizontal axis.
      y_label: Label of the vertical axis.
      lines: The lines.
      log_x: Whether the horizontal axis is logarithmic, if any value is positive.
      log_y: Whether the vertical axis is logarithmic, if any value is positive.
      note: Sentences that the reader needs to interpret the chart.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    note: str = ""


def to_json(item: Table | Chart) -> dict[str, Any]:
    """Convert a table or chart to plain dicts and lists."""
    return dataclasses.asdict(item)


def chart_from_json(values: dict[str, Any]) -> Chart:
    """Invert `to_json` for charts; for tables, use `Table(**values)`."""
    return Chart(**{**values, "lines": [Line(**line) for line in values["lines"]]})


def text(table: Table) -> str:
    """Format a table as columns of text under its title."""
    cells = [list(table.columns)] + [["-" if cell is None else str(cell) for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(
        row[1:], widths[1:], strict=True))]).rstrip() for row in cells]
    return "\n".join([table.title, *lines])

"""Makes a self-contained HTML page of pictures, charts, tables and settings, without scripts or network requests."""

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image, UnidentifiedImageError

from refocus_jax.evaluation.tables import Chart, Table
from refocus_jax.reporting import charts

_LARGEST = 2 * 2**20  # bytes; a larger PNG file is converted to JPEG unless its pixels matter
_SMALL = 400  # pixels; pictures up to this width are enlarged
_HALF = 560  # pixels; half of the page's width


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
      source: A data URI.
      alt: A description for screen readers.
      caption: A caption, or "".
      width: The width of the file in pixels.
      crisp: Whether pixels matter. The picture is then enlarged pixel by pixel and never reduced, which could show
        patterns that are not in it.
    """

    source: str
    alt: str
    caption: str
    width: int
    crisp: bool
    kind: str = "picture"

    @property
    def shown_width(self) -> int:
        """The width in the page's pixels, if there is room."""
        return 2 * self.width if self.width <= _SMALL else self.width


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A chart; `name` is unique in the page and begins its ids."""

    name: str
    chart: Chart
    caption: str
    kind: str = "chart"

    @property
    def svg(self) -> Markup:
        """The chart as an `<svg>` element."""
        return Markup(charts.svg(self.chart, self.name))


@dataclasses.dataclass(frozen=True)
class Tabled:
    """A table. Columns of numbers, and of words that begin with a digit, are aligned to the right.

    Attributes:
      table: The table.
      meanings: Explanations below the names of rows, one for each row, or empty.
      folded: Whether only the title is shown until it is clicked.
    """

    table: Table
    meanings: Sequence[str] = ()
    folded: bool = False
    kind: str = "table"

    @property
    def numeric(self) -> set[int]:
        """The columns that are aligned to the right."""
        def is_number(value):
            return value is None or isinstance(value, int | float) or bool(re.match(r"[-+~<>]?\d", str(value)))

        return {i for i in range(1, len(self.table.columns)) if all(is_number(row[i]) for row in self.table.rows)}


@dataclasses.dataclass(frozen=True)
class Missing:
    """A note that something is missing, with the command that makes it, if there is one."""

    text: str
    command: str = ""
    kind: str = "missing"


@dataclasses.dataclass(frozen=True)
class Words:
    """A list of sentences."""

    title: str
    lines: Sequence[str]
    kind: str = "words"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Nested settings, folded up."""

    title: str
    content: Mapping[str, Any]
    kind: str = "settings"


Item = Picture | Drawing | Tabled | Missing | Words | Settings


@dataclasses.dataclass(frozen=True)
class Group:
    """Items under a heading, next to each other if there is room; groups of one small item share a row."""

    id: str
    title: str
    items: Sequence[Item]
    note: str = ""

    @property
    def wide(self) -> bool:
        """Whether the group takes the whole width of the page."""
        first = self.items[0]
        large = isinstance(first, Picture) and first.width > _HALF
        return len(self.items) > 1 or large or isinstance(first, Tabled | Settings)


@dataclasses.dataclass(frozen=True)
class Section:
    """Groups under a heading that is in the table of contents; they fill rows, or columns if `columns` is set."""

    id: str
    title: str
    groups: Sequence[Group]
    intro: str = ""
    columns: bool = False


def render(title: str, sections: Sequence[Section], subtitles: Sequence[str] = ()) -> str:
    """Makes the page; all text is escaped. `subtitles` are lines below the title."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "breakable": breakable}
    return environment.get_template("page.html.jinja").render(title=title, sections=sections,
                                                                  subtitles=subtitles)


def breakable(name: str) -> Markup:
    """Escapes a name, and lets a browser break it after _, / and . but not inside a word."""
    return Markup(re.sub(r"([_/.])(?=\w)", r"\1<wbr>", str(escape(name))))


def cell(value: Any) -> str:
    """Formats the value of a cell: a number with four digits, a text, a list, or a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not a number" if math.isnan(value) else str(value)
    return value if isinstance(value, str) else json.dumps(value)


def picture(path: Path, alt: str, caption: str = "", crisp: bool = False) -> Item:
    """Embeds a picture file; if it is large and its pixels do not matter, as a JPEG."""
    try:
        with Image.open(path) as image:
            data, form, width = path.read_bytes(), image.format, image.width
            if len(data) > _LARGEST and form == "PNG" and not crisp:
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, format="JPEG", quality=90, subsampling=0)
                data, form = buffer.getvalue(), "JPEG"
                caption = f"{caption} (a JPEG of {path.name})".strip()
    except (FileNotFoundError, UnidentifiedImageError):
        return Missing(f"{path.name} does not exist, or is not a picture.")
    assert form is not None  # Pillow knows the format of a file that it has opened
    source = f"data:image/{form.lower()};base64,{base64.b64encode(data).decode()}"
    return Picture(source, alt, caption, width, crisp)

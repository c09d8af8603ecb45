"""Collects the results of measurements, writes them to files and prints them."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refocus_jax.evaluation import tables
from refocus_jax.evaluation.tables import Chart, Table
from refocus_jax.runtime.files import atomically, write_json


@dataclasses.dataclass
class Findings:
    """Results of measurements, in the order in which they are shown.

    Attributes:
      tables: The tables.
      charts: The charts.
      pictures: The title, note and uint8 image of each picture.
      skipped: What could not be measured, and why.
    """

    tables: list[Table] = dataclasses.field(default_factory=list)
    charts: list[Chart] = dataclasses.field(default_factory=list)
    pictures: list[tuple[str, str, np.ndarray]] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def add(self, tables: list[Table], lines: list[Chart]) -> None:
        """Adds tables and charts."""
        self.tables += tables
        self.charts += lines

    def write(self, path: Path, settings: dict[str, Any]) -> None:
        """Writes a PNG file per picture and chart, and then the JSON file next to them, which names the pictures."""
        from refocus_jax.reporting import charts  # matplotlib, which is optional

        path.parent.mkdir(parents=True, exist_ok=True)
        for title, _, image in self.pictures:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG")
            _write(path.with_name(_file_name(title)), buffer.getvalue())
        for chart in self.charts:
            _write(path.with_name(_file_name(chart.title)), charts.png(chart))
        write_json(path, {
            "tables": [tables.to_json(table) for table in self.tables],
            "charts": [tables.to_json(chart) for chart in self.charts],
            "pictures": [{"file": _file_name(title), "title": title, "note": note} for title, note, _ in self.pictures],
            "settings": settings | {"skipped": self.skipped}})

    def print(self) -> None:
        """Prints the tables and what was not measured."""
        for table in self.tables:
            print(tables.text(table), end="\n\n")
        for reason in self.skipped:
            print(f"Not measured: {reason}.")


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "_", title.lower()) + ".png"


def _write(path: Path, content: bytes) -> None:
    with atomically(path) as temporary:
        temporary.write_bytes(content)

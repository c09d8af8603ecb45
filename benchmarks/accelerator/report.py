"""The results of the benchmark: rows, written to JSON and to a table as soon as they are known."""

import dataclasses
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib

from refocus_jax.planning import targets
from refocus_jax.runtime.files import atomically, write_json

GIB = 2**30
LONGEST_ERROR = 200
HEADER = ("| part | what | result | of the peak | GiB, counted / planned | compile s, empty / warm cache | "
          "public anchor |\n| --- | --- | --- | --- | --- | --- | --- |")

# A measurement returns a row: `result` (text), and any of the names that `line` reads, or others for the JSON.
Measurement = Callable[[], dict[str, Any]]


class BudgetSpent(Exception):
    """No further measurement may begin."""


@dataclasses.dataclass
class Report:
    """Takes measurements and keeps what they found.

    Attributes:
      folder: Where accelerator.json and accelerator.md are written.
      seconds: After so many seconds, no measurement begins.
      machine: What is measured, for the JSON.
      rows: The results so far.
    """

    folder: Path
    seconds: float
    machine: Mapping[str, Any]
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self._began = time.monotonic()
        print(f"{self.title}\n\n{HEADER}", flush=True)

    @property
    def title(self) -> str:
        """One line on the machine."""
        m = self.machine
        peak = "an unknown peak" if m["peak_flops"] is None else f"{m['peak_flops'] / 1e12:.0f} TFLOP/s"
        return (f"{m['device_kind']} ({m['device_count']} here, 1 measured), {peak}, {m['dtype']}, jax {m['jax']}, "
                f"jaxlib {m['jaxlib']}{', small sizes: times mean nothing' if m['small'] else ''}")

    def run(self, name: str, part: Callable[[], Iterable[tuple[str, Measurement]]]) -> None:
        """Takes the measurements of a part; one that fails is noted and leaves the others."""
        try:
            self._check_budget()
            for what, measure in part():
                self._check_budget()
                gc.collect()  # a failed measurement may have left arrays
                try:
                    row = measure()
                except Exception as error:
                    row = {"error": one_line(error)}
                self._add({"part": name, "what": what, **row})
        except BudgetSpent as spent:
            self._add({"part": name, "what": "what is left", "skipped": str(spent)})
        except Exception as error:
            self._add({"part": name, "what": "all", "error": one_line(error)})

    @property
    def failed_checks(self) -> list[str]:
        """The checks that did not pass."""
        return [f"{row['part']}, {row['what']}" for row in self.rows if row.get("passed") is False]

    def _check_budget(self) -> None:
        if time.monotonic() - self._began >= self.seconds:
            raise BudgetSpent(f"the {self.seconds:g} seconds are over; give more --seconds, or only some --parts")

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append({**row, "at_seconds": time.monotonic() - self._began})
        print(line(row), flush=True)
        write_json(self.folder / "accelerator.json", {"machine": dict(self.machine), "rows": self.rows})
        with atomically(self.folder / "accelerator.md") as temporary:
            temporary.write_text("\n".join([self.title, "", HEADER, *map(line, self.rows), ""]), encoding="utf-8")


def machine(device: jax.Device, dtype: str, small: bool) -> dict[str, Any]:
    """Describes what is measured."""
    return {"device_kind": device.device_kind, "platform": device.platform, "device_count": jax.device_count(),
            "jax": jax.__version__, "jaxlib": jaxlib.__version__, "dtype": dtype, "small": small,
            "peak_flops": targets.peak_flops(device.device_kind),
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit")}


def one_line(error: Exception) -> str:
    """Says an error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."


def line(row: Mapping[str, Any]) -> str:
    """Writes a row of the table."""
    if "error" in row or "skipped" in row:
        result = f"failed: {row['error']}" if "error" in row else f"skipped: {row['skipped']}"
    else:
        result = row["result"] + {True: " (passed)", False: " (FAILED)", None: ""}[row.get("passed")]
    cells = [row["part"], row["what"], result, _said(row.get("share_of_peak"), "{:.1%}"),
             _pair(*(size and size / GIB for size in (row.get("counted_bytes"), row.get("planned_bytes"))), "{:.3g}"),
             _pair(row.get("compile_seconds"), row.get("warm_compile_seconds"), "{:.1f}"), row.get("anchor", "-")]
    return f"| {' | '.join(cells)} |"


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _pair(first: float | None, second: float | None, form: str) -> str:
    return "-" if first is second is None else f"{_said(first, form)} / {_said(second, form)}"

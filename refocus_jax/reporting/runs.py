"""Reads what a workdir holds for reports and comparisons: settings, curves and evaluations, if they exist."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refocus_jax.config import saved
from refocus_jax.config.base import STAGES
from refocus_jax.runtime import bucket, command_line
from refocus_jax.runtime.files import read_json
from refocus_jax.runtime.writer import read_metrics

# How the names of metrics begin that depend on the machine; all others are the same when a run is repeated.
OF_THE_MACHINE = ("time", "images_per_second", "mfu", "seconds/", "peak_bytes/")


class Curve(NamedTuple):
    """A logged number over the steps, float64; it may contain NaN and infinities."""

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one training stage has written.

    Attributes:
      name: The name of the stage.
      curves: All numbers of metrics.jsonl except the steps, by name; "time" is in seconds since 1970.
      evaluation: The numbers of the last evaluation.json, with "step".
      made_on: When and on which machine its last call began, with versions and the settings of the command; empty for
        runs of older versions.
    """

    name: str
    curves: Mapping[str, Curve]
    evaluation: Mapping[str, float]
    made_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 if there is none."""
        return int(self.curves["time"].steps[-1]) if self.curves else 0


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A workdir on disk.

    Attributes:
      path: Its path.
      config: Its config.json, with defaults for settings that are missing in it.
      stages: The stages that have begun, by name.
      evaluation: The result of --mode=evaluate; None if there is none.
    """

    path: Path
    config: Mapping[str, Any]
    stages: Mapping[str, Stage]
    evaluation: Mapping[str, Any] | None = None

    @property
    def place(self) -> str:
        """Its address in a bucket if it is there, or else its path."""
        return bucket.address(self.path)

    @property
    def name(self) -> str:
        """The last part of its address or path."""
        return self.place.rpartition("/")[2] if bucket.is_url(self.place) else self.path.resolve().name

    def steps(self, stage: str) -> int:
        """Returns the number of steps that a stage is to train."""
        return self.config[stage]["train"]["steps"]

    def command(self, mode: str) -> str:
        """Returns the command that runs a mode in this workdir; with CONFIG for the config if it is not known."""
        known = [found.made_on["settings"] for found in self.stages.values() if found.made_on.get("settings")]
        return command_line.command(known[-1] if known else ["--config=CONFIG"], self.place, mode)

    def last_numbers(self, stage: str) -> dict[str, float]:
        """Returns the numbers of the last evaluation of a stage that has begun, and those of --mode=evaluate."""
        during = {name: value for name, value in self.stages[stage].evaluation.items() if name != "step"}
        return during | dict((self.evaluation or {}).get(stage, {}))


def read(workdir: str | Path) -> RecordedRun:
    """Reads a workdir, also while it trains.

    Raises:
      FileNotFoundError: There is no run in it.
      ValueError: A file in it is damaged.
    """
    path = Path(workdir)
    c, class_names = saved.read(path)
    config = json.loads(c.to_json()) | {"class_names": list(class_names)}
    stages = {name: _stage(path / name) for name in STAGES if (path / name / "metrics.jsonl").exists()}
    return RecordedRun(path, config, stages, read_json(path / "evaluation.json"))


def _stage(directory: Path) -> Stage:
    evaluation = read_json(directory / "evaluation.json") or {}
    return Stage(directory.name, _curves(directory / "metrics.jsonl"),
                 {name: value if name == "step" else float(value) for name, value in evaluation.items()},
                 read_json(directory / "made_on.json") or {})


def _curves(metrics: Path) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for line in read_metrics(metrics):
        step = line.values.pop("step")
        for name, value in line.values.items():
            points.setdefault(name, []).append((step, value))
    return {name: Curve(*map(np.array, zip(*sorted(found, key=lambda point: point[0]), strict=True)))
            for name, found in points.items()}

"""What a workdir holds, for reports and comparisons: settings, curves and evaluations, as far as they are there."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refocus_jax.config import saved
from refocus_jax.config.base import STAGES
from refocus_jax.runtime.files import read_json
from refocus_jax.runtime.writer import read_metrics

# Beginnings of the names of what the machine has to do with: all else is the same again when a run is repeated.
OF_THE_MACHINE = ("time", "images_per_second", "mfu", "seconds/", "peak_bytes/")


class Curve(NamedTuple):
    """A logged number over the steps, float64; nan and the infinities where they were logged."""

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one training stage has written.

    Attributes:
      curves: by name, every number of metrics.jsonl but the steps; "time" is in seconds since 1970.
      evaluation: the numbers of the last evaluation.json, "step" among them.
    """

    name: str
    curves: Mapping[str, Curve]
    evaluation: Mapping[str, float]

    @property
    def last_step(self) -> int:
        """The last that was logged; 0 if none was."""
        return int(self.curves["time"].steps[-1]) if self.curves else 0


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A workdir on disk.

    Attributes:
      config: its config.json, laid over the defaults. stages: those that have begun, by name. evaluation: what
      --mode=evaluate has written, None if it has not been asked.
    """

    path: Path
    config: Mapping[str, Any]
    stages: Mapping[str, Stage]
    evaluation: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def steps(self, stage: str) -> int:
        """How many a stage shall have."""
        return self.config[stage]["train"]["steps"]

    def last_numbers(self, stage: str) -> dict[str, float]:
        """Of a stage that has begun: those of its last evaluation, and those of --mode=evaluate."""
        during = {name: value for name, value in self.stages[stage].evaluation.items() if name != "step"}
        return during | dict((self.evaluation or {}).get(stage, {}))


def read(workdir: str | Path) -> RecordedRun:
    """Reads a workdir, also one whose training goes on.

    Raises:
      FileNotFoundError: there is no run in it. ValueError: a file of it cannot be understood.
    """
    path = Path(workdir)
    c, class_names = saved.read(path)
    config = json.loads(c.to_json()) | {"class_names": list(class_names)}
    stages = {name: _stage(path / name) for name in STAGES if (path / name / "metrics.jsonl").exists()}
    return RecordedRun(path, config, stages, read_json(path / "evaluation.json"))


def _stage(directory: Path) -> Stage:
    evaluation = read_json(directory / "evaluation.json") or {}
    return Stage(directory.name, _curves(directory / "metrics.jsonl"),
                 {name: value if name == "step" else float(value) for name, value in evaluation.items()})


def _curves(metrics: Path) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(metrics):
        step = line.values.pop("step")
        for name, value in line.values.items():
            points.setdefault(name, []).append((step, value))
    return {name: Curve(*map(np.array, zip(*sorted(found, key=lambda point: point[0]), strict=True)))
            for name, found in points.items()}

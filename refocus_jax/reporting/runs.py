"""What a workdir holds, for reports and comparisons: settings, curves and evaluations, as far as they are there."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refocus_jax.runtime.writer import read_metrics

STAGES = ("tokenizer", "generator")
# Beginnings of the names of what the machine has to do with: all else is the same again when a run is repeated.
OF_THE_MACHINE = ("time", "images_per_second", "seconds/", "peak_bytes/")


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
      config: its config.json. stages: those that have begun, by name. evaluation: what --mode=evaluate has written,
      None if it has not been asked.
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
        return self.config[f"{stage}_training"]["steps"]

    def last_numbers(self, stage: str) -> dict[str, float]:
        """Of a stage that has begun: those of its last evaluation, and those of --mode=evaluate."""
        during = {name: value for name, value in self.stages[stage].evaluation.items() if name != "step"}
        return during | dict((self.evaluation or {}).get(stage, {}))


# What a report asks of a config.json.
_REPORTED = ("seed", "class_names", "image_size", "grid_sizes", "data.source", "focus.psf", "tokenizer_from",
             "tokenizer.pyramid", "tokenizer.residual", "tokenizer.vocab_size", "generator.depth", "generator.width",
             "teacher.enabled", *(f"{stage}_{name}" for stage in STAGES for name in (
                 "batch_size", "training.steps", "training.evaluate_every")))


def read(workdir: str | Path) -> RecordedRun:
    """Reads a workdir, also one whose training goes on.

    Raises:
      FileNotFoundError: there is no run in it. ValueError: a file of it cannot be understood.
    """
    path = Path(workdir)
    config = read_config(path, _REPORTED)
    stages = {name: _stage(path / name) for name in STAGES if (path / name / "metrics.jsonl").exists()}
    return RecordedRun(path, config, stages, read_json(path / "evaluation.json"))


def read_config(workdir: str | Path, needed: Sequence[str]) -> dict[str, Any]:
    """What config.json of a workdir says; `needed` are settings that it must have.

    Raises:
      FileNotFoundError: there is no run in it. ValueError: the file is damaged.
    """
    path = Path(workdir)
    config = read_json(path / "config.json", needed)
    if config is None:
        lacks = "it has no config.json" if path.is_dir() else "it is a file" if path.exists() else "it does not exist"
        raise FileNotFoundError(f"{path} is not the workdir of a run: {lacks}; give the --workdir of a training that "
                                "has started")
    return config


def read_json(path: Path, needed: Sequence[str] = ()) -> dict[str, Any] | None:
    """The object in a JSON file, None if the file is not there.

    Args:
      needed: what it must hold; "a.b" is b in a.

    Raises:
      ValueError: it is damaged, does not hold an object, or lacks what is needed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} instead of an object")
        if missing := set(needed) - _names(content):
            raise ValueError(f"it lacks {', '.join(name for name in needed if name in missing)}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:  # also of bytes that are not UTF-8
        raise ValueError(f"{path} is damaged ({error}); remove it, and the command that wrote it makes it "
                         "again") from error
    return content


def _names(content: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Of all that an object holds, as "a" and "a.b"."""
    found = {f"{prefix}{name}" for name in content}
    return found.union(*(_names(value, f"{prefix}{name}.") for name, value in content.items()
                         if isinstance(value, dict)))


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

"""From rows to configs: what a study trains all rows with, and the config and workdir of each training."""

import ast
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.study.rows import ROWS, TOKENIZERS, Row
from refocus_jax.config import catalog
from refocus_jax.config.base import SETTINGS
from refocus_jax.runtime.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the command line says about a training.

    Attributes:
      config: The value of --config.
      settings: The values of --config.SETTING, by name.
    """

    config: str
    settings: Mapping[str, Any]

    def load(self) -> ConfigDict:
        c = catalog.load(self.config)
        c.update_from_flattened_dict(dict(self.settings))
        return c

    def flags(self) -> list[str]:
        return [f"--config={self.config}", *(f"--config.{name}={value}" for name, value in self.settings.items())]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What all rows have in common.

    Attributes:
      directory: Where everything is written.
      base: The config that the rows change: a name or a path.
      data: The data source.
      settings: Settings of all rows, by name.
      features: The networks that judge samples; the last one judges the comparisons.
      guidance: The strengths of guidance that samples are drawn with; the first one is compared.
    """

    directory: Path
    base: str
    data: str
    settings: Mapping[str, Any]
    features: Sequence[str]
    guidance: Sequence[float]

    @property
    def results(self) -> Path:
        return self.directory / "results"

    @property
    def references(self) -> Path:
        """Features of the images that all rows are compared with."""
        return self.directory / "references"

    def result(self, row: str, seed: int) -> Path:
        return self.results / f"{row}-{seed}.json"

    def workdir(self, row: str, seed: int) -> Path:
        return self.directory / row / str(seed)

    def tokenizer_workdir(self, name: str, seed: int) -> Path:
        return self.directory / "tokenizers" / name / str(seed)

    def tokenizer(self, name: str, seed: int) -> Recipe:
        """Returns how a tokenizer is trained."""
        chosen = TOKENIZERS[name]
        recipe = self._recipe(chosen.arguments, chosen.settings, seed)
        if chosen.lengthening == 1:
            return recipe
        t = recipe.load().tokenizer
        longer = {"tokenizer.train.steps": t.train.steps, "tokenizer.adversarial.start": t.adversarial.start}
        return Recipe(recipe.config, {**recipe.settings, **{
            setting: round(chosen.lengthening * steps) for setting, steps in longer.items()}})

    def generator(self, row: Row, seed: int) -> Recipe:
        """Returns how the stage 2 of a row is trained."""
        where = self.tokenizer_workdir(row.tokenizer, seed).resolve()
        return self._recipe(row.arguments, {**row.settings, "tokenizer.pretrained": str(where)}, seed)

    def _recipe(self, arguments: str, settings: Mapping[str, Any], seed: int) -> Recipe:
        name, _, given = self.base.partition(":")
        together = ",".join(filter(None, (given, arguments)))
        return Recipe(f"{name}:{together}" if together else name,
                      {**self.settings, "data.source": self.data, **settings, "seed": seed})

    def write(self) -> None:
        """Writes study.json, or checks that the one that is there says the same.

        Raises:
          ValueError: It says something else.
        """
        says = {name: value for name, value in dataclasses.asdict(self).items() if name != "directory"}
        says, there = json.loads(json.dumps(says)), read_json(self.directory / "study.json")
        if there is None:
            write_json(self.directory / "study.json", says)
        elif changed := [name for name in says if says[name] != there.get(name)]:
            raise ValueError(f"--directory {self.directory} holds another study: " + "; ".join(
                f"{name} was {there.get(name)!r} and is {says[name]!r}" for name in changed)
                + "; give them as they were, or another directory")


def read(directory: Path) -> Study:
    """Reads the study of a directory.

    Raises:
      FileNotFoundError: There is none.
    """
    says = read_json(directory / "study.json", [field.name for field in dataclasses.fields(Study)[1:]])
    if says is None:
        raise FileNotFoundError(f"--directory {directory} holds no study.json; give the directory of `run`")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in says["settings"].items()}
    return Study(directory=directory, **{**says, "settings": settings})


def parse_setting(flag: str) -> tuple[str, Any]:
    """Parses --config.SETTING=VALUE to the name and the value of the setting.

    Raises:
      ValueError: There is no such setting, or the rows set it.
    """
    name, _, value = flag.removeprefix("--config.").partition("=")
    taken = {"seed", "data.source", "tokenizer.pretrained"}.union(
        *(chosen.settings for chosen in (*TOKENIZERS.values(), *ROWS.values())))
    if not flag.startswith("--config.") or name not in SETTINGS or name in taken:
        raise ValueError(f"{flag} is not a setting that all rows can share; give --config.SETTING=VALUE")
    default = SETTINGS[name].default
    if isinstance(default, str):
        return name, value
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise ValueError(f"{flag}: {value!r} is not {SETTINGS[name].range.says}; give that") from None

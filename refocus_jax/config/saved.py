"""The config saved in a workdir: its config.json, applied to the defaults."""

import logging
import os
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from refocus_jax.config import base, check
from refocus_jax.runtime.files import read_json


def read(workdir: str | os.PathLike) -> tuple[ConfigDict, tuple[str, ...]]:
    """Reads the config that a workdir was made with, and the names of its classes.

    Settings that did not exist yet when the workdir was made have their defaults.

    Raises:
      FileNotFoundError: There is no run in the workdir.
      ValueError: Its config.json is damaged, or a setting is out of range.
    """
    path = Path(workdir)
    values = read_json(path / "config.json", ("class_names",))
    if values is None:
        lacks = "it has no config.json" if path.is_dir() else "it is a file" if path.exists() else "it does not exist"
        raise FileNotFoundError(f"{path} is not the workdir of a run: {lacks}; give the --workdir of a training that "
                                "has started")
    class_names = tuple(values.pop("class_names"))
    try:
        return _lay_over(values, path / "config.json"), class_names
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path / 'config.json'} is damaged ({error}); correct it, or remove it and run the "
                         "training's command again, which writes it") from error


def _lay_over(values: dict[str, Any], path: Path) -> ConfigDict:
    """Returns the defaults with some values replaced; values of unknown settings are left out with a warning.

    Args:
      values: The values, in nested dictionaries.
      path: The file that they come from, for the warning.

    Raises:
      ValueError: A value is out of the range of its setting.
      TypeError: A value is of a wrong type.
    """
    c = base.get_config()
    flat = {name: tuple(value) if isinstance(value, list) else value
            for name, value in flatten_dict(values, sep=".").items()}
    unknown = sorted(flat.keys() - base.SETTINGS.keys())
    if sections := [name for name in unknown if any(other.startswith(f"{name}.") for other in base.SETTINGS)]:
        raise ValueError(f"{sections[0]} is {flat[sections[0]]!r} instead of a section of settings")
    if unknown:
        logging.warning("%s has settings that this version does not have; they are left out: %s", path,
                        ", ".join(unknown))
    c.update_from_flattened_dict({name: value for name, value in flat.items() if name in base.SETTINGS})
    check.check_ranges(c)
    return c

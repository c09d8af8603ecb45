"""The config files that ship with the package, by name; and loading them, or any other by its path."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

import refocus_jax
from refocus_jax.config.ranges import nearest


def shipped() -> dict[str, Path]:
    """Finds the config files that come with the package, by name: next to it in a clone, inside it in a wheel."""
    package = Path(refocus_jax.__file__).parent
    folder = next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def locate(config: str) -> str:
    """Turns the name of a shipped config in a `--config` value into the path of its file; a path stays as it is."""
    name, colon, argument = config.partition(":")
    path = shipped().get(name)
    return config if path is None else f"{path}{colon}{argument}"


def load(config: str) -> ConfigDict:
    """Loads a config for a notebook, as `--config` of the command line does: "tiny:smoke" or "my/config.py".

    Raises:
      ValueError: There is no such config, or it does not know the argument.
    """
    path, _, argument = locate(config).partition(":")
    if not Path(path).is_file():
        raise ValueError(f"there is no config {config!r}{nearest(config, shipped())}; give one of "
                         f"{', '.join(shipped())}, or the path of a file")
    spec = importlib.util.spec_from_file_location(f"refocus_jax_config_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None, f"{path} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument or None)

"""`--mode=config`: prints the value of every setting of a run and what the setting does."""

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from refocus_jax.config.base import SETTINGS


def run(c: ConfigDict, workdir: str) -> None:
    """Prints `name = value` and what the setting does; an asterisk marks values that differ from the defaults."""
    del workdir
    values = flatten_dict(c.to_dict(), sep=".")
    for name, setting in SETTINGS.items():
        mark = "*" if values[name] != setting.default else " "
        print(f"{mark} {f'{name} = {values[name]!r}':48}  {setting.line}")

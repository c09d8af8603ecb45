"""Checks of a config: every setting is in its range, and settings fit each other.

They run before anything is loaded, compiled or written. The dataclasses that use a setting (`Pyramid`,
`TeacherSettings`, `DrawSettings`) check choices among names and whatever only their module knows.
"""

import functools
import operator
import os
import re
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from refocus_jax.config.base import SETTINGS, STAGES
from refocus_jax.config.ranges import PATHS, is_path


def check_ranges(c: Any) -> None:
    """Raises a ValueError that names the first setting that is missing or out of range, and its range."""
    values = flatten_dict(c.to_dict(), sep=".")
    for name, setting in SETTINGS.items():
        if name not in values:
            raise ValueError(f"{name} is missing; give {setting.range.says}; its default is in "
                             "refocus_jax/config/base.py")
        if not setting.range.fits(values[name]):
            raise ValueError(f"{name} is {values[name]!r}; give {setting.range.says}")


def expand_paths(c: Any) -> None:
    """Expands `~` in all settings that are paths, also after a prefix: npz:~/images.npz."""
    for name, setting in SETTINGS.items():
        if is_path(setting.range):
            *sections, last = name.split(".")
            section = functools.reduce(operator.getitem, sections, c)
            value = section[last]
            section[last] = type(value)(map(expand_path, value)) if setting.range is PATHS else expand_path(value)


def expand_path(path: str) -> str:
    """Expands `~` and `~user` in a path or in PREFIX:PATH."""
    match = re.fullmatch(r"((?:\w+:(?=~))?)(.*)", path, re.DOTALL)
    assert match is not None  # the pattern fits every text
    prefix, path = match.groups()
    return prefix + os.path.expanduser(path)


def check_workdir(workdir: str | None) -> str:
    """Returns the path of a workdir with `~` expanded.

    Raises:
      ValueError: The path cannot be a directory.
    """
    if workdir is None or not workdir.strip():
        raise ValueError("--workdir is empty; give a directory for this run, such as --workdir=runs/tiny")
    if "://" in workdir:
        raise ValueError(f"--workdir is {workdir}, which is not a directory; give one, on a file system that all "
                         "machines see (a bucket can be mounted, for example with gcsfuse)")
    expanded = os.path.expanduser(workdir)
    for path in (Path(expanded), *Path(expanded).parents):
        if os.path.exists(path) and not os.path.isdir(path):
            which = "which is a file" if path == Path(expanded) else f"below {path}, which is a file"
            raise ValueError(f"--workdir is {workdir}, {which}; give a directory, existing or new")
    return expanded


def check(c: Any, num_devices: int) -> None:
    """Raises a ValueError that names the first setting that is out of range or conflicts with another, and the remedy.

    Args:
      c: A ConfigDict.
      num_devices: The number of devices that share a batch.
    """
    check_ranges(c)
    for stage in STAGES:
        size, parts = c[stage].train.batch_size, c[stage].train.microbatches
        if size % (num_devices * parts):
            shared = f"{num_devices} devices" + (f" and {stage}.train.microbatches {parts}" if parts > 1 else "")
            raise ValueError(f"{stage}.train.batch_size is {size}, which {shared} cannot share evenly; give a "
                             f"multiple of {num_devices * parts}")
    teacher, train = c.generator.teacher, c.generator.train
    if teacher.enabled and teacher.alias == "class" and train.batch_size < 2 * train.microbatches:
        raise ValueError(f"generator.teacher.alias is 'class', but a part of a batch has one image only "
                         f"(generator.train.batch_size {train.batch_size}, microbatches {train.microbatches}); give a "
                         "larger batch or fewer microbatches")
    model, alias, discriminator = c.tokenizer.model, c.tokenizer.alias, c.tokenizer.discriminator
    student = c.generator.model
    channels = [model.channels * m for m in model.channel_multipliers]
    _divides("tokenizer.model.norm_groups", model.norm_groups, "tokenizer.model.channels times its multipliers",
             channels)
    if not alias.shared:
        _divides("tokenizer.alias.norm_groups", alias.norm_groups, "tokenizer.alias.channels", [alias.channels])
    _divides("tokenizer.discriminator.norm_groups", discriminator.norm_groups, "tokenizer.discriminator.channels",
             [discriminator.channels])
    _divides("generator.model.num_heads", student.num_heads, "generator.model.width", [student.width])
    if model.num_phi > len(c.grid_sizes):
        raise ValueError(f"tokenizer.model.num_phi is {model.num_phi}, more than the {len(c.grid_sizes)} scales of "
                         "grid_sizes that share them; give at most that")
    if c.focus.psf != "none" and c.focus.rho_max > c.image_size / 2:
        raise ValueError(f"focus.rho_max is {c.focus.rho_max} pixels, more than half of image_size {c.image_size}; "
                         f"give at most {c.image_size / 2:g} (the paper's is 12 for down-sampling by 8, 4 and 2)")
    if 0 < c.data.token_examples < c.generator.train.batch_size:
        raise ValueError(f"data.token_examples is {c.data.token_examples}, less than a batch of "
                         f"{c.generator.train.batch_size} (generator.train.batch_size); give at least that, or 0 to "
                         "make tokens on the fly")
    if c.data.validation_examples < max(c.tokenizer.train.batch_size, c.generator.train.batch_size):
        raise ValueError(f"data.validation_examples is {c.data.validation_examples}, less than a batch "
                         f"({c.tokenizer.train.batch_size} and {c.generator.train.batch_size}); give at least as many")


def _divides(name: str, value: int, other_name: str, others: list[int]) -> None:
    for other in others:
        if other % value:
            raise ValueError(f"{name} is {value}, which does not divide {other} ({other_name}); give a divisor")

"""What a config may say: every setting with its range, and which settings must fit each other.

It is asked before anything is loaded, compiled or written. Choices among names, and what only a module knows, are left
to the dataclasses that have them (`Pyramid`, `TeacherSettings`, `DrawSettings`).
"""

import difflib
import functools
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from refocus_jax.evaluation.image_sets import MIN_IMAGES
from refocus_jax.models import autoencoder, transformer


class Range(NamedTuple):
    fits: Callable[[Any], bool]
    says: str


def _number(fits: Callable[[Any], bool], says: str) -> Range:
    """Of finite numbers: neither nan nor a truth value fits."""
    return Range(lambda v: isinstance(v, numbers.Real) and not isinstance(v, bool) and math.isfinite(v) and fits(v),
                 says)


def _integer(fits: Callable[[Any], bool], says: str) -> Range:
    return Range(lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool) and fits(v),
                 f"{says} (an integer)")


def _tuple_of(element: Range, says: str, min_length: int = 0) -> Range:
    return Range(lambda v: isinstance(v, list | tuple) and len(v) >= min_length and all(map(element.fits, v)), says)


def _one_of(names: Iterable[str]) -> Range:
    return Range(lambda v: isinstance(v, str) and v in names, f"one of {', '.join(names)}")


POSITIVE = _integer(lambda v: v >= 1, "1 or more")
COUNT = _integer(lambda v: v >= 0, "0 or more")
NOT_NEGATIVE = _number(lambda v: v >= 0, "0 or more, and finite")
GREATER_THAN_ZERO = _number(lambda v: v > 0, "more than 0, and finite")
FRACTION = _number(lambda v: 0 <= v <= 1, "0 to 1")
BELOW_ONE = _number(lambda v: 0 <= v < 1, "0 or more and less than 1")
COMPARABLE = _integer(lambda v: v >= MIN_IMAGES, f"{MIN_IMAGES} or more")
SEED = _integer(lambda v: 0 <= v < 2**32, "0 to 2^32 - 1")
MESH_AXIS = _integer(lambda v: v == -1 or v >= 1, "1 or more, or -1 (the rest) for one axis")
SWITCH = Range(lambda v: isinstance(v, bool), "True or False")
DTYPE = _one_of(("float32", "bfloat16"))
# Choices that a dataclass or a module knows, which refuses what it does not know.
NAME = Range(lambda v: isinstance(v, str), "a name")
# A file or folder, "" or a name; maybe after a prefix, as in npz:PATH. `~` is expanded in all of them.
PATH = Range(lambda v: isinstance(v, str), "a path as text")
PATHS = _tuple_of(PATH, "a tuple of paths, ('runs/a', 'runs/b')")

_OPTIMIZER = {"learning_rate": NOT_NEGATIVE, "b1": BELOW_ONE, "b2": BELOW_ONE, "weight_decay": NOT_NEGATIVE,
              "weight_decay_end": NOT_NEGATIVE, "clip": GREATER_THAN_ZERO, "warmup": FRACTION,
              "warmup_initial": FRACTION, "flat": FRACTION, "final": FRACTION}
_TRAINING = {"steps": POSITIVE, "log_every": POSITIVE, "evaluate_every": POSITIVE, "save_every": POSITIVE,
             "keep": POSITIVE, "skip_nonfinite": COUNT}

# Every setting of configs/common.py.
RANGES: dict[str, Range] = {
    "seed": SEED,
    "image_size": _integer(lambda v: v >= 1, "1 or more: the side in pixels, as all images are square"),
    "grid_sizes": _tuple_of(POSITIVE, "sides of the token maps, increasing integers of 1 or more, as (1, 2, 4, 8)", 2),
    "mesh.data": MESH_AXIS, "mesh.fsdp": MESH_AXIS,
    "tokenizer_batch_size": POSITIVE, "generator_batch_size": POSITIVE,
    "tokenizer_batch_parts": POSITIVE, "generator_batch_parts": POSITIVE,
    "label_drop": FRACTION, "average_decay": BELOW_ONE, "samples_per_class": POSITIVE,
    "data.source": PATH, "data.num_classes": Range(lambda v: v is None or POSITIVE.fits(v), "None, or 1 or more"),
    "data.resize_ratio": _number(lambda v: v == 0 or v >= 1, "0 (native resolution), or 1 or more"),
    "data.flip": SWITCH, "data.num_workers": COUNT, "data.validation_examples": POSITIVE,
    "data.crops_per_image": POSITIVE, "data.tokens": PATH, "data.token_examples": COUNT,
    "data.class_depth": COUNT, "data.max_unreadable": FRACTION,
    "data.sixteen_bit_max": _integer(lambda v: v == 0 or 255 <= v < 2**16, "0 (recognised), or 255 to 65535"),
    "encode.passes": POSITIVE, "encode.output": PATH, "encode.shard_size": POSITIVE, "encode.batch_size": POSITIVE,
    "focus.psf": NAME, "focus.schedule": NAME, "focus.downsample": NAME, "focus.implementation": NAME,
    "focus.rho_max": GREATER_THAN_ZERO, "focus.noise_first": NOT_NEGATIVE, "focus.noise_last": NOT_NEGATIVE,
    "tokenizer_from": PATH, "init_from": PATH, "init_classes": _one_of(("same", "new")),
    "tokenizer.pyramid": NAME, "tokenizer.residual": SWITCH,
    **{f"tokenizer.{name}": POSITIVE for name in
       ("vocab_size", "latent_channels", "channels", "num_residual_blocks", "norm_groups")},
    "tokenizer.num_phi": COUNT, "tokenizer.dtype": DTYPE, "tokenizer.remat": _one_of(autoencoder.REMAT),
    "tokenizer.channel_multipliers": _tuple_of(POSITIVE, "a tuple of integers of 1 or more, as (1, 1, 2, 2)", 1),
    "alias.shared": SWITCH, "alias.num_residual_blocks": COUNT,
    **{f"alias.{name}": POSITIVE for name in ("vocab_size", "latent_channels", "channels", "norm_groups")},
    **{f"losses.{name}": NOT_NEGATIVE for name in
       ("l1", "l2", "view", "consistency", "commitment", "alias", "perceptual")},
    "perceptual": PATH,
    "revival.every": POSITIVE, "revival.stop_fraction": FRACTION,
    "adversarial.weight": NOT_NEGATIVE, "adversarial.start": COUNT, "adversarial.cap": GREATER_THAN_ZERO,
    "discriminator.channels": POSITIVE, "discriminator.num_layers": POSITIVE, "discriminator.norm_groups": POSITIVE,
    **{f"{stage}_optimizer.{name}": limits for stage in ("tokenizer", "discriminator", "generator")
       for name, limits in _OPTIMIZER.items()},
    **{f"{stage}_training.{name}": limits for stage in ("tokenizer", "generator")
       for name, limits in _TRAINING.items()},
    "generator.depth": POSITIVE, "generator.width": POSITIVE, "generator.num_heads": POSITIVE,
    "generator.qk_norm": SWITCH, "generator.shared_modulation": SWITCH, "generator.attention": NAME,
    "generator.gamma_init": NOT_NEGATIVE, "generator.drop_path_rate": BELOW_ONE, "generator.dtype": DTYPE,
    "generator.remat": _one_of(transformer.REMAT),
    "teacher.enabled": SWITCH, "teacher.share_weights": SWITCH, "teacher.train_shared": SWITCH, "teacher.gate": NAME,
    "teacher.num_alias_blocks": POSITIVE, "teacher.num_alias_scales": POSITIVE,
    "teacher.logit_weight": NOT_NEGATIVE, "teacher.feature_weight": NOT_NEGATIVE,
    "sampling.cfg": _number(lambda v: v >= 0, "a finite number, 0 (unguided) or more"),
    "sampling.top_k": COUNT, "sampling.top_p": FRACTION, "sampling.smooth": SWITCH,
    "draw.classes": Range(lambda v: isinstance(v, list | tuple) and all(COUNT.fits(e) or NAME.fits(e) for e in v),
                          "a tuple of numbers or names of classes, as (0, 'cat')"),
    "draw.count": POSITIVE, "draw.seed": SEED, "draw.batch_size": POSITIVE, "draw.format": NAME, "draw.output": PATH,
    "aliasing.images": POSITIVE, "aliasing.samples": PATH,
    "plan.programs": _tuple_of(NAME, "a tuple of programs, as ('tokenizer', 'generator')", 1),
    "plan.utilization": _number(lambda v: 0 < v <= 1, "more than 0, and at most 1"),
    "plan.search_batch": SWITCH, "plan.optimization": _one_of(("O0", "O1", "O2", "O3")),
    "evaluation.parts": Range(
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(part in ("tokenizer", "generator") for part in v),
        "('tokenizer', 'generator') or one of them"),
    "evaluation.features": PATH, "evaluation.samples": PATH, "evaluation.reference": PATH,
    "evaluation.count": COMPARABLE, "evaluation.reference_count": COMPARABLE, "evaluation.batch_size": POSITIVE,
    "evaluation.seed": SEED,
    "evaluation.during_training": _integer(lambda v: v == 0 or v >= MIN_IMAGES, f"0 (off), or {MIN_IMAGES} or more"),
    "edit.image": PATH, "edit.mask": PATH, "edit.label": NAME, "edit.count": POSITIVE, "edit.seed": SEED,
    "report.compare": PATHS, "report.reference": PATH,
}


def check_ranges(c: Any) -> None:
    """Raises a ValueError that names the first setting that is missing or out of its range, and the range."""
    values = flatten_dict(c.to_dict(), sep=".")
    for name, limits in RANGES.items():
        if name not in values:
            raise ValueError(f"{name} is missing; give {limits.says}, as configs/common.py does")
        if not limits.fits(values[name]):
            raise ValueError(f"{name} is {values[name]!r}; give {limits.says}")
    for stage in ("tokenizer", "discriminator", "generator"):
        warmup, flat = (values[f"{stage}_optimizer.{name}"] for name in ("warmup", "flat"))
        if warmup + flat > 1 + 1e-9:
            raise ValueError(f"{stage}_optimizer.warmup is {warmup} and {stage}_optimizer.flat is {flat}, in sum more "
                             f"than 1; give at most 1 (flat is a share of what warmup leaves; for a learning rate that "
                             f"stays after it, set {stage}_optimizer.final=1)")


def expand_paths(c: Any) -> None:
    """Expands `~` in all settings that are paths, also after a prefix: npz:~/images.npz."""
    for name, limits in RANGES.items():
        if limits in (PATH, PATHS):
            *sections, last = name.split(".")
            section = functools.reduce(operator.getitem, sections, c)
            value = section[last]
            section[last] = expand_path(value) if limits is PATH else type(value)(map(expand_path, value))


def expand_path(path: str) -> str:
    """A path, or PREFIX:PATH, with `~` and `~user` as the directories that they stand for."""
    prefix, path = re.fullmatch(r"((?:\w+:(?=~))?)(.*)", path, re.DOTALL).groups()
    return prefix + os.path.expanduser(path)


def check_workdir(workdir: str | None) -> str:
    """The path of a workdir with `~` expanded.

    Raises:
      ValueError: there can be no directory of this path.
    """
    if not (workdir or "").strip():
        raise ValueError("--workdir is empty; give a directory for this run, as --workdir=runs/tiny")
    if "://" in workdir:
        raise ValueError(f"--workdir is {workdir}, which is not a directory; give one, of a file system that all "
                         "machines see (buckets can be mounted, as by gcsfuse)")
    expanded = os.path.expanduser(workdir)
    for path in (Path(expanded), *Path(expanded).parents):
        if os.path.exists(path) and not os.path.isdir(path):
            which = "which is a file" if path == Path(expanded) else f"below {path}, which is a file"
            raise ValueError(f"--workdir is {workdir}, {which}; give a directory, one that is there or a new one")
    return expanded


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that is most like a misspelled one, as words; nothing where there are no names."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f" (the nearest is {found[0]})" if found else ""


def check(c: Any, num_devices: int) -> None:
    """Raises a ValueError that names the first setting out of its range or in conflict with another, and the remedy.

    Args:
      c: a ConfigDict. num_devices: that share a batch.
    """
    check_ranges(c)
    for stage in ("tokenizer", "generator"):
        size, parts = c[f"{stage}_batch_size"], c[f"{stage}_batch_parts"]
        if size % (num_devices * parts):
            shared = f"{num_devices} devices" + (f" and {stage}_batch_parts {parts}" if parts > 1 else "")
            raise ValueError(f"{stage}_batch_size is {size}, which {shared} cannot share evenly; give a multiple of "
                             f"{num_devices * parts}")
    channels = [c.tokenizer.channels * m for m in c.tokenizer.channel_multipliers]
    _divides("tokenizer.norm_groups", c.tokenizer.norm_groups, "tokenizer.channels times its multipliers", channels)
    if not c.alias.shared:
        _divides("alias.norm_groups", c.alias.norm_groups, "alias.channels", [c.alias.channels])
    _divides("discriminator.norm_groups", c.discriminator.norm_groups, "discriminator.channels",
             [c.discriminator.channels])
    _divides("generator.num_heads", c.generator.num_heads, "generator.width", [c.generator.width])
    if c.tokenizer.num_phi > len(c.grid_sizes):
        raise ValueError(f"tokenizer.num_phi is {c.tokenizer.num_phi}, more than the {len(c.grid_sizes)} scales of "
                         "grid_sizes that share them; give at most that")
    if c.focus.psf != "none" and c.focus.rho_max > c.image_size / 2:
        raise ValueError(f"focus.rho_max is {c.focus.rho_max} pixels, more than half of image_size {c.image_size}; "
                         f"give at most {c.image_size / 2:g} (the paper's is {12 * c.image_size / 256:g} here)")
    if 0 < c.data.token_examples < c.generator_batch_size:
        raise ValueError(f"data.token_examples is {c.data.token_examples}, less than a batch of "
                         f"{c.generator_batch_size} (generator_batch_size); give at least that, or 0 to make tokens "
                         "on the fly")
    if c.data.validation_examples < max(c.tokenizer_batch_size, c.generator_batch_size):
        raise ValueError(f"data.validation_examples is {c.data.validation_examples}, less than a batch "
                         f"({c.tokenizer_batch_size} and {c.generator_batch_size}); give at least as many")


def _divides(name: str, value: int, other_name: str, others: list[int]) -> None:
    for other in others:
        if other % value:
            raise ValueError(f"{name} is {value}, which does not divide {other} ({other_name}); give a divisor")

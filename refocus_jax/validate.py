"""What a config may say: every setting with its range, and which settings must fit each other.

It is asked before anything is compiled or written. Choices among names, and what only a module knows, are left to the
dataclasses that have them (`Pyramid`, `TeacherSettings`, `DrawSettings`).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from refocus_jax.evaluation.image_sets import MIN_IMAGES
from refocus_jax.models import autoencoder, transformer


class Range(NamedTuple):
    fits: Callable[[Any], bool]
    says: str


POSITIVE = Range(lambda v: v >= 1, "1 or more")
NOT_NEGATIVE = Range(lambda v: v >= 0 and math.isfinite(v), "0 or more")
GREATER_THAN_ZERO = Range(lambda v: v > 0 and math.isfinite(v), "more than 0")
FRACTION = Range(lambda v: 0 <= v <= 1, "0 to 1")
BELOW_ONE = Range(lambda v: 0 <= v < 1, "0 or more and less than 1")
COMPARABLE = Range(lambda v: v >= MIN_IMAGES, f"{MIN_IMAGES} or more")


def _one_of(names: Iterable[str]) -> Range:
    return Range(lambda v: v in names, f"one of {', '.join(names)}")


DTYPE = Range(lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16")

_OPTIMIZER = {"learning_rate": NOT_NEGATIVE, "b1": BELOW_ONE, "b2": BELOW_ONE, "weight_decay": NOT_NEGATIVE,
              "weight_decay_end": NOT_NEGATIVE, "clip": GREATER_THAN_ZERO, "warmup": FRACTION,
              "warmup_initial": FRACTION, "flat": FRACTION, "final": FRACTION}
_TRAINING = {"steps": POSITIVE, "log_every": POSITIVE, "evaluate_every": POSITIVE, "save_every": POSITIVE,
             "keep": POSITIVE, "skip_nonfinite": NOT_NEGATIVE}

RANGES: dict[str, Range] = {
    "seed": Range(lambda v: 0 <= v < 2**32, "0 to 2^32 - 1"),
    "image_size": POSITIVE,
    "tokenizer_batch_size": POSITIVE, "generator_batch_size": POSITIVE,
    "tokenizer_batch_parts": POSITIVE, "generator_batch_parts": POSITIVE,
    "label_drop": FRACTION, "average_decay": BELOW_ONE, "samples_per_class": POSITIVE,
    "data.resize_ratio": Range(lambda v: v == 0 or 1 <= v < math.inf, "0 (native resolution), or 1 or more"),
    "data.class_depth": NOT_NEGATIVE, "data.max_unreadable": FRACTION,
    "data.num_classes": Range(lambda v: v is None or v >= 1, "1 or more, or leave it out"),
    "data.sixteen_bit_max": Range(lambda v: v == 0 or 255 <= v < 2**16, "0 (recognised), or 255 to 65535"),
    "data.num_workers": NOT_NEGATIVE, "data.validation_examples": POSITIVE, "data.crops_per_image": POSITIVE,
    "data.token_examples": NOT_NEGATIVE,
    "encode.passes": POSITIVE, "encode.shard_size": POSITIVE, "encode.batch_size": POSITIVE,
    "focus.noise_first": NOT_NEGATIVE, "focus.noise_last": NOT_NEGATIVE,
    **{f"tokenizer.{name}": POSITIVE for name in
       ("vocab_size", "latent_channels", "channels", "num_residual_blocks", "norm_groups")},
    "tokenizer.num_phi": NOT_NEGATIVE, "tokenizer.dtype": DTYPE,
    "tokenizer.channel_multipliers": Range(lambda v: len(v) > 0 and all(m >= 1 for m in v), "integers of 1 or more"),
    **{f"alias.{name}": POSITIVE for name in ("vocab_size", "latent_channels", "channels", "norm_groups")},
    "alias.num_residual_blocks": NOT_NEGATIVE,
    **{f"losses.{name}": NOT_NEGATIVE for name in
       ("l1", "l2", "view", "consistency", "commitment", "alias", "perceptual")},
    "revival.every": POSITIVE, "revival.stop_fraction": FRACTION,
    "adversarial.weight": NOT_NEGATIVE, "adversarial.start": NOT_NEGATIVE, "adversarial.cap": GREATER_THAN_ZERO,
    "discriminator.channels": POSITIVE, "discriminator.num_layers": POSITIVE, "discriminator.norm_groups": POSITIVE,
    **{f"{stage}_optimizer.{name}": limits for stage in ("tokenizer", "discriminator", "generator")
       for name, limits in _OPTIMIZER.items()},
    **{f"{stage}_training.{name}": limits for stage in ("tokenizer", "generator")
       for name, limits in _TRAINING.items()},
    "generator.depth": POSITIVE, "generator.width": POSITIVE, "generator.num_heads": POSITIVE,
    "generator.gamma_init": NOT_NEGATIVE, "generator.drop_path_rate": BELOW_ONE, "generator.dtype": DTYPE,
    "tokenizer.remat": _one_of(autoencoder.REMAT), "generator.remat": _one_of(transformer.REMAT),
    "teacher.logit_weight": NOT_NEGATIVE, "teacher.feature_weight": NOT_NEGATIVE,
    "sampling.cfg": NOT_NEGATIVE, "sampling.top_k": NOT_NEGATIVE, "sampling.top_p": FRACTION,
    "aliasing.images": POSITIVE,
    "evaluation.count": COMPARABLE, "evaluation.reference_count": COMPARABLE, "evaluation.batch_size": POSITIVE,
    "evaluation.seed": Range(lambda v: 0 <= v < 2**31, "0 to 2^31 - 1"),
    "evaluation.parts": Range(lambda v: len(v) > 0 and set(v) <= {"tokenizer", "generator"},
                              "('tokenizer', 'generator') or one of them"),
    "evaluation.during_training": Range(lambda v: v == 0 or v >= MIN_IMAGES, f"0 (off), or {MIN_IMAGES} or more"),
    "edit.count": POSITIVE, "edit.seed": Range(lambda v: 0 <= v < 2**32, "0 to 2^32 - 1"),
}


def check_ranges(c: Any) -> None:
    """Raises a ValueError that names the first setting out of its range, and the range."""
    for name, limits in RANGES.items():
        value = c
        for part in name.split("."):
            value = value[part]
        if not limits.fits(value):
            raise ValueError(f"{name} is {value!r}; give {limits.says}")


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

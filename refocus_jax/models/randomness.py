"""Randomness by name: every use has a key or a seed of its own, and no two meet because their numbers do."""

import zlib

import jax
import numpy as np


def _number(name: str) -> int:
    """Of a name, 32 bits, the same in every process."""
    return zlib.crc32(name.encode())


def fold_in(key: jax.Array, name: str) -> jax.Array:
    """The key of one use of a key. Where a use has many of a kind, `jax.random.fold_in` numbers them below it."""
    return jax.random.fold_in(key, _number(name))


def seed_of(seed: int, name: str) -> int:
    """The seed, in [0, 2**32), of one use of a run's seed by numpy or grain: neighbouring seeds have nothing in common.

    Args:
      seed: at least 0.
    """
    return int(np.random.SeedSequence([seed, _number(name)]).generate_state(1)[0])

"""Random keys and seeds derived from names.

Every use of randomness has its own key or seed, so that no two uses collide because they count with the same numbers.
"""

import zlib

import jax
import numpy as np


def _number(name: str) -> int:
    """Hash of a name, 32 bits, the same in every process."""
    return zlib.crc32(name.encode())


def fold_in(key: jax.Array, name: str) -> jax.Array:
    """Derives the key of one use from a key.

    A use that needs several keys derives them from its own with `jax.random.fold_in` and a number.
    """
    return jax.random.fold_in(key, _number(name))


def seed_of(seed: int, name: str) -> int:
    """Derives the seed of one use, by numpy or grain, from the seed of a run.

    Neighbouring seeds of runs give unrelated seeds.

    Args:
      seed: Seed of the run, at least 0.
      name: Name of the use.

    Returns:
      A seed in [0, 2**32).
    """
    return int(np.random.SeedSequence([seed, _number(name)]).generate_state(1)[0])

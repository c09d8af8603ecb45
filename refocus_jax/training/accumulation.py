"""Batches in parts, one after the other: less memory for the same gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.sharding import keep_divided


def mean_over_parts(function: Callable, parts: int, batch: Any) -> tuple[Any, Any]:
    """Runs `function` on equal parts of a batch and takes means.

    Args:
      function: (part of the batch, number of the part) to (what is averaged, what is kept per example).
      batch: pytree of arrays whose axis 0 is the examples'. Part i holds the examples i, i + parts, ...: those of a
        device stay on it.

    Returns:
      The means, and what was kept, as of the whole batch. With one part: function(batch, 0).
    """
    if parts == 1:
        return function(batch, 0)

    def split(array):
        return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)

    def join(array):
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    def add(total, numbered):
        part, number = numbered
        mean, kept = function(jax.tree.map(keep_divided, part), number)
        return jax.tree.map(jnp.add, total, mean), kept

    split_batch, numbers = jax.tree.map(split, batch), np.arange(parts)
    first = jax.eval_shape(function, jax.tree.map(lambda a: a[0], split_batch), 0)[0]
    total, kept = jax.lax.scan(add, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first), (split_batch, numbers))
    return jax.tree.map(lambda a: a / parts, total), jax.tree.map(join, kept)

"""Gradient accumulation: a batch is processed in parts, one after the other, to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.sharding import keep_divided


def mean_over_parts(function: Callable, parts: int, batch: Any) -> tuple[Any, Any]:
    """Runs `function` on equal parts of a batch and averages the results.

    Args:
      function: (part of the batch, number of the part) -> (values to average, values to keep per example).
      parts: The number of parts.
      batch: A pytree of arrays whose axis 0 is the examples. Part i holds the examples i, i + parts, ..., so that
        examples stay on their devices.

    Returns:
      The averages, and the kept values of the whole batch in its order. With one part: function(batch, 0).
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

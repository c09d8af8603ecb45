"""Revival of unused codes, which keeps multi-scale codebooks from collapsing."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revival:
    """When codes that were not used since the last revival are replaced.

    The first revival, at the end of step 0, replaces all codes and so initializes the codebook from data.

    Attributes:
      every: The number of steps between two revivals.
      stop_fraction: The fraction of the run after which there are no more revivals.
    """

    every: int = 50
    stop_fraction: float = 0.9


def count(tokens: Sequence[jax.Array], vocab_size: int) -> jax.Array:
    """Counts how often each code occurs in all token maps: (V,) float32."""
    flat = jnp.concatenate([t.reshape(-1) for t in tokens])
    return jnp.zeros((vocab_size,), jnp.float32).at[flat].add(1.0)


def candidates(key: jax.Array, inputs: Sequence[jax.Array], number: int) -> jax.Array:
    """Draws (number, c) quantizer inputs of a batch, equally many from every scale."""
    share = -(-number // len(inputs))
    drawn = []
    for scale, value in enumerate(inputs):
        rows = value.reshape(-1, value.shape[-1])
        drawn.append(rows[jax.random.randint(jax.random.fold_in(key, scale), (share,), 0, rows.shape[0])])
    return jnp.stack(drawn, axis=1).reshape(share * len(inputs), -1)[:number]


def revive(key: jax.Array, embedding_vc: jax.Array, dead_v: jax.Array, inputs: Sequence[jax.Array]) -> jax.Array:
    """Replaces the dead codes by quantizer inputs; the n-th dead code gets one of scale n mod K."""
    rank = jnp.cumsum(dead_v) - 1
    fresh = candidates(key, inputs, embedding_vc.shape[0])[jnp.maximum(rank, 0)]
    return jnp.where(dead_v[:, None], fresh.astype(embedding_vc.dtype), embedding_vc)


def reset_moments(opt_state, embedding_path: Sequence[str], dead_v: jax.Array):
    """Sets the optimizer's moments of dead codes to zero, in all leaves whose path ends with `embedding_path`."""

    def reset(path, leaf):
        names = tuple(getattr(entry, "key", None) for entry in path)
        return jnp.where(dead_v[:, None], 0, leaf) if names[-len(embedding_path):] == tuple(embedding_path) else leaf

    return jax.tree_util.tree_map_with_path(reset, opt_state)

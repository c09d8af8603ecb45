"""Attention of the generator: dense, over the prefix of scales that a query may see. Queries arrive scaled."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def scale_offsets(grid_sizes: Sequence[int]) -> tuple[int, ...]:
    """First token of every scale in the flat sequence, and the total length at the end: K + 1 integers."""
    return (0, *(int(n) for n in np.cumsum(np.square(np.asarray(grid_sizes)))))


def dense_attention(q_blnh: jax.Array, k_bmnh: jax.Array, v_bmnh: jax.Array) -> jax.Array:
    """softmax(q k) v, with the softmax in float32: (b, l, n, h). Every query sees every key."""
    logits = jnp.einsum("blnh,bmnh->bnlm", q_blnh, k_bmnh, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_bmnh.dtype)
    return jnp.einsum("bnlm,bmnh->blnh", weights, v_bmnh)


def prefix_attention(q_blnh: jax.Array, k_bmnh: jax.Array, v_bmnh: jax.Array, query_offsets: Sequence[int],
                     key_ends: Sequence[int]) -> jax.Array:
    """Scale-causal attention without a mask.

    Queries query_offsets[i] ... query_offsets[i + 1] see the keys before key_ends[i]: static slices, so that no
    masked product is ever computed.
    """
    parts = [dense_attention(q_blnh[:, start:stop], k_bmnh[:, :end], v_bmnh[:, :end])
             for start, stop, end in zip(query_offsets[:-1], query_offsets[1:], key_ends, strict=True)]
    return jnp.concatenate(parts, axis=1)

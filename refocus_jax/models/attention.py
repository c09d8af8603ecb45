"""Attention of the generator: dense, over the prefix of scales that a query may see. Queries arrive scaled."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def scale_offsets(grid_sizes: Sequence[int]) -> tuple[int, ...]:
    """First token of every scale in the flat sequence, and the total length at the end: K + 1 integers."""
    return (0, *(int(n) for n in np.cumsum(np.square(np.asarray(grid_sizes)))))


# A CPU goes through its attention logits several times: beyond its caches it does better one sequence at a time.
_CPU_LOGITS_BYTES = 1 << 24


def dense_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array) -> jax.Array:
    """softmax(q k) v, with the softmax in float32: (b, n, l, h). Every query sees every key."""
    batch, heads, queries, _ = q_bnlh.shape
    if 4 * batch * heads * queries * k_bnmh.shape[2] <= _CPU_LOGITS_BYTES:
        return _attention(q_bnlh, k_bnmh, v_bnmh)

    def one_by_one(*sequences):
        return jax.lax.map(lambda sequence: _attention(*(a[None] for a in sequence))[0], sequences)

    return jax.lax.platform_dependent(q_bnlh, k_bnmh, v_bnmh, cpu=one_by_one, default=_attention)


def _attention(q_bnlh, k_bnmh, v_bnmh):
    logits = jnp.einsum("bnlh,bnmh->bnlm", q_bnlh, k_bnmh, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Divided after the second product, which has far fewer numbers than there are weights.
    out = jnp.einsum("bnlm,bnmh->bnlh", weights.astype(v_bnmh.dtype), v_bnmh, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v_bnmh.dtype)


def prefix_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array, query_offsets: Sequence[int],
                     key_ends: Sequence[int]) -> jax.Array:
    """Scale-causal attention without a mask.

    Queries query_offsets[i] ... query_offsets[i + 1] see the keys before key_ends[i]: static slices, so that no
    masked product is ever computed.
    """
    parts = [dense_attention(q_bnlh[:, :, start:stop], k_bnmh[:, :, :end], v_bnmh[:, :, :end])
             for start, stop, end in zip(query_offsets[:-1], query_offsets[1:], key_ends, strict=True)]
    return jnp.concatenate(parts, axis=2)


def split_heads(x_bld: jax.Array, num_heads: int) -> jax.Array:
    """(b, l, d) to (b, n, l, h): heads first, so that both products read their operands in order."""
    return jnp.swapaxes(x_bld.reshape(*x_bld.shape[:2], num_heads, -1), 1, 2)


def merge_heads(x_bnlh: jax.Array) -> jax.Array:
    """The inverse of `split_heads`."""
    batch, heads, length, head_dim = x_bnlh.shape
    return jnp.swapaxes(x_bnlh, 1, 2).reshape(batch, length, heads * head_dim)

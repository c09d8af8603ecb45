"""Attention of the generator, over the scales that a query may see. Queries arrive already scaled.

The function `attention` has three implementations with the same results up to rounding:
  prefix   dense products over static slices, for every platform
  splash   one Pallas kernel for TPUs, which keeps no logits in memory
  cudnn    cuDNN's flash attention for GPUs, slice by slice, which keeps no logits in memory either; 16-bit types only
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.sharding import on_own_examples

IMPLEMENTATIONS = ("prefix", "splash", "cudnn")
CUDNN_MAX_HEAD_DIM = 128


class KeysValues(NamedTuple):
    """What attention over earlier scales keeps of them.

    Attributes:
      keys: (b, n, l, h): n heads, l tokens, h numbers per head.
      values: The same shape.
    """

    keys: jax.Array
    values: jax.Array


def scale_offsets(grid_sizes: Sequence[int]) -> tuple[int, ...]:
    """Index of the first token of each scale in the flat sequence, then the total length: K + 1 integers."""
    return (0, *(int(n) for n in np.cumsum(np.square(np.asarray(grid_sizes)))))


# A CPU passes over the attention logits several times. Above this size, which exceeds its caches, it is faster to
# process one sequence at a time.
_CPU_LOGITS_BYTES = 1 << 24
# Where the logits of all heads of a sequence take more than this, accelerators hold those of one head at a time.
_HEADS_LOGITS_BYTES = 1 << 28


def dense_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array) -> jax.Array:
    """Attention of every query to every key: softmax(q k) v, (b, n, l, h), with the softmax in float32."""
    batch, heads, queries, _ = q_bnlh.shape
    logits_bytes = 4 * heads * queries * k_bnmh.shape[2]  # of one sequence
    if batch * logits_bytes <= _CPU_LOGITS_BYTES:
        return _attention(q_bnlh, k_bnmh, v_bnmh)

    def one_by_one(*sequences):
        return jax.lax.map(lambda sequence: _attention(*(a[None] for a in sequence))[0], sequences)

    default = _head_by_head if logits_bytes > _HEADS_LOGITS_BYTES else _attention
    return jax.lax.platform_dependent(q_bnlh, k_bnmh, v_bnmh, cpu=one_by_one, default=default)


def _head_by_head(q_bnlh, k_bnmh, v_bnmh):
    """Attention with the logits of one head at a time in memory; the gradient computes them again.

    It loops over heads because the examples of a batch may lie on several devices.
    """
    heads_first = tuple(jnp.moveaxis(x, 1, 0)[:, :, None] for x in (q_bnlh, k_bnmh, v_bnmh))
    out_nb1lh = jax.lax.map(jax.checkpoint(lambda head: _attention(*head)), heads_first)
    return jnp.moveaxis(out_nb1lh[:, :, 0], 0, 1)


def _attention(q_bnlh, k_bnmh, v_bnmh):
    logits = jnp.einsum("bnlh,bnmh->bnlm", q_bnlh, k_bnmh, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Divide after the second product, because its result has far fewer numbers than the weights.
    out = jnp.einsum("bnlm,bnmh->bnlh", weights.astype(v_bnmh.dtype), v_bnmh, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v_bnmh.dtype)


def attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array, query_offsets: Sequence[int],
              key_ranges: Sequence[tuple[int, int]], implementation: str = "prefix") -> jax.Array:
    """Attention in which each group of consecutive queries sees a range of the keys.

    Args:
      q_bnlh: Queries, already scaled.
      k_bnmh: Keys.
      v_bnmh: Values.
      query_offsets: Where each group of queries starts, and where the last one ends: group i is
        query_offsets[i] ... query_offsets[i + 1] - 1.
      key_ranges: For each group, the first key that it sees, and the end of those that it sees.
      implementation: One of `IMPLEMENTATIONS`.

    Returns:
      The result, (b, n, l, h). The softmax is in float32.

    Raises:
      ValueError: The implementation is unknown, or there is not one range of keys per group of queries.
    """
    attend: dict[str, Callable[..., jax.Array]] = {
        "prefix": prefix_attention, "splash": splash_attention,
        "cudnn": functools.partial(prefix_attention, dense=cudnn_attention)}
    if implementation not in attend:
        raise ValueError(f"attention is {implementation!r}; choose one of {IMPLEMENTATIONS}")
    return attend[implementation](q_bnlh, k_bnmh, v_bnmh, query_offsets, key_ranges)


def prefix_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array, query_offsets: Sequence[int],
                     key_ranges: Sequence[tuple[int, int]], dense: Callable = dense_attention) -> jax.Array:
    """Computes `attention` on static slices instead of with a mask, so that no masked product is computed.

    Args:
      q_bnlh: As in `attention`.
      k_bnmh: As in `attention`.
      v_bnmh: As in `attention`.
      query_offsets: As in `attention`.
      key_ranges: As in `attention`.
      dense: Function of queries, keys and values for attention without a mask.

    Returns:
      The result, (b, n, l, h).
    """
    parts = [dense(q_bnlh[:, :, start:stop], k_bnmh[:, :, first:end], v_bnmh[:, :, first:end])
             for start, stop, (first, end) in zip(query_offsets[:-1], query_offsets[1:], key_ranges, strict=True)]
    return jnp.concatenate(parts, axis=2)


# With fewer queries a kernel saves little.
_CUDNN_MIN_QUERIES = 64


def cudnn_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array,
                    implementation: Literal["xla", "cudnn"] = "cudnn") -> jax.Array:
    """Computes `dense_attention` with cuDNN if there are enough queries.

    Args:
      q_bnlh: Queries, already scaled. `cudnn_fits` must accept their heads and dtype.
      k_bnmh: Keys.
      v_bnmh: Values.
      implementation: Implementation of `jax.nn.dot_product_attention`; tests use "xla".

    Returns:
      The result, (b, n, l, h).
    """
    queries, keys = q_bnlh.shape[2], k_bnmh.shape[2]
    if queries < _CUDNN_MIN_QUERIES:
        return dense_attention(q_bnlh, k_bnmh, v_bnmh)
    # JAX refuses to differentiate odd lengths, so they are padded by one token, which no query sees.
    q, k, v = (jnp.swapaxes(_pad_tokens(x, 2), 1, 2) for x in (q_bnlh, k_bnmh, v_bnmh))
    lengths_b = None if keys % 2 == 0 else jnp.full((q.shape[0],), keys, jnp.int32)
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation=implementation,
                                       key_value_seq_lengths=lengths_b)
    return jnp.swapaxes(out, 1, 2)[:, :, :queries]


def cudnn_fits(head_dim: int, dtype: jnp.dtype) -> bool:
    """Whether cuDNN's attention supports such heads on every GPU that has it."""
    return head_dim % 8 == 0 and head_dim <= CUDNN_MAX_HEAD_DIM and dtype in (jnp.bfloat16, jnp.float16)


def choose_implementation(name: str, platform: str, head_dim: int, dtype: jnp.dtype) -> str:
    """Chooses the attention implementation for a platform.

    Args:
      name: The setting `generator.model.attention`: one of `IMPLEMENTATIONS`, or 'auto', which means 'prefix'
        everywhere, because neither Splash nor cuDNN's attention has run on its own hardware yet.
      platform: 'cpu', 'gpu' or 'tpu'.
      head_dim: Dimension of the attention heads.
      dtype: Compute dtype.

    Returns:
      One of `IMPLEMENTATIONS`.

    Raises:
      ValueError: The name is unknown, or the implementation does not work on the platform or with such heads.
    """
    fits = cudnn_fits(head_dim, dtype)
    if name == "auto":
        return "prefix"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"generator.model.attention is {name!r}; choose auto or one of {IMPLEMENTATIONS}")
    needed = {"splash": "tpu", "cudnn": "gpu"}.get(name, platform)
    if needed != platform:
        raise ValueError(f"generator.model.attention is {name!r}, which runs on {needed.upper()}s, and the devices are "
                         f"{platform.upper()}s; choose auto or prefix")
    if name == "cudnn" and not fits:
        raise ValueError(f"generator.model.attention is 'cudnn', which takes bfloat16 and head dimensions of at most "
                         f"{CUDNN_MAX_HEAD_DIM} that 8 divides, not generator.model.dtype {dtype.name!r} and width / "
                         f"num_heads = {head_dim}; choose auto or prefix")
    return name


_SPLASH_TILE = 128  # sequence lengths and blocks are multiples of it
_SPLASH_MAX_BLOCK = 512


def splash_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array, query_offsets: Sequence[int],
                     key_ranges: Sequence[tuple[int, int]], interpret: bool = False) -> jax.Array:
    """Computes `attention` with the Splash kernel, which skips the blocks that no query sees.

    On several devices it must run under their mesh (`runtime.mesh.on_mesh`).

    Args:
      q_bnlh: As in `attention`.
      k_bnmh: As in `attention`.
      v_bnmh: As in `attention`.
      query_offsets: As in `attention`.
      key_ranges: As in `attention`.
      interpret: Whether to run the kernel's Python code, which works on any platform; for tests.

    Returns:
      The result, (b, n, l, h).
    """
    # This module of JAX is experimental and slow to import, so it is imported only where it is used.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries = q_bnlh.shape[2]
    q, k, v = (_pad_tokens(x, _SPLASH_TILE) for x in (q_bnlh, k_bnmh, v_bnmh))
    # The kernel computes the mask itself from positions: each query gets the position of the last key that it sees and,
    # unless all see the first key, that of the first in the bits above. Padding queries see what the last query sees;
    # padding keys come after all keys that are seen.
    mask = splash.CausalMask((q.shape[2], k.shape[2]))
    sizes = np.diff(query_offsets)
    seen = np.concatenate([np.full(n, (first << _POSITION_BITS) + end - 1)
                           for n, (first, end) in zip(sizes, key_ranges, strict=True)])
    mask.q_sequence = np.pad(seen, (0, q.shape[2] - queries), mode="edge").astype(np.int32)
    if any(first for first, _ in key_ranges):
        mask.mask_function = _within
    block_q, block_kv = _splash_block(q.shape[2]), _splash_block(k.shape[2])
    blocks = splash.BlockSizes(block_q=block_q, block_kv=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
                               block_q_dq=block_q, block_kv_dq=block_kv)
    kernel = splash.make_splash_mha(splash.MultiHeadMask([mask] * q.shape[1]), block_sizes=blocks, head_shards=1,
                                    q_seq_shards=1, interpret=interpret)
    return on_own_examples(jax.vmap(kernel), q, k, v)[:, :, :queries]


_POSITION_BITS = 15  # twice as many do not exceed an int32


def _within(seen: jax.Array, key: jax.Array) -> jax.Array:
    return (key >= seen >> _POSITION_BITS) & (key <= seen & ((1 << _POSITION_BITS) - 1))


def _splash_block(length: int) -> int:
    return max(block for block in range(_SPLASH_TILE, _SPLASH_MAX_BLOCK + 1, _SPLASH_TILE) if length % block == 0)


def _pad_tokens(x_bnlh: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x_bnlh, ((0, 0), (0, 0), (0, -x_bnlh.shape[2] % multiple), (0, 0)))


def split_heads(x_bld: jax.Array, num_heads: int) -> jax.Array:
    """Reshapes (b, l, d) to (b, n, l, h). Heads come first, so that both products read their operands in order."""
    return jnp.swapaxes(x_bld.reshape(*x_bld.shape[:2], num_heads, -1), 1, 2)


def merge_heads(x_bnlh: jax.Array) -> jax.Array:
    """Undoes `split_heads`."""
    batch, heads, length, head_dim = x_bnlh.shape
    return jnp.swapaxes(x_bnlh, 1, 2).reshape(batch, length, heads * head_dim)

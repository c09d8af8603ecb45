"""Attention of the generator: over the prefix of scales that a query may see. Queries arrive scaled.

One function, `attention`, in three implementations that agree:
  prefix   dense products over static slices: every platform
  splash   one Pallas kernel for TPUs, which keeps no logits in memory
  cudnn    cuDNN's flash attention for GPUs, likewise, slice by slice; bfloat16 alone
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.sharding import on_own_examples

IMPLEMENTATIONS = ("prefix", "splash", "cudnn")
CUDNN_MAX_HEAD_DIM = 128


def scale_offsets(grid_sizes: Sequence[int]) -> tuple[int, ...]:
    """First token of every scale in the flat sequence, and the total length at the end: K + 1 integers."""
    return (0, *(int(n) for n in np.cumsum(np.square(np.asarray(grid_sizes)))))


# A CPU goes through its attention logits several times: beyond its caches it does better one sequence at a time.
_CPU_LOGITS_BYTES = 1 << 24
# Accelerators have memory for one head's logits where those of all heads of a sequence take more than this.
_HEADS_LOGITS_BYTES = 1 << 28


def dense_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array) -> jax.Array:
    """softmax(q k) v, with the softmax in float32: (b, n, l, h). Every query sees every key."""
    batch, heads, queries, _ = q_bnlh.shape
    logits_bytes = 4 * heads * queries * k_bnmh.shape[2]  # of one sequence
    if batch * logits_bytes <= _CPU_LOGITS_BYTES:
        return _attention(q_bnlh, k_bnmh, v_bnmh)

    def one_by_one(*sequences):
        return jax.lax.map(lambda sequence: _attention(*(a[None] for a in sequence))[0], sequences)

    default = _head_by_head if logits_bytes > _HEADS_LOGITS_BYTES else _attention
    return jax.lax.platform_dependent(q_bnlh, k_bnmh, v_bnmh, cpu=one_by_one, default=default)


def _head_by_head(q_bnlh, k_bnmh, v_bnmh):
    """Only one head's logits are ever in memory, computed once more for the gradient.

    Over heads, since the examples of a batch may lie on several devices.
    """
    heads_first = tuple(jnp.moveaxis(x, 1, 0)[:, :, None] for x in (q_bnlh, k_bnmh, v_bnmh))
    out_nb1lh = jax.lax.map(jax.checkpoint(lambda head: _attention(*head)), heads_first)
    return jnp.moveaxis(out_nb1lh[:, :, 0], 0, 1)


def _attention(q_bnlh, k_bnmh, v_bnmh):
    logits = jnp.einsum("bnlh,bnmh->bnlm", q_bnlh, k_bnmh, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Divided after the second product, which has far fewer numbers than there are weights.
    out = jnp.einsum("bnlm,bnmh->bnlh", weights.astype(v_bnmh.dtype), v_bnmh, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v_bnmh.dtype)


def attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array, query_offsets: Sequence[int],
              key_ends: Sequence[int], implementation: str = "prefix") -> jax.Array:
    """Scale-causal attention: queries query_offsets[i] ... query_offsets[i + 1] see the keys before key_ends[i].

    Returns:
      (b, n, l, h). The softmax is in float32.

    Raises:
      ValueError: an unknown implementation, or not one end per group of queries.
    """
    attend = {"prefix": prefix_attention, "splash": splash_attention,
              "cudnn": functools.partial(prefix_attention, dense=cudnn_attention)}
    if implementation not in attend:
        raise ValueError(f"attention is {implementation!r}; choose one of {IMPLEMENTATIONS}")
    return attend[implementation](q_bnlh, k_bnmh, v_bnmh, query_offsets, key_ends)


def prefix_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array, query_offsets: Sequence[int],
                     key_ends: Sequence[int], dense: Callable = dense_attention) -> jax.Array:
    """`attention` without a mask: static slices, so that no masked product is ever computed."""
    parts = [dense(q_bnlh[:, :, start:stop], k_bnmh[:, :, :end], v_bnmh[:, :, :end])
             for start, stop, end in zip(query_offsets[:-1], query_offsets[1:], key_ends, strict=True)]
    return jnp.concatenate(parts, axis=2)


# With fewer queries there is little to gain from a kernel.
_CUDNN_MIN_QUERIES = 64


def cudnn_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array,
                    implementation: str = "cudnn") -> jax.Array:
    """`dense_attention` by cuDNN, where there are queries enough; for heads that `cudnn_fits`.

    Args:
      implementation: of `jax.nn.dot_product_attention`.
    """
    queries, keys = q_bnlh.shape[2], k_bnmh.shape[2]
    if queries < _CUDNN_MIN_QUERIES:
        return dense_attention(q_bnlh, k_bnmh, v_bnmh)
    # jax refuses to differentiate odd lengths: one token more is there, and is not looked at.
    q, k, v = (jnp.swapaxes(_pad_tokens(x, 2), 1, 2) for x in (q_bnlh, k_bnmh, v_bnmh))
    seen = {} if keys % 2 == 0 else {"key_value_seq_lengths": jnp.full((q.shape[0],), keys, jnp.int32)}
    out = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation=implementation, **seen)
    return jnp.swapaxes(out, 1, 2)[:, :, :queries]


def cudnn_fits(head_dim: int, dtype: jnp.dtype) -> bool:
    """Whether cuDNN's attention takes such heads, on all GPUs that have it."""
    return head_dim % 8 == 0 and head_dim <= CUDNN_MAX_HEAD_DIM and dtype in (jnp.bfloat16, jnp.float16)


def choose_implementation(name: str, platform: str, head_dim: int, dtype: jnp.dtype) -> str:
    """The implementation for devices of a platform ('cpu', 'gpu' or 'tpu').

    The name 'auto' means 'prefix' everywhere: neither Splash nor cuDNN's attention has run on its own hardware yet.

    Raises:
      ValueError: one that does not work there.
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


_SPLASH_TILE = 128  # lengths and blocks are multiples of it
_SPLASH_MAX_BLOCK = 512


def splash_attention(q_bnlh: jax.Array, k_bnmh: jax.Array, v_bnmh: jax.Array, query_offsets: Sequence[int],
                     key_ends: Sequence[int], interpret: bool = False) -> jax.Array:
    """`attention` by the Splash kernel, which skips the blocks that no query sees.

    On several devices it must run under their mesh (`runtime.mesh.on_mesh`).

    Args:
      interpret: run the kernel's Python on any platform, for tests.
    """
    # An experimental module of jax, and slow to import: needed where it is asked for alone.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries = q_bnlh.shape[2]
    q, k, v = (_pad_tokens(x, _SPLASH_TILE) for x in (q_bnlh, k_bnmh, v_bnmh))
    # The block-causal mask, computed inside the kernel: a query stands where the last key that it sees does. The
    # queries of the padding see what the last one sees, and the keys of the padding stand behind all of them.
    mask = splash.CausalMask((q.shape[2], k.shape[2]))
    sizes = np.diff(query_offsets)
    last_seen = np.concatenate([np.full(n, end - 1) for n, end in zip(sizes, key_ends, strict=True)])
    mask.q_sequence = np.pad(last_seen, (0, q.shape[2] - queries), mode="edge").astype(np.int32)
    block_q, block_kv = _splash_block(q.shape[2]), _splash_block(k.shape[2])
    blocks = splash.BlockSizes(block_q=block_q, block_kv=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
                               block_q_dq=block_q, block_kv_dq=block_kv)
    kernel = splash.make_splash_mha(splash.MultiHeadMask([mask] * q.shape[1]), block_sizes=blocks, head_shards=1,
                                    q_seq_shards=1, interpret=interpret)
    return on_own_examples(jax.vmap(kernel), q, k, v)[:, :, :queries]


def _splash_block(length: int) -> int:
    return max(block for block in range(_SPLASH_TILE, _SPLASH_MAX_BLOCK + 1, _SPLASH_TILE) if length % block == 0)


def _pad_tokens(x_bnlh: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x_bnlh, ((0, 0), (0, 0), (0, -x_bnlh.shape[2] % multiple), (0, 0)))


def split_heads(x_bld: jax.Array, num_heads: int) -> jax.Array:
    """(b, l, d) to (b, n, l, h): heads first, so that both products read their operands in order."""
    return jnp.swapaxes(x_bld.reshape(*x_bld.shape[:2], num_heads, -1), 1, 2)


def merge_heads(x_bnlh: jax.Array) -> jax.Array:
    """The inverse of `split_heads`."""
    batch, heads, length, head_dim = x_bnlh.shape
    return jnp.swapaxes(x_bnlh, 1, 2).reshape(batch, length, heads * head_dim)

"""The Mamba-2 mixer of M-VAR (arXiv 2405.21060, arXiv 2411.10433), causal over the flat sequence of all scales.

Each head has a state S, h x s numbers, which every token t decays, adds to and reads:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        y_t = S_t C_t + D x_t        A < 0

`recurrence` computes this chunk by chunk: within a chunk as matrix products of all pairs of tokens, from chunk to
chunk by the state. What a later token needs of all earlier ones is a `State`, so a sequence can be run in parts.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.sharding import keep_divided

STATE_SIZE = 64  # s, numbers per channel in a head's state
HEAD_DIM = 64
TAPS = 4  # of the convolution; the last is that of the token itself
EXPANSION = 2  # inner width by width
CHUNKS = (16, 64)  # tokens that are computed at once: in scales of up to 16 tokens, and in longer ones
NORM_EPSILON = 1e-5
STEPS = (1e-3, 0.1)  # bounds of the initial dt


class State(NamedTuple):
    """What the mixer keeps of all tokens so far.

    Attributes:
      window: Inputs of the convolution at the last three tokens, (b, 3, c).
      memory: S of every head, (b, n, h, s) float32.
    """

    window: jax.Array
    memory: jax.Array


def init_state(width: int, batch: int, dtype: jnp.dtype) -> State:
    """The state before the first token: zeros."""
    inner = EXPANSION * width
    return State(jnp.zeros((batch, TAPS - 1, inner + 2 * STATE_SIZE), dtype),
                 jnp.zeros((batch, inner // HEAD_DIM, HEAD_DIM, STATE_SIZE), jnp.float32))


def _cut(x_bl: jax.Array, sizes: Sequence[int], chunk: int) -> jax.Array:
    """Cuts every scale into chunks, the last of which is filled up with zeros: (chunks, b, chunk, ...)."""
    scales = jnp.split(x_bl, np.cumsum(sizes)[:-1], axis=1)
    filled = [jnp.pad(scale, [(0, 0), (0, -scale.shape[1] % chunk)] + [(0, 0)] * (x_bl.ndim - 2)) for scale in scales]
    whole = jnp.concatenate(filled, axis=1)
    return jnp.moveaxis(whole.reshape(whole.shape[0], -1, chunk, *whole.shape[2:]), 1, 0)


def _join(chunks_cbl: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Undoes `_cut`: (b, l, ...)."""
    count, batch, chunk = chunks_cbl.shape[:3]
    whole = jnp.moveaxis(chunks_cbl, 0, 1).reshape(batch, count * chunk, *chunks_cbl.shape[3:])
    starts = np.cumsum([0, *(_chunks(size, chunk) * chunk for size in sizes[:-1])])
    return jnp.concatenate([whole[:, start:start + size] for start, size in zip(starts, sizes, strict=True)], axis=1)


def _chunks(size: int, chunk: int) -> int:
    return -(-size // chunk)


def _chunk(size: int) -> int:
    """The length of a scale's chunks. Chunks of 64 tokens would be mostly zeros in small scales."""
    short, long = CHUNKS
    return short if size <= short else long


def _one_chunk(memory_bnhs: jax.Array, x_blnh: jax.Array, dt_bln: jax.Array, write_bls: jax.Array,
               read_bls: jax.Array, rate_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The state after a chunk, float32, and y without D x, (b, l, n, h) float32."""
    dtype, length = x_blnh.dtype, x_blnh.shape[1]
    product = dict(preferred_element_type=jnp.float32)
    dt_bnl = jnp.moveaxis(dt_bln, 1, 2)
    decay_bnl = dt_bnl * rate_n[None, :, None]  # its logarithm, at every token
    # Its sum over the tokens m + 1 ... l, for l >= m, as a product with a triangle of ones. A difference of two sums
    # from the beginning would lose digits wherever an earlier token has forgotten much.
    later = np.tri(length, k=-1, dtype=bool)
    since_bnlm = jnp.einsum("lk,bnkm->bnlm", np.tri(length, dtype=np.float32),
                            jnp.where(later[None, None], decay_bnl[..., None], 0),
                            precision=jax.lax.Precision.HIGHEST)
    # A token reads what itself and earlier tokens wrote, and nothing of later ones.
    since_bnlm = jnp.where(np.tri(length, dtype=bool)[None, None], since_bnlm, -jnp.inf)
    scores_blm = jnp.einsum("bls,bms->blm", read_bls, write_bls, **product)
    weights_bnlm = scores_blm[:, None] * jnp.exp(since_bnlm) * dt_bnl[:, :, None]
    y = jnp.einsum("bnlm,bmnh->blnh", weights_bnlm.astype(dtype), x_blnh, **product)
    earlier = jnp.einsum("bls,bnhs->blnh", read_bls, memory_bnhs.astype(dtype), **product)
    total_bnl = jnp.cumsum(decay_bnl, axis=-1)  # since the beginning of the chunk
    y = y + earlier * jnp.exp(jnp.moveaxis(total_bnl, 1, 2))[..., None]
    kept_bnl = dt_bnl * jnp.exp(since_bnlm[:, :, -1])  # until the end of the chunk
    written = (x_blnh * jnp.moveaxis(kept_bnl, 1, 2)[..., None]).astype(dtype)
    memory_bnhs = memory_bnhs * jnp.exp(total_bnl[..., -1])[..., None, None]
    return memory_bnhs + jnp.einsum("blnh,bls->bnhs", written, write_bls, **product), y


def recurrence(x_blnh: jax.Array, dt_bln: jax.Array, rate_n: jax.Array, write_bls: jax.Array, read_bls: jax.Array,
               memory_bnhs: jax.Array, sizes: Sequence[int], num_before: int) -> tuple[jax.Array, jax.Array]:
    """Runs the recurrence at the top of this file, without D x, over consecutive scales.

    No chunk crosses the border of a scale. So a token's result has the same bits whether or not somebody asks for the
    state at a border, or continues from there.

    Args:
      x_blnh: x.
      dt_bln: Step sizes, >= 0, float32; a token of step 0 leaves the state alone.
      rate_n: A, < 0, float32.
      write_bls: B, which all heads share.
      read_bls: C, which all heads share.
      memory_bnhs: The state before the first token, float32.
      sizes: Number of tokens of each scale.
      num_before: Number of scales, 1 or more, after which the state is returned.

    Returns:
      y without D x, (b, l, n, h) float32, and the state after the first `num_before` scales.
    """
    early = num_before < len(sizes)

    # The gradient computes a chunk again, because the weights of all pairs of tokens take much memory.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(memory, tokens):
        memory, y = _one_chunk(memory, *tokens, rate_n)
        return memory, (y, memory if early else None)

    results, after, start = [], [], 0  # `after` has the states after each scale
    for chunk, scales in itertools.groupby(sizes, _chunk):
        group = tuple(scales)
        end, chunk = start + sum(group), min(chunk, max(group))
        tokens = tuple(_cut(part[:, start:end], group, chunk) for part in (x_blnh, dt_bln, write_bls, read_bls))
        memory_bnhs, (y, memories) = jax.lax.scan(body, memory_bnhs, tokens)
        results.append(_join(y, group))
        if early:
            after += [memories[last] for last in np.cumsum([_chunks(size, chunk) for size in group]) - 1]
        start = end
    return jnp.concatenate(results, axis=1), after[num_before - 1] if early else memory_bnhs


def convolve(x_blc: jax.Array, window_b3c: jax.Array, taps_4c: jax.Array) -> jax.Array:
    """Causal convolution of every channel by itself, (b, l, c); the window holds the three tokens before the first."""
    length = x_blc.shape[1]
    x_blc = jnp.concatenate([window_b3c, x_blc], axis=1)
    first, *others = (x_blc[:, i:i + length] * taps_4c[i][None, None] for i in range(TAPS))
    return sum(others, first)


def _initial_dt_bias(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Such that dt is log-uniform within `STEPS`."""
    dt = jnp.exp(jax.random.uniform(key, shape, minval=np.log(STEPS[0]), maxval=np.log(STEPS[1])))
    return dt + jnp.log(-jnp.expm1(-dt))  # the inverse of softplus


def _initial_a_log(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.log(jax.random.uniform(key, shape, minval=1, maxval=16))


class Mixer(nn.Module, kw_only=True):
    """Mamba-2's mixer: one group, no biases but the convolution's.

    `[z | x B C | dt] = u W_in`, `[x B C] = silu(convolution)`, `dt = softplus(dt + dt_bias)`, the recurrence with
    `A = -exp(A_log)`, `y = RMSNorm(y silu(z)) scale`, `out = y W_out`. The inner width is twice the width, in heads of
    64.

    Attributes:
      width: Width d of input and output, a multiple of 32.
      dtype: Compute dtype. Steps, decays, the state and the norm are float32.
    """

    width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Creates the parameters.

        Raises:
          ValueError: The inner width does not divide into heads.
        """
        inner = EXPANSION * self.width
        if inner % HEAD_DIM:
            raise ValueError(f"generator.model.width is {self.width}; M-VAR's mixer has heads of {HEAD_DIM} over "
                             f"{EXPANSION} times the width: give a multiple of {HEAD_DIM // EXPANSION}")
        heads, mixed = inner // HEAD_DIM, inner + 2 * STATE_SIZE
        dense = dict(use_bias=False, dtype=self.dtype,
                     kernel_init=nn.initializers.normal((1 / (3 * self.width)) ** 0.5))
        self.in_proj = nn.Dense(inner + mixed + heads, **dense)
        self.convolution = self.param("convolution", nn.initializers.normal(0.02), (TAPS, mixed))
        self.convolution_bias = self.param("convolution_bias", nn.initializers.zeros, (mixed,))
        self.dt_bias = self.param("dt_bias", _initial_dt_bias, (heads,))
        self.a_log = self.param("a_log", _initial_a_log, (heads,))
        self.skip = self.param("skip", nn.initializers.ones, (heads,))  # D
        self.norm_scale = self.param("norm_scale", nn.initializers.ones, (inner,))
        self.out_proj = nn.Dense(self.width, **dense)

    def __call__(self, u_bld: jax.Array, state: State, sizes: Sequence[int],
                 num_before: int) -> tuple[jax.Array, State]:
        """Mixes the tokens of consecutive scales.

        Args:
          u_bld: The tokens.
          state: The state before the first of them.
          sizes: As in `recurrence`.
          num_before: As in `recurrence`.

        Returns:
          The result (b, l, d), and the state after the first `num_before` scales.
        """
        inner = EXPANSION * self.width
        z, mixed, dt = jnp.split(keep_divided(self.in_proj(u_bld)), [inner, 2 * (inner + STATE_SIZE)], axis=-1)
        border = sum(sizes[:num_before])
        window = jnp.concatenate([state.window, mixed[:, :border]], axis=1)[:, -(TAPS - 1):]
        mixed = keep_divided(nn.silu(convolve(mixed, state.window, self.convolution.astype(self.dtype))
                                     + self.convolution_bias.astype(self.dtype)[None, None]))
        x, write, read = jnp.split(mixed, [inner, inner + STATE_SIZE], axis=-1)
        x = x.reshape(*x.shape[:2], -1, HEAD_DIM)
        dt = nn.softplus(dt.astype(jnp.float32) + self.dt_bias[None, None])
        y, memory = recurrence(x, dt, -jnp.exp(self.a_log), write, read, state.memory, sizes, num_before)
        y = keep_divided(y) + self.skip[None, None, :, None] * x
        y = keep_divided(y.reshape(z.shape) * nn.silu(z.astype(jnp.float32)))
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + NORM_EPSILON) * self.norm_scale[None, None]
        return self.out_proj(y.astype(self.dtype)), State(window, memory)

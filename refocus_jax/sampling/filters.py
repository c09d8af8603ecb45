"""Changes to the logits before a token is drawn: guidance, top-k, top-p, and VAR's optional smoothing."""

import jax
import jax.numpy as jnp


def guidance_scale(cfg: float, scale: int, num_scales: int) -> float:
    """Strength of classifier-free guidance at `scale`: it rises linearly from 0 at the first to `cfg` at the last."""
    return cfg * scale / (num_scales - 1)


def guide(conditional: jax.Array, unconditional: jax.Array, strength: float | jax.Array) -> jax.Array:
    """Guided logits, (1 + strength) conditional - strength unconditional."""
    return (1 + strength) * conditional - strength * unconditional


def filter_logits(logits_blv: jax.Array, top_k: int = 0, top_p: float = 0.0) -> jax.Array:
    """Sets the logits of unlikely tokens to -inf, first by top-k, then by top-p.

    Top-k keeps the k largest logits. Of these, top-p keeps the smallest set whose probability among them is at
    least top_p. All logits equal to the k-th, or to the last that top-p keeps, also stay. The most likely token always
    stays.

    Args:
      logits_blv: float32, V tokens on the last axis.
      top_k: 0, or V and more, switches the filter off.
      top_p: 0 or 1 switches the filter off.

    Raises:
      ValueError: top_k is negative, or top_p is outside [0, 1].
    """
    vocab_size = logits_blv.shape[-1]
    if top_k < 0:
        raise ValueError(f"sampling.top_k is {top_k}; give 0 (off) or more")
    if not 0 <= top_p <= 1:
        raise ValueError(f"sampling.top_p is {top_p}; give 0 (off) to 1")
    if 0 < top_k < vocab_size:
        logits_blv = _keep_above(logits_blv, jnp.ones_like(logits_blv), top_k)
    if 0 < top_p < 1:
        logits_blv = _keep_above(logits_blv, jax.nn.softmax(logits_blv, axis=-1), top_p)
    return logits_blv


def keep_likely(logits_blv: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """`filter_logits` for limits that are arrays, so that one program serves all values; see `limits`."""
    logits_blv = _keep_above(logits_blv, jnp.ones_like(logits_blv), top_k)
    return _keep_above(logits_blv, jax.nn.softmax(logits_blv, axis=-1), top_p)


def limits(top_k: int, top_p: float, vocab_size: int) -> tuple[float, float]:
    """Returns top-k and top-p for `keep_likely`, where V codes and a probability above 1 switch a filter off."""
    return float(top_k if 0 < top_k < vocab_size else vocab_size), float(top_p) if 0 < top_p < 1 else 2.0


def _keep_above(logits_blv: jax.Array, weights_blv: jax.Array, limit: float | jax.Array) -> jax.Array:
    """Sets logits below t to -inf: t is the smallest value such that the logits > t have a total weight < `limit`.

    With weights of one, t is the k-th logit; with probabilities, the last that top-p keeps. A bisection over all
    float32 numbers finds t in 32 passes, without a sort, which would take a quarter of the sampling time on a CPU
    (there `lax.top_k` sorts too).
    """
    def halve(_, bounds):
        low, high = bounds  # low is too small for t, high is large enough
        middle = (low & high) + ((low ^ high) >> 1)  # their mean without overflow
        above = jnp.sum(jnp.where(logits_blv > _float_of_rank(middle), weights_blv, 0), axis=-1, keepdims=True)
        enough = above < limit
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    low, high = (jnp.full((*logits_blv.shape[:-1], 1), rank, jnp.int32)
                 for rank in (-_RANK_OF_INFINITY - 1, _RANK_OF_INFINITY))
    threshold = _float_of_rank(jax.lax.fori_loop(0, 32, halve, (low, high))[1])
    return jnp.where(logits_blv < threshold, -jnp.inf, logits_blv)


_RANK_OF_INFINITY = 0x7F800000


def _float_of_rank(rank: jax.Array) -> jax.Array:
    """The float32 number at position `rank` (int32) in ascending order: 0 has rank 0, and -0 has rank -1."""
    return jax.lax.bitcast_convert_type(rank ^ ((rank >> 31) & 0x7FFFFFFF), jnp.float32)


def smoothing(filtered_blv: jax.Array, gumbel_blv: jax.Array, scale: int, num_scales: int) -> jax.Array:
    """Probabilities of a Gumbel-softmax that sharpens with the scale, (b, l, V): VAR's `more_smooth`."""
    ratio = scale / (num_scales - 1)
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return jax.nn.softmax((filtered_blv * (1 + ratio) + gumbel_blv) / temperature, axis=-1)

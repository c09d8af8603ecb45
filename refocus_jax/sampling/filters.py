"""What happens to logits before a token is drawn: guidance, top-k, top-p, and VAR's optional smoothing."""

import jax
import jax.numpy as jnp


def guidance_scale(cfg: float, scale: int, num_scales: int) -> float:
    """Strength of classifier-free guidance at `scale`: a ramp from 0 at the first scale to `cfg` at the last."""
    return cfg * scale / (num_scales - 1)


def guide(conditional: jax.Array, unconditional: jax.Array, strength: float) -> jax.Array:
    """(1 + t) conditional - t unconditional."""
    return (1 + strength) * conditional - strength * unconditional


def filter_logits(logits_blv: jax.Array, top_k: int = 0, top_p: float = 0.0) -> jax.Array:
    """Sets logits to -inf outside the top k, then outside the smallest set of what is left with probability >= top_p.

    All logits equal to the k-th, or to the last that top_p keeps, stay, and so does the most likely token; 0 switches
    a filter off, as top_p = 1 does.

    Raises:
      ValueError: top_k outside 0 ... V or top_p outside [0, 1].
    """
    vocab_size = logits_blv.shape[-1]
    if not 0 <= top_k <= vocab_size:
        raise ValueError(f"sampling.top_k is {top_k}; give 0 (off) to {vocab_size}, the vocabulary size")
    if not 0 <= top_p <= 1:
        raise ValueError(f"sampling.top_p is {top_p}; give 0 (off) to 1")
    if not top_k and top_p in (0, 1):
        return logits_blv
    # Descending: what lies below the k-th logit is gone, so k values are all that top-p needs.
    sorted_logits = jax.lax.top_k(logits_blv, top_k or vocab_size)[0]
    threshold = sorted_logits[..., -1:]
    if 0 < top_p < 1:
        kept = jnp.where(logits_blv < threshold, -jnp.inf, logits_blv)
        probabilities = jnp.exp(sorted_logits - jax.nn.logsumexp(kept, axis=-1, keepdims=True))
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # A token stays if what is more likely than it does not yet reach top_p.
        stays = (before < top_p).at[..., 0].set(True)
        threshold = jnp.min(jnp.where(stays, sorted_logits, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_blv < threshold, -jnp.inf, logits_blv)


def smoothing(filtered_blv: jax.Array, gumbel_blv: jax.Array, scale: int, num_scales: int) -> jax.Array:
    """VAR's `more_smooth`: probabilities of a Gumbel-softmax that sharpens with the scale, (b, l, V)."""
    ratio = scale / (num_scales - 1)
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return jax.nn.softmax((filtered_blv * (1 + ratio) + gumbel_blv) / temperature, axis=-1)

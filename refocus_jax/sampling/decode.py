"""Sampling, scale by scale, with cached keys and values: VAR's sampler at VAR's cost."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from refocus_jax.models.attention import dense_attention
from refocus_jax.models.quantizer import MultiScaleQuantizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.sampling import filters


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn.

    Attributes:
      cfg: guidance at the last scale, >= 0; 0 is unguided and costs half.
      top_k, top_p: filters, 0 is off. smooth: feed back a mixture of codes instead of one (pictures, not FID).
    """

    cfg: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    smooth: bool = False

    def __post_init__(self):
        if self.cfg < 0:
            raise ValueError(f"sampling.cfg is {self.cfg}; give 0 (unguided) or more")


class Sample(NamedTuple):
    """tokens: K maps (b, p_k, p_k) int32. f_hat: the cumulative latents after each scale, K of (b, p_K, p_K, c)."""

    tokens: list[jax.Array]
    f_hat: list[jax.Array]


class Cache(NamedTuple):
    """Keys and values of all layers and scales, preallocated: (N, b, L, n, h) each."""

    keys: jax.Array
    values: jax.Array


def init_cache(network: Transformer, batch: int) -> Cache:
    shape = (network.depth, batch, network.offsets[-1], network.num_heads, network.width // network.num_heads)
    return Cache(jnp.zeros(shape, network.dtype), jnp.zeros(shape, network.dtype))


def sample_keys(seed: int | jax.Array, labels_b: jax.Array) -> jax.Array:
    """One key per sample from its own seed and label alone; a single seed counts up along the batch.

    So sample i of `seed` equals the first sample of `seed + i`, whatever the batch.
    """
    seeds = jnp.asarray(seed, jnp.uint32)
    if seeds.ndim == 0:
        seeds = seeds + jnp.arange(labels_b.shape[0], dtype=jnp.uint32)
    return jax.vmap(lambda s, label: jax.random.fold_in(jax.random.key(s), label))(seeds, labels_b)


def decode_scale(network: Transformer, params, x_bld: jax.Array, modulations: jax.Array, cache: Cache,
                 scale: int) -> tuple[jax.Array, Cache]:
    """Runs the tokens of one scale through all blocks; writes their keys and values into the cache."""
    start, stop = network.offsets[scale], network.offsets[scale + 1]

    def body(carry, layer):
        x, cache = carry
        index, block, block_modulation = layer

        def attend(q, k, v):
            at = (index, 0, start, 0, 0)
            new = Cache(*(jax.lax.dynamic_update_slice(c, a[None], at) for c, a in zip(cache, (k, v), strict=True)))
            k, v = (jax.lax.dynamic_index_in_dim(c, index, keepdims=False)[:, :stop] for c in new)
            return dense_attention(q, k, v), new

        x, cache = network.block.apply({"params": block}, x, block_modulation, attend)
        return (x, cache), None

    (x_bld, cache), _ = jax.lax.scan(body, (x_bld, cache),
                                     (jnp.arange(network.depth), params["blocks"], modulations))
    return x_bld, cache


def sample(network: Transformer, params: Any, quantizer: MultiScaleQuantizer, quantizer_params: Any,
           labels_b: jax.Array, keys_b: jax.Array, settings: SamplingSettings) -> Sample:
    """Draws images of the given classes.

    Args:
      network, params: the student. quantizer, quantizer_params: of the structure tokenizer.
      labels_b: int32 classes. keys_b: one key per sample, see `sample_keys`. settings: static.
    """
    guided = settings.cfg > 0
    num_scales, batch = len(network.grid_sizes), labels_b.shape[0]
    null = jnp.full_like(labels_b, network.num_classes)
    # Conditional and unconditional halves go through the network as one batch.
    network_labels = jnp.concatenate([labels_b, null]) if guided else labels_b

    def net(method, *args):
        return network.apply({"params": params}, *args, method=method)

    def quantize(method, *args):
        return quantizer.apply({"params": quantizer_params}, *args, method=method)

    modulations, embedding = net("conditions", network_labels)
    cache = init_cache(network, network_labels.shape[0])
    x, f_hat, tokens, f_hats = net("start", network_labels), None, [], []
    for scale, side in enumerate(network.grid_sizes):
        x, cache = decode_scale(network, params, x, modulations, cache, scale)
        logits = net("logits", x, embedding)
        if guided:
            strength = filters.guidance_scale(settings.cfg, scale, num_scales)
            logits = filters.guide(logits[:batch], logits[batch:], strength)
        logits = filters.filter_logits(logits, settings.top_k, settings.top_p)
        gumbel = jax.vmap(lambda key, like, s=scale: jax.random.gumbel(jax.random.fold_in(key, s), like.shape))(
            keys_b, logits)
        chosen = jnp.argmax(logits + gumbel, axis=-1).astype(jnp.int32)
        if settings.smooth:
            mixture = filters.smoothing(logits, gumbel, scale, num_scales)
            vectors = jnp.einsum("blv,vc->blc", mixture, quantizer_params["codebook"]["embedding"],
                                 precision=jax.lax.Precision.HIGHEST)
        else:
            vectors = quantizer_params["codebook"]["embedding"][chosen]
        tokens.append(chosen.reshape(batch, side, side))
        f_hat = quantize("accumulate", f_hat, vectors.reshape(batch, side, side, -1), scale)
        f_hats.append(f_hat)
        if scale + 1 < num_scales:
            inputs = quantize("view", f_hat, scale + 1)
            inputs = inputs.reshape(batch, -1, inputs.shape[-1])
            x = net("words", jnp.concatenate([inputs, inputs]) if guided else inputs, scale + 1, 1)
    return Sample(tokens, f_hats)

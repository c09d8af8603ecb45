"""Autoregressive sampling, scale by scale, each of which runs once: layers keep what they need of earlier ones."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.models.attention import KeysValues, dense_attention
from refocus_jax.models.bound import Bound
from refocus_jax.models.transformer import Cache, Transformer
from refocus_jax.sampling import filters


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn. The defaults are VAR's.

    Attributes:
      cfg: Strength t of classifier-free guidance at the last scale, >= 0, in VAR's convention: 0 is unguided and costs
        half. Scale k = 0 ... K - 1 uses t = cfg k / (K - 1) and the logits (1 + t) conditional - t unconditional. In
        the convention where 1 means unguided (DiT), this is a scale of 1 + t: a ramp from 1 to 1 + cfg.
      top_k: Keeps the k most likely tokens; 0 is off.
      top_p: Keeps the smallest set of tokens with at least this probability, 0 to 1; 0 is off.
      smooth: Feeds back a mixture of codes instead of a single code. Meant for pictures, not for FID.

    Raises:
      ValueError: A number is out of its range.
    """

    cfg: float = 1.5
    top_k: int = 900
    top_p: float = 0.96
    smooth: bool = False

    def __post_init__(self):
        if not 0 <= self.cfg < math.inf:
            raise ValueError(f"sampling.cfg is {self.cfg}; give a finite number, 0 (unguided) or more")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k is {self.top_k}; give 0 (off) or more")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"sampling.top_p is {self.top_p}; give 0 (off) to 1")


class Sample(NamedTuple):
    """The tokens and latents of a batch of samples.

    Attributes:
      tokens: K token maps, (b, p_k, p_k) int32.
      f_hat: The cumulative latents after each scale, K arrays of (b, p_K, p_K, c).
    """

    tokens: list[jax.Array]
    f_hat: list[jax.Array]


def init_caches(network: Transformer, batch: int, layers: tuple[Any, ...] | None = None) -> list[Cache]:
    """Makes one cache for all stacked blocks or, if `layers` are given, one cache for each of them."""
    depth = network.depth if layers is None else 1
    return [jax.tree.map(lambda a: jnp.zeros((depth, *a.shape), a.dtype), network.init_cache(batch))
            for _ in layers or (None,)]


def sample_keys(seed: int | jax.Array, labels_b: jax.Array, start: int | jax.Array = 0) -> jax.Array:
    """Makes one random key per sample, from the seed, the sample's number and its label, whatever the batch.

    Args:
      seed: In [0, 2**32).
      labels_b: int32 classes.
      start: Number of the batch's first sample among all samples of the seed; the others count up from it.
    """
    key = jax.random.key(jnp.asarray(seed, jnp.uint32))
    numbers_b = jnp.asarray(start, jnp.uint32) + jnp.arange(labels_b.shape[0], dtype=jnp.uint32)
    return jax.vmap(lambda number, label: jax.random.fold_in(jax.random.fold_in(key, number), label))(
        numbers_b, labels_b)


def unstack(params: Any) -> tuple[Any, ...]:
    """Splits stacked transformer blocks into one tree each, for `sample`'s `layers`. Not for use in jit.

    The blocks are replicated, or on one device. On a CPU, they share their memory with `params`.
    """
    def take(stacked: jax.Array, layer: int) -> jax.Array:
        # Without a place, jax may move the block to where the other arguments are.
        place = stacked.sharding if len(stacked.sharding.device_set) > 1 else None
        return jax.device_put(np.asarray(stacked)[layer], place)

    blocks, depth = params["blocks"], len(jax.tree.leaves(params["blocks"])[0])
    return tuple(jax.tree.map(functools.partial(take, layer=layer), blocks) for layer in range(depth))


def decode_scale(student: Bound, layers, x_bld: jax.Array, modulations: jax.Array, caches: list[Cache],
                 scale: int) -> tuple[jax.Array, list[Cache]]:
    """Runs one scale's tokens through all blocks, and writes what these keep into the caches (`init_caches`)."""
    network = student.module
    start, stop = network.offsets[scale], network.offsets[scale + 1]

    def run_block(carry, layer):
        x, cache = carry
        index, block, block_modulation = layer

        def attend(q, k, v):
            if not network.sees_prefix:
                return dense_attention(q, k, v), None
            at = (index, 0, 0, start, 0)
            new = KeysValues(*(jax.lax.dynamic_update_slice(c, a[None], at)
                               for c, a in zip(cache, (k, v), strict=True)))
            k, v = (jax.lax.dynamic_index_in_dim(c, index, keepdims=False)[:, :, :stop] for c in new)
            return dense_attention(q, k, v), new

        def mix(mixer, h):
            past = jax.tree.map(lambda c: jax.lax.dynamic_index_in_dim(c, index, keepdims=False), cache)
            out, state = mixer(h, past, (stop - start,), 1)
            return out, jax.tree.map(lambda c, a: jax.lax.dynamic_update_index_in_dim(c, a, index, 0), cache, state)

        x, cache = network.block.apply({"params": block}, x, block_modulation, attend, mix=mix)
        return (x, cache), None

    if layers is None:
        stacked = jnp.arange(network.depth), student.params["blocks"], modulations
        (x_bld, cache), _ = jax.lax.scan(run_block, (x_bld, caches[0]), stacked)
        return x_bld, [cache]
    run_block, new = jax.jit(run_block), []  # traced once for all layers
    for block, modulation, cache in zip(layers, modulations, caches, strict=True):
        (x_bld, cache), _ = run_block((x_bld, cache), (0, block, modulation))
        new.append(cache)
    return x_bld, new


def sample(student: Bound, quantizer: Bound, labels_b: jax.Array, keys_b: jax.Array, settings: SamplingSettings, *,
           replace: Callable[[int, jax.Array | None, jax.Array], jax.Array] | None = None,
           layers: tuple[Any, ...] | None = None) -> Sample:
    """Draws images of the given classes.

    Args:
      student: A bound `Transformer`.
      quantizer: The bound `MultiScaleQuantizer` of the structure tokenizer.
      labels_b: int32 classes.
      keys_b: One random key per sample, from `sample_keys`.
      settings: How tokens are drawn; static under jit.
      replace: For editing: replace(scale, f_hat before this scale, drawn token map (b, p, p)) returns the token map
        to continue with.
      layers: The blocks a second time, one tree each, from `unstack`. They make sampling faster on CPUs, where a loop
        over stacked blocks copies each block's weights before it uses them, at every scale. Without them the program
        is smaller and compiles faster.
    """
    network, guided = student.module, settings.cfg > 0
    num_scales, batch = len(network.grid_sizes), labels_b.shape[0]
    null = jnp.full_like(labels_b, network.num_classes)
    # Under guidance each sample goes through the network twice, with and without its class, in adjacent rows of one
    # batch. If the batch consisted of two halves instead, devices that share the batch would have to exchange them.
    network_labels = jnp.stack([labels_b, null], axis=1).reshape(-1) if guided else labels_b

    def conditional(array):
        return array[::2] if guided else array

    modulations, embedding = student("conditions", network_labels)
    caches = init_caches(network, network_labels.shape[0], layers)
    x, f_hat, tokens, f_hats = student("start", network_labels), None, [], []
    for scale, side in enumerate(network.grid_sizes):
        x, caches = decode_scale(student, layers, x, modulations, caches, scale)
        strength = filters.guidance_scale(settings.cfg, scale, num_scales)
        if strength:
            logits = student("logits", x, embedding)
            logits = filters.guide(logits[::2], logits[1::2], strength)
        else:
            logits = student("logits", conditional(x), conditional(embedding))
        logits = filters.filter_logits(logits, settings.top_k, settings.top_p)
        gumbel = jax.vmap(lambda key, like, s=scale: jax.random.gumbel(jax.random.fold_in(key, s), like.shape))(
            keys_b, logits)
        chosen = jnp.argmax(logits + gumbel, axis=-1).astype(jnp.int32)
        chosen = chosen.reshape(batch, side, side)
        if replace is not None:
            chosen = replace(scale, f_hat, chosen)
        if settings.smooth:
            mixture = filters.smoothing(logits, gumbel, scale, num_scales)
            vectors = jnp.einsum("blv,vc->blc", mixture, quantizer.params["codebook"]["embedding"],
                                 precision=jax.lax.Precision.HIGHEST)
        else:
            vectors = quantizer.params["codebook"]["embedding"][chosen]
        tokens.append(chosen)
        f_hat = quantizer("accumulate", f_hat, vectors.reshape(batch, side, side, -1), scale)
        f_hats.append(f_hat)
        if scale + 1 < num_scales:
            inputs = quantizer("view", f_hat, scale + 1)
            inputs = inputs.reshape(batch, -1, inputs.shape[-1])
            x = student("words", jnp.repeat(inputs, 2, axis=0) if guided else inputs, scale + 1, 1)
    return Sample(tokens, f_hats)

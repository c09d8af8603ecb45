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

# For editing: (scale, f_hat before this scale, drawn token map (b, p, p)) -> the token map to continue with.
Replace = Callable[[int, jax.Array | None, jax.Array], jax.Array]


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


class Course(NamedTuple):
    """Where a batch of samples stands between two scales. Under guidance, b is twice the number of samples.

    Attributes:
      labels_b: The classes that the network reads, int32.
      modulations: From `Transformer.conditions`, as the next.
      embedding: Of the classes.
      caches: What the layers keep of the scales so far.
      f_hat: The cumulative latent, (samples, p_K, p_K, c); None before the first scale.
    """

    labels_b: jax.Array
    modulations: jax.Array
    embedding: jax.Array
    caches: list[Cache]
    f_hat: jax.Array | None


def begin(student: Bound, labels_b: jax.Array, guided: bool, layers: tuple[Any, ...] | None = None) -> Course:
    """Prepares samples of the given classes; the arguments are those of `sample`."""
    if guided:
        # Each sample goes through the network twice, with and without its class, in adjacent rows of one batch. If the
        # batch consisted of two halves instead, devices that share the batch would have to exchange them.
        null = jnp.full_like(labels_b, student.module.num_classes)
        labels_b = jnp.stack([labels_b, null], axis=1).reshape(-1)
    modulations, embedding = student("conditions", labels_b)
    return Course(labels_b, modulations, embedding, init_caches(student.module, labels_b.shape[0], layers), None)


def draw_scale(student: Bound, quantizer: Bound, course: Course, keys_b: jax.Array, scale: int, *, guided: bool,
               strength: float | jax.Array, keep: Callable[[jax.Array], jax.Array], smooth: bool = False,
               replace: Replace | None = None, layers: tuple[Any, ...] | None = None) -> tuple[Course, jax.Array]:
    """Draws the token map of the next scale.

    Args:
      student: As for `sample`, like the other arguments without a line.
      quantizer: The quantizer.
      course: From `begin`, or from the scale before.
      keys_b: The random keys.
      scale: The scale, from 0.
      guided: Whether `begin` has prepared guidance.
      strength: The strength of guidance at this scale; the first scale has none.
      keep: Sets the logits of tokens that are not to be drawn to -inf.
      smooth: Whether mixtures of codes are fed back.
      replace: For editing.
      layers: The blocks.

    Returns:
      The course after this scale, and the token map (b, p, p) int32.
    """
    network, samples, side = student.module, keys_b.shape[0], student.module.grid_sizes[scale]
    if course.f_hat is None:
        x = student("start", course.labels_b)
    else:
        inputs = quantizer("view", course.f_hat, scale)
        inputs = inputs.reshape(samples, -1, inputs.shape[-1])
        x = student("words", jnp.repeat(inputs, 2, axis=0) if guided else inputs, scale, 1)
    x, caches = decode_scale(student, layers, x, course.modulations, course.caches, scale)
    if guided and scale:
        logits = student("logits", x, course.embedding)
        logits = filters.guide(logits[::2], logits[1::2], strength)
    else:
        conditional = slice(None, None, 2 if guided else 1)
        logits = student("logits", x[conditional], course.embedding[conditional])
    logits = keep(logits)
    gumbel = jax.vmap(lambda key, like: jax.random.gumbel(jax.random.fold_in(key, scale), like.shape))(keys_b, logits)
    chosen = jnp.argmax(logits + gumbel, axis=-1).astype(jnp.int32).reshape(samples, side, side)
    if replace is not None:
        chosen = replace(scale, course.f_hat, chosen)
    codes = quantizer.params["codebook"]["embedding"]
    if smooth:
        mixture = filters.smoothing(logits, gumbel, scale, len(network.grid_sizes))
        vectors = jnp.einsum("blv,vc->blc", mixture, codes, precision=jax.lax.Precision.HIGHEST)
    else:
        vectors = codes[chosen]
    f_hat = quantizer("accumulate", course.f_hat, vectors.reshape(samples, side, side, -1), scale)
    return course._replace(caches=caches, f_hat=f_hat), chosen


def sample(student: Bound, quantizer: Bound, labels_b: jax.Array, keys_b: jax.Array, settings: SamplingSettings, *,
           replace: Replace | None = None, layers: tuple[Any, ...] | None = None) -> Sample:
    """Draws images of the given classes.

    Args:
      student: A bound `Transformer`.
      quantizer: The bound `MultiScaleQuantizer` of the structure tokenizer.
      labels_b: int32 classes.
      keys_b: One random key per sample, from `sample_keys`.
      settings: How tokens are drawn; static under jit.
      replace: For editing.
      layers: The blocks a second time, one tree each, from `unstack`. They make sampling faster on CPUs, where a loop
        over stacked blocks copies each block's weights before it uses them, at every scale. Without them the program
        is smaller and compiles faster.
    """
    guided, num_scales = settings.cfg > 0, len(student.module.grid_sizes)
    keep = functools.partial(filters.filter_logits, top_k=settings.top_k, top_p=settings.top_p)
    tokens: list[jax.Array] = []
    f_hats: list[jax.Array] = []
    course = begin(student, labels_b, guided, layers)
    for scale in range(num_scales):
        course, chosen = draw_scale(
            student, quantizer, course, keys_b, scale, guided=guided, keep=keep, smooth=settings.smooth,
            strength=filters.guidance_scale(settings.cfg, scale, num_scales), replace=replace, layers=layers)
        assert course.f_hat is not None  # from the first scale on
        tokens.append(chosen)
        f_hats.append(course.f_hat)
    return Sample(tokens, f_hats)

"""In-painting, out-painting and class-conditional editing, by token replacement at every scale."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from refocus_jax.focus.resample import resize
from refocus_jax.models.quantizer import MultiScaleQuantizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.sampling import decode


def token_masks(mask_bhw: jax.Array, grid_sizes: Sequence[int]) -> list[jax.Array]:
    """Which tokens are drawn anew, (b, p_k, p_k) bool per scale, for a mask of pixels: True is painted anew.

    A coarse token is drawn anew if most of its cell is, so that what it says of the rest is not lost; at the last
    scale one pixel is enough.
    """
    masks = [resize(mask_bhw.astype(jnp.float32)[..., None], p, "area")[..., 0] for p in grid_sizes]
    return [mask > 0.5 for mask in masks[:-1]] + [masks[-1] > 0]


def edit(network: Transformer, params: Any, quantizer: MultiScaleQuantizer, quantizer_params: Any,
         latents: Sequence[jax.Array], mask_bhw: jax.Array, labels_b: jax.Array, keys_b: jax.Array,
         settings: decode.SamplingSettings, *, layers: tuple[Any, ...] | None = None) -> decode.Sample:
    """Draws the masked part of images as images of the given classes; the rest says what the images say.

    Outside the mask every scale's tokens are those that the tokenizer chooses after what has been drawn so far: of a
    residual pyramid they make up for coarser tokens that have changed. Without a mask they are the image's own.

    Args:
      latents: z_1 ... z_K of the images, (b, p_k, p_k, c). mask_bhw: at the image's size, any shape, non-zero is
      painted anew. The others as in `decode.sample`.

    Raises:
      ValueError: smoothing, which feeds back no tokens.
    """
    if settings.smooth:
        raise ValueError("sampling.smooth is True, but editing replaces tokens, which smoothing does not feed back; "
                         "set it False")
    masks = token_masks(mask_bhw, network.grid_sizes)

    def replace(scale: int, f_hat: jax.Array | None, drawn_bpp: jax.Array) -> jax.Array:
        own, _ = quantizer.apply({"params": quantizer_params}, latents[scale], f_hat, scale, method="choose")
        return jnp.where(masks[scale], drawn_bpp, own)

    return decode.sample(network, params, quantizer, quantizer_params, labels_b, keys_b, settings, replace=replace,
                         layers=layers)

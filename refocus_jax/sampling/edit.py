"""In-painting, out-painting and class-conditional editing, by token replacement at every scale.

Hidden pixels are unknown: nothing here depends on the pixels under the mask. `fill` replaces them by known pixels
before anything else reads the image. docs/how_to/editing.md explains why it takes the nearest ones, and which tokens
are drawn.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from refocus_jax.focus import Pyramid
from refocus_jax.focus.resample import resize
from refocus_jax.models.bound import Bound
from refocus_jax.sampling import decode

MAX_HIDDEN = 0.6  # of the area that a kept coarse token sees; above 1/2, so that an image hidden by half keeps them


def fill(image_hwc: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    """Replaces each hidden pixel (mask True) by the nearest known pixel, or by zero if none is known.

    This gives a hole the colours and the contrast of its surroundings. Encoders need both, because they normalize over
    the whole image: around a smoothly filled hole more tokens change.
    """
    known = np.where(mask_hw[..., None], 0, image_hwc)
    rows, columns = ndimage.distance_transform_edt(mask_hw, return_distances=False, return_indices=True)
    return known[rows, columns]


def token_masks(mask_bhw: jax.Array, optics: Pyramid, pyramid: str) -> list[jax.Array]:
    """Decides which tokens are drawn, given a mask of the pixels to paint.

    The mask goes through the same blur and reduction as the image, which gives the hidden share of the area that each
    token sees. A coarse token is kept unless most of that area is hidden: kept tokens match the painted part to its
    surroundings, and where they describe a filled hole, the hole has the colours of the surroundings. At the last
    scale, from which images are decoded, a token is drawn if a single pixel of its cell is hidden.

    Args:
      mask_bhw: True where the image is painted again.
      optics: The tokenizer's focus pyramid.
      pyramid: The tokenizer's kind of pyramid; in a `var` pyramid all tokens see the image itself.

    Returns:
      One bool array per scale, (b, p_k, p_k), True where a token is drawn.
    """
    hidden = mask_bhw.astype(jnp.float32)[..., None]
    shares = []
    for scale, p in enumerate(optics.grid_sizes):
        seen = hidden if pyramid == "var" else optics.view(hidden, scale).focused
        shares.append(resize(seen, p, "area")[..., 0])
    return [share > MAX_HIDDEN for share in shares[:-1]] + [shares[-1] > 0]


def keep_own(quantizer: Bound, latents: Sequence[jax.Array], drawn_bpp: Sequence[jax.Array]) -> decode.Replace:
    """Makes the function that puts the images' own tokens where none are drawn; the arguments are those of `edit`."""
    def replace(scale: int, f_hat: jax.Array | None, chosen_bpp: jax.Array) -> jax.Array:
        own, _ = quantizer("choose", latents[scale], f_hat, scale)
        return jnp.where(drawn_bpp[scale], chosen_bpp, own)

    return replace


def edit(student: Bound, quantizer: Bound, latents: Sequence[jax.Array], drawn_bpp: Sequence[jax.Array],
         labels_b: jax.Array, keys_b: jax.Array, settings: decode.SamplingSettings, *,
         layers: tuple[Any, ...] | None = None) -> decode.Sample:
    """Draws some tokens of images for the given classes and keeps the images' own tokens elsewhere.

    In a residual pyramid, an image's own tokens are the ones that the tokenizer chooses given the tokens so far. They
    compensate for coarser tokens that were drawn, so that the known part of the image is reproduced. They necessarily
    depend on what was painted, but not on what was hidden. If nothing is drawn, all tokens are the image's own.

    Args:
      student: A bound `Transformer`.
      quantizer: The bound `MultiScaleQuantizer` of the structure tokenizer.
      latents: z_1 ... z_K of the images after `fill`, (b, p_k, p_k, c).
      drawn_bpp: From `token_masks`, True where a token is drawn.
      labels_b: int32 classes.
      keys_b: One random key per image, from `decode.sample_keys`.
      settings: How tokens are drawn; static under jit.
      layers: The blocks from `decode.unstack`, which make sampling faster on CPUs, see `decode.sample`.

    Raises:
      ValueError: `settings.smooth` is True; smoothing feeds back mixtures, not tokens.
    """
    if settings.smooth:
        raise ValueError("sampling.smooth is True, but editing replaces tokens, which smoothing does not feed back; "
                         "set it False")

    return decode.sample(student, quantizer, labels_b, keys_b, settings, layers=layers,
                         replace=keep_own(quantizer, latents, drawn_bpp))

"""In-painting, out-painting and class-conditional editing, by token replacement at every scale.

What is hidden is unknown: nothing here depends on the pixels under the mask. `fill` puts known pixels in their place
before anything else looks at the image. Why with the nearest ones, and which tokens are drawn: docs/how_to/editing.md.
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

MAX_HIDDEN = 0.6  # share of what a coarse token sees, if the token is to be kept; half of an image is not a tie


def fill(image_hwc: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    """An image with each hidden pixel (mask True) replaced by the nearest known one; zeros if none is known.

    So a hole has the colours and the contrast of what surrounds it. Encoders, which normalize over the whole image,
    need both: next to a smooth hole more tokens change.
    """
    known = np.where(mask_hw[..., None], 0, image_hwc)
    rows, columns = ndimage.distance_transform_edt(mask_hw, return_distances=False, return_indices=True)
    return known[rows, columns]


def token_masks(mask_bhw: jax.Array, optics: Pyramid, pyramid: str) -> list[jax.Array]:
    """Which tokens are drawn, (b, p_k, p_k) bool per scale, for a mask of pixels: True is painted anew.

    The mask goes the way of the image, through the same blur and reduction, which tells how much of what a token sees
    is hidden. A coarse token is kept unless that is most of it: kept tokens tie the painted part to its surroundings,
    and where they describe a filled hole it has their colours. At the last scale, which images are decoded from, one
    hidden pixel in its cell is enough to draw a token.

    Args:
      optics, pyramid: of the tokenizer; of a `var` pyramid all tokens see the image itself.
    """
    hidden = mask_bhw.astype(jnp.float32)[..., None]
    shares = []
    for scale, p in enumerate(optics.grid_sizes):
        seen = hidden if pyramid == "var" else optics.view(hidden, scale).focused
        shares.append(resize(seen, p, "area")[..., 0])
    return [share > MAX_HIDDEN for share in shares[:-1]] + [shares[-1] > 0]


def edit(student: Bound, quantizer: Bound, latents: Sequence[jax.Array], drawn_bpp: Sequence[jax.Array],
         labels_b: jax.Array, keys_b: jax.Array, settings: decode.SamplingSettings, *,
         layers: tuple[Any, ...] | None = None) -> decode.Sample:
    """Draws some tokens of images as those of the given classes; the others say what the images say.

    A residual pyramid's own tokens are those that the tokenizer chooses after what has been drawn so far: they make up
    for coarser tokens that were drawn, so that what is known comes out as it is. They depend on what was painted, as
    they must, and not on what was hidden. If nothing is drawn all tokens are the image's own.

    Args:
      latents: z_1 ... z_K of the images after `fill`, (b, p_k, p_k, c). drawn_bpp: from `token_masks`, True is drawn.
      The others as in `decode.sample`.

    Raises:
      ValueError: smoothing, which feeds back no tokens.
    """
    if settings.smooth:
        raise ValueError("sampling.smooth is True, but editing replaces tokens, which smoothing does not feed back; "
                         "set it False")

    def replace(scale: int, f_hat: jax.Array | None, chosen_bpp: jax.Array) -> jax.Array:
        own, _ = quantizer("choose", latents[scale], f_hat, scale)
        return jnp.where(drawn_bpp[scale], chosen_bpp, own)

    return decode.sample(student, quantizer, labels_b, keys_b, settings, replace=replace, layers=layers)

"""What the tab Edit does, from an upload and a mask to the arguments of `Generator.edit`."""

from collections.abc import Sequence

import numpy as np

from refocus_jax.data import images, masks, pictures

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_PIXELS = 16_000_000  # filling a masked part of this size takes seconds
CANVAS = 512  # side of the square on which masks are painted, in pixels


def read(path: str, sixteen_bit_max: int = 0) -> np.ndarray:
    """Reads an uploaded image as uint8 (h, w, 3). Its size is checked before it is decoded.

    Raises:
      ValueError: It is not an image, is damaged, or has more than MAX_PIXELS pixels.
    """
    with open(path, "rb") as file:
        return images.decode_rgb(file, "the file", sixteen_bit_max, MAX_PIXELS)


def canvas(picture_hwc: np.ndarray) -> np.ndarray:
    """Returns the middle square of a picture, on which a mask is painted: uint8 (CANVAS, CANVAS, 3)."""
    return pictures.to_uint8(masks.to_model(picture_hwc, CANVAS))


def brush_mask(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Returns where a brush has painted: bool (h, w), True where any layer, uint8 (h, w, 4), is not transparent.

    Raises:
      ValueError: There are no layers, or nothing is painted.
    """
    painted = [layer[..., 3] > 0 for layer in layers]
    if not painted or not np.any(painted):
        raise ValueError("nothing is painted; paint the part that is to be drawn anew, or choose the box")
    return np.any(painted, axis=0)


def box_mask(left: float, right: float, top: float, bottom: float) -> np.ndarray:
    """Returns a box on the canvas, whose edges are given in percent of its side: bool (CANVAS, CANVAS).

    Raises:
      ValueError: The box is empty.
    """
    if not (left < right and top < bottom):
        raise ValueError(f"the box reaches from {left:g} to {right:g} % across and from {top:g} to {bottom:g} % down; "
                         "let both begin before they end")
    columns, rows = (np.rint(np.asarray(edges) * CANVAS / 100).astype(int) for edges in ((left, right), (top, bottom)))
    mask = np.zeros((CANVAS, CANVAS), bool)
    mask[rows[0]:rows[1], columns[0]:columns[1]] = True
    return mask


def known(picture_hwc: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    """Returns a uint8 picture that is grey where the mask, bool (h, w), is True."""
    return np.where(mask_hw[..., None], np.uint8(128), picture_hwc)

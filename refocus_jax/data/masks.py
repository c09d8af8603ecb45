"""Images to edit and their masks, which hide pixels of the file and of the model's square."""

from typing import IO

import jax.numpy as jnp
import numpy as np
from PIL import Image

from refocus_jax.data.images import decode_rgb
from refocus_jax.focus.resample import resize
from refocus_jax.sampling.edit import fill


def read_image(path: str, sixteen_bit_max: int = 0) -> np.ndarray:
    """Read the image file of `edit.image` as uint8 (h, w, 3).

    Args:
      path: Path of the file.
      sixteen_bit_max: The value that is white in 16-bit images; 0 refuses them. It is never derived from the values,
        because hidden pixels must have no influence.

    Returns:
      The image.

    Raises:
      ValueError: If no file is given, or if it is not an image.
    """
    if not path:
        raise ValueError("edit.image is empty; give the path of an image")
    return _decode("edit.image", path, sixteen_bit_max)


def hide(picture_hwc: np.ndarray, mask: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Prepare a picture and its mask for `Generator.edit`, without any trace of the hidden pixels.

    The hidden pixels are filled before the picture is resized, because resizing mixes pixels on both sides of the
    mask's border.

    Args:
      picture_hwc: The picture, uint8 (h, w, 3).
      mask: The setting `edit.mask`, see `read_mask`.
      size: Side of the model's square in pixels.

    Returns:
      The picture (size, size, 3) in [-1, 1], and the mask (size, size) bool, True where pixels are hidden.
    """
    hidden, square = read_mask(mask, picture_hwc.shape[:2], size)
    return to_model(fill(picture_hwc, hidden), size), square


def hide_square(picture_hwc: np.ndarray, square: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Does what `hide` does, for a mask of the picture's middle square: bool, of any side, True where to paint."""
    hidden, middle = np.zeros(picture_hwc.shape[:2], bool), _middle(*picture_hwc.shape[:2])
    side: int = min(hidden.shape)
    hidden[middle] = _cover(square, (side, side))
    return to_model(fill(picture_hwc, hidden), size), _cover(square, (size, size))


def read_mask(mask: str, shape: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a mask: the pixels that are hidden and will be painted.

    In an image file, pixels lighter than mid-grey (luminance 128 and above) are hidden, and all others are known. The
    file may have any size with the aspect ratio of the image: a pixel of the image is hidden if any pixel of the mask
    on it is. Alternatively, `box:LEFT,TOP,RIGHT,BOTTOM` in pixels of the (size, size) square hides the box
    (in-painting), and `outside:LEFT,TOP,RIGHT,BOTTOM` hides everything but the box (out-painting).

    Args:
      mask: The setting `edit.mask`: a path, or a box.
      shape: (h, w) of the image file.
      size: Side of the model's square in pixels.

    Returns:
      Which pixels are hidden, of the image file, bool (h, w), and of its middle square, bool (size, size).

    Raises:
      ValueError: If there is no such file or box, or if the mask is transparent, dark everywhere or has another aspect
        ratio.
    """
    hidden, middle = np.zeros(shape, bool), _middle(*shape)
    kind, _, numbers = mask.partition(":")
    if kind in ("box", "outside"):
        square = _box(mask, numbers, size) ^ (kind == "outside")
        hidden[middle] = _cover(square, (min(shape), min(shape)))
        return hidden, square
    if not mask:
        raise ValueError("edit.mask is empty; give an image file, white where to paint, box:LEFT,TOP,RIGHT,BOTTOM "
                         "or outside:LEFT,TOP,RIGHT,BOTTOM")
    grey = np.asarray(Image.fromarray(_decode("edit.mask", mask, transparent=False)).convert("L"))
    (height, width), (mask_height, mask_width) = shape, grey.shape
    # The aspect ratios are equal up to the rounding of the sides, half a pixel each.
    if 2 * abs(mask_width * height - mask_height * width) > max(width + height, mask_width + mask_height):
        raise ValueError(f"edit.mask={mask} has {mask_width} x {mask_height} pixels and edit.image {width} x {height}, "
                         "which is another shape; give a mask of the image's size, or of the same shape")
    if 0 < grey.max() < 128:
        raise ValueError(f"edit.mask={mask} is at most {grey.max()} of 255, so that nothing would be painted; set the "
                         "pixels to paint to 255")
    hidden = _cover(grey >= 128, shape)
    return hidden, _cover(hidden[middle], (size, size))


def _box(mask: str, numbers: str, size: int) -> np.ndarray:
    edges = [int(n) if n.strip().isdecimal() else -1 for n in numbers.split(",")]
    if len(edges) != 4 or not (0 <= edges[0] < edges[2] <= size and 0 <= edges[1] < edges[3] <= size):
        raise ValueError(f"edit.mask is {mask!r}; give {mask.partition(':')[0]}:LEFT,TOP,RIGHT,BOTTOM with "
                         f"0 <= LEFT < RIGHT <= {size} and 0 <= TOP < BOTTOM <= {size}")
    inside = np.zeros((size, size), bool)
    inside[edges[1]:edges[3], edges[0]:edges[2]] = True
    return inside


def _cover(hidden_hw: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask at another size, True for pixels of which any part is hidden."""
    return np.asarray(resize(jnp.asarray(hidden_hw[None, ..., None], jnp.float32), shape, "area"))[0, ..., 0] > 0


def _decode(setting: str, path: str, sixteen_bit_max: int | None = None, transparent: bool = True) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            decoded = decode_rgb(file, f"{setting}={path}", sixteen_bit_max)
            if not transparent:
                _refuse_transparency(file, f"{setting}={path}")
            return decoded
    except OSError as error:
        raise ValueError(f"{setting} is {path}, which cannot be opened ({error.strerror}); give an image "
                         "file") from error


def _refuse_transparency(file: IO[bytes], name: str) -> None:
    """Refuse a transparent mask: some programs make pixels to paint transparent, others pixels to keep."""
    with Image.open(file) as image:
        if image.has_transparency_data and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
            raise ValueError(f"{name} has transparent pixels, which may mean paint or keep; give it without "
                             "transparency, white where to paint and black elsewhere")


def _middle(height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and columns of the largest centred square."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def to_model(picture_hwc: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of a uint8 picture, resized to (size, size, 3) in [-1, 1]."""
    square = Image.fromarray(picture_hwc[_middle(*picture_hwc.shape[:2])])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1

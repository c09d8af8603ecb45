"""Images to edit and their masks: which pixels are hidden, in the file and in the model's square."""

from typing import BinaryIO

import numpy as np
from PIL import Image

from refocus_jax.data.images import decode_rgb
from refocus_jax.focus.resample import resize
from refocus_jax.sampling.edit import fill


def read_image(path: str, sixteen_bit_max: int = 0) -> np.ndarray:
    """An image file as uint8 (h, w, 3). What is white in 16 bits must be given: hidden pixels have no say in it.

    Raises:
      ValueError: no file is given, or it is not an image.
    """
    if not path:
        raise ValueError("edit.image is empty; give the path of an image")
    return _decode("edit.image", path, sixteen_bit_max)


def hide(picture_hwc: np.ndarray, mask: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture as `Generator.edit` takes it, (size, size, 3) in [-1, 1], without a trace of what the mask hides.

    Also the mask (size, size) bool; it is given as for `read_mask`. The picture is filled before it is resized, since
    that mixes pixels on both sides of the mask's border.
    """
    hidden, square = read_mask(mask, picture_hwc.shape[:2], size)
    return to_model(fill(picture_hwc, hidden), size), square


def read_mask(mask: str, shape: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """What is hidden, and painted: pixels of the image file, bool (h, w), and of its middle square, (size, size).

    An image file, lighter than mid-grey (128 and above, of colours their luminance) is hidden, all the rest is known;
    of any size, if it has the shape of the image: a pixel is hidden if any pixel of the mask on it is. Or
    `box:LEFT,TOP,RIGHT,BOTTOM` in pixels of the square of (size, size) hides the box (in-painting), and
    `outside:LEFT,TOP,RIGHT,BOTTOM` all but the box (out-painting).

    Args:
      shape: (h, w) of the image file.

    Raises:
      ValueError: no such file or box; a mask that is transparent, dark all over or of another shape.
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
    # Of one shape but for the rounding of their sides, half a pixel each.
    if 2 * abs(mask_width * height - mask_height * width) > max(width + height, mask_width + mask_height):
        raise ValueError(f"edit.mask={mask} has {mask_width} x {mask_height} pixels and edit.image {width} x {height}, "
                         "which is another shape; give a mask of the image's size, or of its shape")
    if 0 < grey.max() < 128:
        raise ValueError(f"edit.mask={mask} is {grey.max()} of 255 where it is lightest, so that nothing would be "
                         "painted; set to 255 what is to be painted")
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
    """The same mask in pixels of another size: those of which any part is hidden."""
    return np.asarray(resize(hidden_hw[None, ..., None].astype(np.float32), shape, "area"))[0, ..., 0] > 0


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


def _refuse_transparency(file: BinaryIO, name: str) -> None:
    """Some programs make transparent what is to be painted, others what is to be kept."""
    with Image.open(file) as image:
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            raise ValueError(f"{name} has transparent pixels, which may mean either; give it without transparency, "
                             "white where to paint and black elsewhere")


def _middle(height: int, width: int) -> tuple[slice, slice]:
    """The largest centred square."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def to_model(picture_hwc: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture as (size, size, 3) in [-1, 1]."""
    square = Image.fromarray(picture_hwc[_middle(*picture_hwc.shape[:2])])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1

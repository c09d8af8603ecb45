"""Image files of any origin, decoded to RGB. With `npz`, the reader of bytes that others wrote."""

from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# The formats of photographs, by their suffixes. Pillow knows more; its reader of EPS, for one, starts another program.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "BMP": (".bmp",), "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)

# 240 MB decoded, and several images are decoded at a time. Pillow begins to warn at 89 million.
_MAX_PIXELS = 80_000_000
# The crop rule enlarges the short side to the crop, and with it the long one: a line of pixels would fill the memory.
_MAX_ASPECT_RATIO = 100


def decode_rgb(file: BinaryIO, name: str) -> np.ndarray:
    """Decodes an image file to uint8 RGB (h, w, 3), upright as its EXIF orientation says.

    Greyscale is repeated, of 16 bits the upper 8 are kept, transparency is laid on white, an animation gives its
    first frame. The format is known by the content, whatever the file is called.

    Args:
      file: seekable, opened for reading bytes.
      name: what errors call it.

    Raises:
      ValueError: not an image in a known format, damaged, of a size that `check_size` refuses, or of a mode without
        a known range (32 bits, floats) or conversion (Lab).
    """
    try:
        with Image.open(file, formats=tuple(_SUFFIXES)) as image:
            check_size(image.height, image.width)  # before anything is decoded
            return np.asarray(_to_rgb(_upright(image)))
    except UnidentifiedImageError as error:
        formats = ", ".join(_SUFFIXES)
        raise ValueError(f"{name} cannot be read as an image: its beginning is that of no {formats} file") from error
    except Exception as error:  # whatever a damaged file does to the decoders
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{name} cannot be read as an image: {reason}") from error


def check_size(height: int, width: int) -> None:
    """Refuses sizes (pixels) of which no crop can be cut, or none within reasonable memory.

    Small images are no reason: the crop rule enlarges them.

    Raises:
      ValueError: no pixels, too many, or sides too unlike each other.
    """
    short, long = sorted((height, width))
    if short < 1 or height * width > _MAX_PIXELS or long > _MAX_ASPECT_RATIO * short:
        raise ValueError(
            f"images of {width} x {height} pixels are not taken; give at least 1 x 1, at most "
            f"{_MAX_PIXELS // 10**6} million, and sides of at most {_MAX_ASPECT_RATIO} : 1"
        )


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, which ImageNet has too, is no reason to lose a picture whose pixels are sound
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow itself would clip at 255. Of 16-bit colours, it has kept the upper bits when it decoded them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")

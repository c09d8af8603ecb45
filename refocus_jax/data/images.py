"""Decoding of image files of any origin to RGB.

This module and `npz` are the only readers of bytes that other programs wrote.
"""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from refocus_jax.data import notices

# The formats of photographs, as far as the installed Pillow supports them. Pillow supports more formats, which are not
# read: the reader of EPS starts another program, TGA has no signature that identifies it, and others are for icons,
# fonts or films.
_PHOTOGRAPHIC = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "BMP", "DIB", "PPM", "QOI")
Image.init()
_FORMATS = tuple(name for name in _PHOTOGRAPHIC if name in Image.OPEN)
SUFFIXES = tuple(suffix for suffix, name in sorted(Image.registered_extensions().items())
                 if name in _FORMATS and suffix != ".pfm")  # .pfm holds floats of unknown range

# This is 240 MB per decoded image, and several images are decoded at a time. Pillow begins to warn at 89 million.
MAX_PIXELS = 80_000_000
# The crop rule enlarges the short side to the crop and the long side with it: a line of pixels would fill the memory.
_MAX_ASPECT_RATIO = 100

_SIXTEEN_BIT_MAX = 2**16 - 1
# White levels of cameras and scanners that write 8, 10, 12, 14 or 16 bits into files of 16 bits.
_WHITES = (255, 1023, 4095, 16383, _SIXTEEN_BIT_MAX)
_JPEG, _START_OF_SCAN, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"  # markers, which no pixels contain
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION = 258, 262  # TIFF tags


class SixteenBits(NamedTuple):
    """A 16-bit image whose file does not say which value is white (PNG and 16-bit TIFF).

    Attributes:
      largest: Largest value of its pixels, at least 1.
      colour: Whether it has colours. Pillow keeps only the upper 8 bits of these, and `largest` is then the largest
        value that they may have had.
    """

    largest: int
    colour: bool


def decode_rgb(file: IO[bytes], name: str, sixteen_bit_max: int | None = None,
               max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file to uint8 RGB (h, w, 3), turned upright by its EXIF orientation.

    Greyscale is repeated in all three channels, Lab and CMYK are converted, 16 bits are scaled to 8, transparent pixels
    are composited on white, and an animation gives its first frame. The format is determined from the content, not from
    the file name.

    Args:
      file: Seekable file, opened for reading bytes.
      name: Name of the file in error messages.
      sixteen_bit_max: The value that is white in images of `SixteenBits`; 0 refuses them. None, for a single image,
        takes the white level of the fewest of 8, 10, 12, 14 or 16 bits that hold its values, and logs it.
      max_pixels: Larger images are refused before they are decoded.

    Returns:
      The image, uint8 (h, w, 3).

    Raises:
      ValueError: If the file is not an image in a known format, is damaged, has a size that `check_size` refuses, has a
        mode without a known range (32 bits, floats), or has 16 bits that `check_white` refuses.
    """
    with _loaded(file, name, max_pixels=max_pixels) as (image, white):
        if white is None:
            found = _sixteen_bits(image)
            white = white_for(found.largest) if sixteen_bit_max is None else sixteen_bit_max
            check_white(name, found, white)
            if sixteen_bit_max is None:
                logging.warning("%s has 16 bits with values up to %d: %d is taken as white", name, found.largest, white)
        return np.asarray(_to_rgb(image, white))


def sixteen_bits(file: IO[bytes], name: str) -> SixteenBits | None:
    """Decode an image file and check whether it has 16 bits without a declared white level.

    Args:
      file: Seekable file, opened for reading bytes.
      name: Name of the file in error messages.

    Returns:
      The range of its values; None if the image does not have 16 bits, or if its file declares the white level.

    Raises:
      ValueError: As for `decode_rgb`.
    """
    with _loaded(file, name) as (image, white):
        if white is None:
            return _sixteen_bits(image)
        _to_rgb(image, white)
        return None


def check(content: bytes, name: str) -> SixteenBits | None:
    """Check the bytes of an image file as `sixteen_bits` does, but decode no JPEG file that is complete.

    Of a JPEG file, only the header is read, and whether its pixels have an end: a damage between them changes colours,
    but stops no decoder. This is several times as fast.
    """
    end = content.rfind(_END_OF_IMAGE)
    # A scan without an end is the image's, if the file is cut off and the end is that of its thumbnail.
    if content.startswith(_JPEG) and 0 < content.find(_START_OF_SCAN) < end and _START_OF_SCAN not in content[end:]:
        with _loaded(io.BytesIO(content), name, only_sixteen_bits=True):
            return None
    return sixteen_bits(io.BytesIO(content), name)


def white_for(largest: int) -> int:
    """Return the white level of the fewest of 8, 10, 12, 14 or 16 bits that hold a value."""
    return next(white for white in _WHITES if largest <= white)


def choose_white(place: str, found: Mapping[str, SixteenBits], setting: int | None = None) -> int:
    """Choose one white level for all 16-bit images of a place, and log it.

    Args:
      place: Name of the folder or set of files in messages.
      found: The 16-bit images by name.
      setting: `data.sixteen_bit_max`, where that applies.

    Returns:
      The value that is white; 0 if there are no such images.

    Raises:
      ValueError: If `check_white` refuses one of the images.
    """
    if not found:
        return 0
    brightest = max(found, key=lambda name: found[name].largest)
    largest = found[brightest].largest
    white = setting or white_for(largest)
    for name, bits in {brightest: found[brightest], **found}.items():
        check_white(f"{place}: {name}", bits, white)
    remedy = ", set data.sixteen_bit_max if it is another value" if setting == 0 else ""
    notices.say(f"{place}: {len(found)} images have 16 bits with values up to {largest} (in {brightest}); {white} is "
                f"taken as white{remedy}")
    return white


def common_white(place: str, paths: Sequence[Path]) -> int:
    """Apply `choose_white` to files that have not been read yet; only 16-bit images are read beyond the header."""
    def look(path: Path) -> SixteenBits | None:
        try:
            with path.open("rb") as file, _loaded(file, str(path), only_sixteen_bits=True) as (image, white):
                return _sixteen_bits(image) if white is None else None
        except ValueError:  # is reported when the file is decoded
            return None

    with ThreadPool() as pool:
        found = pool.map(look, paths, chunksize=16)
    return choose_white(place, {str(path): bits for path, bits in zip(paths, found, strict=True) if bits is not None})


def check_white(name: str, found: SixteenBits, white: int) -> None:
    """Refuse a 16-bit image that cannot be scaled so that `white` becomes 255.

    Args:
      name: Name of the image in error messages.
      found: The range of its values.
      white: The value that is white; 0 if it is not known.

    Raises:
      ValueError: If white is 0 or less than one of the values, or if the image has colours and white is not 65535.
    """
    if white == 0:
        raise ValueError(f"{name} has 16 bits and does not say which value is white; set data.sixteen_bit_max to "
                         "1023, 4095, 16383 or 65535 for 10, 12, 14 or 16 bits")
    if found.colour and white != _SIXTEEN_BIT_MAX:
        raise ValueError(f"{name} has colours of 16 bits with white at {white}: Pillow reads only the upper 8 bits, "
                         "which are nearly black then. Save it with 8 bits per colour, or, if it is dark and "
                         f"white is {_SIXTEEN_BIT_MAX}, set data.sixteen_bit_max={_SIXTEEN_BIT_MAX}")
    if not found.colour and found.largest > white:
        raise ValueError(f"{name} has the value {found.largest}, and data.sixteen_bit_max is {white}; set it to "
                         f"{white_for(found.largest)} or another value that is white, or to 0 to detect it")


def check_size(height: int, width: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse image sizes that cannot be cropped, or only with too much memory.

    Small images are accepted: the crop rule enlarges them.

    Args:
      height: Height in pixels.
      width: Width in pixels.
      max_pixels: The largest number of pixels.

    Raises:
      ValueError: If there are no pixels or too many, or if one side is more than 100 times as long as the other.
    """
    short, long = sorted((height, width))
    if short < 1 or height * width > max_pixels or long > _MAX_ASPECT_RATIO * short:
        raise ValueError(
            f"images of {width} x {height} pixels are not supported; give at least 1 x 1 pixels, at most "
            f"{max_pixels // 10**6} million, and sides of at most {_MAX_ASPECT_RATIO} : 1"
        )


@contextlib.contextmanager
def _loaded(file: IO[bytes], name: str, *, only_sixteen_bits: bool = False,
            max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Image.Image, int | None]]:
    """Yield the image, decoded and upright, and the value that its file declares white; None if it declares none.

    With `only_sixteen_bits`, an image whose file declares the white level is not decoded. Any error until the block
    ends becomes a ValueError that names the file.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            check_size(image.height, image.width, max_pixels)  # before anything is decoded
            white = _declared_white(image)  # also before: loading discards how the pixels are stored
            yield image if only_sixteen_bits and white is not None else _upright(image), white
    except UnidentifiedImageError as error:
        formats = ", ".join(_FORMATS)
        raise ValueError(f"{name} cannot be read as an image: it does not begin like a {formats} file") from error
    except Exception as error:  # damaged files make the decoders raise errors of any type
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{name} cannot be read as an image: {reason}") from error


def _declared_white(image: Image.Image) -> int | None:
    """Return which value is white once the image is loaded; None if 16 bits leave it open."""
    if (image.format == "PPM" and image.mode == "I") or (image.format == "JPEG2000" and image.mode.startswith("I;16")):
        return _SIXTEEN_BIT_MAX  # these formats declare their range, and Pillow scales it
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    tile = getattr(image, "tile", None)  # only images from files have it
    stored_as = str(tile[0].args) if tile else ""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.mode.startswith("I;16") and image.tag_v2.get(_PHOTOMETRIC_INTERPRETATION) == 0:
            raise ValueError("its value 0 is white, which Pillow does not invert in 16 bits; save it with 0 as black")
        if ";12" in stored_as:
            return 2**12 - 1
        if 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ()) and ";16" not in stored_as:
            raise ValueError("its 16 bits are stored colour by colour, which Pillow reads wrongly; save it with 8 "
                             "bits, or with the colours of a pixel next to each other")
    return None if image.format in ("PNG", "TIFF") and ";16" in stored_as else 255


def _sixteen_bits(image: Image.Image) -> SixteenBits:
    if image.mode.startswith("I;16"):
        return SixteenBits(max(1, int(np.asarray(image).max())), colour=False)
    if "transparency" in image.info:
        raise ValueError("one of its 16-bit colours is transparent, and Pillow reads only the upper 8 bits; save "
                         "it with an alpha channel, or with 8 bits")
    extrema = cast(Iterable[tuple[int, int]], image.getextrema())  # of an image with several bands
    largest = max(high for band, (_, high) in zip(image.getbands(), extrema, strict=True) if band != "A")
    return SixteenBits((largest << 8) + 255, colour=True)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an image with damaged EXIF data (ImageNet has some) is used as it is
        return image


def _to_rgb(image: Image.Image, white: int) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(image, white)).convert("RGB")  # Pillow's own conversion clips at 255
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, white: int) -> np.ndarray:
    """Scale grey of more than 8 bits to uint8 (h, w); a value that means transparent becomes white."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return grey

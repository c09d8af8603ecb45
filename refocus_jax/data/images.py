"""Image files of any origin, decoded to RGB. With `npz`, the reader of bytes that others wrote."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from refocus_jax.data import notices

# The formats that photographs are kept in, as far as this Pillow has them. It knows more: its reader of EPS starts
# another program, TGA has no beginning by which it could be known, and others are for icons, fonts or films.
_PHOTOGRAPHIC = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "BMP", "DIB", "PPM", "QOI")
Image.init()
_FORMATS = tuple(name for name in _PHOTOGRAPHIC if name in Image.OPEN)
SUFFIXES = tuple(suffix for suffix, name in sorted(Image.registered_extensions().items())
                 if name in _FORMATS and suffix != ".pfm")  # floats, whose range nobody knows

# 240 MB decoded, and several images are decoded at a time. Pillow begins to warn at 89 million.
_MAX_PIXELS = 80_000_000
# The crop rule enlarges the short side to the crop, and with it the long one: a line of pixels would fill the memory.
_MAX_ASPECT_RATIO = 100

_SIXTEEN_BIT_MAX = 2**16 - 1
# White of cameras and scanners that write their 8, 10, 12, 14 or 16 bits into files of 16.
_WHITES = (255, 1023, 4095, 16383, _SIXTEEN_BIT_MAX)
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION = 258, 262  # tags of a TIFF


class SixteenBits(NamedTuple):
    """A picture of 16 bits whose file does not say which of the values is white: PNG, and TIFF of 16 bits.

    Attributes:
      largest: value of its pixels, at least 1.
      colour: whether it has colours. Of these Pillow keeps the upper 8 bits, and `largest` is what they may have been.
    """

    largest: int
    colour: bool


def decode_rgb(file: BinaryIO, name: str, sixteen_bit_max: int | None = None) -> np.ndarray:
    """Decodes an image file to uint8 RGB (h, w, 3), upright as its EXIF orientation says.

    Greyscale is repeated, Lab and CMYK are converted, 16 bits are scaled to 8, transparency is laid on white, an
    animation gives its first frame. The format is known by the content, whatever the file is called.

    Args:
      file: seekable, opened for reading bytes.
      name: what errors call it.
      sixteen_bit_max: the value that is white in pictures of `SixteenBits`; 0 refuses them. None, for a picture that
        stands alone: white of the fewest of 8, 10, 12, 14 or 16 bits that hold its values, which is said.

    Raises:
      ValueError: not an image in a known format, damaged, of a size that `check_size` refuses, of a mode without a
        known range (32 bits, floats), or of 16 bits that `check_white` refuses.
    """
    with _loaded(file, name) as (image, white):
        if white is None:
            found = _sixteen_bits(image)
            white = white_for(found.largest) if sixteen_bit_max is None else sixteen_bit_max
            check_white(name, found, white)
            if sixteen_bit_max is None:
                logging.warning("%s holds 16 bits, at most %d: %d is taken for white", name, found.largest, white)
        return np.asarray(_to_rgb(image, white))


def sixteen_bits(file: BinaryIO, name: str) -> SixteenBits | None:
    """Decodes an image file and tells whether its 16 bits leave open what is white; None if it has none, or says so.

    Raises:
      ValueError: as for `decode_rgb`.
    """
    with _loaded(file, name) as (image, white):
        if white is None:
            return _sixteen_bits(image)
        _to_rgb(image, white)
        return None


def white_for(largest: int) -> int:
    """White of the fewest of 8, 10, 12, 14 or 16 bits that hold a value."""
    return next(white for white in _WHITES if largest <= white)


def choose_white(place: str, found: Mapping[str, SixteenBits], setting: int | None = None) -> int:
    """One white for all pictures of 16 bits of a place, which is said; 0 if there are none.

    Args:
      place: what it is called. found: the pictures by name. setting: `data.sixteen_bit_max`, where that applies.

    Raises:
      ValueError: a picture does not fit, see `check_white`.
    """
    if not found:
        return 0
    brightest = max(found, key=lambda name: found[name].largest)
    largest = found[brightest].largest
    white = setting or white_for(largest)
    for name, bits in {brightest: found[brightest], **found}.items():
        check_white(f"{place}: {name}", bits, white)
    remedy = ", set data.sixteen_bit_max if it is another value" if setting == 0 else ""
    notices.say(f"{place}: {len(found)} images hold 16 bits, at most {largest} (in {brightest}); {white} is taken for "
                f"white{remedy}")
    return white


def common_white(place: str, paths: Sequence[Path]) -> int:
    """`choose_white` for files that nothing is known of yet; of those without 16 bits, only the beginning is read."""
    def look(path: Path) -> SixteenBits | None:
        try:
            with path.open("rb") as file, _loaded(file, str(path), only_sixteen_bits=True) as (image, white):
                return _sixteen_bits(image) if white is None else None
        except ValueError:  # which is for those to say who decode it
            return None

    with ThreadPool() as pool:
        found = pool.map(look, paths, chunksize=16)
    return choose_white(place, {str(path): bits for path, bits in zip(paths, found, strict=True) if bits is not None})


def check_white(name: str, found: SixteenBits, white: int) -> None:
    """Refuses a picture of 16 bits that cannot be scaled so that `white` becomes 255.

    Raises:
      ValueError: white is 0, which is none, or less than a value; or there are colours, and white is not 65535.
    """
    if white == 0:
        raise ValueError(f"{name} holds 16 bits and does not say which value is white; set data.sixteen_bit_max, to "
                         "1023, 4095, 16383 or 65535 for 10, 12, 14 or 16 bits")
    if found.colour and white != _SIXTEEN_BIT_MAX:
        raise ValueError(f"{name} holds colours of 16 bits, of which white is {white}: Pillow reads the upper 8 bits "
                         "alone, which are nearly black then. Save it with 8 bits per colour, or, if it is dark and "
                         f"white is {_SIXTEEN_BIT_MAX}, set data.sixteen_bit_max={_SIXTEEN_BIT_MAX}")
    if not found.colour and found.largest > white:
        raise ValueError(f"{name} holds the value {found.largest}, and data.sixteen_bit_max is {white}; set it to "
                         f"{white_for(found.largest)} or another value that is white, or 0 to have it recognised")


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


@contextlib.contextmanager
def _loaded(file: BinaryIO, name: str, *, only_sixteen_bits: bool = False) -> Iterator[tuple[Image.Image, int | None]]:
    """The image, decoded and upright, and which value its file says is white; None if it does not say.

    With `only_sixteen_bits`, one that says it is not decoded. Whatever goes wrong until the block ends is a ValueError
    that names the file.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            check_size(image.height, image.width)  # before anything is decoded
            white = _declared_white(image)  # likewise: loading forgets how the pixels are stored
            yield image if only_sixteen_bits and white is not None else _upright(image), white
    except UnidentifiedImageError as error:
        formats = ", ".join(_FORMATS)
        raise ValueError(f"{name} cannot be read as an image: its beginning is that of no {formats} file") from error
    except Exception as error:  # whatever a damaged file does to the decoders
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{name} cannot be read as an image: {reason}") from error


def _declared_white(image: Image.Image) -> int | None:
    """Which value is white once the image is loaded; None where 16 bits leave it open."""
    if (image.format == "PPM" and image.mode == "I") or (image.format == "JPEG2000" and image.mode.startswith("I;16")):
        return _SIXTEEN_BIT_MAX  # these formats declare their range, and Pillow scales it
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    stored_as = str(image.tile[0].args) if image.tile else ""
    if image.format == "TIFF":
        if image.mode.startswith("I;16") and image.tag_v2.get(_PHOTOMETRIC_INTERPRETATION) == 0:
            raise ValueError("its 0 is white, which Pillow leaves so in 16 bits; save it with 0 as black")
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
        raise ValueError("one of its colours of 16 bits is transparent, and Pillow reads the upper 8 bits alone; save "
                         "it with an alpha channel, or with 8 bits")
    largest = max(high for band, (_, high) in zip(image.getbands(), image.getextrema(), strict=True) if band != "A")
    return SixteenBits((largest << 8) + 255, colour=True)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, which ImageNet has too, is no reason to lose a picture whose pixels are sound
        return image


def _to_rgb(image: Image.Image, white: int) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(image, white)).convert("RGB")  # Pillow itself would clip at 255
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, white: int) -> np.ndarray:
    """Grey of more than 8 bits as uint8 (h, w), with a transparent value laid on white."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return grey

"""Decoding: every mode and orientation to the right colours, and nothing but ValueError for damaged files."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import images

# Red, green, blue and a dark grey; each in a block of its own, so that a lossy format keeps it.
CORNERS = np.array([[[250, 10, 20], [10, 240, 30]], [[20, 30, 230], [40, 40, 40]]], np.uint8)
BLOCKS = CORNERS.repeat(16, axis=0).repeat(16, axis=1)


def encoded(image, file_format="PNG", **options):
    """An image file as bytes; `image` is a Pillow image or an array."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, file_format, **options)
    return file.getvalue()


def decode(content):
    return images.decode_rgb(io.BytesIO(content), "some/file")


def corners(image_hwc):
    """The colours in the middle of the four quarters, (2, 2, 3)."""
    height, width, _ = image_hwc.shape
    return image_hwc[height // 4 :: height // 2, width // 4 :: width // 2].astype(int)


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# modes


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_colours_survive_every_format(file_format):
    # Chroma at half resolution, and the palette of a GIF, may blur them a little.
    np.testing.assert_allclose(corners(decode(encoded(BLOCKS, file_format))), CORNERS, atol=6)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF"])
def test_greyscale_is_repeated(file_format):
    image_hwc = decode(encoded(np.full((8, 9), 77, np.uint8), file_format))
    assert image_hwc.shape == (8, 9, 3) and (image_hwc == 77).all()


def test_black_and_white_spans_the_range():
    assert decode(encoded(Image.new("1", (4, 4), 1))).min() == 255
    assert decode(encoded(Image.new("1", (4, 4), 0))).max() == 0


def test_a_palette_is_looked_up():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode(encoded(image)) == [10, 20, 30]).all()


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_inks_subtract_from_white(file_format):
    cyan, paper = Image.new("CMYK", (16, 16), (255, 0, 0, 0)), Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    np.testing.assert_allclose(decode(encoded(cyan, file_format)), np.full((16, 16, 3), [0, 255, 255]), atol=3)
    assert decode(encoded(paper, file_format)).min() >= 252


@pytest.mark.parametrize(("file_format", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bits_are_scaled_and_not_clipped(file_format, dtype):
    ramp = (np.arange(256) * 257).astype(dtype).reshape(16, 16)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    image = Image.frombytes(mode, (16, 16), ramp.tobytes())
    np.testing.assert_array_equal(decode(encoded(image, file_format))[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused(mode):
    with pytest.raises(ValueError, match=f"some/file cannot .*mode {mode}.*no known range; save it with 8 or 16 bits"):
        decode(encoded(Image.new(mode, (8, 8)), "TIFF"))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(file_format):
    # What the transparent pixels would show is red, green and blue.
    alpha = np.array([[255, 0], [51, 255]], np.uint8)
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    image_hwc = decode(encoded(np.dstack([CORNERS, alpha]), file_format, **options))
    # A fifth of the blue shows: 255 + (20 - 255) / 5 = 208 of its red.
    np.testing.assert_allclose(image_hwc, [[[250, 10, 20], [255, 255, 255]], [[208, 210, 250], [40, 40, 40]]], atol=1)


def test_a_transparent_colour_and_palette_entry_become_white():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode(encoded(palette, transparency=1)) == 255).all()
    assert (decode(encoded(palette, transparency=0)) == [10, 20, 30]).all()
    assert (decode(encoded(Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9))) == 255).all()
    grey = Image.fromarray(np.array([[100, 0]], np.uint8)).convert("LA")
    grey.putalpha(Image.fromarray(np.array([[255, 0]], np.uint8)))
    assert decode(encoded(grey)).tolist() == [[[100] * 3, [255] * 3]]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(file_format):
    frames = [Image.new("RGB", (16, 16), (value, value, value)) for value in (200, 100)]
    image_hwc = decode(encoded(frames[0], file_format, save_all=True, append_images=frames[1:]))
    np.testing.assert_allclose(image_hwc, 200, atol=2)


# orientation


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(file_format, orientation):
    # Orientation o of EXIF says where the first row and column of what is stored belong.
    stored = {
        1: BLOCKS, 2: BLOCKS[:, ::-1], 3: BLOCKS[::-1, ::-1], 4: BLOCKS[::-1], 5: BLOCKS.swapaxes(0, 1),
        6: np.rot90(BLOCKS), 7: np.rot90(BLOCKS, 2).swapaxes(0, 1), 8: np.rot90(BLOCKS, -1),
    }[orientation]
    content = encoded(np.ascontiguousarray(stored), file_format, exif=oriented(orientation))
    np.testing.assert_allclose(corners(decode(content)), CORNERS, atol=6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"nonsense", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff\0"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_lose_the_image(file_format, exif):
    content = encoded(BLOCKS, file_format, exif=b"Exif\0\0" + exif)
    np.testing.assert_allclose(corners(decode(content)), CORNERS, atol=6)


# sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1)])
def test_tiny_images_are_decoded(size):
    assert decode(encoded(np.zeros((*size, 3), np.uint8))).shape == (*size, 3)


@pytest.mark.parametrize("size", [(1, 101), (8000, 10), (0, 5), (10_000, 10_000), (2**31, 2**31)])
def test_sizes_that_no_crop_rule_can_use_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[1]} x {size[0]} pixels are not taken.*at most 80 million.*100 : 1"):
        images.check_size(*size)
    images.check_size(8000, 10_000)


def png_of_size(width, height):
    """A PNG file that declares a size and holds next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("size", "reason"), [
    ((9000, 9000), "9000 x 9000 pixels are not taken"),  # Pillow does not mind
    ((10_000, 10_000), "10000 x 10000 pixels are not taken"),  # Pillow warns
    ((30_000, 30_000), "DecompressionBombError"),  # Pillow refuses
    ((2**31 - 1, 2**31 - 1), "DecompressionBombError"),
])
def test_huge_images_are_refused_before_they_are_decoded(size, reason):
    with pytest.raises(ValueError, match=f"some/file cannot be read as an image: .*{reason}"):
        decode(png_of_size(*size))


def test_a_warning_of_pillow_that_is_made_an_error_is_one_of_ours():
    with pytest.raises(ValueError, match="some/file .*DecompressionBombWarning"):
        decode(png_of_size(10_000, 10_000))


# foreign bytes


@pytest.mark.parametrize("content", [
    b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"P6 1 1 255 abc",  # Pillow reads it, but it is no format of ours
])
def test_what_is_no_photograph_is_refused_by_name(content):
    with pytest.raises(ValueError, match="some/file cannot be read as an image: .* no JPEG, PNG, "):
        decode(content)


def damaged(content, rng):
    """A copy that is cut, or of which a few bytes are changed, added or lost; half of them near its beginning."""
    if rng.random() < 0.2:
        return content[: rng.randrange(len(content))]
    content = bytearray(content)
    reach = len(content) if rng.random() < 0.5 else 64
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, kind = rng.randrange(min(reach, len(content))), rng.randrange(4)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif len(content) > 8:
            del content[at : at + rng.randrange(1, 9)]
    return bytes(content)


def with_valid_checksums(content):
    """A PNG whose chunks Pillow will look into, damaged as they are."""
    chunks, at = [content[:8]], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        body = content[at + 4 : at + 8 + length]
        chunks.append(content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(chunks)


SAMPLES = {
    "png": encoded(BLOCKS, exif=oriented(6)),
    "png 16": encoded(BLOCKS[..., 0].astype(np.uint16) * 257),
    "png palette": encoded(Image.fromarray(BLOCKS).quantize(4), transparency=1),
    "apng": encoded(BLOCKS, save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    "jpeg": encoded(BLOCKS, "JPEG", exif=oriented(6)),
    "jpeg progressive": encoded(BLOCKS, "JPEG", progressive=True),
    "jpeg cmyk": encoded(Image.fromarray(BLOCKS).convert("CMYK"), "JPEG"),
    "webp": encoded(BLOCKS, "WEBP", exif=oriented(6)),
    "webp lossless": encoded(np.dstack([BLOCKS, BLOCKS[..., 0]]), "WEBP", lossless=True),
    "gif": encoded(BLOCKS, "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    "bmp": encoded(BLOCKS, "BMP"),
    **{
        f"tiff {compression}": encoded(BLOCKS, "TIFF", compression=compression, exif=oriented(6))
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    },
    "tiff fax": encoded(Image.fromarray(BLOCKS).convert("1"), "TIFF", compression="group4"),
}


@pytest.mark.filterwarnings("ignore")  # those of Pillow, which would end the decoding early
@pytest.mark.parametrize("kind", SAMPLES)
def test_damaged_files_are_decoded_or_refused(kind):
    content, rng = SAMPLES[kind], random.Random(kind)
    assert decode(content).shape == (32, 32, 3)
    refused = 0
    for _ in range(300):
        sample = damaged(content, rng)
        if "png" in kind and rng.random() < 0.8:
            sample = with_valid_checksums(sample)
        try:
            image_hwc = decode(sample)
        except ValueError as error:
            assert str(error).startswith("some/file cannot be read as an image: ")
            refused += 1
        else:
            assert image_hwc.dtype == np.uint8 and image_hwc.ndim == 3 and image_hwc.shape[2] == 3
            images.check_size(*image_hwc.shape[:2])
    # The damage reaches the decoders, and does not only change pixels.
    assert 30 < refused

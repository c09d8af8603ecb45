"""Decoding gives the right colours for every mode and orientation, and only ValueError for damaged files."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import tifffile
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


@pytest.mark.parametrize("file_format", [
    "PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "QOI",
    pytest.param("AVIF", marks=pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this Pillow has no AVIF"))])
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


def png_16(values, transparent=None):
    """A PNG file of 16 bits, grey (h, w) or of colours (h, w, 3 or 4), which Pillow cannot write."""
    kind = {2: 0, 3: 2, 4: 6}[values.ndim if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0))]
    chunks += [] if transparent is None else [(b"tRNS", np.array(transparent, ">u2").tobytes())]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_than_16_bits_in_files_of_16_are_recognised_and_said(file_format, bits, caplog):
    white = 2**bits - 1
    ramp = np.linspace(0, white, 256).round().astype(np.uint16).reshape(16, 16)
    content = encoded(ramp, file_format)
    np.testing.assert_allclose(decode(content)[..., 1].astype(int), np.arange(256).reshape(16, 16), atol=1)
    assert f"some/file has 16 bits with values up to {white}: {white} is taken as white" in caplog.text
    assert images.sixteen_bits(io.BytesIO(content), "file") == (white, False)
    assert images.sixteen_bits(io.BytesIO(encoded(ramp.astype(np.uint8), file_format)), "file") is None


def test_the_value_that_is_white_can_be_given(caplog):
    content = encoded(np.array([[0, 2000, 4000]], np.uint16))
    assert images.decode_rgb(io.BytesIO(content), "file", 4000)[0, :, 0].tolist() == [0, 128, 255]
    assert images.decode_rgb(io.BytesIO(content), "file", 65535)[0, :, 0].tolist() == [0, 8, 16]
    assert not caplog.text
    with pytest.raises(ValueError, match="file has the value 4000, and data.sixteen_bit_max is 1023; set it to 4095"):
        images.decode_rgb(io.BytesIO(content), "file", 1023)
    with pytest.raises(ValueError, match="file has 16 bits and does not say which .*set data.sixteen_bit_max"):
        images.decode_rgb(io.BytesIO(content), "file", 0)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_read_where_their_upper_bits_suffice(channels):
    ramp = (np.arange(16 * channels) * 65535 // (16 * channels - 1)).reshape(4, 4, channels)
    ramp[..., 3:] = 65535
    assert images.sixteen_bits(io.BytesIO(png_16(ramp)), "file") == (((ramp[..., :3].max() >> 8) << 8) + 255, True)
    np.testing.assert_array_equal(decode(png_16(ramp)), ramp[..., :3] >> 8)
    dark = ramp.copy()
    dark[..., :3] >>= 4  # 12 bits, of which 4 would be left
    with pytest.raises(ValueError, match="colours of 16 bits with white at 4095: .*Save it with 8 bits .*65535"):
        decode(png_16(dark))
    assert images.decode_rgb(io.BytesIO(png_16(dark)), "file", 65535).max() == dark[..., :3].max() >> 8


def test_a_transparent_value_of_16_bits_becomes_white():
    assert decode(png_16(np.array([[65535, 500]]), [500]))[0, :, 0].tolist() == [255, 255]
    assert decode(png_16(np.array([[65535, 500]]), [501]))[0, :, 0].tolist() == [255, 2]
    with pytest.raises(ValueError, match="16-bit colours is transparent.*save it with an alpha channel"):
        decode(png_16(np.full((1, 1, 3), 65535), [1, 2, 3]))


def test_formats_that_say_which_value_is_white_are_believed(caplog):
    values = np.array([[0, 1024, 2048]], np.uint16)
    plain = b"P2 3 1 4095\n0 1024 2048\n"
    assert decode(plain)[0, :, 0].tolist() == [0, 64, 128]
    assert decode(b"P5 3 1 4095\n" + values.astype(">u2").tobytes())[0, :, 0].tolist() == [0, 64, 128]
    assert decode(b"P5 3 1 65535\n" + values.astype(">u2").tobytes())[0, :, 0].tolist() == [0, 4, 8]
    assert decode(encoded(values.repeat(8, 0), "JPEG2000", irreversible=False))[0, :, 0].tolist() == [0, 4, 8]
    assert images.sixteen_bits(io.BytesIO(plain), "file") is None and not caplog.text


def test_a_tiff_of_12_bits_says_so():
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 1), (279, 3)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + bytes([0xFF, 0xF8, 0x00])
    assert decode(content)[0, :, 0].tolist() == [255, 128]  # 4095 and 2048


@pytest.mark.parametrize(("options", "reason"), [
    ({"photometric": "miniswhite", "data": np.full((4, 4), 300, np.uint16)}, "its value 0 is white.*save it with 0 as"),
    ({"photometric": "rgb", "planarconfig": "separate", "data": np.full((3, 4, 4), 300, np.uint16)},
     "stored colour by colour.*save it"),
])
def test_tiffs_that_pillow_reads_wrongly_are_refused(options, reason):
    file = io.BytesIO()
    tifffile.imwrite(file, **options)
    with pytest.raises(ValueError, match=f"some/file cannot be read as an image: .*{reason}"):
        decode(file.getvalue())


def test_lab_is_converted():
    lab = np.array([[[0, 0, 0], [255, 0, 0], [137, 0, 0], [137, 80, 67]]], np.uint8)  # L of 100 * 137 / 255 = 53.7
    file = io.BytesIO()
    tifffile.imwrite(file, lab, photometric="cielab")
    np.testing.assert_allclose(decode(file.getvalue())[0], [[0] * 3, [255] * 3, [129] * 3, [255, 0, 0]], atol=12)


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
    with pytest.raises(ValueError, match=rf"{size[1]} x {size[0]} pixels are not .*at most 80 million.*100 : 1"):
        images.check_size(*size)
    images.check_size(8000, 10_000)


def png_of_size(width, height):
    """A PNG file that declares a size and holds almost no data."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("size", "reason"), [
    ((9000, 9000), "9000 x 9000 pixels are not supported"),  # Pillow does not mind
    ((10_000, 10_000), "10000 x 10000 pixels are not supported"),  # Pillow warns
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


def test_suffixes_are_those_of_photographs():
    known = {".jpg", ".JFIF", ".jpe", ".ppm", ".PGM", ".jp2", ".webp", ".tiff"}
    assert all(suffix.lower() in images.SUFFIXES for suffix in known)
    assert not {".eps", ".ps", ".pdf", ".ico", ".pfm", ".mpg", ".npy", ""} & set(images.SUFFIXES)


@pytest.mark.parametrize("content", [
    b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"\x0a\x05\x01\x08\0\0\0\0\0\0\0\0" + bytes(200),  # PCX: Pillow reads it, but it is no format of photographs
])
def test_what_is_no_photograph_is_refused_by_name(content):
    with pytest.raises(ValueError, match="some/file cannot be read as an image: .* like a JPEG, PNG, "):
        decode(content)


def damaged(content, rng):
    """A truncated copy, or one with a few bytes changed, added or removed, half of them near the beginning."""
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
    """A damaged PNG with corrected checksums, so that Pillow reads its chunks."""
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
    "jpeg 2000": encoded(BLOCKS, "JPEG2000"),
    "qoi": encoded(BLOCKS, "QOI"),
    "ppm": b"P3 32 32 1000\n" + b" ".join(b"%d" % value for value in BLOCKS.flat),
    "pgm 16": b"P5 32 32 4095\n" + BLOCKS[..., 0].astype(">u2").tobytes(),
    **({"avif": encoded(BLOCKS, "AVIF", exif=oriented(6))} if "AVIF" in Image.SAVE else {}),
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
    assert refused > 30

"""`--mode=sample` and `--mode=edit`: from a trained generator to images on disk."""

import dataclasses
import json
import os
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from refocus_jax import build, pretrained, weights
from refocus_jax.data.images import decode_rgb
from refocus_jax.evaluation import samples
from refocus_jax.focus.resample import resize
from refocus_jax.reporting import pictures
from refocus_jax.runtime import weight_files
from refocus_jax.runtime.progress import Progress
from refocus_jax.sampling.decode import SamplingSettings
from refocus_jax.sampling.edit import fill


def load_generator(c: ConfigDict, workdir: str) -> tuple[pretrained.Generator, dict]:
    """The workdir's generator, or the official one of `init_from` if the workdir has none; and which it is.

    Raises:
      FileNotFoundError: neither is there.
    """
    if os.path.exists(os.path.join(workdir, "config.json")) or not weight_files.is_weight_file(c.init_from):
        step = weights.latest_step(os.path.join(workdir, "generator"))
        return pretrained.load_generator(workdir), {"generator": str(workdir), "step": step}
    tokenizer = load_tokenizer(c, workdir) if c.tokenizer_from else None
    generator = pretrained.load_generator(c.init_from, tokenizer=tokenizer)
    return generator, {"generator": c.init_from, "tokenizer": c.tokenizer_from}


def load_tokenizer(c: ConfigDict, workdir: str) -> pretrained.Tokenizer:
    """The workdir's tokenizer, or that of `tokenizer_from` if no run has started there.

    Raises:
      FileNotFoundError: neither is there.
    """
    if os.path.exists(os.path.join(workdir, "config.json")) or not c.tokenizer_from:
        return pretrained.load_tokenizer(workdir)
    if weight_files.is_weight_file(c.tokenizer_from):
        return pretrained.load_tokenizer(c.tokenizer_from, grid_sizes=tuple(c.grid_sizes),
                                         norm_groups=c.tokenizer.norm_groups)
    return pretrained.load_tokenizer(c.tokenizer_from)


def sample(c: ConfigDict, workdir: str) -> None:
    """Draws `config.draw.count` images with `config.sampling`, into WORKDIR/samples."""
    settings, draw = build.sampling_settings(c), build.draw_settings(c)
    output = Path(draw.output or os.path.join(workdir, "samples")).expanduser()
    if output.exists() and not output.is_dir():
        raise ValueError(f"draw.output is {output}, which is a file; give a directory")
    generator, origin = load_generator(c, workdir)
    if jax.process_index() == 0:
        numbers = samples.class_numbers("draw.classes", draw.classes, generator.class_names)
        print(f"drawing {draw.count} images of {samples.say_classes(numbers, generator.class_names)}", flush=True)
    draw_into(output, generator, settings, draw, origin)
    if jax.process_index() == 0:
        print(f"{draw.count} images in {output}")


def draw_identity(generator: pretrained.Generator, settings: SamplingSettings, draw: samples.DrawSettings) -> dict:
    """All that samples depend on, as JSON."""
    draws = {name: value for name, value in dataclasses.asdict(draw).items() if name not in ("output", "batch_size")}
    return json.loads(json.dumps({"made_with": generator.identity, "sampling": dataclasses.asdict(settings),
                                  "draw": draws}))


def draw_into(output: Path, generator: pretrained.Generator, settings: SamplingSettings, draw: samples.DrawSettings,
              origin: dict) -> None:
    """Draws images into a directory, or what of them is missing; `origin` says which generator draws them."""
    def draw_batch(labels_b: np.ndarray, start: int) -> np.ndarray:
        drawn = generator.sample(labels_b, draw.seed, **dataclasses.asdict(settings), start=start)
        return pictures.to_uint8(np.asarray(generator.images(drawn)))

    size, identity = generator.tokenizer.model.optics.image_size, draw_identity(generator, settings, draw)
    drawing = samples.draw(draw_batch, draw, generator.class_names, size, output, identity, origin)
    with Progress(draw.count, next(drawing), "samples") as progress:
        for done in drawing:
            progress.update(done, {})


def edit(c: ConfigDict, workdir: str) -> None:
    """Paints the masked part of `config.edit.image` anew, `config.edit.count` times, into WORKDIR/edits."""
    settings = build.sampling_settings(c)
    if jax.process_count() > 1:
        raise ValueError(f"--mode=edit runs in one process, and this is one of {jax.process_count()}; start it on one "
                         "machine alone")
    if settings.smooth:
        raise ValueError("sampling.smooth is True, which editing cannot do; set it False")
    generator, _ = load_generator(c, workdir)
    size = generator.tokenizer.model.optics.image_size
    label = samples.class_numbers("edit.label", [c.edit.label], generator.class_names)
    count = c.edit.count
    if count < 1:
        raise ValueError(f"edit.count is {count}; give at least 1")
    picture = read_image(c.edit.image, c.data.sixteen_bit_max)
    image, mask = hide(picture, c.edit.mask, size)
    edited = pictures.to_uint8(np.asarray(generator.edit(
        np.repeat(image[None], count, 0), np.repeat(mask[None], count, 0), np.repeat(label, count), c.edit.seed,
        settings.cfg, settings.top_k, settings.top_p)))
    filled = fill(image, mask)
    own = generator.tokenizer.decode(generator.tokenizer.encode(filled[None]))[0]
    output = Path(workdir) / "edits"
    output.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(edited):
        Image.fromarray(one).save(output / f"{i:03d}.png")
    known = np.where(mask[..., None], 0, image)  # grey where it will be painted
    before = [pictures.to_uint8(np.asarray(a)) for a in (_to_model(picture, size), known, filled, own)]
    titles = ["image", "known", "filled", "tokens", *map(str, range(count))]
    Image.fromarray(pictures.grid([[*before, *edited]], column_labels=titles)).save(output / "edits.png")
    print(f"{count} images and edits.png in {output}")


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
    return _to_model(fill(picture_hwc, hidden), size), square


def read_mask(mask: str, shape: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """What is hidden and painted anew: pixels of the image file, bool (h, w), and of its middle square, (size, size).

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
        raise ValueError("edit.mask is empty; give an image file, white where to paint anew, box:LEFT,TOP,RIGHT,BOTTOM "
                         "or outside:LEFT,TOP,RIGHT,BOTTOM")
    grey = np.asarray(Image.fromarray(_decode("edit.mask", mask, transparent=False)).convert("L"))
    (height, width), (mask_height, mask_width) = shape, grey.shape
    # Of one shape but for the rounding of their sides, half a pixel each.
    if 2 * abs(mask_width * height - mask_height * width) > max(width + height, mask_width + mask_height):
        raise ValueError(f"edit.mask={mask} has {mask_width} x {mask_height} pixels and edit.image {width} x {height}, "
                         "which is another shape; give a mask of the image's size, or of its shape")
    if 0 < grey.max() < 128:
        raise ValueError(f"edit.mask={mask} is {grey.max()} of 255 where it is lightest, so that nothing would be "
                         "painted anew; set to 255 what is to be painted")
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
                             "white where to paint anew and black elsewhere")


def _middle(height: int, width: int) -> tuple[slice, slice]:
    """The largest centred square."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def _to_model(picture_hwc: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture as (size, size, 3) in [-1, 1]."""
    square = Image.fromarray(picture_hwc[_middle(*picture_hwc.shape[:2])])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1

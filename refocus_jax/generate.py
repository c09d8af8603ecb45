"""`--mode=sample` and `--mode=edit`: from a trained generator to images on disk."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from refocus_jax import build, pretrained, weights
from refocus_jax.data.images import decode_rgb
from refocus_jax.evaluation import samples
from refocus_jax.reporting import pictures
from refocus_jax.runtime import weight_files
from refocus_jax.runtime.progress import Progress
from refocus_jax.sampling.decode import SamplingSettings


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
        drawn = generator.sample(labels_b, draw.seed + start, settings.cfg, settings.top_k, settings.top_p,
                                 settings.smooth)
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
    image, mask = read_image(c.edit.image, size), read_mask(c.edit.mask, size)
    label = samples.class_numbers("edit.label", [c.edit.label], generator.class_names)
    count = c.edit.count
    if count < 1:
        raise ValueError(f"edit.count is {count}; give at least 1")
    edited = pictures.to_uint8(np.asarray(generator.edit(
        np.repeat(image[None], count, 0), np.repeat(mask[None], count, 0), np.repeat(label, count), c.edit.seed,
        settings.cfg, settings.top_k, settings.top_p)))
    own = generator.tokenizer.decode(generator.tokenizer.encode(image[None]))[0]
    output = Path(workdir) / "edits"
    output.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(edited):
        Image.fromarray(one).save(output / f"{i:03d}.png")
    hidden = np.where(mask[..., None], 0, image)  # grey where it will be painted
    before = [pictures.to_uint8(np.asarray(a)) for a in (image, own, hidden)]
    titles = ["image", "tokens", "mask", *map(str, range(count))]
    Image.fromarray(pictures.grid([[*before, *edited]], column_labels=titles)).save(output / "edits.png")
    print(f"{count} images and edits.png in {output}")


def read_image(path: str, size: int) -> np.ndarray:
    """An image file as (size, size, 3) in [-1, 1]: its largest centred square, resized.

    Raises:
      ValueError: no file is given, or it is no image.
    """
    if not path:
        raise ValueError("edit.image is empty; give the path of an image")
    return np.asarray(_square(_open("edit.image", path), size, Image.Resampling.LANCZOS), np.float32) / 127.5 - 1


def read_mask(mask: str, size: int) -> np.ndarray:
    """A mask (size, size) bool, True where to paint anew: an image file, white is True, or a box.

    `box:LEFT,TOP,RIGHT,BOTTOM` in pixels of the (size, size) image paints the box anew (in-painting),
    `outside:LEFT,TOP,RIGHT,BOTTOM` all but the box (out-painting).

    Raises:
      ValueError: no such file or box.
    """
    kind, _, numbers = mask.partition(":")
    if kind in ("box", "outside"):
        edges = [int(n) if n.strip().isdecimal() else -1 for n in numbers.split(",")]
        if len(edges) != 4 or not (0 <= edges[0] < edges[2] <= size and 0 <= edges[1] < edges[3] <= size):
            raise ValueError(f"edit.mask is {mask!r}; give {kind}:LEFT,TOP,RIGHT,BOTTOM with 0 <= LEFT < RIGHT <= "
                             f"{size} and 0 <= TOP < BOTTOM <= {size}")
        inside = np.zeros((size, size), bool)
        inside[edges[1]:edges[3], edges[0]:edges[2]] = True
        return inside if kind == "box" else ~inside
    if not mask:
        raise ValueError("edit.mask is empty; give an image file, white where to paint anew, box:LEFT,TOP,RIGHT,BOTTOM "
                         "or outside:LEFT,TOP,RIGHT,BOTTOM")
    image = _square(_open("edit.mask", mask), size, Image.Resampling.NEAREST)
    return np.asarray(image.convert("L")) > 127


def _open(setting: str, path: str) -> Image.Image:
    try:
        with open(path, "rb") as file:
            return Image.fromarray(decode_rgb(file, f"{setting}={path}"))
    except OSError as error:
        raise ValueError(f"{setting} is {path}, which cannot be opened ({error.strerror}); give an image "
                         "file") from error


def _square(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), method, box=(left, top, left + side, top + side))

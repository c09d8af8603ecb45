"""`--mode=edit`: paints the masked part of an image with a trained generator."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from refocus_jax.config import build
from refocus_jax.data import masks, pictures
from refocus_jax.evaluation import samples
from refocus_jax.pretrained.choice import choose_generator
from refocus_jax.runtime import processes
from refocus_jax.sampling.edit import fill


def run(c: ConfigDict, workdir: str) -> None:
    """Paints the masked part of `edit.image` `edit.count` times and writes the results into WORKDIR/edits."""
    settings = build.sampling_settings(c)
    processes.check_alone("edit")
    if settings.smooth:
        raise ValueError("sampling.smooth is True, which editing does not support; set it to False")
    generator, _ = choose_generator(c, workdir)
    size = generator.tokenizer.model.optics.image_size
    label = samples.class_numbers("edit.label", [c.edit.label], generator.class_names)
    count = c.edit.count
    picture = masks.read_image(c.edit.image, c.data.sixteen_bit_max)
    image, mask = masks.hide(picture, c.edit.mask, size)
    edited = pictures.to_uint8(np.asarray(generator.edit(
        np.repeat(image[None], count, 0), np.repeat(mask[None], count, 0), np.repeat(label, count), c.edit.seed,
        settings)))
    filled = fill(image, mask)
    own = generator.tokenizer.decode(generator.tokenizer.encode(filled[None]))[0]
    output = Path(workdir) / "edits"
    output.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(edited):
        Image.fromarray(one).save(output / f"{i:03d}.png")
    known = np.where(mask[..., None], 0, image)  # grey where it will be painted
    before = [pictures.to_uint8(np.asarray(a)) for a in (masks.to_model(picture, size), known, filled, own)]
    titles = ["image", "known", "filled", "tokens", *map(str, range(count))]
    Image.fromarray(pictures.grid([[*before, *edited]], column_labels=titles)).save(output / "edits.png")
    print(f"{count} images and edits.png in {output}")

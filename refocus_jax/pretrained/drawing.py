"""Draws samples of a generator and writes them to disk."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from refocus_jax.data import pictures
from refocus_jax.evaluation import samples
from refocus_jax.evaluation.samples import DrawSettings
from refocus_jax.pretrained.models import Generator
from refocus_jax.runtime.progress import Progress
from refocus_jax.sampling.decode import SamplingSettings


def draw_identity(generator: Generator, settings: SamplingSettings, draw: DrawSettings) -> dict:
    """Returns everything that samples depend on, as JSON."""
    draws = {name: value for name, value in dataclasses.asdict(draw).items() if name not in ("output", "batch_size")}
    return json.loads(json.dumps({"made_with": generator.identity, "sampling": dataclasses.asdict(settings),
                                  "draw": draws}))


def draw_into(output: Path, generator: Generator, settings: SamplingSettings, draw: DrawSettings,
              origin: dict) -> None:
    """Draws the images that are missing in a directory.

    Args:
      output: The directory.
      generator: The generator that draws.
      settings: How images are drawn.
      draw: Which images are drawn.
      origin: A record of where the generator comes from, stored with the images.
    """
    def draw_batch(labels_b: np.ndarray, start: int) -> np.ndarray:
        drawn = generator.sample(labels_b, draw.seed, settings, start=start)
        return pictures.to_uint8(np.asarray(generator.images(drawn)))

    size, identity = generator.tokenizer.model.optics.image_size, draw_identity(generator, settings, draw)
    drawing = samples.draw(draw_batch, draw, generator.class_names, size, output, identity, origin)
    with Progress(draw.count, next(drawing), "samples") as progress:
        for done in drawing:
            progress.update(done, {})

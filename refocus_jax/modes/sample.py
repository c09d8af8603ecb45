"""`--mode=sample`: draws images with a trained generator."""

import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build
from refocus_jax.evaluation import samples
from refocus_jax.pretrained.choice import choose_generator
from refocus_jax.pretrained.drawing import draw_into


def run(c: ConfigDict, workdir: str) -> None:
    """Draws `sample.count` images with the settings of `sampling` into `sample.output` or WORKDIR/samples."""
    settings, draw = build.sampling_settings(c), build.draw_settings(c)
    output = Path(draw.output or os.path.join(workdir, "samples")).expanduser()
    if output.exists() and not output.is_dir():
        raise ValueError(f"sample.output is {output}, which is a file; give a directory")
    generator, origin = choose_generator(c, workdir)
    if jax.process_index() == 0:
        numbers = samples.class_numbers("sample.classes", draw.classes, generator.class_names)
        print(f"drawing {draw.count} images of {samples.say_classes(numbers, generator.class_names)}", flush=True)
    draw_into(output, generator, settings, draw, origin)
    if jax.process_index() == 0:
        print(f"{draw.count} images in {output}")

"""`--mode=export`: writes a generator as files for PyTorch's VAR code, as one file that draws, or as a folder."""

import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from refocus_jax.config import build
from refocus_jax.data import pictures
from refocus_jax.pretrained import Generator, SamplingSettings, model_folder, pytorch, sampler_file
from refocus_jax.pretrained.choice import choose_generator, has_started
from refocus_jax.reporting import card
from refocus_jax.runtime import processes
from refocus_jax.runtime.files import atomically

_OUTPUTS = {"var": "student.safetensors", "sampler": "sampler.zip", "folder": "model"}
_ROWS, _COLUMNS = 8, 6  # at most, in the pictures of a folder


def run(c: ConfigDict, workdir: str) -> None:
    """Writes `export.output` in the form of `export.format`.

    Raises:
      ValueError: VAR's code would decode the tokenizer's tokens differently, the folder holds something else, or there
        are several processes.
    """
    processes.check_alone("export")
    e, settings = c.export, build.sampling_settings(c)
    output = e.output or os.path.join(workdir, _OUTPUTS[e.format])
    generator, _ = choose_generator(c, workdir)
    if e.format == "var":
        print(pytorch.export(generator, output, e.allow_differences))
    elif e.format == "sampler":
        sampler_file.export(generator, output, e.batch_size, settings)
        print(f"{output}: a sampler that draws {e.batch_size} images at a time, for "
              f"{', '.join(sampler_file.PLATFORMS)}")
    else:
        _write_folder(c, workdir, generator, Path(output), settings)


def _write_folder(c: ConfigDict, workdir: str, generator: Generator, folder: Path, settings: SamplingSettings) -> None:
    if not has_started(workdir):
        raise ValueError("export.format is 'folder', which hands over a run of this package, and the generator is the "
                         "file of generator.init_from; hand over that file, or give the --workdir of a run")
    model_folder.write(generator, workdir, folder, c.export.dtype)
    text = card.card(generator, workdir, settings, c.export.license, _ROWS)
    for name, content in {**_pictures(generator, settings), "README.md": text.encode()}.items():
        with atomically(folder / name) as temporary:
            temporary.write_bytes(content)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: weights, config, model card and pictures, {size / 1e6:.1f} MB. "
          f'pretrained.load_generator("{folder}") loads it')
    if not c.export.license:
        print("The card names no licence. Give --config.export.license=..., one that the data allow, before you "
              "publish it")


def _pictures(generator: Generator, settings: SamplingSettings) -> dict[str, bytes]:
    """Draws a picture of samples and an animation of the scales; returns the files by name."""
    names = generator.class_names[:_ROWS]
    labels = np.tile(np.arange(len(names)), _COLUMNS)
    drawn = generator.sample(labels, seed=0, settings=settings)
    images = np.asarray(generator.images(drawn))
    images = images.reshape(_COLUMNS, len(names), *images.shape[1:])
    tokens = [np.asarray(tokens)[:len(names)] for tokens in drawn.tokens]
    scales = [np.asarray(generator.tokenizer.decode(tokens, upto=k + 1)) for k in range(len(tokens))]
    _, frames = pictures.focus_pull(scales, names, generator.network.grid_sizes)
    return {"pictures/samples.png": pictures.png(pictures.sample_grid(images.swapaxes(0, 1), names)),
            "pictures/focus_pull.gif": pictures.gif(frames)}

"""The model card of an exported folder: what the model is, what it was trained on, its numbers, how to load it."""

from collections.abc import Iterator
from pathlib import Path

import jax

import refocus_jax
from refocus_jax.config import saved
from refocus_jax.pretrained import Generator, SamplingSettings, model_folder, pytorch
from refocus_jax.reporting import meanings
from refocus_jax.runtime.files import read_json

# The numbers that a card shows, in this order, if they were measured.
_SHOWN = ("psnr", "psnr_gain", "ssim", "reconstruction_fd", "bits_per_image", "below_unigram_cross_entropy", "fid",
          "fd", "kid", "precision", "recall")
_LISTED = 40  # names of classes

_CARD = """---
license: {license}
library_name: refocus_jax
tags:
- jax
- image-generation
- visual-autoregressive
- var
---

# A ReFocus-VAR for {classes} at {size} x {size} pixels

![Samples, a row per class](pictures/samples.png)

Samples of {shown}, a row each, drawn with guidance {settings.cfg:g}, top-k {settings.top_k} and
top-p {settings.top_p:g}. [The same after every scale](pictures/focus_pull.gif).

{method}

The transformer has {depth} blocks of width {width} and {student} parameters, the tokenizer {tokenizer}.
{trained}

## Use it

```python
from refocus_jax import pretrained

generator = pretrained.load_generator("FOLDER")  # the folder of this card
settings = pretrained.SamplingSettings(cfg={settings.cfg:g}, top_k={settings.top_k}, top_p={settings.top_p:g})
images = generator.images(generator.sample([0], seed=0, settings=settings))  # (1, {size}, {size}, 3) in [-1, 1]
```

The student is {student_kind} without changes. In its code for PyTorch:

```python
import safetensors.torch

{pytorch}
vae.load_state_dict(safetensors.torch.load_file("FOLDER/{tokenizer_file}"), strict=True)
var.load_state_dict(safetensors.torch.load_file("FOLDER/{model_file}"), strict=True)
```
{differences}
## Data

{data}

The {num_classes} classes: {names}.

## Numbers

{numbers}

`config.json` holds all settings of the training.

## Licence

{says_license}
"""


def card(generator: Generator, workdir: str, settings: SamplingSettings, license: str, rows: int) -> str:
    """Writes the card.

    Args:
      generator: The generator of the folder.
      workdir: The workdir that it was trained in, with the numbers that were measured there.
      settings: How its pictures were drawn.
      license: The licence; empty if it is not known.
      rows: The number of classes in the picture of samples, if there are as many.
    """
    c, class_names = saved.read(workdir)
    structure, network = generator.tokenizer.model.structure, generator.network
    found = pytorch.differences(structure)
    names = ", ".join(class_names[:_LISTED]) + (", ..." if len(class_names) > _LISTED else "")
    shown = min(len(class_names), rows)
    method = "It draws an image as token maps from coarse to fine."
    if c.focus.psf != "none":
        method += (" Each coarser map describes the image through a defocus\nblur "
                   f"(`focus.psf={c.focus.psf}`), instead of a plainly downsampled image.")
    return _CARD.format(
        student_kind="a VAR" if network.sees_prefix else "an M-VAR", license=license or "unknown", size=c.image_size,
        settings=settings, method=method, depth=network.depth,
        classes=f"{len(class_names)} classes", width=network.width, student=_count(generator.params),
        shown="all classes" if shown == len(class_names) else f"the first {shown} classes",
        tokenizer=_count(generator.tokenizer.params["structure"]),
        trained="" if generator.step is None else (
            f"refocus_jax {refocus_jax.__version__} has trained it for {generator.step} steps."),
        pytorch=pytorch.constructors(network, structure), tokenizer_file=model_folder.TOKENIZER,
        model_file=model_folder.MODEL, num_classes=len(class_names), names=names,
        differences="" if not found else "\nThat code needs these changes before:\n\n" + "\n".join(
            f"- {line}" for line in found) + "\n",
        data=f"`{model_folder.without_paths(c).data.source}`, cropped to {c.image_size} x {c.image_size} pixels.",
        numbers="\n".join(_table(workdir, generator)) or "None were measured at this step.",
        says_license=license or "Not stated. Whoever publishes this model states one that the data allow.")


def _count(params) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count / 1e3:.0f} thousand"


def _table(workdir: str, generator: Generator) -> Iterator[str]:
    """Yields the lines of a table of the numbers that were measured at the steps of this generator."""
    steps = {"tokenizer": generator.tokenizer.step, "generator": generator.step}
    measured = read_json(Path(workdir, "evaluation.json")) or {}
    numbers: dict[str, float] = {}
    for stage, step in steps.items():
        trained = read_json(Path(workdir, stage, "evaluation.json")) or {}
        if trained.get("step") == step:
            numbers |= {name.removeprefix("validation/").removesuffix("/all"): value for name, value in trained.items()}
        if measured.get("steps", {}).get(stage) == step:
            numbers |= measured.get(stage, {})
    rows = [(name, value) for shown in _SHOWN for name, value in numbers.items()
            if name == shown or name.startswith(f"{shown}_eff")]
    if rows:
        yield from ("| number | value | what it says |", "| --- | --- | --- |")
    for name, value in rows:
        yield f"| {name} | {value:.4g} | {meanings.of(name)} |"

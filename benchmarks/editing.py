"""Compares ways to fill the masked pixels of an edit, and rules for which tokens are drawn, on held-out photographs.

    python -m benchmarks.editing --workdir=runs/tiny --directory=runs/editing

For several masks and ways to fill a hole, it measures how well the known part is reconstructed, compared with the image
and with the reconstruction of the image without a hole; how many of the last scale's kept tokens change because of the
hole; and how close the painted part comes to the original, for several values of the fraction of a coarse token's view
that may be masked if the token is kept. It also makes a picture of edits as the package makes them. The results are in
docs/how_to/editing.md.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from refocus_jax import pretrained
from refocus_jax.data import pictures, pipeline, sources
from refocus_jax.data.crops import CropRule
from refocus_jax.focus.resample import resize
from refocus_jax.sampling import edit

SHARES = (0.1, 0.3, 0.6, 0.9)


def masks(size: int) -> dict[str, np.ndarray]:
    third, half, quarter = round(size / 3**0.5), size // 2, size // 4
    start = (size - third) // 2
    rows, columns = np.indices((size, size))
    box, outside = np.zeros((size, size), bool), np.ones((size, size), bool)
    box[start:start + third, start:start + third] = True
    outside[quarter:-quarter, quarter:-quarter] = False
    return {"box, a third": box, "right half": columns >= half, "outside of a quarter": outside,
            "two thin lines": (abs(rows - columns) <= 1) | (abs(rows + columns - size) <= 1)}


def visible(image_hwc: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    return image_hwc


def white(image_hwc: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    return np.where(mask_hw[..., None], np.float32(1), image_hwc)


def mean(image_hwc: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    return np.where(mask_hw[..., None], image_hwc[~mask_hw].mean(0), image_hwc)


def smooth(image_hwc: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    """Fills a hole from coarse to fine with the mean of the known pixels of each level, enlarged smoothly."""
    side = len(image_hwc)
    if side == 1:
        return image_hwc
    known = np.float32(~mask_hw)[None, ..., None]
    share, total = (np.asarray(resize(x, (side + 1) // 2, "area"))[0] for x in (known, known * image_hwc))
    coarse = smooth(total / np.maximum(share, 1e-9), share[..., 0] == 0)
    return np.where(mask_hw[..., None], np.asarray(resize(coarse[None], side, "bilinear"))[0], image_hwc)


FILLS = {"visible, as before": visible, "white": white, "mean": mean, "smooth": smooth, "nearest": edit.fill}


def psnr(a: np.ndarray, b: np.ndarray, where_hw: np.ndarray) -> float:
    error = np.square(a - b)[:, where_hw].mean()
    return 10 * np.log10(4 / error) if error else np.inf


def table(generator: pretrained.Generator, images: np.ndarray, labels: np.ndarray) -> Iterator[str]:
    tokenizer = generator.tokenizer
    tokens = tokenizer.encode(images)[-1]
    own = np.asarray(tokenizer.decode(tokenizer.encode(images)))
    yield ("| mask | hidden pixels | known part, dB to the image | to the reconstruction without a hole | kept tokens "
           f"that change | painted part, dB to the image, by share {', '.join(map(str, SHARES))} |")
    yield "| --- | --- | --- | --- | --- | --- |"
    for mask_name, mask in masks(images.shape[1]).items():
        kept = np.asarray(resize(mask[None, ..., None].astype(np.float32), tokens.shape[1], "area"))[0, ..., 0] == 0
        repeated = np.repeat(mask[None], len(images), 0)
        for fill_name, fill in FILLS.items():
            filled = np.stack([fill(image, mask) for image in images])
            found = tokenizer.encode(filled)
            changed = np.mean(np.asarray(found[-1] != tokens)[:, kept])
            known = np.asarray(tokenizer.decode(found))
            painted = []
            for share in SHARES:
                with mock.patch.object(edit, "fill", fill), mock.patch.object(edit, "MAX_HIDDEN", share):
                    edited = dataclasses.replace(generator).edit(images, repeated, labels)  # compiled again
                painted.append(f"{psnr(np.asarray(edited), images, mask):.2f}")
            yield (f"| {mask_name} | {fill_name} | {psnr(known, images, ~mask):.2f} | {psnr(known, own, ~mask):.2f} | "
                   f"{changed:.0%} | {' '.join(painted)} |")


def picture(generator: pretrained.Generator, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    rows, names = [], list(masks(images.shape[1]))
    for name, image, label in zip(names, images, labels, strict=True):
        mask = masks(images.shape[1])[name]
        edited = generator.edit(np.repeat(image[None], 3, 0), np.repeat(mask[None], 3, 0), np.repeat(label, 3))
        known = np.where(mask[..., None], 0, image)
        rows.append([pictures.to_uint8(np.asarray(one)) for one in (image, known, edit.fill(image, mask), *edited)])
    return pictures.grid(rows, names, ["image", "known", "filled", "edit 0", "edit 1", "edit 2"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the workdir of a finished run of tiny")
    parser.add_argument("--directory", type=Path, required=True, help="the directory for editing.png")
    arguments = parser.parse_args()
    generator = pretrained.load_generator(arguments.workdir)
    rule = CropRule(image_size=generator.tokenizer.model.optics.image_size, crops_per_image=2)
    crops = pipeline.spread_crops(sources.load("photos", "validation"), rule)
    examples = [crops[i] for i in range(len(crops))]
    images = np.stack([example["image"] for example in examples]) / np.float32(127.5) - 1
    labels = np.asarray([example["label"] for example in examples])
    arguments.directory.mkdir(parents=True, exist_ok=True)
    shown = np.linspace(0, len(images) - 1, len(masks(images.shape[1]))).astype(int)
    Image.fromarray(picture(generator, images[shown], labels[shown])).save(arguments.directory / "editing.png")
    for line in table(generator, images, labels):
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""Measures how many images a core decodes and crops, how long a training step waits for them, and conversion.

    python -m benchmarks.data

Writes JPEG files of 500 x 375, the usual size in ImageNet, with random crops of scikit-image's photographs into a
temporary folder, and reads them as `data.source=folder:...`. The first table is for the training pipeline alone at
256 px, resized to 1.125 of that as for ImageNet: images per second, and per second of processor time (of the process
and its workers), which is the rate of a core that does nothing else. The second table is for stage 1 of `tiny` on the
same files: the fraction of a step in which the device is idle and waits for the next batch. The last line is for
`--mode=convert`: it reads the same images ten times from Parquet files. The results are in docs/measurements/data.md.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from absl import flags
from PIL import Image
from pyarrow import parquet

from configs import tiny
from refocus_jax.config import build
from refocus_jax.data import conversion, photographs, pipeline, sources
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import Source, SourceSettings
from refocus_jax.pretrained import parameters
from refocus_jax.runtime import mesh as mesh_lib

WIDTH, HEIGHT, QUALITY = 500, 375, 98  # about 100 kB a file, not far from the mean of ImageNet


def write_jpegs(folder: Path, per_class: int) -> int:
    """Writes FOLDER/<photograph>/<number>.jpg; returns the total size of all files in bytes."""
    rng, size = np.random.default_rng(0), 0
    for name in ("astronaut", "cat", "coffee", "motorcycle", "rocket", "tissue"):
        image = Image.fromarray(photographs.read_photograph(name))
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            scale = rng.uniform(0.7, 1.0) * min(image.width / WIDTH, image.height / HEIGHT)
            width, height = scale * WIDTH, scale * HEIGHT
            left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
            path = folder / name / f"{number}.jpg"
            image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, (left, top, left + width, top + height)).save(
                path, quality=QUALITY)
            size += path.stat().st_size
    return size


def processor_seconds() -> float:
    """Returns the processor time of this process and its worker processes so far."""
    ticks = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pipeline_rate(source: Source, num_workers: int, batches: int, batch_size: int = 32) -> tuple[float, float]:
    """Measures images per second, and per second of processor time, once buffers are full."""
    rule = CropRule(image_size=256, resize_ratio=1.125, flip=True)
    iterator = iter(pipeline.training_batches(source, rule, batch_size=batch_size, seed=0, num_workers=num_workers))
    for _ in range(8):
        next(iterator)
    began, processor = time.perf_counter(), processor_seconds()
    for _ in range(batches):
        next(iterator)
    images = batches * batch_size
    rates = images / (time.perf_counter() - began), images / (processor_seconds() - processor)
    iterator.close()
    return rates


def conversion_rate(images: Path, folder: Path) -> tuple[float, float]:
    """Measures images per second, and per second of processor time, of a conversion from ten Parquet files."""
    contents = [path.read_bytes() for path in sorted(images.rglob("*.jpg"))]
    table = pa.table({"image": [{"bytes": content, "path": ""} for content in contents], "label": [0] * len(contents)})
    for number in range(10):
        parquet.write_table(table, folder / f"train-{number:05d}-of-00010.parquet", row_group_size=100)
    collection = conversion.open_collection(f"parquet:{folder}", SourceSettings())
    began, processor = time.perf_counter(), processor_seconds()
    conversion.write(folder / "converted", collection)
    count = 10 * len(contents)
    return count / (time.perf_counter() - began), count / (processor_seconds() - processor)


def timed_steps(update, state: Any, frozen: Any, iterator: Iterator, mesh, steps: int) -> np.ndarray:
    """Measures seconds, seconds in `next(iterator)`, and seconds of processor time of every step: (steps, 3).

    It waits for the end of each step, so that the device is idle while the next batch is fetched.
    """
    key, rows = jax.device_put(jax.random.key(0), mesh_lib.replicated(mesh)), []
    for _ in range(steps):
        began, processor = time.perf_counter(), processor_seconds()
        batch = next(iterator)
        waited = time.perf_counter() - began
        state, _ = update(state, frozen, mesh_lib.put_batch(mesh, batch), key)
        jax.block_until_ready(state)
        rows.append((time.perf_counter() - began, waited, processor_seconds() - processor))
    return np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=64, help="files of each of the six photographs")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    flags.FLAGS(["benchmarks.data"])  # grain's workers need absl's flags to be parsed
    with tempfile.TemporaryDirectory() as folder:
        size = write_jpegs(Path(folder), given.per_class)
        source = sources.load(f"folder:{folder}", "train")
        print(f"{6 * given.per_class} files of {size / 6 / given.per_class / 1e3:.0f} kB on average, "
              f"{os.cpu_count()} cores\n")
        print("| num_workers | images/s | images per processor second |\n| --- | --- | --- |")
        for num_workers in (0, 2):
            wall, processor = pipeline_rate(source, num_workers, given.batches)
            print(f"| {num_workers} | {wall:.0f} | {processor:.0f} |", flush=True)
        print("\n| num_workers | s per step | share of it waiting |\n| --- | --- | --- |")
        c, mesh = tiny.get_config(), mesh_lib.make_mesh()
        task = build.tokenizer_task(c)
        update = jax.jit(task.update)
        frozen = mesh_lib.put_whole(parameters.perceptual(c), mesh_lib.replicated(mesh))
        state = jax.jit(task.init, out_shardings=mesh_lib.replicated(mesh))(jax.random.key(0))
        for num_workers in (0, 2):
            iterator = iter(pipeline.training_batches(
                source, CropRule(image_size=c.image_size, resize_ratio=1.125),
                batch_size=c.tokenizer.train.batch_size, seed=0, num_workers=num_workers))
            timed_steps(update, state, frozen, iterator, mesh, 1)  # compiles
            seconds, waited, _ = timed_steps(update, state, frozen, iterator, mesh, given.steps).T
            iterator.close()
            print(f"| {num_workers} | {np.median(seconds):.3f} | {waited.sum() / seconds.sum():.1%} |", flush=True)
        (packed := Path(folder, "packed")).mkdir()
        wall, processor = conversion_rate(Path(folder), packed)
        print(f"\nconverted: {wall:.0f} images/s, {processor:.0f} images per processor second")


if __name__ == "__main__":
    main()

"""Measurements of many images by all processes and devices, kept on disk: features, errors, tokens."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from refocus_jax.data import pipeline
from refocus_jax.evaluation.features import BATCH_PER_DEVICE, Extractor, Features
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.runtime import processes
from refocus_jax.runtime.progress import Progress
from refocus_jax.runtime.writer import write_json

# Of images uint8 (b, h, w, 3): arrays of b rows by name.
Measure = Callable[[np.ndarray], dict[str, np.ndarray]]


def of_all(images: Sequence[np.ndarray], measure: Measure, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Measures equally large images, in their order: rows of some of them at a time, the same in every process.

    Args:
      images: uint8 (h, w, 3) each, all of them for every process. measure: of `batch_size` images, by the devices of
      this process; 64-bit numbers are cut to 32 bits where there are several processes.
    """
    at_once = batch_size * jax.process_count()
    batches = -(-len(images) // at_once)
    # The last batch is filled up with images that are dropped again.
    examples = grain.MapDataset.source(images).repeat()[:batches * at_once]
    left = len(images)
    for batch_bhwc in pipeline.Batches(examples, at_once):
        rows = processes.gather(measure(batch_bhwc))
        yield {name: array[:left] for name, array in rows.items()}
        left -= at_once


def keep(directory: Path, name: str, identity: dict[str, Any], images: Sequence[np.ndarray], measure: Measure,
         batch_size: int) -> dict[str, np.ndarray]:
    """Measurements (n, ...) of all images, mapped from files; they are made once for each `identity`.

    Args:
      name: of them all, shown while they are made. identity: what they hang on, for JSON. The others as for `of_all`.
    """
    folder = directory / folder_name(name, identity)
    if not processes.agree(folder.is_dir()):
        _write(folder, name, images, of_all(images, measure, batch_size))
        if jax.process_index() == 0:
            temporary = _temporary(folder)
            write_json(temporary / "identity.json", identity)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        processes.barrier(f"{folder} is there")
    return {path.stem: np.load(path, "r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def folder_name(name: str, identity: dict[str, Any]) -> str:
    """Of what was made under an identity."""
    return f"{name}_{hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()}"


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _write(folder: Path, name: str, images: Sequence[np.ndarray], blocks: Iterator[dict[str, np.ndarray]]) -> None:
    """Process 0 writes; the others only take part."""
    count, done, columns = len(images), 0, {}
    if jax.process_index() == 0:
        shutil.rmtree(_temporary(folder), ignore_errors=True)
        _temporary(folder).mkdir(parents=True)
    with Progress(count, 0, name) as progress:
        for rows in blocks:
            if jax.process_index() == 0:
                for column, array in rows.items():
                    if column not in columns:
                        columns[column] = np.lib.format.open_memmap(
                            _temporary(folder) / f"{column}.npy", "w+", array.dtype, (count, *array.shape[1:]))
                    columns[column][done:done + len(array)] = array
            done += len(next(iter(rows.values())))
            progress.update(done, {})
    for column in columns.values():
        column.flush()


def of_features(images: ImageSet, extractor: Extractor, directory: Path) -> dict[str, np.ndarray]:
    """`Features` of all images by their names, those that there are; kept in a directory.

    Args:
      extractor: on the devices of this process alone.
    """
    identity = {"images": images.identity, "features": extractor.name, "sha256": extractor.sha256}
    return keep(directory, "features", identity, images.images, lambda batch_bhwc: columns(extractor(batch_bhwc)),
                BATCH_PER_DEVICE * extractor.mesh.size)


def features_now(image_bhwc: np.ndarray, extractor: Extractor) -> dict[str, np.ndarray]:
    """As `of_features`, of images that every process holds, and not kept."""
    blocks = list(of_all(image_bhwc, lambda batch_bhwc: columns(extractor(batch_bhwc)),
                         BATCH_PER_DEVICE * extractor.mesh.size))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def columns(features: Features) -> dict[str, np.ndarray]:
    """Those that there are, by name."""
    return {name: array for name, array in features._asdict().items() if array is not None}


def dimensions(extractor: Extractor) -> dict[str, int]:
    """How many features of each name there are; nothing is computed."""
    found = jax.eval_shape(extractor.apply, extractor.params, jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8))
    return {name: shape.shape[-1] for name, shape in columns(found).items()}

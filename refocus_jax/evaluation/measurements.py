"""Measurements of many images (features, errors, tokens) by all processes and devices, kept on disk."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

import refocus_jax
from refocus_jax.data import pipeline
from refocus_jax.evaluation import digests
from refocus_jax.evaluation.image_sets import Images, ImageSet
from refocus_jax.judges.features import BATCH_PER_DEVICE, Extractor, Features
from refocus_jax.runtime import bucket, processes
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.files import write_json, writing
from refocus_jax.runtime.progress import Progress

DIGESTS = "digests.json"  # in the directory of the results: digests of the files of the images
_RECORD = "identity.json"  # next to the results: everything they depend on, and digests of the files of the results

# A function from images, uint8 (b, h, w, 3), to arrays with b rows, by name; jax arrays need not be there yet.
Measure = Callable[[np.ndarray], dict[str, Any]]


def of_all(images: Images, measure: Measure, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Measure equally large images, in their order; the devices are at the next batch while the last is fetched.

    Args:
      images: uint8 (h, w, 3) each; every process must pass all of them.
      measure: Function that measures `batch_size` images on the devices of this process. With several processes, its
        64-bit numbers are reduced to 32 bits.
      batch_size: Number of images that `measure` takes.

    Yields:
      The rows of the next images by name, the same in every process.
    """
    at_once = batch_size * jax.process_count()
    batches = -(-len(images) // at_once)
    # The last batch is padded with images whose rows are dropped.
    examples = grain.MapDataset.source(images).repeat()[:batches * at_once]
    left = len(images)
    for measured in mesh_lib.fetched(measure(batch_bhwc) for batch_bhwc in pipeline.Batches(examples, at_once)):
        rows = processes.gather(measured)
        yield {name: array[:left] for name, array in rows.items()}
        left -= at_once


def keep(directory: Path, name: str, made_with: dict[str, Any], images: ImageSet, measure: Measure,
         batch_size: int) -> dict[str, np.ndarray]:
    """Measure all images, or reuse results on disk that were made with the same images and settings.

    Results that have changed since they were written are made again.

    Args:
      directory: The directory of all results.
      name: Name of these results, shown while they are made.
      made_with: Everything that the results depend on except the images, as JSON.
      images: The images.
      measure: Function that measures a batch, see `of_all`.
      batch_size: Number of images that `measure` takes.

    Returns:
      Arrays (n, ...) by name, mapped from files.

    Raises:
      OSError: If a file cannot be written.
    """
    identity = {"images": images.identity(directory / DIGESTS), **made_with}
    folder = directory / folder_name(name, identity)
    if processes.from_first(lambda: _is_sound(folder)):
        say_kept(name, images, folder)
    else:
        _write(folder, name, images.images, of_all(images.images, measure, batch_size))
        if jax.process_index() == 0:
            temporary = _temporary(folder)
            write_json(temporary / _RECORD, {"identity": identity, "blake2b": _digests(temporary)})
            with writing(folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
            bucket.publish(folder)
        processes.barrier(f"{bucket.address(folder)} is complete")
        bucket.refresh(folder)
    return {path.stem: np.load(path, "r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def folder_name(name: str, identity: dict[str, Any]) -> str:
    """Return the name of the folder for results with an identity, made by this version of the package."""
    identity = {"refocus_jax": refocus_jax.__version__} | identity
    return f"{name}_{hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()}"


def say_kept(name: str, images: ImageSet, folder: Path) -> None:
    """Print, in process 0, that results exist already."""
    if jax.process_index() == 0:
        print(f"{name} of {images.says}: found in {folder}")


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: digests.of_file(path) for path in sorted(folder.glob("*.npy"))}


def _is_sound(folder: Path) -> bool:
    """Return whether a folder has results that have not changed since they were written."""
    if not folder.is_dir():
        return False
    try:
        expected = json.loads((folder / _RECORD).read_bytes())["blake2b"]
    except (OSError, ValueError, KeyError, TypeError):
        expected = None
    if _digests(folder) == expected:
        return True
    logging.warning("%s has changed since it was written and is made again", folder)
    return False


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _write(folder: Path, name: str, images: Images, blocks: Iterator[dict[str, np.ndarray]]) -> None:
    """Compute all blocks in every process; process 0 writes them."""
    count, done = len(images), 0
    if jax.process_index() == 0:
        shutil.rmtree(_temporary(folder), ignore_errors=True)
        with writing(folder):
            _temporary(folder).mkdir(parents=True)
    with Progress(count, 0, name) as progress:
        for rows in blocks:
            if jax.process_index() == 0:
                for column, array in rows.items():
                    _append(_temporary(folder) / f"{column}.npy", array, count)
            done += len(next(iter(rows.values())))
            progress.update(done, {})


def _append(path: Path, rows: np.ndarray, count: int) -> None:
    """Write the next rows of an array of `count`. With a memory map, a full disk would kill the process."""
    with writing(path, count * rows[:1].nbytes), open(path, "ab") as file:
        if not file.tell():
            np.lib.format.write_array_header_1_0(file, {
                "descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False,
                "shape": (count, *rows.shape[1:])})
        file.write(np.ascontiguousarray(rows).tobytes())


def of_features(images: ImageSet, extractor: Extractor, directory: Path) -> dict[str, np.ndarray]:
    """Compute the features of all images, or reuse them from disk.

    Args:
      images: The images.
      extractor: The network, on the devices of this process only.
      directory: The directory of all results.

    Returns:
      The arrays of `Features` by name, without those that the network does not have.
    """
    return keep(directory, "features", {"features": extractor.identity}, images,
                lambda batch_bhwc: columns(extractor.start(batch_bhwc)), BATCH_PER_DEVICE * extractor.mesh.size)


def features_now(image_bhwc: np.ndarray, extractor: Extractor) -> dict[str, np.ndarray]:
    """Compute features as `of_features` does, of images (n, h, w, 3) that every process holds; nothing is stored."""
    blocks = list(of_all(image_bhwc, lambda batch_bhwc: columns(extractor.start(batch_bhwc)),
                         BATCH_PER_DEVICE * extractor.mesh.size))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def columns(features: Features) -> dict[str, np.ndarray]:
    """Return the features that are not None, by name."""
    return {name: array for name, array in features._asdict().items() if array is not None}


def dimensions(extractor: Extractor) -> dict[str, int]:
    """Return the number of features of each name, without computing any."""
    found = jax.eval_shape(extractor.apply, extractor.params, jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8))
    return {name: shape.shape[-1] for name, shape in columns(found).items()}

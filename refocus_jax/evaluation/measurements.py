"""Measurements of many images by all processes and devices, kept on disk: features, errors, tokens."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

import refocus_jax
from refocus_jax.data import pipeline
from refocus_jax.evaluation import digests
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.judges.features import BATCH_PER_DEVICE, Extractor, Features
from refocus_jax.runtime import processes
from refocus_jax.runtime.files import write_json, writing
from refocus_jax.runtime.progress import Progress

DIGESTS = "digests.json"  # in the directory of what is kept: those of the files that images came from
_RECORD = "identity.json"  # next to what was measured: what it was made with, and the digests of its files

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


def keep(directory: Path, name: str, made_with: dict[str, Any], images: ImageSet, measure: Measure,
         batch_size: int) -> dict[str, np.ndarray]:
    """Measurements (n, ...) of all images, mapped from files; made once for all that they depend on.

    What is kept and has changed since it was written is made again.

    Args:
      name: of them all, shown while they are made. made_with: what they depend on except the images, as JSON. The
      others as for `of_all`.

    Raises:
      OSError: a file cannot be written.
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
        processes.barrier(f"{folder} is there")
    return {path.stem: np.load(path, "r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def folder_name(name: str, identity: dict[str, Any]) -> str:
    """Of what was made under an identity, by this version of the package."""
    identity = {"refocus_jax": refocus_jax.__version__} | identity
    return f"{name}_{hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()}"


def say_kept(name: str, images: ImageSet, folder: Path) -> None:
    if jax.process_index() == 0:
        print(f"{name} of {images.says}: there already, in {folder}")


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: digests.of_file(path) for path in sorted(folder.glob("*.npy"))}


def _is_sound(folder: Path) -> bool:
    """Whether there are measurements in a folder, as they were written."""
    if not folder.is_dir():
        return False
    try:
        expected = json.loads((folder / _RECORD).read_bytes())["blake2b"]
    except (OSError, ValueError, KeyError, TypeError):
        expected = None
    if _digests(folder) == expected:
        return True
    logging.warning("%s has changed since it was written, and is made again", folder)
    return False


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _write(folder: Path, name: str, images: Sequence[np.ndarray], blocks: Iterator[dict[str, np.ndarray]]) -> None:
    """Process 0 writes; the others only take part."""
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
    """Writes the next rows of an array of `count`. Not through a memory map: a full disk would end the process."""
    with writing(path, count * rows[:1].nbytes), open(path, "ab") as file:
        if not file.tell():
            np.lib.format.write_array_header_1_0(file, {
                "descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False,
                "shape": (count, *rows.shape[1:])})
        file.write(np.ascontiguousarray(rows).tobytes())


def of_features(images: ImageSet, extractor: Extractor, directory: Path) -> dict[str, np.ndarray]:
    """`Features` of all images by their names, those that there are; kept in a directory.

    Args:
      extractor: on the devices of this process alone.
    """
    return keep(directory, "features", {"features": extractor.identity}, images,
                lambda batch_bhwc: columns(extractor(batch_bhwc)), BATCH_PER_DEVICE * extractor.mesh.size)


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

"""Many drawn images on their way to disk: resumable, as a picture, a folder of PNG files or ADM's npz."""

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from refocus_jax.reporting import pictures
from refocus_jax.runtime import processes
from refocus_jax.runtime.writer import write_json

FORMATS = ("grid", "png", "npz")
MAX_GRID = 1024  # images that one picture may show


@dataclasses.dataclass(frozen=True)
class DrawSettings:
    """What `--mode=sample` draws.

    Attributes:
      classes: numbers or names; empty is all. count: images in all, shared evenly among the classes. seed: of
      all images, which are numbered below it. batch_size: drawn at a time. format: 'grid', one picture with a row per
      class; 'png', a folder of files; 'npz', what ADM's evaluation reads. output: a directory, default WORKDIR/samples.
    """

    classes: tuple[int | str, ...] = ()
    count: int = 64
    seed: int = 0
    batch_size: int = 8
    format: str = "grid"
    output: str = ""

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in ("count", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"draw.{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"draw.seed is {self.seed}; give 0 to {2**32 - 1}")
        if self.format not in FORMATS:
            raise ValueError(f"draw.format is {self.format!r}; choose one of {FORMATS}")
        if self.format == "grid" and self.count > MAX_GRID:
            raise ValueError(f"draw.count is {self.count}, and draw.format 'grid' shows at most {MAX_GRID}; choose "
                             "'png' or 'npz'")


def class_numbers(setting: str, classes: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    """Numbers of classes given by number or by name; all of them if none is given. `setting` is named in errors.

    Raises:
      ValueError: there is no such class.
    """
    numbers = []
    for given in classes or range(len(names)):
        number = names.index(given) if given in names else int(given) if str(given).isdecimal() else -1
        if not 0 <= number < len(names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"{setting} has {given!r}; classes are 0 to {len(names) - 1}, by name {shown}")
        numbers.append(number)
    return np.asarray(numbers, np.int32)


class _Drawn:
    """Images drawn so far, in a file of their final size, with how many they are and of what settings.

    Only process 0 has and writes the file; the others count along.
    """

    def __init__(self, directory: Path, count: int, side: int, record: dict[str, Any]):
        self._state, path = directory / "unfinished.json", directory / "unfinished.npy"
        self._path, self._record, self.done = path, record, 0
        if self._state.exists():
            before = json.loads(self._state.read_text())
            differing = [f"{name} was {before['record'].get(name)!r} and is {value!r}" for name, value in record.items()
                         if before["record"].get(name) != value]
            if differing:
                raise ValueError(f"{directory} holds unfinished samples of other settings: {'; '.join(differing)}. "
                                 "Finish them, remove the directory, or give another draw.output")
            self.done = before["done"]
        self.images = None
        if jax.process_index() == 0:
            shape = (count, side, side, 3)
            self.images = np.lib.format.open_memmap(path, "r+" if self.done else "w+", np.uint8, shape)
        processes.barrier(f"all know what is drawn in {directory}")

    def add(self, images: np.ndarray) -> None:
        if self.images is not None:
            self.images[self.done:self.done + len(images)] = images
            self.images.flush()
        self.done += len(images)
        write_json(self._state, {"done": self.done, "record": self._record})

    def remove(self) -> None:
        self._state.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


def draw(draw_batch: Callable[[np.ndarray, int], np.ndarray], settings: DrawSettings, class_names: Sequence[str],
         side: int, directory: Path, record: dict[str, Any]) -> Iterator[int]:
    """Draws all images, going on from where an interrupted call stopped, and writes them in the chosen format.

    All processes must call it: they draw together, and process 0 writes.

    Args:
      draw_batch: (labels (b,), number of the first) to uint8 images (b, side, side, 3); b is always the batch size.
      record: all that the images hang on; it is written beside them, and must not change while they are unfinished.

    Yields:
      The number of images drawn so far.

    Raises:
      ValueError: unknown classes, or the directory holds unfinished samples of other settings.
    """
    classes = class_numbers("draw.classes", settings.classes, class_names)
    # Class after class, as even as the count allows: a row of the grid is a class.
    labels = np.sort(np.resize(np.arange(len(classes)), settings.count))
    labels = classes[labels]
    directory.mkdir(parents=True, exist_ok=True)
    drawn = _Drawn(directory, settings.count, side, record)
    while drawn.done < settings.count:
        yield drawn.done
        number = min(settings.batch_size, settings.count - drawn.done)
        batch = np.resize(labels[drawn.done:drawn.done + number], settings.batch_size)
        drawn.add(draw_batch(batch, drawn.done)[:number])
    if drawn.images is not None:
        _write(directory, settings, drawn.images, labels, class_names)
        write_json(directory / f"samples.{settings.format}.json", record)
        drawn.remove()
    processes.barrier(f"all is drawn in {directory}")
    yield settings.count


def _write(directory: Path, settings: DrawSettings, images: np.ndarray, labels: np.ndarray,
           class_names: Sequence[str]) -> None:
    if settings.format == "grid":
        _write_grid(directory / "samples.png", images, labels, class_names)
    elif settings.format == "png":
        _write_folder(directory / "png", images, labels)
    else:
        write_npz(directory / "samples.npz", images, labels, settings.seed)


def _write_grid(path: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    rows = [list(images[labels == label]) for label in dict.fromkeys(labels.tolist())]
    names = [class_names[label] for label in dict.fromkeys(labels.tolist())]
    if len(rows) == 1:  # one class needs no labels, and is easier to see as a square
        columns = int(np.ceil(np.sqrt(len(images))))
        rows, names = [list(images[i:i + columns]) for i in range(0, len(images), columns)], None
    temporary = path.with_suffix(".tmp")
    Image.fromarray(pictures.grid(rows, names)).save(temporary, format="PNG")
    os.replace(temporary, path)


def _write_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """`NUMBER_CLASS.png` each."""
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(temporary / f"{i:06d}_{label:04d}.png")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def write_npz(path: Path, images: np.ndarray, labels: np.ndarray, seed: int) -> None:
    """ADM's layout, `arr_0` images and `arr_1` labels, in shuffled order: its Inception Score hangs on the order.

    One image at a time: 50,000 of them need not fit into memory.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i in order:
                file.write(np.ascontiguousarray(images[i]).tobytes())
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, labels[order].astype(np.int64))
    os.replace(temporary, path)

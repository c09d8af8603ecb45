"""Drawing of many images, resumable, into a picture, a folder of PNG files or ADM's npz."""

import dataclasses
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from refocus_jax.data import pictures
from refocus_jax.evaluation import digests
from refocus_jax.evaluation.unfinished import Unfinished
from refocus_jax.runtime import processes
from refocus_jax.runtime.files import atomically, write_json, writing

FORMATS = ("grid", "png", "npz")
MAX_GRID = 1024  # maximum number of images in one picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """The settings of `--mode=sample`.

    Attributes:
      classes: Numbers or names of classes, see `class_numbers`; empty means all classes.
      count: Total number of images, divided evenly among the classes.
      seed: Image i depends only on its index, the seed and its class.
      batch_size: Number of images drawn at a time.
      format: "grid" for one picture with a row per class; "png" for a folder of files; "npz" for the file that ADM's
        evaluation reads.
      output: A directory; the default is WORKDIR/samples.

    Raises:
      ValueError: If a setting is out of its range.
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
                raise ValueError(f"sample.{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"sample.seed is {self.seed}; give 0 to {2**32 - 1}")
        if self.format not in FORMATS:
            raise ValueError(f"sample.format is {self.format!r}; choose one of {FORMATS}")
        if self.format == "grid" and self.count > MAX_GRID:
            raise ValueError(f"sample.count is {self.count}, but sample.format 'grid' shows at most {MAX_GRID}; choose "
                             "'png' or 'npz'")


def class_numbers(setting: str, classes: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    """Return the numbers of classes that are given by number or by name; all classes if none is given.

    A string is a name if a class has this name, and otherwise a number. An integer is a number, and is refused if
    another class has it as its name.

    Args:
      setting: Name of the setting in error messages.
      classes: The given classes.
      names: Names of all classes.

    Returns:
      The numbers, int32.

    Raises:
      ValueError: If there is no such class, or if it is ambiguous which class is meant.
    """
    if not classes:
        return np.arange(len(names), dtype=np.int32)
    return np.asarray([_class_number(setting, given, names) for given in classes], np.int32)


def _class_number(setting: str, given: int | str, names: Sequence[str]) -> int:
    number, named = int(given) if str(given).isdecimal() else -1, None
    if str(given) in names:
        named = names.index(str(given))
        if isinstance(given, str):
            return named
    if not 0 <= number < len(names):
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise ValueError(f"{setting} has {given!r}; classes are 0 to {len(names) - 1}, by name {shown}; give one of "
                         "them")
    if named not in (None, number):
        raise ValueError(f"{setting} has the number {given}, which is also the name of another class; give "
                         f"{str(given)!r} in quotes for the class of that name (number {named}), or "
                         f"{names[number]!r}, the name of class number {number}")
    return number


def say_classes(numbers: np.ndarray, names: Sequence[str]) -> str:
    """Describe classes by number and name; of many classes, only the first eight."""
    shown = [f"{number} {names[number]!r}" for number in numbers[:8]]
    return f"{len(numbers)} class{'es' * (len(numbers) > 1)}: {', '.join(shown)}" + ", ..." * (len(numbers) > 8)


def draw(draw_batch: Callable[[np.ndarray, int], np.ndarray], settings: DrawSettings, class_names: Sequence[str],
         side: int, directory: Path, identity: dict[str, Any], origin: dict[str, Any]) -> Iterator[int]:
    """Draw all images, continuing where an interrupted call stopped, and write them in the chosen format.

    All processes must call it: they draw together, and process 0 writes.

    Args:
      draw_batch: Function from (labels (b,), number of the first image) to uint8 images (b, side, side, 3); b is always
        the batch size.
      settings: What to draw.
      class_names: Names of all classes.
      side: Side of the images in pixels.
      directory: Directory of the result; created if it does not exist.
      identity: Everything that the images depend on; must not change while they are unfinished.
      origin: Further facts about the images. Both are written next to the images, with the names of their classes.

    Yields:
      The number of images drawn so far.

    Raises:
      ValueError: If classes are unknown, or if the directory holds unfinished samples of other settings.
      OSError: If a file cannot be written.
    """
    classes = class_numbers("sample.classes", settings.classes, class_names)
    # Class after class, divided as evenly as the count allows: a row of the grid is a class.
    labels = np.sort(np.resize(np.arange(len(classes)), settings.count))
    labels = classes[labels]
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    drawn = Unfinished(directory, (settings.count, side, side, 3), identity)
    while drawn.done < settings.count:
        yield drawn.done
        number = min(settings.batch_size, settings.count - drawn.done)
        batch = np.resize(labels[drawn.done:drawn.done + number], settings.batch_size)
        drawn.add(draw_batch(batch, drawn.done)[:number])
    if jax.process_index() == 0:
        written = _write(directory, settings, drawn.images, labels, class_names)
        named = {str(label): class_names[label] for label in np.unique(labels)}
        digest = {"blake2b": digests.of_file(written)} if written.is_file() else {}
        write_json(directory / f"samples.{settings.format}.json", origin | identity | digest | {"classes": named})
        drawn.remove()
    processes.barrier(f"all is drawn in {directory}")
    yield settings.count


def _write(directory: Path, settings: DrawSettings, images: np.ndarray, labels: np.ndarray,
           class_names: Sequence[str]) -> Path:
    """Write all images; return the path of the file or folder."""
    if settings.format == "grid":
        path = directory / "samples.png"
        _write_grid(path, images, labels, class_names)
    elif settings.format == "png":
        path = directory / "png"
        _write_folder(path, images, labels)
    else:
        path = directory / "samples.npz"
        write_npz(path, images, labels, class_names, settings.seed)
    return path


def _write_grid(path: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    rows = [list(images[labels == label]) for label in dict.fromkeys(labels.tolist())]
    names: list[str] | None = [class_names[label] for label in dict.fromkeys(labels.tolist())]
    if len(rows) == 1:  # one class needs no labels and is easier to look at as a square
        columns = int(np.ceil(np.sqrt(len(images))))
        rows, names = [list(images[i:i + columns]) for i in range(0, len(images), columns)], None
    with atomically(path) as temporary:
        Image.fromarray(pictures.grid(rows, names)).save(temporary, format="PNG")


def _write_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write each image as `NUMBER_CLASS.png`."""
    temporary = folder.with_suffix(".tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(temporary / f"{i:06d}_{label:04d}.png")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)


def write_npz(path: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], seed: int) -> None:
    """Write images in ADM's layout: `arr_0` images, `arr_1` labels, and `classes`, the names of all classes.

    The order is shuffled, because ADM's Inception Score depends on it. Images are written one at a time: 50,000 of them
    need not fit into memory.

    Args:
      path: Path of the file.
      images: Images, uint8 (n, h, w, 3); may be mapped from disk.
      labels: Their classes (n,).
      class_names: Names of all classes.
      seed: Seed of the shuffled order.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    with atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i in order:
                file.write(np.ascontiguousarray(images[i]).tobytes())
        for name, array in {"arr_1": labels[order].astype(np.int64), "classes": np.array(class_names, str)}.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)

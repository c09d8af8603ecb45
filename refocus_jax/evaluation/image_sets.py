"""Images to be measured, by random access: crops of a data source, a folder, an `.npz` file."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refocus_jax.data import folders, npz, pipeline
from refocus_jax.data.crops import CropRule
from refocus_jax.data.images import common_white, decode_rgb
from refocus_jax.data.sources import Source
from refocus_jax.evaluation import digests
from refocus_jax.runtime import processes

MIN_IMAGES = 10  # the splits of an Inception Score; fewer say nothing in any case
_ARRAYS = ("arr_0", "x")  # ADM's name of images, and that of our data sources
_LOSSLESS = ("PNG", "BMP", "DIB", "PPM", "TIFF", "QOI")  # as Pillow calls formats


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Equally large uint8 images (h, w, 3).

    Attributes:
      says: what they are, in words. made_of: given a file that remembers digests of files, all that the images are made
      of, as JSON; None: their pixels are digested. warnings: what about them moves distances, in sentences.
    """

    images: Sequence[np.ndarray] = dataclasses.field(repr=False)
    says: str
    made_of: Callable[[Path], Any] | None = None
    warnings: Callable[[], list[str]] = list

    def __len__(self) -> int:
        return len(self.images)

    def identity(self, memory: Path) -> Any:
        """What measurements of the set may be kept under, as JSON: equal identities, equal images in equal order.

        Args:
          memory: see `digests.of_files`.
        """
        return processes.from_first(functools.partial(self.made_of, memory) if self.made_of else self._digest)

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for image_hwc in self.images:
            digest.update(f"{image_hwc.shape} ".encode() + np.ascontiguousarray(image_hwc).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Mapped(Sequence):
    """A function of each item, when it is asked for."""

    items: Sequence
    function: Callable[[Any], np.ndarray]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):  # grain's datasets go round
            raise IndexError(f"{index} of {len(self)} images")
        return self.function(self.items[index])


def of_source(source: Source, name: str, rule: CropRule, limit: int) -> ImageSet:
    """The crops that `pipeline.validation_batches` takes, `limit` of them at most; `name` is what they are called."""
    crops = pipeline.spread_crops(source, rule)[:limit]
    if len(crops) < MIN_IMAGES:
        raise ValueError(f"{name} has {len(crops)} crops to compare with; give more images, or more "
                         "data.crops_per_image")
    says = f"{len(crops)} crops of {name} ({len(source)} images), {rule}"
    described = {"image_size": rule.image_size, "resize_ratio": rule.resize_ratio,
                 "crops_per_image": rule.crops_per_image, "count": len(crops)}
    return ImageSet(_Mapped(crops, lambda example: example["image"]), says,
                    lambda _: {"source": source.fingerprint, "crops": described})


def of_path(setting: str, path: str, rule: CropRule | None = None) -> ImageSet:
    """The images of a folder, however deep and not hidden, by name; or `arr_0` or `x` of an `.npz` file.

    Args:
      setting: what errors call the path.
      rule: images of another size are cut to the centre as those of validation are. None: they must be of one size.

    Raises:
      FileNotFoundError: there is no such path. ValueError: it has no images, too few, or they are of several sizes.
    """
    location = Path(path).expanduser()
    if location.is_dir():
        found = _of_folder(location, rule)
    elif location.is_file() and location.suffix == ".npz":
        found = _of_npz(setting, location, rule)
    elif location.exists():
        raise ValueError(f"{setting} is {path}, which is not a folder and not an .npz file; give one of them")
    else:
        raise FileNotFoundError(f"{setting} is {path}, but there is no such file or folder; correct the path")
    if len(found) < MIN_IMAGES:
        raise ValueError(f"{setting} is {path}, which has {len(found)} images; give at least {MIN_IMAGES}")
    return found


def _described(rule: CropRule | None) -> dict[str, Any] | None:
    return rule and {"image_size": rule.image_size, "resize_ratio": rule.resize_ratio}


def _of_npz(setting: str, path: Path, rule: CropRule | None) -> ImageSet:
    try:
        name = next((name for name in _ARRAYS if name in npz.names(path)), None)
        if name is None:
            raise ValueError("it has neither arr_0 nor x; give uint8 images (n, h, w, 3) by one of these names")
        images = npz.memory_map(path, name)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{name} is {images.dtype} {images.shape}; give uint8 (n, h, w, 3)")
    except ValueError as error:
        raise ValueError(f"{setting} is {path}, which is not taken: {error}") from error
    says, made_of = f"{len(images)} images of {path.name}", functools.partial(_file, path, name, rule)
    if rule is None or images.shape[1:3] == (rule.image_size, rule.image_size):
        return ImageSet(images, f"{says}, {images.shape[2]} x {images.shape[1]} pixels", made_of)
    return ImageSet(_Mapped(images, functools.partial(_cropped, rule)), f"{says}, {rule}", made_of,
                    lambda: [_says_resized(len(images), len(images), rule)])


def _file(path: Path, name: str, rule: CropRule | None, memory: Path) -> dict[str, Any]:
    return {"file": digests.of_files([path], memory)[0], "array": name, "crop": _described(rule)}


def _of_folder(folder: Path, rule: CropRule | None) -> ImageSet:
    listing = folders.walk(folder)
    files = [folder / name for name in listing.images]
    folders.report(f"folder {folder}", len(files), {"unreadable": listing.unreadable, **listing.left_out})
    white = common_white(f"folder {folder}", files)
    says = f"{len(files)} images of the folder {folder.name}"
    made_of, warnings = functools.partial(_files, files, rule), functools.partial(_warnings, files, rule)
    if rule is not None:
        read = functools.partial(_cropped_file, rule, white)
        return ImageSet(_Mapped(files, read), f"{says}, {rule} where they are not so", made_of, warnings)
    shape = _read_file(white, files[0]).shape if files else (0, 0, 3)
    read = functools.partial(_file_of_shape, shape, white)
    return ImageSet(_Mapped(files, read), f"{says}, {shape[1]} x {shape[0]} pixels", made_of, warnings)


def _files(files: Sequence[Path], rule: CropRule | None, memory: Path) -> dict[str, Any]:
    """What they hold, in their order, whatever they and their folder are called."""
    content = "".join(digests.of_files(files, memory))
    return {"files": hashlib.blake2b(content.encode(), digest_size=16).hexdigest(), "crop": _described(rule)}


def _warnings(files: Sequence[Path], rule: CropRule | None) -> list[str]:
    with ThreadPool() as pool:
        headers = pool.map(_header, files, chunksize=16)
    said, formats = [], collections.Counter(name for name, _ in headers)
    if lossy := {name: count for name, count in sorted(formats.items()) if name not in _LOSSLESS}:
        counts = ", ".join(f"{count} {name}" for name, count in lossy.items())
        said.append(f"{sum(lossy.values())} of {len(files)} files are of formats that may lose detail ({counts}). That "
                    "alone moves distances, by tens for JPEG; make them as PNG.")
    if rule is not None and (resized := sum(size != (rule.image_size, rule.image_size) for _, size in headers)):
        said.append(_says_resized(resized, len(files), rule))
    return said


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Format and size of an image file, by its content. What is damaged is said where it is decoded."""
    try:
        with Image.open(path) as image:
            return image.format, image.size
    except Exception:
        return "unknown", (0, 0)


def _says_resized(number: int, count: int, rule: CropRule) -> str:
    return (f"{number} of {count} images are not {rule.image_size} x {rule.image_size} pixels and were cut or "
            "resized to fit, which "
            "moves distances unless the samples have gone through the same.")


def _read_file(white: int, path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return decode_rgb(file, str(path), white)


def _file_of_shape(shape: tuple[int, ...], white: int, path: Path) -> np.ndarray:
    image_hwc = _read_file(white, path)
    if image_hwc.shape != shape:
        raise ValueError(f"{path} is of {image_hwc.shape[1]} x {image_hwc.shape[0]} pixels, and the first image of "
                         f"{shape[1]} x {shape[0]}; give images of one size")
    return image_hwc


def _cropped_file(rule: CropRule, white: int, path: Path) -> np.ndarray:
    return _cropped(rule, _read_file(white, path))


def _cropped(rule: CropRule, image_hwc: np.ndarray) -> np.ndarray:
    if image_hwc.shape == (rule.image_size, rule.image_size, 3):
        return image_hwc
    return rule.at(np.asarray(image_hwc))


def has_images(path: str) -> bool:
    """Whether `of_path` would look for images there: in a folder, or in an `.npz` file that has some.

    Raises:
      ValueError: a damaged `.npz` file.
    """
    location = Path(path).expanduser()
    return location.is_dir() or (location.is_file() and not npz.names(location).isdisjoint(_ARRAYS))

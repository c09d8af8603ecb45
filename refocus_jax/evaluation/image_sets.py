"""Sets of images to be measured, with random access: crops of a data source, a folder or an `.npz` file."""

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

from refocus_jax.data import folders, npz
from refocus_jax.data.crops import CropRule
from refocus_jax.data.images import common_white, decode_rgb
from refocus_jax.data.records import Source
from refocus_jax.evaluation import digests
from refocus_jax.runtime import processes

MIN_IMAGES = 10  # the number of splits of an Inception Score; fewer images are meaningless for the other metrics too
_ARRAYS = ("arr_0", "x")  # the names of images in ADM's files and in data sources
_LOSSLESS = ("PNG", "BMP", "DIB", "PPM", "TIFF", "QOI")  # Pillow's names of formats

Images = Sequence[np.ndarray] | np.ndarray  # equally large images, by random access


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Equally large uint8 images (h, w, 3).

    Attributes:
      images: The images.
      says: Description in words.
      made_of: Function from a file that remembers digests of files to everything that determines the images, as JSON.
        None computes a digest of the pixels instead.
      warnings: Function that returns sentences about properties of the images that change distances.
    """

    images: Images = dataclasses.field(repr=False)
    says: str
    made_of: Callable[[Path], Any] | None = None
    warnings: Callable[[], list[str]] = list

    def __len__(self) -> int:
        return len(self.images)

    def identity(self, memory: Path) -> Any:
        """Return the key under which measurements of the set may be stored.

        Args:
          memory: File that remembers digests, see `digests.of_files`.

        Returns:
          The key, as JSON. Sets with equal keys have equal images in the same order.
        """
        return processes.from_first(functools.partial(self.made_of, memory) if self.made_of else self._digest)

    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for image_hwc in self.images:
            digest.update(f"{image_hwc.shape} ".encode() + np.ascontiguousarray(image_hwc).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Mapped(Sequence[np.ndarray]):
    """A sequence that applies a function to each item when the item is accessed."""

    items: Sequence | np.ndarray
    function: Callable[[Any], np.ndarray]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):  # grain's datasets start again after the last item
            raise IndexError(f"{index} of {len(self)} images")
        return self.function(self.items[index])


def of_source(source: Source, name: str, rule: CropRule, limit: int) -> ImageSet:
    """Open the crops that `pipeline.validation_batches` uses.

    Args:
      source: The images.
      name: Name of the source in messages.
      rule: How the images become crops.
      limit: Maximum number of crops.

    Returns:
      The crops.

    Raises:
      ValueError: If there are too few crops.
    """
    from refocus_jax.data import pipeline  # here, because the command line imports this module and need not load grain

    crops = pipeline.spread_crops(source, rule)[:limit]
    if len(crops) < MIN_IMAGES:
        raise ValueError(f"{name} has {len(crops)} crops to compare with; give more images, or raise "
                         "data.crops_per_image")
    says = f"{len(crops)} crops of {name} ({len(source)} images), {rule}"
    described = {"image_size": rule.image_size, "resize_ratio": rule.resize_ratio,
                 "crops_per_image": rule.crops_per_image, "count": len(crops)}
    return ImageSet(_Mapped(crops, lambda example: example["image"]), says,
                    lambda _: {"source": source.fingerprint, "crops": described})


def of_path(setting: str, path: str, rule: CropRule | None = None) -> ImageSet:
    """Open the images of a folder, at any depth but not hidden, by name; or `arr_0` or `x` of an `.npz` file.

    Args:
      setting: Name of the path in error messages.
      path: Path of the folder or file.
      rule: Images of another size are cropped at the centre by this rule, as validation images are. With None, all
        images must have the same size.

    Returns:
      The images.

    Raises:
      FileNotFoundError: If the path does not exist.
      ValueError: If there are no or too few images, or if they have different sizes.
    """
    location = Path(path).expanduser()
    if location.is_dir():
        found = _of_folder(location, rule)
    elif location.is_file() and location.suffix == ".npz":
        found = _of_npz(setting, location, rule)
    elif location.exists():
        raise ValueError(f"{setting} is {path}, which is neither a folder nor an .npz file; give one of them")
    else:
        raise FileNotFoundError(f"{setting} is {path}, but there is no such file or folder; correct the path")
    if len(found) < MIN_IMAGES:
        raise ValueError(f"{setting} is {path}, which has {len(found)} images; give at least {MIN_IMAGES}")
    return found


def _described(rule: CropRule | None) -> dict[str, Any] | None:
    return None if rule is None else {"image_size": rule.image_size, "resize_ratio": rule.resize_ratio}


def _of_npz(setting: str, path: Path, rule: CropRule | None) -> ImageSet:
    try:
        name = next((name for name in _ARRAYS if name in npz.names(path)), None)
        if name is None:
            raise ValueError("it has neither arr_0 nor x; give uint8 images (n, h, w, 3) with one of these names")
        images = npz.memory_map(path, name)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{name} is {images.dtype} {images.shape}; give uint8 (n, h, w, 3)")
    except ValueError as error:
        raise ValueError(f"{setting} is {path}, which cannot be used: {error}") from error
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
        return ImageSet(_Mapped(files, read), f"{says}, {rule} if they have another size", made_of, warnings)
    shape = _read_file(white, files[0]).shape if files else (0, 0, 3)
    read = functools.partial(_file_of_shape, shape, white)
    return ImageSet(_Mapped(files, read), f"{says}, {shape[1]} x {shape[0]} pixels", made_of, warnings)


def _files(files: Sequence[Path], rule: CropRule | None, memory: Path) -> dict[str, Any]:
    """Describe the content of files in their order, independent of the names of the files and their folder."""
    content = "".join(digests.of_files(files, memory))
    return {"files": hashlib.blake2b(content.encode(), digest_size=16).hexdigest(), "crop": _described(rule)}


def _warnings(files: Sequence[Path], rule: CropRule | None) -> list[str]:
    with ThreadPool() as pool:
        headers = pool.map(_header, files, chunksize=16)
    said, formats = [], collections.Counter(name for name, _ in headers)
    if lossy := {name: count for name, count in sorted(formats.items()) if name not in _LOSSLESS}:
        counts = ", ".join(f"{count} {name}" for name, count in lossy.items())
        said.append(f"{sum(lossy.values())} of {len(files)} files are of formats that may lose detail ({counts}). This "
                    "alone changes distances, by tens for JPEG; save the images as PNG.")
    if rule is not None and (resized := sum(size != (rule.image_size, rule.image_size) for _, size in headers)):
        said.append(_says_resized(resized, len(files), rule))
    return said


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Return format and size of an image file from its content. Damaged files are reported when they are decoded."""
    try:
        with Image.open(path) as image:
            return image.format or "unknown", image.size
    except Exception:
        return "unknown", (0, 0)


def _says_resized(number: int, count: int, rule: CropRule) -> str:
    return (f"{number} of {count} images are not {rule.image_size} x {rule.image_size} pixels and were cropped or "
            "resized to fit, which changes distances unless the samples were processed in the same way.")


def _read_file(white: int, path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return decode_rgb(file, str(path), white)


def _file_of_shape(shape: tuple[int, ...], white: int, path: Path) -> np.ndarray:
    image_hwc = _read_file(white, path)
    if image_hwc.shape != shape:
        raise ValueError(f"{path} has {image_hwc.shape[1]} x {image_hwc.shape[0]} pixels, but the first image has "
                         f"{shape[1]} x {shape[0]}; give images of one size")
    return image_hwc


def _cropped_file(rule: CropRule, white: int, path: Path) -> np.ndarray:
    return _cropped(rule, _read_file(white, path))


def _cropped(rule: CropRule, image_hwc: np.ndarray) -> np.ndarray:
    if image_hwc.shape == (rule.image_size, rule.image_size, 3):
        return image_hwc
    return rule.at(np.asarray(image_hwc))


def has_images(path: str) -> bool:
    """Check whether a path is a folder, or an `.npz` file with images, so that `of_path` can open it.

    Args:
      path: Path of the folder or file.

    Returns:
      True if it is.

    Raises:
      ValueError: If an `.npz` file is damaged.
    """
    location = Path(path).expanduser()
    return location.is_dir() or (location.is_file() and not npz.names(location).isdisjoint(_ARRAYS))

"""Images to be measured, by random access: crops of a data source, a folder, an `.npz` file."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refocus_jax.data import folders, npz, pipeline
from refocus_jax.data.images import common_white, decode_rgb
from refocus_jax.data.sources import Source

MIN_IMAGES = 10  # the splits of an Inception Score; fewer say nothing in any case
_ARRAYS = ("arr_0", "x")  # ADM's name of images, and that of our data sources
_LOOKED_AT = 16  # images of a set whose pixels tell it from others


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Equally large uint8 images (h, w, 3).

    Attributes:
      says: what they are, in words. stamp: what else than their pixels tells them from others: sizes and times of
      files.
    """

    images: Sequence[np.ndarray] = dataclasses.field(repr=False)
    says: str
    stamp: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What measurements of the set may be kept under: number, files and the pixels of some."""
        digest = hashlib.blake2b(digest_size=16)
        for index in np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).astype(int)):
            image = np.ascontiguousarray(self.images[int(index)])
            digest.update(f"{index} {image.shape} ".encode() + image.tobytes())
        return {"count": len(self), "stamp": self.stamp, "pixels": digest.hexdigest()}


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


def of_source(source: Source, name: str, *, image_size: int, resize_ratio: float, crops_per_image: int,
              limit: int) -> ImageSet:
    """The crops that `pipeline.validation_batches` takes, `limit` of them at most; `name` is what they are called."""
    crops = pipeline.spread_crops(source, image_size=image_size, resize_ratio=resize_ratio,
                                  crops_per_image=crops_per_image)
    crops = crops[:limit]
    if len(crops) < MIN_IMAGES:
        raise ValueError(f"{name} has {len(crops)} crops to compare with; give more images, or more "
                         "data.crops_per_image")
    says = f"{len(crops)} crops of {name} ({len(source)} images), {_crop_rule(image_size, resize_ratio)}"
    return ImageSet(_Mapped(crops, lambda example: example["image"]), says)


def _crop_rule(image_size: int, resize_ratio: float) -> str:
    resized = f"short side to {round(resize_ratio * image_size)} by Lanczos" if resize_ratio else "native resolution"
    return f"{resized}, {image_size} x {image_size} pixels"


def of_path(setting: str, path: str, crop: tuple[int, float] | None = None) -> ImageSet:
    """The images of a folder, however deep and not hidden, by name; or `arr_0` or `x` of an `.npz` file.

    Args:
      setting: what errors call the path.
      crop: image_size and resize_ratio; images of another size are cut to the centre as those of validation are. None:
        they must be of one size.

    Raises:
      FileNotFoundError: there is no such path. ValueError: it has no images, too few, or they are of several sizes.
    """
    location = Path(path).expanduser()
    if location.is_dir():
        found = _of_folder(location, crop)
    elif location.is_file() and location.suffix == ".npz":
        found = _of_npz(setting, location, crop)
    elif location.exists():
        raise ValueError(f"{setting} is {path}, which is no .npz file and no folder; give one of them")
    else:
        raise FileNotFoundError(f"{setting} is {path}, but there is no such file or folder; correct the path")
    if len(found) < MIN_IMAGES:
        raise ValueError(f"{setting} is {path}, which has {len(found)} images; give at least {MIN_IMAGES}")
    return found


def _of_npz(setting: str, path: Path, crop: tuple[int, float] | None) -> ImageSet:
    try:
        name = next((name for name in _ARRAYS if name in npz.names(path)), None)
        if name is None:
            raise ValueError("it has neither arr_0 nor x; give uint8 images (n, h, w, 3) by one of these names")
        images = npz.memory_map(path, name)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{name} is {images.dtype} {images.shape}; give uint8 (n, h, w, 3)")
    except ValueError as error:
        raise ValueError(f"{setting} is {path}, which is not taken: {error}") from error
    says, stamp = f"{len(images)} images of {path.name}", _stamp([path])
    if crop is None or images.shape[1:3] == (crop[0], crop[0]):
        return ImageSet(images, f"{says}, {images.shape[2]} x {images.shape[1]} pixels", stamp)
    return ImageSet(_Mapped(images, functools.partial(_cropped, crop)), f"{says}, {_crop_rule(*crop)}", stamp)


def _of_folder(folder: Path, crop: tuple[int, float] | None) -> ImageSet:
    listing = folders.walk(folder)
    files = [folder / name for name in listing.images]
    folders.report(f"folder {folder}", len(files), {"unreadable": listing.unreadable, **listing.left_out})
    white = common_white(f"folder {folder}", files)
    says = f"{len(files)} images of the folder {folder.name}"
    if crop is not None:
        read = functools.partial(_cropped_file, crop, white)
        return ImageSet(_Mapped(files, read), f"{says}, {_crop_rule(*crop)} where they are not so", _stamp(files))
    shape = _read_file(white, files[0]).shape if files else (0, 0, 3)
    read = functools.partial(_file_of_shape, shape, white)
    return ImageSet(_Mapped(files, read), f"{says}, {shape[1]} x {shape[0]} pixels", _stamp(files))


def _stamp(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _read_file(white: int, path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return decode_rgb(file, str(path), white)


def _file_of_shape(shape: tuple[int, ...], white: int, path: Path) -> np.ndarray:
    image_hwc = _read_file(white, path)
    if image_hwc.shape != shape:
        raise ValueError(f"{path} is of {image_hwc.shape[1]} x {image_hwc.shape[0]} pixels, and the first image of "
                         f"{shape[1]} x {shape[0]}; give images of one size")
    return image_hwc


def _cropped_file(crop: tuple[int, float], white: int, path: Path) -> np.ndarray:
    return _cropped(crop, _read_file(white, path))


def _cropped(crop: tuple[int, float], image_hwc: np.ndarray) -> np.ndarray:
    size, resize_ratio = crop
    if image_hwc.shape == (size, size, 3):
        return image_hwc
    return pipeline.crop_at(np.asarray(image_hwc), size, resize_ratio)


def has_images(path: str) -> bool:
    """Whether `of_path` would look for images there: in a folder, or in an `.npz` file that has some.

    Raises:
      ValueError: a damaged `.npz` file.
    """
    location = Path(path).expanduser()
    return location.is_dir() or location.is_file() and not npz.names(location).isdisjoint(_ARRAYS)

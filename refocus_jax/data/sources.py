"""Image sources: labelled photographs, random access, one `load(spec, split)` for every kind.

| spec          | what it reads                                                                        |
|---------------|--------------------------------------------------------------------------------------|
| `photos`      | the photographs inside the scikit-image wheel, one class each; nothing is downloaded |
| `npz:PATH`    | arrays `x` and `y` (or `arr_0` and `arr_1`), optionally `classes` and `val`          |
| `folder:PATH` | the ImageFolder layout; files that cannot be read are listed and skipped             |
| `tfds:NAME`   | a prepared TensorFlow Dataset, read without TensorFlow                               |
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from refocus_jax.data import images, manifest, npz

SPLITS = ("train", "validation")

# Where a source does not say which images are for validation, every tenth is held out.
_HELD_OUT_PERIOD = 10

# Each class of a model has an embedding: a label above this is no class, but a damaged number.
_MAX_CLASSES = 100_000


class Record(TypedDict):
    """One example: `image` is uint8 RGB (h, w, 3), `label` indexes the source's `class_names`."""

    image: np.ndarray
    label: int


class Source(Protocol):
    """A random-access sequence of records, in the form that `grain.MapDataset.source` takes.

    Attributes:
      fingerprint: a digest of all that the records and their order are made of. Equal fingerprints: equal records.
    """

    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def load(spec: str, split: str) -> Source:
    """Opens one split of a source.

    Args:
      spec: `photos`, `npz:PATH`, `folder:PATH` or `tfds:NAME`.
      split: `train` or `validation`. Both splits of a source have the same `class_names`.

    Raises:
      ValueError: for an unknown kind or split, damaged or malformed data, or a split without images.
      FileNotFoundError: where the data does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    kind, _, argument = spec.partition(":")
    if kind in ("npz", "folder", "tfds") and not argument:
        argument = "NAME" if kind == "tfds" else "PATH"
        raise ValueError(f"data.source is {spec!r}, which names no data; write {kind}:{argument}")
    if spec == "photos":
        source = _load_photographs(split)
    elif kind == "npz":
        source = _load_npz(Path(argument).expanduser(), split)
    elif kind == "folder":
        source = _load_folder(Path(argument).expanduser(), split)
    elif kind == "tfds":
        source = _load_tfds(argument, split)
    else:
        raise ValueError(f"data.source is {spec!r}, which is unknown; use photos, npz:PATH, folder:PATH or tfds:NAME")
    if len(source) == 0:
        raise ValueError(
            f"data.source is {spec!r}, which has no {split} images; give it explicit splits, or {_HELD_OUT_PERIOD} or "
            f"more images (per class, in a folder), of which every {_HELD_OUT_PERIOD}th is held out"
        )
    return source


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that are already decoded: uint8 (h, w, 3) each, not necessarily of one size."""

    images: Sequence[np.ndarray] = dataclasses.field(repr=False)
    labels: Sequence[int] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.images[index], "label": int(self.labels[index])}

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = _digest(self.class_names, np.asarray(self.labels, np.int64).tolist())
        for image_hwc in self.images:
            digest.update(f"{image_hwc.shape}".encode() + np.ascontiguousarray(image_hwc).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, decoded when accessed."""

    paths: Sequence[str] = dataclasses.field(repr=False)
    labels: Sequence[int] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        with open(self.paths[index], "rb") as file:
            return {"image": images.decode_rgb(file, self.paths[index]), "label": int(self.labels[index])}

    @functools.cached_property
    def fingerprint(self) -> str:
        sizes = [os.stat(path).st_size for path in self.paths]
        return _digest(self.class_names, list(self.labels), list(self.paths), sizes).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSource:
    """Records of a tfds data source whose `image` is the bytes of an image file, decoded when accessed."""

    name: str
    records: Sequence[dict] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record, where = self.records[index], f"record {index} of {self.name}"
        label = int(record["label"])
        if not 0 <= label < len(self.class_names):
            raise ValueError(f"{where} has label {label}; take a dataset with labels in [0, {len(self.class_names)})")
        return {"image": images.decode_rgb(io.BytesIO(record["image"]), where), "label": label}

    @functools.cached_property
    def fingerprint(self) -> str:
        return _digest(self.name, len(self.records), self.class_names).hexdigest()


def _digest(*content: Any) -> Any:
    """A BLAKE2 that has taken in the content, as JSON has it."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16)


def _held_out(count: int) -> np.ndarray:
    """Which of `count` images are held out, bool (count,)."""
    return np.arange(count) % _HELD_OUT_PERIOD == _HELD_OUT_PERIOD - 1


# Left out: drawings and text, the second view of the motorcycle, and two nearly empty pictures (cell, clock).
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "cameraman": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "galaxies": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}

# The square inside the retina's round field of view, around which the picture is black.
_RETINA_SQUARE = slice(225, 1185)


def photograph_columns(width: int, split: str) -> slice:
    """Pixel columns of a photograph that belong to a split: the right quarter (>= 96) is for validation."""
    boundary = width - max(width // 4, 96)
    return slice(0, boundary) if split == "train" else slice(boundary, width)


def read_photograph(class_name: str) -> np.ndarray:
    """Reads one of `PHOTOGRAPHS` from the installed scikit-image, uint8 (h, w, 3)."""
    file = importlib.resources.files("skimage") / "data" / PHOTOGRAPHS[class_name]
    if not file.is_file():
        raise FileNotFoundError(f"the installed scikit-image does not ship {file.name}: install version 0.26")
    with file.open("rb") as stream:
        image_hwc = images.decode_rgb(stream, class_name)
    return image_hwc[_RETINA_SQUARE, _RETINA_SQUARE] if class_name == "retina" else image_hwc


def _load_photographs(split: str) -> ArraySource:
    photographs = (read_photograph(class_name) for class_name in PHOTOGRAPHS)
    return ArraySource(
        images=tuple(image_hwc[:, photograph_columns(image_hwc.shape[1], split)] for image_hwc in photographs),
        labels=range(len(PHOTOGRAPHS)),
        class_names=tuple(PHOTOGRAPHS),
    )


# What ADM calls images and labels; --mode=sample writes them so.
_ADM_NAMES = {"arr_0": "x", "arr_1": "y"}


def _load_npz(path: Path, split: str) -> ArraySource:
    if not path.is_file():
        raise FileNotFoundError(f"data.source is npz:{path}, but there is no such file; correct the path")
    try:
        arrays = npz.read(path, ("x", "y", "classes", "val"))
        if arrays.keys().isdisjoint({"x", "y"}):
            arrays |= {_ADM_NAMES[name]: array for name, array in npz.read(path, _ADM_NAMES).items()}
        _check_npz_arrays(arrays)
    except ValueError as error:
        raise ValueError(f"data.source is npz:{path}, which is not taken: {error}") from error
    labels = arrays["y"].astype(np.int64)
    class_names = tuple(str(name) for name in arrays.get("classes", range(labels.max(initial=-1) + 1)))
    held_out = arrays.get("val", _held_out(len(labels)))
    chosen = held_out if split == "validation" else ~held_out
    return ArraySource(arrays["x"][chosen], labels[chosen], class_names)


def _check_npz_arrays(arrays: dict[str, np.ndarray]) -> None:
    missing = sorted({"x", "y"} - arrays.keys())
    if missing:
        raise ValueError(f"it lacks {missing}; it must hold images x (n, h, w, 3) and labels y (n,)")
    count = arrays["x"].shape[:1]
    rules = {
        "x": ("uint8 (n, h, w, 3)", lambda x: x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] == 3),
        "y": ("integers (n,)", lambda y: y.dtype.kind in "iu" and y.shape == count),
        "classes": ("strings (k,)", lambda classes: classes.dtype.kind == "U" and classes.ndim == 1),
        "val": ("bool (n,)", lambda val: val.dtype == np.bool_ and val.shape == count),
    }
    for key, array in arrays.items():
        expected, holds = rules[key]
        if not holds(array):
            raise ValueError(f"{key} must be {expected}, got {array.dtype} {array.shape}")
    images.check_size(*arrays["x"].shape[1:3])
    labels = arrays["y"]
    class_count = len(arrays["classes"]) if "classes" in arrays else _MAX_CLASSES
    if labels.size and not 0 <= labels.min() <= labels.max() < class_count:
        raise ValueError(
            f"labels y run from {labels.min()} to {labels.max()}, they must lie in [0, {class_count}), "
            f"{'the number of classes' if 'classes' in arrays else 'where no classes are given'}"
        )


def _load_folder(root: Path, split: str) -> FileSource:
    """PATH/train with PATH/val (or PATH/validation), otherwise PATH/<class>/<images> with some held out.

    Of a class folder, files with a suffix of `images.SUFFIXES` count as images; all others, hidden files and folders
    are ignored. Which images are held out depends on all their names, not on which of them can be read.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.source is folder:{root}, but there is no such folder; correct the path")
    validation_roots = [root / name for name in ("val", "validation") if (root / name).is_dir()]
    explicit = (root / "train").is_dir() and bool(validation_roots)
    if explicit:
        class_names = _folder_names(root / "train")
        split_root = root / "train" if split == "train" else validation_roots[0]
        unknown = sorted(set(_folder_names(split_root)) - set(class_names))
        if unknown:
            raise ValueError(
                f"data.source is folder:{root}: {split_root} has classes that {root / 'train'} lacks: {unknown[:5]}; "
                "the classes are those of train"
            )
    else:
        class_names, split_root = _folder_names(root), root
    # A class may be absent from explicit validation images.
    files = {name: _image_files(split_root, name) for name in class_names if (split_root / name).is_dir()}
    sound = set(manifest.readable(split_root, [file for class_files in files.values() for file in class_files]))
    for name, class_files in files.items():
        if sound.isdisjoint(class_files):
            raise ValueError(
                f"data.source is folder:{root}: no image in {split_root / name} can be read; repair or remove the class"
            )
    if not explicit:
        files = {name: _split_files(class_files, split) for name, class_files in files.items()}
    chosen = [
        (str(split_root / file), label)
        for label, name in enumerate(class_names)
        for file in files.get(name, [])
        if file in sound
    ]
    return FileSource([path for path, _ in chosen], [label for _, label in chosen], class_names)


def _folder_names(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        raise ValueError(
            f"data.source is a folder: {root} has no class folders; the layout is {root}/<class>/<image files>"
        )
    return names


def _image_files(root: Path, class_name: str) -> list[str]:
    """Relative to `root`."""
    with os.scandir(root / class_name) as entries:
        names = sorted(
            f"{class_name}/{entry.name}"
            for entry in entries
            if entry.name.lower().endswith(images.SUFFIXES) and not entry.name.startswith(".") and not entry.is_dir()
        )
    if not names:
        raise ValueError(
            f"data.source is a folder: {root / class_name} holds no image files ({', '.join(images.SUFFIXES)}); "
            "add some, or remove the folder"
        )
    return names


def _split_files(files: list[str], split: str) -> list[str]:
    held_out = _held_out(len(files))
    return [file for file, held in zip(files, held_out, strict=True) if held == (split == "validation")]


def _load_tfds(name: str, split: str) -> EncodedSource:
    # Only this kind of source needs tfds, which takes a while to import.
    import tensorflow_datasets as tfds

    # Image files are decoded here: without TensorFlow, tfds leaves greyscale and CMYK ones as they are.
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        splits = tfds.data_source(name, download=False, decoders=decoders)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(f"data.source is tfds:{name}, but tensorflow_datasets knows no dataset of this name") from None
    except Exception as error:  # a malformed name, an unknown version or configuration, files of another format
        raise ValueError(
            f"data.source is tfds:{name}, which cannot be opened: {error}\nWrite tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION of a dataset that is prepared in array_record format"
        ) from error
    if not splits:
        raise FileNotFoundError(_how_to_prepare(name, tfds.core.constants.DATA_DIR))
    tfds_split = "test" if split == "validation" and "validation" not in splits else split
    if tfds_split not in splits:
        raise ValueError(f"data.source is tfds:{name}, which has no {tfds_split} split but {sorted(splits)}")
    records = splits[tfds_split]
    features = dict(records.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise ValueError(
            f"data.source is tfds:{name}, which has {sorted(features)}; take a dataset with an image and a class label"
        )
    return EncodedSource(f"tfds:{name}", records, tuple(label.names))


def _how_to_prepare(name: str, data_dir: str) -> str:
    imagenet_step = "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into manual_dir, then "
    return (
        f"data.source is tfds:{name}, which is not prepared in {data_dir} (set TFDS_DATA_DIR if it lies elsewhere): "
        f"{imagenet_step if name.startswith('imagenet2012') else ''}run "
        f'tfds.builder("{name}", file_format="array_record").download_and_prepare() '
        "on a machine with tensorflow (manual_dir is downloads/manual in the data folder)"
    )

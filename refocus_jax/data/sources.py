"""Image sources: labelled photographs, random access, one `load(spec, split)` for every kind.

| spec          | what it reads                                                                        |
|---------------|--------------------------------------------------------------------------------------|
| `photos`      | the photographs inside the scikit-image wheel, one class each; nothing is downloaded |
| `npz:PATH`    | arrays `x` and `y`, optionally `classes` and `val`                                   |
| `folder:PATH` | the ImageFolder layout                                                               |
| `tfds:NAME`   | a prepared TensorFlow Dataset, read without TensorFlow                               |
"""

import dataclasses
import importlib.resources
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypedDict

import numpy as np
from PIL import Image

SPLITS = ("train", "validation")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

# Where a source does not say which images are for validation, every tenth is held out.
_HELD_OUT_PERIOD = 10


class Record(TypedDict):
    """One example: `image` is uint8 RGB (h, w, 3), `label` indexes the source's `class_names`."""

    image: np.ndarray
    label: int


class Source(Protocol):
    """A random-access sequence of records, in the form that `grain.MapDataset.source` takes."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def load(spec: str, split: str) -> Source:
    """Opens one split of a source.

    Args:
      spec: `photos`, `npz:PATH`, `folder:PATH` or `tfds:NAME`.
      split: `train` or `validation`. Both splits of a source have the same `class_names`.

    Raises:
      ValueError: for an unknown kind or split, malformed data, or a split without images.
      FileNotFoundError: where the data does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    kind, _, argument = spec.partition(":")
    if kind in ("npz", "folder", "tfds") and not argument:
        raise ValueError(f"data source {spec!r} names no data: write {kind}:PATH (or tfds:NAME)")
    if spec == "photos":
        source = _load_photographs(split)
    elif kind == "npz":
        source = _load_npz(Path(argument).expanduser(), split)
    elif kind == "folder":
        source = _load_folder(Path(argument).expanduser(), split)
    elif kind == "tfds":
        source = _load_tfds(argument, split)
    else:
        raise ValueError(f"unknown data source {spec!r}: use photos, npz:PATH, folder:PATH or tfds:NAME")
    if len(source) == 0:
        raise ValueError(
            f"data source {spec!r} has no {split} images: give it explicit splits, or {_HELD_OUT_PERIOD} or "
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
            return {"image": _decode_rgb(file), "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSource:
    """Records of a tfds data source whose `image` is the bytes of an image file, decoded when accessed."""

    records: Sequence[dict] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        return {"image": _decode_rgb(io.BytesIO(record["image"])), "label": int(record["label"])}


def _decode_rgb(file: BinaryIO) -> np.ndarray:
    """Decodes an image file to uint8 (h, w, 3); greyscale is repeated, transparency dropped."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


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
        image_hwc = _decode_rgb(stream)
    return image_hwc[_RETINA_SQUARE, _RETINA_SQUARE] if class_name == "retina" else image_hwc


def _load_photographs(split: str) -> ArraySource:
    images = (read_photograph(class_name) for class_name in PHOTOGRAPHS)
    return ArraySource(
        images=tuple(image[:, photograph_columns(image.shape[1], split)] for image in images),
        labels=range(len(PHOTOGRAPHS)),
        class_names=tuple(PHOTOGRAPHS),
    )


def _load_npz(path: Path, split: str) -> ArraySource:
    if not path.is_file():
        raise FileNotFoundError(f"npz:{path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"npz:{path} is not an .npz archive: write it with numpy.savez")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in ("x", "y", "classes", "val") if key in archive.files}
    _check_npz_arrays(path, arrays)
    images, labels = arrays["x"], arrays["y"].astype(np.int64)
    class_names = tuple(str(name) for name in arrays.get("classes", np.arange(labels.max(initial=-1) + 1)))
    if labels.size and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(
            f"npz:{path}: labels y run from {labels.min()} to {labels.max()}, "
            f"they must lie in [0, {len(class_names)}), the number of classes"
        )
    held_out = arrays.get("val", _held_out(len(images)))
    chosen = held_out if split == "validation" else ~held_out
    return ArraySource(images[chosen], labels[chosen], class_names)


def _check_npz_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    missing = sorted({"x", "y"} - arrays.keys())
    if missing:
        raise ValueError(f"npz:{path} lacks {missing}: it must hold images x (n, h, w, 3) and labels y (n,)")
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
            raise ValueError(f"npz:{path}: {key} must be {expected}, got {array.dtype} {array.shape}")


def _load_folder(root: Path, split: str) -> FileSource:
    """PATH/train with PATH/val (or PATH/validation), otherwise PATH/<class>/<images> with some held out."""
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{root}: there is no such folder")
    validation_roots = [root / name for name in ("val", "validation") if (root / name).is_dir()]
    if (root / "train").is_dir() and validation_roots:
        class_names = _folder_names(root / "train")
        split_root = root / "train" if split == "train" else validation_roots[0]
        unknown = sorted(set(_folder_names(split_root)) - set(class_names))
        if unknown:
            raise ValueError(f"{split_root} has classes that {root / 'train'} lacks: {unknown[:5]}")
        # A class may be absent from the validation images.
        folders = {name: split_root / name for name in class_names}
        files = {name: _image_files(path) if path.is_dir() else [] for name, path in folders.items()}
    else:
        class_names = _folder_names(root)
        files = {name: _split_files(_image_files(root / name), split) for name in class_names}
    return FileSource(
        paths=tuple(path for name in class_names for path in files[name]),
        labels=tuple(label for label, name in enumerate(class_names) for _ in files[name]),
        class_names=class_names,
    )


def _folder_names(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        raise ValueError(f"{root} has no class folders: the layout is {root}/<class>/<image files>")
    return names


def _image_files(folder: Path) -> list[str]:
    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"class folder {folder} holds no image files ({', '.join(_IMAGE_SUFFIXES)})")
    return paths


def _split_files(paths: list[str], split: str) -> list[str]:
    held_out = _held_out(len(paths))
    return [path for path, held in zip(paths, held_out, strict=True) if held == (split == "validation")]


def _load_tfds(name: str, split: str) -> EncodedSource:
    # Only this kind of source needs tfds, which takes a while to import.
    import tensorflow_datasets as tfds

    # Image files are decoded here: without TensorFlow, tfds leaves greyscale and CMYK ones as they are.
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        splits = tfds.data_source(name, download=False, decoders=decoders)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(f"tfds:{name}: tensorflow_datasets knows no dataset of this name") from None
    if not splits:
        raise FileNotFoundError(_how_to_prepare(name, tfds.core.constants.DATA_DIR))
    tfds_split = "test" if split == "validation" and "validation" not in splits else split
    if tfds_split not in splits:
        raise ValueError(f"tfds:{name} has no {tfds_split} split, it has {sorted(splits)}")
    records = splits[tfds_split]
    features = dict(records.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise ValueError(f"tfds:{name} must have an image and a class label, it has {sorted(features)}")
    return EncodedSource(records, tuple(label.names))


def _how_to_prepare(name: str, data_dir: str) -> str:
    imagenet_step = "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into manual_dir, then "
    return (
        f"tfds:{name} is not prepared in {data_dir} (set TFDS_DATA_DIR if it lies elsewhere): "
        f"{imagenet_step if name.startswith('imagenet2012') else ''}run "
        f'tfds.builder("{name}", file_format="array_record").download_and_prepare() '
        "on a machine with tensorflow (manual_dir is downloads/manual in the data folder)"
    )

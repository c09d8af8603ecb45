"""Image sources: labelled images with random access; `load(spec, split, settings)` opens every kind.

| spec                | what it reads                                                                        |
|---------------------|--------------------------------------------------------------------------------------|
| `photos`            | the photographs inside the scikit-image wheel, one class each; nothing is downloaded |
| `npz:PATH`          | arrays `x` and `y` (or `arr_0` and `arr_1`), optionally `classes` and `val`          |
| `folder:PATH`       | the ImageFolder layout; files that cannot be read are listed and skipped             |
| `array_record:PATH` | the files that `--mode=convert` wrote                                                |
| `tfds:NAME`         | a prepared TensorFlow Dataset, read without TensorFlow                               |

The last two are also read from a bucket: `array_record:gs://BUCKET/FOLDER`, or `TFDS_DATA_DIR=gs://BUCKET/FOLDER`.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from refocus_jax.data import array_records, folders, images, manifest, notices, npz
from refocus_jax.runtime import bucket, extras

SPLITS = ("train", "validation")

# If a source does not say which images are for validation, every tenth image is held out.
_HELD_OUT_PERIOD = 10

# Each class of a model has an embedding: a label above this is not a class, but a damaged number.
MAX_CLASSES = 100_000
# If a larger share of the classes had no image, the labels would hardly be class numbers.
_MAX_EMPTY_SHARE = 0.5


class Record(TypedDict):
    """One labelled image.

    Attributes:
      image: uint8 RGB (h, w, 3).
      label: Index into the `class_names` of the source.
    """

    image: np.ndarray
    label: int


class Source(Protocol):
    """A random-access sequence of records, in the form that `grain.MapDataset.source` takes.

    Attributes:
      class_names: Names of the classes, by label.
      fingerprint: A digest of everything that determines the records and their order. Sources with equal fingerprints
        have equal records.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines the records and their order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """How a source is read: the settings `data.<name>` of a config.

    Attributes:
      num_classes: Number of classes; None takes as many as the source has. It must be given for an `.npz` file without
        class names in which most classes are empty.
      class_depth: Depth of a class in a folder, see `folders.arrange`.
      max_unreadable: Share of a folder's images that may be skipped, see `manifest.check`.
      sixteen_bit_max: The value that is white in 16-bit images that do not declare it, see `images.SixteenBits`. With
        0, a folder takes the white level of the fewest of 8, 10, 12, 14 or 16 bits that hold all values, and other
        sources refuse such images.
    """

    num_classes: int | None = None
    class_depth: int = 0
    max_unreadable: float = 0.01
    sixteen_bit_max: int = 0


def load(spec: str, split: str, settings: SourceSettings = SourceSettings()) -> Source:
    """Open one split of a source.

    Args:
      spec: `photos`, `npz:PATH`, `folder:PATH`, `array_record:PATH` or `tfds:NAME`.
      split: `train` or `validation`. Both splits of a source have the same `class_names`.
      settings: How the source is read.

    Returns:
      The images of the split.

    Raises:
      ValueError: If the kind or the split is unknown, if the data are damaged or malformed, or if the split has no
        images.
      FileNotFoundError: If the data do not exist.
      ImportError: If the source is `tfds:NAME` and tensorflow-datasets is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return _split_of(spec, _open(spec, settings), split)


def load_splits(spec: str, settings: SourceSettings = SourceSettings()) -> tuple[Source, ...]:
    """Open a source once and return all of its `SPLITS`; otherwise the same as `load`."""
    opened = _open(spec, settings)
    return tuple(_split_of(spec, opened, split) for split in SPLITS)


def _split_of(spec: str, opened: Callable[[str], Source], split: str) -> Source:
    source = opened(split)
    if len(source) == 0:
        raise ValueError(
            f"data.source is {spec!r}, which has no {split} images; give it explicit splits that have some, or at "
            f"least {_HELD_OUT_PERIOD} images (per class, in a folder), of which every {_HELD_OUT_PERIOD}th is held out"
        )
    return source


def _open(spec: str, settings: SourceSettings) -> Callable[[str], Source]:
    """Return a function from the name of a split to the split of a source."""
    kind, _, argument = spec.partition(":")
    if kind in ("npz", "folder", "array_record", "tfds") and not argument:
        argument = "NAME" if kind == "tfds" else "PATH"
        raise ValueError(f"data.source is {spec!r}, which names no data; write {kind}:{argument}")
    if spec == "photos":
        return _load_photographs
    if kind == "npz":
        return _open_npz(Path(argument).expanduser(), settings)
    if kind == "folder":
        return _open_folder(Path(argument).expanduser(), settings)
    if kind == "array_record":
        return _open_array_record(bucket.open_data(os.path.expanduser(argument)), settings)
    if kind == "tfds":
        return _open_tfds(argument, settings)
    raise ValueError(f"data.source is {spec!r}, which is unknown; use photos, npz:PATH, folder:PATH, "
                     "array_record:PATH or tfds:NAME")


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that are already decoded: uint8 (h, w, 3) each, not necessarily all of the same size."""

    images: Sequence[np.ndarray] = dataclasses.field(repr=False)
    labels: Sequence[int] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.images[index], "label": int(self.labels[index])}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the class names, the labels and the pixels."""
        digest = _digest(self.class_names, np.asarray(self.labels, np.int64).tolist())
        for image_hwc in self.images:
            digest.update(f"{image_hwc.shape}".encode() + np.ascontiguousarray(image_hwc).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, decoded when accessed; `sixteen_bit_max` as for `images.decode_rgb`."""

    paths: Sequence[str] = dataclasses.field(repr=False)
    labels: Sequence[int] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    fingerprint: str
    sixteen_bit_max: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        path = self.paths[index]
        with open(path, "rb") as file:
            image_hwc = images.decode_rgb(file, folders.shown(path), self.sixteen_bit_max)
        return {"image": image_hwc, "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSource:
    """Records whose `image` is the bytes of an image file, decoded when accessed.

    `chosen` holds the numbers of the records that are elements, in their order; None takes all.
    """

    name: str
    records: Sequence[dict] | array_records.Records = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    fingerprint: str
    sixteen_bit_max: int = 0
    chosen: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.records if self.chosen is None else self.chosen)

    def __getitem__(self, index: int) -> Record:
        index = index if self.chosen is None else int(self.chosen[index])
        where = f"record {index} of {self.name}"
        try:
            record = self.records[index]
        except RuntimeError as error:  # ArrayRecord verifies the bytes that it reads
            raise ValueError(f"{where} is damaged ({error}); copy the dataset again, or prepare it again") from error
        label = int(record["label"])
        if not 0 <= label < len(self.class_names):
            raise ValueError(f"{where} has label {label}; use a dataset with labels in [0, {len(self.class_names)})")
        return {"image": images.decode_rgb(io.BytesIO(record["image"]), where, self.sixteen_bit_max), "label": label}


def _digest(*content: Any) -> Any:
    """Return a BLAKE2 hash object, updated with the content as JSON."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16)


def _held_out(count: int) -> np.ndarray:
    """Return which of `count` images are held out, bool (count,)."""
    return np.arange(count) % _HELD_OUT_PERIOD == _HELD_OUT_PERIOD - 1


def _every_tenth(count: int, split: str) -> np.ndarray:
    """Return the numbers of the records of a split if every tenth of `count` is held out."""
    held_out = _held_out(count)
    return np.flatnonzero(held_out if split == "validation" else ~held_out)


# These are left out: drawings and text, the second view of the motorcycle, and two nearly empty images (cell, clock).
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

# The square inside the round field of view of the retina image, which is black outside of it.
_RETINA_SQUARE = slice(225, 1185)


def photograph_columns(width: int, split: str) -> slice:
    """Return the pixel columns of a photograph in a split: the right quarter (at least 96) is for validation."""
    boundary = width - max(width // 4, 96)
    return slice(0, boundary) if split == "train" else slice(boundary, width)


def read_photograph(class_name: str) -> np.ndarray:
    """Read one of `PHOTOGRAPHS` from the installed scikit-image, uint8 (h, w, 3)."""
    file = importlib.resources.files("skimage") / "data" / PHOTOGRAPHS[class_name]
    if not file.is_file():
        raise FileNotFoundError(f"the installed scikit-image does not ship {file.name}; install version 0.26")
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


# ADM's names of images and labels; --mode=sample writes them with these names.
_ADM_NAMES = {"arr_0": "x", "arr_1": "y"}


def _open_npz(path: Path, settings: SourceSettings) -> Callable[[str], ArraySource]:
    if not path.is_file():
        raise FileNotFoundError(f"data.source is npz:{path}, but there is no such file; correct the path")
    try:
        arrays = npz.read(path, ("x", "y", "classes", "val"))
        read = set(arrays)
        if arrays.keys().isdisjoint({"x", "y"}):
            adm = npz.read(path, _ADM_NAMES)
            read, arrays = read | adm.keys(), arrays | {_ADM_NAMES[name]: array for name, array in adm.items()}
        _check_npz_arrays(arrays, settings.num_classes)
        class_names = _npz_class_names(path, arrays, settings.num_classes)
        if unused := sorted(npz.names(path) - read):
            notices.say(f"data.source npz:{path}: arrays {', '.join(unused)} are not used; only x, y, classes and val "
                        "are")
    except ValueError as error:
        raise ValueError(f"data.source is npz:{path}, which cannot be used: {error}") from error
    labels = arrays["y"].astype(np.int64)
    held_out = arrays.get("val", _held_out(len(labels)))

    def opened(split: str) -> ArraySource:
        chosen = held_out if split == "validation" else ~held_out
        return ArraySource(arrays["x"][chosen], labels[chosen], class_names)

    return opened


def _npz_class_names(path: Path, arrays: dict[str, np.ndarray], num_classes: int | None) -> tuple[str, ...]:
    """Return the given class names, or numbers. Log how many classes are empty; refuse labels if most would be."""
    used = set(arrays["y"].tolist())
    number = num_classes or max(used, default=-1) + 1
    names = tuple(folders.shown(str(name)) for name in arrays.get("classes", range(number)))
    if len(used) < len(names):
        found = f"of {len(names)} classes, {len(names) - len(used)} have no image"
        counted = "classes" not in arrays and num_classes is None
        if counted and len(names) - len(used) > _MAX_EMPTY_SHARE * len(names):
            raise ValueError(f"{found}, because the labels y run to {number - 1}; number the classes from 0 without "
                             f"gaps, or set data.num_classes={number} if this is intended")
        notices.say(f"data.source npz:{path}: {found}")
    return names


def _check_npz_arrays(arrays: dict[str, np.ndarray], num_classes: int | None) -> None:
    missing = sorted({"x", "y"} - arrays.keys())
    if missing:
        raise ValueError(f"it lacks {missing}; give images x (n, h, w, 3) and labels y (n,)")
    count = arrays["x"].shape[:1]
    rules = {
        "x": ("uint8 (n, h, w, 3)", lambda x: x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] == 3),
        "y": ("integers (n,)", lambda y: y.dtype.kind in "iu" and y.shape == count),
        "classes": ("strings (k,), all different", lambda classes: classes.dtype.kind == "U" and classes.ndim == 1
                    and len(set(classes.tolist())) == len(classes)),
        "val": ("bool (n,)", lambda val: val.dtype == np.bool_ and val.shape == count),
    }
    for key, array in arrays.items():
        expected, holds = rules[key]
        if not holds(array):
            raise ValueError(f"{key} must be {expected}, got {array.dtype} {array.shape}")
    images.check_size(*arrays["x"].shape[1:3])
    labels = arrays["y"]
    if "classes" in arrays:
        class_count, origin = len(arrays["classes"]), "the number of classes"
    elif num_classes is not None:
        class_count, origin = num_classes, "by data.num_classes; correct one of them"
    else:
        class_count, origin = MAX_CLASSES, "if no classes are given"
    if labels.size and not 0 <= labels.min() <= labels.max() < class_count:
        raise ValueError(f"labels y run from {labels.min()} to {labels.max()}, they must lie in [0, {class_count}), "
                         f"{origin}")


def _open_folder(root: Path, settings: SourceSettings) -> Callable[[str], FileSource]:
    """Open a folder: every file is counted, and files that are left out are logged.

    Which images are held out depends on the names of all images, not on which of them can be read.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.source is folder:{root}, but there is no such folder; correct the path")
    layout = folders.arrange(root, folders.walk(root), settings.class_depth)
    names = [name for member in layout.members for name in member.images]
    sound = manifest.check(root, names, layout.left_out, settings.max_unreadable)
    for member in layout.members:
        if sound.keys().isdisjoint(member.images):
            raise ValueError(f"data.source is folder:{root}: no image in {folders.shown(str(root / member.path))} can "
                             "be read; repair the images or remove the class")
    folders.report(f"data.source folder:{root}", len(sound), layout.left_out)
    sixteen_bits = {folders.shown(name): entry.sixteen_bits for name, entry in sound.items() if entry.sixteen_bits}
    sixteen_bit_max = images.choose_white(f"data.source folder:{root}", sixteen_bits, settings.sixteen_bit_max)

    def opened(split: str) -> FileSource:
        chosen = [(name, member.label) for member in layout.members for name in _images_of(member, split)
                  if name in sound]
        return FileSource(
            [str(root / name) for name, _ in chosen], [label for _, label in chosen], layout.class_names,
            _digest(layout.class_names, sixteen_bit_max,
                    [(name, sound[name].digest, label) for name, label in chosen]).hexdigest(), sixteen_bit_max)

    return opened


def _images_of(member: folders.ClassFolder, split: str) -> Sequence[str]:
    if member.split is not None:
        return member.images if member.split == split else ()
    held_out = _held_out(len(member.images))
    return [name for name, held in zip(member.images, held_out, strict=True) if held == (split == "validation")]


def _open_array_record(directory: Path, settings: SourceSettings) -> Callable[[str], EncodedSource]:
    """Open what `--mode=convert` wrote. If it has no validation files, every tenth record is held out."""
    place, index = f"array_record:{bucket.address(directory)}", array_records.Index.read(directory)
    sixteen_bits = {name: found for shards in index.splits.values() for shard in shards
                    for name, found in shard.sixteen_bits.items()}
    sixteen_bit_max = images.choose_white(f"data.source {place}", sixteen_bits, settings.sixteen_bit_max)

    def opened(split: str) -> EncodedSource:
        shards, chosen = index.splits.get(split, ()), None
        if "validation" not in index.splits:
            shards = index.splits["train"]
            chosen = _every_tenth(sum(shard.images for shard in shards), split)
        fingerprint = _digest(index.class_names, sixteen_bit_max, [shard.digest for shard in shards],
                              None if chosen is None else split).hexdigest()
        return EncodedSource(place, array_records.Records(directory, shards), index.class_names, fingerprint,
                             sixteen_bit_max, chosen)

    return opened


def _open_tfds(name: str, settings: SourceSettings) -> Callable[[str], EncodedSource]:
    extras.require(f"data.source is 'tfds:{name}', which", "tfds", {"tensorflow_datasets": "tensorflow-datasets"})
    # Only this kind of source needs tfds, and importing it is slow.
    import tensorflow_datasets as tfds

    data_dir = tfds.core.constants.DATA_DIR
    if bucket.is_url(data_dir):
        if not bucket.is_address(data_dir):
            raise ValueError(f"data.source is tfds:{name}, and TFDS_DATA_DIR is {data_dir}; give gs://BUCKET/FOLDER, "
                             "or a folder (other buckets can be mounted)")
        bucket.list_files(data_dir)  # tfds and ArrayRecord would wait for a bucket that does not answer
    # This package decodes the image files: without TensorFlow, tfds would not convert greyscale and CMYK images.
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        splits = tfds.data_source(name, download=False, decoders=decoders)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(f"data.source is tfds:{name}, but tensorflow_datasets knows no dataset of this name") from None
    except Exception as error:  # a malformed name, an unknown version or configuration, files in another format
        raise ValueError(
            f"data.source is tfds:{name}, which cannot be opened: {error}\nGive tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION of a dataset that is prepared in array_record format"
        ) from error
    if not splits:
        raise FileNotFoundError(_how_to_prepare(name, data_dir))
    return functools.partial(_tfds_split, name, splits, settings)


def _tfds_split(name: str, splits: dict[str, Any], settings: SourceSettings, split: str) -> EncodedSource:
    import tensorflow_datasets as tfds

    held_out = next((known for known in ("validation", "test") if known in splits), None)
    tfds_split = held_out if held_out and split == "validation" else "train"
    if tfds_split not in splits:
        raise ValueError(f"data.source is tfds:{name}, which has no {tfds_split} split but {sorted(splits)}; "
                         "use another dataset")
    records = splits[tfds_split]
    features = dict(records.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise ValueError(
            f"data.source is tfds:{name}, which has {sorted(features)}; use a dataset with an image and a class label"
        )
    # Version and shards distinguish one preparation of the dataset from another. ArrayRecord verifies its bytes
    # whenever it reads them, so damaged data are not mistaken for the same data.
    info = records.dataset_info.splits[tfds_split]
    place = str(records.dataset_info.data_dir)
    sizes = bucket.list_files(place)
    if missing := [file for file in info.filenames if file not in sizes]:
        raise FileNotFoundError(f"data.source is tfds:{name}, of which {place}/{missing[0]} is missing; copy all of "
                                "its files there, or prepare it again")
    shards = [(file, sizes[file]) for file in info.filenames]
    chosen = None if held_out else _every_tenth(len(records), split)
    fingerprint = _digest(records.dataset_info.full_name, tfds_split, info.shard_lengths, info.num_bytes, shards,
                          label.names, settings.sixteen_bit_max, *([] if held_out else [split])).hexdigest()
    return EncodedSource(f"tfds:{name}", records, tuple(label.names), fingerprint, settings.sixteen_bit_max, chosen)


def _how_to_prepare(name: str, data_dir: str) -> str:
    imagenet = name.startswith("imagenet2012")
    imagenet_step = "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into manual_dir, then "
    return (
        f"data.source is tfds:{name}, which is not prepared in {data_dir} (set TFDS_DATA_DIR if it lies elsewhere): "
        f"{imagenet_step if imagenet else ''}run "
        f'tfds.builder("{name}", file_format="array_record").download_and_prepare() '
        "on a machine with tensorflow (manual_dir is downloads/manual in the data folder)"
        f"{'; or give array_record:PATH, see docs/how_to/imagenet.md, which needs no tensorflow' if imagenet else ''}"
    )

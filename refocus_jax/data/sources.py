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

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from refocus_jax.data import array_records, folders, images, manifest, notices, npz, photographs, records, tfds
from refocus_jax.data.records import ArraySource, EncodedSource, FileSource, Source, SourceSettings
from refocus_jax.runtime import bucket

SPLITS = ("train", "validation")

# Each class of a model has an embedding: a label above this is not a class, but a damaged number.
MAX_CLASSES = 100_000
# If a larger share of the classes had no image, the labels would hardly be class numbers.
_MAX_EMPTY_SHARE = 0.5


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
        period = records.HELD_OUT_PERIOD
        raise ValueError(f"data.source is {spec!r}, which has no {split} images; give it explicit splits that have "
                         f"some, or at least {period} images (per class, in a folder), of which every {period}th is "
                         "held out")
    return source


def _open(spec: str, settings: SourceSettings) -> Callable[[str], Source]:
    """Return a function from the name of a split to the split of a source."""
    kind, _, argument = spec.partition(":")
    if kind in ("npz", "folder", "array_record", "tfds") and not argument:
        argument = "NAME" if kind == "tfds" else "PATH"
        raise ValueError(f"data.source is {spec!r}, which names no data; write {kind}:{argument}")
    if spec == "photos":
        return photographs.load
    if kind == "npz":
        return _open_npz(Path(argument).expanduser(), settings)
    if kind == "folder":
        return _open_folder(Path(argument).expanduser(), settings)
    if kind == "array_record":
        return _open_array_record(bucket.open_data(os.path.expanduser(argument)), settings)
    if kind == "tfds":
        return tfds.open_dataset(argument, settings)
    raise ValueError(f"data.source is {spec!r}, which is unknown; use photos, npz:PATH, folder:PATH, "
                     "array_record:PATH or tfds:NAME")


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
    held_out = arrays.get("val", records.held_out(len(labels)))

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
            records.digest(layout.class_names, sixteen_bit_max,
                    [(name, sound[name].digest, label) for name, label in chosen]).hexdigest(), sixteen_bit_max)

    return opened


def _images_of(member: folders.ClassFolder, split: str) -> Sequence[str]:
    if member.split is not None:
        return member.images if member.split == split else ()
    held_out = records.held_out(len(member.images))
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
            chosen = records.every_tenth(sum(shard.images for shard in shards), split)
        fingerprint = records.digest(index.class_names, sixteen_bit_max, [shard.digest for shard in shards],
                              None if chosen is None else split).hexdigest()
        return EncodedSource(place, array_records.Records(directory, shards), index.class_names, fingerprint,
                             sixteen_bit_max, chosen)

    return opened



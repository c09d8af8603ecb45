"""Labelled image files that other programs packed: what a reader yields, and which file is which split."""

import dataclasses
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from refocus_jax.data import notices
from refocus_jax.data.folders import SPLIT_NAMES, shown

_NAMED = 3  # how many files a message names


class LabelledFile(NamedTuple):
    """An image file with its label.

    Attributes:
      name: Where it comes from, for messages.
      content: The bytes of the file.
      label: Number of the class.
    """

    name: str
    content: bytes
    label: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a collection that is read from its start to its end, such as one packed file.

    Attributes:
      name: Its name in the collection.
      stamp: With the name, it tells one part from another: the size of its file in bytes, or a digest.
      read: Yields the images in their order; raises a ValueError that names the file if it is damaged.
    """

    name: str
    stamp: int | str
    read: Callable[[], Iterator[LabelledFile]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """Labelled image files in parts.

    Attributes:
      class_names: Names of the classes, by label; None if they have only numbers.
      splits: The parts of "train" and, if the collection has them, of "validation".
    """

    class_names: tuple[str, ...] | None
    splits: Mapping[str, Sequence[Part]]

    @property
    def digest(self) -> str:
        """A digest that tells this collection from others, wherever it lies."""
        parts = {split: [(part.name, part.stamp) for part in parts] for split, parts in self.splits.items()}
        return hashlib.blake2b(json.dumps([self.class_names, parts]).encode(), digest_size=16).hexdigest()


def find(spec: str, suffix: str) -> dict[str, dict[str, Path]]:
    """Find the packed files of a collection and their splits.

    The split is a word in the name of the file or, if there is none, in the name of a folder above it: train, val,
    validation, test and so on, see `folders.SPLIT_NAMES`. Without such words, all files are for training. Test files
    serve as validation if there are no others; else they are ignored, which is logged.

    Args:
      spec: KIND:PATH, with the path of a file, or of a folder that holds such files at any depth.
      suffix: Suffix of the files.

    Returns:
      For each split, its files by their names relative to the folder, sorted.

    Raises:
      FileNotFoundError: If there are no such files.
      ValueError: If the names do not say which file is which split, or if a file of NAME-00000-of-00010 is missing.
    """
    place, root = f"convert.source is {spec}", Path(spec.partition(":")[2]).expanduser()
    if root.is_dir():
        files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob(f"*{suffix}"))
                 if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)}
    else:
        files = {root.name: root} if root.is_file() and root.suffix == suffix else {}
    if not files:
        raise FileNotFoundError(f"{place}, where there is no {suffix} file; correct the path")
    _check_numbers(place, list(files))
    splits: defaultdict[str | None, dict[str, Path]] = defaultdict(dict)
    for name, path in files.items():
        splits[_split_of(name)][name] = path
    if splits.keys() == {None}:
        return {"train": splits[None]}
    if None in splits or "train" not in splits:
        problem = f"{_some(splits[None])} belong to no split" if None in splits else "no file is for training"
        raise ValueError(f"{place}: {problem}; give the files names with train and validation in them, or put them "
                         "into folders of these names")
    if test := splits.pop("test", None):
        unused = "validation" in splits
        notices.say(f"{place}: {_some(test)}, named test, {'are ignored' if unused else 'serve as validation'}")
        if not unused:
            splits["validation"] = test
    return {split: splits[split] for split in ("train", "validation") if split in splits}


def _split_of(name: str) -> str | None:
    for part in reversed(PurePosixPath(name).parts):
        for word in re.findall("[a-z]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def _check_numbers(place: str, names: Sequence[str]) -> None:
    """Raise a ValueError if names that count, such as train-00000-of-00002, show that a file is missing."""
    numbers: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for name in names:
        if match := re.match(r"(.*-)(\d+)-of-(\d+)", name):
            numbers[match[1], int(match[3])].add(int(match[2]))
    for (prefix, count), found in numbers.items():
        if missing := [f"{prefix}{number:05d}-of-{count:05d}" for number in range(count) if number not in found]:
            raise ValueError(f"{place}, where {len(missing)} of {count} files are missing ({_some(missing)}); download "
                             "them too")


def _some(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join([*map(shown, list(names)[:_NAMED]), *["..."] * (len(names) > _NAMED)])

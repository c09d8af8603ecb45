"""Labelled images with random access: what every kind of source yields, and how its images are held out."""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

from refocus_jax.data import array_records, folders, images

# If a source does not say which images are for validation, every tenth image is held out.
HELD_OUT_PERIOD = 10


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
        hashed = digest(self.class_names, np.asarray(self.labels, np.int64).tolist())
        for image_hwc in self.images:
            hashed.update(f"{image_hwc.shape}".encode() + np.ascontiguousarray(image_hwc).tobytes())
        return hashed.hexdigest()


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


def digest(*content: Any) -> Any:
    """Return a BLAKE2 hash object, updated with the content as JSON."""
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16)


def held_out(count: int) -> np.ndarray:
    """Return which of `count` images are held out, bool (count,)."""
    return np.arange(count) % HELD_OUT_PERIOD == HELD_OUT_PERIOD - 1


def every_tenth(count: int, split: str) -> np.ndarray:
    """Return the numbers of the records of a split if every tenth of `count` is held out."""
    held = held_out(count)
    return np.flatnonzero(held if split == "validation" else ~held)

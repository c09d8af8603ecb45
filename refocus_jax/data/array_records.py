"""Image files with their labels, packed as ArrayRecord: `--mode=convert` writes them, `array_record:PATH` reads them.

A folder holds `train-00000-of-00294.array_record` ..., perhaps `validation-00000-of-00014.array_record` ..., and
`images.json`, the index, which is written when all of them are there. A record is one image: its label (uint32,
little-endian), then the bytes of its file, unchanged.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource  # grain's is slow to import
from array_record.python.array_record_module import ArrayRecordWriter

from refocus_jax.data.images import SixteenBits
from refocus_jax.runtime import bucket
from refocus_jax.runtime.files import atomically, read_json

FORMAT_VERSION = 1
COMPLETE, PARTIAL = "images.json", "images.partial.json"
_LABEL_BYTES = 4
# Random access needs groups of one record, and image files are compressed already.
_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of records.

    Attributes:
      name: Its name.
      origin: Name of the part of the collection that it was converted from.
      images: Number of records.
      size: Size of the file in bytes.
      digest: BLAKE2 of all records.
      largest_label: The largest label; -1 if there are no records.
      sixteen_bits: 16-bit images by their names in the collection, see `images.SixteenBits`.
      skipped: Images of the part that were left out, and why.
    """

    name: str
    origin: str
    images: int
    size: int
    digest: str
    largest_label: int
    sixteen_bits: dict[str, SixteenBits]
    skipped: tuple[str, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return what `dataclasses.asdict` described; raise a TypeError or ValueError if it is something else."""
        return cls(**dict(content) | {
            "skipped": tuple(content["skipped"]),
            "sixteen_bits": {name: SixteenBits(*found) for name, found in content["sixteen_bits"].items()}})


class Written(NamedTuple):
    """What `write` has written: the number of records, the size of the file in bytes, and BLAKE2 of all records."""

    images: int
    size: int
    digest: str


def pack(content: bytes, label: int) -> bytes:
    """Return the record of an image file."""
    return label.to_bytes(_LABEL_BYTES, "little") + content


def write(path: Path, records: Iterable[bytes]) -> Written:
    """Write a file of records, which is complete or does not exist.

    Raises:
      OSError: If it cannot be written.
    """
    count, digest = 0, hashlib.blake2b(digest_size=16)
    with atomically(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        try:
            for record in records:
                writer.write(record)
                digest.update(record)
                count += 1
        finally:
            try:
                writer.close()  # says what went wrong before
            except RuntimeError as error:
                raise OSError(str(error)) from error
        size = temporary.stat().st_size
    bucket.send(path)
    return Written(count, size, digest.hexdigest())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """The content of a folder.

    Attributes:
      source: Digest of the collection that it was converted from, see `shards.Collection`.
      class_names: Names of the classes, by label.
      splits: The files of "train" and, if there are some, of "validation".
    """

    source: str
    class_names: tuple[str, ...]
    splits: dict[str, tuple[Shard, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `images.json`."""
        return {"format_version": FORMAT_VERSION} | dataclasses.asdict(self)

    @classmethod
    def find(cls, directory: Path) -> Self | None:
        """Read the index of a folder, without a look at its files; return None if there is none.

        Raises:
          ValueError: If it is damaged or has another format.
        """
        path = directory / COMPLETE
        content = read_json(path, ["format_version"])
        if content is None:
            return None
        check_version(path, content)
        try:
            return cls(source=content["source"], class_names=tuple(content["class_names"]),
                       splits={split: tuple(map(Shard.from_json, shards))
                               for split, shards in content["splits"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{bucket.address(path)} is damaged ({error!r}); remove it, and convert the images again "
                             "(--mode=convert)") from error

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the index of a folder that is complete.

        Raises:
          FileNotFoundError: If there is none.
          ValueError: If it is damaged or has another format, or if a file of records is missing or has another size.
        """
        index = cls.find(directory)
        if index is None:
            begun = "only the beginning of a conversion" if (directory / PARTIAL).exists() else f"no {COMPLETE}"
            place = bucket.address(directory)
            raise FileNotFoundError(f"data.source is array_record:{place}, where there is {begun}; make it by "
                                    f"--mode=convert with convert.output={place}, or correct the path")
        sizes = bucket.sizes(directory)
        for shards in index.splits.values():
            for shard in shards:
                if sizes.get(shard.name) != shard.size:
                    raise damaged(bucket.address(directory / shard.name), f"it should have {shard.size} bytes")
        return index


def check_version(path: Path, content: Mapping[str, Any]) -> None:
    """Raise a ValueError if an index has another format than this program reads."""
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{bucket.address(path)} has format {content['format_version']}, and this program reads "
                         f"{FORMAT_VERSION}; convert the images again (--mode=convert) into an empty folder")


def damaged(path: str, reason: object) -> ValueError:
    """Return the error for a file of records that is missing or damaged."""
    return ValueError(f"{path} is missing or damaged ({reason}); remove it and make it again: give the command of "
                      "--mode=convert that made it")


class Records:
    """Random access to the records of several files: element i is `{"image": bytes, "label": int}`.

    Args:
      directory: The folder.
      shards: The files.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]):
        shards = [shard for shard in shards if shard.images]
        place = bucket.address(directory)
        self._paths = [f"{place}/{shard.name}" for shard in shards]
        self._ends = np.cumsum([shard.images for shard in shards])
        self._records = ArrayRecordDataSource(
            [f"{path}[0:{shard.images}]" for path, shard in zip(self._paths, shards, strict=True)]) if shards else ()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._records[index]
        except RuntimeError as error:  # ArrayRecord verifies the bytes that it reads
            raise damaged(self._paths[np.searchsorted(self._ends, index, side="right")], error) from error
        return {"image": record[_LABEL_BYTES:], "label": int.from_bytes(record[:_LABEL_BYTES], "little")}

"""Parquet files with a column of images and one of labels, such as those in which hubs of data sets keep ImageNet."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refocus_jax.data import shards
from refocus_jax.data.shards import Collection, LabelledFile, Part
from refocus_jax.runtime import extras

_ROWS = 64  # that are in memory at a time, besides those of the file's own row group


def open_collection(spec: str) -> Collection:
    """Open a Parquet file, or a folder of them; see `shards.find` for the splits.

    The column `image`, or the only one that the metadata declare an image, holds the bytes of image files, plainly or
    as the field `bytes` of a struct. The column `label`, or the only one that is declared a class label, holds the
    numbers of the classes. The names of the classes are in the metadata `huggingface`, if there are some.

    Args:
      spec: parquet:PATH.

    Returns:
      A collection with one part per file.

    Raises:
      FileNotFoundError: If there are no such files.
      ValueError: If a file is damaged, lacks these columns, or has other classes than the first.
      ImportError: If pyarrow is not installed.
    """
    extras.require(f"convert.source is {spec!r}, which", "convert", {"pyarrow": "pyarrow"})
    class_names: dict[tuple[str, ...] | None, Path] = {}
    splits: dict[str, list[Part]] = {}
    for split, files in shards.find(spec, ".parquet").items():
        splits[split] = []
        for name, path in files.items():
            image, label, names = _columns(path)
            class_names.setdefault(names, path)
            read = functools.partial(_read, path, name, image, label)
            splits[split].append(Part(name=name, stamp=path.stat().st_size, read=read))
    if len(class_names) > 1:
        first, second, *_ = class_names.values()
        raise ValueError(f"convert.source is {spec}: {second} names other classes than {first}; give files of one data "
                         "set")
    return Collection(class_names=next(iter(class_names)), splits=splits)


def _columns(path: Path) -> tuple[str, str, tuple[str, ...] | None]:
    """Return the paths of the columns with the bytes of the images and the labels, and the names of the classes."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    features = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info", {}).get("features", {})

    def column(name: str, kind: str) -> str:
        declared = [found for found, feature in features.items() if feature.get("_type") == kind]
        if name not in schema.names and len(declared) != 1:
            raise ValueError(f"convert.source: {path} has the columns {', '.join(schema.names)}; give files with a "
                             f"column {name}, or with one that is declared as {kind}")
        return name if name in schema.names else declared[0]

    image, label = column("image", "Image"), column("label", "ClassLabel")
    stored, number = schema.field(image).type, schema.field(label).type
    if pa.types.is_struct(stored) and stored.get_field_index("bytes") >= 0:
        image, stored = f"{image}.bytes", stored.field("bytes").type
    if not (pa.types.is_binary(stored) or pa.types.is_large_binary(stored)) or not pa.types.is_integer(number):
        raise ValueError(f"convert.source: {path} has {image} of type {stored} and {label} of type {number}; give "
                         "files with the bytes of image files and with numbers of classes")
    names = features.get(label, {}).get("names")
    return image, label, names and tuple(names)


def _read(path: Path, name: str, image: str, label: str) -> Iterator[LabelledFile]:
    import pyarrow as pa
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_ROWS, columns=[image, label], use_threads=False):
                found: Any = batch.column(image.partition(".")[0])
                contents = found.field("bytes") if pa.types.is_struct(found.type) else found
                for content, number in zip(contents.to_pylist(), batch.column(label).to_pylist(), strict=True):
                    yield LabelledFile(f"{name}, row {row}", content or b"", -1 if number is None else number)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())  # in one line
    return ValueError(f"convert.source: {path} cannot be read ({reason}); download it again")

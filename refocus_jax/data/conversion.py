"""Converts collections of labelled image files to ArrayRecord, for `--mode=convert`; no image is encoded again.

Every part of a collection becomes one file of records, so the files do not depend on the number of processes, which
share the parts. After an interruption, only the missing files are written.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import jax

from refocus_jax.data import array_records, folders, images, manifest, parquet, sources, tars
from refocus_jax.data.array_records import Index, Shard
from refocus_jax.data.records import FileSource, SourceSettings
from refocus_jax.data.shards import Collection, LabelledFile, Part
from refocus_jax.data.sources import MAX_CLASSES
from refocus_jax.runtime import bucket, processes
from refocus_jax.runtime.files import atomically, read_json, write_json
from refocus_jax.runtime.progress import Progress

_FILES_PER_PART = 4096  # of a folder


def open_collection(spec: str, settings: SourceSettings) -> Collection:
    """Open what `convert.source` names.

    Args:
      spec: parquet:PATH, tar:PATH or folder:PATH.
      settings: How a folder is read.

    Returns:
      The collection; a folder's images have the order that they have as a source.

    Raises:
      ValueError: If the kind is unknown, or if the data are damaged or malformed.
      FileNotFoundError: If there are no such data.
      ImportError: If a package is not installed.
    """
    kind, _, path = spec.partition(":")
    if path and kind == "parquet":
        return parquet.open_collection(spec)
    if path and kind == "tar":
        return tars.open_collection(spec)
    if path and kind == "folder":
        opened = dict(zip(sources.SPLITS, sources.load_splits(spec, settings), strict=True))
        class_names = opened["train"].class_names
        return Collection(class_names=class_names, splits={
            split: _parts(cast(FileSource, source)) for split, source in opened.items()})
    raise ValueError(f"convert.source is {spec!r}; give parquet:PATH, tar:PATH or folder:PATH")


def _parts(source: FileSource) -> list[Part]:
    """Divide the files of a folder into parts."""
    starts = range(0, len(source), _FILES_PER_PART)
    return [Part(name=f"files from {start}", stamp=source.fingerprint,
                 read=functools.partial(_read_files, source, start)) for start in starts]


def _read_files(source: FileSource, start: int) -> Iterator[LabelledFile]:
    for path, label in itertools.islice(zip(source.paths, source.labels, strict=True), start, start + _FILES_PER_PART):
        yield LabelledFile(folders.shown(path), Path(path).read_bytes(), label)


def write(directory: Path, collection: Collection, max_unreadable: float = 0.01) -> Index:
    """Writes the missing files of a folder, and its index; all processes must call it.

    Args:
      directory: The folder.
      collection: What it is converted from.
      max_unreadable: Share of the images that may be skipped, see `manifest.judge`.

    Returns:
      The index of the complete folder.

    Raises:
      ValueError: The folder holds something else, the processes do not see the same collection, or it has too many
        damaged images.
      OSError: A file cannot be written.
    """
    processes.check_same("convert.source", collection.digest)
    _begin(directory, collection)
    parts = {f"{split}-{i:05d}-of-{len(parts):05d}.array_record": part
             for split, parts in collection.splits.items() for i, part in enumerate(parts)}
    done = _finished(directory)
    missing = [name for name in list(parts)[jax.process_index()::jax.process_count()] if name not in done]
    count, began = 0, time.monotonic()
    with Progress(len(missing), 0, "convert", first="reading the first file") as progress:
        for step, name in enumerate(missing, start=1):
            shard = _convert(parts[name], directory / name, collection.class_names)
            facts = _facts_path(directory, name)
            with atomically(facts) as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(shard)), encoding="utf-8")
            bucket.send(facts)
            count += shard.images
            progress.update(step, {"images/s": count / (time.monotonic() - began)})
    processes.barrier(f"files of {bucket.address(directory)}")
    processes.from_first(functools.partial(_finish, directory, collection, list(parts), max_unreadable))
    bucket.refresh(directory)
    return Index.read(directory)


def _begin(directory: Path, collection: Collection) -> None:
    """Describes the folder before its first file is written; raises a ValueError if it holds something else."""
    description = {"format_version": array_records.FORMAT_VERSION, "source": collection.digest}
    for name in (array_records.COMPLETE, array_records.PARTIAL):
        if found := read_json(directory / name, list(description)):
            array_records.check_version(directory / name, found)
            if found["source"] != description["source"]:
                raise ValueError(f"convert.output is {bucket.address(directory)}, which was made from other files, or "
                                 "from files of other sizes. Give the convert.source that made it, remove the folder, "
                                 "or write into another")
    write_json(directory / array_records.PARTIAL, description)
    bucket.publish(directory)


def _facts_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.json"


def _finished(directory: Path) -> dict[str, Shard]:
    """Returns what is known about the files that are there and whole."""
    index = Index.find(directory)
    known = [shard for shards in index.splits.values() for shard in shards] if index else []
    known += map(Shard.from_json, filter(None, map(read_json, directory.glob("*.array_record.json"))))
    sizes = bucket.sizes(directory)
    return {shard.name: shard for shard in known if sizes.get(shard.name) == shard.size}


def _convert(part: Part, path: Path, class_names: tuple[str, ...] | None) -> Shard:
    """Writes the file of one part.

    Raises:
      ValueError: A label is not the number of a class, or no image can be read.
    """
    num_classes = MAX_CLASSES if class_names is None else len(class_names)
    skipped: list[str] = []
    labels: set[int] = set()
    sixteen_bits: dict[str, images.SixteenBits] = {}

    def records() -> Iterator[bytes]:
        for file in part.read():
            if not 0 <= file.label < num_classes:
                raise ValueError(f"convert.source: {file.name} has label {file.label}, and labels must lie in [0, "
                                 f"{num_classes}); remove what has no label, or correct it")
            try:
                found = images.check(file.content, file.name)
            except ValueError as error:
                skipped.append(str(error))
                continue
            labels.add(file.label)
            if found is not None:
                sixteen_bits[file.name] = found
            yield array_records.pack(file.content, file.label)
        if skipped and not labels:
            raise ValueError(f"convert.source: no image of {part.name} can be read ({skipped[0]}); download it again")

    written = array_records.write(path, records())
    return Shard(name=path.name, origin=part.name, largest_label=max(labels, default=-1), sixteen_bits=sixteen_bits,
                 skipped=tuple(skipped), **written._asdict())


def _finish(directory: Path, collection: Collection, names: list[str], max_unreadable: float) -> None:
    """Writes the index and removes what it replaces.

    Raises:
      ValueError: Too many images cannot be read, or a file of another process is missing.
    """
    bucket.refresh(directory)
    done = _finished(directory)
    if lost := [name for name in names if name not in done]:
        raise ValueError(f"{bucket.address(directory / lost[0])} is missing; give all processes the same "
                         "convert.output, on a file system that all of them see, and the command again")
    found = [done[name] for name in names]
    problems = [problem for shard in found for problem in shard.skipped]
    count = sum(shard.images for shard in found) + len(problems)
    if problems:
        manifest.judge(f"convert.source: of {count} images", problems, count, max_unreadable)
    largest = max((shard.largest_label for shard in found), default=-1)
    index = Index(source=collection.digest,
                  class_names=collection.class_names or tuple(map(str, range(largest + 1))),
                  splits={split: tuple(shard for shard in found if shard.name.startswith(f"{split}-"))
                          for split in collection.splits})
    write_json(directory / array_records.COMPLETE, index.to_json())
    for path in (directory / array_records.PARTIAL, *(_facts_path(directory, name) for name in names)):
        path.unlink(missing_ok=True)
    bucket.publish(directory)

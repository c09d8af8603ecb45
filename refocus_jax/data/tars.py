"""Tar files of labelled images: WebDataset's pairs of an image and a label, and ImageNet's tar of one tar per class."""

import contextlib
import functools
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from refocus_jax.data import images, shards
from refocus_jax.data.shards import Collection, LabelledFile, Part

_BLOCK = 512  # bytes; a block of zeros ends a tar file


def open_collection(spec: str) -> Collection:
    """Open a tar file, or a folder of them; see `shards.find` for the splits.

    A tar file holds either pairs of KEY.jpg (or another image) and KEY.cls, which holds the number of the class, or
    KEY.json, which holds it as `label`; or one tar of images for each class, CLASS.tar.

    Args:
      spec: tar:PATH.

    Returns:
      A collection with one part per file, or per class and file.

    Raises:
      FileNotFoundError: If there are no such files.
      ValueError: If a file is damaged, or its first image has no label.
    """
    found = shards.find(spec, ".tar")
    inner = {path: _class_files(path) for files in found.values() for path in files.values()}
    class_names = tuple(sorted({PurePosixPath(name).stem for classes in inner.values() for name in classes}))
    splits: dict[str, list[Part]] = {}
    for split, files in found.items():
        splits[split] = []
        for name, path in files.items():
            for file_name, member in sorted(inner[path].items()):
                read = functools.partial(_read_class, path, f"{name}/{file_name}", member,
                                         class_names.index(PurePosixPath(file_name).stem))
                splits[split].append(Part(name=f"{name}/{file_name}", stamp=member.size, read=read))
            if not inner[path]:
                read = functools.partial(_read_pairs, path, name)
                next(read(), None)  # raises an error if it has no label
                splits[split].append(Part(name=name, stamp=path.stat().st_size, read=read))
    return Collection(class_names=class_names or None, splits=splits)


def _class_files(path: Path) -> dict[str, tarfile.TarInfo]:
    """Return the tar files of the classes inside a tar file; none if its first file is not a tar file."""
    with _opened(path) as archive:
        first = next(_files(archive), None)
        if first is None or not first.name.endswith(".tar"):
            return {}
        return {member.name: member for member in itertools.chain([first], _files(archive))}


@contextlib.contextmanager
def _opened(path: Path, member: tarfile.TarInfo | None = None) -> Iterator[tarfile.TarFile]:
    """Open a tar file, or a tar file inside it; any error of reading until the block ends names the file."""
    try:
        with tarfile.open(path, "r:") as archive:
            if member is None:
                yield archive
            else:
                with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inside:
                    yield inside
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"convert.source: {path} cannot be read ({error}); download it again") from error


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files from where the archive stands; raise an error if it is cut off, which tarfile does not notice."""
    while (member := archive.next()) is not None:
        if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
            yield member
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError(f"it is cut off after {archive.offset} bytes")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    return file.read()


def _read_class(path: Path, name: str, member: tarfile.TarInfo, label: int) -> Iterator[LabelledFile]:
    with _opened(path, member) as archive:
        for file in _files(archive):
            yield LabelledFile(f"{name}/{file.name}", _content(archive, file), label)


def _read_pairs(path: Path, name: str) -> Iterator[LabelledFile]:
    """Yield the images of a tar file in which files with the same name up to the first dot follow each other."""
    def key(member: tarfile.TarInfo) -> str:
        parent, _, file_name = member.name.rpartition("/")
        return f"{parent}/{file_name.partition('.')[0]}".lstrip("/")

    with _opened(path) as archive:
        pairs = ((key(member), member.name, _content(archive, member)) for member in _files(archive))
        for shared, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            contents = {file_name.lower(): content for _, file_name, content in group}
            label = _label(f"{path}: {shared}", contents)
            found = [content for file_name, content in contents.items() if file_name.endswith(images.SUFFIXES)]
            yield LabelledFile(f"{name}/{shared}", found[0] if found else b"", label)


def _label(place: str, contents: Mapping[str, bytes]) -> int:
    """Return the label in the files of one key; raise a ValueError if there is none."""
    try:
        for file_name, content in sorted(contents.items()):  # .cls before .json
            if file_name.endswith(".cls"):
                return int(content)
            if file_name.endswith(".json"):
                return int(json.loads(content)["label"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"convert.source: {place} has a label that is not a number ({error!r}); give the number of "
                         "the class in KEY.cls, or as label in KEY.json") from error
    raise ValueError(f"convert.source: {place} has no label, neither in a file .cls nor .json; ImageNet's original "
                     "validation file has none either. Move the file elsewhere, and every tenth training image is held "
                     "out; or unpack the images into folders of their classes, and give folder:PATH")

"""Listing of all files of a folder, and the arrangement of its images in splits and classes."""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from refocus_jax.data import images, notices

OWN_PREFIX = ".refocus_"  # of the files that this package writes into a folder
# Folders of copies and thumbnails: macOS puts the first into archives, Synology's photo index makes the second.
_HIDDEN = ("__MACOSX", "@eaDir")
_NAMED = 3  # how many files or suffixes a message names

# Folders with these names hold a split.
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}


@dataclasses.dataclass(frozen=True)
class Listing:
    """The content of a folder at any depth; names are sorted, relative to the folder, and have slashes.

    Attributes:
      images: Files with a suffix of `images.SUFFIXES`.
      unreadable: Entries with such a suffix that are not files, such as broken links and pipes.
      folders: All folders that are not hidden.
      left_out: Everything else, by the reason why it is left out.
    """

    images: tuple[str, ...]
    unreadable: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: Mapping[str, Sequence[str]]


def walk(root: Path) -> Listing:
    """List everything in a folder. Links are followed, except links to a folder that contains them."""
    found: list[str] = []
    unreadable: list[str] = []
    folders: list[str] = []
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    pending = [("", frozenset([_inode(root)]))]
    while pending:
        prefix, above = pending.pop()
        try:
            with os.scandir(root / prefix) as opened:
                entries = list(opened)
        except OSError:
            left_out["folders that cannot be opened"].append(prefix)
            continue
        for entry in entries:
            name, kind = prefix + entry.name, _kind(entry)
            if entry.name.startswith(OWN_PREFIX):
                continue
            if entry.name.startswith(".") or entry.name in _HIDDEN:
                left_out["hidden"].append(name)
            elif kind == "folder" and (inode := _inode(entry)) in above:
                left_out["links to a folder that contains them"].append(name)
            elif kind == "folder":
                folders.append(name)
                pending.append((f"{name}/", above | {inode}))
            elif entry.name.lower().endswith(images.SUFFIXES):
                (found if kind == "file" else unreadable).append(name)
            else:
                left_out["with another suffix" if kind == "file" else "broken links and devices"].append(name)
    return Listing(tuple(sorted(found)), tuple(sorted(unreadable)), tuple(sorted(folders)),
                   {reason: sorted(names) for reason, names in sorted(left_out.items())})


def _kind(entry: os.DirEntry) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "neither"
    except OSError:  # a link to itself
        return "neither"


def _inode(path: Path | os.DirEntry) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def report(place: str, taken: int, left_out: Mapping[str, Sequence[str]]) -> None:
    """Log once, in one line, which entries of a folder are not taken as images."""
    if parts := [f"{len(names)} {reason} ({_some(names)})" for reason, names in left_out.items() if names]:
        notices.say(f"{place}: {taken} images are taken. Left out: {'; '.join(parts)}")


def _some(names: Sequence[str]) -> str:
    """Return a few of the names, or the most frequent suffixes if there are more names."""
    if len(names) <= _NAMED:
        return ", ".join(map(shown, names))
    suffixes = Counter(PurePosixPath(name).suffix.lower() or shown(PurePosixPath(name).name) for name in names)
    some = [f"{suffix} {count}" for suffix, count in suffixes.most_common(_NAMED)]
    return ", ".join(some + ["..."] * (len(suffixes) > _NAMED))


def shown(name: str) -> str:
    r"""Return a file name as printable text; bytes that are not UTF-8 are escaped, as in `caf\xe9`."""
    return os.fsencode(name).decode(errors="backslashreplace")


@dataclasses.dataclass(frozen=True)
class ClassFolder:
    """The images of one class.

    Attributes:
      path: Path of the folder, relative to the root.
      label: Number of the class.
      split: "train" or "validation"; None if the images have to be divided between the two.
      images: Their sorted names, including those that cannot be read.
    """

    path: str
    label: int
    split: str | None
    images: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrangement of the images of a `Listing` in classes and splits.

    Attributes:
      class_names: Names of the classes; the label is the position.
      members: The folders of the classes, per split.
      left_out: Names that are in no class, by the reason.
    """

    class_names: tuple[str, ...]
    members: tuple[ClassFolder, ...]
    left_out: Mapping[str, Sequence[str]]


def arrange(root: Path, listing: Listing, class_depth: int = 0) -> Layout:
    """Find splits and classes in a folder.

    The layouts are ROOT/CLASS/..., and ROOT/train/CLASS/... with a folder for validation or test next to train. All
    images in the folder of a class belong to the class, at any depth. The classes are those of train. As names of the
    validation split, `val`, `valid` and `validation` mean the same; `test` is used where there is none of them.

    Args:
      root: The folder, for error messages.
      listing: What the folder holds, from `walk`.
      class_depth: Depth of a class in folders: 2 makes `dog/poodle` a class. 0 means 1, but refuses classes whose
        images all lie in sub-folders, because these may be the intended classes.

    Returns:
      The classes, their images per split, and what is left out.

    Raises:
      ValueError: If the folders are arranged in any other way.
    """
    names = sorted(listing.images + listing.unreadable)
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    splits = _splits(root, [name for name in listing.folders if "/" not in name])
    members: list[ClassFolder] = []
    class_names: tuple[str, ...] = ()
    for split, prefix in splits.items():
        classes: defaultdict[str, list[str]] = defaultdict(list)
        depth = prefix.count("/") + (class_depth or 1)
        for name in names:
            if name.startswith(prefix):
                parts = name.split("/")
                target = classes["/".join(parts[:depth])] if len(parts) > depth else left_out["outside of a class"]
                target.append(name)
        empty = [name for name in listing.folders if name.startswith(prefix) and name.count("/") == depth - 1
                 and name not in classes]
        if split == "validation":
            left_out["validation folders of a class without images"] += empty
            if unknown := sorted(set(classes) - {prefix + name for name in class_names}):
                raise ValueError(f"data.source is folder:{root}: there are validation images of classes that "
                                 f"{splits['train']} lacks ({_list(unknown)}); remove them, or add these classes to "
                                 f"{splits['train']}, which determines the classes")
        else:
            _check_classes(root, prefix, classes, empty, class_depth)
            class_names = tuple(sorted(path.removeprefix(prefix) for path in classes))
        members += [ClassFolder(prefix + name, label, split, tuple(classes[prefix + name]))
                    for label, name in enumerate(class_names) if prefix + name in classes]
    left_out["in folders that belong to no split"] += [
        name for name in names if not name.startswith(tuple(splits.values()))]
    displayed = tuple(map(shown, class_names))
    if len(set(displayed)) < len(displayed):
        raise ValueError(f"data.source is folder:{root}: two class folders have the same printed name, "
                         f"{Counter(displayed).most_common(1)[0][0]}; rename one")
    return Layout(displayed, tuple(members), {**listing.left_out, **{k: v for k, v in left_out.items() if v}})


def _layouts(root: Path) -> str:
    return (f"the layouts are {root}/<class>/<image files>, where every tenth image is held out, and "
            f"{root}/train/<class>/<image files> with {root}/val (or valid, validation, test)/<class>/<image files>")


def _splits(root: Path, folders: Sequence[str]) -> dict[str | None, str]:
    """Return the path prefix of the files of each split; the key is None where the splits have no folders."""
    named = defaultdict(list)
    for folder in folders:
        if folder.lower() in SPLIT_NAMES:
            named[SPLIT_NAMES[folder.lower()]].append(folder)
    classes = len(folders) - sum(map(len, named.values()))
    if not named or (classes and ("train" not in named or len(named) == 1)):
        return {None: ""}  # a train folder among other folders is a class, and so is a test folder without train
    if "train" not in named:
        raise ValueError(f"data.source is folder:{root}, which has {_list(folders)} but no train; use one of the "
                         f"layouts: {_layouts(root)}")
    for split, same in named.items():
        if len(same) > 1:
            raise ValueError(f"data.source is folder:{root}, which has several folders for the {split} split "
                             f"({_list(same)}); keep one of them")
    if len(named) == 1:
        return {None: f"{named['train'][0]}/"}
    held_out = named.get("validation") or named["test"]
    return {"train": f"{named['train'][0]}/", "validation": f"{held_out[0]}/"}


def _check_classes(root: Path, prefix: str, classes: Mapping[str, Sequence[str]], empty: Sequence[str],
                   class_depth: int) -> None:
    """Raise a ValueError if there are no classes, empty ones, or ones whose sub-folders may be the intended classes."""
    if empty:
        raise ValueError(f"data.source is folder:{root}: there are no image files ({', '.join(images.SUFFIXES)}) in "
                         f"{_list(empty)}; add some, or remove the folder")
    if not classes:
        at_depth = f" {class_depth} deep (data.class_depth)" if class_depth else ""
        raise ValueError(f"data.source is folder:{root / prefix}, which has no class folders{at_depth}; "
                         f"{_layouts(root)}; move the images into folders of their classes")
    for path, names in classes.items():
        nested = {name.split("/")[path.count("/") + 1] for name in names}
        if class_depth == 0 and all(name.count("/") > path.count("/") + 1 for name in names):
            raise ValueError(
                f"data.source is folder:{root}: {shown(path)} holds images only in sub-folders "
                f"({_list(sorted(nested))}); set data.class_depth=1 if they all belong to the class "
                f"{shown(path.removeprefix(prefix))}, or 2 if the sub-folders are the classes; {_layouts(root)}")


def _list(names: Iterable[str]) -> str:
    names = list(map(shown, names))
    return ", ".join(names[:_NAMED] + ["..."] * (len(names) > _NAMED))

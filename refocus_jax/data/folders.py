"""What a folder holds, every file of it, and how its images are arranged in splits and classes."""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from refocus_jax.data import images, notices

OWN_PREFIX = ".refocus_"  # of files that this package leaves in a folder
# Copies and thumbnails that systems leave: of macOS in archives, of Synology's photo index.
_HIDDEN = ("__MACOSX", "@eaDir")
_NAMED = 3  # files that a line names

# The split that a folder of such a name is.
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies in a folder, at any depth; names are relative to it, with slashes, in order.

    Attributes:
      images: files with a suffix of `images.SUFFIXES`. unreadable: what is named like an image and is no file: broken
      links, pipes. folders: all that are not hidden. left_out: what else there is, by what is the matter with it.
    """

    images: tuple[str, ...]
    unreadable: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: Mapping[str, Sequence[str]]


def walk(root: Path) -> Listing:
    """Looks at everything in a folder. Links are followed, except those to a folder that they lie in."""
    found, unreadable, folders, left_out = [], [], [], defaultdict(list)
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
                left_out["links to a folder that they lie in"].append(name)
            elif kind == "folder":
                folders.append(name)
                pending.append((f"{name}/", above | {inode}))
            elif entry.name.lower().endswith(images.SUFFIXES):
                (found if kind == "file" else unreadable).append(name)
            else:
                left_out["of another suffix" if kind == "file" else "broken links and devices"].append(name)
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
    """Says once what of a folder does not count as images, in one line."""
    if parts := [f"{len(names)} {reason} ({_some(names)})" for reason, names in left_out.items() if names]:
        notices.say(f"{place}: {taken} images are taken. Left out: {'; '.join(parts)}")


def _some(names: Sequence[str]) -> str:
    """The most frequent suffixes, or a few names."""
    if len(names) <= _NAMED:
        return ", ".join(map(shown, names))
    suffixes = Counter(PurePosixPath(name).suffix.lower() or shown(PurePosixPath(name).name) for name in names)
    some = [f"{suffix} {count}" for suffix, count in suffixes.most_common(_NAMED)]
    return ", ".join(some + ["..."] * (len(suffixes) > _NAMED))


def shown(name: str) -> str:
    """A file's name as text, also where its bytes are not UTF-8: those are escaped, as in `caf\\xe9`."""
    return os.fsencode(name).decode(errors="backslashreplace")


@dataclasses.dataclass(frozen=True)
class ClassFolder:
    """The images of one class.

    Attributes:
      path: of the folder. label: the class. split: "train" or "validation"; None if some of the images are for each.
      images: their names in order, those that cannot be read among them.
    """

    path: str
    label: int
    split: str | None
    images: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the images of a `Listing` are arranged; `left_out` counts those that are not."""

    class_names: tuple[str, ...]
    members: tuple[ClassFolder, ...]
    left_out: Mapping[str, Sequence[str]]


def arrange(root: Path, listing: Listing, class_depth: int = 0) -> Layout:
    """Finds splits and classes: ROOT/CLASS/..., or ROOT/train/CLASS/... with a folder of validation or test next to it.

    Whatever lies in the folder of a class, however deep, is of the class. The classes are those of train. If folders
    are named for splits, `val`, `valid` and `validation` are one thing, and `test` stands in where there is none.

    Args:
      root: for errors. class_depth: of a class in folders: 2 makes `dog/poodle` a class. 0 is 1, and refuses classes
        whose images all lie in sub-folders, which may be the classes that were meant.

    Raises:
      ValueError: folders that are arranged otherwise.
    """
    names, left_out = sorted(listing.images + listing.unreadable), defaultdict(list)
    splits = _splits(root, [name for name in listing.folders if "/" not in name])
    members, class_names = [], ()
    for split, prefix in splits.items():
        classes, depth = defaultdict(list), prefix.count("/") + (class_depth or 1)
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
                raise ValueError(f"data.source is folder:{root}: there are images for validation in "
                                 f"{_list(unknown)}, classes that {splits['train']} lacks; remove them, or add the "
                                 "classes to it: the classes are those of train")
        else:
            _check_classes(root, prefix, classes, empty, class_depth)
            class_names = tuple(sorted(path.removeprefix(prefix) for path in classes))
        members += [ClassFolder(prefix + name, label, split, tuple(classes[prefix + name]))
                    for label, name in enumerate(class_names) if prefix + name in classes]
    left_out["in folders that are no part of the splits"] += [
        name for name in names if not name.startswith(tuple(splits.values()))]
    displayed = tuple(map(shown, class_names))
    if len(set(displayed)) < len(displayed):
        raise ValueError(f"data.source is folder:{root}: two class folders are both shown as "
                         f"{Counter(displayed).most_common(1)[0][0]}; rename one")
    return Layout(displayed, tuple(members), {**listing.left_out, **{k: v for k, v in left_out.items() if v}})


def _layouts(root: Path) -> str:
    return (f"the layouts are {root}/<class>/<image files>, of which every tenth is held out, and "
            f"{root}/train/<class>/<image files> with {root}/val (or valid, validation, test)/<class>/<image files>")


def _splits(root: Path, folders: Sequence[str]) -> dict[str | None, str]:
    """The prefix of the files of each split; of None, where they have no folders of their own."""
    named = defaultdict(list)
    for folder in folders:
        if folder.lower() in _SPLIT_NAMES:
            named[_SPLIT_NAMES[folder.lower()]].append(folder)
    classes = len(folders) - sum(map(len, named.values()))
    if not named or (classes and ("train" not in named or len(named) == 1)):
        return {None: ""}  # a train among other things is a class, as a test without train
    if "train" not in named:
        raise ValueError(f"data.source is folder:{root}, which has {_list(folders)} and no train; {_layouts(root)}; "
                         "give one of them")
    for split, same in named.items():
        if len(same) > 1:
            raise ValueError(f"data.source is folder:{root}, which has {_list(same)}, all of them for {split}; keep "
                             "one, or remove the others")
    if len(named) == 1:
        return {None: f"{named['train'][0]}/"}
    held_out = named.get("validation") or named["test"]
    return {"train": f"{named['train'][0]}/", "validation": f"{held_out[0]}/"}


def _check_classes(root: Path, prefix: str, classes: Mapping[str, Sequence[str]], empty: Sequence[str],
                   class_depth: int) -> None:
    """Raises a ValueError if there are no classes, empty ones, or such whose sub-folders may be what was meant."""
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
                f"data.source is folder:{root}: {shown(path)} holds images in sub-folders alone "
                f"({_list(sorted(nested))}); set data.class_depth=1 if they all are of the class "
                f"{shown(path.removeprefix(prefix))}, or 2 if the sub-folders are the classes; {_layouts(root)}")


def _list(names: Iterable[str]) -> str:
    names = list(map(shown, names))
    return ", ".join(names[:_NAMED] + ["..."] * (len(names) > _NAMED))

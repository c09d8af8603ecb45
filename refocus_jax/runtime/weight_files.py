"""Files of named arrays: `.safetensors`, and PyTorch's `.pth` (see `torch_files`).

The type of a file is recognized by its first bytes, not by its name. A file may hold several state dicts, as a training
state does: `FILE#ENTRY` names one of them by its keys, as in `ar-ckpt-last.pth#trainer.var_wo_ddp`.
"""

import functools
import json
import logging
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refocus_jax.runtime import torch_files
from refocus_jax.runtime.files import atomically
from refocus_jax.runtime.torch_files import Inert, Readers, Tensor

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"  # names the shards of a `.safetensors` in several files
_MAX_INDEX_BYTES = 2**26
_LISTED = 8
_MAX_DEPTH = 64  # of dictionaries in dictionaries
# Types in a `.safetensors` file that numpy has, with bfloat16 from ml_dtypes.
_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
# Prefixes that torch's wrappers for parallel training and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.")

Fits = Callable[[Collection[str]], bool]


def _location(source: Any) -> tuple[Path, str]:
    """Splits FILE#ENTRY into path and entry. An existing file whose name contains "#" is not split."""
    path = Path(os.path.expanduser(source))
    file, _, entry = str(path).rpartition("#")
    return (path, "") if path.exists() or not file else (Path(file), entry)


def _shards(path: Path) -> Path | None:
    """Finds the index of weights in several files: the one in a folder, or the path itself; None if there is none.

    Raises:
      ValueError: The folder has several indices.
    """
    if not path.is_dir():
        return path if path.name.endswith(_INDEX) else None
    found = sorted(path.glob(f"*{_INDEX}"))
    if len(found) > 1:
        raise ValueError(f"{path} has several indices of shards; give one of {', '.join(map(str, found[:_LISTED]))}")
    return found[0] if found else None


def is_weight_file(source: Any) -> bool:
    """Whether this names weights, not a workdir: a file or a folder of shards. If it is missing, its name decides."""
    if not isinstance(source, str | os.PathLike) or not str(source):
        return False
    path, entry = _location(source)
    if path.is_dir():
        return _shards(path) is not None
    return path.is_file() or bool(entry) or path.name.endswith((*SUFFIXES, _INDEX))


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of files by name, each read when it is asked for, so that the memory need not hold all of them."""

    def __init__(self, readers: Readers):
        """Takes a function for every name, which reads the array."""
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads an array. Do not write to it: what it is read from may be shared."""
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self._readers)

    def __len__(self) -> int:
        """Counts the arrays."""
        return len(self._readers)


def read(source: str | os.PathLike, fits: Fits | None = None) -> Arrays:
    """Opens the arrays of a file, by name, and checks that the file is complete.

    If the file holds several state dicts, the one that fits is taken, and of a fitting `ema` and `model` the `ema`. A
    prefix that parallel training or torch.compile put before all names is removed. A warning tells of either.

    Args:
      source: A file of any name, FILE#ENTRY, or shards: their `.index.json` or its folder.
      fits: Tells whether names are those of the wanted network; by default all names fit.

    Raises:
      FileNotFoundError: The file does not exist, or a shard is missing.
      ValueError: It is not a file of weights, is damaged, or holds no entry that fits, or several.
    """
    path, wanted = _location(source)
    index = _shards(path)
    if wanted and (index or path.name.endswith(".safetensors")):
        raise ValueError(f"{source} names an entry, but {path} has no entries; leave out #{wanted}")
    if index:
        return _unwrapped(index, _read_shards(index))
    if not path.is_file():
        says = f"is a folder without an index of shards (*.safetensors{_INDEX})" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {says}; give a file of weights, or correct the path")
    kind = _kind(path)
    choose = functools.partial(_choose, path, wanted=wanted, fits=fits or (lambda names: True))
    try:
        if kind == "safetensors":
            return _unwrapped(path, _read_safetensors(path))
        return _unwrapped(path, (torch_files.read_zip if kind == "zip" else torch_files.read_sequence)(path, choose))
    except _NotChosen:
        raise
    except Exception as error:  # any error that a damaged file causes in the readers
        raise ValueError(f"{path} cannot be read as a state dict: {_reason(error)}. Download it again; or, if it is "
                         "complete but holds more than a state dict, load it with torch.load(..., weights_only=True) "
                         "and save its state dict again") from error


class _NotChosen(ValueError):
    """No entry of a readable file can be used. The message says why, and names the file."""


def _reason(error: Exception) -> str:
    return repr(error) if not isinstance(error, ValueError) else str(error)


def _kind(path: Path) -> str:
    """Returns the type of a file of weights, by its first bytes: safetensors, zip or sequence.

    Raises:
      ValueError: It is something else; the message says what.
    """
    with path.open("rb") as file:
        first = file.read(512)
    size, again = path.stat().st_size, "download the file itself again"
    if first.startswith(b"PK\x03\x04"):
        if zipfile.is_zipfile(path):
            return "zip"
        raise ValueError(f"{path} is cut short: it begins like a file from torch.save, but its end is missing; {again}")
    if first[8:9] == b"{":
        length = int.from_bytes(first[:8], "little")
        if 8 + length > size:
            raise ValueError(f"{path} is cut short: it begins like .safetensors, but its end is missing; {again}")
        return "safetensors"
    if first.startswith(b"\x80"):
        return "sequence"
    says = "is empty" if not first else "is not a file of weights"
    if first.startswith(b"version https://git-lfs"):
        says = "is a Git LFS pointer, not the file that it stands for"
    elif first.lstrip()[:1] == b"<":
        says = "is a web page (HTML), not weights"
    elif first[257:262] == b"ustar" or first.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise ValueError(f"{path} is an archive, not weights; unpack it and give a file from it")
    raise ValueError(f"{path} {says}; {again}")


def _unwrapped(path: Path, readers: Readers) -> Arrays:
    prefix = _wrapper(readers)
    if prefix:
        logging.warning("%s: all names begin with %s, which is removed.", path, prefix)
    return Arrays({name.removeprefix(prefix): reader for name, reader in readers.items()})


def _wrapper(names: Collection[str]) -> str:
    """Returns the prefix, made of `_WRAPPERS`, that all names share."""
    prefix = ""
    while names and (found := next((wrapper for wrapper in _WRAPPERS
                                    if all(name.startswith(prefix + wrapper) for name in names)), "")):
        prefix += found
    return prefix


def _items(pickled: Any) -> Iterator[tuple[str, Any]]:
    """Yields all objects in nested dictionaries and lists, each once, with their keys; not deeper than `_MAX_DEPTH`."""
    seen: set[int] = set()
    pending: list[tuple[tuple[Any, ...], Any]] = [((), pickled)]
    while pending:
        keys, value = pending.pop()
        if id(value) in seen or len(keys) > _MAX_DEPTH:
            continue
        seen.add(id(value))
        yield ".".join(map(str, keys)), value
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        pending += [((*keys, key), item) for key, item in reversed(list(inside))]


def _choose(path: Path, pickled: Any, *, wanted: str, fits: Fits) -> dict[str, "Tensor"]:
    """Returns the tensors, by name, of the wanted entry or of the one that fits."""
    everything = list(_items(pickled))
    entries = {name: value for name, value in everything
               if isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())}
    listed = ", ".join([name or "(all of it)" for name in list(entries)[:_LISTED]] + ["..."] * (len(entries) > _LISTED))
    if not entries:
        held = [repr(name) for name in pickled] if isinstance(pickled, dict) else [f"a {type(pickled).__name__}"]
        asked = [value.asked for _, value in everything if isinstance(value, Inert)]
        says = f"it asks for {asked[0]}, which no state dict needs" if asked else (
            f"it holds no named arrays, but {', '.join(held[:_LISTED]) or 'nothing'}")
        raise _NotChosen(f"{path} cannot be read as a state dict: {says}; give a file of weights")
    if wanted:
        if wanted not in entries:
            raise _NotChosen(f"{path} has no entry {wanted!r}; choose one of {listed}")
        chosen = wanted
    else:
        fitting = [name for name, entry in entries.items() if fits(_names(entry))]
        averages = [name for name in fitting if name.rpartition(".")[2] == "ema"]
        if len(fitting) > 1 and len(averages) == 1 and all(
                name.rpartition(".")[2] in ("ema", "model") for name in fitting):
            fitting = averages
        if len(fitting) > 1:
            raise _NotChosen(f"{path} has several entries that fit: {', '.join(fitting[:_LISTED])}; give one as "
                             f"{path}#{fitting[-1]}")
        if not fitting and len(entries) > 1:
            raise _NotChosen(f"{path} has no entry that fits the network; it has {listed}; give one as {path}#ENTRY, "
                             "or another file")
        chosen = (fitting or list(entries))[0]
        if chosen:
            logging.warning("%s: the weights are those of its entry %s%s.", path, chosen,
                            ", a moving average" if averages else "")
    for name, value in entries[chosen].items():
        if isinstance(value, Inert) or not isinstance(name, str):
            inert = isinstance(value, Inert)
            what = f"asks for {value.asked}, which no state dict needs" if inert else "is not a name"
            raise _NotChosen(f"{path} cannot be read as a state dict: {name!r} {what}; take another file")
    return {name: value for name, value in entries[chosen].items() if isinstance(value, Tensor)}


def _names(entry: Mapping[Any, Any]) -> list[str]:
    names = [name for name, value in entry.items() if isinstance(value, Tensor) and isinstance(name, str)]
    prefix = _wrapper(names)
    return [name.removeprefix(prefix) for name in names]


def _read_shards(index: Path) -> Readers:
    """Opens the arrays that an index names from its shards.

    Raises:
      FileNotFoundError: The index or a shard does not exist.
      ValueError: The index or a shard is damaged, or the index names files outside its folder.
    """
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"it has {index.stat().st_size} bytes")
        places = dict(json.loads(index.read_bytes())["weight_map"])
        files = sorted(set(places.values()))
        if not all(isinstance(name, str) and Path(name).name == name for name in files):
            raise ValueError("it names files that are not in its folder")
        if not all(name.endswith(".safetensors") for name in files):
            raise ValueError("its shards are not .safetensors")
    except FileNotFoundError:
        raise FileNotFoundError(f"{index} does not exist; correct the path") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of shards ({error!r}); download it again") from error
    if missing := [name for name in files if not index.with_name(name).is_file()]:
        raise FileNotFoundError(f"{index.parent} lacks {', '.join(missing[:_LISTED])} of {len(files)} files; download "
                                "the missing ones")
    found: Readers = {}
    for name in files:
        _kind(index.with_name(name))
        try:
            held = _read_safetensors(index.with_name(name))
        except Exception as error:  # any error that a damaged file causes in the reader
            raise ValueError(f"{index.with_name(name)} cannot be read: {_reason(error)}; download it again") from error
        found |= {array: held[array] for array, place in places.items() if place == name and array in held}
    if lost := sorted(places.keys() - found.keys()):
        raise ValueError(f"{index} names arrays that its files lack: {', '.join(lost[:_LISTED])}; download it again")
    return found


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a `.safetensors` file, which appears complete or not at all.

    Args:
      path: Its name must end in `.safetensors`; missing folders are made.
      arrays: The arrays by name.
      metadata: Strings that are stored in the file's header.

    Raises:
      ValueError: The name ends differently.
    """
    from safetensors.numpy import save_file  # here, because only such files need the package

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} cannot be written; give a name that ends in .safetensors")
    with atomically(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, dict(metadata))
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # the library lets only the owner read it


def _read_safetensors(path: Path) -> Readers:
    from safetensors import safe_open

    file = safe_open(path, framework="numpy")  # it checks the places of all arrays
    names = list(file.keys())
    if unknown := [name for name in names if file.get_slice(name).get_dtype() not in _SAFETENSORS_TYPES]:
        raise ValueError(f"{unknown[0]} has the type {file.get_slice(unknown[0]).get_dtype()}")
    return {name: functools.partial(file.get_tensor, name) for name in names}

"""Files of named arrays: `.safetensors`, and PyTorch's `.pth`, read without PyTorch and without running their code.

A `.pth` file is a zip of one pickle and the raw bytes of every storage; before PyTorch 1.6, the bytes simply followed
the pickle. A pickle is a program. This module reads it with an unpickler that knows only the few names that a state
dict needs. All other names become inert placeholders, and nothing is imported, so that a hostile file ends in an error.
No maintained library does this without torch.

The type of a file is recognized by its first bytes, not by its name. A file may hold several state dicts, as a training
state does: `FILE#ENTRY` names one of them by its keys, as in `ar-ckpt-last.pth#trainer.var_wo_ddp`.
"""

import collections
import functools
import io
import json
import logging
import math
import mmap
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from refocus_jax.runtime.files import atomically

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"  # names the shards of a `.safetensors` in several files
_MAX_INDEX_BYTES = 2**26
_LISTED = 8
_MAX_DEPTH = 64  # of dictionaries in dictionaries
# torch's storage classes by name. numpy itself has no bfloat16.
_STORAGES = {
    "DoubleStorage": np.dtype(np.float64), "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}
_SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
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

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]):
        """Takes a function for every name, which reads the array."""
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads an array, which cannot be written to."""
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
        return _unwrapped(path, (_read_zip if kind == "zip" else _read_sequence)(path, choose))
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


def _unwrapped(path: Path, arrays: Arrays) -> Arrays:
    prefix = _wrapper(arrays)
    if not prefix:
        return arrays
    logging.warning("%s: all names begin with %s, which is removed.", path, prefix)
    return Arrays({name.removeprefix(prefix): functools.partial(arrays.__getitem__, name) for name in arrays})


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


def _choose(path: Path, pickled: Any, *, wanted: str, fits: Fits) -> dict[str, "_Tensor"]:
    """Returns the tensors, by name, of the wanted entry or of the one that fits."""
    everything = list(_items(pickled))
    entries = {name: value for name, value in everything
               if isinstance(value, dict) and any(isinstance(item, _Tensor) for item in value.values())}
    listed = ", ".join([name or "(all of it)" for name in list(entries)[:_LISTED]] + ["..."] * (len(entries) > _LISTED))
    if not entries:
        held = [repr(name) for name in pickled] if isinstance(pickled, dict) else [f"a {type(pickled).__name__}"]
        asked = [value.asked for _, value in everything if isinstance(value, _Inert)]
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
        if isinstance(value, _Inert) or not isinstance(name, str):
            inert = isinstance(value, _Inert)
            what = f"asks for {value.asked}, which no state dict needs" if inert else "is not a name"
            raise _NotChosen(f"{path} cannot be read as a state dict: {name!r} {what}; take another file")
    return {name: value for name, value in entries[chosen].items() if isinstance(value, _Tensor)}


def _names(entry: Mapping[Any, Any]) -> list[str]:
    names = [name for name, value in entry.items() if isinstance(value, _Tensor) and isinstance(name, str)]
    prefix = _wrapper(names)
    return [name.removeprefix(prefix) for name in names]


def _read_shards(index: Path) -> Arrays:
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
    found: dict[str, Callable[[], np.ndarray]] = {}
    for name in files:
        _kind(index.with_name(name))
        try:
            held = _read_safetensors(index.with_name(name))
        except Exception as error:  # any error that a damaged file causes in the reader
            raise ValueError(f"{index.with_name(name)} cannot be read: {_reason(error)}; download it again") from error
        found |= {array: functools.partial(held.__getitem__, array) for array, place in places.items()
                  if place == name and array in held}
    if lost := sorted(places.keys() - found.keys()):
        raise ValueError(f"{index} names arrays that its files lack: {', '.join(lost[:_LISTED])}; download it again")
    return Arrays(found)


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


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import safe_open

    file = safe_open(path, framework="numpy")  # it checks the places of all arrays
    names = list(file.keys())
    if unknown := [name for name in names if file.get_slice(name).get_dtype() not in _SAFETENSORS_TYPES]:
        raise ValueError(f"{unknown[0]} has the type {file.get_slice(unknown[0]).get_dtype()}")
    return Arrays({name: functools.partial(file.get_tensor, name) for name in names})


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    """Refers to the numbers of a storage, which are stored outside the pickle."""

    key: str
    dtype: np.dtype
    numel: int


class _Tensor(NamedTuple):
    """A tensor as the unpickler returns it: not yet an array, because numpy's `__setstate__` trusts its input."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self, content: memoryview) -> np.ndarray:
        """Returns the tensor as a view of the storage's bytes.

        Raises:
          ValueError: The tensor reaches outside its storage.
        """
        sizes = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in sizes):
            raise ValueError(f"a tensor of shape {self.shape} has strides {self.strides} and offset {self.offset}")
        values = np.frombuffer(content, self.storage.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        count = math.prod(self.shape)
        # The tensor may not have more elements than its storage: an expanded one could ask for any amount of memory.
        if count and (last >= values.size or count > values.size):
            raise ValueError(f"a tensor of shape {self.shape} reaches outside its storage of {values.size} numbers")
        if not count:
            return np.zeros(self.shape, self.storage.dtype)
        strides = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset:], self.shape, strides, writeable=False)


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


class _Inert:
    """Placeholder for any name in a pickle that a state dict does not need.

    Training states hold such objects next to their state dicts. It accepts all calls that an unpickler makes, and does
    nothing. Each name gets its own subclass.

    Attributes:
      asked: The name.
    """

    asked = ""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def _take(self, *args, **kwargs):
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = _take


class _StateDictUnpickler(pickle.Unpickler):
    """Knows dictionaries, tensors and parameters; every other name becomes an `_Inert`, and is never imported."""

    _GLOBALS: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
    }

    def __init__(self, file: IO[bytes]):
        _check_opcodes(file)
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}  # all storages that the pickle names
        self._inert: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns the object for a known name and a placeholder class for any other."""
        if known := self._GLOBALS.get((module, name)):
            return known
        return self._inert.setdefault((module, name), type("Inert", (_Inert,), {"asked": f"{module}.{name}"}))

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a persistent id refers to."""
        kind, storage_type, key, _, count, *view = pid  # before PyTorch 1.6, `view` told what a storage is a view of
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(view):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is not a storage")
        storage = _Storage(key, storage_type.dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is named twice with different types or sizes")
        return storage


def _check_opcodes(file: IO[bytes]) -> None:
    """Refuses a pickle whose memo has an index larger than the number of steps so far.

    The unpickler allocates memory for all indices up to the largest. The file's position stays the same.
    """
    begin = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if "PUT" in opcode.name and argument is not None and int(argument) > count:
            raise pickle.UnpicklingError(f"its step {count} stores an object in the memo under the number {argument}")
    file.seek(begin)


# Selects the wanted tensors, by name, from the unpickled object.
_Choose = Callable[[Any], dict[str, _Tensor]]


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _release(mapping: mmap.mmap) -> None:
    """Gives back the memory of what has been read so far; what is still needed of it is read from the file again."""
    if hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _arrays(mapping: mmap.mmap, tensors: Mapping[str, _Tensor], contents: Mapping[str, memoryview]) -> Arrays:
    """Makes the arrays of tensors from the contents of their storages, which lie in the mapped file."""

    def read(array):
        _release(mapping)
        return array

    return Arrays({name: functools.partial(read, tensor.array(contents[tensor.storage.key]))
                   for name, tensor in tensors.items()})


def _content(memory: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """Returns the bytes of an entry that is not compressed.

    They begin after its local header, whose last two fields are lengths.

    Raises:
      ValueError: They are not those that were written.
    """
    name, extra = struct.unpack_from("<HH", memory, entry.header_offset + 26)
    begin = entry.header_offset + 30 + name + extra
    content = memory[begin:begin + entry.file_size]
    if zlib.crc32(content) != entry.CRC:
        raise ValueError(f"its entry {entry.filename} is damaged: it has another checksum")
    return content


def _read_zip(path: Path, choose: _Choose) -> Arrays:
    """Opens the arrays that `choose` selects from the unpickled object, and no others."""
    mapping = _mapped(path)
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it was not written by torch.save")
        # torch.save does not compress; a compressed entry could expand to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("its entries share bytes, which never happens in a file from torch.save")
        root = pickles[0].removesuffix("/data.pkl")
        byteorder = f"{root}/byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise ValueError("it was written on a big-endian machine")
        unpickler = _StateDictUnpickler(io.BytesIO(archive.read(pickles[0])))
        chosen = choose(unpickler.load())
        contents = {}
        for storage in {tensor.storage for tensor in chosen.values()}:
            contents[storage.key] = _content(memoryview(mapping), archive.getinfo(f"{root}/data/{storage.key}"))
            _check_size(storage, len(contents[storage.key]))
            _release(mapping)
    return _arrays(mapping, chosen, contents)


# A file of PyTorch before 1.6 begins with two pickled numbers: one that marks it, and the version of its format.
_SEQUENCE_MAGIC, _SEQUENCE_VERSION = 0x1950A86A20F9469CFC6C, 1001


def _read_sequence(path: Path, choose: _Choose) -> Arrays:
    """As `_read_zip`, for files of PyTorch before 1.6: consecutive pickles, then every storage with its length."""
    with open(path, "rb") as file:
        magic, version, system = (_StateDictUnpickler(file).load() for _ in range(3))
        if asked := [value.asked for value in (magic, version, system) if isinstance(value, _Inert)]:
            raise ValueError(f"it asks for {asked[0]}, which no state dict needs")
        if magic != _SEQUENCE_MAGIC or version != _SEQUENCE_VERSION or not system["little_endian"]:
            raise ValueError("it was not written by torch.save on a little-endian machine")
        unpickler = _StateDictUnpickler(file)
        chosen, keys = choose(unpickler.load()), _StateDictUnpickler(file).load()
        mapping, contents = _mapped(path), {}
        for key in keys:
            storage = unpickler.storages[key]
            length = storage.numel * storage.dtype.itemsize
            _check_size(storage, storage.dtype.itemsize * int.from_bytes(file.read(8), "little"))
            contents[key] = memoryview(mapping)[file.tell():file.tell() + length]
            _check_size(storage, len(contents[key]))
            file.seek(length, os.SEEK_CUR)
    return _arrays(mapping, chosen, contents)


def _check_size(storage: _Storage, size: int) -> None:
    if size != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} holds {size} bytes, not {storage.numel} numbers")

"""Files of named arrays: `.safetensors`, and PyTorch's `.pth` without PyTorch and without running what is in them.

A `.pth` file is a zip of one pickle and the raw bytes of every storage; before PyTorch 1.6 the pickle and the bytes
just followed each other. A pickle is a program; ours is read by an unpickler that knows the few names a state dict
needs and builds nothing but tuples, so that a hostile file ends in an error. No kept library does this without torch.
"""

import collections
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

SUFFIXES = (".safetensors", ".pth", ".pt")
# torch's storage classes by name; numpy has no bfloat16 of its own.
_STORAGES = {
    "DoubleStorage": np.dtype(np.float64), "FloatStorage": np.dtype(np.float32), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_),
}


def is_weight_file(path: Any) -> bool:
    """Whether a path names a file of weights rather than a workdir."""
    return isinstance(path, str | os.PathLike) and str(path).endswith(SUFFIXES)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors`, `.pth` or `.pt` file by name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another suffix, a damaged file, or one that holds anything but named arrays.
    """
    path = Path(path)
    if not is_weight_file(path):
        raise ValueError(f"{path} is no file of weights; its name must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; correct the path")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    except Exception as error:  # whatever a damaged file does to the readers
        raise ValueError(f"{path} cannot be read as a state dict: {error!r}. If the file is complete, but more than a "
                         "state dict, load it with torch.load(..., weights_only=True) and save its state dict anew"
                         ) from error


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a `.safetensors` file, which appears complete or not at all."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} cannot be written; give a name that ends in .safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, dict(metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    """Names the numbers of a storage, which lie outside the pickle."""

    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """What the unpickler makes of a tensor: no array yet, since an array's own `__setstate__` trusts its caller."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self, content: bytes) -> np.ndarray:
        """A view of the storage's bytes.

        Raises:
          ValueError: the tensor reaches outside its storage.
        """
        sizes = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in sizes):
            raise ValueError(f"a tensor of shape {self.shape} has strides {self.strides} and offset {self.offset}")
        values = np.frombuffer(content, self.storage.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        count = math.prod(self.shape)
        # An element for every number: an expanded tensor could ask for any amount of memory.
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


class _StateDictUnpickler(pickle.Unpickler):
    """Knows dictionaries, tensors and parameters; every other name is refused before it is even imported."""

    _GLOBALS = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
    }

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}  # all that were named

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")
        return self._GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count, *view = pid  # files before PyTorch 1.6 say what a storage is a view of
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(view):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no storage")
        storage = _Storage(key, storage_type.dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is named twice, as different ones")
        return storage


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    tensors, contents = (_read_zip if zipfile.is_zipfile(path) else _read_sequence)(path)
    if not isinstance(tensors, dict):
        raise ValueError(f"it holds a {type(tensors).__name__} instead of named arrays")
    others = [repr(name) for name, value in tensors.items()
              if not (isinstance(name, str) and isinstance(value, _Tensor))]
    if others:
        raise ValueError(f"it holds more than named arrays: {', '.join(others[:8])}")
    return {name: tensor.array(contents[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_zip(path: Path) -> tuple[Any, dict[str, bytes]]:
    """What was pickled, and the bytes of its storages by key."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is not what torch.save writes")
        # torch.save stores; a compressed entry could unfold to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed, which torch.save never does")
        root = pickles[0].removesuffix("/data.pkl")
        byteorder = f"{root}/byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise ValueError("it was written on a big-endian machine")
        unpickler = _StateDictUnpickler(archive.open(pickles[0]))
        tensors = unpickler.load()
        contents = {key: archive.read(f"{root}/data/{key}") for key in unpickler.storages}
    for key, storage in unpickler.storages.items():
        _check_size(storage, len(contents[key]))
    return tensors, contents


# What a file of PyTorch before 1.6 begins with, each pickled: a number that marks it, and the version of its format.
_SEQUENCE_MAGIC, _SEQUENCE_VERSION = 0x1950A86A20F9469CFC6C, 1001


def _read_sequence(path: Path) -> tuple[Any, dict[str, bytes]]:
    """The same of a file of PyTorch before 1.6: pickles one after the other, then every storage with its length."""
    with open(path, "rb") as file:
        magic, version, system = (_StateDictUnpickler(file).load() for _ in range(3))
        if magic != _SEQUENCE_MAGIC or version != _SEQUENCE_VERSION or not system["little_endian"]:
            raise ValueError("it is not what torch.save writes on a little-endian machine")
        unpickler = _StateDictUnpickler(file)
        tensors, keys = unpickler.load(), _StateDictUnpickler(file).load()
        contents, size = {}, path.stat().st_size
        for key in keys:
            storage = unpickler.storages[key]
            _check_size(storage, storage.dtype.itemsize * int.from_bytes(file.read(8), "little"))
            contents[key] = file.read(min(storage.count * storage.dtype.itemsize, size))
            _check_size(storage, len(contents[key]))
    return tensors, contents


def _check_size(storage: _Storage, size: int) -> None:
    if size != storage.count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} holds {size} bytes, not {storage.count} numbers")

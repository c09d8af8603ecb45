"""Files of named arrays: `.safetensors`, and PyTorch's `.pth` without PyTorch and without running what is in them.

A `.pth` file is a zip of one pickle and the raw bytes of every storage. A pickle is a program; ours is read by an
unpickler that knows the few names a state dict needs and builds nothing but tuples, so that a hostile file ends in an
error. No kept library does this without torch.
"""

import collections
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
        raise ValueError(f"{path} cannot be read as a state dict: {error!r}. If the file is complete, but older than "
                         "PyTorch 1.6 or more than a state dict, load it with torch.load(..., weights_only=True) and "
                         "save its state dict anew") from error


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
    bytes: bytes
    dtype: np.dtype


class _Tensor(NamedTuple):
    """What the unpickler makes of a tensor: no array yet, since an array's own `__setstate__` trusts its caller."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple

    def array(self) -> np.ndarray:
        """A view of the storage.

        Raises:
          ValueError: the tensor reaches outside its storage.
        """
        sizes = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in sizes):
            raise ValueError(f"a tensor of shape {self.shape} has strides {self.strides} and offset {self.offset}")
        values = np.frombuffer(self.storage.bytes, self.storage.dtype)
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

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root, self._storages = archive, root, {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")
        return self._GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no storage")
        if key not in self._storages:
            content = self._archive.read(f"{self._root}/data/{key}")
            if len(content) != count * storage_type.dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} holds {len(content)} bytes, not {count} numbers")
            self._storages[key] = _Storage(content, storage_type.dtype)
        return self._storages[key]


def _read_pth(path: Path) -> dict[str, np.ndarray]:
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
        content = _StateDictUnpickler(archive, root).load()
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of named arrays")
    others = [repr(name) for name, value in content.items()
              if not (isinstance(name, str) and isinstance(value, _Tensor))]
    if others:
        raise ValueError(f"it holds more than named arrays: {', '.join(others[:8])}")
    return {name: tensor.array() for name, tensor in content.items()}

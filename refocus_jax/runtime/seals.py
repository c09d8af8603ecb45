"""Seals: checksums that are saved with a state and show, when it is read, whether every bit is as it was saved.

The checksums are computed on the devices that hold the arrays, so a state of many gigabytes is neither fetched nor read
again.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def seal(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record, every array's shape, type and checksum, and a digest of all this, as JSON values."""
    described = {name: (_shape_and_type(arrays[name]), digest) for name, digest in checksums(arrays).items()}
    sealed = json.loads(json.dumps({"record": dict(record), "arrays": described}))  # as it will be read
    return sealed | {"digest": _digest(sealed)}


def read(path: Path) -> dict[str, Any]:
    """Reads what `seal` returned, without the digest, from a file.

    Raises:
      ValueError: The file is not JSON, is not a seal, or changed after it was saved.
      OSError: The file cannot be read.
    """
    sealed = json.loads(path.read_text())
    if not isinstance(sealed, dict) or "digest" not in sealed:
        raise ValueError(f"{path.name} is not a seal: it is not a JSON object with a digest")
    if sealed.pop("digest") != _digest(sealed):
        raise ValueError(f"{path.name} changed after it was saved")
    return sealed


def misfits(sealed: Mapping[str, Any], wanted: Mapping[str, Any], partial: bool) -> list[str]:
    """Describes how sealed arrays differ from the wanted ones in names, shapes and types, one line per difference.

    Args:
      sealed: From `read`.
      wanted: Arrays, or their shapes and types, by name.
      partial: Sealed arrays that are not wanted do not count as a difference.
    """
    saved, problems = sealed["arrays"], []
    for name in sorted(wanted.keys() | saved.keys()):
        if name not in saved:
            problems.append(f"{name} is not in the checkpoint")
        elif name not in wanted:
            problems += [] if partial else [f"{name} is only in the checkpoint"]
        elif saved[name][0] != (expected := _shape_and_type(wanted[name])):
            problems.append(f"{name} is {saved[name][0]} in the checkpoint, expected {expected}")
    return problems


def changed(sealed: Mapping[str, Any], arrays: Mapping[str, Any]) -> list[str]:
    """Returns the names of arrays whose checksums differ from the sealed ones."""
    return [name for name, digest in checksums(arrays).items() if digest != sealed["arrays"][name][1]]


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Computes a checksum of 64 bits, in hexadecimal, of each array.

    It depends on every bit and its position, but not on how the array is divided: it is the same on all devices,
    machines and numbers of processes. All processes must call this. If one number changes, the checksum always changes;
    arrays that differ in several numbers have the same checksum with a probability of 2^-64.

    Args:
      arrays: jax or numpy arrays of numbers of at most 32 bits. They may be donated as soon as this returns.
    """
    found = {name: _sums(array) for name, array in arrays.items()}  # all are started before the first is fetched
    return {name: "".join(f"{int(part):08x}" for part in parts) for name, parts in jax.device_get(found).items()}


@jax.jit
def _sums(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hashes each number's bits and position and adds up the hashes twice: in sums the order does not matter."""
    bits = array if array.dtype == bool else jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = np.uint32(math.prod(array.shape[axis + 1:]) % 2**32)
        place += stride * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    hashed = _mix(bits.astype(jnp.uint32) ^ _mix(place))
    return jnp.sum(hashed, dtype=jnp.uint32), jnp.sum(_mix(~hashed), dtype=jnp.uint32)


def _mix(words: jax.Array) -> jax.Array:
    """The last step of MurmurHash3: one-to-one on 32 bits, and each bit of the result depends on the whole word."""
    words = (words ^ words >> 16) * np.uint32(0x85EBCA6B)
    words = (words ^ words >> 13) * np.uint32(0xC2B2AE35)
    return words ^ words >> 16


def _digest(sealed: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(sealed, sort_keys=True).encode(), digest_size=16).hexdigest()


def _shape_and_type(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"

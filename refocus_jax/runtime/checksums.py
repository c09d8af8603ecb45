"""Checksums of arrays, computed where they lie: a state of many gigabytes is neither fetched nor read again for them."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    """64 bits of each array, in hexadecimal: they depend on every bit and its place, not on how it is divided.

    Equal on all devices, machines and numbers of processes, all of which must call. One changed number always changes
    the checksum; arrays that differ in more have the same one with a probability of 2^-64.

    Args:
      arrays: of jax or numpy, of numbers of at most 32 bits. They may be donated as soon as this returns.
    """
    found = {name: _sums(array) for name, array in arrays.items()}  # all are under way before the first is fetched
    return {name: "".join(f"{int(part):08x}" for part in parts) for name, parts in jax.device_get(found).items()}


@jax.jit
def _sums(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums over all numbers of hashes of their bits and of their place: sums, as the order must not matter."""
    bits = array if array.dtype == bool else jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, length in enumerate(array.shape):
        stride = np.uint32(math.prod(array.shape[axis + 1:]) % 2**32)
        place += stride * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    hashed = _mix(bits.astype(jnp.uint32) ^ _mix(place))
    return jnp.sum(hashed, dtype=jnp.uint32), jnp.sum(_mix(~hashed), dtype=jnp.uint32)


def _mix(words: jax.Array) -> jax.Array:
    """MurmurHash3's last step: one to one on 32 bits, and every bit of the result depends on all of the word."""
    words = (words ^ words >> 16) * np.uint32(0x85EBCA6B)
    words = (words ^ words >> 13) * np.uint32(0xC2B2AE35)
    return words ^ words >> 16

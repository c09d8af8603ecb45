"""Digests of parameter trees: they tell networks apart, however their arrays are placed on devices."""

import hashlib
from typing import Any

import jax
import numpy as np


def digests(params: Any) -> dict[str, str]:
    """Computes BLAKE2 of the names, shapes, types and bits in each top-level part of a tree of parameters.

    It hashes whole arrays, so that it does not matter how they are divided among devices.
    """
    found = {}
    for part, tree in params.items():
        digest = hashlib.blake2b(digest_size=16)
        for path, leaf in jax.tree.leaves_with_path(tree):  # dictionaries are sorted
            array = np.asarray(jax.device_get(leaf))
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
            digest.update(array.tobytes())
        found[part] = digest.hexdigest()
    return found

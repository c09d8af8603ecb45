"""The device mesh and every sharding rule: nothing else in the package makes a mesh or a sharding."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges `devices` (default: all devices of all processes) along the single axis "data"."""
    devices = jax.devices() if devices is None else devices
    # jax would make the axis Explicit, which puts shardings into the types of all arrays.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 is divided among the devices, the other axes are whole."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Moves one batch onto the devices.

    Args:
      mesh: from `make_mesh`.
      batch: pytree of numpy arrays; axis 0 of each holds this process's share of the examples.

    Returns:
      The same pytree of jax arrays with the examples of all processes, sharded over axis 0.

    Raises:
      ValueError: the examples of all processes cannot be divided evenly among the devices.
    """
    sharding = batch_sharding(mesh)

    def put(array: np.ndarray) -> jax.Array:
        global_size = len(array) * jax.process_count()
        if global_size % mesh.size:
            raise ValueError(
                f"The batch size {global_size} cannot be divided evenly among {mesh.size} devices. "
                f"Choose a multiple of {mesh.size}."
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, batch)

"""The device mesh and all shardings, by the rules of `models.sharding`: nothing else makes a mesh or a sharding.

The mesh has two axes, "data" and "fsdp". Examples are divided among all devices. Parameters and optimizer state are
divided along "fsdp" and repeated along "data". The models do not know the mesh: `jax.jit` gathers each weight where it
is used.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from refocus_jax.models.sharding import DATA_AXIS, FSDP_AXIS, spec

# Arrays of fewer numbers (16 kB) stay whole on every device: gathering them would not be worth the memory saved.
_MIN_SHARDED_SIZE = 4096


def start_enough_threads() -> None:
    """Gives simulated devices of a CPU as many threads as they need; call it before anything asks jax for a device.

    XLA runs simulated devices in one pool of as many threads as there are devices, or cores if these are more. There,
    programs that wait for the same devices can keep each other from running, forever: 200 at once did so, and did not
    with two threads per device (tests/runtime/test_mesh.py). XLA reads the number from the variable PJRT_NPROC, which
    stays as it is if it is large enough.
    """
    counts = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    simulated = max(jax.config.values["jax_num_cpu_devices"], *map(int, counts), 1)
    if simulated > 1:
        present = int(os.environ.get("PJRT_NPROC") or os.cpu_count() or 1)
        os.environ["PJRT_NPROC"] = str(max(2 * simulated, present))


def make_mesh(devices: Sequence[jax.Device] | None = None, *, data: int = -1, fsdp: int = 1) -> Mesh:
    """Arranges devices as (data, fsdp), with devices of one host next to each other along "fsdp".

    Args:
      devices: Default: all devices of all processes.
      data: Size of the axis "data"; -1 takes all devices that "fsdp" leaves.
      fsdp: Size of the axis "fsdp"; -1 takes all devices that "data" leaves.

    Raises:
      ValueError: The product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, len(devices))
    # Axes that are not products of a TPU's physical axes (8 on 4x4x4) are allowed: neighbours where possible.
    arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # jax's default, Explicit, makes the sharding a part of every array's type.
    return Mesh(arranged, (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto,) * 2)


def mesh_sizes(data: int, fsdp: int, num_devices: int) -> tuple[int, int]:
    """Returns the sizes of both axes, with -1 resolved.

    Raises:
      ValueError: The product of the sizes is not the number of devices.
    """
    if data == fsdp == -1 or min(data, fsdp) < -1 or 0 in (data, fsdp):
        raise ValueError(f"mesh.data is {data} and mesh.fsdp is {fsdp}; give sizes of 1 or more, and -1 (the rest) for "
                         "at most one of them")
    known = max(data, 1) * max(fsdp, 1)
    if num_devices % known or (-1 not in (data, fsdp) and known != num_devices):
        raise ValueError(f"mesh.data is {data} and mesh.fsdp is {fsdp}, which {num_devices} devices cannot fill; give "
                         f"sizes whose product is {num_devices}, or -1 (the rest) for one of them")
    rest = num_devices // known
    return (rest if data == -1 else data), (rest if fsdp == -1 else fsdp)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that divides axis 0 among all devices and leaves the other axes whole."""
    return NamedSharding(mesh, spec("example"))


def parameter_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """The sharding of a parameter or optimizer state: "fsdp" divides the largest axis that it can divide evenly.

    Of equally large axes it divides the last. Arrays without such an axis, and small ones, are whole on every device.
    """
    size = mesh.shape[FSDP_AXIS]
    axes = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not axes or np.prod(shape) < _MIN_SHARDED_SIZE:
        return replicated(mesh)
    largest = max(axes, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, spec(*("weight" if axis == largest else None for axis in range(len(shape)))))


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """Applies `parameter_sharding` to every array or shape in a tree."""
    return jax.tree.map(lambda a: parameter_sharding(mesh, a.shape), tree)


def abstract(tree: Any, sharding: Any) -> Any:
    """Describes a tree's arrays as `jax.ShapeDtypeStruct`s, with one sharding for all or a tree of shardings."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, sharding)


def on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Makes the mesh known inside `function`, which is to be jitted; `models.sharding.keep_divided` needs it."""

    def run(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Moves one batch onto the devices.

    Args:
      mesh: From `make_mesh`.
      batch: Pytree of numpy arrays; axis 0 of each holds this process's share of the examples, in order of the
        processes.

    Returns:
      The same pytree of jax arrays with the examples of all processes, sharded along axis 0.

    Raises:
      ValueError: The examples of all processes cannot be divided evenly among the devices.
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


def put_whole(tree: Any, sharding: Any) -> Any:
    """Places arrays on the devices that every process holds whole and with the same values.

    Args:
      tree: Pytree of numpy or jax arrays, including typed random keys. Arrays that already have the wanted sharding
        are left where they are.
      sharding: One sharding for all arrays, or a tree of shardings.
    """

    def put(array, sharding):
        if isinstance(array, jax.Array):
            if array.sharding == sharding:
                return array
            if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(jax.random.key_data(array), sharding))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda array: put(array, sharding), tree)
    return jax.tree.map(put, tree, sharding)


def fetched(results: Iterable[Any]) -> Iterator[Any]:
    """Yields trees of device arrays as numpy arrays, and fetches each while the devices compute the next.

    Args:
      results: An iterable that starts a computation when it is asked for the next tree, such as a generator.
    """
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield jax.device_get(result)

"""Sharding hints of the models: the examples of a batch stay divided among the devices."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec


def keep_divided(x_b: jax.Array) -> jax.Array:
    """Keeps the examples (axis 0) divided among all devices of the current mesh; without a mesh it does nothing.

    Without this hint, where weights are divided too, XLA would divide the layer among the devices that share a weight,
    and exchange activations, which are many times larger than the weights of one layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x_b if mesh.empty else jax.lax.with_sharding_constraint(x_b, PartitionSpec(mesh.axis_names))


def on_own_examples(kernel: Callable[..., jax.Array], *arrays_b: jax.Array) -> jax.Array:
    """Runs a kernel that XLA cannot divide, such as a Pallas kernel, on each device's own examples (axis 0).

    Without a mesh it just runs the kernel. If the devices cannot share the examples evenly, for instance the single
    example of an initialization, every device processes all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(*arrays_b)
    spec = PartitionSpec(mesh.axis_names if arrays_b[0].shape[0] % mesh.size == 0 else None)
    # A kernel does not declare along which mesh axes its results vary, so JAX cannot check this.
    return jax.shard_map(kernel, in_specs=spec, out_specs=spec, check_vma=False)(*arrays_b)

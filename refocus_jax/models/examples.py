"""The one line that a model has for training on several devices."""

import jax
from jax.sharding import PartitionSpec


def keep_divided(x_b: jax.Array) -> jax.Array:
    """Keeps the examples (axis 0) divided among all devices of the mesh that a training step runs on, if on any.

    Where weights are divided too, XLA would else divide the layer among the devices that share a weight, and exchange
    activations, which are many times larger than the weights of one layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x_b if mesh.empty else jax.lax.with_sharding_constraint(x_b, PartitionSpec(mesh.axis_names))

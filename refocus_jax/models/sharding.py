"""How arrays are divided among devices: the rules, and the hints that models give so that examples stay divided."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

# The axes of a mesh.
DATA_AXIS, FSDP_AXIS = "data", "fsdp"
# The mesh axes that each logical axis of an array is divided among. Nothing else says so.
RULES: dict[str, str | tuple[str, ...]] = {
    "example": (DATA_AXIS, FSDP_AXIS),  # axis 0 of batches and activations
    "weight": FSDP_AXIS,  # one axis of each large parameter and of its optimizer state; runtime.mesh chooses which
}


def spec(*logical_axes: str | None) -> PartitionSpec:
    """The partition of an array whose axes have these names of `RULES`; None is whole on every device."""
    return PartitionSpec(*(name and RULES[name] for name in logical_axes))


def keep_divided(x_b: jax.Array) -> jax.Array:
    """Keeps the examples (axis 0) divided among all devices of the current mesh; without a mesh it does nothing.

    Without this hint, where weights are divided too, XLA would divide the layer among the devices that share a weight,
    and exchange activations, which are many times larger than the weights of one layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x_b if mesh.empty else jax.lax.with_sharding_constraint(x_b, spec("example"))


def on_own_examples(kernel: Callable[..., jax.Array], *arrays_b: jax.Array) -> jax.Array:
    """Runs a kernel that XLA cannot divide, such as a Pallas kernel, on each device's own examples (axis 0).

    Without a mesh it just runs the kernel. If the devices cannot share the examples evenly, for instance the single
    example of an initialization, every device processes all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(*arrays_b)
    divided = spec("example" if arrays_b[0].shape[0] % mesh.size == 0 else None)
    # A kernel does not declare along which mesh axes its results vary, so JAX cannot check this.
    return jax.shard_map(kernel, in_specs=divided, out_specs=divided, check_vma=False)(*arrays_b)

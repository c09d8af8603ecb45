"""Digests of parameters."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.digests import digests
from tests.fixtures import small


def test_digests_see_every_bit_and_not_the_devices():
    params = small.tokenizer_params(small.tokenizer())
    params |= {"residual_std": jnp.ones((3,))}
    found = digests(params)
    assert set(found) == {"structure", "alias", "residual_std"}
    mesh = mesh_lib.make_mesh()
    divided, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), mesh_lib.replicated(mesh)
    placed = jax.tree.map(lambda a: jax.device_put(a, whole if a.shape[0] % 2 else divided), params)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))
    assert digests(placed) == digests(jax.device_get(params)) == found
    changed = params | {"residual_std": params["residual_std"].at[0].set(jnp.nextafter(params["residual_std"][0], 2.0))}
    assert [name for name, value in digests(changed).items() if value != found[name]] == ["residual_std"]

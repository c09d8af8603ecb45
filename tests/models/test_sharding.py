import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.sharding import keep_divided, on_own_examples
from refocus_jax.planning import collectives
from refocus_jax.runtime import mesh as mesh_lib
from tests.fixtures import small


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((3, 2))
    assert keep_divided(x) is x
    np.testing.assert_array_equal(on_own_examples(lambda x, y: x + y, x, x), 2 * x)


@pytest.mark.parametrize("architecture", ["var", "mvar"])
def test_weights_are_gathered_and_activations_stay_where_they_are(architecture, monkeypatch):
    """The batch is such that its activations are much larger than the weights."""
    monkeypatch.setattr(mesh_lib, "_MIN_SHARDED_SIZE", 1)
    network, mesh = small.transformer(architecture=architecture), mesh_lib.make_mesh(data=1, fsdp=-1)
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), small.transformer_params(network))
    shardings = mesh_lib.parameter_shardings(mesh, params)
    labels = jax.ShapeDtypeStruct((64,), jnp.int32)
    inputs = jax.ShapeDtypeStruct((64, small.LENGTH - 1, small.CHANNELS), jnp.float32)

    def loss(params, labels, inputs):
        return jnp.square(network.apply({"params": params}, labels, inputs)[0]).sum()

    step = jax.jit(mesh_lib.on_mesh(mesh, jax.grad(loss)), out_shardings=shardings)
    batch = mesh_lib.abstract((labels, inputs), mesh_lib.batch_sharding(mesh))
    found = collectives.count(step.lower(mesh_lib.abstract(params, shardings), *batch).compile().as_text())
    weights = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(params))
    assert 0 < found["all-gather"]["bytes"] < 3 * weights  # forwards and backwards
    assert sum(kind["bytes"] for kind in found.values()) < 8 * weights


@pytest.mark.parametrize("batch", [4, 3])
def test_a_kernel_sees_its_own_examples_or_all(batch):
    """3 examples cannot be shared by two devices."""
    mesh, seen = mesh_lib.make_mesh(), []

    def kernel(x):
        seen.append(x.shape[0])
        return 2 * x

    x = np.arange(batch, dtype=np.float32)
    result = jax.jit(mesh_lib.on_mesh(mesh, lambda x: on_own_examples(kernel, x)))(
        mesh_lib.put_whole(x, mesh_lib.batch_sharding(mesh) if batch == 4 else mesh_lib.replicated(mesh)))
    np.testing.assert_array_equal(result, 2 * x)
    assert seen[0] == (2 if batch == 4 else 3)

import jax
import numpy as np
import pytest

from refocus_jax.runtime import mesh as mesh_lib


def test_mesh_spans_all_devices_in_one_data_axis():
    mesh = mesh_lib.make_mesh()
    assert dict(mesh.shape) == {"data": len(jax.devices())}
    assert mesh_lib.make_mesh(jax.devices()[:1]).size == 1


def test_put_batch_divides_the_examples_in_order():
    mesh = mesh_lib.make_mesh()
    image_bhwc = np.arange(4 * 2 * 2 * 3, dtype=np.float32).reshape(4, 2, 2, 3)
    batch = {"image_bhwc": image_bhwc, "label_b": np.arange(4)}
    placed = mesh_lib.put_batch(mesh, batch)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    shards = placed["image_bhwc"].addressable_shards
    assert {shard.device for shard in shards} == set(mesh.devices)
    assert all(len(shard.data) == 4 // mesh.size for shard in shards)


def test_put_batch_is_an_explicit_transfer():
    """The training loop forbids implicit ones."""
    with jax.transfer_guard("disallow"):
        mesh_lib.put_batch(mesh_lib.make_mesh(), np.zeros((2, 3), np.float32))


def test_put_batch_names_the_batch_size_that_does_not_divide():
    mesh = mesh_lib.make_mesh()
    with pytest.raises(ValueError, match=f"batch size {mesh.size + 1} .* multiple of {mesh.size}"):
        mesh_lib.put_batch(mesh, np.zeros((mesh.size + 1, 3)))


def test_jit_reduces_a_sharded_batch_with_replicated_parameters():
    mesh = mesh_lib.make_mesh()
    weight = jax.device_put(np.float32(3), mesh_lib.replicated(mesh))
    assert weight.is_fully_replicated and weight.sharding.device_set == set(mesh.devices)
    batch = mesh_lib.put_batch(mesh, np.arange(4, dtype=np.float32))
    mean = jax.jit(lambda weight, batch: (weight * batch).mean())(weight, batch)
    assert float(mean) == 4.5

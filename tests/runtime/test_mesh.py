import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from refocus_jax.runtime import mesh as mesh_lib


def test_mesh_spans_all_devices():
    count = len(jax.devices())
    assert dict(mesh_lib.make_mesh().shape) == {"data": count, "fsdp": 1}
    assert dict(mesh_lib.make_mesh(data=1, fsdp=-1).shape) == {"data": 1, "fsdp": count}
    assert mesh_lib.make_mesh(jax.devices()[:1]).size == 1


def test_sizes_that_the_devices_cannot_fill_are_refused():
    assert mesh_lib.mesh_sizes(-1, 4, 8) == (2, 4) and mesh_lib.mesh_sizes(2, -1, 8) == (2, 4)
    for data, fsdp in ((-1, 3), (2, 2), (16, -1)):
        with pytest.raises(ValueError, match=f"mesh.data is {data} and mesh.fsdp is {fsdp}, which 8 devices"):
            mesh_lib.mesh_sizes(data, fsdp, 8)
    for data, fsdp in ((-1, -1), (0, -1), (-2, 1)):
        with pytest.raises(ValueError, match="-1 .the rest. for at most one"):
            mesh_lib.mesh_sizes(data, fsdp, 8)


def test_parameters_are_divided_along_their_largest_axis_that_can_be():
    mesh = mesh_lib.make_mesh(data=1, fsdp=2)

    def rule(*shape):
        return mesh_lib.parameter_sharding(mesh, shape).spec

    assert rule(4, 64, 256) == PartitionSpec(None, None, "fsdp")
    assert rule(4, 256, 64) == PartitionSpec(None, "fsdp", None)
    assert rule(64, 64) == PartitionSpec(None, "fsdp")  # the last of equal axes
    assert rule(1001, 64) == PartitionSpec(None, "fsdp")  # the largest cannot be divided
    assert rule(101, 101) == rule(64) == rule() == PartitionSpec()  # none can be, or it is not worth it
    assert mesh_lib.parameter_sharding(mesh_lib.make_mesh(), (4, 64, 256)).spec == PartitionSpec()


def test_put_batch_divides_the_examples_in_order():
    mesh = mesh_lib.make_mesh()
    image_bhwc = np.arange(4 * 2 * 2 * 3, dtype=np.float32).reshape(4, 2, 2, 3)
    batch = {"image_bhwc": image_bhwc, "label_b": np.arange(4)}
    for mesh in (mesh_lib.make_mesh(), mesh_lib.make_mesh(data=1, fsdp=-1)):
        placed = mesh_lib.put_batch(mesh, batch)
        jax.tree.map(np.testing.assert_array_equal, placed, batch)
        shards = placed["image_bhwc"].addressable_shards
        assert {shard.device for shard in shards} == set(mesh.devices.flat)
        assert all(len(shard.data) == 4 // mesh.size for shard in shards)


def test_put_batch_is_an_explicit_transfer():
    """The training loop forbids implicit transfers."""
    with jax.transfer_guard("disallow"):
        mesh_lib.put_batch(mesh_lib.make_mesh(), np.zeros((2, 3), np.float32))


def test_put_batch_names_the_batch_size_that_does_not_divide():
    mesh = mesh_lib.make_mesh()
    with pytest.raises(ValueError, match=f"batch size {mesh.size + 1} .* multiple of {mesh.size}"):
        mesh_lib.put_batch(mesh, np.zeros((mesh.size + 1, 3)))


def test_jit_reduces_a_sharded_batch_with_replicated_parameters():
    mesh = mesh_lib.make_mesh()
    weight = jax.device_put(np.float32(3), mesh_lib.replicated(mesh))
    assert weight.is_fully_replicated and weight.sharding.device_set == set(mesh.devices.flat)
    batch = mesh_lib.put_batch(mesh, np.arange(4, dtype=np.float32))
    mean = jax.jit(lambda weight, batch: (weight * batch).mean())(weight, batch)
    assert float(mean) == 4.5


def test_results_are_fetched_while_the_next_one_is_computed():
    started = []

    def results():
        for number in range(3):
            started.append(number)
            yield {"number": jnp.int32(number)}

    for number, result in enumerate(mesh_lib.fetched(results())):
        assert isinstance(result["number"], np.ndarray) and result["number"] == number
        assert started == list(range(min(number + 2, 3)))
    assert list(mesh_lib.fetched([])) == []

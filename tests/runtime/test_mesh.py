import os
import subprocess
import sys

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


# Sums over arrays that are divided along one axis or the other: they do not depend on each other, and all are started
# before the first has ended.
MANY = """
import faulthandler
faulthandler.dump_traceback_later(100, exit=True)
from refocus_jax.runtime import mesh as mesh_lib
mesh_lib.start_enough_threads()
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
mesh = mesh_lib.make_mesh(data=2, fsdp=4)
total = jax.jit(lambda numbers: numbers.sum(), out_shardings=mesh_lib.replicated(mesh))
arrays = [jax.device_put(np.full(8, number), NamedSharding(mesh, PartitionSpec(("data", "fsdp")[number % 2])))
          for number in range(200)]
for _ in range(10):
    assert jax.device_get([total(array) for array in arrays]) == [8 * number for number in range(200)]
"""


@pytest.mark.parametrize("simulates", [{"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
                                       {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "8"}])
def test_many_programs_at_once_all_end(simulates):
    ended = subprocess.run([sys.executable, "-c", MANY], env=os.environ | simulates, capture_output=True, text=True,
                           check=False)
    assert ended.returncode == 0, ended.stderr


def test_only_simulated_devices_change_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)

    def threads(flags, **given):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.delenv("PJRT_NPROC", raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        mesh_lib.start_enough_threads()
        return os.environ.get("PJRT_NPROC")

    assert threads("") is None and threads("--xla_cpu_use_fusion_emitters=false") is None
    assert threads("--xla_force_host_platform_device_count=1") is None
    assert threads("--xla_force_host_platform_device_count=8") == "16"
    assert threads("--xla_force_host_platform_device_count=2") == "6"  # as many as the machine has cores
    assert threads("--xla_force_host_platform_device_count=8", PJRT_NPROC="3") == "16"
    assert threads("--xla_force_host_platform_device_count=8", PJRT_NPROC="20") == "20"

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.sharding import spec
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime import seals


def one(array):
    return seals.checksums({"array": array})["array"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_checksum_depends_on_every_bit_and_its_place(dtype):
    original = np.asarray(jnp.arange(12).reshape(3, 4) % 5, dtype) if dtype != "bool" else np.eye(3, 4, dtype=bool)
    seen = {one(original)}
    for index in range(original.size):
        for bit in range(1 if dtype == "bool" else 8 * original.dtype.itemsize):
            changed = bytearray(original.tobytes())
            changed[index * original.dtype.itemsize + bit // 8] ^= 1 << bit % 8
            seen.add(one(np.frombuffer(changed, original.dtype).reshape(original.shape)))
    bits = 1 if dtype == "bool" else 8 * original.dtype.itemsize
    assert len(seen) == 1 + original.size * bits
    assert one(np.roll(original, 1, axis=1)) not in seen and one(original[::-1].copy()) not in seen


def test_zeros_of_two_signs_and_all_nan_differ():
    nan = np.array([0x7fc00000, 0x7fc00001, 0xffc00000], np.uint32).view(np.float32)
    assert len({one(np.array([value])) for value in (0.0, -0.0, *nan) for value in [np.float32(value)]}) == 5


def test_scalars_and_empty_arrays_have_checksums_too():
    assert one(jnp.int32(3)) != one(jnp.int32(4))
    assert one(jnp.zeros((0, 3))) == 16 * "0"


def test_a_checksum_does_not_depend_on_how_an_array_is_divided():
    mesh = mesh_lib.make_mesh(fsdp=2)
    array = np.random.default_rng(0).random((8, 6), np.float32)
    placed = [jax.device_put(array, sharding) for sharding in (
        mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh),
        jax.NamedSharding(mesh, spec(None, "weight")))]
    assert {one(array)} == set(map(one, placed))


def test_a_seal_is_read_as_it_was_made(tmp_path):
    path = tmp_path / "seal.json"
    sealed = seals.seal({"position": (1, 2), 3: "é"}, {"a/b": jnp.ones((2, 3))})
    path.write_text(json.dumps(sealed))
    read = seals.read(path)
    assert read["record"] == {"position": [1, 2], "3": "é"} and read["arrays"]["a/b"][0] == "float32[2, 3]"
    assert seals.changed(read, {"a/b": jnp.ones((2, 3))}) == []
    assert seals.changed(read, {"a/b": jnp.ones((2, 3)).at[1, 1].add(1e-7)}) == ["a/b"]


@pytest.mark.parametrize(("content", "says"), [
    ("[1, 2]", "seal.json is not a seal"), ('"text"', "seal.json is not a seal"), ("3", "seal.json is not a seal"),
    ("{}", "seal.json is not a seal"), ('{"digest": "0"}', "seal.json changed after it was saved"), ("{", "Expecting")])
def test_every_kind_of_damage_is_a_value_error(tmp_path, content, says):
    path = tmp_path / "seal.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        seals.read(path)

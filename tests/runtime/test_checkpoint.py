import dataclasses
import resource
import shutil
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.checkpoint import Checkpoints


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    codebook: Any = None


def make_state(seed=0):
    """All that occurs: scalars, bfloat16, nan, nested optimizer states, empty nodes."""
    mesh = mesh_lib.make_mesh()
    kernel = jax.random.normal(jax.random.key(seed), (4, 6))
    encoder = {"kernel": kernel, "bias": jnp.full(6, jnp.nan)}
    params = {"encoder": encoder, "stack": (kernel.astype(jnp.bfloat16),)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), True))
    state = State(jnp.int32(seed), params, optimizer.init(params))
    return jax.device_put(state, mesh_lib.replicated(mesh))


def abstract(state, sharding=None):
    def struct(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding or array.sharding)

    return jax.tree.map(struct, state)


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("make_template", [abstract, lambda state: make_state(seed=1)])
def test_restores_every_bit(tmp_path, make_template):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored = checkpoints.restore(make_template(state))
    assert_identical(restored, state)


def test_restores_onto_another_sharding(tmp_path):
    mesh = mesh_lib.make_mesh()
    state = {"x": jnp.arange(8.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        for sharding in (mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)):
            restored = checkpoints.restore(abstract(state, sharding))
            assert restored["x"].sharding == sharding
            assert_identical(restored, state)


def test_restores_to_the_host_without_a_sharding(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        restored = checkpoints.restore(jax.eval_shape(lambda: make_state()))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    assert_identical(restored, state)


def test_a_record_comes_back_as_it_was_when_it_was_saved(tmp_path):
    record = {"position": {"examples": 40}, "names": ["a", "é"]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state())
        checkpoints.save(5, make_state(), record)
        record["position"]["examples"] = 41
        assert checkpoints.record() == {"position": {"examples": 40}, "names": ["a", "é"]}
        assert checkpoints.record(1) == {}


def test_donating_the_saved_state_does_not_change_the_checkpoint(tmp_path):
    make = jax.jit(lambda: {"x": jnp.arange(1_000_000.0)})
    step = jax.jit(lambda state: {"x": -state["x"]}, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        state = make()
        checkpoints.save(0, state)
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        assert_identical(checkpoints.restore(abstract(state)), make())


def test_a_part_is_restored_alone(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {"position": 7})
        restored = checkpoints.restore({"params": abstract(state.params)}, partial=True)
        assert_identical(restored, {"params": state.params})
        without_optimizer = dataclasses.replace(abstract(state), opt_state=None)
        assert_identical(checkpoints.restore(without_optimizer, partial=True), state.replace(opt_state=None))


def test_the_latest_are_kept_and_any_of_them_can_be_chosen(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (0, 4, 10):
            checkpoints.save(step, {"x": jnp.float32(step)})
        template = abstract({"x": jnp.float32(0)})
        assert checkpoints.latest_step() == 10
        assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "4"]
        assert float(checkpoints.restore(template, step=4)["x"]) == 4
        with pytest.raises(FileNotFoundError, match=r"step 0 .* one of \[4, 10\]"):
            checkpoints.restore(template, step=0)


def test_an_interrupted_save_is_neither_found_nor_in_the_way(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.float32(1)})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        checkpoints.save(2, {"x": jnp.float32(2)})
        assert float(checkpoints.restore(abstract({"x": jnp.float32(0)}))["x"]) == 2


def test_an_older_step_is_not_saved_over_a_newer_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": jnp.float32(1)})
        for step in (5, 4):
            with pytest.raises(ValueError, match=f"Cannot save step {step}: .* holds step 5"):
                checkpoints.save(step, {"x": jnp.float32(2)})


def test_looking_for_checkpoints_creates_nothing(tmp_path):
    with Checkpoints(tmp_path / "tokenizer") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match="tokenizer.*Train this stage first"):
            checkpoints.restore({"x": jnp.float32(0)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"x": jnp.zeros(3), "y": jnp.zeros(2)}, r"x is float32\[2\] in .* expected float32\[3\]"),
        ({"x": jnp.zeros(2, "bfloat16"), "y": jnp.zeros(2)}, r"x is float32\[2\] .* expected bfloat16\[2\]"),
        ({"x": jnp.zeros(2), "y": jnp.zeros(2), "z": jnp.zeros(2)}, "z is not in the checkpoint"),
        ({"x": jnp.zeros(2)}, "y is only in the checkpoint"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(tmp_path, template, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"x": jnp.zeros(2), "y": jnp.zeros(2)})
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(template)


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_any_change_of_any_file_is_noticed(tmp_path, caplog):
    state = make_state()
    with Checkpoints(tmp_path / "original") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {"position": 7})
    for number, path in enumerate(files(tmp_path / "original" / "2")):
        for kind in ("cut", "flipped", "lost"):
            copy = tmp_path / f"{kind}_{number}"
            shutil.copytree(tmp_path / "original", copy)
            damaged, content = copy / path.relative_to(tmp_path / "original"), bytearray(path.read_bytes())
            if kind == "lost":
                damaged.unlink()
            elif kind == "cut":
                damaged.write_bytes(content[:-1])
            elif content:
                content[len(content) // 3] ^= 4
                damaged.write_bytes(content)
            harmless = not content or path.name == "digests.json" and kind == "lost"
            with Checkpoints(copy) as checkpoints:
                assert checkpoints.latest_step() == (2 if harmless else 1), (kind, path)
    assert "digests.json changed after it was saved" in caplog.text
    with Checkpoints(tmp_path / "cut_0") as checkpoints:
        assert_identical(checkpoints.restore(abstract(state)), state)
        checkpoints.set_damaged_aside()
        checkpoints.save(2, state)
    with Checkpoints(tmp_path / "cut_0") as checkpoints:
        assert checkpoints.latest_step() == 2
    assert (tmp_path / "cut_0" / "damaged_2").is_dir()


def test_a_full_disk_leaves_the_checkpoint_before_intact(tmp_path):
    """No file may grow beyond 20 kB, as on a full disk."""
    state, large = make_state(), jax.device_put({"w": np.random.default_rng(0).random((100, 1000))})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RuntimeError, match="Saving the checkpoint of step 2 .* failed; that of step 1 is intact"):
            with Checkpoints(tmp_path) as checkpoints:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
                checkpoints.save(2, large)
                checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert_identical(checkpoints.restore(abstract(state)), state)
        checkpoints.save(2, state)

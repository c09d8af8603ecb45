import dataclasses
import os
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
    """A state with all that occurs: scalars, bfloat16, NaN, nested optimizer states and empty nodes."""
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


def test_checkpoints_of_every_nth_step_are_kept_for_good(tmp_path):
    for first in (1, 5):  # also when a run resumes
        with Checkpoints(tmp_path, keep=1, keep_every=4) as checkpoints:
            for step in range(first, first + 4):
                checkpoints.save(step, {"x": jnp.float32(step)})
    with Checkpoints(tmp_path, keep=1, keep_every=4) as checkpoints:
        checkpoints.save(9, {"x": jnp.float32(9)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "8", "9"]


def test_a_training_is_set_back_once_and_nothing_is_lost(tmp_path):
    template = abstract({"x": jnp.float32(0)})
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        assert checkpoints.starting_step() is None
        with pytest.raises(FileNotFoundError, match="resume_step is 2: No checkpoint in .*Train this stage first"):
            checkpoints.starting_step(2)
        for step in (1, 2, 3, 4):
            checkpoints.save(step, {"x": jnp.float32(step)})
        with pytest.raises(FileNotFoundError, match=r"resume_step is 7: .*step 7 .* one of \[1, 2, 3, 4\]"):
            checkpoints.starting_step(7)
        assert (checkpoints.starting_step(), checkpoints.starting_step(2)) == (4, 2)
        checkpoints.set_back(2)
        assert (checkpoints.starting_step(), checkpoints.starting_step(2)) == (2, 2)
        checkpoints.save(3, {"x": jnp.float32(30)}, {"resumed_from": 2})
        assert checkpoints.starting_step(2) == 3 and checkpoints.starting_step(1) == 1
        assert float(checkpoints.restore(template)["x"]) == 30
        checkpoints.set_back(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1", "replaced_2", "replaced_3", "replaced_3_1", "replaced_4"]
    shutil.move(tmp_path / "replaced_3", tmp_path / "3")
    with Checkpoints(tmp_path) as checkpoints:
        assert float(checkpoints.restore(template)["x"]) == 3


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


def damage(path, kind, place=1 / 3):
    content = bytearray(path.read_bytes())
    if kind == "lost":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[:int(len(content) * place)])
    else:
        content[int(len(content) * place)] ^= 4
        path.write_bytes(content)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two checkpoints, and the state of each."""
    directory, states = tmp_path_factory.mktemp("two") / "checkpoints", {step: make_state(step) for step in (1, 2)}
    with Checkpoints(directory) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"position": step})
    return directory, states


def restored_step(directory, states):
    """Restores a state, checks that all of it is as it was saved, and returns its step."""
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(abstract(states[2]))
        step = checkpoints.latest_step()
        assert_identical(restored, states[step])
        assert checkpoints.record() == {"position": step} and "params" in checkpoints.parts()
    return step


def test_no_damage_restores_another_bit(two, tmp_path, caplog):
    """Damages each file: either the file is not needed, or the checkpoint before is restored instead."""
    directory, states = two
    fell_back = set()
    for number, path in enumerate(files(directory / "2")):
        for kind, place in (("cut", 0), ("cut", 0.9), ("flip", 0.1), ("flip", 0.5), ("flip", 0.9), ("lost", 0)):
            copy = tmp_path / f"{number}_{kind}_{place}"
            shutil.copytree(directory, copy)
            caplog.clear()
            damage(copy / path.relative_to(directory), kind, place)
            step = restored_step(copy, states)
            assert ("The checkpoint of step 2" in caplog.text) == (step == 1)
            if step == 1:
                fell_back.add((path.relative_to(directory / "2").parts[:2], kind))
    for part in (("record", "record.json"), ("state", "d"), ("state", "manifest.ocdbt")):
        assert {(part, kind) for kind in ("cut", "flip", "lost")} <= fell_back


def test_whether_a_template_fits_is_known_without_the_arrays(two, tmp_path):
    directory, states = two
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    shutil.rmtree(copy / "2" / "state")
    step = {"step": abstract(states[2].step)}
    with Checkpoints(copy) as checkpoints:
        checkpoints.check_fit(abstract(states[2]))
        checkpoints.check_fit(step, partial=True)
        with pytest.raises(ValueError, match="(?s)step 2 in .*params/encoder/bias is only in the checkpoint"):
            checkpoints.check_fit(step)


def test_files_that_do_not_belong_there_do_no_harm(two, tmp_path):
    directory, states = two
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for name in (".DS_Store", "2/.DS_Store", "2/state/.nfs0001", "2/state/d/notes.txt~", "2/record/record.json~",
                 "2/digests.json", "notes"):
        (copy / name).write_text("not a checkpoint's")
    assert restored_step(copy, states) == 2


def test_folders_that_are_not_checkpoints_are_skipped_and_not_in_the_way(two, tmp_path):
    directory, states = two
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for name in ("3", "007", "best", "4.orbax-checkpoint-tmp/state", "6"):
        (copy / name).mkdir(parents=True)
    (copy / "5").write_text("a file")
    (copy / "6" / ".DS_Store").touch()
    assert restored_step(copy, states) == 2
    with Checkpoints(copy) as checkpoints:
        for step in (3, 5):
            checkpoints.save(step, states[1])
    assert {path.name for path in copy.iterdir() if path.name.isdecimal()} == {"3", "5"}  # and they did not count
    assert (copy / "damaged_5").read_text() == "a file" and (copy / "best").is_dir()
    for name in ("3", "5"):
        shutil.rmtree(copy / name)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.latest_step() is None


def test_the_first_save_sets_aside_what_was_found_damaged(two, tmp_path):
    directory, states = two
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    shutil.copytree(directory / "1", copy / "damaged_2")  # of an earlier time
    damage(copy / "2" / "state" / "manifest.ocdbt", "flip")
    with Checkpoints(copy) as checkpoints:
        checkpoints.restore(abstract(states[2]))
        with pytest.raises(ValueError, match="step 2 .* is damaged: .*Choose one of .1."):
            checkpoints.restore(abstract(states[2]), step=2)
        checkpoints.save(2, states[2], {"position": 2})
    assert restored_step(copy, states) == 2
    assert (copy / "damaged_2_1" / "state").is_dir()


def test_nothing_starts_over_where_all_checkpoints_are_damaged(two, tmp_path):
    directory, states = two
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for step in "12":
        damage(copy / step / "record" / "record.json", "cut")
    before = files(copy)
    with Checkpoints(copy) as checkpoints:
        for ask in (lambda: checkpoints.restore(abstract(states[2])), checkpoints.record, checkpoints.parts,
                    checkpoints.latest_step, lambda: checkpoints.save(3, states[1])):
            with pytest.raises(ValueError, match=r"All .* are damaged \(step 2: .*; step 1: .*rename or remove"):
                ask()
    assert files(copy) == before


def read_bytes():
    """Returns how many bytes this process has read from files."""
    with open("/proc/self/io") as file:
        return int(file.readline().removeprefix("rchar:"))


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="Linux says what a process reads")
def test_asking_reads_nothing_and_restoring_reads_once(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 2**32, 2_000_000, np.uint32)  # 8 MB that cannot be compressed
    state = jax.device_put({"read": numbers, "other": numbers[::-1].copy()})
    with Checkpoints(tmp_path) as checkpoints:
        before = read_bytes()
        for step in (1, 2):
            checkpoints.save(step, state)
        checkpoints.wait()
        assert read_bytes() - before < 1e6  # nothing is read back
    with Checkpoints(tmp_path) as checkpoints:
        before = read_bytes()
        assert checkpoints.latest_step() == 2 and checkpoints.record() == {}
        assert checkpoints.parts() == {"read", "other"}
        checkpoints.check_fit(abstract(state))
        assert read_bytes() - before < 1e5
        checkpoints.restore({"read": abstract(state["read"])}, partial=True)
        assert read_bytes() - before < 1.2 * numbers.nbytes


def test_reading_writes_nothing(two):
    directory, states = two

    def found():
        return {path: path.stat().st_mtime_ns for path in (directory, *directory.rglob("*"))}

    before = found()
    restored_step(directory, states)
    assert found() == before


def test_a_place_that_cannot_be_written_is_named_with_its_cause(tmp_path):
    (tmp_path / "file").touch()
    with Checkpoints(tmp_path / "file" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(RuntimeError, match="step 1 in .*file/checkpoints failed.*Correct what the error names.*"
                                               "Not a directory") as raised:
            checkpoints.save(1, make_state())
    assert "Make room" not in str(raised.value)


def test_a_full_disk_leaves_the_checkpoint_before_intact(tmp_path):
    """Imitates a full disk: no file may grow beyond 20 kB."""
    state, large = make_state(), jax.device_put({"w": np.random.default_rng(0).random((100, 1000))})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        message = "Saving the checkpoint of step 2 .* failed; that of step 1 is intact.*Make room"
        with pytest.raises(RuntimeError, match=message), Checkpoints(tmp_path) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            checkpoints.save(2, large)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert_identical(checkpoints.restore(abstract(state)), state)
        checkpoints.save(2, state)

"""The loop with a toy task: its order, its files, and resuming bit for bit."""

import json

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.training import loop


@flax.struct.dataclass
class ToyState:
    step: jax.Array
    w: jax.Array


class ToyTask:
    """Follows the data and its own noise, so that a wrong batch or a wrong key shows."""

    name = "toy"

    def init(self, key):
        return ToyState(jnp.zeros((), jnp.int32), jax.random.normal(key, (3,)))

    def update(self, state, frozen, batch, key):
        noise = jax.random.normal(jax.random.fold_in(key, state.step), (3,))
        w = 0.9 * state.w + frozen * batch["x"].mean() + 0.1 * noise
        return ToyState(state.step + 1, w), {"loss/total": jnp.sum(w**2)}


class Interrupt(Exception):
    pass


def run(directory, steps, interrupt_at=None, **settings):
    """Trains; with `interrupt_at` the data source dies when it is asked for that batch."""
    seen = []

    def evaluator(state, frozen):
        seen.append(int(state.step))
        yield "validation/w", float(state.w[0])
        yield "picture", np.zeros((4, 4, 3), np.uint8)

    def fail(index, x):
        if interrupt_at is not None and index >= 4 * interrupt_at:
            raise Interrupt
        return {"x": np.float32(x)}

    data = grain.MapDataset.range(100).seed(1).shuffle().repeat().map_with_index(fail).batch(4)
    # No read-ahead: the failure comes at its batch.
    batches = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    state = loop.train(ToyTask(), loop.LoopSettings(steps, log_every=2, evaluate_every=4, save_every=3, **settings),
                       batches, frozen=jnp.ones(()), key=jax.random.key(0), mesh=mesh_lib.make_mesh(),
                       directory=str(directory), evaluator=evaluator)
    return state, seen


def metrics(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "images_per_second")} for line in lines]


def test_interrupted_run_resumes_bit_for_bit(tmp_path):
    straight, _ = run(tmp_path / "straight", 10)
    with pytest.raises(Interrupt):
        run(tmp_path / "broken", 10, interrupt_at=8)
    resumed, _ = run(tmp_path / "broken", 10)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), straight, resumed))
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "broken")


def test_evaluates_saves_and_logs_when_it_says(tmp_path):
    _, seen = run(tmp_path, 10)
    assert seen == [4, 8, 10]
    logged = [line["step"] for line in metrics(tmp_path) if "loss/total" in line]
    assert logged == [2, 4, 6, 8, 10]
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == 10
    assert (tmp_path / "pictures" / "picture.png").exists()


def test_a_finished_run_does_nothing_more(tmp_path):
    first, _ = run(tmp_path, 6)
    before = metrics(tmp_path)
    again, seen = run(tmp_path, 6)
    assert seen == [] and metrics(tmp_path) == before
    assert (first.w == again.w).all()


def test_a_longer_run_goes_on(tmp_path):
    run(tmp_path / "two", 5)
    longer, seen = run(tmp_path / "two", 10)
    straight, _ = run(tmp_path / "one", 10)
    assert (longer.w == straight.w).all() and seen == [8, 10]


def test_one_device_gives_the_result_of_two(tmp_path):
    assert len(jax.devices()) >= 2, "conftest simulates two devices"
    two, _ = run(tmp_path / "two", 3)
    with pytest.MonkeyPatch.context() as patch:
        one_device = mesh_lib.make_mesh(jax.devices()[:1])
        patch.setattr(mesh_lib, "make_mesh", lambda: one_device)
        one, _ = run(tmp_path / "one", 3)
    np.testing.assert_allclose(one.w, two.w, rtol=1e-6)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="save_every is 0"):
        loop.LoopSettings(10, save_every=0)

"""Stage 1: losses, revival, discriminator, resuming, devices."""

import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax import experiment
from refocus_jax.focus import noise_stds
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.training import loop, tokenizer_task


@pytest.fixture(scope="module")
def stepper(micro, images):
    """stepper(argument, changes) -> (task, jitted update, first state); one compilation each."""

    @functools.cache
    def make(argument=None, changes=()):
        c = micro(argument)
        c.tokenizer_training.steps = 60  # so that the learning rate does not fall at once
        for name, value in changes:
            c.update_from_flattened_dict({name: value})
        task = experiment.tokenizer_task(c)
        return task, jax.jit(task.update), jax.jit(task.init)(jax.random.key(0))

    return make


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def steps(update, state, images, number, frozen=None):
    values = []
    for i in range(number):
        state, scalars = update(state, frozen, {"image": images[4 * i:4 * i + 4]}, jax.random.key(1))
        values.append({name: float(value) for name, value in scalars.items()})
    return state, values


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    quantized, latent = jnp.array([0.1, 0.7]), jnp.array([1.3, -2.0])
    assert (tokenizer_task.straight_through(quantized, latent) == quantized).all()
    weights = jnp.array([3.0, 5.0])
    gradients = jax.grad(lambda q, z: tokenizer_task.straight_through(q, z) @ weights, (0, 1))(quantized, latent)
    assert gradients[0].tolist() == [0, 0] and gradients[1].tolist() == [3, 5]


@pytest.mark.parametrize(("argument", "present", "absent"), [
    (None, {"view", "alias_reconstruction", "adversarial"}, {"consistency"}),
    ("residual", {"view", "consistency"}, set()),
    ("var", {"vq"}, {"view", "consistency", "alias_vq"}),
    ("shared", {"alias_reconstruction"}, set()),
])
def test_every_pyramid_has_its_terms(stepper, images, argument, present, absent):
    _, update, state = stepper(argument)
    _, values = steps(update, state, images, 1)
    terms = {name.removeprefix("loss/") for name in values[0] if name.startswith("loss/")}
    assert present <= terms and not absent & terms
    summed = sum(values[0][f"loss/{t}"] for t in terms - {"total", "discriminator"})
    np.testing.assert_allclose(values[0]["loss/total"], summed, rtol=1e-5)


def test_it_learns(stepper, images):
    _, update, state = stepper()
    _, values = steps(update, state, np.concatenate([images] * 3), 40)
    first, last = (np.mean([v["loss/reconstruction"] for v in part]) for part in (values[:5], values[-5:]))
    assert last < 0.85 * first


def test_first_step_fills_the_codebook_from_data_and_later_ones_revive(stepper, images):
    task, update, state = stepper()
    before = state.params["structure"]["quantizer"]["codebook"]["embedding"]
    state, (values,) = steps(update, state, images, 1)
    after = state.params["structure"]["quantizer"]["codebook"]["embedding"]
    assert values["dead_codes/structure"] == before.shape[0]
    assert (after != before).all(axis=1).all()
    assert (state.usage["structure"] == 0).all()
    _, values = steps(update, state, images, 3)
    assert [v["dead_codes/structure"] > 0 for v in values] == [False, True, False]  # every second step
    late = state.replace(step=jnp.int32(task.steps - 1 + task.steps % 2))
    assert steps(update, late, images, 1)[1][0]["dead_codes/structure"] == 0  # not shortly before the end


def test_discriminator_waits_for_its_step(stepper, images):
    _, update, state = stepper()
    waiting, values = steps(update, state, images, 2)
    assert equal(waiting.discriminator, state.discriminator)
    assert all(v["loss/adversarial"] == 0 == v["adversarial_weight"] for v in values)
    started, (values,) = steps(update, waiting, images, 1)
    assert not equal(started.discriminator, waiting.discriminator)
    assert 0 < values["adversarial_weight"] <= 100 and values["loss/discriminator"] > 0


def test_discriminator_can_be_off(stepper, images):
    _, update, state = stepper(None, (("adversarial.weight", 0.0),))
    state, values = steps(update, state, images, 1)
    assert state.discriminator is None and "loss/adversarial" not in values[0]


def test_residual_std_is_the_mean_square_over_all_steps(stepper, images):
    task, update, state = stepper()
    state, _ = steps(update, state, images, 3)
    views = task.tokenizer.optics.views(tokenizer_task.to_unit_range(images[:12]))
    noise = noise_stds(3)[:2]
    expected = [float(jnp.sqrt(jnp.square(r).mean() + n**2))
                for r, n in zip(task.tokenizer.residuals(views), noise, strict=True)]
    np.testing.assert_allclose(state.params["residual_std"], expected, rtol=0.05)


def test_shared_streams_have_one_network(stepper):
    _, _, state = stepper("shared")
    assert set(state.params) == {"structure", "residual_std"} and set(state.usage) == {"structure"}


def test_loss_on_one_device_is_that_on_two(stepper, images):
    task, _, state = stepper()
    values = []
    for count in (1, 2):
        mesh = mesh_lib.make_mesh(jax.devices()[:count])
        placed = jax.device_put(state, mesh_lib.replicated(mesh))
        batch = mesh_lib.put_batch(mesh, {"image": images[:4]})
        key = jax.device_put(jax.random.key(1), mesh_lib.replicated(mesh))
        values.append(jax.jit(task.update)(placed, None, batch, key)[1])
    for name in ("loss/total", "loss/reconstruction", "gradient_norm"):
        np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-5)


def test_parts_of_a_batch_change_nothing(stepper, images):
    """Without noise, which is drawn for each part, nor an alias stream, whose scale is each part's own."""
    quiet = (("focus.noise_first", 0.0), ("focus.noise_last", 0.0))
    _, update, state = stepper("var", quiet)
    _, other, first = stepper("var", (*quiet, ("tokenizer_batch_parts", 2)))
    (_, values), (_, same) = (steps(f, s, images, 3) for f, s in ((update, state), (other, first)))
    assert values[2]["loss/discriminator"] > 0  # it has started
    for name in ("loss/reconstruction", "loss/vq", "latent_rms", "dead_codes/structure"):
        for i in range(3):  # rounding is enough to change a code, and what follows from it
            np.testing.assert_allclose(same[i][name], values[i][name], rtol=1e-2 if i else 1e-5, err_msg=name)
    np.testing.assert_allclose(same[2]["loss/discriminator"], values[2]["loss/discriminator"], rtol=1e-2)
    # The weight of the adversarial term is a ratio of gradients, of each part.
    np.testing.assert_allclose(same[2]["adversarial_weight"], values[2]["adversarial_weight"], rtol=0.5)


class Interrupt(Exception):
    pass


def test_interrupted_stage_1_resumes_bit_for_bit(micro, images, tmp_path):
    c = micro()
    task, mesh = experiment.tokenizer_task(c), mesh_lib.make_mesh()

    def run(directory, interrupt_at=None):
        def batch(index, i):
            if interrupt_at is not None and index >= interrupt_at:
                raise Interrupt
            return {"image": images[4 * i:4 * i + 4]}

        data = grain.MapDataset.range(16).seed(0).shuffle().repeat().map_with_index(batch)
        batches = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return loop.train(task, loop.LoopSettings(**c.tokenizer_training), batches, frozen=None, key=jax.random.key(0),
                          mesh=mesh, directory=str(directory), evaluator=lambda state, frozen: ())

    straight = run(tmp_path / "straight")
    with pytest.raises(Interrupt):
        run(tmp_path / "broken", interrupt_at=5)
    assert equal(straight, run(tmp_path / "broken"))

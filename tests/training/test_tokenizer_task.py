"""Stage 1: losses, revival, discriminator, resuming, devices."""

import dataclasses
import functools

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.config import build
from refocus_jax.data import pipeline
from refocus_jax.focus import noise_stds
from refocus_jax.judges import perceptual
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.training import adversarial, loop, tokenizer_task
from tests.fixtures import small

# Without noise, which differs between the parts of a batch.
QUIET = (("focus.noise_first", 0.0), ("focus.noise_last", 0.0))


@pytest.fixture(scope="module")
def stepper(micro, images):
    """stepper(argument, changes) -> (task, jitted update, first state); one compilation each."""

    @functools.cache
    def make(argument=None, changes=()):
        c = micro(argument)
        c.tokenizer.train.steps = 60  # so that the learning rate does not fall immediately
        for name, value in changes:
            c.update_from_flattened_dict({name: value})
        task = build.tokenizer_task(c)
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


@pytest.mark.parametrize(("argument", "changes", "present", "absent"), [
    (None, (), {"view", "alias_reconstruction", "adversarial"}, {"consistency"}),
    pytest.param("residual", (), {"view", "consistency"}, set(), marks=pytest.mark.slow),
    ("var", QUIET, {"vq"}, {"view", "consistency", "alias_vq"}),  # a program that another test has too
    pytest.param("shared", (), {"alias_reconstruction"}, set(), marks=pytest.mark.slow),
])
def test_every_pyramid_has_its_terms(stepper, images, argument, changes, present, absent):
    _, update, state = stepper(argument, changes)
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


def test_discriminator_can_be_off(micro, images):
    c = micro()
    c.tokenizer.adversarial.weight = 0.0
    task, key = build.tokenizer_task(c), jax.random.key(0)
    state, values = jax.eval_shape(task.update, jax.eval_shape(task.init, key), None, {"image": images[:4]}, key)
    assert state.discriminator is None and "loss/adversarial" not in values and "loss/total" in values


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


class OneStage(nn.Module):
    """The smallest perceptual network."""

    @nn.compact
    def stages(self, pixels_bhwc):
        return [nn.Conv(4, (3, 3))(pixels_bhwc / 255)]

    def __call__(self, pixels_bhwc):
        return self.stages(pixels_bhwc)


@pytest.fixture(scope="module")
def perceptive(stepper):
    """A task with a perceptual loss, two sets of parameters for its network, and a first state."""
    task, _, state = stepper()
    task = dataclasses.replace(task, perceptual=OneStage(), losses=dataclasses.replace(task.losses, perceptual=0.5))
    networks = [small.random_params(task.perceptual.init, np.zeros((1, 8, 8, 3), np.float32), seed=seed)["params"]
                for seed in (0, 1)]
    return task, networks, state


@pytest.fixture(scope="module")
def on_devices(perceptive, images):
    """on_devices(count, network) -> the values of one step on `count` devices; and the jitted updates by count."""
    task, _, state = perceptive
    meshes = {count: mesh_lib.make_mesh(jax.devices()[:count]) for count in (1, 2)}
    updates = {count: jax.jit(mesh_lib.on_mesh(mesh, task.update)) for count, mesh in meshes.items()}

    def run(count, network):
        batch = mesh_lib.put_batch(meshes[count], {"image": images[:4]})
        placed = jax.device_put((state, network), mesh_lib.replicated(meshes[count]))
        return updates[count](*placed, batch, jax.device_put(jax.random.key(1), mesh_lib.replicated(meshes[count])))[1]

    return run, updates


def test_perceptual_network_is_an_argument_of_the_step(perceptive, on_devices):
    (task, networks, _), (run, updates) = perceptive, on_devices
    assert jax.tree.map(lambda a: a.shape, task.frozen_shapes) == jax.tree.map(lambda a: a.shape, networks[0])
    one, other = (jax.device_get(run(1, network)) for network in networks)
    assert updates[1]._cache_size() == 1
    assert one["loss/perceptual"] != other["loss/perceptual"]
    assert one["loss/reconstruction"] == other["loss/reconstruction"]
    np.testing.assert_allclose(one["loss/total"] - other["loss/total"],
                               one["loss/perceptual"] - other["loss/perceptual"], atol=1e-5)


def test_loss_on_one_device_is_that_on_two(perceptive, on_devices):
    (_, (network, _), _), (run, _) = perceptive, on_devices
    one, two = run(1, network), run(2, network)
    for name in ("loss/total", "loss/reconstruction", "loss/perceptual", "gradient_norm"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5)


@pytest.fixture(scope="module")
def perceptual_terms(perceptive, images):
    """The adaptive weight of one batch after the adversarial loss has begun: from the task and by its definition."""
    task, (network, _), state = perceptive
    state, image, key = state.replace(step=jnp.int32(2)), tokenizer_task.to_unit_range(images[:4]), jax.random.key(2)
    params = {name: value for name, value in state.params.items() if name != "residual_std"}

    def by_loss(params):
        terms, means, _ = task.loss(params, network, state, image, key)[1]
        return terms["perceptual"], means["adversarial_weight"]

    def by_definition(params):
        views = task.tokenizer.optics.views(image, key)
        _, _, features, reconstruction = task._structure_losses(params, image, views)

        def distance(drawn):
            return 0.5 * perceptual.distance(task.perceptual, network, drawn, image)

        def to_image(head_params, features):
            return head.apply({"params": head_params}, features, method="head")

        head = task.tokenizer.structure.autoencoder
        weight = adversarial.adaptive_weight(
            to_image, params["structure"]["autoencoder"], features, lambda y: task._pixel_loss(y, image) + distance(y),
            lambda y: adversarial.generator_loss(task.discriminator.apply({"params": state.discriminator}, y)),
            task.adversarial.cap)
        return distance(reconstruction), weight

    return [jax.jit(jax.value_and_grad(f, has_aux=True))(params) for f in (by_loss, by_definition)]


def test_perceptual_term_and_its_gradient_are_the_distances(perceptual_terms):
    ((value, weight), gradient), ((expected, expected_weight), expected_gradient) = perceptual_terms
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(weight, expected_weight, rtol=1e-4)  # of the adversary, against the whole image loss
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, expected_gradient)


def test_perceptual_loss_trains_encoder_and_decoder_alone(perceptual_terms):
    (_, gradient), _ = perceptual_terms
    size = {name: float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree))) for name, tree in (
        ("encoder", gradient["structure"]["autoencoder"]["encoder"]),
        ("decoder", gradient["structure"]["autoencoder"]["decoder"]),
        ("quantizer", gradient["structure"]["quantizer"]), ("alias", gradient["alias"]))}
    assert size["encoder"] > 0 and size["decoder"] > 0 and size["quantizer"] == 0 == size["alias"]


def test_without_weight_a_perceptual_network_is_none(stepper, images):
    _, update, state = stepper()
    task, other, first = stepper(None, (("tokenizer.perceptual_network", "efficientnet_lite0"),
                                         ("tokenizer.loss.perceptual", 0.0)))
    assert task.perceptual is not None and task.frozen_shapes is None
    (one, values), (same, same_values) = (steps(f, s, images, 3) for f, s in ((update, state), (other, first)))
    assert values == same_values and "loss/perceptual" not in values[0] and equal(one.params, same.params)


def test_parts_of_a_batch_change_nothing(stepper, images):
    """Without noise and without alias stream, whose scale differs between parts too."""
    _, update, state = stepper("var", QUIET)
    _, other, first = stepper("var", (*QUIET, ("tokenizer.train.microbatches", 2)))
    (_, values), (_, same) = (steps(f, s, images, 3) for f, s in ((update, state), (other, first)))
    assert values[2]["loss/discriminator"] > 0  # it has started
    for name in ("loss/reconstruction", "loss/vq", "latent_rms", "dead_codes/structure"):
        for i in range(3):  # rounding can change a code, and then all that depends on it
            np.testing.assert_allclose(same[i][name], values[i][name], rtol=1e-2 if i else 1e-5, err_msg=name)
    np.testing.assert_allclose(same[2]["loss/discriminator"], values[2]["loss/discriminator"], rtol=1e-2)
    # The weight of the adversarial term is a ratio of gradients, of each part.
    np.testing.assert_allclose(same[2]["adversarial_weight"], values[2]["adversarial_weight"], rtol=0.5)


class Interrupt(Exception):
    pass


def test_interrupted_stage_1_resumes_bit_for_bit(micro, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "READ_OPTIONS", grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    c = micro()
    task, mesh, settings = build.tokenizer_task(c), mesh_lib.make_mesh(), build.loop_settings(c.tokenizer.train)
    update = loop.jit_update(task, settings, mesh, loop.abstract_state(task, mesh))
    monkeypatch.setattr(loop, "jit_update", lambda *arguments: update)  # traced once

    def run(directory, interrupt_at=None):
        def example(index, i):
            if interrupt_at is not None and index >= 4 * interrupt_at:
                raise Interrupt
            return {"image": images[i]}

        examples = grain.MapDataset.range(64).seed(0).shuffle().repeat().map_with_index(example)
        batches = pipeline.Batches(examples, 4)
        return loop.train(task, settings, batches, frozen=None, key=jax.random.key(0),
                          mesh=mesh, directory=str(directory), evaluator=lambda state, frozen: ())

    straight = run(tmp_path / "straight")
    with pytest.raises(Interrupt):
        run(tmp_path / "broken", interrupt_at=5)
    assert equal(straight, run(tmp_path / "broken"))

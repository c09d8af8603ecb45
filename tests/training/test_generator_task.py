"""Stage 2: which losses train which parameters, resuming, devices."""

import dataclasses
import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.config import build
from refocus_jax.data import pipeline, token_cache
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.training import encode, generator_task, loop

CLASSES = 3


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


@pytest.fixture(scope="module")
def frozen(micro):
    """Random tokenizer parameters, which are enough for stage 2."""
    return jax.jit(build.tokenizer_task(micro()).init)(jax.random.key(3)).params


@pytest.fixture(scope="module")
def tokens(micro):
    """64 random token maps."""
    task, rng = build.generator_task(micro(), CLASSES), np.random.default_rng(0)
    length, alias = task.student.offsets[-1], task.student.offsets[-2]
    return token_cache.TokenSet(rng.integers(0, 32, (64, length), np.int32), rng.integers(0, 16, (64, alias), np.int32),
                                rng.integers(0, CLASSES, 64).astype(np.int32))


@pytest.fixture(scope="module")
def stepper(micro):
    """stepper(argument, changes) -> (task, jitted update, first state); one compilation each."""

    @functools.cache
    def make(argument=None, changes=()):
        c = micro(argument)
        c.update_from_flattened_dict(dict(changes))
        task = build.generator_task(c, CLASSES)
        return task, jax.jit(task.update), jax.jit(task.init)(jax.random.key(0))

    return make


def steps(update, state, frozen, tokens, number=3):
    for i in range(number):
        state, values = update(state, frozen, tokens[slice(4 * i, 4 * i + 4)], jax.random.key(1))
    return state, values


NO_DISTILLATION = (("generator.teacher.logit_weight", 0.0), ("generator.teacher.feature_weight", 0.0))


# Of the width that heads of 64 need.
MVAR = (("generator.architecture", "mvar"), ("generator.model.width", 32))


@pytest.mark.parametrize(("blocks", "student"), [
    pytest.param(1, (), id="1-var"), pytest.param(2, (), id="2-var", marks=pytest.mark.slow),
    pytest.param(1, MVAR, id="1-mvar", marks=pytest.mark.slow), pytest.param(2, MVAR, id="2-mvar")])
def test_without_distillation_the_student_trains_bit_for_bit_as_alone(stepper, frozen, tokens, blocks, student):
    _, update, state = stepper(None, (*NO_DISTILLATION, ("generator.teacher.num_alias_blocks", blocks), *student))
    _, plain_update, plain_state = stepper("noteacher", student)
    assert equal(state.params["student"], plain_state.params["student"])
    trained, _ = steps(update, state, frozen, tokens)
    plain, _ = steps(plain_update, plain_state, frozen, tokens)
    assert equal(trained.params["student"], plain.params["student"])
    assert equal(trained.opt_state["student"], plain.opt_state["student"])
    assert not equal(trained.params["teacher"], state.params["teacher"])


def test_distillation_reaches_the_student(stepper, frozen, tokens):
    """The teacher starts equal to the student, so distillation has an effect only from the second step on."""
    _, update, state = stepper()
    _, plain_update, plain_state = stepper("noteacher")
    _, values = steps(update, state, frozen, tokens, 1)
    assert values["loss/logit"] < 1e-6 and values["loss/feature"] < 1e-6
    twice, values = steps(update, state, frozen, tokens, 2)
    assert values["loss/feature"] > 0
    assert not equal(twice.params["student"], steps(plain_update, plain_state, frozen, tokens, 2)[0].params["student"])


@pytest.mark.parametrize(("changes", "reaches"), [((), False), ((("generator.teacher.train_shared", True),), True),
                                                  (MVAR, False)])
def test_the_teachers_own_loss_reaches_shared_weights_only_when_told(stepper, frozen, tokens, changes, reaches):
    task, _, state = stepper(None, (*NO_DISTILLATION, *changes))
    batch = jax.tree.map(jnp.asarray, tokens[slice(0, 4)])

    def teacher_loss(student):
        params = {**state.params, "student": student}
        terms = task.loss(params, frozen, batch["structure"], batch["alias"], batch["label"], None)[1]
        return terms["loss/teacher_cross_entropy"]

    gradient = jax.jit(jax.grad(teacher_loss))(state.params["student"])
    assert any(bool((g != 0).any()) for g in jax.tree.leaves(gradient)) == reaches


def test_a_second_network_teaches_too(stepper, frozen, tokens):
    _, update, state = stepper(None, (("generator.teacher.share_weights", False),))
    assert set(state.params["teacher"]) == {"alias", "network"}
    after, values = steps(update, state, frozen, tokens, 2)
    assert values["loss/logit"] > 0
    # All parameters of the second network train, except the unused outputs of its own last blocks.
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params["teacher"], after.params["teacher"])
    assert moved["network"]["head"]["kernel"] and moved["network"]["word_embed"]["kernel"]


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [3, 3], [1, 2, 3, 4]])
def test_a_placebo_is_the_next_image_of_the_class_or_the_next_image(labels):
    b = len(labels)
    expected = [next((j for j in others if labels[j] == labels[i]), others[0])
                for i in range(b) for others in [[(i + d) % b for d in range(1, b)]]]
    np.testing.assert_array_equal(generator_task.placebo(jnp.asarray(labels)), expected)


def test_a_token_is_hit_if_its_logit_is_the_largest():
    rng = np.random.default_rng(0)
    logits, tokens = rng.standard_normal((50, 6, 4)), rng.integers(0, 4, (50, 6))
    hits = generator_task.token_hits(jnp.asarray(logits), jnp.asarray(tokens))
    np.testing.assert_array_equal(hits, logits.argmax(-1) == tokens)


def test_a_placebo_is_drawn_among_true_classes(stepper, frozen, tokens):
    """With all labels dropped, training on a placebo is training on the other images' tokens, bit for bit."""
    dropped = ("generator.train.label_dropout", 1.0)
    _, own_update, state = stepper(None, (dropped,))
    _, update, _ = stepper(None, (dropped, ("generator.teacher.alias", "class")))
    order = np.concatenate([4 * i + np.asarray(generator_task.placebo(jnp.asarray(tokens.label[4 * i:4 * i + 4])))
                            for i in range(3)])
    assert len(np.unique(tokens.label[:4])) < 4  # some have another image of their class
    others = dataclasses.replace(tokens, alias=np.concatenate([tokens.alias[order], tokens.alias[12:]]))
    found, expected = steps(update, state, frozen, tokens)[0], steps(own_update, state, frozen, others)[0]
    assert equal(found.params, expected.params)
    assert not equal(found.params, steps(own_update, state, frozen, tokens)[0].params)


def test_a_teacher_without_alias_tokens_is_the_same_network(stepper, frozen, tokens):
    _, _, own = stepper()
    _, update, state = stepper(None, (("generator.teacher.alias", "none"),))
    assert equal(own.params, state.params)
    others = dataclasses.replace(tokens, alias=tokens.alias[::-1])
    found = steps(update, state, frozen, tokens)[0]
    assert equal(found.params, steps(update, state, frozen, others)[0].params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params["teacher"], found.params["teacher"])
    assert moved["alias"]["position"] and moved["alias"]["cross_0"]["key"]["kernel"]
    np.testing.assert_array_equal(found.opt_state["teacher"][1].mu["alias"]["alias_embed"]["kernel"], 0)


def test_tokens_come_from_images_as_from_a_set(stepper, frozen, images):
    task, _, _ = stepper()
    structure, alias = jax.jit(task.tokens)(frozen, {"image": images[:4]})
    assert structure.shape == (4, task.student.offsets[-1]) and alias.shape == (4, task.student.offsets[-2])
    encoded = encode.encode_batches(task.tokenizer, frozen, [{"image": images[:4], "label": np.zeros(4, np.int32)}],
                                    mesh_lib.make_mesh())
    np.testing.assert_array_equal(encoded.structure, structure)
    np.testing.assert_array_equal(encoded.alias, alias)


@pytest.mark.parametrize(("label_dropout", "null_learns"), [(0.0, False), (1.0, True)])
def test_dropped_labels_train_the_null_class_alone(stepper, frozen, tokens, label_dropout, null_learns):
    """Adam's first moments of the class embedding show which rows have had a gradient."""
    _, update, state = stepper("noteacher", (("generator.train.label_dropout", label_dropout),))
    after, _ = steps(update, state, frozen, tokens, 1)
    learned = np.asarray(after.opt_state["student"][1].mu["class_embedding"] != 0).any(axis=1)
    expected = np.zeros(CLASSES + 1, bool)
    expected[CLASSES if null_learns else np.unique(tokens.label[:4])] = True
    np.testing.assert_array_equal(learned, expected)


def test_it_learns_by_heart(stepper, frozen, tokens):
    _, update, state = stepper(None, (("generator.optimizer.learning_rate", 1e-2), ("generator.train.steps", 200),
                                      ("generator.model.drop_path_rate", 0.0), ("generator.train.label_dropout", 0.0)))
    for _ in range(60):
        state, values = update(state, frozen, tokens[slice(0, 4)], jax.random.key(1))
    assert values["loss/cross_entropy"] < 1.5 < np.log(32) - 1.5
    assert values["loss/teacher_cross_entropy"] < 1.5


def test_loss_on_one_device_is_that_on_two(stepper, frozen, tokens):
    task, _, state = stepper()
    values = []
    for count in (1, 2):
        mesh = mesh_lib.make_mesh(jax.devices()[:count])
        placed = jax.device_put((state, frozen, jax.random.key(1)), mesh_lib.replicated(mesh))
        batch = mesh_lib.put_batch(mesh, tokens[slice(0, 4)])
        values.append(jax.jit(task.update)(placed[0], placed[1], batch, placed[2])[1])
    for name in ("loss/cross_entropy", "loss/teacher_cross_entropy", "gradient_norm/student"):
        np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-5)


def test_parts_of_a_batch_and_what_is_computed_again_change_nothing(stepper, frozen, tokens):
    """The moving average first weights the previous average with 1 / 10 and 2 / 11."""
    _, update, state = stepper()
    _, other, first = stepper(None, (("generator.train.microbatches", 2), ("generator.model.remat", "products"),
                                     ("generator.train.ema_decay", 0.99)))
    assert equal(state.params, first.params) and equal(first.average, first.params["student"])
    after, values = steps(update, state, frozen, tokens, 1)
    in_parts, same = steps(other, first, frozen, tokens, 1)
    for name in values:
        np.testing.assert_allclose(same[name], values[name], rtol=1e-5, atol=1e-6)
    # Adam's first step is the sign of a gradient, and the sign of a tiny gradient depends on rounding.
    moments = [state.opt_state["student"][1].mu for state in (after, in_parts)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *moments)
    further, _ = steps(other, in_parts, frozen, tokens, 1)
    expected = first.params["student"]
    for weight, newer in ((1 / 10, in_parts), (2 / 11, further)):
        expected = jax.tree.map(lambda a, b, w=weight: w * a + (1 - w) * b, expected, newer.params["student"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), further.average, expected)
    assert further.sampled is further.average and after.sampled is after.params["student"]


class Interrupt(Exception):
    pass


def test_interrupted_stage_2_resumes_bit_for_bit(micro, frozen, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "READ_OPTIONS", grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    c = micro()
    task, mesh = build.generator_task(c, CLASSES), mesh_lib.make_mesh()
    settings = build.loop_settings(c.generator.train)
    placed = jax.device_put(frozen, mesh_lib.replicated(mesh))
    update = loop.jit_update(task, settings, mesh, loop.abstract_state(task, mesh))
    monkeypatch.setattr(loop, "jit_update", lambda *arguments: update)  # traced once

    def run(directory, interrupt_at=None):
        def example(index, i):
            if interrupt_at is not None and index >= 4 * interrupt_at:
                raise Interrupt
            return tokens[i]

        examples = grain.MapDataset.range(64).seed(0).shuffle().repeat().map_with_index(example)
        batches = pipeline.Batches(examples, 4)
        return loop.train(task, settings, batches, frozen=placed, key=jax.random.key(0), mesh=mesh,
                          directory=str(directory), evaluator=lambda state, frozen: ())

    straight = run(tmp_path / "straight")
    with pytest.raises(Interrupt):
        run(tmp_path / "broken", interrupt_at=5)
    assert equal(straight, run(tmp_path / "broken"))


@pytest.mark.parametrize(("changes", "message"), [
    ({"generator.teacher.num_alias_scales": 3}, "generator.teacher.num_alias_scales is 3; with 3 grid_sizes choose 1 "
                                                "to 2"),
    ({"generator.teacher.num_alias_blocks": 3}, "generator.teacher.num_alias_blocks is 3; choose 1 or 2"),
    ({"generator.teacher.gate": "half"}, "generator.teacher.gate is 'half'"),
    ({"generator.teacher.share_weights": False, "generator.teacher.train_shared": True}, "train_shared is True"),
])
def test_settings_that_contradict_are_named(micro, changes, message):
    c = micro()
    c.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        build.generator_task(c, CLASSES)

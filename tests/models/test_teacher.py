import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refocus_jax.models.bound import Bound
from refocus_jax.models.teacher import AliasGateCrossAttention, AliasHead, teach
from refocus_jax.models.tokenizer import flatten_tokens
from refocus_jax.training.generator_task import GeneratorTask, TeacherSettings
from tests.fixtures import small

OFFSETS = small.OFFSETS
LABELS = np.asarray([1, 3], np.int32)
INPUTS = small.random(0, 2, small.LENGTH - 1, small.CHANNELS)
VECTORS = small.random(1, 2, OFFSETS[-2], small.CHANNELS)  # codes of a_1 ... a_{K-1}
# Stochastic depth: block, branch (the third of M-VAR only), sample.
KEEP = np.asarray([[[1, 1], [1, 1], [1, 1]], [[0, 2], [2, 0], [0, 2]]], np.float32)


def without_output(head_params):
    """The cross-attentions as they start: W_O is zero."""
    return {name: {**value, "out": jax.tree.map(np.zeros_like, value["out"])} if name.startswith("cross") else value
            for name, value in head_params.items()}


class Teacher:
    """Student and teacher on one set of parameters."""

    def __init__(self, num_blocks=2, num_scales=2, gate=True, **settings):
        self.network, self.num_blocks, self.num_scales = small.transformer(**settings), num_blocks, num_scales
        self.head = AliasHead(grid_sizes=small.GRIDS, width=small.WIDTH, num_heads=1, num_blocks=num_blocks, gate=gate)
        self.params = small.transformer_params(self.network)
        self.keep = KEEP[:, :len(self.network.block.branches)]
        self.head_params = small.random_params(self.head.init, VECTORS)["params"]
        self.start = OFFSETS[-1 - num_scales]
        self.captured = jax.jit(self.capture)
        self._teach = jax.jit(self.continue_from)

    def capture(self, inputs, keep):
        return self.network.apply({"params": self.params}, LABELS, inputs, keep, self.num_blocks,
                                  len(small.GRIDS) - self.num_scales)

    def continue_from(self, captured, head_params, vectors, keep):
        base, head = Bound(self.network, self.params), Bound(self.head, head_params)
        return teach(base, head, captured, vectors, self.num_scales, keep)

    def teach(self, captured, head_params):
        """The teacher's logits and features as numpy arrays."""
        return map(np.asarray, self._teach(captured, head_params, VECTORS, self.keep)[:2])


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture(scope="module")
def mvar_teacher() -> Teacher:
    return Teacher(architecture="mvar")


@pytest.fixture(scope="module", params=["teacher", "mvar_teacher"])
def each_teacher(request) -> Teacher:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("settings", [{}, {"num_blocks": 1, "num_scales": 1, "shared_modulation": True},
                                      {"num_blocks": 1, "num_scales": 1, "architecture": "mvar"}], ids=str)
def test_the_teacher_starts_as_the_student(settings, each_teacher):
    """Also under stochastic depth: both have the same mask."""
    teacher = Teacher(**settings) if settings else each_teacher
    student_logits, captured = teacher.captured(INPUTS, teacher.keep)
    logits, features = teacher.teach(captured, without_output(teacher.head_params))
    assert logits.shape == (2, small.LENGTH - teacher.start, small.VOCAB)
    assert features.shape == (teacher.num_blocks, 2, small.LENGTH - teacher.start, small.WIDTH)
    np.testing.assert_allclose(logits, np.asarray(student_logits)[:, teacher.start:], atol=1e-5)
    np.testing.assert_allclose(features, np.asarray(captured.outputs)[:, :, teacher.start:], atol=1e-5)
    moved, _ = teacher.teach(captured, teacher.head_params)
    assert (np.abs(moved - logits).max(-1) > 1e-3).all()


def test_no_leak(each_teacher):
    """The logits of r_k depend on all alias evidence of scales j < k, and on none of scales j >= k."""
    teacher = each_teacher
    tail = [o - teacher.start for o in OFFSETS[-1 - teacher.num_scales:]]
    weight = small.random(2, 2, tail[-1], small.VOCAB)

    def per_scale(inputs, vectors):
        _, captured = teacher.capture(inputs, None)
        logits = teacher.continue_from(captured, teacher.head_params, vectors, None).logits * weight
        return jnp.stack([logits[:, a:b].sum() for a, b in itertools.pairwise(tail)])

    by_inputs, by_vectors = map(np.asarray, jax.jit(jax.jacrev(per_scale, argnums=(0, 1)))(INPUTS, VECTORS))
    for i, scale in enumerate(range(len(small.GRIDS) - teacher.num_scales, len(small.GRIDS))):
        seen = OFFSETS[scale]
        assert (by_vectors[i, :, :seen] != 0).any(-1).all()
        np.testing.assert_array_equal(by_vectors[i, :, seen:], 0)
        seen = OFFSETS[scale + 1] - 1  # of the structure it holds r_<k: the inputs of scale k, no later ones
        assert (by_inputs[i, :, :seen] != 0).all()
        np.testing.assert_array_equal(by_inputs[i, :, seen:], 0)


def test_tokens_before_the_tail_are_the_students(teacher):
    """They enter only as the student's keys and values; those of the tail are computed again."""
    _, captured = teacher.captured(INPUTS, teacher.keep)
    expected, _ = teacher.teach(captured, teacher.head_params)

    def depends_on(container, field, axis, part):
        changed = np.array(getattr(container, field))
        np.moveaxis(changed, axis, 0)[part] *= 2 * np.arange(changed.shape[-1]) + 3  # LayerNorm forgives a factor
        container = container._replace(**{field: changed})
        logits, _ = teacher.teach(container if field == "inputs" else captured._replace(caches=container),
                                  teacher.head_params)
        return (logits != expected).any()

    before, tail = slice(None, teacher.start), slice(teacher.start, None)
    assert not depends_on(captured, "inputs", 1, before) and depends_on(captured, "inputs", 1, tail)
    for field in ("keys", "values"):
        assert depends_on(captured.caches, field, 3, before) and not depends_on(captured.caches, field, 3, tail)


def test_the_teachers_mixer_starts_from_the_students_state(mvar_teacher):
    """It is all that the teacher knows of tokens before the tail, and no token of the tail changes a bit of it."""
    teacher = mvar_teacher
    _, captured = teacher.captured(INPUTS, teacher.keep)
    changed = INPUTS + (np.arange(1, small.LENGTH) >= teacher.start)[:, None].astype(np.float32)
    _, later = teacher.captured(changed, teacher.keep)
    jax.tree.map(np.testing.assert_array_equal, captured.caches, later.caches)
    expected, _ = teacher.teach(captured, teacher.head_params)
    for name, state in captured.caches._asdict().items():
        for layer in range(2):
            other = np.array(state)
            other[layer] += 1
            logits, _ = teacher.teach(captured._replace(caches=captured.caches._replace(**{name: other})),
                                      teacher.head_params)
            assert (logits[:, 0] != expected[:, 0]).any(), (name, layer)
    inputs = np.array(captured.inputs)
    inputs[:, :teacher.start] += np.arange(small.WIDTH)
    logits, _ = teacher.teach(captured._replace(inputs=inputs), teacher.head_params)
    np.testing.assert_array_equal(logits, expected)


def test_gate_lies_between_zero_and_one():
    """What the gated cross-attention adds is a share, per token and channel, of what the open one adds."""
    x, memory = small.random(0, 2, 9, small.WIDTH), small.random(1, 2, 5, small.WIDTH)
    gated, open_ = (AliasGateCrossAttention(width=small.WIDTH, num_heads=2, gate=gate) for gate in (True, False))
    params = small.random_params(lambda key: gated.init(key, x, memory, (0, 9), ((0, 5),)))["params"]

    def added(module, params):
        z, alpha = jax.jit(lambda p: module.apply({"params": p}, x, memory, (0, 9), ((0, 5),)))(params)
        return np.asarray(z) - x, alpha

    ungated = {name: value for name, value in params.items() if name != "gate"}
    everything, alpha = added(open_, ungated)
    assert alpha is None
    part, alpha = added(gated, params)
    share = part / everything
    np.testing.assert_allclose(alpha, share, atol=1e-3)  # what is reported is what acts
    assert 0 < share.min() < 0.3 and 0.7 < share.max() < 1
    half, alpha = added(gated, {**params, "gate": jax.tree.map(np.zeros_like, params["gate"])})
    np.testing.assert_allclose(half, everything / 2, atol=1e-5)
    np.testing.assert_array_equal(alpha, 0.5)
    closed, _ = added(open_, {**ungated, "out": jax.tree.map(np.zeros_like, params["out"])})
    np.testing.assert_array_equal(closed, 0)


def test_gates_are_of_every_alias_block_and_taught_token(teacher):
    _, captured = teacher.captured(INPUTS, teacher.keep)
    gates = np.asarray(teacher._teach(captured, teacher.head_params, VECTORS, teacher.keep).gates)
    assert gates.shape == (2, 2, small.LENGTH - teacher.start, small.WIDTH)
    assert 0 <= gates.min() < gates.max() <= 1 and (gates[0] != gates[1]).any()


def test_cross_attention_is_narrow():
    """Inner width d / 2; without a gate, nothing but four projections without bias."""
    shapes = jax.eval_shape(lambda: AliasGateCrossAttention(width=32, num_heads=2, gate=False).init(
        jax.random.key(0), VECTORS[:, :1].repeat(4, -1), VECTORS.repeat(4, -1), (0, 1), ((0, 5),)))
    assert jax.tree.map(np.shape, shapes["params"]) == {
        "query": {"kernel": (32, 16)}, "key": {"kernel": (32, 16)}, "value": {"kernel": (32, 16)},
        "out": {"kernel": (16, 32)}}


def generator_task(**settings) -> GeneratorTask:
    return GeneratorTask(tokenizer=small.tokenizer(), student=small.transformer(), teacher=TeacherSettings(**settings),
                         optimizer=optax.sgd(1e-2))


def test_the_students_parameters_hold_nothing_of_the_teacher():
    @jax.jit
    def init(key):
        alone, taught = generator_task(enabled=False).init(key).params, generator_task().init(key).params
        assert set(alone) == {"student"} and set(taught) == {"student", "teacher"}
        return alone["student"], taught["student"]

    alone, taught = init(jax.random.key(0))
    assert jax.tree.structure(taught) == jax.tree.structure(alone)
    jax.tree.map(np.testing.assert_array_equal, taught, alone)


def test_a_separate_network_teaches_with_its_own_weights():
    """Its cross-entropy depends on its own network, not on the student's."""
    task = generator_task(share_weights=False)
    frozen, structure = small.tokenizer_params(task.tokenizer), flatten_tokens(small.random_tokens(0))
    alias = flatten_tokens(small.random_tokens(1, vocab_size=small.VOCAB // 2)[:-1])
    networks = [small.transformer_params(task.student, seed) for seed in range(2)]
    head = small.random_params(task.alias_head.init, VECTORS)["params"]
    loss = jax.jit(lambda params: task.loss(params, frozen, structure, alias, LABELS, None)[1])
    student, teacher = {}, {}
    for i in range(2):
        for j in range(2):
            values = loss({"student": networks[i], "teacher": {"network": networks[j], "alias": head}})
            student[i, j] = float(values["loss/cross_entropy"])
            teacher[i, j] = float(values["loss/teacher_cross_entropy"])
    assert student[0, 0] == student[0, 1] != student[1, 0] == student[1, 1]
    assert teacher[0, 0] == teacher[1, 0] != teacher[0, 1] == teacher[1, 1]

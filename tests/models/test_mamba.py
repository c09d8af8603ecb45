"""The mixer against numbers of the published recurrences and a scan over tokens in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.focus import GRID_SIZES
from refocus_jax.models import mamba
from tests.fixtures import official, small, weights

SIZES = (1, 4, 16, 70, 9)  # scales of less and of more than a chunk, in chunks of 16 and of 64


def by_tokens(x, dt, rate, write, read, memory):
    """The recurrence one token at a time, in float64."""
    x, dt, rate, write, read, memory = (np.asarray(a, np.float64) for a in (x, dt, rate, write, read, memory))
    outputs = []
    for t in range(x.shape[1]):
        decay = np.exp(dt[:, t] * rate)[..., None, None]
        memory = decay * memory + (dt[:, t, :, None] * x[:, t])[..., None] * write[:, t, None, None]
        outputs.append(np.einsum("bnhs,bs->bnh", memory, read[:, t]))
    return np.stack(outputs, axis=1), memory


def close(got, expected, tolerance):
    """Largest difference, as a fraction of the largest number."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def tokens():
    """Inputs of `recurrence`: decays from almost none to exp(-60) a step, and a state that is not zero."""
    length = sum(SIZES)
    dt = np.logaddexp(0, small.random(1, 2, length, 3) - 1).astype(np.float32)
    return (small.random(0, 2, length, 3, 4), dt, -np.asarray([0.01, 1.0, 30.0], np.float32),
            small.random(2, 2, length, 5), small.random(3, 2, length, 5), small.random(4, 2, 3, 4, 5))


@pytest.mark.parametrize("num_before", [1, 3, 4, 5])
def test_the_recurrence_is_a_scan_over_tokens(tokens, num_before):
    y, memory = jax.jit(lambda *a: mamba.recurrence(*a, SIZES, num_before))(*tokens)
    border = sum(SIZES[:num_before])
    close(y, by_tokens(*tokens)[0], 1e-5)
    close(memory, by_tokens(*(a[:, :border] if a.ndim > 2 else a for a in tokens[:-1]), tokens[-1])[1], 1e-5)


def test_no_bit_depends_on_who_asks_for_a_state(tokens):
    """Nor on whether the last scales are run alone, from the state before them."""
    whole = jax.jit(lambda *a: mamba.recurrence(*a, SIZES, len(SIZES)))(*tokens)
    caught, memory = jax.jit(lambda *a: mamba.recurrence(*a, SIZES, 2))(*tokens)
    np.testing.assert_array_equal(caught, whole[0])
    tail = tuple(a[:, 5:] if a.ndim > 2 else a for a in tokens[:-1])
    y, last = jax.jit(lambda *a: mamba.recurrence(*a, SIZES[2:], len(SIZES) - 2))(*tail, memory)
    np.testing.assert_array_equal(y, whole[0][:, 5:])
    np.testing.assert_array_equal(last, whole[1])


def test_published_recurrence():
    numbers = official.load_numbers("ssd")

    def loss(x, dt, a, b, c, d, bias):
        dt = jax.nn.softplus(dt + bias[None, None])
        memory = jnp.zeros(numbers["last_state"].shape)
        y, memory = mamba.recurrence(x, dt, a, b[:, :, 0], c[:, :, 0], memory, (1, 4, 32), 3)
        y = y + d[None, None, :, None] * x
        return jnp.vdot(y, numbers["probe"]), (y, memory)

    names = ("x", "dt", "A", "B", "C", "D", "dt_bias")
    gradients, (y, memory) = jax.jit(jax.grad(loss, argnums=range(7), has_aux=True))(*(numbers[n] for n in names))
    close(y, numbers["y"], 1e-5)
    close(memory, numbers["last_state"], 1e-5)
    for name, gradient in zip(names, gradients, strict=True):
        close(gradient, numbers[f"grad/{name}"], 1e-5)


# Our names of the mixer's arrays and the official ones, and how an official array becomes ours.
NAMES = {"in_proj/kernel": ("in_proj.weight", np.transpose), "out_proj/kernel": ("out_proj.weight", np.transpose),
         "convolution": ("conv1d.weight", lambda a: a[:, 0].T), "convolution_bias": ("conv1d.bias", np.asarray),
         "dt_bias": ("dt_bias", np.asarray), "a_log": ("A_log", np.asarray), "skip": ("D", np.asarray),
         "norm_scale": ("norm.weight", np.asarray)}


def nested(arrays):
    """The mixer's parameters from a function of official names."""
    tree = {}
    for path, (name, convert) in NAMES.items():
        first, _, second = path.partition("/")
        value = convert(arrays(f"mamba.{name}"))
        tree |= {first: {second: value} if second else value}
    return tree


@pytest.mark.parametrize("sizes", [(19,), (1, 4, 14)])
def test_published_mixer(sizes):
    numbers = official.load_numbers("mamba2")
    shapes = {name.removeprefix("shape/"): shape.tolist() for name, shape in numbers.items() if "shape/" in name}
    params = nested(weights.state_dict(shapes, 42).__getitem__)
    mixer = mamba.Mixer(width=32)

    def loss(params, u):
        start = mamba.init_state(32, 2, jnp.float32)
        out, state = mixer.apply({"params": params}, u, start, sizes, len(sizes))
        return jnp.vdot(out, numbers["probe"]), (out, state)

    (gradient, by_input), (out, state) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, numbers["u"])
    close(out, numbers["out"], 1e-5)
    close(state.memory, numbers["ssm_state"], 1e-5)
    close(np.swapaxes(state.window, 1, 2), numbers["conv_state"][..., 1:], 1e-5)
    close(by_input, numbers["grad/u"], 1e-5)
    jax.tree.map(lambda got, expected: close(got, expected, 1e-5), gradient,
                 nested(lambda name: numbers[f"grad/{name}"]))


@pytest.fixture(scope="module")
def mixer():
    """A mixer of two heads, and its parameters."""
    module = mamba.Mixer(width=64)
    start = mamba.init_state(64, 1, jnp.float32)
    return module, small.random_params(lambda key: module.init(key, np.zeros((1, 1, 64), np.float32), start, (1,), 1))


def test_a_sequence_can_be_run_in_parts(mixer):
    """Also in parts that are shorter than the convolution."""
    module, params = mixer
    u, start = small.random(0, 2, 14, 64), mamba.init_state(64, 2, jnp.float32)
    whole, last = jax.jit(lambda u: module.apply(params, u, start, (1, 1, 3, 9), 4))(u)
    caught, early = jax.jit(lambda u: module.apply(params, u, start, (1, 1, 3, 9), 2))(u)
    np.testing.assert_array_equal(caught, whole)
    parts, state = [], start
    for begin, end in ((0, 1), (1, 2), (2, 5), (5, 14)):
        out, state = module.apply(params, u[:, begin:end], state, (end - begin,), 1)
        parts.append(out)
        if end == 2:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, early)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state, last)


def test_a_token_depends_on_itself_and_on_all_before_it(mixer):
    module, params = mixer
    u, start = small.random(0, 1, 14, 64), mamba.init_state(64, 1, jnp.float32)
    depends = jax.jit(jax.jacrev(lambda u: module.apply(params, u, start, (1, 4, 9), 3)[0].sum(-1)[0]))(u)[:, 0]
    seen = (np.asarray(depends) != 0).any(-1)
    np.testing.assert_array_equal(seen, np.tri(14, dtype=bool))


def test_bfloat16_stays_finite_over_the_longest_sequence(mixer):
    """9,451 tokens, the grids of 1024 px, with decays from almost none to exp(-16)."""
    params = {"params": {**mixer[1]["params"], "a_log": np.log(np.asarray([1e-3, 16], np.float32))}}
    module = mixer[0].clone(dtype=jnp.bfloat16)
    sizes = tuple(p * p for p in GRID_SIZES["var14_1024"])
    start = mamba.init_state(64, 1, jnp.bfloat16)
    assert sum(sizes) == 9451
    out, state = jax.jit(lambda u: module.apply(params, u, start, sizes, len(sizes)))(small.random(0, 1, 9451, 64))
    assert out.dtype == state.window.dtype == jnp.bfloat16 and state.memory.dtype == jnp.float32
    assert all(np.isfinite(np.asarray(a, np.float32)).all() for a in (out, *state))


def test_initial_values():
    module, start = mamba.Mixer(width=256), mamba.init_state(256, 1, jnp.float32)
    params = jax.jit(lambda key: module.init(key, jnp.zeros((1, 1, 256)), start, (1,), 1))(jax.random.key(0))["params"]
    for name in ("in_proj", "out_proj"):  # the latter is not divided by the depth
        assert np.std(params[name]["kernel"]) == pytest.approx((1 / (3 * 256)) ** 0.5, rel=0.1)
    assert np.std(params["convolution"]) == pytest.approx(0.02, rel=0.1) and not params["convolution_bias"].any()
    step, rate = np.logaddexp(0, params["dt_bias"]), np.exp(params["a_log"])
    assert step.shape == rate.shape == (8,)
    assert 0.9e-3 < step.min() < step.max() < 0.11 and 1 <= rate.min() < rate.max() <= 16
    assert (params["skip"] == 1).all() and (params["norm_scale"] == 1).all()


def test_widths_without_whole_heads_are_refused():
    with pytest.raises(ValueError, match="generator.model.width is 48; .* give a multiple of 32"):
        jax.eval_shape(lambda key: mamba.Mixer(width=48).init(key, jnp.zeros((1, 1, 48)), None, (1,), 1),
                       jax.random.key(0))

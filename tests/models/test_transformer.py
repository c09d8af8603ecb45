import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.focus import GRID_SIZES
from refocus_jax.models.transformer import Block, Transformer, layer_norm
from tests.fixtures import small

OFFSETS = small.OFFSETS
LABELS = np.asarray([1, 3], np.int32)
INPUTS = small.random(0, 2, small.LENGTH - 1, small.CHANNELS)
KEEP_ALL = np.ones((2, 2, 2), np.float32)  # stochastic depth that drops nothing


class Network:
    """A transformer on one set of parameters, and its logits, compiled."""

    def __init__(self, **settings):
        self.module = small.transformer(**settings)
        self.params = small.transformer_params(self.module)
        self.logits = jax.jit(lambda labels, inputs, keep: self.apply(labels, inputs, keep)[0])

    def apply(self, *args, **settings):
        return self.module.apply({"params": self.params}, *args, **settings)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


@pytest.fixture(scope="module")
def initial():
    """Initial parameters as the configs would have them."""
    network = small.transformer(width=64, depth=4, vocab_size=64, gamma_init=1e-3)
    return jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0), LABELS, INPUTS)["params"])


@pytest.mark.parametrize("architecture", ["var", "mvar"])
def test_a_scale_depends_on_inputs_up_to_itself_and_on_no_later_one(architecture, network):
    network = network if architecture == "var" else Network(architecture=architecture)
    weight = small.random(1, 2, small.LENGTH, small.VOCAB)

    def per_scale(inputs):
        logits = network.apply(LABELS, inputs)[0] * weight
        return jnp.stack([logits[:, a:b].sum() for a, b in itertools.pairwise(OFFSETS)])

    gradient = np.asarray(jax.jit(jax.jacrev(per_scale))(INPUTS))  # (K, b, L - 1, c)
    for scale in range(3):
        seen = OFFSETS[scale + 1] - 1  # the first scale has no input
        assert (gradient[scale, :, :seen] != 0).all()
        np.testing.assert_array_equal(gradient[scale, :, seen:], 0)


def test_labels_condition_every_token(network):
    logits = np.asarray(network.logits(LABELS, INPUTS, KEEP_ALL))
    assert logits.shape == (2, small.LENGTH, small.VOCAB) and logits.dtype == np.float32
    null = np.asarray([1, small.CLASSES], np.int32)
    changed = np.asarray(network.logits(null, INPUTS, KEEP_ALL))
    np.testing.assert_array_equal(logits[0], changed[0])
    assert (logits[1] != changed[1]).any(-1).all()


def test_looking_into_blocks_changes_no_logits(network):
    @jax.jit
    def look(inputs):
        logits, captured = network.apply(LABELS, inputs, None, 2)
        return logits, captured, network.apply(captured.outputs[-1], captured.class_embedding, method="logits")

    logits, captured, last = look(INPUTS)
    np.testing.assert_allclose(logits, network.logits(LABELS, INPUTS, KEEP_ALL), atol=1e-5)
    assert captured.inputs.shape == (2, small.LENGTH, small.WIDTH)
    assert [a.shape for a in captured.caches] == [(2, 2, 2, small.LENGTH, 16)] * 2
    np.testing.assert_allclose(last, logits, atol=1e-5)


def test_attention_of_mvar_stays_within_a_scale_and_its_mixer_looks_back():
    """With the mixers off, a scale depends on its own inputs only; with attention off, a token on no later one."""
    network, weight = Network(architecture="mvar"), small.random(1, 2, small.LENGTH, small.VOCAB)

    def depends(branch):
        keep = np.ones((2, 3, 2), np.float32) * (np.arange(3) != branch)[:, None].astype(np.float32)
        jacobian = jax.jit(jax.jacrev(lambda inputs: (network.apply(LABELS, inputs, keep)[0] * weight)[0].sum(-1)))
        return (np.asarray(jacobian(INPUTS))[:, 0] != 0).any(-1)[1:]  # (L - 1, L - 1): token, input

    level = np.repeat([1, 2], [4, 9])
    np.testing.assert_array_equal(depends(branch=1), level[:, None] == level)
    np.testing.assert_array_equal(depends(branch=0), np.tri(small.LENGTH - 1, dtype=bool))


def test_stochastic_depth_factors_of_zero_switch_a_sample_off(network):
    """With both branches of all blocks off, a token no longer depends on the others."""
    first_off = KEEP_ALL * np.asarray([0, 1], np.float32)
    changed = INPUTS + (np.arange(small.LENGTH - 1) < 4)[:, None].astype(np.float32)
    on, off, other = (np.asarray(network.logits(LABELS, *args))
                      for args in ((INPUTS, KEEP_ALL), (INPUTS, first_off), (changed, first_off)))
    np.testing.assert_allclose(on[1], off[1], atol=1e-5)
    assert (on[0] != off[0]).any(-1).all()
    np.testing.assert_array_equal(off[0, 5:], other[0, 5:])
    assert (off[0, 1:5] != other[0, 1:5]).any(-1).all() and (off[1, 5:] != other[1, 5:]).any(-1).all()


def test_drop_path_factors():
    network = small.transformer(depth=3, drop_path_rate=0.5)
    factors = np.asarray(jax.jit(lambda: network.drop_path_factors(jax.random.key(0), 4000))())
    assert factors.shape == (3, 2, 4000)
    np.testing.assert_array_equal(factors[0], 1)  # nothing is dropped in the first block
    for layer, keep in enumerate((1.0, 0.75, 0.5)):
        np.testing.assert_allclose(np.unique(factors[layer]), [0, 1 / keep][layer == 0:], rtol=1e-6)
        np.testing.assert_allclose(factors[layer].mean(-1), 1, atol=0.1)
    assert (factors[1, 0] != factors[1, 1]).any() and (factors[1, 0, :9] != factors[1, 0, 0]).any()


def test_a_drop_path_rate_of_zero_draws_nothing():
    assert small.transformer(drop_path_rate=0.0).drop_path_factors(jax.random.key(0), 8) is None


@pytest.fixture(scope="module")
def sensitivity():
    """Which of the six modulations the queries, the state after attention, and the output depend on.

    Attention returns a constant; the tokens are constant vectors, so LayerNorm gives 0 and scales have no effect
    until something else is added.
    """
    block = Block(width=8, num_heads=2, depth=1, qk_norm=False, shared_modulation=False, gamma_init=1.0)
    x, varied = np.ones((1, 1, 8), np.float32), small.random(0, 1, 1, 8)
    modulation = np.ones((1, 6, 8), np.float32)

    def attend(q, k, v):
        return jnp.ones_like(v), q

    params = small.random_params(lambda key: block.init(key, x, modulation, attend))

    def run(modulation, x):
        seen = []
        out, q = block.apply(params, x, modulation, attend, None, lambda x: seen.append(x) or x)
        return {"queries": q, "middle": seen[0], "output": out}

    jacobian = jax.jit(jax.jacrev(run))
    gates_closed = modulation * (np.arange(6) > 1)[:, None].astype(np.float32)

    def depends_on(modulation, x):
        return {name: [i for i in range(6) if np.any(np.asarray(j)[..., i, :])]
                for name, j in jacobian(modulation, x).items()}

    return {"constant": depends_on(gates_closed, x), "varied": depends_on(modulation, varied)}


def test_order_of_the_modulations(sensitivity):
    """Gates 0 and 1, scales 2 and 3, shifts 4 and 5; first the attention branch, then the feed-forward branch."""
    assert sensitivity["constant"] == {"queries": [4], "middle": [0], "output": [0, 1]}
    assert sensitivity["varied"] == {"queries": [2, 4], "middle": [0], "output": [0, 1, 3, 5]}


def test_qk_norm_normalizes_and_caps_its_temperature_at_100():
    block = Block(width=8, num_heads=2, depth=1, qk_norm=True, shared_modulation=False, gamma_init=1.0)
    x, modulation = small.random(0, 2, 3, 8), np.ones((2, 6, 8), np.float32)

    def attend(q, k, v):
        return v, (q, k)

    params = small.random_params(lambda key: block.init(key, x, modulation, attend))
    apply = jax.jit(lambda params: block.apply({"params": params}, x, modulation, attend)[1])
    for scale_mul, temperature in ((np.log(4.0), 4.0), (4.0, np.exp(4.0)), (9.0, 100.0)):
        q, k = apply(params["params"] | {"scale_mul": np.full((2,), scale_mul, np.float32)})
        np.testing.assert_allclose(np.linalg.norm(q, axis=-1), temperature, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(k, axis=-1), 1, rtol=1e-5)


def test_layer_norm():
    normed = np.asarray(jax.jit(layer_norm)((3 + 5 * small.random(0, 2, 4, 64)).astype(jnp.bfloat16)))
    assert normed.dtype == np.float32
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-5)


def assert_std(array, std):
    assert np.std(array) == pytest.approx(std, rel=0.15)
    assert abs(np.mean(array)) < 0.15 * std


def test_initial_scales(initial):
    std, blocks = (1 / (3 * 64)) ** 0.5, initial["blocks"]
    for name in ("position", "level_embedding", "class_embedding"):
        assert_std(initial[name], std)
    assert_std(initial["word_embed"]["kernel"], std)
    assert_std(initial["head"]["kernel"], 0.02 * std)
    assert_std(initial["head_nm"]["kernel"], 0.5 * std)
    assert_std(blocks["qkv"], std)
    assert_std(blocks["fc1"]["kernel"], std)
    for name in ("proj", "fc2"):
        assert_std(blocks[name]["kernel"], std / 8**0.5)  # depth 4
    gates, others = np.split(blocks["ada_lin"]["kernel"], [2 * 64], axis=-1)
    assert_std(gates, 1e-3 * std)
    assert_std(others, 0.5 * std)
    np.testing.assert_allclose(blocks["scale_mul"], np.log(4.0), rtol=1e-6)
    biases = [initial[name]["bias"] for name in ("word_embed", "head", "head_nm")]
    biases += [blocks[name]["bias"] for name in ("proj", "fc1", "fc2", "ada_lin")]
    assert not any(b.any() for b in (*biases, blocks["q_bias"], blocks["v_bias"]))
    assert (blocks["qkv"][0] != blocks["qkv"][1]).any()


def test_initial_scales_of_mvar():
    network = small.transformer(architecture="mvar", width=64, depth=4, gamma_init=1e-3)
    blocks = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0), LABELS, INPUTS)["params"]["blocks"])
    std = (1 / (3 * 64)) ** 0.5
    gates, others = np.split(blocks["ada_lin"]["kernel"], [2 * 64], axis=-1)
    assert_std(gates, 1e-3 * std)  # of attention and of the mixer; that of the feed-forward branch is like the others
    assert_std(others, 0.5 * std)
    assert others.shape[-1] == 7 * 64
    assert_std(blocks["mixer"]["out_proj"]["kernel"], std)
    assert (blocks["mixer"]["a_log"][0] != blocks["mixer"]["a_log"][1]).any()


def test_architectures_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="generator.architecture is 'mamba'; choose one of var, mvar"):
        small.transformer(architecture="mamba")
    with pytest.raises(ValueError, match="generator.model.shared_modulation is True, .* 'mvar'; set it False"):
        small.transformer(architecture="mvar", shared_modulation=True)


def test_initial_scales_of_shared_modulations():
    network = small.transformer(width=64, shared_modulation=True, gamma_init=1e-3)

    @jax.jit
    def init(key):
        params = network.init(key, LABELS, INPUTS)["params"]
        assert "ada_lin" not in params["blocks"]
        return params["shared_ada_lin"]["kernel"], params["blocks"]["ada_gss"]

    shared, own = map(np.asarray, init(jax.random.key(0)))
    assert_std(shared, (1 / (3 * 64)) ** 0.5)
    assert_std(own[:, :2 * 64], 1e-3 / 8)
    assert_std(own[:, 2 * 64:], 0.5 / 8)


@pytest.mark.parametrize("depth, million", [(12, 133.2), (16, 310.3), (20, 600.9), (24, 1033.4), (30, 2010.0),
                                            (36, 2353.9)])
def test_sizes_of_the_published_networks(depth, million):
    """1000 classes, 4096 codes; d36 is the one at 512 px, with shared modulations."""
    large = depth == 36
    network = Transformer(grid_sizes=GRID_SIZES["var10_512" if large else "var10"], vocab_size=4096, latent_channels=32,
                          num_classes=1000, depth=depth, width=64 * depth, num_heads=depth, shared_modulation=large)
    inputs = jax.ShapeDtypeStruct((1, network.offsets[-1] - 1, 32), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1,), jnp.int32), inputs)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, 1) == million

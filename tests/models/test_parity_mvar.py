"""M-VAR on the weights of the published model against its numbers (fixtures/official.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refocus_jax.focus import GRID_SIZES
from refocus_jax.models import official_var
from refocus_jax.models.bound import Bound
from refocus_jax.sampling import decode
from refocus_jax.sampling.decode import SamplingSettings
from tests.fixtures import official


class Published:
    """The network with its parameters, the numbers, and the tokenizer."""

    def __init__(self):
        self.settings, self.numbers, tokenizer, transformer = official.load("mvar_square")
        self.grids = tuple(self.settings["patch_nums"])
        self.arrays = transformer
        self.network, self.params = official_var.import_transformer(transformer, self.grids)
        self.tokenizer, self.tokenizer_params = official_var.import_tokenizer(tokenizer, self.grids)
        self.labels = self.numbers["labels"].astype(np.int32)

    def __call__(self, params, method, *args):
        return self.network.apply({"params": params}, *args, method=method)


@pytest.fixture(scope="module")
def published() -> Published:
    return Published()


@pytest.fixture(scope="module")
def trained(published):
    """Loss, logits, and gradients under official names."""
    def loss(params):
        logits, _ = published(params, None, published.labels, published.numbers["teacher_forcing_input"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, published.numbers["tokens"]).mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(published.params)
    return value, logits, official_var.export_transformer(published.network, gradient)


def close(got, expected, tolerance, name=""):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)


def test_the_network_is_inferred(published):
    network, settings = published.network, published.settings
    assert (network.architecture, network.depth, network.width, network.num_heads, network.qk_norm) == (
        "mvar", settings["depth"], settings["width"], settings["heads"], settings["qk_l2_norm"])
    assert sum(leaf.size for leaf in jax.tree.leaves(published.params)) == settings["parameters"]


def test_logits_and_loss(published, trained):
    close(trained[1], published.numbers["logits"], 2e-5)
    close(trained[0], published.numbers["loss"], 2e-5)


def test_gradients(published, trained):
    names = [name for name in published.numbers if name.startswith("grad/")]
    assert len(names) == 17
    for name in names:
        close(trained[2][name.removeprefix("grad/")], published.numbers[name], 1e-5, name)


def test_every_branch(published):
    network, inputs = published.network, published.numbers["teacher_forcing_input"]

    @jax.jit
    def run(params):
        x = jnp.concatenate([published(params, "start", published.labels), published(params, "words", inputs, 1, 3)], 1)
        modulations, _ = published(params, "conditions", published.labels)
        attend, mix = network.exchange(0, None, len(published.grids))
        outputs = {}
        for layer in range(network.depth):
            block = jax.tree.map(lambda a, layer=layer: a[layer], params["blocks"])
            (x, _), seen = network.block.apply({"params": block}, x, modulations[layer], attend, mix=mix,
                                               capture_intermediates=True)
            seen = seen["intermediates"]
            outputs |= {f"block{layer}/attention": seen["proj"]["__call__"][0],
                        f"block{layer}/mamba": seen["mixer"]["__call__"][0][0], f"block{layer}/out": x}
        return outputs

    outputs = run(published.params)
    assert len(outputs) == 6
    for name, value in outputs.items():
        close(value, published.numbers[name], 1e-5, name)


def test_greedy_sample(published):
    quantizer = published.tokenizer.quantizer
    settings = SamplingSettings(cfg=published.settings["cfg"], top_k=1, top_p=0.0)
    seen = []

    def logits(x, embedding):
        seen.append(published.network.apply({"params": published.params}, x, embedding, method="logits"))
        return seen[-1]

    class Watched(Bound):
        """Keeps the logits of both halves of guidance."""

        def __call__(self, method, *args):
            return logits(*args) if method == "logits" else super().__call__(method, *args)

    @jax.jit
    def run(params, quantizer_params, tokenizer_params):
        seen.clear()
        drawn = decode.sample(Watched(published.network, params), Bound(quantizer, quantizer_params), published.labels,
                              decode.sample_keys(0, published.labels), settings)
        image = published.tokenizer.apply({"params": tokenizer_params}, drawn.f_hat[-1], method="decode")
        return drawn.tokens, image, seen[1:]

    tokens, image, guided = run(published.params, published.tokenizer_params["quantizer"], published.tokenizer_params)
    tokens = np.concatenate([np.reshape(t, (len(t), -1)) for t in tokens], axis=1)
    np.testing.assert_array_equal(tokens, published.numbers["greedy_tokens"])
    np.testing.assert_allclose((np.moveaxis(image, -1, 1) + 1) / 2, published.numbers["greedy_image"], atol=1e-4)
    guided = np.concatenate(guided, axis=1)  # all scales but the first, where guidance is zero
    close(guided[::2], published.numbers["greedy_logits_class"][:, 1:], 2e-5)
    close(guided[1::2], published.numbers["greedy_logits_null"][:, 1:], 2e-5)


def test_official_arrays_and_buffers_come_back(published):
    """All that a strict load expects: names, shapes, types."""
    arrays = official_var.export_transformer(published.network, published.params)
    assert {name: list(a.shape) for name, a in arrays.items()} == published.settings["transformer_shapes"]
    for name, array in published.arrays.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    assert arrays["blocks.1.attn.patch_nums"].tolist() == [1, 4, 9, 16]
    assert arrays["blocks.1.attn.patch_nums"].dtype == np.int32
    mask = arrays["attn_bias_for_masking"][0, 0]
    level = np.repeat(range(4), [1, 4, 9, 16])
    np.testing.assert_array_equal(mask, np.where(level[:, None] == level, 0, -np.inf))
    network, params = official_var.import_transformer(arrays)  # the buffers tell the grids
    assert network == published.network
    jax.tree.map(np.testing.assert_array_equal, params, published.params)


@pytest.mark.parametrize("name", ["d12", "d16", "d20", "d24", "d32"])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_shapes_of_the_published_sizes(name, qk_norm):
    """All arrays but buffers, by official name; nothing is allocated."""
    expected = official.load_settings("mvar_shapes")[name if qk_norm else f"{name}_noqk"]
    depth = int(name[1:])
    shapes = {name.replace("blocks.0.", f"blocks.{layer}."): shape  # the file lists the first of equal blocks
              for layer in range(depth) for name, (shape, _) in expected["state"].items()}
    network = official_var.infer_transformer({name: np.broadcast_to(0, shape) for name, shape in shapes.items()},
                                             GRID_SIZES["var10"])
    assert (network.architecture, network.depth, network.width, network.num_heads, network.qk_norm) == (
        "mvar", depth, 64 * depth, depth, qk_norm)
    ours = official_var._unstack(official_var._transformer_shapes(network))
    assert sum(a.size for a in ours.values()) == expected["parameters"]
    assert {entry.name: list(entry.layout.to_official(ours[entry.path]).shape)
            for entry in official_var._transformer_entries(network)} == {
        name: shape for name, shape in shapes.items() if name.rsplit(".", 1)[-1] not in official_var.BUFFERS}

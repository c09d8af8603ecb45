"""Our networks on the official weights against numbers of the official VAR (fixtures/official.py)."""

from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

from refocus_jax.models import official_var
from refocus_jax.models.bound import Bound
from refocus_jax.models.tokenizer import StructureTokenizer
from refocus_jax.models.transformer import Transformer
from refocus_jax.sampling.decode import SamplingSettings, sample, sample_keys
from tests.fixtures import official


class Networks(NamedTuple):
    numbers: dict[str, np.ndarray]
    settings: dict
    tokenizer: StructureTokenizer
    tokenizer_params: dict
    transformer: Transformer
    transformer_params: dict


@pytest.fixture(scope="module", params=official.NAMES)
def networks(request) -> Networks:
    settings, numbers, tokenizer, transformer = official.load(request.param)
    grids = tuple(settings["patch_nums"])
    return Networks(numbers, settings, *official_var.import_tokenizer(tokenizer, grids),
                    *official_var.import_transformer(transformer, grids))


@pytest.fixture(scope="module")
def encoded(networks):
    """Latent and quantization of the image."""
    @jax.jit
    def encode(params, image):
        latents = networks.tokenizer.apply({"params": params}, [image], method="latents")
        return latents[-1], networks.tokenizer.apply({"params": params}, latents, method="quantize")
    return encode(networks.tokenizer_params, channels_last(networks.numbers["image"]))


@pytest.fixture(scope="module")
def greedy(networks):
    quantizer, labels = networks.tokenizer.quantizer, networks.numbers["labels"].astype(np.int32)
    settings = SamplingSettings(cfg=networks.settings["cfg"], top_k=1, top_p=0.0)
    return jax.jit(lambda params, quantizer_params, keys: sample(
        Bound(networks.transformer, params), Bound(quantizer, quantizer_params), labels, keys, settings))(
            networks.transformer_params, networks.tokenizer_params["quantizer"], sample_keys(0, labels))


@pytest.fixture(scope="module")
def decoded(networks, encoded, greedy):
    """Images of the last and the first cumulative latent and of the greedy sample, in one batch."""
    f_hats = encoded[1].f_hats
    latents = np.concatenate([f_hats[-1], f_hats[0], greedy.f_hat[-1]])
    images = jax.jit(lambda params, latents: networks.tokenizer.apply({"params": params}, latents, method="decode"))(
        networks.tokenizer_params, latents)
    return np.split(np.asarray(images), 3)


@pytest.fixture(scope="module")
def trained(networks):
    """Loss, logits and gradients, under official names."""
    numbers = networks.numbers

    def loss(params):
        logits, _ = networks.transformer.apply({"params": params}, numbers["labels"].astype(np.int32),
                                               numbers["teacher_forcing_input"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, numbers["tokens"]).mean(), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(networks.transformer_params)
    return value, logits, official_var.export_transformer(networks.transformer, gradient)


def channels_last(image_bchw):
    return np.moveaxis(image_bchw, 1, -1)


def flat(tokens):
    return np.concatenate([np.reshape(t, (len(t), -1)) for t in tokens], axis=1)


def test_networks_are_inferred(networks):
    settings, transformer, tokenizer = networks.settings, networks.transformer, networks.tokenizer
    assert (transformer.depth, transformer.width, transformer.num_heads) == (
        settings["depth"], settings["width"], settings["heads"])
    assert (transformer.vocab_size, transformer.num_classes, transformer.latent_channels) == (
        settings["vocab_size"], settings["classes"], settings["z_channels"])
    assert (transformer.qk_norm, transformer.shared_modulation) == (settings["qk_l2_norm"], settings["shared_adaln"])
    assert (tokenizer.autoencoder.channels, list(tokenizer.autoencoder.channel_multipliers)) == (
        settings["ch"], settings["ch_mult"])
    assert (tokenizer.quantizer.vocab_size, tokenizer.quantizer.num_phi) == (
        settings["vocab_size"], settings["phi_count"])


def test_latent(networks, encoded):
    np.testing.assert_allclose(encoded[0], channels_last(networks.numbers["latent"]), atol=1e-4)


def test_tokens(networks, encoded):
    np.testing.assert_array_equal(flat(encoded[1].tokens), networks.numbers["tokens"])


def test_f_hats(networks, encoded):
    for f_hat, expected in zip(encoded[1].f_hats, networks.numbers["f_hat_per_scale"], strict=True):
        np.testing.assert_allclose(f_hat, channels_last(expected), atol=1e-4)


def test_reconstructions(networks, decoded):
    np.testing.assert_allclose(decoded[0], channels_last(networks.numbers["reconstruction"]), atol=1e-4)
    np.testing.assert_allclose(decoded[1], channels_last(networks.numbers["reconstruction_scale0"]), atol=1e-4)


def test_teacher_forcing_inputs(networks, encoded):
    @jax.jit
    def read(params, tokens):
        return networks.tokenizer.quantizer.apply({"params": params}, tokens, method="generator_inputs")

    inputs = read(networks.tokenizer_params["quantizer"], encoded[1].tokens)
    np.testing.assert_allclose(inputs, networks.numbers["teacher_forcing_input"], atol=1e-4)


def test_logits_and_loss(networks, trained):
    loss, logits, _ = trained
    np.testing.assert_allclose(logits, networks.numbers["logits"], atol=1e-4)
    np.testing.assert_allclose(loss, networks.numbers["loss"], atol=1e-4)


def test_gradients(networks, trained):
    names = [name for name in networks.numbers if name.startswith("grad/")]
    assert len(names) == 7
    for name in names:
        expected, got = networks.numbers[name], trained[2][name.removeprefix("grad/")]
        np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max(), err_msg=name)


def test_greedy_sample(networks, greedy, decoded):
    np.testing.assert_array_equal(flat(greedy.tokens), networks.numbers["greedy_tokens"])
    np.testing.assert_allclose((decoded[2] + 1) / 2, channels_last(networks.numbers["greedy_image"]), atol=1e-4)

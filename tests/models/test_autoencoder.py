import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.autoencoder import REMAT, UpsampledConv
from refocus_jax.models.tokenizer import Autoencoder
from tests.fixtures import small


def round_trip(network, image):
    return network.decode(network.encode(image))


@pytest.fixture(scope="module")
def params():
    network = small.autoencoder()
    return small.random_params(functools.partial(network.init, method=round_trip), np.zeros((1, 6, 6, 3), np.float32))


def apply(network, method):
    return jax.jit(lambda params, x: network.apply(params, x, method=method))


def test_every_side_fits_and_shrinks_by_the_stride(params):
    network = small.autoencoder()
    assert network.stride == 2
    for height, width in ((2, 2), (6, 10), (64, 32)):
        latent = jax.eval_shape(apply(network, "encode"), params, np.zeros((3, height, width, 3), np.float32))
        assert latent.shape == (3, height // 2, width // 2, small.CHANNELS)
        assert jax.eval_shape(apply(network, "decode"), params, latent).shape == (3, height, width, 3)


def test_decoding_is_features_then_head(params):
    """The adversarial weight is measured at that last layer."""
    network, latent = small.autoencoder(), 100 * small.random(0, 1, 3, 3, small.CHANNELS)
    features = apply(network, "features")(params, latent)
    assert features.shape == (1, 6, 6, 8)
    np.testing.assert_allclose(apply(network, "head")(params, features), apply(network, "decode")(params, latent),
                               atol=1e-5)


def test_samples_do_not_mix(params):
    encode, image = apply(small.autoencoder(), "encode"), small.random(0, 2, 6, 6, 3)
    other = np.stack([image[0], 0 * image[1]])
    np.testing.assert_allclose(np.asarray(encode(params, image))[0], np.asarray(encode(params, other))[0], atol=1e-6)


def reconstruction_loss(network, params, image):
    return jnp.square(network.apply(params, image, method=round_trip)).sum()


@pytest.mark.parametrize("remat", ["products", "blocks"])
def test_what_is_computed_again_changes_no_gradient(params, remat):
    image = small.random(0, 1, 6, 6, 3)
    again, kept = (jax.jit(jax.grad(functools.partial(reconstruction_loss, small.autoencoder().clone(remat=r))))(
        params, image) for r in (remat, "none"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), again, kept)


def test_what_is_computed_again_is_not_kept():
    """The bytes that the backward pass gets, at a size where activations outweigh weights."""
    kept, image = {}, np.zeros((1, 64, 64, 3), np.float32)
    for remat in REMAT:
        network = small.autoencoder().clone(remat=remat, channel_multipliers=(1, 1, 1, 2), dtype=jnp.bfloat16)
        shapes = jax.eval_shape(functools.partial(network.init, method=round_trip), jax.random.key(0), image)
        loss = functools.partial(reconstruction_loss, network)
        residuals = jax.eval_shape(lambda *arguments, loss=loss: jax.vjp(loss, *arguments)[1], shapes, image)
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
    assert kept["none"] > 2 * kept["products"] > 2 * kept["blocks"]


def test_bfloat16_computes_in_bfloat16_and_returns_float32(params):
    network, half = small.autoencoder(), small.autoencoder().clone(dtype=jnp.bfloat16)
    image = small.random(0, 1, 6, 6, 3)
    exact, rough = apply(network, "encode")(params, image), apply(half, "encode")(params, image)
    assert exact.dtype == rough.dtype == jnp.float32
    error = np.abs(np.asarray(exact) - np.asarray(rough)).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1
    assert jax.eval_shape(apply(half, "features"), params, exact).dtype == jnp.bfloat16
    assert jax.eval_shape(apply(half, "decode"), params, exact).dtype == jnp.float32


def test_upsampled_convolutions_are_those_of_the_doubled_image():
    x, width = small.random(0, 2, 3, 5, 4), 6
    params = {"kernel": small.random(1, 3, 3, 4, width), "bias": small.random(2, width)}

    def ours(params, x):
        return UpsampledConv(features=width).apply({"params": params}, x)

    def doubled(params, x):
        return nn.Conv(width, (3, 3)).apply({"params": params}, jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))

    @functools.partial(jax.jit, static_argnums=0)
    def results(run, params, x):
        y, gradients = jax.vjp(run, params, x)
        return y, gradients(jnp.cos(y))

    for found, expected in zip(*(jax.tree.leaves(results(run, params, x)) for run in (ours, doubled)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_groups_that_do_not_divide_the_channels_are_named():
    network = Autoencoder(channels=8, channel_multipliers=(1,), num_residual_blocks=1, latent_channels=4, norm_groups=3)
    with pytest.raises(ValueError, match="norm_groups 3 does not divide 8 channels"):
        jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), method="encode"))


def test_patches_of_the_small_autoencoder_lie_where_they_came_from():
    """Without residual blocks, which mix neighbours, every patch is its own linear map."""
    network = small.patch_autoencoder().clone(num_residual_blocks=0)
    run = jax.jit(lambda params, x: network.apply(params, x, method=lambda m, x: m.decode(m.encode(x))))
    image = small.random(0, 2, 4, 6, 3)
    params = small.random_params(lambda key, x: network.init(key, x, method=lambda m, x: m.decode(m.encode(x))), image)
    changed = image.copy()
    changed[:, :2, 4:] += 1.0
    difference = np.abs(np.asarray(run(params, changed)) - np.asarray(run(params, image))).max(axis=(0, 3))
    assert (difference[:2, 4:] > 1e-3).all()
    difference[:2, 4:] = 0
    assert difference.max() < 1e-5

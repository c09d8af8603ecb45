"""The perceptual distance: closed forms on features that equal the pixels; the network that a setting chooses."""

from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.judges import perceptual, state_dict, vgg
from refocus_jax.runtime import weight_files


class Pixels(nn.Module):
    """A network with two stages: the pixels, and every second pixel times one hundred."""

    def stages(self, pixels_bhwc):
        return [pixels_bhwc, 100 * pixels_bhwc[:, ::2, ::2]]


def distance(image, target):
    return perceptual.distance(Pixels(), {}, image, target)


def colour(*channels):
    """An image of one colour, given in [0, 255]."""
    return jnp.broadcast_to(jnp.asarray(channels, jnp.float32) / 127.5 - 1, (2, 4, 4, 3))


@pytest.mark.parametrize(("one", "other", "expected"), [
    ((255, 0, 0), (0, 9, 0), 2), ((255, 0, 0), (9, 0, 0), 0), ((3, 4, 0), (3, 0, 4), 2 - 2 * 9 / 25),
    ((0, 0, 0), (0, 9, 0), 1), ((0, 0, 0), (0, 0, 0), 0)])
def test_features_are_compared_by_direction_alone(one, other, expected):
    np.testing.assert_allclose(distance(colour(*one), colour(*other)), expected, atol=1e-4)


def test_it_is_a_mean_over_places_examples_and_stages():
    """One pixel of 32 differs; it is one of eight in the second stage, or none of them."""
    red, green = colour(255, 0, 0), colour(0, 255, 0)
    for place, expected in (((0, 0, 0), 2 * (1 / 32 + 1 / 8) / 2), ((1, 1, 3), 2 * (1 / 32) / 2)):
        np.testing.assert_allclose(distance(red.at[place].set(green[0, 0, 0]), red), expected, rtol=1e-4)


def test_gradients_are_finite_where_there_are_no_features():
    black = colour(0, 0, 0)
    for target in (black, colour(255, 0, 0)):
        assert jnp.isfinite(jax.grad(distance)(black, target)).all()


def test_the_protocol_names_all_that_is_called():
    """A stand-in with nothing but the protocol's methods and their signatures is enough."""
    network = mock.create_autospec(perceptual.FeatureNetwork, instance=True)
    network.apply.side_effect = lambda variables, pixels, method: [pixels]
    np.testing.assert_allclose(perceptual.distance(network, {}, colour(255, 0, 0), colour(0, 9, 0)), 2, atol=1e-4)


def test_efficientnet_lite0_is_there_for_everyone():
    chosen = perceptual.choose("efficientnet_lite0", 64, jnp.bfloat16)
    params, shapes = chosen.load(), state_dict.parameter_shapes(chosen.network)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    stages = jax.eval_shape(lambda p, x: chosen.network.apply({"params": p}, x, method="stages"), params,
                            jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert [stage.shape[1] for stage in stages] == [32, 16, 8, 4, 2]
    assert {stage.dtype for stage in stages} == {jnp.dtype(jnp.bfloat16)}


def test_vgg16_comes_from_a_file(tmp_path):
    path, chosen = tmp_path / "vgg16.safetensors", perceptual.choose(f"vgg16:{tmp_path}/vgg16.safetensors", 64,
                                                                     jnp.float32)
    with pytest.raises(FileNotFoundError, match="vgg16.safetensors does not exist"):
        chosen.load()
    weight_files.write(path, {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, {})
    with pytest.raises(ValueError, match="vgg16.safetensors: the arrays are not those of Vgg16; missing: features.0."):
        chosen.load()
    assert isinstance(chosen.network, vgg.Vgg16)


def test_none_is_none():
    assert perceptual.choose("none", 8, jnp.float32) is None


@pytest.mark.parametrize(("setting", "message"), [
    ("vgg16", "tokenizer.perceptual_network is 'vgg16'; give efficientnet_lite0, vgg16:PATH or none"),
    ("vgg16:", "give efficientnet"),
    ("lpips", "give efficientnet"), ("", "give efficientnet"),
    ("vgg16:a.pth", "needs images of at least 16 pixels, but image_size is 8; set "
                    "tokenizer.perceptual_network=efficientnet_lite0 or none")])
def test_other_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        perceptual.choose(setting, 8, jnp.float32)

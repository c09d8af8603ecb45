"""The perceptual distance: closed forms on features that are the pixels themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models import perceptual


class Pixels(nn.Module):
    """Two stages: the pixels, and every second of them a hundred times as large."""

    def stages(self, pixels_bhwc):
        return [pixels_bhwc, 100 * pixels_bhwc[:, ::2, ::2]]


def distance(image, target):
    return perceptual.distance(Pixels(), {}, image, target)


def colour(*channels):
    """A grey-free image of one colour, given in [0, 255]."""
    return jnp.broadcast_to(jnp.asarray(channels, jnp.float32) / 127.5 - 1, (2, 4, 4, 3))


@pytest.mark.parametrize(("one", "other", "expected"), [
    ((255, 0, 0), (0, 9, 0), 2), ((255, 0, 0), (9, 0, 0), 0), ((3, 4, 0), (3, 0, 4), 2 - 2 * 9 / 25),
    ((0, 0, 0), (0, 9, 0), 1), ((0, 0, 0), (0, 0, 0), 0)])
def test_features_are_compared_by_direction_alone(one, other, expected):
    np.testing.assert_allclose(distance(colour(*one), colour(*other)), expected, atol=1e-4)


def test_it_is_a_mean_over_places_examples_and_stages():
    """One pixel of 32 differs, and is one of eight of the second stage, or of none."""
    red, green = colour(255, 0, 0), colour(0, 255, 0)
    for place, expected in (((0, 0, 0), 2 * (1 / 32 + 1 / 8) / 2), ((1, 1, 3), 2 * (1 / 32) / 2)):
        np.testing.assert_allclose(distance(red.at[place].set(green[0, 0, 0]), red), expected, rtol=1e-4)


def test_gradients_are_finite_where_there_are_no_features():
    black = colour(0, 0, 0)
    for target in (black, colour(255, 0, 0)):
        assert jnp.isfinite(jax.grad(distance)(black, target)).all()

"""GroupNorm, whose rule for gradients is our own, against Flax's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.norm import Norm
from tests.fixtures import small


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(run, params, x):
    y, gradients = jax.vjp(run, params, x)
    return y, gradients(jnp.cos(2 * y))


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("silu", [False, True])
def test_values_and_gradients_are_those_of_flax(groups, silu):
    x = 3 + 5 * small.random(0, 2, 4, 3, 8)
    params = {"scale": small.random(1, 8), "bias": small.random(2, 8)}

    def ours(params, x):
        return Norm(groups=groups, silu=silu).apply({"params": {"norm": params}}, x)

    def flax(params, x):
        y = nn.GroupNorm(groups, epsilon=1e-6).apply({"params": params}, x)
        return nn.silu(y) if silu else y

    results = (jax.tree.leaves(value_and_gradients(run, params, x)) for run in (ours, flax))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_even_image_is_normalized_to_its_bias():
    """Rounding can make its variance negative."""
    params = {"norm": {"scale": np.ones(8, np.float32), "bias": np.full(8, 0.5, np.float32)}}
    x = np.full((1, 5, 7, 8), 100.1, np.float32)
    y, (_, of_x) = value_and_gradients(lambda params, x: Norm(groups=2).apply({"params": params}, x), params, x)
    assert np.abs(y - 0.5).max() < 0.1 and np.isfinite(of_x).all()

"""On a canvas, every view is what it would be alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.models.canvas import Canvas
from refocus_jax.models.tokenizer import decode_views, encode_views
from tests.fixtures import small

VAR10 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@pytest.mark.parametrize("sides", [(1,), (3, 1, 2), (1, 2, 4), VAR10, VAR10[:-1], (4, 4, 4)])
def test_views_lie_apart_and_come_back(sides):
    canvas = Canvas(sides)
    masks = canvas.masks()
    assert masks.shape == (len(sides), *canvas.shape) and canvas.shape[0] == max(sides)
    grown = np.pad(masks, ((0, 0), (0, 1), (0, 1)))  # every view with the empty cells to its right and below
    for row, column in ((0, 1), (1, 0), (1, 1)):
        grown = np.maximum(grown, np.pad(masks, ((0, 0), (row, 1 - row), (column, 1 - column))))
    assert grown.sum(axis=0).max() == 1
    views = [small.random(k, 2, 3 * side, 3 * side, 4) for k, side in enumerate(sides)]
    for view, back in zip(views, canvas.take(canvas.put(views)), strict=True):
        np.testing.assert_array_equal(back, view)


def test_the_canvas_of_ten_scales_is_nearly_full():
    """Without the last, whose own canvas is full: 424 cells of 520 are used."""
    assert Canvas(VAR10[:-1]).shape == (13, 40)


@pytest.mark.parametrize("network", [
    pytest.param(small.autoencoder(), id="structure"), pytest.param(small.patch_autoencoder(), id="alias"),
    pytest.param(small.autoencoder().clone(remat="blocks"), id="recomputed", marks=pytest.mark.slow)])
def test_networks_see_every_view_alone(network):
    """Latents, images, and the gradients of both, as of one call for each view.

    A view of one cell has groups of two values, whose norms amplify rounding; hence the tolerance.
    """
    views = [3 * small.random(k, 2, small.STRIDE * p, small.STRIDE * p, 3) for k, p in enumerate((1, 4, 2))]
    params = small.random_params(functools.partial(network.init, method=lambda m, x: m.decode(m.encode(x))), views[1])

    def together(network, views):
        latents = encode_views(network, views)
        return latents, decode_views(network, latents)

    def alone(network, views):
        latents = [network.encode(view) for view in views]
        return latents, [network.decode(latent) for latent in latents]

    @functools.partial(jax.jit, static_argnums=0)
    def results(run, params, views):
        def loss(params, views):
            outputs = network.apply(params, views, method=run)
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(outputs)), outputs
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, views)

    found, expected = (results(run, params, views) for run in (together, alone))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1, np.abs(b).max()))

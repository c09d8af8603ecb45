"""Views and their numbers in the tab Views."""

import dataclasses

import numpy as np
import pytest

from refocus_jax.demo import looking
from refocus_jax.focus import Pyramid
from refocus_jax.instruments import views

OPTICS = Pyramid(grid_sizes=(1, 2, 4), stride=4, rho_max=3.0)
PICTURE = np.random.default_rng(0).integers(0, 255, (16, 20, 3), np.uint8)


def test_the_numbers_are_those_of_the_instrument():
    other = looking.pyramid(OPTICS, "gaussian", "nyquist", 2)
    image = looking.masks.to_model(PICTURE, 16)
    pyramids = {"own": other, "none": dataclasses.replace(other, psf="none")}
    expected = {name: views.shares(powers) for name, powers in views.measure(pyramids, [image]).items()}
    *coarse, last = looking.look(PICTURE, other)
    for scale, seen in enumerate(coarse):
        np.testing.assert_allclose((seen.alias, seen.alias_without, seen.kept), (
            expected["own"].alias[scale], expected["none"].alias[scale], expected["own"].kept[scale]), rtol=1e-3)
        assert seen.focused.shape == seen.downsampled.shape == seen.residual.shape == (4 * seen.grid,) * 2 + (3,)
        assert seen.radius == pytest.approx(other.radii()[scale])
    assert (last.alias, last.alias_without, last.kept, last.radius) == (None, None, None, 0)
    np.testing.assert_array_equal(last.focused, last.downsampled)


def test_without_blur_nothing_differs():
    for seen in looking.look(PICTURE, looking.pyramid(OPTICS, "none", "cosine", 2)):
        np.testing.assert_array_equal(seen.residual, 128)
        assert seen.radius == 0 and seen.alias == seen.alias_without


def test_what_a_pyramid_refuses_is_named():
    with pytest.raises(ValueError, match="PSF of radius 40 px needs an image side above"):
        looking.look(PICTURE, looking.pyramid(OPTICS, "disk", "cosine", 40))


def test_the_html_has_a_row_for_every_scale():
    html = looking.view_cards(looking.look(np.full((16, 16, 3), 9, np.uint8), OPTICS))
    assert html.count("<img") == 9 and html.count("<figcaption>A = D - L, doubled") == 3
    assert "Alias energy less than 0.001 % of the signal in L" in html
    assert "1 × 1 tokens, radius 3 px" in html and "The image itself: L = D." in html

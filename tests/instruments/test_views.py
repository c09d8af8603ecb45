"""Aliasing of views: exact where it is known, for every operator and factor."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.focus import Pyramid
from refocus_jax.focus.spectrum import cosine_lowpass
from refocus_jax.instruments import patterns, views
from refocus_jax.instruments.views import Powers

GRIDS, STRIDE = (3, 5, 8, 16), 2  # 32 px; factors 16/3, 16/5, 2
OPERATORS = views.combinations(GRIDS, STRIDE, 2.0)


def photograph(seed=0, side=32):
    """An image that is not white: power falls with frequency, as in photographs, and the mean is not 0."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(side, side, 3)).cumsum(0).cumsum(1)
    return (noise / np.abs(noise).max()).astype(np.float32)


def cosine(k, side=32):
    """The k-th cosine down the image, k / (2 side) cycles per pixel."""
    wave = np.cos(np.pi * k * (np.arange(side) + 0.5) / side)
    return np.broadcast_to(wave[:, None, None], (side, side, 3)).astype(np.float32)


def shares(operators, image):
    return {name: views.shares(powers) for name, powers in views.measure(operators, [image]).items()}


def test_every_operator_is_there_and_named_after_what_it_is():
    assert len(OPERATORS) == 15 and set(views.SHOWN) <= set(OPERATORS)
    assert [views.name_of(pyramid) for pyramid in OPERATORS.values()] == list(OPERATORS)
    assert all(p.grid_sizes == GRIDS and p.stride == STRIDE and p.rho_max == 2.0 for p in OPERATORS.values())


def test_blurs_that_are_larger_than_the_image_are_left_out():
    left = views.combinations((1, 2, 4), 2, 1.5)
    assert "disk nyquist + area" in left and "gaussian cosine + area" in left and "gaussian nyquist + area" not in left


@pytest.mark.parametrize("side", [1, 6, 10, 16, 32])
def test_the_halves_are_the_image_without_its_mean(side):
    image = jnp.asarray(photograph()[None])
    low, high = views.split(image, side)
    np.testing.assert_allclose(low + high, image - image.mean(axis=(1, 2), keepdims=True), atol=1e-6)
    np.testing.assert_allclose(np.mean(low**2) + np.mean(high**2), np.mean((low + high) ** 2), rtol=1e-4)


def test_halves_make_the_view():
    image = jnp.asarray(photograph()[None])
    for scale, grid in enumerate(GRIDS[:-1]):
        low, high = views.split(image, STRIDE * grid)
        pyramid = OPERATORS["disk cosine + bilinear"]
        whole = pyramid.view(image, scale)
        halves = jax.tree.map(jnp.add, pyramid.view(low, scale), pyramid.view(high, scale))
        mean = image.mean(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(halves.focused + mean, whole.focused, atol=1e-5)
        np.testing.assert_allclose(halves.residual, whole.residual, atol=1e-5)


def test_after_an_ideal_lowpass_nothing_aliases():
    """A frequency that the coarsest view can represent is represented by every view."""
    image = np.asarray(cosine_lowpass(jnp.asarray(photograph()[None]), STRIDE * GRIDS[0]))[0]
    for name, found in shares(OPERATORS, image).items():
        assert (found.alias < 1e-9).all(), name


def test_a_grating_is_signal_below_the_nyquist_rate_and_alias_above():
    """Views of 6, 10 and 16 pixels at 10 half-cycles, which are too fine for two of them."""
    for name, powers in views.measure(OPERATORS, [cosine(10)]).items():
        inside, outside = powers.signal[0] > 1e-9, powers.alias[0] > 1e-9
        assert not inside[:2].any() and inside[2] and not outside[2], name
        np.testing.assert_allclose(powers.available[0], [0, 0, 0.5], atol=1e-4)
    powers = views.measure({"none": OPERATORS["none + stride"]}, [cosine(10)])["none"]
    assert (powers.alias[0, :2] > 0.2).all()  # about the grating's own 0.5: point sampling loses nothing


def test_point_sampling_of_all_frequencies_keeps_all_and_folds_all():
    """For white noise, a share of 1 / s^2 is in the band of view k, and sampling adds the rest to it."""
    noise = np.random.default_rng(0).normal(size=(32, 32, 3)).astype(np.float32)
    found = shares({"stride": OPERATORS["none + stride"]}, noise)["stride"]
    np.testing.assert_allclose(found.kept[2], 1, atol=0.05)
    np.testing.assert_allclose(found.alias[2], 3, rtol=0.15)  # s = 2: three quarters over one
    assert (np.diff(found.alias) < 0).all() and found.alias[0] > 15


def test_area_averaging_over_two_pixels_is_known():
    """A cosine of k half-cycles in n pixels comes out with the factor cos(pi k / (2 n))."""
    powers = views.measure({"area": OPERATORS["none + area"]}, [cosine(10)])["area"]
    np.testing.assert_allclose(powers.signal[0, 2] / powers.available[0, 2], np.cos(np.pi * 10 / 64) ** 2, rtol=1e-4)
    powers = views.measure({"area": OPERATORS["none + area"]}, [cosine(20)])["area"]
    np.testing.assert_allclose(powers.alias[0, 2] / 0.5, np.cos(np.pi * 20 / 64) ** 2, rtol=1e-4)


def test_without_blur_there_is_no_residual():
    for name, found in shares({n: p for n, p in OPERATORS.items() if p.psf == "none"}, photograph()).items():
        assert np.isnan(found.residual_alias).all(), name


def test_the_residual_is_lost_sharpness_below_the_nyquist_rate_and_alias_above():
    blurred = {name: pyramid for name, pyramid in OPERATORS.items() if "nyquist" in name}
    assert len(blurred) == 6
    for name, found in shares(blurred, cosine(10)).items():
        np.testing.assert_allclose(found.residual_alias, [1, 1, 0], atol=1e-6, err_msg=name)
    for name, found in shares(blurred, photograph()).items():
        assert ((found.residual_alias > 0.01) & (found.residual_alias < 0.99)).all(), name


def test_images_weigh_by_their_energy():
    one, other = photograph(0), 0.01 * photograph(1)
    operators = {"area": OPERATORS["none + area"]}
    both = views.shares(views.measure(operators, [one, other])["area"]).alias
    np.testing.assert_allclose(both, shares(operators, one)["area"].alias, rtol=1e-2)


def test_zone_plate_rings_alias_less_the_more_they_are_averaged():
    plate = np.repeat(patterns.zone_plate(32)[..., None], 3, axis=-1)
    found = shares({name: OPERATORS[name] for name in views.SHOWN}, plate)
    order = ["none + stride", "none + bilinear", "none + area"]
    for coarse, fine in itertools.pairwise(order):
        assert (found[coarse].alias >= found[fine].alias - 1e-6).all()


def test_tables_and_charts_say_the_numbers():
    ones = np.ones((2, 3))
    found = {"none + stride": Powers(4 * ones, 2 * ones, ones, 0 * ones, 0 * ones),
             "disk cosine + area": Powers(4 * ones, ones, ones / 4, 3 * ones, ones)}
    alias, kept, rms, residual = views.tables("here", found, GRIDS, own="disk cosine + area")
    assert alias.rows == [["none + stride", 50.0, 50.0, 50.0], ["disk cosine + area (this run)", 25.0, 25.0, 25.0]]
    assert kept.rows[1][1:] == [25.0] * 3 and rms.rows[0][1:] == [128.0] * 3
    assert residual.rows == [["disk cosine + area (this run)", 25.0, 25.0, 25.0]]
    assert alias.columns == ["view operator", "p = 3", "p = 5", "p = 8"]
    charts = views.charts("here", found, GRIDS)
    assert [line.name for line in charts[0].lines] == ["none + stride"] and charts[1].lines[0].y == [50.0] * 3
    assert len(views.charts("here", found, GRIDS, own="disk cosine + area")[0].lines) == 2


def test_radii_are_compared_with_the_nyquist_radii():
    table = views.radii_table("k4", (2, 4, 8, 16), 12.0)
    assert table.rows[0][1:] == [8.0, 4.0, 2.0] and table.rows[1] == ["radius, cosine from 12", 12.0, 9.0, 3.0]
    assert table.rows[2][1:] == [9.76, 4.88, 2.44] and table.rows[3][1:] == [1.23, 1.84, 1.23]


def test_one_view_is_one_of_all():
    pyramid = dataclasses.replace(OPERATORS["disk cosine + bilinear"], noise_last=0.3)
    image, key = jnp.asarray(photograph()[None]), jax.random.key(0)
    for scale, view in enumerate(pyramid.views(image, key)):
        for one, other in zip(pyramid.view(image, scale, key), view, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="describe images"):
        Pyramid(grid_sizes=(1, 2), stride=4, rho_max=1.0).view(image, 0)

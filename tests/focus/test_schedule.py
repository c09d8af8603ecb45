"""Radii and noise per scale: the paper's numbers, the order of focus, and what is refused."""

import itertools

import numpy as np
import pytest

from refocus_jax.focus.schedule import GRID_SIZES, noise_stds, radii


def test_the_paper_s_radii():
    np.testing.assert_allclose(radii(4, 12), [12, 9, 3, 0], atol=1e-12)


@pytest.mark.parametrize("preset", sorted(GRID_SIZES))
@pytest.mark.parametrize("schedule", ["cosine", "nyquist"])
def test_focus_goes_from_blur_to_clarity(preset, schedule):
    grids = np.asarray(GRID_SIZES[preset])
    values = radii(len(grids), 12, schedule, grids[-1] / grids)
    assert values.shape == grids.shape
    assert (np.diff(values) < 0).all()
    assert values[-1] == 0.0


def test_cosine_scales_with_the_largest_radius():
    np.testing.assert_allclose(radii(10, 24), 2 * radii(10, 12), rtol=1e-12)


def test_nyquist_follows_the_factors_and_not_rho_max():
    for rho_max in (0, 12):
        values = radii(4, rho_max, "nyquist", (8, 16 / 5, 2, 1))
        np.testing.assert_allclose(values, [9.76, 3.904, 2.44, 0])


def test_radii_leave_the_caller_s_factors_alone():
    factors = np.array([4.0, 2.0, 1.0])
    radii(3, 12, "nyquist", factors)
    np.testing.assert_array_equal(factors, [4, 2, 1])


@pytest.mark.parametrize("grids", GRID_SIZES.values(), ids=GRID_SIZES)
def test_grids_grow(grids):
    assert all(a < b for a, b in itertools.pairwise(grids))


def test_grids_have_the_published_token_counts():
    assert {name: sum(p * p for p in grids) for name, grids in GRID_SIZES.items()} == {
        "k4": 340, "var10": 680, "var10_512": 2240, "var14_1024": 9451}


def test_noise_grows_linearly():
    np.testing.assert_allclose(noise_stds(4), [1e-3, 4e-3, 7e-3, 1e-2])
    np.testing.assert_allclose(noise_stds(3, 0.0, 0.2), [0, 0.1, 0.2])


@pytest.mark.parametrize(("arguments", "message"), [
    ((1, 12), "num_scales is 1; .* at least 2 grid_sizes"),
    ((4, 0), r"focus\.rho_max is 0; .*psf='none'"),
    ((4, -3.0), r"focus\.rho_max is -3\.0; "),
    ((4, float("nan")), r"focus\.rho_max is nan; "),
    ((4, float("inf")), r"focus\.rho_max is inf; "),
    ((4, 12, "linear"), r"focus\.schedule is 'linear'; choose 'cosine' or 'nyquist'"),
    ((4, 12, "nyquist"), "'nyquist' needs downsample_factors, one per scale"),
    ((4, 12, "nyquist", (4, 2, 1)), "'nyquist' needs downsample_factors, one per scale"),
])
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        radii(*arguments)

"""The instruments for tokenizers on distortions with a known effect."""

import numpy as np
import pytest

from refocus_jax.instruments import patterns, resolution

SIZE = 64


def gaussian(images, sigma):
    """Blur axes 1 and 2, with continued borders."""
    reach = int(4 * sigma) + 1
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        width = [(0, 0)] * images.ndim
        width[axis] = (reach, reach)
        padded = np.pad(images, width, mode="edge")
        images = sum(tap * np.take(padded, np.arange(images.shape[axis]) + i, axis) for i, tap in enumerate(taps))
    return images


def every_second_row(images):
    return images[:, ::2].repeat(2, axis=1)


def test_a_perfect_tokenizer_has_gain_one_and_no_moire():
    found = resolution.gratings(lambda images: images, SIZE)
    assert found.frequencies[-1] == 0.5 and found.gain.shape == found.moire.shape == (3, 16)
    np.testing.assert_allclose(found.gain, 1, atol=1e-5)
    np.testing.assert_allclose(found.moire, 0, atol=1e-9)


def test_contrast_and_brightness_are_gain_and_no_moire():
    found = resolution.gratings(lambda images: 0.5 * images + 0.2, SIZE, 4)
    np.testing.assert_allclose(found.gain, 0.5, atol=1e-5)
    np.testing.assert_allclose(found.moire, 0, atol=1e-6)


def test_the_gain_of_a_mean_over_three_pixels_is_known():
    def mean_of_three(images):
        return (images + np.roll(images, 1, axis=1) + np.roll(images, -1, axis=1)) / 3

    found = resolution.gratings(mean_of_three, SIZE, 8)
    vertical, _, horizontal = found.gain
    np.testing.assert_allclose(vertical, 1, atol=1e-5)
    np.testing.assert_allclose(horizontal, np.abs(1 + 2 * np.cos(2 * np.pi * found.frequencies)) / 3, atol=0.02)


def test_a_wave_that_is_not_there_is_moire_by_its_energy():
    grating, other = patterns.grating(SIZE, 0.3, 0.0), patterns.grating(SIZE, 0.1, 1.0)
    fit = resolution.sine_fit(grating, 0.8 * grating + 0.25 * other, 0.3, 0.0)
    assert fit.gain == pytest.approx(0.8, abs=0.01) and fit.moire == pytest.approx(0.25**2, rel=0.05)


def test_dropping_rows_makes_moire_of_horizontal_lines_alone():
    found = resolution.gratings(every_second_row, SIZE)
    vertical, _, horizontal = found.moire
    assert vertical.max() < 1e-9
    fine = (found.frequencies > 0.25) & (found.frequencies < 0.5)  # at the Nyquist rate all is one grey, a mean
    assert (horizontal[fine] > 0.3).all() and horizontal[0] < 0.05


def test_zone_plate_moire_sees_no_smooth_gain_and_all_noise():
    plate = patterns.zone_plate(SIZE)
    fading = np.linspace(0.4, 1.0, SIZE)[None, :]
    assert resolution.zone_plate_moire(plate, plate) < 1e-3
    assert resolution.zone_plate_moire(plate, fading * plate + 0.1) < 0.01
    noise = np.random.default_rng(0).normal(size=plate.shape)
    share = np.square(noise).sum() / np.square(plate).sum()
    assert resolution.zone_plate_moire(plate, plate + noise) == pytest.approx(share, rel=0.1)
    assert resolution.zone_plate_moire(plate, every_second_row(plate[None])[0]) > 0.2


@pytest.mark.parametrize("size, sigma", [(64, 0.0), (64, 1.0), (64, 1.5), (128, 0.7), (32, 1.0)])
def test_mtf50_of_a_gaussian_blur_is_known(size, sigma):
    """The edge's own pixels are squares: sinc(f) exp(-2 (pi sigma f)^2)."""
    frequencies = np.linspace(0.01, 0.9, 2000)
    expected = np.sinc(frequencies) * np.exp(-2 * (np.pi * sigma * frequencies) ** 2)
    expected50 = frequencies[np.abs(expected - 0.5).argmin()]
    for name, edge in resolution.slanted_edges(size).items():
        image = gaussian(edge[None], sigma)[0] if sigma else edge
        mtf = resolution.edge_mtf(image.T if name == "horizontal" else image)
        assert mtf.mtf50 == pytest.approx(expected50, rel=0.06 if size == 32 else 0.025)
        low = mtf.frequencies < 1.2 * expected50
        shape = np.sinc(mtf.frequencies) * np.exp(-2 * (np.pi * sigma * mtf.frequencies) ** 2)
        np.testing.assert_allclose(mtf.response[low], shape[low], atol=0.08 if size == 32 else 0.04)


def test_mtf_depends_on_neither_brightness_nor_contrast():
    edge = gaussian(resolution.slanted_edges(SIZE)["vertical"][None], 1.0)[0]
    assert resolution.edge_mtf(0.3 * edge + 0.2).mtf50 == pytest.approx(resolution.edge_mtf(edge).mtf50)


def test_mtf_is_measured_across_the_edge_however_it_leans():
    upright, leaning = (gaussian(patterns.slanted_edge(128, np.radians(angle), 0.6)[None], 2.0)[0] for angle in (5, 20))
    assert resolution.edge_mtf(leaning).mtf50 == pytest.approx(resolution.edge_mtf(upright).mtf50, rel=0.02)


def test_what_is_no_edge_has_no_mtf():
    edge = resolution.slanted_edges(SIZE)["vertical"]
    assert resolution.edge_mtf(np.zeros((SIZE, SIZE))) is None
    assert resolution.edge_mtf(edge[:, ::-1]) is None  # dark right
    assert resolution.edge_mtf(patterns.slanted_edge(SIZE, 0.0, 0.6)) is None  # upright: most bins are empty
    assert resolution.Mtf(np.array([0.0, 0.5]), np.array([1.0, 0.8])).mtf50 is None


@pytest.mark.parametrize("height", resolution.TEXT_HEIGHTS)
def test_all_text_is_read_as_it_is_and_wherever_it_moves_a_little(height):
    text = patterns.text(SIZE, height, 2)
    assert resolution.character_error(text, text.pages) == 0
    moved = np.roll(0.5 * text.pages + 0.3, (1, -1), axis=(1, 2))
    assert (resolution.read_text(text, moved) == text.characters).mean() > 0.9  # cells see their neighbours


def test_text_that_is_blurred_or_gone_is_not_read():
    text = patterns.text(SIZE, 8, 3)
    errors = [resolution.character_error(text, gaussian(text.pages, sigma)) for sigma in (0.5, 1.0, 3.0)]
    assert errors[0] < 0.05 and errors[0] < errors[1] < errors[2] and errors[2] > 0.8
    noise = np.random.default_rng(0).normal(size=text.pages.shape)
    assert 0.9 < resolution.character_error(text, noise) <= 1


def test_tables_and_charts_say_the_numbers():
    found = resolution.gratings(lambda images: 0.5 * images, SIZE, 4)
    mtf = resolution.edge_mtf(resolution.slanted_edges(SIZE)["vertical"])
    tables, charts = resolution.tables_and_charts(found, 0.125, {"vertical": (mtf, None)}, {8: (186, 0.0, 0.25)})
    gratings, edges, text = tables
    assert gratings.rows[0] == ["all", 0.5, 0.0] and gratings.rows[-1] == ["zone plate", None, 12.5]
    assert edges.rows == [["vertical", round(mtf.mtf50, 4), None]] and text.rows == [[8, 186, 0.0, 25.0]]
    assert [len(chart.lines) for chart in charts] == [3, 3, 1, 2]
    tables, charts = resolution.tables_and_charts(found, 0.125, {}, {})
    assert len(tables) == 1 and len(charts) == 2

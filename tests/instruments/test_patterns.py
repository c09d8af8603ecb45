"""Patterns have the stated frequencies, and text can be read."""

import numpy as np
import pytest

from refocus_jax.instruments import patterns


def test_a_zone_plate_grows_finer_from_its_centre_to_the_nyquist_rate():
    plate = patterns.zone_plate(256).astype(np.float64)
    row, column = 128 + round(0.02 * 256), 128 - round(0.03 * 256)
    assert plate[row, column] > 0.99 and np.abs(plate).max() <= 1

    def frequency(values):
        spectrum = np.abs(np.fft.rfft(values * np.hanning(len(values))))
        return spectrum[1:].argmax() / len(values) + 1 / len(values)

    for distance in (40, 80, 110):  # along the row through the centre
        near = plate[row, column + distance - 16:column + distance + 16]
        assert abs(frequency(near) - distance / (1.06 * 256)) < 1 / 32
    # Every frequency of the square has about the same power.
    power = np.abs(np.fft.fft2(plate)) ** 2
    low, high = power[:64, :64].mean(), power[64:128, 64:128].mean()
    assert 0.8 < low / high < 1.3


def test_a_grating_has_one_frequency():
    spectrum = np.abs(np.fft.fft2(patterns.grating(32, 5 / 32, np.pi / 2)))
    assert sorted(map(tuple, np.argwhere(spectrum > 1))) == [(5, 0), (27, 0)]
    np.testing.assert_allclose(patterns.grating(32, 0.5, 0.0)[0], np.tile([1, -1], 16), atol=1e-9)


def test_an_edge_is_antisymmetric_dark_left_and_light_right_and_leans_by_its_angle():
    edge = patterns.slanted_edge(64, np.radians(5), 0.6)
    np.testing.assert_allclose(edge, -edge[::-1, ::-1], atol=1e-12)
    assert (edge[:, 0] == -0.6).all() and (edge[:, -1] == 0.6).all()
    position = (0.6 - edge).sum(axis=1) / 1.2  # pixels left of the edge
    np.testing.assert_allclose(np.polyfit(np.arange(64), position, 1)[0], np.tan(np.radians(5)), rtol=1e-3)


def test_text_holds_every_character_so_many_times():
    text = patterns.text(64, 10, repeats=2)
    assert np.bincount(text.characters).tolist() == [2] * len(patterns.CHARACTERS)
    assert text.pages.shape[1:] == (64, 64) and -1 <= text.pages.min() < -0.5 and text.pages.max() == 1
    np.testing.assert_array_equal(text.cells(text.pages, 0), text.glyphs[text.characters])
    h, w = text.glyphs.shape[1:]
    assert text.cells(text.pages, 2).shape == (124, h + 4, w + 4)
    assert len(np.unique(text.glyphs.reshape(len(patterns.CHARACTERS), -1), axis=0)) == len(patterns.CHARACTERS)


def test_pages_that_hold_no_character_are_none():
    assert patterns.text(8, 16, 1) is None


def test_luminance_of_grey_is_grey():
    grey = np.random.default_rng(0).uniform(size=(2, 3, 4, 1)).repeat(3, -1)
    np.testing.assert_allclose(patterns.luminance(grey), grey[..., 0], atol=1e-12)
    green, blue = patterns.luminance(np.eye(3)[None, None, 1:])[0, 0]
    assert green == pytest.approx(0.7152) and blue == pytest.approx(0.0722)

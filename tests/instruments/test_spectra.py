import numpy as np
import pytest

from refocus_jax.instruments import spectra


def noise(n, deviation, seed=0, side=32):
    values = np.random.default_rng(seed).normal(127.5, deviation, (n, side, side, 1))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8).repeat(3, -1)


def test_white_noise_is_flat_at_its_variance():
    powers = spectra.measure(noise(200, 30), "noise")
    assert powers.shape == (200, 16)
    np.testing.assert_allclose(powers.mean(0)[1:], (30 / 127.5) ** 2, rtol=0.1)
    assert powers.mean(0)[0] < (30 / 127.5) ** 2  # the mean takes a part of one cycle per image


def test_a_wave_stands_at_its_frequency_and_brightness_nowhere():
    wave = 127.5 + 100 * np.cos(2 * np.pi * 6 * np.arange(32) / 32)
    image = np.rint(np.broadcast_to(wave[:, None, None], (32, 32, 3))).astype(np.uint8)
    power = spectra.radial_power(image)
    assert power.argmax() == 5 and power[[0, 1, 9, 12]].max() < 1e-3 * power[5]  # index 0 is one cycle per image
    assert spectra.radial_power(np.full((16, 16, 3), 200, np.uint8)).max() < 1e-20


def test_rings_are_means_of_their_frequencies():
    radius = np.array([[0.0, 1.0, 2.0], [1.2, 1.4, 2.4]])
    np.testing.assert_allclose(spectra.ring_means(np.arange(6.0).reshape(2, 3), radius, 2), [(1 + 3 + 4) / 3, 3.5])


def test_ratios_to_the_reference_lie_in_their_intervals():
    powers = {"data": spectra.measure(noise(60, 20), "data"), "drawn": spectra.measure(noise(80, 40, seed=1), "drawn"),
              "alike": spectra.measure(noise(60, 20, seed=2), "alike")}
    table = spectra.table(powers, "data")
    assert [row[0] for row in table.rows] == ["drawn", "alike"]
    assert table.columns[1] == "0.281 to 0.5" and len(table.columns) == 1 + 5
    for row, expected in zip(table.rows, (4.0, 1.0), strict=True):
        ratio, interval = row[1].rstrip(")").split(" (")
        low, high = map(float, interval.split(" to "))
        assert low < float(ratio) < high and low < 1.02 * expected and high > 0.98 * expected
        assert high - low < 0.2 * expected


def test_the_chart_has_a_band_per_set_around_its_line():
    powers = {"data": spectra.measure(noise(20, 20), "data")}
    (line,) = spectra.chart(powers).lines
    assert line.name == "data (n = 20)" and line.x[0] == 1 / 32 and line.x[-1] == 0.5
    assert (np.array(line.low) < line.y).all() and (np.array(line.y) < line.high).all()


@pytest.mark.parametrize("images, message", [
    ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "drawn has images of 9x8 and 8x8 pixels"),
    ([np.zeros((8, 9, 3), np.uint8)] * 2, "drawn has images of 9x8 and 9x8 pixels"),
    ([np.zeros((8, 8, 3), np.uint8)], "drawn has 1 images, too few for an interval")], ids=["sizes", "square", "one"])
def test_sets_that_have_no_spectrum_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        spectra.measure(images, "drawn")

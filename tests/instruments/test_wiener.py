import numpy as np
import pytest

from refocus_jax.focus import Pyramid
from refocus_jax.instruments import wiener
from refocus_jax.instruments.wiener import Gain, Gates, ScaleGains

PYRAMID = Pyramid(grid_sizes=(4, 8, 16), stride=2, rho_max=2.0, downsample="stride")  # views of 8, 16 and 32 pixels


def white(seed, side=32):
    return np.random.default_rng(seed).normal(size=(side, side, 3)).astype(np.float32)


def cosine(k, side=32):
    wave = np.cos(np.pi * k * (np.arange(side) + 0.5) / side)
    return np.broadcast_to(wave[:, None, None], (side, side, 3)).astype(np.float32)


def test_of_white_noise_point_sampling_leaves_one_part_in_the_square_of_the_factor():
    found = wiener.gains(PYRAMID, [white(seed) for seed in range(8)])
    for scale, factor in zip(found, (4, 2), strict=True):
        assert scale.view.total == pytest.approx(1 / factor**2, rel=0.15)
        np.testing.assert_allclose(scale.view.gain[2:], 1 / factor**2, rtol=0.5)  # flat: no frequency is better
    assert found[0].view.frequencies[-1] == 7 / 16


def test_detail_below_the_nyquist_rate_is_trusted_and_above_it_is_not():
    fine, coarse = (wiener.gains(PYRAMID, [cosine(k)]) for k in (12, 3))
    for scale, expected in zip(fine, (0, 1), strict=True):  # too fine for views of 8 pixels alone
        assert scale.view.total == pytest.approx(expected, abs=1e-6)
        assert scale.residual.total == pytest.approx(expected, abs=1e-6)
    assert coarse[0].view.total == pytest.approx(1, abs=1e-6)


def test_without_blur_the_residual_has_no_gain():
    found = wiener.gains(Pyramid(grid_sizes=(4, 8, 16), stride=2, rho_max=2.0, psf="none"), [white(0)])
    assert np.isnan(found[0].residual.total) and np.isnan(found[0].residual.gain).all() and found[0].view.total > 0
    tables, charts = wiener.gain_tables_and_charts(found, (4, 8, 16))
    assert tables[0].rows[0][0] == "p = 4" and tables[0].rows[0][2] is None and len(charts) == 1


def test_gates_are_taken_apart_by_scale():
    alpha = np.random.default_rng(0).uniform(size=(2, 3, 20, 5)).astype(np.float32)
    found = wiener.gates(alpha, (0, 4, 20))
    assert found.mean.shape == found.deviation.shape == (2, 2, 5)
    np.testing.assert_allclose(found.mean[1, 1, 3], alpha[1, :, 4:, 3].mean(), rtol=1e-5)
    np.testing.assert_allclose(found.deviation[0, 0, 2], alpha[0, :, :4, 2].std(), rtol=1e-5)


def test_gates_stand_next_to_the_gains_of_the_views_they_weight():
    """Scales 3 and 4 of four are taught, so the Wiener gains are those of scales 2 and 3."""
    gains = [ScaleGains(*(Gain(np.array([0.25]), np.array([g]), g) for g in pair))
             for pair in ((0.1, 0.2), (0.5, 0.4), (0.75, 0.8))]
    mean = np.stack([np.full((2, 11), 0.4), np.full((2, 11), 0.4)])
    mean[1, 1] = np.linspace(0.2, 0.6, 11)
    found = Gates(mean, 0.01 * np.ones_like(mean))
    (table, ratios), charts = wiener.gate_tables_and_charts(found, gains, (1, 2, 4, 8))
    assert [row[0] for row in table.rows] == [f"block {block}, p = {p}" for block in (-2, -1) for p in (4, 8)]
    assert [row[-2:] for row in table.rows] == [[0.5, 0.4], [0.75, 0.8]] * 2
    assert table.rows[3][1:7] == [0.4, 0.22, 0.3, 0.4, 0.5, 0.58] and table.rows[0][7] == 0.01
    assert ratios.rows[0] == ["block -2, p = 4 to 8", 1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 2.0]
    assert ratios.rows[1][1:4] == [0.55, 0.75, 1.0]
    assert [line.y[50] for line in charts[0].lines] == pytest.approx([0.4] * 4)
    tables, _ = wiener.gate_tables_and_charts(Gates(mean[:, :1], mean[:, :1]), gains, (1, 2, 4, 8))
    assert len(tables) == 1 and tables[0].rows[0][-2:] == [0.75, 0.8]

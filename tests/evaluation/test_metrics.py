"""Metrics against closed forms."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from refocus_jax.evaluation import metrics


def test_psnr_averages_errors_before_the_logarithm():
    np.testing.assert_allclose(metrics.psnr(np.array([0.04])), 20.0)
    assert metrics.psnr(np.array([0.04, 0.0])) < 24  # not infinite: one perfect image does not lift the rest


def test_ssim_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    a = np.cumsum(rng.normal(0, 0.1, (3, 24, 17, 3)), axis=1).clip(-1, 1).astype(np.float32)
    b = (a + rng.normal(0, 0.2, a.shape)).clip(-1, 1).astype(np.float32)
    expected = [structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                      data_range=2.0, channel_axis=-1) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.ssim(a, b), expected, atol=2e-5)
    np.testing.assert_allclose(metrics.ssim(a, a), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match="give at least 11 x 11"):
        metrics.ssim(a[:, :8], b[:, :8])


def test_perplexity_and_usage():
    np.testing.assert_allclose(metrics.perplexity(np.array([5.0, 5.0, 0.0, 5.0])), 3.0)
    assert metrics.usage(np.array([5.0, 0.0, 1.0, 0.0])) == 0.5


def test_unigram_floor_is_the_entropy_of_the_source():
    """Two scales, two classes with codes of their own: the model finds each class's entropy."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20_000)
    tokens = np.stack([4 * labels + rng.integers(0, 2, 20_000), rng.integers(0, 8, 20_000)], axis=1)
    train, test = slice(0, 10_000), slice(10_000, None)
    floor = metrics.unigram_cross_entropy(tokens[test], labels[test], tokens[train], labels[train], (0, 1, 2), 8)
    np.testing.assert_allclose(floor, [np.log(2), np.log(8)], atol=0.01)
    np.testing.assert_allclose(metrics.unigram_entropy(tokens, labels, (0, 1, 2), 8), [np.log(2), np.log(8)], atol=0.01)


def test_unigram_floor_survives_codes_it_has_never_seen():
    train, test = np.zeros((10, 1), int), np.full((10, 1), 7)
    floor = metrics.unigram_cross_entropy(test, np.ones(10, int), train, np.zeros(10, int), (0, 1), 8)
    assert np.isfinite(floor).all() and floor[0] > np.log(8)


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(40):
        mean, low, high = metrics.bootstrap_interval(rng.normal(1.0, 2.0, 100), seed, resamples=300)
        assert low < mean < high and 0.4 < high - low < 1.2
        inside += low < 1.0 < high
    assert inside >= 32

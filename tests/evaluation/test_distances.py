"""Results of published implementations (fixtures/metrics.npz), closed forms, and invariances."""

from pathlib import Path

import numpy as np
import pytest

from refocus_jax.evaluation import distances
from refocus_jax.evaluation.distances import Moments

# features_a, features_b, logits; precision is the share of a inside b's manifold, recall that of b inside a's.
FIXTURE = Path(__file__).parents[1] / "fixtures" / "metrics.npz"


@pytest.fixture(scope="module")
def numbers():
    with np.load(FIXTURE, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(params=[distances._ROWS, 7], ids=["whole", "in blocks"])
def block_size(request, monkeypatch):
    """Every metric is the same whether the features fit into one block or not."""
    monkeypatch.setattr(distances, "_ROWS", request.param)


def test_published_implementations_give_the_same_numbers(numbers, block_size):
    a, b = numbers["features_a"], numbers["features_b"]
    np.testing.assert_allclose(distances.frechet_distance(Moments.of(a), Moments.of(b)), numbers["frechet_distance"],
                               rtol=1e-6)
    np.testing.assert_allclose(distances.kernel_distance(a, b)[0], numbers["kernel_distance_full"], rtol=1e-6)
    np.testing.assert_allclose(distances.precision_recall(a, b), [numbers["precision"], numbers["recall"]], atol=1e-6)
    scores = distances.inception_scores_in_order(numbers["logits"], 10)
    np.testing.assert_allclose([scores.mean(), scores.std()], numbers["inception_score_10_splits_unshuffled"],
                               atol=1e-5)


def test_moments_are_those_of_all_features_together(block_size):
    features = np.random.default_rng(0).normal(3.0, 2.0, (50, 5)).astype(np.float32)
    for moments in (Moments.of(features), Moments.of(features[:1]).merge(Moments.of(features[1:]))):
        assert moments.count == 50
        np.testing.assert_allclose(moments.mean, features.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)
    with pytest.raises(ValueError, match="give at least one"):
        Moments.of(features[:0])


def test_frechet_distance_of_known_gaussians():
    """Commuting covariances: sum of (sqrt(a) - sqrt(b))^2, in any basis; and one-dimensional ones."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    values_a, values_b = rng.uniform(0, 4, 6), rng.uniform(0, 4, 6)
    shift = rng.normal(size=6)
    a = Moments(np.zeros(6), basis @ np.diag(values_a) @ basis.T)
    b = Moments(shift, basis @ np.diag(values_b) @ basis.T)
    expected = shift @ shift + np.square(np.sqrt(values_a) - np.sqrt(values_b)).sum()
    np.testing.assert_allclose(distances.frechet_distance(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(distances.frechet_distance(b, a), expected, rtol=1e-12)
    one = Moments(np.zeros(1), np.array([[9.0]])), Moments(np.ones(1), np.array([[4.0]]))
    np.testing.assert_allclose(distances.frechet_distance(*one), 2.0)


def test_frechet_distance_with_fewer_features_than_dimensions():
    """The distance to itself is zero; the same features in twenty times as many dimensions have the same distance."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 12)), rng.normal(1.0, 2.0, (40, 12))
    small = distances.frechet_distance(Moments.of(a), Moments.of(b))
    rotation, _ = np.linalg.qr(rng.normal(size=(240, 240)))
    large = [Moments.of(np.pad(x, ((0, 0), (0, 228))) @ rotation) for x in (a, b)]
    np.testing.assert_allclose(distances.frechet_distance(*large), small, rtol=1e-9)
    for x in large:
        assert abs(distances.frechet_distance(x, x)) < 1e-9
    assert distances.frechet_distance(Moments.of(a[:1]), Moments.of(a[:1] + 1)) == pytest.approx(12)


def test_kernel_distance_and_its_error():
    """For one distribution it is zero within its standard error; for two it is their discrepancy."""
    rng = np.random.default_rng(0)
    same = np.array([distances.kernel_distance(rng.normal(size=(60, 4)), rng.normal(size=(50, 4)))
                     for _ in range(60)])
    assert abs(same[:, 0].mean()) < 3 * same[:, 0].std() / np.sqrt(60)
    far = np.array([distances.kernel_distance(rng.normal(size=(60, 4)), rng.normal(0.7, 1, (50, 4)))
                    for _ in range(60)])
    np.testing.assert_allclose(np.sqrt(np.square(far[:, 1]).mean()), far[:, 0].std(), rtol=0.25)
    # Of one-dimensional points, by hand: k(x, y) = (x y + 1)^3.
    value, _ = distances.kernel_distance(np.array([[0.0], [0.0], [0.0]]), np.array([[1.0], [1.0], [1.0]]))
    assert value == pytest.approx(1 + 8 - 2)
    with pytest.raises(ValueError, match="give at least 3 of each"):
        distances.kernel_distance(np.zeros((2, 1)), np.zeros((3, 1)))


def test_precision_and_recall_of_clusters(block_size):
    """Samples in one of two clusters have full precision and recall half of the reference."""
    rng = np.random.default_rng(0)
    cluster = rng.normal(size=(20, 3))
    reference = np.concatenate([cluster, cluster + 100])
    assert distances.precision_recall(cluster + 1e-3, reference) == (1.0, 0.5)
    assert distances.precision_recall(cluster + 50, reference) == (0.0, 0.0)
    assert distances.precision_recall(reference, reference) == (1.0, 1.0)
    with pytest.raises(ValueError, match="3 and 40 features for precision and recall with k = 3; give at least 4"):
        distances.precision_recall(cluster[:3], reference)


def test_inception_score_depends_on_the_images_and_not_on_their_order():
    """Confident classes give a score equal to their number; split in the order of classes, it would be lower."""
    labels = np.repeat(np.arange(10), 20)
    logits = 20 * np.eye(10, dtype=np.float32)[labels] + np.random.default_rng(1).normal(size=(200, 10))
    score = distances.inception_score(logits)
    assert 8.0 < score[0] <= 10.0
    for seed in range(3):
        assert distances.inception_score(np.random.default_rng(seed).permutation(logits)) == score
    assert distances.inception_scores_in_order(logits, 10).mean() < 1.1  # what sorted images would give
    assert distances.inception_score(np.zeros((30, 4)))[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="5 images in 10 splits for the Inception Score; give 1 to 5"):
        distances.inception_score(logits[:5])
